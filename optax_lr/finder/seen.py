"""What the runs of a search tell the model of its beliefs: values in one unit, and which of them were lost."""

import dataclasses

import numpy as np

from ..engine.runs import Runs
from ..types import Bool, Float, Int
from .model import SLOPES, Points
from .views import final_height, final_loss

# A run of the horizon whose loss is above the lowest by this share of the fall has lost log(2). Losses fall about
# as 1 / steps, so of a shorter run the share is so much larger, up to the other.
UNIT, LARGEST_UNIT = 0.02, 0.1
# Nor is it more than TIMES the excess of the third best of four rates or more, which is at least NOISE_TIMES the
# noise of a run.
THIRD, LEAST_RATES, TIMES, NOISE_TIMES = 2, 4, 2.0, 5.0
# Of the fall, what float32 tells apart.
LEAST_UNIT = 1e-6
# Of a run that did far worse than the best, nothing but that counts.
MOST = 1.0
# What has lost about log(2) has done far worse.
FAR = 0.69
# Over so many octaves rates are compared at least.
LEAST = 6.0
# Values of seeds that differ by no more are alike.
ALIKE = 1e-3


@dataclasses.dataclass(frozen=True)
class Seen:
    """The runs of a search as the model sees them; those that are not finite are lost, and have no value."""

    points: Points
    values: Float[np.ndarray, "rows"]
    lost: Bool[np.ndarray, "rows"]
    # Of the longest runs, as a share of the fall.
    unit: float

    @property
    def key(self) -> bytes:
        """Its numbers, to be known by."""
        return b"".join(values.tobytes() for values in (*self.points, self.values, self.lost))

    @property
    def certain(self) -> bool:
        """Whether further seeds at a rate did as the first one, wherever there were any: runs have no noise.

        Then what survived at a rate survives there again.
        """
        octaves, halvings, _ = self.points
        _, of, runs = np.unique(
            np.stack([octaves, halvings]), axis=1, return_inverse=True, return_counts=True
        )
        several = runs[of.ravel()] > 1
        lost, values = (
            np.bincount(of.ravel(), each, len(runs))[of.ravel()] / runs[of.ravel()]
            for each in (self.lost, self.values)
        )
        same = (lost == self.lost) & (np.abs(values - self.values) <= ALIKE)
        return bool(several.any() and same[several].all())

    @property
    def longest(self) -> Bool[np.ndarray, "rows"]:
        """The runs of the longest length of which any is left."""
        return self.points.halvings == self.points.halvings[~self.lost].min()

    @property
    def open_sides(self) -> tuple[bool, bool]:
        """Whether no run of any length tells that lower, or higher, rates are worse than those that were tried."""
        octaves, halvings, _ = self.points
        lengths = [halvings == length for length in np.unique(halvings[~self.lost])]
        pairs = [(octaves[here], self.best_of(here)) for here in lengths]
        return (
            all(tried.min() >= best for tried, best in pairs),
            all(tried.max() <= best for tried, best in pairs),
        )

    def best_of(self, here: Bool[np.ndarray, "rows"]) -> float:
        """The octave of the best of some runs."""
        kept = here & ~self.lost
        return float(self.points.octaves[kept][self.values[kept].argmin()])


def seen_in(runs: Runs, horizon: int) -> Seen:
    """What a table of runs tells: log(1 + (loss - lowest of the length) / (unit fall)) of each run, at most 1.

    Runs fall from the loss without training. The fall is the geometric mean of that of the best run of the length
    and of the best of all, so that where short runs learned next to nothing their noise counts for little.

    The unit is 0.02 horizon / steps, at most 0.1, and at most twice the excess of the third best rate, or ten times
    the noise: where losses of many rates are tiny beside the fall, they are told apart all the same.
    """
    heights, steps = _heights(runs), runs.columns["steps"]
    rates = np.asarray(runs.lanes["learning_rate"], np.float64)
    values, lost, unit = np.zeros(len(runs)), ~np.isfinite(heights), UNIT
    most = max(0.0, -heights.min(initial=0.0))
    for length in np.unique(steps[~lost]):
        here = (steps == length) & ~lost
        above = heights[here] - heights[here].min()
        fall = np.sqrt(max(-heights[here].min(), 0.0) * most) or np.ptp(heights[here]) or 1.0
        unit = min(UNIT * horizon / length, LARGEST_UNIT, TIMES * _third(rates[here], above) / fall)
        unit = max(unit, LEAST_UNIT)
        values[here] = np.minimum(np.log1p(above / (unit * fall)), MOST)
    points = Points(np.log2(rates), np.log2(horizon / steps), runs.columns["seed"])
    return Seen(points, values, lost, float(unit))


