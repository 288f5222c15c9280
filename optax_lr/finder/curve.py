"""The curve of a sweep: losses of training runs over learning rates."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..types import Float, Int, Shaped


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LRCurve:
    """Losses of training runs at several learning rates: one lane a rate, one run of all lanes a seed.

    What comes after the step at which a run diverged is NaN. Of a range test, whose rate rises within one run,
    the points of the ramp are lanes with one step each.

    Attributes:
      learning_rates: float64 [lanes]; increasing, unless other hyperparameters vary from lane to lane.
      losses: training loss before each update, float32 [seeds, lanes, steps].
      eval_losses: validation loss, float32 [seeds, lanes, evals], or None.
      eval_steps: int32 [evals], after how many updates each validation loss was taken.
      diverged_at: int32 [seeds, lanes], the step at which a run was stopped, -1 where it was not.
      placement: how the lanes were laid out over the machine, in words.
      metrics: what else each training step reported, by name, float32 [seeds, lanes, steps].
      eval_metrics: what else each validation reported, by name, float32 [seeds, lanes, evals].
      hyperparameters: what the lanes were given beside the learning rate, by name; [lanes].
    """

    learning_rates: Float[np.ndarray, "lanes"]
    losses: Float[np.ndarray, "seeds lanes steps"]
    eval_losses: Float[np.ndarray, "seeds lanes evals"] | None
    eval_steps: Int[np.ndarray, "evals"]
    diverged_at: Int[np.ndarray, "seeds lanes"]
    placement: str = ""
    metrics: Mapping[str, Float[np.ndarray, "seeds lanes steps"]] = dataclasses.field(default_factory=dict)
    eval_metrics: Mapping[str, Float[np.ndarray, "seeds lanes evals"]] = dataclasses.field(
        default_factory=dict
    )
    hyperparameters: Mapping[str, Shaped[np.ndarray, "lanes"]] = dataclasses.field(default_factory=dict)

    @property
    def lanes(self) -> dict[str, np.ndarray]:
        """Every hyperparameter of the lanes by name, the learning rate first; [lanes]."""
        return {"learning_rate": self.learning_rates, **self.hyperparameters}

    @property
    def axes(self) -> list[str]:
        """The names of the hyperparameters that vary from lane to lane; the learning rate always counts."""
        others = self.hyperparameters.items()
        return ["learning_rate", *(name for name, values in others if (values != values[0]).any())]

    @property
    def lane_steps(self) -> int:
        """How many training steps were executed, over all lanes and seeds."""
        steps = self.losses.shape[-1]
        return int(np.where(self.diverged_at < 0, steps, self.diverged_at + 1).sum())

    @property
    def stable(self) -> np.ndarray:
        """bool [lanes]: whether no seed diverged at that rate."""
        return np.all(self.diverged_at < 0, axis=0)

    def take(self, lanes: Any) -> "LRCurve":
        """The curve of some lanes: a slice, indices or a mask, as NumPy takes them.

        >>> rates, decay = np.array([0.1, 0.3, 0.1, 0.3]), np.array([0.0, 0.0, 0.1, 0.1])
        >>> losses, alive = np.ones((1, 4, 1), np.float32), np.full((1, 4), -1, np.int32)
        >>> curve = LRCurve(rates, losses, None, np.array([], np.int32), alive,
        ...                 hyperparameters={"weight_decay": decay})
        >>> curve.take(curve.lanes["weight_decay"] == 0.1).learning_rates.tolist()
        [0.1, 0.3]
        """
        return _map_lanes(lambda axis, x: x[lanes] if axis == 0 else x[:, lanes], self)

    def merge(self, other: "LRCurve") -> "LRCurve":
        """The lanes of both curves in order of their rate, those of one rate as they came.

        Raises:
          ValueError: the curves differ in seeds, steps, evaluations, metrics or hyperparameters.
        """
        _refuse_to_merge(self, other)
        order = np.argsort(np.concatenate([self.learning_rates, other.learning_rates]), kind="stable")
        return _map_lanes(lambda axis, *both: np.take(np.concatenate(both, axis), order, axis), self, other)

    def merge_seeds(self, other: "LRCurve") -> "LRCurve":
        """The runs of both curves, those of the other as further seeds of the same lanes.

        Raises:
          ValueError: the curves differ in lanes, steps, evaluations, metrics or hyperparameters.

        >>> one = LRCurve(np.array([0.1, 0.3]), np.ones((3, 2, 5), np.float32), None, np.array([], np.int32),
        ...               np.full((3, 2), -1, np.int32))
        >>> one.merge_seeds(one).losses.shape
        (6, 2, 5)
        """
        _refuse_to_merge(self, other, but_for="seeds")
        for name, values in self.lanes.items():
            if not np.array_equal(values, other.lanes[name]):
                raise ValueError(
                    f"Merged seeds must have the same {name} of lanes, got {values.tolist()} and "
                    f"{other.lanes[name].tolist()}."
                )
        return _map_lanes(lambda axis, *both: np.concatenate(both) if axis else both[0], self, other)

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
        write_arrays(path, arrays_of(self))

    @classmethod
    def load(cls, path: str | Path) -> "LRCurve":
        """Read a curve that `save` wrote.

        Raises:
          ValueError: the file holds something else.
        """
        with np.load(npz_path(path)) as file:
            return curve_in(file, path)

    def plot(self, **options: Any) -> Any:
        """Loss against rate, `plots.plot_lr_curve`; where another hyperparameter varies, too, `plots.plot_grid`."""
        from .. import plots

        return (plots.plot_lr_curve if len(self.axes) == 1 else plots.plot_grid)(self, **options)

    def _repr_png_(self) -> bytes | None:
        return png(self)

    def __str__(self) -> str:
        seeds, lanes, steps = self.losses.shape
        low, high = self.learning_rates.min(), self.learning_rates.max()
        kind = "lanes of " + " x ".join(self.axes) + "," if len(self.axes) > 1 else "rates"
        return (
            f"LRCurve: {lanes} {kind} from {low:.3g} to {high:.3g}, {seeds} seed(s), {steps} steps, "
            f"{int((~self.stable).sum())} lane(s) diverged, {self.lane_steps:,} lane-steps"
        )

    __repr__ = __str__


_FIELDS = ("learning_rates", "losses", "eval_losses", "eval_steps", "diverged_at", "placement")
_NAMED = ("metrics", "eval_metrics", "hyperparameters")
# Which axis of a curve's arrays counts its lanes.
_LANE_AXES = {
    **dict.fromkeys(("learning_rates", "hyperparameters"), 0),
    **dict.fromkeys(("losses", "eval_losses", "diverged_at", "metrics", "eval_metrics"), 1),
}


def _map_lanes(function: Callable[..., np.ndarray], *curves: LRCurve) -> LRCurve:
    """The curve made of `function(axis, *arrays)` of the arrays of all curves; `axis` is that of the lanes."""

    def changed(name: str, axis: int) -> Any:
        values = [getattr(curve, name) for curve in curves]
        if isinstance(values[0], Mapping):
            return {key: function(axis, *(value[key] for value in values)) for key in values[0]}
        return None if values[0] is None else function(axis, *values)

    return dataclasses.replace(curves[0], **{name: changed(name, axis) for name, axis in _LANE_AXES.items()})


def _refuse_to_merge(mine: LRCurve, theirs: LRCurve, but_for: str | None = None) -> None:
    """Curves must agree in all but their lanes, and but for one thing more where it is named."""

    def agreement(curve: LRCurve) -> dict[str, Any]:
        seeds, _, steps = curve.losses.shape
        return {
            "seeds": seeds,
            "steps": steps,
            "evaluations": None if curve.eval_losses is None else curve.eval_steps.tolist(),
            "metrics": sorted(curve.metrics),
            "validation metrics": sorted(curve.eval_metrics),
            "hyperparameters": sorted(curve.lanes),
        }

    others = agreement(theirs)
    for name, one in agreement(mine).items():
        if one != others[name] and name != but_for:
            raise ValueError(f"Merged curves must have the same {name}, got {one} and {others[name]}.")


def png(result: Any) -> bytes | None:
    """The picture that a notebook shows; none where there is nothing to draw, or nothing to draw with."""
    try:
        from .. import plots

        return plots.png(result.plot())
    except (ImportError, ValueError):
        return None


def npz_path(path: str | Path) -> Path:
    """NumPy adds the ending when it writes, not when it reads."""
    return Path(path) if Path(path).suffix == ".npz" else Path(f"{path}.npz")


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    np.savez_compressed(npz_path(path), allow_pickle=False, **arrays)


def arrays_of(curve: LRCurve) -> dict[str, np.ndarray]:
    fields = {name: getattr(curve, name) for name in _FIELDS}
    named = {f"{name}/{key}": value for name in _NAMED for key, value in getattr(curve, name).items()}
    return {name: np.asarray(value) for name, value in (fields | named).items() if value is not None}


def curve_in(file: Mapping[str, np.ndarray], path: str | Path, prefix: str = "") -> LRCurve:
    missing = [name for name in _FIELDS if prefix + name not in file and name != "eval_losses"]
    if missing:
        raise ValueError(f"{path} holds no curve: it lacks {', '.join(missing)}.")
    arrays = {name: file[prefix + name] for name in _FIELDS if prefix + name in file}
    named = {name: below(file, f"{prefix}{name}/") for name in _NAMED}
    return LRCurve(**{"eval_losses": None, **arrays, **named, "placement": arrays["placement"].item()})


def below(file: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """What a file holds under a prefix, by the rest of its name."""
    return {name.removeprefix(prefix): file[name] for name in file if name.startswith(prefix)}
