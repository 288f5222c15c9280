"""A search for the rate at each of several combinations of other hyperparameters, in one table of runs.

Each combination is searched as it would be alone, by one and the same policy; their runs share rounds and compiled
programs. Where a phase has ended for all of them, those that are clearly worse are dropped.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from ..engine.runs import Plan, Runs
from . import outcomes
from .comparison import INTERVAL_LEVEL, SEARCH_LEVEL, excess, noise_threshold
from .curve import LRCurve
from .judging import judged
from .policy import AllDivergedError, Asked, Policy
from .spending import spent
from .suggestion import Round, Suggestion
from .views import curve_of

# A combination is dropped if its lowest loss is above the best one's by more than this share of what that fell, and
# by more than the noise: the rates of a phase are coarse, and the best one may lie between two of them.
CLEARLY_WORSE = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class Combinations(Policy):
    """A policy for the rate, for each combination of other hyperparameters.

    Attributes:
      alone: the policy for one combination.
      axes: the hyperparameters by name, each with its value in every combination; [combinations].
    """

    alone: Policy
    axes: Mapping[str, np.ndarray]

    @property
    def longest(self) -> int:
        """The longest run, of any combination."""
        return self.alone.longest

    @property
    def evals(self) -> tuple[int, ...]:
        """All steps after which runs are evaluated, of any combination."""
        return self.alone.evals

    @property
    def count(self) -> int:
        """The number of combinations."""
        return len(next(iter(self.axes.values())))

    def phase(self, stage: int) -> int:
        return self.alone.phase(stage)

    def ask(self, runs: Runs) -> Asked | None:
        left = self._left(runs)
        wanted = {which: asked for which, asked in left.items() if asked is not None}
        if not wanted:
            return None
        phase = min(self.phase(asked.plan.stage) for asked in wanted.values())
        of_phase = {which: each for which, each in wanted.items() if self.phase(each.plan.stage) == phase}
        stage = min(asked.plan.stage for asked in of_phase.values())
        return self._joined({which: each for which, each in of_phase.items() if each.plan.stage == stage})

    def answer(self, runs: Runs) -> Suggestion:
        left = list(self._left(runs))
        found = {which: self.alone.answer(self.of(runs, which)) for which in left}
        last = {which: each.deciding for which, each in found.items()}
        # After an interrupt some may have run further than others.
        longest = max(curve.losses.shape[-1] for curve in last.values())
        ended = [which for which in left if last[which].losses.shape[-1] == longest]
        heights = _lowest([last[which] for which in ended])
        best = ended[int(heights.mean(axis=0).argmin())]
        said = self._said(ended, best, heights, runs.judgment.folds)
        trace = self._trace(runs, best, found[best])
        if trace and self.count > 1:  # of a budget the reason for one knows its part
            said += f"; all {self.count} together took {trace[-1].price:.3g} runs"
        return dataclasses.replace(
            found[best],
            reason=f"{found[best].reason[:-1]}{said}.",
            hyperparameters={name: values[best].item() for name, values in self.axes.items()},
            combinations=curve_of(runs.where(stage=0)) if self.count > 1 else None,
            lane_steps=runs.price,
            trace=trace,
        )

    def _trace(self, runs: Runs, best: int, found: Suggestion) -> tuple[Round, ...]:
        """What was known of the best combination after each round, and what all of them had cost by then.

        Where the others ran on, its last answer stands.
        """
        if not found.trace or found.horizon is None:
            return found.trace
        first = self.of(runs, best).rounds - len(found.trace)
        known = [found.trace[min(at, len(found.trace) - 1)] for at in range(runs.rounds - first)]
        costs = [spent(runs, last, found.horizon) for last in range(first, runs.rounds)]
        return tuple(
            each._replace(price=price, chain=chain) for each, (price, chain) in zip(known, costs, strict=True)
        )

    def of(self, runs: Runs, which: int) -> Runs:
        """The rows of a combination, as the policy for the rate alone knows them."""
        same = np.ones(len(runs), bool)
        for name, values in self.axes.items():
            if name in runs.lanes:
                same &= runs.lanes[name] == values[which]
        mine = runs.take(np.flatnonzero(same))
        mine.lanes = {name: values for name, values in mine.lanes.items() if name not in self.axes}
        return mine

    def _left(self, runs: Runs) -> dict[int, Asked | None]:
        """The combinations that have not been dropped, and what each asks for next.

        Raises:
          AllDivergedError: every combination has diverged.
        """
        left: dict[int, Asked | None] = {}
        for which in range(self.count):
            try:
                left[which] = self.alone.ask(self.of(runs, which))
            except AllDivergedError as error:
                diverged = error
        if not left:
            raise diverged
        phases = {self.phase(int(stage)) for stage in runs.columns["stage"]} if self.alone.tells else ()
        for phase in sorted(phases):
            if any(asked and self.phase(asked.plan.stage) <= phase for asked in left.values()):
                break
            left = {which: left[which] for which in self._good(runs, list(left), phase)}
        return left

    def _good(self, runs: Runs, left: Sequence[int], phase: int) -> list[int]:
        """Those whose lowest loss in a phase is not clearly above that of the best."""
        stages = [stage for stage in set(runs.columns["stage"].tolist()) if self.phase(stage) == phase]
        curves = [curve_of(self.of(runs, which).where(stage=stages)) for which in left]
        heights = _lowest(curves)
        folds = runs.judgment.folds
        above = excess(heights) > noise_threshold(heights, SEARCH_LEVEL, CLEARLY_WORSE, folds)
        return [which for which, worse in zip(left, above, strict=True) if not worse]

    def _joined(self, asked: Mapping[int, Asked]) -> Asked:
        """One plan of what several combinations ask for, all of one stage."""
        plans = [each.plan for each in asked.values()]
        rows = np.repeat(list(asked), [len(plan.seeds) for plan in plans])
        lanes = {name: np.concatenate([plan.lanes[name] for plan in plans]) for name in plans[0].lanes}
        joined = Plan(
            lanes | {name: values[rows] for name, values in self.axes.items()},
            np.concatenate([plan.seeds for plan in plans]),
            np.concatenate([plan.steps for plan in plans]),
            plans[0].eval_steps,
            {name: np.concatenate([plan.tables[name] for plan in plans]) for name in plans[0].tables},
            plans[0].stage,
        )
        description = next(iter(asked.values())).description
        return Asked(joined, description if self.count == 1 else f"{description}, {len(asked)} combinations")

    def _said(self, ended: Sequence[int], best: int, heights: np.ndarray, folds: int) -> str:
        """Which combination is the best, of how many, and which cannot be told from it."""
        if self.count == 1:
            return ""
        dropped = self.count - len(ended)
        words = f"; {self._named(best)} is the best of {self.count} combinations"
        how = "clearly worse in shorter runs" if self.alone.tells else "lost or no better than untrained"
        words += f", of which {dropped} {how}" if dropped else ""
        near = excess(heights) <= noise_threshold(heights, INTERVAL_LEVEL, folds=folds)
        alike = [
            self._named(which) for which, close in zip(ended, near, strict=True) if close and which != best
        ]
        return words + (f", and cannot be told from {' or '.join(alike)}" if alike else "")

    def _named(self, which: int) -> str:
        return ", ".join(f"{name} {values[which]:.3g}" for name, values in self.axes.items())


def _lowest(curves: Sequence[LRCurve]) -> np.ndarray:
    """The heights of the best lane of each curve, on the seeds that all of them have; [seeds, curves].

    All are above one reference, that of the first curve, since all combinations have the same starts and data.
    """
    seeds = min(len(curve.losses) for curve in curves)
    losses = [outcomes.final_losses(curve)[:seeds, outcomes.best_lane(curve)] for curve in curves]
    reference = np.nanmean(outcomes.final_losses(curves[0]) - judged(curves[0])[-1].heights, axis=1)[:seeds]
    return np.stack(losses, axis=1) - reference[:, None]
