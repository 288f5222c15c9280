"""The reference: what the runs of a search would report if nothing were trained, on their own batches and keys.

It is the lane of rate 0, made of forward passes. Where a step neither draws random numbers nor moves a model state,
a batch gives the same whenever it comes: then each batch is looked at once for each start.
"""

from typing import Literal, NamedTuple

import numpy as np

from .batches import Data
from .runs import Plan, Reference, Runs
from .task import Form

# Which reports the reference is of: those of training steps, or those of evaluations.
Judge = Literal["metrics", "evals"]


class Wanted(NamedTuple):
    """What a reference is to hold.

    Attributes:
      judge: of which reports it is.
      longest: the steps of the longest run of the search.
      evals: all steps after which runs of the search are evaluated.
    """

    judge: Judge
    longest: int
    evals: tuple[int, ...]

    def of_starts(self, form: Form) -> bool:
        """Whether evaluations of the starts as they are tell all."""
        return self.judge == "evals" and form.repeats


def plan_of(known: Reference, plan: Plan, wanted: Wanted, form: Form, data: Data) -> Plan | None:
    """The runs without training that must be made before those of a plan; None where all is known."""
    seeds, steps, evals = _new(known, plan), wanted.longest, wanted.evals
    if wanted.judge == "metrics":
        steps, evals = (min(steps, data.num_batches) if form.repeats else steps), ()
    elif form.repeats:
        steps, evals = 1, (1,)
    every_batch = wanted.judge == "evals" or data.num_batches <= wanted.longest
    if form.repeats and not data.start_per_seed and data.folds is None and every_batch:
        seeds = [] if len(known.seeds) else seeds[:1]
    if not seeds:
        return None
    # No rate is looked at without training: the first lane of the plan stands there.
    first = np.zeros(len(seeds), int)
    return Plan(
        {name: np.asarray(values)[first] for name, values in plan.lanes.items()},
        np.array(seeds, np.int32),
        np.full(len(seeds), steps, np.int32),
        evals,
        {name: np.zeros((len(seeds), 1), np.float32) for name in plan.tables},
    )


def completed(
    known: Reference, plan: Plan, found: Runs | None, wanted: Wanted, form: Form, data: Data
) -> Reference:
    """The reference with the seeds of a plan, from what is known and from runs without training."""
    seeds = _new(known, plan)
    every = np.append(known.seeds, np.array(seeds, np.int64))
    rows = {} if found is None else {int(seed): row for row, seed in enumerate(found.columns["seed"])}
    passes = known.passes
    if found is not None and not wanted.of_starts(form):
        passes += int(found.columns["done"].sum())

    def by_step(name: str) -> np.ndarray:
        """A metric of every step of every seed; from those of batches where each gives the same at any time."""
        old = dict(zip(known.seeds.tolist(), known.metrics.get(name, []), strict=True))
        new = {} if found is None else {seed: found.metrics[name][row] for seed, row in rows.items()}
        if form.repeats:
            # Of each start, what is known of every batch.
            tables: dict[int, np.ndarray] = {}
            for seed, values in (old | new).items():
                start = seed if data.start_per_seed else 0
                table = tables.setdefault(start, np.full(data.num_batches, np.nan, np.float32))
                table[data.order(seed, len(values))] = values
            new = {
                seed: tables[seed if data.start_per_seed else 0][data.order(seed, wanted.longest)]
                for seed in seeds
            }
        return np.stack([*old.values(), *(new[seed] for seed in seeds)])

    if wanted.judge == "metrics":
        names = known.metrics if found is None else found.metrics
        return Reference(every, {name: by_step(name) for name in names}, {}, (), passes)
    # A seed that shares its start with the first one has its evaluations.
    reported = {
        name: np.stack([*known.evals.get(name, []), *(values[rows.get(seed, 0)] for seed in seeds)])
        for name, values in (known.evals if found is None else found.evals).items()
    }
    return Reference(every, {}, reported, known.eval_steps if found is None else found.eval_steps[0], passes)


def _new(known: Reference, plan: Plan) -> list[int]:
    return sorted(set(plan.seeds.tolist()) - set(known.seeds.tolist()))
