"""What the runs of a search tell the model of its beliefs: values in one unit, and which of them were lost."""

import dataclasses

import numpy as np

from ..engine.runs import Runs
from ..types import Bool, Float
from .levels import levels_of, means_of
from .model import SLOPES, Points
from .views import final_height, final_loss

# A run of the horizon whose loss is above the lowest by this share of the fall has lost log(2). Losses fall about
# as 1 / steps, so of a shorter run the share is so much larger, up to the other.
UNIT, LARGEST_UNIT = 0.02, 0.1
# Nor is it more than TIMES the excess of the third best of four rates or more.
THIRD, LEAST_RATES, TIMES = 2, 4, 2.0
# It is NOISE_TIMES the noise of a run at least, up to this share of the fall.
NOISE_TIMES, NOISE_UNIT = 5.0, 0.05
# Rates whose best run is above the lowest by no more of the fall tell what seeds have in common.
NEAR = 0.17
# Of the fall, what float32 tells apart.
LEAST_UNIT = 1e-6
# Of a run that did far worse than the best, nothing but that counts.
MOST = 1.0
# What has lost about log(2) has done far worse.
FAR = 0.69
# Over so many octaves rates are compared at least.
LEAST = 6.0
# Digits of values that count.
DIGITS = 9
# Losses of seeds are alike that differ by no more of what the rate differs from the next one.
ALIKE = 1e-3


@dataclasses.dataclass(frozen=True)
class Seen:
    """The runs of a search as the model sees them; those that are not finite are lost, and have no value."""

    points: Points
    values: Float[np.ndarray, "rows"]
    # Values of the rates of the rows, seeds aside.
    levels: Float[np.ndarray, "rows"]
    lost: Bool[np.ndarray, "rows"]
    # Of the longest runs, as a share of the fall.
    unit: float
    # Whether runs have no noise, as further seeds tell: what survived at a rate survives there again.
    certain: bool = False

    @property
    def key(self) -> bytes:
        """Its numbers, to be known by."""
        numbers = np.array([self.unit, self.certain])
        return b"".join(
            each.tobytes() for each in (*self.points, self.values, self.levels, self.lost, numbers)
        )

    def lost_above(self, here: Bool[np.ndarray, "rows"]) -> tuple[float, float]:
        """The octave of the best of some runs, and that of the next higher one if that was lost, else infinity."""
        octaves, lost = self.points.octaves, self.lost
        if not (here & ~lost).any():
            return np.nan, np.inf
        best = self.best_of(here)
        above = float(octaves[here & (octaves > best)].min(initial=np.inf))
        return best, above if lost[here & (octaves == above)].any() else np.inf

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
        return float(self.points.octaves[kept][self.levels[kept].argmin()])


def seen_in(runs: Runs, horizon: int) -> Seen:
    """What a table of runs tells: log(1 + (level - lowest of the length) / (unit fall)) of the rate of each run, at
    most 1, and by how much the run differs from it, to first order, up to half of what is missing to 1.

    Runs fall from the loss without training. The fall is the geometric mean of that of the best run of the length
    and of the best of all, so that where short runs learned next to nothing their noise counts for little.

    The unit is 0.02 horizon / steps, at most 0.1, and at most twice the excess of the third best rate: where losses
    of many rates are tiny beside the fall, they are told apart all the same. It is at least five times the noise of
    a run, up to 0.05; where a length has no seeds that tell it, that of a shorter one, less as runs are longer.

    Without noise, a run of the horizon that ended above the loss without training is lost, too.
    """
    heights, steps = _heights(runs), runs.columns["steps"]
    rates, seeds = np.asarray(runs.lanes["learning_rate"], np.float64), runs.columns["seed"]
    values, levels = np.zeros((2, len(runs)))
    lost, unit, noise = ~np.isfinite(heights), UNIT, 0.0
    most, before = max(0.0, -heights.min(initial=0.0)), horizon
    for length in np.unique(steps[~lost]):
        here = (steps == length) & ~lost
        above = heights[here] - heights[here].min()
        fall = np.sqrt(max(-heights[here].min(), 0.0) * most) or np.ptp(heights[here]) or 1.0
        found = levels_of(above, rates[here], seeds[here], NEAR * fall)
        noise = noise * before / length if np.isnan(found.noise) else found.noise
        before = length
        unit = min(UNIT * horizon / length, LARGEST_UNIT, TIMES * _third(rates[here], found.levels) / fall)
        unit = max(unit, min(NOISE_TIMES * noise / fall, NOISE_UNIT), LEAST_UNIT)
        excess = (found.levels - found.levels.min()) / (unit * fall)
        of_rate, apart = np.log1p(excess), (above - found.levels) / (unit * fall) / (1 + excess)
        levels[here] = np.minimum(of_rate, MOST)
        room = (MOST - levels[here]) / 2
        values[here] = levels[here] + np.clip(apart, -room, room)
    points = Points(np.log2(rates), np.log2(horizon / steps), seeds)
    certain = agree(points, heights)
    risen = lost | (heights > 0) & (steps == horizon)
    if certain and not risen.all():
        lost = risen
    # What rounding does, which is not the same from call to call, is in no bit of an answer.
    values, levels = np.round(values, DIGITS), np.round(levels, DIGITS)
    return Seen(points, values, levels, lost, float(np.float32(unit)), certain)


def agree(points: Points, heights: Float[np.ndarray, "rows"]) -> bool:
    """Whether further seeds at a rate did as the first one, wherever there were any, those that were lost aside.

    They did where their losses differ by next to nothing of what the rate's differs from the next one's.
    """
    places = np.stack([points.halvings, points.octaves])
    (length, _), of, runs = np.unique(places, axis=1, return_inverse=True, return_counts=True)
    kept, of = np.isfinite(heights), of.ravel()
    several = kept & (runs > 1)[of]
    # The mean of a rate of which a seed was lost is infinite, and no seed is like it.
    means = means_of(heights, of)
    with np.errstate(invalid="ignore"):
        apart = np.abs(means[:, None] - means)
        nearest = np.where((apart > 0) & (length[:, None] == length), apart, np.inf).min(axis=1)
        alike = np.abs(heights - means[of]) <= np.where(np.isfinite(nearest), ALIKE * nearest, 0.0)[of]
    return bool(several.any() and alike[several].all())


def _third(rates: Float[np.ndarray, " rows"], levels: Float[np.ndarray, " rows"]) -> float:
    """The excess of the third best rate over the best; infinite of fewer than four rates, and where three tie."""
    known, first = np.unique(rates, return_index=True)
    if len(known) < LEAST_RATES:
        return float("inf")
    best = np.sort(levels[first])
    return float(best[THIRD] - best[0]) or float("inf")


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
    of_rate = of_rate.ravel()
    spreads = [
        ((each - means_of(each, of_rate)[of_rate]) ** 2).sum() for each in (heights[kept], alike[kept])
    ]
    return alike if spreads[1] < spreads[0] else heights


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
        worse = octaves[here & (seen.levels >= FAR)]
        lowest = np.max(worse[worse < best] - SLOPES[-1] * length, initial=low)
        highest = np.min(worse[worse > best] - SLOPES[0] * length, initial=high)
        if seen.longest[here].any():
            lowest, highest = min(lowest, best - LEAST / 2), max(highest, best + LEAST / 2)
        if highest - lowest >= LEAST:
            low, high = max(low, lowest), min(high, highest)
    return grid[(grid >= low) & (grid <= high)]
