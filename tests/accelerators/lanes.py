"""The finder's own functions of a problem, in a grid of seeds and lanes, and what they are compiled for."""

from typing import Any

import jax

from optax_lr.engine.builder import Builder
from optax_lr.engine.layout import Layout
from optax_lr.engine.leaves import Leaves
from optax_lr.engine.program import TRAIN, arguments
from optax_lr.engine.task import look_at
from optax_lr.finder.inputs import pose
from optax_lr.finder.search import example_lane


def built(
    problem: Any,
    params: Any,
    optimizer: Any,
    batches: Any,
    *,
    steps: int,
    lanes: int,
    seeds: int = 1,
    model_state: Any = None,
) -> tuple[Builder, list[Any]]:
    """The functions, and what the one that trains is called with."""
    lane = example_lane({"learning_rate": 0.1}, steps)
    posed = pose(
        problem, params, optimizer, batches, model_state=model_state, opt_state=None, eval_batch=None, lane=lane,
        read=steps, seeds=seeds, key=None,
    )  # fmt: skip
    data = posed.data
    batch = jax.tree.map(lambda leaf: leaf[0], data.batches)
    form, traces = look_at(
        posed.trainers[0].task(evaluates=False), data.start_of(0), lane, batch, None, data.key_impl
    )
    build = Builder(form, traces, Layout(width=lanes, seeds=seeds, window=256), data.key_impl)
    given = arguments(
        build, longest=steps, batches=Leaves.of(data.batches), shardings=None, words=data.bits.size
    )
    return build, [given[argument][0] for argument in TRAIN]
