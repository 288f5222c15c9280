"""What rules compare: how far each run fell below the loss without training, and which runs are lost.

The *height* of a run is its loss minus the reference: the loss of the parameters that it began with, on the same
data. A run that learned has a negative height, and the *fall* of the best rate is the unit of every tolerance. So a
constant added to the loss changes nothing, and a factor neither.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from .comparison import (
    TOLERANCE,
    fall_of,
    near_best,
    noise_threshold,
    of_mean,
    pooled_deviation,
    untrained_loss,
)
from .curve import LRCurve
from .losses import as_losses, points_of

# A run is lost that ends above where it began, by more than this share of what the best rate fell, and by more than
# so many deviations of the noise.
ROSE, DEVIATIONS = 0.1, 4.0
# How sure a t-test must be that the best rate fell at all.
LEARNED_LEVEL = 0.95
# A mean loss does harm that is so many times as far above the untrained one as noise may be.
HARM = 2.0
# What float32 leaves of a loss that did not change, as a share of it.
ROUNDING = 4 * float(np.finfo(np.float32).eps)
# Where no rate learned, a run is lost that rose by so many times the untrained loss.
MULTIPLE = 3.0
# Of normal noise, its deviation over the median of what values differ from theirs.
MEDIAN_DEVIATION = 1.4826
# The weight of the past in the average of a run's heights.
MEMORY = 0.9


class Judged(NamedTuple):
    """The runs of a curve after so many steps.

    Attributes:
      steps: how many.
      heights: float64 [seeds, lanes]; NaN at rates where any run was lost.
      losses: float64 [seeds, lanes], what the heights are above the reference with it; finite where they are.
      noise: the deviation that batches leave in each height, [seeds, lanes]; 0 of validation losses.
      rounding: the height that float32 may make of nothing.
      folds: on how many parts of the data they were judged in turn; 1 where all seeds share the data.
      known: whether the curve holds the loss without training; else the smallest rate stands in for it, and nobody
        can tell whether anything was learned.
    """

    steps: int
    heights: np.ndarray
    losses: np.ndarray
    noise: np.ndarray
    rounding: float
    known: bool
    folds: int = 1

    @property
    def survives(self) -> bool:
        """Whether any rate is left."""
        return bool(np.isfinite(self.heights).any())

    @property
    def fall(self) -> float:
        """How far the best rate fell, the unit of tolerances; 0 where none did, or none is left."""
        return fall_of(self.heights)

    @property
    def doubt(self) -> float:
        """How far a mean height may be from 0 by noise alone: that of the best rate, or of those beside it, too.

        Starts may differ by more than anybody learns. Where all runs of the best rate end below their own, it is
        how far their ends differ, if that is less: what moves at random ends as far apart as it began.
        """
        from scipy.special import stdtrit  # a third of a second that `import optax_lr` need not take

        seeds, best = len(self.heights), int(np.nanargmin(self.heights.mean(axis=0)))
        around = self.heights[:, max(0, best - 1) : best + 2]
        all_fell = bool((self.heights[:, best] < 0).all())
        ends = [self.losses[:, [best]]] if all_fell else []
        errors = [0.0] if seeds == 1 else [
            stdtrit(freedom, LEARNED_LEVEL) * np.sqrt(((some - some.mean(axis=0)) ** 2).sum() / freedom)
            for some in (self.heights[:, [best]], around[:, np.isfinite(around).all(axis=0)], *ends)
            if (freedom := (seeds - 1) * some.shape[1])
        ]  # fmt: skip
        batches = 2 * np.sqrt((self.noise[:, best] ** 2).mean())
        return float(max(max(min(errors), batches) * np.sqrt(of_mean(seeds, self.folds)), self.rounding))

    def noise_threshold(self, level: float, tolerance: float = TOLERANCE) -> float:
        """Up to which excess a rate cannot be told from the best; see `comparison.noise_threshold`."""
        return noise_threshold(self.heights, level, tolerance, self.folds)

    @property
    def learned(self) -> bool:
        """Whether the best rate fell by more than noise explains, or a lower one did, which shows less noise.

        Where nobody can tell, it did.
        """
        return not self.known or self.fall > self.doubt or self._fell_below_best

    @property
    def _fell_below_best(self) -> bool:
        """Whether three rates in a row up to the best show a fall of theirs, by the noise of these three.

        So many such rows are tried that the level of all together is LEARNED_LEVEL, of those that share no lane.
        """
        from scipy.special import stdtrit  # a third of a second that `import optax_lr` need not take

        seeds, best = len(self.heights), int(np.nanargmin(self.heights.mean(axis=0)))
        if seeds == 1 or best < 2:
            return False
        rows = np.lib.stride_tricks.sliding_window_view(self.heights[:, : best + 1], 3, axis=1)
        level = 1 - (1 - LEARNED_LEVEL) / max(1.0, (best + 1) / 3)
        error = stdtrit(3 * (seeds - 1), level) * np.sqrt(rows.var(axis=0, ddof=1).mean(axis=-1))
        batches = 2 * np.sqrt((self.noise[:, : best + 1] ** 2).mean(axis=0).max())
        doubt = np.maximum(error, batches) * np.sqrt(of_mean(seeds, self.folds))
        return bool((-rows.mean(axis=(0, 2)) > np.maximum(doubt, self.rounding)).any())

    @property
    def harmless(self) -> np.ndarray:
        """Which rates did no harm, [lanes]: a loss is not above the untrained one by more than noise may be.

        Harm do all rates from which on every run is above it, too: what blows up has a noise of its own.
        """
        heights = np.nan_to_num(self.heights, nan=np.inf)
        above = (heights > self.rounding).all(axis=0)
        from_here_on = np.logical_and.accumulate(above[::-1])[::-1]
        return (heights.mean(axis=0) <= HARM * self.doubt) & ~from_here_on

    @property
    def constant(self) -> bool:
        """Whether no run changed the loss."""
        return bool(np.nanmax(np.abs(self.heights)) <= self.rounding)


def judged(curve: LRCurve) -> list[Judged]:
    """The runs after as many steps as they can be compared at."""
    points = _points(as_losses(curve))
    usable = curve.stable & np.isfinite(points[-1].heights).all(axis=0)
    return [point._replace(heights=np.where(usable, point.heights, np.nan)) for point in points]


def with_lost_runs(curve: LRCurve) -> LRCurve:
    """The curve, with runs that ended above the reference noted as diverged from where they stayed above.

    They ended above where they began, and above where all seeds began in the mean: starts may differ by more than
    is learned, and who began well loses that without diverging. Where no rate learned, only what rose to a multiple
    of the reference is called so.
    """
    losses, end = as_losses(curve), judged(curve)[-1]
    if losses.reference is None or not end.survives:
        return curve
    if end.learned:
        noise = np.maximum(_deviation(near_best(end.heights)), end.noise)
        limit = np.maximum(ROSE * end.fall, DEVIATIONS * noise)
    else:
        size = np.where(end.harmless, np.inf, MULTIPLE * np.abs(losses.reference).mean())
        limit = np.broadcast_to(size, end.heights.shape)
    last = _points(losses)[-1]
    with np.errstate(invalid="ignore"):  # infinite losses
        starts = last.losses - last.heights
        above = np.minimum(last.heights, last.losses - starts[np.isfinite(starts)].mean())
    lost = (curve.diverged_at < 0) & (above > limit)
    if not lost.any():
        return curve
    since = np.where(lost, _since(losses, limit), curve.diverged_at)
    return dataclasses.replace(curve, diverged_at=since.astype(np.int32))


def _deviation(near: np.ndarray) -> float:
    """The deviation of one run at the rates near the best; of a single rate that of its seeds, an outlier aside."""
    if near.shape[1] > 1:
        return pooled_deviation(near)
    return float(np.median(np.abs(near - np.median(near)))) * MEDIAN_DEVIATION


def _since(curve: LRCurve, limit: np.ndarray) -> np.ndarray:
    """The step from which on each run stayed above a limit, [seeds, lanes]."""
    assert curve.reference is not None
    if curve.eval_losses is not None:
        heights, steps = _above(curve.eval_losses, curve.reference), curve.eval_steps - 1
    else:
        heights, steps = averaged(_above(curve.losses, curve.reference)), np.arange(curve.losses.shape[-1])
    below = heights <= limit[..., None]
    first = np.where(below.any(axis=-1), below.shape[-1] - below[..., ::-1].argmax(axis=-1), 0)
    return steps[np.minimum(first, len(steps) - 1)]


def averaged(heights: np.ndarray) -> np.ndarray:
    """Debiased exponential averages along the last axis."""
    average, found = np.zeros(heights.shape[:-1]), np.empty_like(heights)
    for step in range(heights.shape[-1]):
        average = MEMORY * average + (1 - MEMORY) * heights[..., step]
        found[..., step] = average / (1 - MEMORY ** (step + 1))
    return found


def _above(losses: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Losses [seeds, lanes, points] minus the reference, [seeds] or [seeds, points], in float64."""
    known = np.asarray(reference, np.float64)
    return losses.astype(np.float64) - known.reshape(len(known), 1, -1)


