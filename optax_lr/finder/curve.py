"""The curve of a sweep: losses of training runs over learning rates."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..types import Float, Int, Shaped
from .columns import dataframe_of
from .display import aligned, png
from .files import below, read_arrays, write_arrays
from .losses import as_reported, judged_losses
from .merging import map_lanes, refuse_to_merge


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LRCurve:
    """Losses of training runs at several learning rates: one lane a rate, one run of all lanes a seed.

    A run has diverged where its loss is not finite, or where it ended above the `reference`: by more than the noise
    of both, and by a tenth of what the best rate fell. What comes after a step at which it was stopped is NaN. Of a
    range test, whose rate rises within one run, the points of the ramp are lanes with one step each.

    Attributes:
      learning_rates: float64 [lanes]; increasing, unless other hyperparameters vary from lane to lane.
      losses: training loss before each update, float32 [seeds, lanes, steps].
      eval_losses: validation loss, float32 [seeds, lanes, evals], or None.
      eval_steps: int32 [evals], after how many updates each validation loss was taken.
      diverged_at: int32 [seeds, lanes], the step at which a run was stopped, or from which on it stayed above the
        reference; -1 where it did not diverge.
      placement: how the lanes were laid out over the machine, in words.
      metrics: what else each training step reported, by name, float32 [seeds, lanes, steps].
      eval_metrics: what else each validation reported, by name, float32 [seeds, lanes, evals].
      hyperparameters: what the lanes were given beside the learning rate, by name; [lanes].
      reference: the loss of the untrained parameters, or the `metric` that judges, on the data that judge, [seeds],
        or at each evaluation (each training step, where there is no validation), [seeds, points]; or None.
      checked: of a range test, the short runs at constant rates that check it, or None.
      metric: the report by which runs are judged: of validation where there is any, else of training steps.
      mode: "min" where it is better when low, "max" when high.
      folds: on how many parts of the data, each left out of training in turn, seeds were judged; 1 on shared data.
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
    reference: Float[np.ndarray, " seeds *points"] | None = None
    checked: "LRCurve | None" = None
    metric: str = "loss"
    mode: Literal["min", "max"] = "min"
    folds: int = 1

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
    def judged_by(self) -> str:
        """What runs are judged by, in words, such as "validation loss"."""
        return f"{'training' if self.eval_losses is None else 'validation'} {self.metric.replace('_', ' ')}"

    @property
    def best_is(self) -> str:
        """What the best of it is, in a word: "lowest" or "highest"."""
        return "highest" if self.mode == "max" else "lowest"

    @property
    def lane_steps(self) -> int:
        """How many training steps were executed, over all lanes and seeds."""
        steps = self.losses.shape[-1]
        # A run that only its end showed to be lost was not stopped.
        last = steps - np.isfinite(self.losses)[..., ::-1].argmax(axis=-1)
        last = np.where(np.isfinite(self.losses).any(axis=-1), last, 0)
        made = int(np.where(self.diverged_at < 0, steps, np.maximum(last, self.diverged_at + 1)).sum())
        return made + (0 if self.checked is None else self.checked.lane_steps)

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
        return map_lanes(lambda axis, x: x[lanes] if axis == 0 else x[:, lanes], self)

    def merge(self, other: "LRCurve") -> "LRCurve":
        """The lanes of both curves in order of their rate, those of one rate as they came.

        Raises:
          ValueError: the curves differ in seeds, steps, evaluations, metrics or hyperparameters.
        """
        refuse_to_merge(self, other)
        order = np.argsort(np.concatenate([self.learning_rates, other.learning_rates]), kind="stable")
        return map_lanes(lambda axis, *both: np.take(np.concatenate(both, axis), order, axis), self, other)

    def merge_seeds(self, other: "LRCurve") -> "LRCurve":
        """The runs of both curves, those of the other as further seeds of the same lanes.

        Raises:
          ValueError: the curves differ in lanes, steps, evaluations, metrics or hyperparameters.

        >>> one = LRCurve(np.array([0.1, 0.3]), np.ones((3, 2, 5), np.float32), None, np.array([], np.int32),
        ...               np.full((3, 2), -1, np.int32))
        >>> one.merge_seeds(one).losses.shape
        (6, 2, 5)
        """
        refuse_to_merge(self, other, but_for="seeds")
        for name, values in self.lanes.items():
            if not np.array_equal(values, other.lanes[name]):
                raise ValueError(
                    f"Merged seeds must have the same {name} of lanes, got {values.tolist()} and "
                    f"{other.lanes[name].tolist()}."
                )
        known = self.reference is not None and other.reference is not None
        merged = map_lanes(lambda axis, *both: np.concatenate(both) if axis else both[0], self, other)
        both = np.concatenate([self.reference, other.reference]) if known else None
        return dataclasses.replace(merged, reference=both)

    def to_dataframe(self) -> Any:
        """A pandas `DataFrame`: one row for each seed, lane and step, after how many updates a loss was taken.

        The columns are `seed`, `lane`, `step`, the hyperparameters, `loss`, `eval_loss`, and every metric under
        its name, those of validation under `eval_` and the name. What was not taken at a step is NaN. Steps after
        a run diverged have no row.

        Raises:
          ImportError: pandas is not installed.
        """
        return dataframe_of(self)

    def save(self, path: str | Path) -> None:
        """Write the curve to one `.npz` file; an older file stays whole where writing fails.

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
          ValueError: the file holds something else, or is damaged.
        """
        return curve_in(read_arrays(path, "curve", "LRCurve.save"), path)

    def plot(self, **options: Any) -> Any:
        """Loss against rate, `plots.plot_lr_curve`; where another hyperparameter varies, too, `plots.plot_grid`."""
        from .. import plots

        return (plots.plot_lr_curve if len(self.axes) == 1 else plots.plot_grid)(self, **options)

    def _repr_png_(self) -> bytes | None:
        return png(self)

    def __repr__(self) -> str:
        seeds, lanes, steps = self.losses.shape
        low, high = self.learning_rates.min(), self.learning_rates.max()
        kind = "lanes of " + " x ".join(self.axes) + "," if len(self.axes) > 1 else "rates"
        return (
            f"LRCurve: {lanes} {kind} from {low:.3g} to {high:.3g}, {seeds} seed(s), {steps} steps, "
            f"{int((~self.stable).sum())} lane(s) diverged, {self.lane_steps:,} lane-steps"
        )

    def __str__(self) -> str:
        """The best lane; of few lanes a table, too."""
        means = as_reported(self, judged_losses(self)[-1][1].mean(axis=0))
        if np.isnan(means).all():
            return f"{self!r}\nEvery lane diverged."
        best = int(np.nanargmin(as_reported(self, means)))
        where = ", ".join(f"{name} {self.lanes[name][best]:.3g}" for name in self.axes)
        kind = self.judged_by
        said = f"{self!r}\nThe {kind} is {self.best_is} at {where}: {means[best]:.4g}."
        if len(means) > LANES_IN_TABLE:
            return said
        rows = [
            (*(f"{self.lanes[name][lane]:.3g}" for name in self.axes), *_outcome(self, lane, means[lane]))
            for lane in range(len(means))
        ]
        return "\n".join([said, *aligned([(*self.axes, kind), *rows])])


