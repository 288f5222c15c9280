"""What a finder hands over: the curve of a sweep, and the rate that was suggested from it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from .types import PyTree


class SweepResult(NamedTuple):
    """Every number that the lanes of a sweep reported, on the host.

    Attributes:
      metrics: by name, float32 [seeds, lanes, steps]; NaN after the step at which a lane diverged.
      evals: by name, float32 [seeds, lanes, evals], taken after the steps in `eval_steps`.
      diverged_at: int32 [seeds, lanes], the step at which a lane was stopped, -1 where it was not.
      carries: the final carries with leading axes [seeds, lanes], or None where they were not asked for.
      placement: how the lanes were laid out over the machine, in words.
    """

    metrics: Mapping[str, Float[np.ndarray, "seeds lanes steps"]]
    evals: Mapping[str, Float[np.ndarray, "seeds lanes evals"]]
    diverged_at: Int[np.ndarray, "seeds lanes"]
    carries: PyTree | None
    placement: str


@dataclasses.dataclass(frozen=True, eq=False)
class LRCurve:
    """Losses of training runs at several learning rates: one lane a rate, one run of all lanes a seed.

    What comes after the step at which a run diverged is NaN. Of a range test, whose rate rises within one run,
    the points of the ramp are lanes with one step each.

    Attributes:
      learning_rates: float64 [lanes], increasing.
      losses: training loss before each update, float32 [seeds, lanes, steps].
      eval_losses: validation loss, float32 [seeds, lanes, evals], or None.
      eval_steps: int32 [evals], after how many updates each validation loss was taken.
      diverged_at: int32 [seeds, lanes], the step at which a run was stopped, -1 where it was not.
      placement: how the lanes were laid out over the machine, in words.
    """

    learning_rates: Float[np.ndarray, "lanes"]
    losses: Float[np.ndarray, "seeds lanes steps"]
    eval_losses: Float[np.ndarray, "seeds lanes evals"] | None
    eval_steps: Int[np.ndarray, "evals"]
    diverged_at: Int[np.ndarray, "seeds lanes"]
    placement: str = ""

    @property
    def lane_steps(self) -> int:
        """How many training steps were executed, over all lanes and seeds."""
        steps = self.losses.shape[-1]
        return int(np.where(self.diverged_at < 0, steps, self.diverged_at + 1).sum())

    @property
    def stable(self) -> np.ndarray:
        """bool [lanes]: whether no seed diverged at that rate."""
        return np.all(self.diverged_at < 0, axis=0)

    def merge(self, other: "LRCurve") -> "LRCurve":
        """The lanes of both curves, which must agree in seeds, steps and evaluations, in order of their rate."""
        rates = np.concatenate([self.learning_rates, other.learning_rates])
        order = np.argsort(rates, kind="stable")

        def lanes(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
            return np.concatenate([mine, theirs], axis=1)[:, order]

        evals = None
        if self.eval_losses is not None and other.eval_losses is not None:
            evals = lanes(self.eval_losses, other.eval_losses)
        return LRCurve(
            learning_rates=rates[order],
            losses=lanes(self.losses, other.losses),
            eval_losses=evals,
            eval_steps=self.eval_steps,
            diverged_at=lanes(self.diverged_at, other.diverged_at),
            placement=self.placement,
        )

    def save(self, path: str | Path) -> None:
        """Write the curve to one `.npz` file.

        >>> import tempfile, pathlib
        >>> curve = LRCurve(np.array([0.1]), np.ones((1, 1, 3), np.float32), None,
        ...                 np.array([], np.int32), np.array([[-1]], np.int32))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     curve.save(pathlib.Path(folder) / "curve.npz")
        ...     LRCurve.load(pathlib.Path(folder) / "curve.npz").lane_steps
        3
        """
        _write(path, _arrays(self))

    @classmethod
    def load(cls, path: str | Path) -> "LRCurve":
        """Read a curve that `save` wrote.

        Raises:
          ValueError: the file holds something else.
        """
        with np.load(_npz(path)) as file:
            return _curve(file, path)

    def plot(self, **options: Any) -> Any:
        """`plots.plot_lr_curve` of this curve: loss against rate, on new axes unless `ax` is given."""
        from . import plots

        return plots.plot_lr_curve(self, **options)

    def _repr_png_(self) -> bytes:
        from . import plots

        return plots.png(self.plot())

    def __str__(self) -> str:
        seeds, lanes, steps = self.losses.shape
        low, high = self.learning_rates[[0, -1]]
        return (
            f"LRCurve: {lanes} rates from {low:.3g} to {high:.3g}, {seeds} seed(s), {steps} steps, "
            f"{int((~self.stable).sum())} lane(s) diverged, {self.lane_steps:,} lane-steps"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Suggestion:
    """A learning rate, the interval it lies in, and why.

    Attributes:
      learning_rate: the suggested rate; finite and positive.
      low, high: the ends of the interval around it, `low <= learning_rate <= high`.
      reason: one sentence.
      curve: the curve that it was read from.
      at_edge: whether the best rate lay at the edge of the rates that were tried.
      lane_steps: how many training steps the search executed, over all its stages.
      rules: what the common rules say of the same curve, by name.
      finalists: the curve of the full runs under the real schedule, or None.
      params: the parameters that the best finalist ended with, or None; not saved.
    """

    learning_rate: float
    low: float
    high: float
    reason: str
    curve: LRCurve
    at_edge: bool = False
    lane_steps: int = 0
    rules: Mapping[str, float] = dataclasses.field(default_factory=dict)
    finalists: LRCurve | None = None
    params: PyTree | None = dataclasses.field(default=None, repr=False)

    def save(self, path: str | Path) -> None:
        """Write the suggestion and its curves, but for `params`, to one `.npz` file."""
        arrays = {f"curve/{name}": array for name, array in _arrays(self.curve).items()}
        if self.finalists is not None:
            arrays |= {f"finalists/{name}": array for name, array in _arrays(self.finalists).items()}
        scalars = {name: np.array(getattr(self, name)) for name in _SCALARS}
        rules = {f"rules/{name}": np.array(rate) for name, rate in self.rules.items()}
        _write(path, arrays | scalars | rules)

    @classmethod
    def load(cls, path: str | Path) -> "Suggestion":
        """Read a suggestion that `save` wrote.

        Raises:
          ValueError: the file holds something else.
        """
        with np.load(_npz(path)) as file:
            if missing := [name for name in _SCALARS if name not in file]:
                raise ValueError(f"{path} holds no suggestion: it lacks {', '.join(missing)}.")
            parts = {name.split("/")[0] for name in file.files}
            return cls(
                **{name: file[name].item() for name in _SCALARS},
                curve=_curve(file, path, "curve/"),
                finalists=_curve(file, path, "finalists/") if "finalists" in parts else None,
                rules={
                    name.removeprefix("rules/"): file[name].item()
                    for name in file.files
                    if name.startswith("rules/")
                },
            )

    def plot(self, **options: Any) -> Any:
        """`plots.plot_lr_curve` of the curve, with the suggestion and its interval."""
        from . import plots

        return plots.plot_lr_curve(self.curve, suggestion=self, **options)

    def _repr_png_(self) -> bytes:
        from . import plots

        return plots.png(self.plot())

    def __str__(self) -> str:
        diverged = f"{int((~self.curve.stable).sum())} of {len(self.curve.learning_rates)}"
        rows = [
            ("learning rate", f"{self.learning_rate:.3g}"),
            ("interval", f"{self.low:.3g} to {self.high:.3g}"),
            ("lanes diverged", diverged),
            ("lane-steps", f"{self.lane_steps:,}"),
            *((f"  {name}", f"{rate:.3g}") for name, rate in self.rules.items()),
        ]
        if self.rules:
            rows.insert(4, ("common rules", ""))
        width = max(len(name) for name, _ in rows)
        return "\n".join([*(f"{name:<{width}}  {value}".rstrip() for name, value in rows), self.reason])


_FIELDS = ("learning_rates", "losses", "eval_losses", "eval_steps", "diverged_at", "placement")
_SCALARS = ("learning_rate", "low", "high", "reason", "at_edge", "lane_steps")


def _npz(path: str | Path) -> Path:
    """NumPy adds the ending when it writes, not when it reads."""
    return Path(path) if Path(path).suffix == ".npz" else Path(f"{path}.npz")


def _write(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    np.savez_compressed(_npz(path), allow_pickle=False, **arrays)


def _arrays(curve: LRCurve) -> dict[str, np.ndarray]:
    fields = {name: getattr(curve, name) for name in _FIELDS}
    return {name: np.asarray(value) for name, value in fields.items() if value is not None}


def _curve(file: Mapping[str, np.ndarray], path: str | Path, prefix: str = "") -> LRCurve:
    missing = [name for name in _FIELDS if prefix + name not in file and name != "eval_losses"]
    if missing:
        raise ValueError(f"{path} holds no curve: it lacks {', '.join(missing)}.")
    arrays = {name: file[prefix + name] for name in _FIELDS if prefix + name in file}
    return LRCurve(**{"eval_losses": None, **arrays, "placement": arrays["placement"].item()})
