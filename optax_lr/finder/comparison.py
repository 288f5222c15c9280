"""Which lanes can be told from the best: the noise of the seeds, the span around the best, its interval.

Heights are `[seeds, lanes]`, losses above the reference, as `judging.judged` gives them: NaN at rates where any
seed diverged. The noise is what is left of them after the means of rates and of seeds, pooled over the rates near
the best. SciPy tests two samples; it has no test of one lane against the best with such a pooled noise, so only its
quantiles of Student's t are taken.
"""

from typing import NamedTuple

import numpy as np

from .. import checks
from .curve import LRCurve
from .losses import as_losses, as_reported

# Of the fall of the best rate, what nobody would tell apart.
TOLERANCE = 0.001
# Rates that lost more than this share of the fall of the best do not show its noise.
NEAR = 0.25
# How sure a t-test must be that a rate is worse than the best: to end an interval, to need no more seeds, and to
# look no further. (The first makes intervals hold the best in nine of ten searches; at 95% nearly all of them do.)
INTERVAL_LEVEL, SEEDS_LEVEL, SEARCH_LEVEL = 0.75, 0.9, 0.95
# So many lanes in a row that tie are a flat.
FLAT = 3
# Of normal noise, the median of |difference of two values| over the deviation of one.
MEDIAN_DIFFERENCE = 0.954
# The first twentieth of a run, and the first tenth of a ramp, show the loss before training.
FIRST, FIRST_OF_RAMP = 20, 10


def lowest_lane(heights: np.ndarray) -> int:
    """The lane of the lowest mean."""
    return int(np.nanargmin(heights.mean(axis=0)))


def vertex(values: np.ndarray) -> tuple[int, float]:
    """The lowest of evenly spaced values, and how far from it the parabola through it and its neighbors is lowest.

    That is a share of their distance, at most half of it; 0 at an end, and where they are flat.
    """
    at = int(values.argmin())
    if not 0 < at < len(values) - 1:
        return at, 0.0
    left, here, right = values[at - 1 : at + 2]
    bend = left + right - 2 * here
    return at, float(np.clip(0.5 * (left - right) / bend, -0.5, 0.5)) if bend > 1e-12 else 0.0


def fall_of(heights: np.ndarray) -> float:
    """How far the best rate fell, of the seeds' mean: the unit of tolerances. 0 where none did, or none is left."""
    means = heights.mean(axis=0)
    return float(max(0.0, -np.nanmin(means))) if np.isfinite(means).any() else 0.0


def excess(heights: np.ndarray) -> np.ndarray:
    """How far each rate's mean is above the lowest; infinite where it diverged."""
    means = heights.mean(axis=0)
    return np.nan_to_num(means - np.nanmin(means), nan=np.inf)


def pooled_deviation(heights: np.ndarray) -> float:
    """The deviation of one run that no mean of rates or of seeds explains; 0 of a single seed or rate."""
    rest = heights - heights.mean(axis=0) - heights.mean(axis=1, keepdims=True) + heights.mean()
    freedom = _freedom(heights)
    return float(np.sqrt((rest**2).sum() / freedom)) if freedom else 0.0


def near_best(heights: np.ndarray) -> np.ndarray:
    """The lanes that show the noise of the best, [seeds, few]: those that it cannot tell from the best.

    Runs at a rate that is worse differ by more, often by as much as it is worse. So lanes that stand out of the
    noise of those that are left do not count for it, until none stands out. The neighbors of the best do: what
    befalls one of them may befall it.
    """
    from scipy.special import stdtrit  # a third of a second that `import optax_lr` need not take

    above, seeds = excess(heights), len(heights)
    best, few = lowest_lane(heights), above <= NEAR * fall_of(heights)
    beside = few & (np.abs(np.arange(len(above)) - best) <= 1)
    while freedom := _freedom(heights[:, few]):
        noise = stdtrit(freedom, SEARCH_LEVEL) * pooled_deviation(heights[:, few]) * np.sqrt(2 / seeds)
        fewer = few & (above <= noise) | beside
        if (fewer == few).all():
            break
        few = fewer
    return heights[:, few]


def of_mean(seeds: int, folds: int) -> float:
    """The variance of a mean over the seeds, in units of that of one run.

    Parts that validate in turn share most of what they are trained on, so their mean is less sure than that of
    independent runs: 1 / seeds + 1 / (folds - 1), after Nadeau and Bengio 2003, equation 7.
    """
    return 1 / seeds + (1 / (folds - 1) if folds > 1 else 0.0)


