"""A smooth curve through the losses of lanes: where it is lowest, and what cannot be told from there."""

from typing import NamedTuple

import numpy as np

from ..types import Float
from .comparison import (
    excess,
    interval,
    lowest_lanes,
    near_best,
    of_mean,
    pooled_deviation,
    span_around,
    vertex,
)

# The curve is a Gaussian process: over how many octaves it bends at least, and by how much it varies.
WIDTH, HEIGHT = 1.0, 2.0
# In units of the scale: what is added to the noise of the seeds, and what the noise of a single seed may be.
LEAST_NOISE, UNKNOWN_NOISE = 1e-3, (1e-3, 0.1, 0.3)
# The scale is so many deviations of a mean, or so many times the excess of the better neighbor if that is more.
DEVIATIONS, BESIDE = 2.0, 4.0
# Lanes count that are no farther from the best one, in octaves.
REACH = 2.0
# Points of the curve in an octave.
FINENESS = 32
# Rates closer than this differ by their noise, or show an edge that a smooth curve cuts off.
CLOSE = 1.4


class Smooth(NamedTuple):
    """The curve at close rates, through the lanes around the best.

    Attributes:
      rates: where it is known.
      values: log(1 + excess / scale) there; it may be below 0 between lanes.
      scale: of the excess.
      ends: what stands for the first and the last rate: half the way to a lane that diverged beyond it.
    """

    rates: Float[np.ndarray, " points"]
    values: Float[np.ndarray, " points"]
    scale: float
    ends: tuple[float, float]

    @property
    def lowest(self) -> float:
        """The rate of the lowest value: the vertex of the parabola through the lowest point and those beside it."""
        at, move = vertex(self.values)
        return float(self.rates[at] * (self.rates[1] / self.rates[0]) ** move)

    def within(self, most: float) -> tuple[float, float]:
        """The rates around the lowest value whose excess above it, or above the best lane, is at most so much."""
        at, last = int(self.values.argmin()), len(self.values) - 1
        above = np.flatnonzero(self.values > max(self.values[at], 0.0) + np.log1p(most / self.scale))
        low, high = above[above < at].max(initial=-1) + 1, above[above > at].min(initial=last + 1) - 1
        return (
            float(self.rates[low]) if low else self.ends[0],
            float(self.rates[high]) if high < last else self.ends[1],
        )


def smooth(rates: np.ndarray, heights: np.ndarray, folds: int = 1) -> Smooth | None:
    """The mean of a Gaussian process over log2(rate) that saw log(1 + excess / scale) of the lanes around the best.

    k(a, b) = 2^2 exp(-|log2(a / b) / width|^2 / 2), where the width is an octave, or how far the lanes beside the
    best are from it, if that is more. The noise of a lane is the deviation of its mean over the seeds, half of its
    variance the lane's own and half that of all near the best, divided by scale + excess; of a single seed it is a
    mixture, weighed by evidence. So near the best lane excess counts as it is, and far from it by its log: a curve
    is steep on one side of its lowest point and flat on the other, which no parabola is.

    Around the best are lanes within two octaves, those that noise may hide, and one more on either side; none
    beyond a lane that diverged. None if these are fewer than three, or all alike.

    Source: Rasmussen and Williams 2006, "Gaussian Processes for Machine Learning", eq. 2.25 and 2.30.
    """
    noise, own = _deviations(heights, folds)
    every = excess(heights)
    lanes, ends = _around(rates, every, noise)
    x, above, own = np.log2(rates[lanes]), every[lanes], own[lanes]
    if len(x) < 3 or not above.any():
        return None
    at = int(above.argmin())
    beside = np.delete(above[max(0, at - 1) : at + 2], min(at, 1)).min() or above[above > 0].min()
    scale = max(DEVIATIONS * noise, BESIDE * float(beside))
    width = max(WIDTH, float(np.diff(x)[max(0, at - 1) : at + 1].max()))
    points = np.geomspace(
        rates[lanes][0], rates[lanes][-1], max(3, round(FINENESS * float(x[-1] - x[0])) + 1)
    )
    across, between = _covariance(np.log2(points), x, width), _covariance(x, x, width)
    values = np.log1p(above / scale)
    center = values.mean()
    means, evidence = [], []
    for further in UNKNOWN_NOISE if len(heights) == 1 else (LEAST_NOISE,):
        covariance = between + np.diag((own / (scale + above)) ** 2 + further**2)
        weights = np.linalg.solve(covariance, values - center)
        means.append(center + across @ weights)
        evidence.append(-0.5 * (values - center) @ weights - 0.5 * np.linalg.slogdet(covariance)[1])
    shares = np.exp(np.array(evidence) - max(evidence))
    return Smooth(points, shares @ np.array(means) / shares.sum(), scale, ends)


