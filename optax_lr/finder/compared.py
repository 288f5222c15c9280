"""The result of `compare`: losses, metrics, good rates and paired differences, as a table and a picture."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import checks
from ..types import Float
from .comparison import excess, interval, span_around
from .curve import LRCurve
from .display import aligned, png
from .losses import judged_losses
from .outcomes import final_losses, nothing_learned
from .suggestion import Suggestion

# Good rates end at most this share above the lowest loss.
GOOD = 0.1
# Training losses are averaged over this part of a run.
WINDOW = 20
LEVEL = 0.95


class Difference(NamedTuple):
    """A mean difference of losses over paired seeds, and its 95% interval."""

    mean: float
    low: float
    high: float

    @property
    def word(self) -> str:
        """Whether the candidate is better or worse than the first; "even" where the interval holds 0."""
        return "better" if self.high < 0 else "worse" if self.low > 0 else "even"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """What `compare` found. Printed, one table; the candidates come in the order in which they were given.

    At least one candidate has runs.

    Attributes:
      found: for each candidate what its search answered; None where every rate diverged.
      runs: for each candidate its runs at its peak, one lane; None where they diverged.
      target: the loss whose first step is looked for.
      metric: the name of the metric that is shown beside the loss, or None.
      lane_steps: how many training steps were made, over the searches and runs of those that did not diverge.
    """

    found: Mapping[str, Suggestion | None]
    runs: Mapping[str, LRCurve | None]
    target: float
    metric: str | None = None
    lane_steps: int = 0

    @property
    def names(self) -> list[str]:
        """The candidates, as they were given."""
        return list(self.runs)

    @property
    def first(self) -> str:
        """The first candidate that did not diverge, which the others are compared with."""
        return next(name for name in self.names if self.runs[name] is not None)

    @property
    def best(self) -> str:
        """The candidate of the lowest mean loss."""
        return min(self.names, key=lambda name: np.nan_to_num(self.losses(name).mean(), nan=np.inf))

    def peak(self, name: str) -> float | None:
        """The rate that a candidate was trained at; None where it diverged."""
        runs = self.runs[name]
        return None if runs is None else float(runs.learning_rates[0])

    def losses(self, name: str) -> Float[np.ndarray, " seeds"]:
        """The final validation loss of every seed, else its training loss over the last quarter; [seeds]."""
        runs = self.runs[name]
        return np.full(1, np.nan) if runs is None else judged_losses(runs)[-1][1][:, 0]

    def metrics(self, name: str) -> Float[np.ndarray, " seeds"]:
        """The chosen metric of every seed at the end, taken as the loss is; [seeds]."""
        runs = self.runs[name]
        return np.full(1, np.nan) if runs is None or self.metric is None else metric_at_end(runs, self.metric)

    def history(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """After how many steps the loss is known, [points], and the losses, [seeds, points].

        Training losses are averaged over a twentieth of the run.
        """
        runs = self.runs[name]
        if runs is None:
            return np.zeros(0, int), np.zeros((1, 0))
        if runs.eval_losses is not None:
            return runs.eval_steps, runs.eval_losses[:, 0]
        losses = runs.losses[:, 0]
        width = max(1, losses.shape[-1] // WINDOW)
        means = np.lib.stride_tricks.sliding_window_view(losses, width, axis=-1).mean(axis=-1)
        return np.arange(width, losses.shape[-1] + 1), means

    def steps_to_target(self, name: str) -> int | None:
        """After how many steps the mean loss was first at the target or below; None where it never was."""
        steps, losses = self.history(name)
        reached = np.flatnonzero(losses.mean(axis=0) <= self.target)
        return int(steps[reached[0]]) if len(reached) else None

    def good_rates(self, name: str) -> tuple[float, float] | None:
        """The rates around the best whose loss is within 10% of the lowest, as the search saw them.

        Between two tried rates losses lie on a line over the logarithm of the rate. The span ends where rates did.
        None where no rate learned: that all are alike makes none good.
        """
        found = self.found[name]
        if found is None or nothing_learned(found.deciding):
            return None
        curve = found.deciding
        losses = final_losses(curve)
        above, most = excess(losses), GOOD * abs(np.nanmin(losses.mean(axis=0)))
        low, high = interval(curve.learning_rates, above, most, span_around(above, most))
        return min(low, found.learning_rate), max(high, found.learning_rate)

    def difference(self, name: str) -> Difference | None:
        """The loss minus that of the first candidate, seed by seed; None for a candidate that diverged."""
        if self.runs[name] is None:
            return None
        mean, half = _with_error(self.losses(name) - self.losses(self.first))
        return Difference(mean, mean - half, mean + half)

    def to_dict(self) -> dict[str, Any]:
        """The table as plain numbers, strings, lists and dicts, for a log or JSON; None where nothing is known."""
        return {
            "best": self.best,
            "target": self.target,
            "lane_steps": self.lane_steps,
            "candidates": {name: self._numbers(name) for name in self.names},
        }

    def _numbers(self, name: str) -> dict[str, Any]:
        difference, good = self.difference(name), self.good_rates(name)
        known = self.runs[name] is not None
        metric = {} if self.metric is None else {self.metric: self.metrics(name).mean().item()}
        return {
            "learning_rate": self.peak(name),
            "loss": float(self.losses(name).mean()) if known else None,
            **(metric if known else dict.fromkeys(metric)),
            "good_rates": None if good is None else list(good),
            "steps_to_target": self.steps_to_target(name),
            "difference": None if difference is None else list(difference),
        }

    def plot(self, **options: Any) -> Any:
        """`plots.plot_comparison`: loss over steps, mean and range over the seeds, a color for each candidate."""
        from .. import plots

        return plots.plot_comparison(self, **options)

    def _repr_png_(self) -> bytes | None:
        return png(self)

    def __str__(self) -> str:
        curve = self.runs[self.first]
        assert curve is not None
        seeds, _, steps = curve.losses.shape
        shown = ["peak", curve.judged_by, *([] if self.metric is None else [self.metric]), "good rates"]
        header = ["", *shown, f"steps to {self.target:.3g}", f"difference to {self.first}"]
        return "\n".join(
            [
                *aligned([header, *(self._row(name) for name in self.names)]),
                f"Lowest: {self.best}. {steps:,} steps, {seeds} seeds, intervals of 95%; "
                f"{self.lane_steps:,} lane-steps in all.",
            ]
        )

    __repr__ = __str__

    def _row(self, name: str) -> list[str]:
        peak, good, difference = self.peak(name), self.good_rates(name), self.difference(name)
        empty = [] if self.metric is None else [""]
        if peak is None:
            return [name, "", "diverged", *empty, "", "", ""]
        loss, half = _with_error(self.losses(name))
        reached = self.steps_to_target(name)
        return [
            name,
            f"{peak:.3g}",
            f"{loss:.4g} ± {half:.2g}",
            *(f"{self.metrics(name).mean():.4g}" for _ in empty),
            f"{good[0]:.2g} to {good[1]:.2g} (x {good[1] / good[0]:.2g})" if good else "no rate learned",
            "never" if reached is None else f"{reached:,}",
            ""
            if difference is None or name == self.first
            else f"{difference.mean:+.3g} ({difference.low:+.2g} to {difference.high:+.2g}) {difference.word}",
        ]


def metric_at_end(runs: LRCurve, name: str) -> np.ndarray:
    """A metric at the end of the only lane, [seeds].

    Raises:
      ValueError: there is none of that name.
    """
    known = runs.metrics if runs.eval_losses is None else runs.eval_metrics
    if name not in known:
        raise ValueError(f"metric {name!r} is not reported: {checks.close_match(name, known)}")
    if runs.eval_losses is not None:
        return known[name][:, 0, -1].astype(np.float64)
    values = known[name][:, 0]
    return values[:, -max(1, values.shape[-1] // 4) :].mean(axis=-1, dtype=np.float64)


def _with_error(values: np.ndarray) -> tuple[float, float]:
    """The mean over the seeds and half the width of its interval, Student's."""
    from scipy.special import stdtrit  # a third of a second that `import optax_lr` need not take

    freedom = len(values) - 1
    half = stdtrit(freedom, (1 + LEVEL) / 2) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(half)
