"""A policy for the middle of a run: branches from the present state, compared with going on, by a budget.

A branch goes on from the present state at a rate of its own. Short ones at rates far apart say where to look; long
ones compare the best rate with the present one. The model is that of `lr_find(budget=)`. The present rate is left
only where it says that another one is better.
"""

import dataclasses
import functools
import math
from typing import ClassVar

import numpy as np

from ..engine.runs import Runs
from . import outcomes
from .beliefs import FINENESS, LOST, Belief
from .budget import FIRST_LANES, LANES, MOST_RUNS, Budgeted, Lane, Rung
from .curve import LRCurve
from .judging import judged
from .policy import WIDEST, AllDivergedError, Asked
from .suggestion import Round, Suggestion
from .views import curve_of

# Octaves from the present rate: of the first round, and of a second one where none of the first survived.
FIRST, LOWER = (-4.0, -2.0, 0.0, 2.0, 4.0), (-6.5, -5.5)
# How long branches of the first round are, in shares of what is left or of the budget, whichever is less.
SHORT = 1 / 16
# How many long branches a budget is for, and from which on it is for more.
FEW, MORE, MORE_BUDGET = 3, 5, 2.0
# Octaves between the best rate and those beside it, of the first long branches.
BESIDE = 1.0
# By how many deviations the present rate must be worse.
SURE = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Branches(Budgeted):
    """Branches at rates around the present one, short and then long; the first long ones hold the present rate.

    Attributes:
      now: the present rate.
    """

    now: float
    shortest: ClassVar[int] = 1
    smaller: ClassVar[str] = "learning_rate"

    @functools.cached_property
    def octave(self) -> float:
        """That of the present rate."""
        return float(np.log2(self.now))

    @functools.cached_property
    def scan(self) -> np.ndarray:
        """The octaves of the first round."""
        return self.octave + np.array(FIRST)

    @functools.cached_property
    def rungs(self) -> list[Rung]:
        """The two lengths."""
        budget = self.spend.budget
        short = SHORT * min(1.0, budget)
        count = FEW if budget < MORE_BUDGET else MORE
        return [Rung(short, len(FIRST) * short / budget), Rung(min(1.0, budget / count - short), 1.0)]

    @functools.cached_property
    def grid(self) -> np.ndarray:
        """The octaves that are compared: a factor of 100 around the present rate, which is one of them."""
        most = math.floor(np.log2(WIDEST) / FINENESS)
        return self.octave + FINENESS * np.arange(-most, most + 1)

    def ask(self, runs: Runs) -> Asked | None:
        if not len(runs):
            return self._asked([(octave, 0) for octave in self.scan], 0)
        if not judged(curve_of(runs.where(stage=0)))[-1].survives:
            return self._lower(runs)
        stage, steps = len(self.lengths) - 1, self.lengths[-1]
        belief, left, tried = self.belief(runs), self.spend.steps - runs.price, runs.where(stage=stage)
        lanes = min(left // steps, LANES if len(tried) else FIRST_LANES)
        if lanes <= 0 or len(runs) >= MOST_RUNS:
            return None
        if stage and not len(tried):
            chosen = self._first_long(belief, lanes)
        else:
            chosen = belief.next_runs(math.log2(self.spend.horizon / steps), lanes, self.spend.most_seeds)
        chosen = self._affordable(chosen, steps, runs, left)
        return self._asked(chosen, stage) if chosen else None

    def answer(self, runs: Runs) -> Suggestion:
        found = super().answer(runs)
        last = found.trace[-1]
        at_edge = found.at_edge and last.learning_rate != self.now
        reason = self._reason(found.curve, last, self._made_by(runs, last))
        if outcomes.nothing_learned(found.curve):
            side = "above" if found.curve.mode == "max" else "below"
            reason = f"No rate got the {found.curve.judged_by} {side} what it is now. {reason}"
        if at_edge:
            reason = f"{reason[:-1]}; this is the end of the search: search again from here."
        return dataclasses.replace(
            found,
            learning_rate=last.learning_rate,
            low=last.low,
            high=last.high,
            reason=reason,
            at_edge=at_edge,
            rules={},
        )

    def _round(self, runs: Runs, belief: Belief, last: int) -> Round:
        found = super()._round(runs, belief, last)
        mean, deviation = gain(belief, self.octave)
        if mean > SURE * deviation:
            return found
        return found._replace(
            learning_rate=self.now,
            low=min(found.low, self.now),
            high=max(found.high, self.now),
            expected_excess=float(
                (found.expected_excess + belief.unit) * np.exp(max(mean, 0.0)) - belief.unit
            ),
        )

    def _reason(self, curve: LRCurve, last: Round, made: str) -> str:
        said = f"as branches of {made} of what is left"
        if last.learning_rate == self.now:
            return f"Go on at the present rate: no other can be told to be better, {said}."
        return (
            f"The {curve.judged_by} after {self.spend.horizon} more steps is expected to be {curve.best_is} at "
            f"this rate, {said}."
        )

    def _lower(self, runs: Runs) -> Asked:
        """Lower rates, where none has survived.

        Raises:
          AllDivergedError: these were tried, too, or the budget has no steps for one.
        """
        steps = self.lengths[0]
        lanes = [(self.octave + octave, 0) for octave in LOWER][: (self.spend.steps - runs.price) // steps]
        if runs.rounds > 1 or not lanes:
            raise AllDivergedError(curve_of(runs.where(stage=0)))
        return self._asked(lanes, 0)

    def _first_long(self, belief: Belief, lanes: int) -> list[Lane]:
        """The best rate, the present one, and those beside the best."""
        best = float(belief.grid[belief.best])
        wanted = np.clip([best, self.octave, best + BESIDE, best - BESIDE], self.grid[0], self.grid[-1])
        return [(octave, 0) for octave in dict.fromkeys(wanted.tolist())][:lanes]


def gain(belief: Belief, octave: float) -> tuple[float, float]:
    """By how much the cost at an octave of the grid is above that of the best: its mean and its deviation."""
    values, at, best = belief.values, int(np.abs(belief.grid - octave).argmin()), belief.best
    above = values.means[:, at] - values.means[:, best] + LOST * (belief.chance[at] - belief.chance[best])
    spread = values.covariances
    variance = spread[:, at, at] + spread[:, best, best] - 2 * spread[:, at, best]
    mean = float(values.weights @ above)
    return mean, float(np.sqrt(max(0.0, values.weights @ (variance + above**2) - mean**2)))