def _third(rates: Float[np.ndarray, " rows"], above: Float[np.ndarray, " rows"]) -> float:
    """The excess of the third best rate over the best, means over its seeds; at least five times their noise.

    It is infinite where it tells of no scale: of fewer than four rates, and where three tie.
    """
    known, of_rate, runs = np.unique(rates, return_inverse=True, return_counts=True)
    if len(known) < LEAST_RATES:
        return float("inf")
    means = np.bincount(of_rate, above) / runs
    best = np.argsort(means)[: THIRD + 1]
    few = np.isin(of_rate, best)
    freedom = few.sum() - len(best)
    noise = np.sqrt(_spread(above[few], np.unique(rates[few], return_inverse=True)[1]) / max(freedom, 1))
    return float(max(means[best[-1]] - means[best[0]], NOISE_TIMES * noise)) or float("inf")


def _heights(runs: Runs) -> Float[np.ndarray, " rows"]:
    """How far each run fell from the loss without training; infinite where it was lost.

    That loss is the seed's own, or the mean of those of all seeds of the length: with whichever of both the runs of
    one rate on several seeds agree better. Starts may differ by more than their ends.
    """
    rows = range(len(runs))
    heights = np.nan_to_num([final_height(runs, row) for row in rows], nan=np.inf, posinf=np.inf)
    kept, seeds, steps = np.isfinite(heights), runs.columns["seed"], runs.columns["steps"]
    starts = np.array([final_loss(runs, row) - heights[row] if kept[row] else 0.0 for row in rows])
    alike = heights.copy()
    for length in np.unique(steps[kept]):
        here = kept & (steps == length)
        each = [starts[here & (seeds == seed)].mean() for seed in np.unique(seeds[here])]
        alike[here] += starts[here] - np.mean(each)
    rates = np.stack([steps, runs.lanes["learning_rate"]], axis=1)[kept]
    _, of_rate = np.unique(rates, axis=0, return_inverse=True)
    spreads = [_spread(each[kept], of_rate.ravel()) for each in (heights, alike)]
    return alike if spreads[1] < spreads[0] else heights


def _spread(values: Float[np.ndarray, " rows"], group: Int[np.ndarray, " rows"]) -> float:
    """The sum of the squared distances from the means of the groups."""
    sums, counts = np.bincount(group, values), np.bincount(group)
    return float(((values - (sums / counts)[group]) ** 2).sum())


def some(points: Points, which: np.ndarray) -> Points:
    """Some of the points."""
    return Points(*(values[which] for values in points))


def possible(seen: Seen, grid: Float[np.ndarray, "points"]) -> Float[np.ndarray, " left"]:
    """The octaves of a grid at which the best rate of the horizon may lie.

    A rate below the best of a length that did far worse, by a unit of the fall, made too little way. At the
    horizon one that is lower by the steepest slope makes no more, so those below cannot be the best; nor can those
    above a rate that did far worse above the best. What the longest runs say comes first, and six octaves stay
    where others contradict it.
    """
    octaves, halvings, _ = seen.points
    low, high = grid[0], grid[-1]
    for length in np.unique(halvings[~seen.lost]):
        here = (halvings == length) & ~seen.lost
        best = seen.best_of(here)
        worse = octaves[here & (seen.values >= FAR)]
        lowest = np.max(worse[worse < best] - SLOPES[-1] * length, initial=low)
        highest = np.min(worse[worse > best] - SLOPES[0] * length, initial=high)
        if seen.longest[here].any():
            lowest, highest = min(lowest, best - LEAST / 2), max(highest, best + LEAST / 2)
        if highest - lowest >= LEAST:
            low, high = max(low, lowest), min(high, highest)
    return grid[(grid >= low) & (grid <= high)]
