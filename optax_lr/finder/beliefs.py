"""Beliefs: what the runs of a search say of all rates at the horizon, and which runs would say most."""

from collections.abc import Sequence

import numpy as np

from ..types import Bool, Float
from .comparison import vertex
from .model import Edge, Points, Values, at_horizon
from .seen import UNIT, Seen, possible, some

# The rates that are compared, by octave; finer ones, so far from the best of the longest, where it stands beside a
# rate that diverged, and the finest where runs have no noise.
FINENESS, FINE, FINEST, FINE_SPAN = 0.5, 0.25, 0.125, 4.0
# What a lost run costs: it fell not at all.
LOST = float(np.log1p(1 / UNIT))
# The surprises that a further run is imagined to bring: Gauss and Hermite's nodes, and their weights.
SURPRISES, CHANCES = (-2.857, -1.356, 0.0, 1.356, 2.857), (0.0113, 0.2221, 0.5333, 0.2221, 0.0113)
DRAWS, WITHIN = 256, 0.9
# What the chance that a rate is the best is worth: it decides where no single run would change the answer.
UNSURE = 1e-3
# Octaves between the first lanes of a length, of which there are usually so few.
APART, FEW = 1.25, 3
# A rate that diverged so many octaves above the best one is beside it; so many, where rates are compared.
BESIDE, NEAR_EDGE = 1.0, 2.0


