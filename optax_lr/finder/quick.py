"""The quick policy: short runs over the bounds, then few longer ones, each under the whole of its schedule."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ..engine.runs import Plan, Runs
from . import classic, neighbors, outcomes, rules
from .policy import Asked, Bounds, Policy, Tables, beside_lost, beyond_edge, rows_of, surviving
from .suggestion import Suggestion
from .views import curve_of

# The last lanes of a quick search are so many times as long as its `num_steps`: a few such tell more of a long run
# than many short ones.
LAST_LENGTH = 4


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
        everywhere = not before or outcomes.nothing_learned(before[-1])
        if not len(here):
            if everywhere:
                return self.bounds.coarse
            return rules.for_horizon(before, steps).learning_rate * neighbors.BESIDE ** np.arange(-1.0, 2.0)
        curve = curve_of(here)
        if everywhere:
            ratio = self.bounds.coarse[1] / self.bounds.coarse[0]
            wider = beyond_edge(surviving(curve), ratio, self.bounds)
            if wider is not None or stage == 0 or outcomes.nothing_learned(curve):
                return np.array([] if wider is None else [wider])
        wanted = [rate for rate in neighbors.rates_beside(curve) if self.bounds.hold(rate)]
        if not wanted:
            surviving(curve)
        return np.array(wanted)

    def answer(self, runs: Runs) -> Suggestion:
        stages = [runs.where(stage=stage) for stage in range(len(self.lengths))]
        curves = [curve_of(rows) for rows in stages if len(rows)]
        longest = surviving(curves[-1])
        # Runs of the whole length leave no drift to carry on; an interrupted search may have none.
        whole = longest.losses.shape[-1] == self.horizon
        found = rules.lowest_loss(longest) if whole else rules.for_horizon(curves, self.horizon)
        return dataclasses.replace(
            found,
            shorter=tuple(curves[:-1]),
            lane_steps=sum(curve.lane_steps for curve in curves),
            rules=classic.classic(curves[0]),
        )

    def _plan(self, rates: np.ndarray, stage: int, steps: int, seeds: Sequence[int]) -> Plan:
        return rows_of(rates, seeds, steps, self.tables, stage=stage, eval_steps=(steps,))