LANES_IN_TABLE = 16
_WORDS = ("placement", "metric", "mode", "folds")
_FIELDS = ("learning_rates", "losses", "eval_losses", "eval_steps", "diverged_at", "reference", *_WORDS)
_OPTIONAL = ("eval_losses", "reference", "metric", "mode", "folds")
_NAMED = ("metrics", "eval_metrics", "hyperparameters")


def _outcome(curve: LRCurve, lane: int, loss: float) -> tuple[str]:
    """How a lane ended, in words: its loss, or where the first of its seeds diverged."""
    stops = curve.diverged_at[:, lane]
    if curve.losses.shape[-1] > 1 and (stops >= 0).any():
        return (f"diverged at step {stops[stops >= 0].min()}",)
    return ("diverged" if np.isnan(loss) else f"{loss:.4g}",)


def arrays_of(curve: LRCurve) -> dict[str, np.ndarray]:
    """All of a curve as named arrays, for a file; `curve_in` reads them."""
    fields = {name: getattr(curve, name) for name in _FIELDS}
    named = {f"{name}/{key}": value for name in _NAMED for key, value in getattr(curve, name).items()}
    if curve.checked is not None:
        named |= {f"checked/{name}": array for name, array in arrays_of(curve.checked).items()}
    return {name: np.asarray(value) for name, value in (fields | named).items() if value is not None}


def curve_in(file: Mapping[str, np.ndarray], path: str | Path, prefix: str = "") -> LRCurve:
    """The curve that `arrays_of` took apart, from the arrays of a file whose names begin with a prefix.

    Raises:
      ValueError: there is none.
    """
    missing = [name for name in _FIELDS if prefix + name not in file and name not in _OPTIONAL]
    if missing:
        raise ValueError(f"{path} holds no curve: it lacks {', '.join(missing)}.")
    arrays = {name: file[prefix + name] for name in _FIELDS if prefix + name in file}
    named = {name: below(file, f"{prefix}{name}/") for name in _NAMED}
    inner = f"{prefix}checked/"
    checked = curve_in(file, path, inner) if any(name.startswith(inner) for name in file) else None
    words = {name: arrays[name].item() for name in _WORDS if name in arrays}
    return LRCurve(**{"eval_losses": None, **arrays, **named, **words, "checked": checked})
