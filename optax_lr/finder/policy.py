"""Policies: which rows a search asks for next, and what it answers. Here is what all of them share.

They are pure functions of the table of runs, and find their rows by stage. Asked again with the same table a policy
asks for the same rows, so a search that was killed goes on from what is saved, and it can be tried on stored runs.
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import numpy as np

from ..engine.runs import Plan, Runs
from . import neighbors, outcomes
from .comparison import excess, open_sides
from .curve import LRCurve
from .judging import judged
from .suggestion import Suggestion
from .tables import on_seeds

COARSE_LANES_PER_DECADE = 2
# How far beyond the given bounds a search goes on while the best rate lies at its edge.
WIDEST = 100.0

Tables = Callable[[np.ndarray, int], np.ndarray]


class Asked(NamedTuple):
    """A plan, and what the bar says of it."""

    plan: Plan
    description: str


class Policy(abc.ABC):
    """What drives a search.

    Attributes:
      smaller: what the user may make smaller where every rate diverged.
      tells: whether its runs of one length tell which of several combinations are worse; see `Combinations`.
    """

    smaller: ClassVar[str] = "min_learning_rate"
    tells: ClassVar[bool] = True

    @abc.abstractmethod
    def ask(self, runs: Runs) -> Asked | None:
        """The next rows, or None where the answer stands."""

    @abc.abstractmethod
    def answer(self, runs: Runs) -> Suggestion:
        """The answer from the rounds that have ended."""

    def phase(self, stage: int) -> int:
        """Which part of the search a stage belongs to; see `Combinations`, which compares at the end of each."""
        return stage

    @property
    @abc.abstractmethod
    def longest(self) -> int:
        """The steps of the longest run that it may ask for."""

    @property
    @abc.abstractmethod
    def evals(self) -> tuple[int, ...]:
        """All steps after which it may have runs evaluated."""


class AllDivergedError(Exception):
    """No run of a stage survived; `args` are the curve of the stage."""


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The rates that a search begins between; it goes on up to a factor of 100 beyond them."""

    low: float
    high: float

    @property
    def coarse(self) -> np.ndarray:
        """Two rates a decade, both bounds among them."""
        count = max(2, round(COARSE_LANES_PER_DECADE * np.log10(self.high / self.low)) + 1)
        return np.geomspace(self.low, self.high, count)

    def hold(self, rate: float) -> bool:
        """Whether a rate may be tried."""
        return bool(self.low / WIDEST <= rate <= self.high * WIDEST)


def rows_of(
    rates: np.ndarray,
    seeds: Sequence[int],
    steps: int,
    tables: Tables,
    *,
    stage: int,
    eval_steps: Sequence[int],
) -> Plan:
    """A plan of every rate on every seed."""
    each = np.asarray(rates, np.float64)
    return on_seeds({"learning_rate": each}, tables(each, steps), seeds, eval_steps=eval_steps, stage=stage)


def surviving(curve: LRCurve) -> LRCurve:
    """The curve; where no rate survived there is nothing to go on with.

    Raises:
      AllDivergedError: no rate survived.
    """
    if not judged(curve)[-1].survives:
        raise AllDivergedError(curve)
    return curve


def beyond_edge(curve: LRCurve, ratio: float, bounds: Bounds) -> float | None:
    """The next rate beyond an edge that the best rate lies at, or that all harmless ones lie beyond; or None."""
    rates, end = curve.learning_rates, judged(curve)[-1]
    lower, higher = rates[0] / ratio, rates[-1] * ratio
    if end.survives and not end.learned:
        wanted = {-1: lower, 0: None, 1: higher}[outcomes.harmless_side(curve)]
        return float(wanted) if wanted is not None and bounds.hold(wanted) else None
    first, last = open_sides(excess(end.heights)) if end.survives else (0, 0)
    if first == 0 and bounds.hold(lower):
        return float(lower)
    if last == len(rates) - 1 and curve.stable[-1] and bounds.hold(higher):
        return float(higher)
    return None


def beside_lost(runs: Runs, curve: LRCurve, seeds: Sequence[int]) -> tuple[np.ndarray, Sequence[int]] | None:
    """What to try where the best rate stands beside one that diverged: rates and seeds, or None.

    Rates between both until they are close. Then, where the best has survived on one seed alone, a second one:
    divergence is a chance over seeds.
    """
    between = neighbors.edge_rate(curve)
    if between is not None:
        return np.array([between]), seeds
    end, best = judged(curve)[-1], outcomes.best_lane(curve)
    if len(seeds) > 1 or not end.survives or not outcomes.lost_above(end.heights, best):
        return None
    further = seeds[0] + 1
    known = runs.lanes["learning_rate"][runs.columns["seed"] == further]
    rate = curve.learning_rates[best]
    return None if np.isclose(known, rate, rtol=1e-9).any() else (np.array([rate]), [further])