def noise_threshold(heights: np.ndarray, level: float, tolerance: float = TOLERANCE, folds: int = 1) -> float:
    """Up to which excess a rate cannot be told from the best: noise, or a share of what the best fell."""
    from scipy.special import stdtrit  # a third of a second that `import optax_lr` need not take

    fall, near = fall_of(heights), near_best(heights)
    freedom, spread = _freedom(near), np.sqrt(2 * of_mean(len(heights), folds))
    noise = stdtrit(freedom, level) * pooled_deviation(near) * spread if freedom else 0.0
    return float(max(noise, tolerance * fall))


def _freedom(heights: np.ndarray) -> int:
    return (heights.shape[0] - 1) * (heights.shape[1] - 1)


def lowest_lanes(above: np.ndarray) -> tuple[int, int]:
    """The first and the last lane of the lowest mean: metrics that are counted, such as an error, tie."""
    lowest = np.flatnonzero(above == 0)
    return int(lowest[0]), int(lowest[-1])


def open_sides(above: np.ndarray) -> tuple[int | None, int | None]:
    """The first and the last of the lowest lanes, to search beyond; None where three in a row tie there."""
    first, last = lowest_lanes(above)
    flat = above == 0
    return (
        None if flat[first : first + FLAT].sum() == FLAT else first,
        None if flat[max(0, last + 1 - FLAT) : last + 1].sum() == FLAT else last,
    )


def span_around(above: np.ndarray, most: float) -> tuple[int, int]:
    """The first and the last of the lanes around the lowest ones that are no more than `most` above them."""
    first, last = lowest_lanes(above)
    others = np.flatnonzero(above > most)
    left, right = others[others < first].max(initial=-1), others[others > last].min(initial=len(above))
    return int(left) + 1, int(right) - 1


def interval(rates: np.ndarray, above: np.ndarray, most: float, span: tuple[int, int]) -> tuple[float, float]:
    """The rates that cannot be told from the best: up to where a line in log rate crosses what can.

    The line goes to the nearest lane on each side that can be told apart; to a diverged one, it is cut in half.
    """
    left, right = span

    def crossing(alike: int, other: int) -> float:
        if not 0 <= other < len(rates):
            return float(rates[alike])
        share = (most - above[alike]) / (above[other] - above[alike]) if np.isfinite(above[other]) else 0.5
        return float(rates[alike] * (rates[other] / rates[alike]) ** share)

    return crossing(left, left - 1), crossing(right, right + 1)


class Untrained(NamedTuple):
    """The loss of the untrained parameters, the mean over the seeds, and its standard error."""

    value: float
    error: float


def untrained_loss(curve: LRCurve, reference: float | None = None) -> Untrained:
    """The given reference, else the curve's own, else what the smallest rate began with; low is good.

    That is the mean of the first twentieth of its training losses or, of a ramp, of its first tenth. Its noise is
    that of single batches, read off the differences of successive losses.
    """
    if reference is not None:
        return Untrained(float(as_reported(curve, np.array(checks.concrete("reference", reference)))), 0.0)
    judged = as_losses(curve)
    seeds, _, steps = judged.losses.shape
    if judged.reference is not None:
        spread = float(np.std(judged.reference)) / np.sqrt(max(seeds - 1, 1))
        return Untrained(float(np.mean(judged.reference)), spread if steps == 1 else 0.0)
    losses = (
        judged.losses[:, 0] if steps > 1 else judged.metrics.get("unsmoothed_loss", judged.losses)[..., 0]
    )
    if steps == 1 and judged.eval_losses is not None:
        losses = judged.eval_metrics.get("unsmoothed_loss", judged.eval_losses)[..., 0]
    count = max(1, losses.shape[-1] // (FIRST if steps > 1 else FIRST_OF_RAMP))
    sizes = np.abs(np.diff(losses[:, : max(2, losses.shape[-1] // 4)].astype(np.float64)))
    noise = (
        np.nanmedian(sizes) / MEDIAN_DIFFERENCE if steps > 1 or "unsmoothed_loss" in judged.metrics else 0.0
    )
    return Untrained(float(np.nanmean(losses[:, :count])), float(noise / np.sqrt(count * seeds)))