def lowest(
    rates: np.ndarray, heights: np.ndarray, noise: float, most: float, folds: int = 1
) -> tuple[float, float, float]:
    """The rate of the lowest loss, and the lowest and highest rate that cannot be told from it.

    Args:
      rates, heights: of the lanes.
      noise: by how much more a lane beside the best may lose that noise alone explains.
      most: what counts as alike.
      folds: see `comparison.of_mean`.
    """
    above, curve = excess(heights), smooth(rates, heights, folds)
    first, last = lowest_lanes(above)
    if curve is None:
        return float(rates[first]), *interval(rates, above, most, span_around(above, most))
    rate = curve.lowest
    beside = min(last + 1, len(rates) - 1) if rate > rates[last] else max(0, first - 1)
    if len(heights) > 1 and np.abs(np.log(rates[beside] / rates[first])) < np.log(CLOSE):
        rate = float(np.clip(rate, *interval(rates, above, noise, span_around(above, noise))))
    low, high = curve.within(most)
    return rate, min(low, rate, float(rates[first])), max(high, rate, float(rates[last]))


def _covariance(one: np.ndarray, other: np.ndarray, width: float) -> np.ndarray:
    return HEIGHT**2 * np.exp(-0.5 * ((one[:, None] - other) / width) ** 2)


def _around(rates: np.ndarray, above: np.ndarray, noise: float) -> tuple[slice, tuple[float, float]]:
    """The lanes around the best, and the rates that stand for both of their ends."""
    (first, last), (best, tied) = span_around(above, noise), lowest_lanes(above)
    octaves, lost = np.log2(rates), np.flatnonzero(~np.isfinite(above))
    left = min(first - 1, int(np.searchsorted(octaves, octaves[best] - REACH)))
    right = max(last + 1, int(np.searchsorted(octaves, octaves[tied] + REACH, side="right")) - 1)
    before, after = lost[lost < best].max(initial=-1), lost[lost > best].min(initial=len(above))
    left, right = max(left, before + 1), min(right, after - 1)
    low = rates[left] if before < 0 or left > before + 1 else np.sqrt(rates[left] * rates[before])
    high = rates[right] if after == len(above) or right < after - 1 else np.sqrt(rates[right] * rates[after])
    return slice(left, right + 1), (float(low), float(high))


def _deviations(
    heights: Float[np.ndarray, "seeds lanes"], folds: int
) -> tuple[float, Float[np.ndarray, " lanes"]]:
    """The deviations of means over the seeds: that of lanes near the best, and those of each lane."""
    near = near_best(heights)
    pooled, own = pooled_deviation(near), np.zeros(heights.shape[1])
    if len(heights) > 1:
        of_seed = near.mean(axis=1, keepdims=True) - near.mean()
        own = (heights - of_seed).std(axis=0, ddof=1)
    spread = float(np.sqrt(of_mean(len(heights), folds)))
    return pooled * spread, np.sqrt((pooled**2 + own**2) / 2) * spread
