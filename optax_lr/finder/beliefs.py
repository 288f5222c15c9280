"""Beliefs: what the runs of a search say of all rates at the horizon, and which runs would say most."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ..engine.runs import Runs
from ..types import Bool, Float, Int
from .comparison import vertex
from .model import SLOPES, Edge, Points, Values, at_horizon
from .views import final_height, final_loss

# The rates that are compared, by octave.
FINENESS = 0.5
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
# What a lost run costs: it fell not at all.
LOST = float(np.log1p(1 / UNIT))
# The surprises that a further run is imagined to bring: Gauss and Hermite's nodes, and their weights.
SURPRISES, CHANCES = (-2.857, -1.356, 0.0, 1.356, 2.857), (0.0113, 0.2221, 0.5333, 0.2221, 0.0113)
DRAWS, WITHIN = 256, 0.9
# Octaves between the first lanes of a length, of which there are usually so few.
APART, FEW = 1.25, 3


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
    def longest(self) -> Bool[np.ndarray, "rows"]:
        """The runs of the longest length of which any is left."""
        return self.points.halvings == self.points.halvings[~self.lost].min()

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


class Belief:
    """The posterior of a search.

    Attributes:
      grid: octaves at which the best rate may lie, [points].
      cost: what a run of the horizon is expected to lose at each, [points].
      best: the place of the lowest.
    """

    def __init__(self, seen: Seen, grid: Float[np.ndarray, "points"]):
        left, grid = ~seen.lost, possible(seen, grid)
        self.grid, self._seen = grid, seen
        self.values = Values(some(seen.points, left), seen.values[left], grid)
        self.edge = Edge(seen.points, seen.lost, grid)
        self.chance = self.edge.chance(at_horizon(grid))
        self.cost = self.values.mean + LOST * self.chance
        self.best = int(np.argmin(self.cost))
        rng = np.random.default_rng(0)
        curves = self.values.draws(DRAWS, rng) + LOST * self.edge.draws(at_horizon(grid), DRAWS, rng)
        self._lowest = grid[curves.argmin(axis=1)]
        self._above = float((curves[:, self.best] - curves.min(axis=1)).mean())

    @property
    def best_tried(self) -> float:
        """The octave of the best of the longest runs."""
        return self._seen.best_of(self._seen.longest)

    @property
    def octave(self) -> float:
        """The best rate's: the vertex of the parabola through the lowest cost and those beside it."""
        at, move = vertex(self.cost)
        return float(self.grid[at] + FINENESS * move)

    @property
    def interval(self) -> tuple[float, float]:
        """The shortest span of octaves that holds the best rate in nine of ten draws, and the answer.

        Each octave of the grid stands for those that are nearer to it than to others.
        """
        places = np.sort(self._lowest)
        inside = int(np.ceil(WITHIN * len(places))) - 1
        first = int(np.argmin(places[inside:] - places[: len(places) - inside]))
        low, high = places[first] - FINENESS / 2, places[first + inside] + FINENESS / 2
        return min(float(low), self.octave), max(float(high), self.octave)

    @property
    def excess(self) -> float:
        """By how much the loss at the best rate is expected to be above the lowest, as a share of the fall."""
        return float(self._seen.unit * np.expm1(self._above))

    def around(self, count: int) -> Float[np.ndarray, "count"]:
        """So many octaves around the best rate: up to three 1.25 apart, more of them 0.5."""
        apart = APART if count <= FEW else FINENESS
        wanted = self.octave + apart * (np.arange(count) - (count - 1) / 2)
        return np.clip(wanted, self.grid[0], self.grid[-1])

    def worth(self, values: Values, runs: Points) -> Float[np.ndarray, " runs"]:
        """By how much each further run would lower the cost of the answer, as is expected."""
        lost, kept = self.edge.after(self.grid, runs)
        mean = values.mean[:, None]
        chance = self.edge.chance(runs)
        moves = values.moved_by(runs)
        survived = np.zeros(len(chance))
        for surprise, share in zip(SURPRISES, CHANCES, strict=True):
            lowest = (mean + LOST * kept + surprise * moves).min(axis=1)
            survived += share * (values.weights @ lowest)
        expected = chance * (mean + LOST * lost).min(axis=0) + (1 - chance) * survived
        return self.cost[self.best] - expected

    def next_runs(self, halvings: float, count: int, most_seeds: int) -> list[tuple[float, int]]:
        """The octaves and seeds of the runs of a length that would lower the cost of the answer most.

        A rate that was tried goes on with its next seed, any other one begins with seed 0. Where the best rate of
        the length is the highest or the lowest that was tried, the first run goes beyond it.
        """
        points = self._seen.points
        here = np.isclose(points.halvings, halvings)
        tried = {
            float(octave): int((here & (points.octaves == octave)).sum()) for octave in points.octaves[here]
        }
        new = [
            (octave, 0)
            for octave in self.grid
            if np.abs(np.array([*tried, np.inf]) - octave).min() > FINENESS / 2
        ]
        wanted = [*new, *((octave, seeds) for octave, seeds in tried.items() if seeds < most_seeds)]
        chosen = [(octave, 0) for octave in self._beyond(here)][:count]
        values = self.values
        for run in chosen:
            values = values.expecting(_points([run], halvings))
        for _ in range(min(count - len(chosen), len(wanted))):
            runs = _points([each for each in wanted if each not in chosen], halvings)
            at = int(self.worth(values, runs).argmax())
            chosen.append((float(runs.octaves[at]), int(runs.seeds[at])))
            values = values.expecting(_points(chosen[-1:], halvings))
        return chosen

    def _beyond(self, here: Bool[np.ndarray, " rows"]) -> list[float]:
        """The octaves that are missing on the open sides of the best of some runs, as far as it may lie there."""
        if not (here & ~self._seen.lost).any():
            return []
        tried, best = self._seen.points.octaves[here], self._seen.best_of(here)
        low, high = self.grid[0], self.grid[-1]
        wanted = [max(best - APART, low)] if best == tried.min() else []
        wanted += [min(best + APART, high)] if best == tried.max() else []
        return [octave for octave in wanted if abs(octave - best) > FINENESS / 2 and low <= octave <= high]


def _points(runs: Sequence[tuple[float, int]], halvings: float) -> Points:
    octaves, seeds = zip(*runs, strict=True)
    return Points(np.array(octaves, float), np.full(len(runs), halvings), np.array(seeds, int))
