"""Policies: which rows a search asks for next, and what it answers. Pure functions of the table of runs.

A policy finds its rows by their stage. Asked again with the same table it asks for the same rows, so a search that
was killed goes on from what is saved, and each policy can be tried on stored runs.
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import numpy as np

from ..engine.runs import Plan, Runs, product
from . import classic, rules
from .comparison import excess, open_sides
from .curve import LRCurve
from .judging import judged
from .optimizer import TABLE
from .suggestion import Suggestion
from .views import curve_of

COARSE_LANES_PER_DECADE = 2
FINE_LANES = 10
# The last lanes of a quick search are so many times as long as its `num_steps`: a few such tell more of a long run
# than many short ones.
LAST_LENGTH = 4
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
    lanes, of_seeds = product({"learning_rate": np.asarray(rates, np.float64)}, seeds)
    table = np.concatenate([tables(np.asarray(rates, np.float64), steps)] * len(seeds))
    return Plan(
        lanes, of_seeds, np.full(len(of_seeds), steps, np.int32), tuple(eval_steps), {TABLE: table}, stage
    )


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
        wanted = {-1: lower, 0: None, 1: higher}[rules.harmless_side(curve)]
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
    between = rules.edge_rate(curve)
    if between is not None:
        return np.array([between]), seeds
    end, best = judged(curve)[-1], rules.best_lane(curve)
    if len(seeds) > 1 or not end.survives or not rules.lost_above(end.heights, best):
        return None
    further = seeds[0] + 1
    known = runs.lanes["learning_rate"][runs.columns["seed"] == further]
    rate = curve.learning_rates[best]
    return None if np.isclose(known, rate, rtol=1e-9).any() else (np.array([rate]), [further])


@dataclasses.dataclass(frozen=True)
class Constant(Policy):
    """Constant rates: coarse ones over the bounds, beyond them while the best is at an edge, then fine ones."""

    bounds: Bounds
    steps: int
    seeds: int
    tables: Tables
    eval_steps: tuple[int, ...]

    @property
    def longest(self) -> int:
        """The steps of every run."""
        return self.steps

    @property
    def evals(self) -> tuple[int, ...]:
        """After how many steps each run is evaluated."""
        return self.eval_steps

    def ask(self, runs: Runs) -> Asked | None:
        if not len(runs):
            return self._asked(self.bounds.coarse, 0, "coarse rates")
        coarse = surviving(curve_of(runs.where(stage=0)))
        if len(runs.where(stage=1)):
            more = beside_lost(runs, curve_of(runs), range(self.seeds))
            return None if more is None else self._asked(more[0], 2, "rates at the edge", more[1])
        rates, best = coarse.learning_rates, rules.best_lane(coarse)
        wider = beyond_edge(coarse, self.bounds.coarse[1] / self.bounds.coarse[0], self.bounds)
        if wider is not None:
            return self._asked(np.array([wider]), 0, "wider rates")
        if rules.nothing_learned(coarse):
            return None
        around = rates[max(0, best - 1) : best + 2]
        return self._asked(np.geomspace(around[0], around[-1], FINE_LANES + 2)[1:-1], 1, "fine rates")

    def answer(self, runs: Runs) -> Suggestion:
        curve = surviving(curve_of(runs))
        return dataclasses.replace(rules.lowest_loss(curve), rules=classic.classic(curve))

    def _asked(
        self, rates: np.ndarray, stage: int, description: str, seeds: Sequence[int] | None = None
    ) -> Asked:
        of_seeds = range(self.seeds) if seeds is None else seeds
        plan = rows_of(rates, of_seeds, self.steps, self.tables, stage=stage, eval_steps=self.eval_steps)
        return Asked(plan, description)


@dataclasses.dataclass(frozen=True)
class Around(Policy):
    """Constant rates around the present one, and wider while the best is at an edge; see `lr_refind`."""

    now: float
    ratio: float
    count: int
    steps: int
    seeds: int
    tables: Tables
    eval_steps: tuple[int, ...]
    horizon: int | None
    smaller: ClassVar[str] = "learning_rate"

    @property
    def longest(self) -> int:
        """The steps of every run."""
        return self.steps

    @property
    def evals(self) -> tuple[int, ...]:
        """After how many steps each run is evaluated."""
        return self.eval_steps

    def ask(self, runs: Runs) -> Asked | None:
        rates, words = (
            self.now * self.ratio ** np.arange(-(self.count // 2), self.count // 2 + 1.0),
            "rates around",
        )
        seeds: Sequence[int] = range(self.seeds)
        if len(runs):
            curve = curve_of(runs)
            if judged(curve)[-1].survives:
                wider = beyond_edge(curve, self.ratio, self.bounds)
                more = beside_lost(runs, curve, seeds) if wider is None else (np.array([wider]), seeds)
            else:
                lower = curve.learning_rates[0] / self.ratio ** np.arange(self.count, 0.0, -1)
                held = np.array([rate for rate in lower if self.bounds.hold(rate)])
                more = (held, seeds) if len(held) else None
            if more is None:
                return None
            (rates, seeds), words = more, "further rates"
        plan = rows_of(rates, seeds, self.steps, self.tables, stage=0, eval_steps=self.eval_steps)
        return Asked(plan, words)

    @property
    def bounds(self) -> Bounds:
        """It goes on up to a factor of 100 from the present rate."""
        return Bounds(self.now, self.now)

    def answer(self, runs: Runs) -> Suggestion:
        curve = surviving(curve_of(runs))
        found = rules.lowest_loss(curve) if self.horizon is None else rules.for_horizon(curve, self.horizon)
        if not found.at_edge or rules.nothing_learned(curve):
            return found
        lower = rules.best_lane(curve) == 0
        return dataclasses.replace(
            found,
            reason=f"{found.reason[:-1]}; {'lower' if lower else 'higher'} rates may be better still: this is the "
            f"end of the search, a factor of {WIDEST:g} from the present rate; search again from here.",
        )


def quick_lengths(num_steps: int, horizon: int) -> list[int]:
    """After how many steps the runs of a quick search end: of many over the bounds, then of few and longer ones."""
    longest = min(LAST_LENGTH * num_steps, horizon)
    return sorted({-(-min(num_steps, horizon) // 4), -(-longest // 2), longest})


@dataclasses.dataclass(frozen=True)
class Quick(Policy):
    """Runs of several lengths, each under the whole of its schedule; those of the first search the bounds.

    The stage of a row is the place of its length among `lengths`. Where it `refines`, the longest runs go on beside
    a rate that diverged.
    """

    bounds: Bounds
    lengths: tuple[int, ...]
    horizon: int
    seeds: int
    tables: Tables
    refines: bool = True

    @property
    def longest(self) -> int:
        """The longest of its lengths."""
        return self.lengths[-1]

    @property
    def evals(self) -> tuple[int, ...]:
        """The ends of its runs."""
        return self.lengths

    def ask(self, runs: Runs) -> Asked | None:
        for stage, steps in enumerate(self.lengths):
            rates = self._next(runs, stage, steps)
            if len(rates):
                return Asked(self._plan(rates, stage, steps, range(self.seeds)), f"rates of {steps} steps")
        last = runs.where(stage=len(self.lengths) - 1)
        more = beside_lost(last, curve_of(last), range(self.seeds)) if self.refines else None
        if more is None:
            return None
        return Asked(self._plan(more[0], stage, steps, more[1]), f"rates of {steps} steps at the edge")

    def _next(self, runs: Runs, stage: int, steps: int) -> np.ndarray:
        """The rates that a length still lacks."""
        here = runs.where(stage=stage)
        before = [curve_of(runs.where(stage=earlier)) for earlier in range(stage)]
        # Where shorter runs learned nothing, longer ones search the bounds.
        everywhere = not before or rules.nothing_learned(before[-1])
        if not len(here):
            if everywhere:
                return self.bounds.coarse
            return rules.for_horizon(before, steps).learning_rate * rules.BESIDE ** np.arange(-1.0, 2.0)
        curve = curve_of(here)
        if everywhere:
            ratio = self.bounds.coarse[1] / self.bounds.coarse[0]
            wider = beyond_edge(surviving(curve), ratio, self.bounds)
            if wider is not None or stage == 0 or rules.nothing_learned(curve):
                return np.array([] if wider is None else [wider])
        wanted = [rate for rate in rules.rates_beside(curve) if self.bounds.hold(rate)]
        if not wanted:
            surviving(curve)
        return np.array(wanted)

    def answer(self, runs: Runs) -> Suggestion:
        stages = [runs.where(stage=stage) for stage in range(len(self.lengths))]
        curves = [curve_of(rows) for rows in stages if len(rows)]
        surviving(curves[-1])
        found = rules.for_horizon(curves, self.horizon)
        if self.lengths[-1] == self.horizon:
            # Runs of the whole length leave no drift to carry on.
            alone = rules.lowest_loss(curves[-1])
            found = dataclasses.replace(alone, shorter=found.shorter, lane_steps=found.lane_steps)
        return dataclasses.replace(found, rules=classic.classic(curves[0]))

    def _plan(self, rates: np.ndarray, stage: int, steps: int, seeds: Sequence[int]) -> Plan:
        return rows_of(rates, seeds, steps, self.tables, stage=stage, eval_steps=(steps,))
