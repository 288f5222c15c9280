"""A policy that spends a budget: lengths come from a ladder, lanes from what would lower the loss most."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..engine.runs import PASSES_PER_STEP, Plan, Runs
from . import classic, outcomes, rules
from .beliefs import FINENESS, Belief
from .curve import LRCurve
from .judging import judged
from .optimizer import TABLE
from .policy import WIDEST, AllDivergedError, Asked, Bounds, Policy, Tables
from .seen import seen_in
from .spending import SHORTEST, Spending, spent
from .suggestion import Round, Suggestion
from .views import curve_of, ends_of

# Octaves between the rates of the first round.
SCAN = 2.4
# How many lanes the first round of a length has, each further one, and a round at most where rounds are few.
FIRST_LANES, LANES, MOST_LANES = 3, 2, 9
# From this budget on there is a length between the shortest and the longest, and how long it is.
MIDDLE_BUDGET, MIDDLE = 6.0, 0.4

# How many steps a first lane may cost, its reference among them.
SHORTEST_COST = 6
# Runs that stop at once cost nothing, and might be tried forever.
MOST_RUNS = 60
# An octave and a seed.
Lane = tuple[float, int]


class Rung(NamedTuple):
    """Runs of one length, in shares of the horizon, and how much of the budget they may take."""

    length: float
    share: float


def ladder(budget: float, lanes: int) -> list[Rung]:
    """The lengths of a search whose first round has so many lanes."""
    scan, top = min(1.0, budget**0.6 / 32, budget / lanes), min(1.0, budget / 8)
    if top <= 1.5 * scan:
        return [Rung(scan, 1.0)]
    middle = [Rung(MIDDLE, 0.3)] if budget >= MIDDLE_BUDGET else []
    return [Rung(scan, lanes * scan / budget), *middle, Rung(top, 1.0)]


@dataclasses.dataclass(frozen=True)
class Budgeted(Policy):
    """Runs of few lengths: the shortest of all rates, longer ones where the answer may be.

    The stage of a row is the place of its length in the ladder. Within a length each round has the lanes that would
    lower the loss of the answer most.

    Attributes:
      bounds: where the first round searches.
      spend: what the search may cost.
      tables: the function from a length to the rates of its steps.
    """

    bounds: Bounds
    spend: Spending
    tables: Callable[[int], Tables]
    # How many steps a run has at least.
    shortest: ClassVar[int] = SHORTEST
    # Its short runs are a few steps on one seed.
    tells: ClassVar[bool] = False
    _beliefs: dict[bytes, Belief] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @functools.cached_property
    def scan(self) -> np.ndarray:
        """The octaves of the first round, both bounds among them; fewer where the budget has no steps for them."""
        low, high = np.log2(self.bounds.low), np.log2(self.bounds.high)
        count = max(2, round((high - low) / SCAN) + 1)
        most = max(2, self.spend.steps // SHORTEST_COST)
        return np.linspace(low, high, count) if count <= most else np.linspace(low, high, most + 2)[1:-1]

    @functools.cached_property
    def rungs(self) -> list[Rung]:
        """The ladder, with no more lengths than rounds."""
        every = ladder(self.spend.budget, len(self.scan))
        if len(every) == 1 or self.spend.max_rounds == 1:
            return [Rung(min(1.0, self._steps_of_lanes / self.spend.horizon), 1.0)]
        return [every[0], *every[1:][-(self.spend.max_rounds or 3) + 1 :]]

    @property
    def _steps_of_lanes(self) -> int:
        """How long the runs of the first round may be where they take all, and so does the look at their seed."""
        lanes, steps = len(self.scan), self.spend.steps
        most = steps // lanes
        while lanes * most + self.spend.price_of_looking(most) > steps:
            most -= 1
        return most

    @functools.cached_property
    def lengths(self) -> tuple[int, ...]:
        """The lengths of runs, increasing."""
        horizon = self.spend.horizon
        least = min(self.shortest, horizon)
        return tuple(sorted({max(least, int(rung.length * horizon)) for rung in self.rungs}))

    @property
    def evals(self) -> tuple[int, ...]:
        """The ends of its runs."""
        return self.lengths

    @property
    def longest(self) -> int:
        """The last length."""
        return self.lengths[-1]

    def is_finalist(self, stage: int) -> bool:
        """Whether a row of a stage is a full run."""
        return self.lengths[stage] == self.spend.horizon

    @functools.cached_property
    def grid(self) -> np.ndarray:
        """The octaves that are compared: the bounds and a factor of 100 beyond them."""
        low, high = np.log2(self.bounds.low / WIDEST), np.log2(self.bounds.high * WIDEST)
        return np.arange(math.ceil(low / FINENESS), math.floor(high / FINENESS) + 1) * FINENESS

    def ask(self, runs: Runs) -> Asked | None:
        if not len(runs):
            return self._asked([(octave, 0) for octave in self.scan], 0)
        belief = self.belief(runs)
        sure = belief.excess < self.spend.tolerance and _learned(runs)
        if sure or len(runs) >= MOST_RUNS + 2 * self.spend.budget:
            return None
        left = self.spend.steps - runs.price
        if again := self._again(belief, runs, left):
            return self._asked(again, 0)
        for stage, steps in enumerate(self.lengths):
            most = self._left(runs, stage, left)
            lanes = self._of_round(runs, stage, most)
            if lanes <= 0:
                continue
            if len(runs.where(stage=stage)):
                chosen = belief.next_runs(math.log2(self.spend.horizon / steps), lanes, self.spend.most_seeds)
            elif _learned(runs):
                octaves = belief.around(lanes)
                chosen = [(octave, 0) for octave in octaves]
            else:
                chosen = [(octave, 0) for octave in self.scan[:: -(-len(self.scan) // most)]]
            if chosen := self._affordable(chosen, steps, runs, left):
                return self._asked(chosen, stage)
        return None

    def _again(self, belief: Belief, runs: Runs, left: int) -> list[Lane]:
        """The best of the first rates on a second seed, which tells whether runs have noise at all."""
        if runs.rounds > 1 or self.spend.max_rounds is not None or self.spend.budget < MIDDLE_BUDGET:
            return []
        return self._affordable([(belief.best_tried, 1)], self.lengths[0], runs, left)

    def belief(self, runs: Runs) -> Belief:
        """What is believed of all rates.

        Raises:
          AllDivergedError: no run survived.
        """
        seen = seen_in(runs, self.spend.horizon)
        if seen.lost.all():
            raise AllDivergedError(curve_of(runs.where(stage=0)))
        # The trace asks once more for what each round asked for.
        key = seen.key
        if key not in self._beliefs:
            self._beliefs[key] = Belief(seen, self.grid)
        return self._beliefs[key]

    def answer(self, runs: Runs) -> Suggestion:
        # Where nothing had survived yet there was no answer.
        survived = ~seen_in(runs, self.spend.horizon).lost
        first = int(runs.columns["round"][survived].min(initial=runs.rounds - 1))
        beliefs = {last: self.belief(runs.where(round=range(last + 1))) for last in range(first, runs.rounds)}
        rounds = [self._round(runs, belief, last) for last, belief in beliefs.items()]
        curves = [
            curve_of(rows) for stage in range(len(self.lengths)) if len(rows := runs.where(stage=stage))
        ]
        able = [curve for curve in curves if judged(curve)[-1].survives]
        whole = runs.where(steps=[self.spend.horizon])
        if not able or (len(whole) >= FIRST_LANES and curves[-1] not in able):
            raise AllDivergedError(curves[-1])
        learned = [curve for curve in able if not outcomes.nothing_learned(curve)]
        common: dict[str, Any] = {
            "lane_steps": runs.price,
            "rules": classic.classic(curves[0]),
            "trace": tuple(rounds),
            "horizon": self.spend.horizon,
        }
        if not learned:
            return _unlearned(able[-1], common)
        longest, last = learned[-1], rounds[-1]
        # Longer runs that learned nothing tell nothing.
        shorter = tuple(curves[: curves.index(longest)])
        return Suggestion(
            learning_rate=last.learning_rate,
            low=last.low,
            high=last.high,
            reason=self._reason(longest, last, self._made_by(runs, last)),
            curve=longest,
            at_edge=self._at_edge(beliefs[runs.rounds - 1]),
            shorter=shorter,
            **common,
        )

    def _at_edge(self, belief: Belief) -> bool:
        """Whether the answer, or the best of the longest runs, lies at an end of all that may be tried; or the best
        runs of every length at an end of what was."""
        places = np.array([belief.octave, belief.best_tried])
        at_end = bool(np.abs(places[:, None] - self.grid[[0, -1]]).min() < FINENESS)
        return at_end or any(belief.open_sides)

    def _round(self, runs: Runs, belief: Belief, last: int) -> Round:
        """The answer after a round, and what it had cost."""
        low, high = belief.interval
        rate, least, most = (float(2.0**octave) for octave in (belief.octave, low, high))
        return Round(rate, least, most, belief.excess, *spent(runs, last, self.spend.horizon))

    def _reason(self, curve: LRCurve, last: Round, made: str) -> str:
        side, fall = ("below", "rise") if curve.mode == "max" else ("above", "fall")
        return (
            f"The {curve.judged_by} after {self.spend.horizon} steps is expected to be {curve.best_is} at this "
            f"rate, and {side} that of the best rate by {last.expected_excess:.2%} of its {fall}, "
            f"as runs of {made} of the horizon."
        )

    def _made_by(self, runs: Runs, last: Round) -> str:
        """How long runs were, in how many rounds, and what they cost."""
        lengths = " and ".join(str(length) for length in np.unique(runs.columns["steps"]))
        return (
            f"{lengths} steps say in {runs.rounds} round{'s' if runs.rounds > 1 else ''}, "
            f"for {last.price:.3g} of {self.spend.budget:.3g} runs"
        )

    def _left(self, runs: Runs, stage: int, left: int) -> int:
        """How many lanes a length may still have: its share, as far as there are steps for it."""
        steps, tried = self.lengths[stage], len(runs.where(stage=stage))
        if stage == len(self.lengths) - 1:
            return left // steps
        share = round(self.rungs[stage].share * self.spend.steps / steps) if stage else 0
        return min(left // steps, share - tried)

    def _of_round(self, runs: Runs, stage: int, most: int) -> int:
        """How many of the lanes that a length may still have come in its next round."""
        if self.spend.max_rounds is None:
            return min(most, LANES if len(runs.where(stage=stage)) else FIRST_LANES)
        rounds = self.spend.max_rounds - runs.rounds - (len(self.lengths) - stage - 1)
        return min(MOST_LANES, -(-most // rounds)) if rounds > 0 else 0

    def _affordable(self, chosen: Sequence[Lane], steps: int, runs: Runs, left: int) -> list[Lane]:
        """The first of the lanes, as many as the budget has steps for; a new seed costs its reference."""
        known = set(runs.reference.seeds.tolist())
        each = -(-runs.reference.passes // (PASSES_PER_STEP * max(len(known), 1)))
        kept: list[Lane] = []
        for lane in chosen:
            seeds = {seed for _, seed in [*kept, lane]} - known
            if (len(kept) + 1) * steps + each * len(seeds) <= left:
                kept.append(lane)
        return kept

    def _asked(self, lanes: Sequence[Lane], stage: int) -> Asked:
        steps = self.lengths[stage]
        rates = np.array([2.0**octave for octave, _ in lanes])
        seeds = np.array([seed for _, seed in lanes], np.int32)
        every = np.full(len(lanes), steps, np.int32)
        table = {TABLE: self.tables(steps)(rates, steps)}
        plan = Plan({"learning_rate": rates}, seeds, every, (steps,), table, stage)
        return Asked(plan, f"rates of {steps} steps")


def _learned(runs: Runs) -> bool:
    """Whether any rate learned, in runs of any length."""
    return any(end.survives and end.learned for end in ends_of(runs))


def _unlearned(curve: LRCurve, common: dict[str, Any]) -> Suggestion:
    """The answer where no run learned anything; the trace says the same of its end."""
    found = rules.lowest_loss(curve)
    steps = curve.losses.shape[-1]
    *before, last = common["trace"]
    last = last._replace(learning_rate=found.learning_rate, low=found.low, high=found.high)
    reason = found.reason.replace(rules.longer(steps), "try a larger budget")
    return dataclasses.replace(found, **common | {"trace": (*before, last), "reason": reason})