def _points(curve: LRCurve) -> list[Judged]:
    """The runs at each point, lost ones among them; without a reference, against the smallest rate."""
    reference, validated = curve.reference, curve.eval_losses is not None
    if reference is None:
        # Of few evaluations the smallest rate's first one, since it moved least.
        first = np.array([untrained_loss(curve).value if np.isfinite(curve.losses[:, 0]).any() else 0.0])
        if curve.eval_losses is not None:
            first = curve.eval_losses[:, 0, 0]
        reference = np.full(len(curve.losses), np.nanmean(first) if np.isfinite(first).any() else 0.0)
    rounding = ROUNDING * float(np.nanmax(np.abs(reference), initial=0.0))
    found = []
    for steps, losses, of in points_of(curve):
        known = reference if reference.ndim == 1 else reference[:, of]
        noise = np.zeros(losses.shape[:2])
        with np.errstate(invalid="ignore"):  # infinite losses
            heights = _above(losses, known)
            if not validated and heights.shape[-1] > 1:
                noise = heights.std(axis=-1, ddof=1) / np.sqrt(heights.shape[-1])
            means, ends = heights.mean(axis=-1), losses.astype(np.float64).mean(axis=-1)
        found.append(Judged(steps, means, ends, noise, rounding, curve.reference is not None, curve.folds))
    return found
