"""Policies of runs of one length at constant rates: over given bounds, or around the present rate of a run."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from ..engine.runs import Runs
from . import classic, outcomes, rules
from .judging import judged
from .policy import WIDEST, Asked, Bounds, Policy, Tables, beside_lost, beyond_edge, rows_of, surviving
from .suggestion import Suggestion
from .views import curve_of

FINE_LANES = 10


class OneLength(Policy):
    """A policy all of whose runs have as many steps, and are evaluated after the same ones."""

    steps: int
    eval_steps: tuple[int, ...]

    @property
    def longest(self) -> int:
        """The steps of every run."""
        return self.steps

    @property
    def evals(self) -> tuple[int, ...]:
        """After how many steps each run is evaluated."""
        return self.eval_steps


@dataclasses.dataclass(frozen=True)
class Constant(OneLength):
    """Constant rates: coarse ones over the bounds, beyond them while the best is at an edge, then fine ones."""

    bounds: Bounds
    steps: int
    seeds: int
    tables: Tables
    eval_steps: tuple[int, ...]

    def ask(self, runs: Runs) -> Asked | None:
        if not len(runs):
            return self._asked(self.bounds.coarse, 0, "coarse rates")
        coarse = surviving(curve_of(runs.where(stage=0)))
        if len(runs.where(stage=1)):
            more = beside_lost(runs, curve_of(runs), range(self.seeds))
            return None if more is None else self._asked(more[0], 2, "rates at the edge", more[1])
        rates, best = coarse.learning_rates, outcomes.best_lane(coarse)
        wider = beyond_edge(coarse, self.bounds.coarse[1] / self.bounds.coarse[0], self.bounds)
        if wider is not None:
            return self._asked(np.array([wider]), 0, "wider rates")
        if outcomes.nothing_learned(coarse):
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
class Around(OneLength):
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
        if not found.at_edge or outcomes.nothing_learned(curve):
            return found
        lower = outcomes.best_lane(curve) == 0
        return dataclasses.replace(
            found,
            reason=f"{found.reason[:-1]}; {'lower' if lower else 'higher'} rates may be better still: this is the "
            f"end of the search, a factor of {WIDEST:g} from the present rate; search again from here.",
        )
