"""What a search answers: a learning rate, the interval it lies in, and why."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..types import PyTree
from .curve import LRCurve, arrays_of, curve_in
from .display import aligned, png
from .files import below, read_arrays, write_arrays

_SCALARS = ("learning_rate", "low", "high", "reason", "at_edge", "lane_steps")
_NAMED = ("rules", "hyperparameters")


class Round(NamedTuple):
    """What a search with a budget knew after a round.

    Attributes:
      learning_rate, low, high: its answer then.
      expected_excess: by how much the loss at that rate was expected to be above the best rate's, as a share of
        what that falls from the loss without training.
      price: the steps made so far, in runs of the horizon; of several combinations, those of all.
      chain: the steps that had to follow one another, in runs of the horizon: the lengths of all rounds so far.
    """

    learning_rate: float
    low: float
    high: float
    expected_excess: float
    price: float
    chain: float


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Suggestion:
    """A learning rate, the interval it lies in, and why.

    Attributes:
      learning_rate: the suggested rate; finite and positive.
      low, high: the ends of the interval around it, `low <= learning_rate <= high`.
      reason: one sentence.
      curve: the curve that it was read from; of runs of several lengths, that of the longest.
      at_edge: whether the best rate lay at the edge of the rates that were tried.
      lane_steps: how many training steps the search executed, over all its stages; three forward passes that told
        the loss without training count as one.
      rules: what the common rules say of the runs that span all rates (`shorter[0]` where there are shorter runs,
        else `curve`), by the names of their functions in `suggest`.
      finalists: the curve of the full runs under the real schedule, or None.
      params, model_state: what the best finalist ended with, or None; not saved.
      shorter: the curves of the shorter runs, from which the drift of the best rate was read.
      hyperparameters: the best combination of what `lr_find` was given as `lanes`, by name.
      combinations: the curve of the runs that span all rates, of every combination; None where there is but one.
      horizon: how many steps the run has that the rate is for, where those that were made are not as long; else
        None.
      trace: what a search with a budget knew after each round; of several combinations, of the best one.
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
    params: PyTree | None = None
    model_state: PyTree | None = None
    shorter: tuple[LRCurve, ...] = ()
    hyperparameters: Mapping[str, float] = dataclasses.field(default_factory=dict)
    combinations: LRCurve | None = None
    horizon: int | None = None
    trace: tuple[Round, ...] = ()

    @property
    def deciding(self) -> LRCurve:
        """The curve that decided: that of the full runs, or `curve` where there are none."""
        return self.curve if self.finalists is None else self.finalists

    def save(self, path: str | Path) -> None:
        """Write the suggestion and its curves, without `params` and `model_state`, to one `.npz` file.

        An older file stays whole where writing fails.
        """
        curves = {"curve": self.curve, "finalists": self.finalists, "combinations": self.combinations}
        curves |= {f"shorter{at}": curve for at, curve in enumerate(self.shorter)}
        arrays = {
            f"{part}/{name}": array
            for part, curve in curves.items()
            if curve is not None
            for name, array in arrays_of(curve).items()
        }
        scalars = {name: np.array(getattr(self, name)) for name in _SCALARS}
        if self.horizon is not None:
            scalars["horizon"] = np.array(self.horizon)
        named = {
            f"{part}/{name}": np.array(value)
            for part in _NAMED
            for name, value in getattr(self, part).items()
        }
        trace = {"trace": np.array(self.trace)} if self.trace else {}
        write_arrays(path, arrays | scalars | named | trace)

    @classmethod
    def load(cls, path: str | Path) -> "Suggestion":
        """Read a suggestion that `save` wrote.

        Raises:
          ValueError: the file holds something else, or is damaged.
        """
        file = read_arrays(path, "suggestion", "Suggestion.save")
        if missing := [name for name in _SCALARS if name not in file]:
            raise ValueError(f"{path} holds no suggestion: it lacks {', '.join(missing)}.")
        parts = {name.split("/")[0] for name in file}
        rules, hyperparameters = (
            {name: value.item() for name, value in below(file, f"{part}/").items()} for part in _NAMED
        )
        finalists, combinations = (
            curve_in(file, path, f"{part}/") if part in parts else None
            for part in ("finalists", "combinations")
        )
        return cls(
            **{name: file[name].item() for name in _SCALARS},
            curve=curve_in(file, path, "curve/"),
            finalists=finalists,
            shorter=tuple(
                curve_in(file, path, f"shorter{at}/")
                for at in range(sum(part.startswith("shorter") for part in parts))
            ),
            rules=rules,
            hyperparameters=hyperparameters,
            combinations=combinations,
            horizon=file["horizon"].item() if "horizon" in file else None,
            trace=tuple(Round(*map(float, row)) for row in file.get("trace", ())),
        )

    def to_dict(self) -> dict[str, Any]:
        """What is said, without curves and parameters, as plain numbers, strings, dicts, a list: for a log or JSON.

        With `horizon` and `trace`, a dict for each round, where there are any.

        >>> import json
        >>> curve = LRCurve(np.array([0.1]), np.ones((1, 1, 3), np.float32), None,
        ...                 np.array([], np.int32), np.array([[-1]], np.int32))
        >>> json.dumps(Suggestion(0.1, 0.05, 0.2, "A reason.", curve).to_dict())
        '{"learning_rate": 0.1, "low": 0.05, "high": 0.2, "reason": "A reason.", "at_edge": false, \
"lane_steps": 0, "rules": {}, "hyperparameters": {}}'
        """
        scalars = {name: np.asarray(getattr(self, name)).item() for name in _SCALARS}
        named = {
            part: {name: np.asarray(value).item() for name, value in getattr(self, part).items()}
            for part in _NAMED
        }
        found = scalars | named
        if self.horizon is not None:
            found["horizon"] = self.horizon
        if self.trace:
            found["trace"] = [{name: float(x) for name, x in known._asdict().items()} for known in self.trace]
        return found

    def plot(self, **options: Any) -> Any:
        """`plots.plot_lr_curve` of the curve, with the suggestion and its interval.

        Of several combinations of hyperparameters `plots.plot_grid`: the rate and the first of the others that
        varies, all further ones as suggested.
        """
        from .. import plots

        if self.combinations is None:
            return plots.plot_lr_curve(self.curve, suggestion=self, **options)
        curve = self.combinations
        for name in curve.axes[2:]:
            curve = curve.take(curve.hyperparameters[name] == self.hyperparameters[name])
        return plots.plot_grid(curve, suggestion=self, **options)

    def plot_trace(self, **options: Any) -> Any:
        """`plots.plot_trace` of a search with a budget: its answer and expected excess over what it had cost."""
        from .. import plots

        return plots.plot_trace(self.trace, **options)

    def _repr_png_(self) -> bytes | None:
        return png(self)

    def __str__(self) -> str:
        stable = np.concatenate([curve.stable for curve in (*self.shorter, self.curve)])
        diverged = f"{int((~stable).sum())} of {len(stable)}"
        rows = [
            ("learning rate", f"{self.learning_rate:.3g}"),
            ("interval", f"{self.low:.3g} to {self.high:.3g}"),
            *((name, f"{value:.3g}") for name, value in self.hyperparameters.items()),
            ("lanes diverged", diverged),
            ("lane-steps", f"{self.lane_steps:,}"),
            *((f"  {name}", f"{rate:.3g}") for name, rate in self.rules.items()),
        ]
        if self.rules:
            steps = (*self.shorter, self.curve)[0].losses.shape[-1]
            rows.insert(len(rows) - len(self.rules), ("common rules", f"of the runs of {steps} steps"))
        return "\n".join([*aligned(rows), self.reason])

    __repr__ = __str__
