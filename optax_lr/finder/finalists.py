"""Finalists: a quick search, then runs under the whole schedule around its answer."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from ..engine.runs import Runs
from . import neighbors, rules
from .policy import Asked, Policy, Tables, beside_lost, beyond_edge, rows_of, surviving
from .quick import Quick
from .suggestion import Suggestion
from .views import curve_of

FINALIST_RATIO = 3.0
REFINEMENTS = 2


@dataclasses.dataclass(frozen=True)
class Scheduled(Policy):
    """A quick search, then finalists: `ratios` times its answer, in runs of each of `lengths`.

    Where the last length is the horizon, finalists are full runs under the real schedule, and those that noise
    leaves undecided have as many seeds again. Else the drift of the best rate is carried on to the horizon.
    The stage of a finalist is that of its length, `REFINED` more for one between two others, `REPEATED` more on a
    further seed, and `EDGE` more beside a rate that diverged.
    """

    quick: Quick
    lengths: tuple[int, ...]
    finalists: int
    tables: Mapping[int, Tables]

    REFINED, REPEATED, EDGE = 100, 200, 300

    @property
    def longest(self) -> int:
        """The longest run, of the quick search or of a finalist."""
        return max(self.quick.longest, self.lengths[-1])

    @property
    def evals(self) -> tuple[int, ...]:
        """The ends of its runs."""
        return tuple(sorted({*self.quick.lengths, *self.lengths}))

    @property
    def full(self) -> bool:
        """Whether finalists run for the whole horizon."""
        return self.lengths == (self.quick.horizon,)

    def phase(self, stage: int) -> int:
        return stage % self.REFINED

    def is_finalist(self, stage: int) -> bool:
        """Whether a row of a stage is a full run."""
        return self.full and stage >= len(self.quick.lengths)

    def ask(self, runs: Runs) -> Asked | None:
        asked = self.quick.ask(runs)
        if asked is not None:
            return asked
        for at, steps in enumerate(self.lengths):
            asked = self._of_length(runs, at, steps)
            if asked is not None:
                return asked
        return None

    def _of_length(self, runs: Runs, at: int, steps: int) -> Asked | None:
        """What finalists of a length still lack."""
        seeds, stage = self.quick.seeds, len(self.quick.lengths) + at
        here = self._finalists(runs, at)
        if not len(here):
            known = [
                *(curve_of(runs.where(stage=earlier)) for earlier in range(len(self.quick.lengths))),
                *(curve_of(self._finalists(runs, before)) for before in range(at)),
            ]
            center = rules.for_horizon(
                known, steps if at or not self.full else self.quick.horizon
            ).learning_rate
            ratios = FINALIST_RATIO ** (np.arange(self.finalists) - (self.finalists - 1) / 2)
            return self._asked(center * ratios, range(seeds), at, stage)
        # On a further seed there are all rates, or none.
        repeated = len(runs.where(stage=stage + self.REPEATED)) > 0
        every = range(2 * seeds if repeated else seeds)
        curve, further = curve_of(here), self.REPEATED * repeated
        wider = beyond_edge(curve, FINALIST_RATIO, self.quick.bounds)
        if wider is not None:
            return self._asked(np.array([wider]), every, at, stage + further)
        last = self.full or at == len(self.lengths) - 1
        if last:
            surviving(curve)
        more = beside_lost(here, curve, every) if last else None
        if more is not None:
            return self._asked(more[0], more[1], at, stage + (further or self.EDGE))
        refined = len(runs.where(stage=stage + self.REFINED)) // seeds
        between = None if repeated or refined >= REFINEMENTS else neighbors.next_rate(curve)
        if between is not None:
            return self._asked(np.array([between]), every, at, stage + self.REFINED)
        if self.full and not repeated and neighbors.undecided(curve):
            return self._asked(curve.learning_rates, range(seeds, 2 * seeds), at, stage + self.REPEATED)
        return None

    def answer(self, runs: Runs) -> Suggestion:
        quick = self.quick.answer(runs)
        curves = [curve_of(rows) for at in range(len(self.lengths)) if len(rows := self._finalists(runs, at))]
        if not curves:
            return quick
        curve = surviving(curves[-1])
        if self.full:
            found = rules.lowest_loss(curve)
            how = f"in full runs under their own schedule at {len(curve.learning_rates)} peaks"
        else:
            found = rules.for_horizon(curves, self.quick.horizon)
            how = "where runs went through the whole schedule in fewer steps"
        return dataclasses.replace(
            found,
            reason=f"{found.reason[:-1]}, {how}.",
            curve=quick.curve,
            shorter=quick.shorter,
            rules=quick.rules,
            finalists=curve,
            lane_steps=runs.price,
        )

    def _finalists(self, runs: Runs, at: int) -> Runs:
        stage = len(self.quick.lengths) + at
        return runs.where(stage=(stage, stage + self.REFINED, stage + self.REPEATED, stage + self.EDGE))

    def _asked(self, rates: np.ndarray, seeds: Sequence[int], at: int, stage: int) -> Asked:
        steps = self.lengths[at]
        plan = rows_of(rates, seeds, steps, self.tables[steps], stage=stage, eval_steps=(steps,))
        return Asked(plan, f"finalists of {steps} steps")