class Belief:
    """The posterior of a search.

    Attributes:
      grid: octaves at which the best rate may lie, [points].
      cost: what a run of the horizon is expected to lose at each, [points].
      best: the place of the lowest.
      certain: whether runs have no noise, as seeds of one rate tell.
    """

    def __init__(self, seen: Seen, grid: Float[np.ndarray, "points"]):
        self.certain, self._fineness = seen.certain, _fineness(seen)
        left, grid = ~seen.lost, _compared(seen, possible(seen, grid), self._fineness)
        self.grid, self._seen = grid, seen
        self.values = Values(some(seen.points, left), seen.values[left], grid)
        self.edge = Edge(seen.points, seen.lost, grid, sharp=self.certain)
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
    def _sharp_edge(self) -> float:
        """Without noise, the octave of the lost run of the horizon that the best stands beside; else infinity."""
        return self._seen.lost_above(self._seen.points.halvings == 0)[1] if self.certain else np.inf

    @property
    def unit(self) -> float:
        """By which share of the fall a run of the horizon is above the lowest that has lost log(2)."""
        return self._seen.unit

    @property
    def open_sides(self) -> tuple[bool, bool]:
        """Whether nothing that was tried tells that lower, or higher, rates are worse."""
        return self._seen.open_sides

    @property
    def octave(self) -> float:
        """The best rate's: the vertex of the parabola through the lowest cost and those beside it.

        Without noise and beside a rate that diverged, the best run of the horizon itself: between two rates nothing
        is known of the edge. Where three runs of the horizon or more survived, no more than half a step of the grid
        beyond them.
        """
        if self._sharp_edge < np.inf:
            return self.best_tried
        at, move = vertex(self.cost)
        octave = float(self.grid[at] + self._fineness * move)
        survived = self._seen.points.octaves[(self._seen.points.halvings == 0) & ~self._seen.lost]
        if len(np.unique(survived)) < FEW:
            return octave
        return float(np.clip(octave, survived.min() - FINENESS / 2, survived.max() + FINENESS / 2))

    @property
    def interval(self) -> tuple[float, float]:
        """The shortest span of octaves that holds the best rate in nine of ten draws, and the answer.

        Each octave of the grid stands for those that are nearer to it than to others.
        """
        places = np.sort(self._lowest)
        inside = int(np.ceil(WITHIN * len(places))) - 1
        first = int(np.argmin(places[inside:] - places[: len(places) - inside]))
        low, high = places[first] - self._fineness / 2, places[first + inside] + self._fineness / 2
        high = max(float(high), self.octave)
        if self._sharp_edge < np.inf:
            # Up to half the way to what was lost.
            high = max(high, (self.best_tried + self._sharp_edge) / 2)
        return min(float(low), self.octave), high

    @property
    def excess(self) -> float:
        """By how much the loss at the best rate is expected to be above the lowest, as a share of the fall."""
        return float(self.unit * np.expm1(self._above))

    def around(self, count: int) -> Float[np.ndarray, "count"]:
        """So many octaves around the best rate: up to three 1.25 apart, more of them 0.5."""
        apart = APART if count <= FEW else FINENESS
        wanted = self.octave + apart * (np.arange(count) - (count - 1) / 2)
        return np.unique(np.clip(wanted, self.grid[0], self.grid[-1]))

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

    def _chance_of_best(self, runs: Points) -> Float[np.ndarray, " runs"]:
        """How probable it is that the rate of each run is the best, over how many seeds it will have."""
        near = np.abs(runs.octaves[:, None] - self._lowest) <= self._fineness / 2
        return near.mean(axis=1) / (1 + runs.seeds)

    def next_runs(self, halvings: float, count: int, most_seeds: int) -> list[tuple[float, int]]:
        """The octaves and seeds of the runs of a length that would lower the cost of the answer most.

        A rate that was tried goes on with its next seed, any other one begins with seed 0; runs without noise have
        one seed. Where the best rate of the length stands beside one that diverged, its second seed comes first,
        which tells whether it survives again; where it is the highest or the lowest tried, a run beyond it.
        """
        points = self._seen.points
        here = np.isclose(points.halvings, halvings)
        tried = {
            float(octave): int((here & (points.octaves == octave)).sum()) for octave in points.octaves[here]
        }
        new = [
            (octave, 0)
            for octave in self.grid
            if np.abs(np.array([*tried, np.inf]) - octave).min() > self._fineness / 2
        ]
        wanted = [*new, *self._again(here, tried, most_seeds)]
        chosen = [*self._beside_lost(here, tried), *((octave, 0) for octave in self._beyond(here))][:count]
        values = self.values
        for run in chosen:
            values = values.expecting(_points([run], halvings))
        for _ in range(min(count - len(chosen), len(wanted))):
            runs = _points([each for each in wanted if each not in chosen], halvings)
            at = int((self.worth(values, runs) + UNSURE * self._chance_of_best(runs)).argmax())
            chosen.append((float(runs.octaves[at]), int(runs.seeds[at])))
            values = values.expecting(_points(chosen[-1:], halvings))
        return chosen

    def _again(
        self, here: Bool[np.ndarray, " rows"], tried: dict[float, int], most_seeds: int
    ) -> list[tuple[float, int]]:
        """The next seeds of the rates that were tried; what was lost is not tried again."""
        most = 1 if self.certain else most_seeds
        lost = set(self._seen.points.octaves[here & self._seen.lost].tolist())
        return [(octave, seeds) for octave, seeds in tried.items() if seeds < most and octave not in lost]

    def _beside_lost(
        self, here: Bool[np.ndarray, " rows"], tried: dict[float, int]
    ) -> list[tuple[float, int]]:
        """Where the best of some runs stands beside a lost one: its second seed; without noise, what is between."""
        best, above = self._seen.lost_above(here)
        if not above - best <= BESIDE:
            return []
        if tried[best] == 1 and not self.certain:
            return [(best, 1)]
        return [((best + above) / 2, 0)] if self.certain and above - best > FINEST / 2 else []

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


def _fineness(seen: Seen) -> float:
    """By how many octaves the rates that are compared are apart."""
    if seen.certain:
        return FINEST
    whole = seen.points.halvings == 0
    best, above = seen.lost_above(whole)
    several = (whole & ~seen.lost).sum() > 1
    return FINE if several and above - best <= NEAR_EDGE else FINENESS


def _compared(
    seen: Seen, possible: Float[np.ndarray, " possible"], fineness: float
) -> Float[np.ndarray, " points"]:
    """The octaves of a grid that may be, or finer ones of those around the best of the longest runs."""
    if fineness == FINENESS:
        return possible
    best = seen.best_of(seen.longest)
    low, high = max(possible[0], best - FINE_SPAN), min(possible[-1], best + FINE_SPAN)
    return np.arange(low, high + fineness / 2, fineness)
