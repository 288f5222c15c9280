"""Finding the rate again: the present state of a run to the rate to go on with."""

from collections.abc import Callable, Iterable
from typing import Any, Literal, Unpack

import optax

from .. import checks
from ..engine.lengths import Epochs, steps_of
from ..engine.session import Opening
from ..types import Array, PyTree, ScalarLike
from . import ceilings, tables
from .inputs import pose
from .policies import Around
from .problem import Problem
from .search import Options, example_lane, given, judgment_of, search, without_training
from .suggestion import Suggestion

REFIND_STEPS = 50
REFIND_LANES = 5
REFIND_SEEDS = 2
REFIND_RATIO = 2.0


def lr_refind(
    loss_fn: Callable[..., Any] | Problem,
    params: PyTree,
    optimizer: Callable[..., optax.GradientTransformation],
    batches: PyTree | Iterable[PyTree],
    *,
    learning_rate: ScalarLike,
    opt_state: optax.OptState | None = None,
    eval_batch: PyTree = None,
    horizon: int | Epochs | None = None,
    num_steps: int | Epochs = REFIND_STEPS,
    num_rates: int = REFIND_LANES,
    seeds: int = REFIND_SEEDS,
    key: Array | None = None,
    stop_factor: ScalarLike = 100.0,
    metric: str = "loss",
    mode: Literal["min", "max"] = "min",
    model_state: PyTree = None,
    **options: Unpack[Options],
) -> Suggestion:
    """Find the rate to go on with, from the present state of a run: a few short runs around the present rate.

    Rates are learning_rate * 2^k, k from -(num_rates // 2) to num_rates // 2, each for `num_steps` steps from the
    given state; further ones are tried while the best is at the edge, and smaller ones where all diverged, up to a
    factor of 100 from the present one.
    Made to be called every few epochs: a second call with the same functions (the same objects) and the same
    shapes compiles nothing. A short look ahead favors small rates, whose gain is quick and whose price comes
    later; `horizon` corrects for what of that can be seen within the short runs.

    Args:
      loss_fn, optimizer, batches, eval_batch, key, metric, mode, model_state, options: as in `lr_find`; no bar
        shows unless `progress=True`.
      params, opt_state: where the run is now; without `opt_state` the optimizer starts anew.
      learning_rate: the present rate, above 0.
      horizon: how many steps the run has left; by default the rate that is best over `num_steps`.
      num_steps: how many steps each lane takes, at least 1.
      num_rates: how many rates are tried first, at least 3.
      seeds: how many orders of the batches each rate is tried with.
      stop_factor: how far a lane's loss may rise before the lane is stopped; see `sweep`. Losses that are small
        already swing by large factors, so it is larger than there.

    Returns:
      A `Suggestion`. The state that was passed in is as it was.

    Raises:
      ValueError: wrong input, in one sentence.
      RuntimeError: every lane diverged.

    >>> import jax.numpy as jnp
    >>> batches = jnp.linspace(-1, 1, 20).reshape(5, 4)
    >>> found = lr_refind(lambda w, x: jnp.mean((w * x - 3 * x) ** 2), jnp.array(2.0), optax.sgd, batches,
    ...                   learning_rate=0.1, eval_batch=jnp.ones(1), num_steps=5)
    >>> found.learning_rate > 0.1
    True
    """
    judgment = judgment_of(metric, mode)
    now = checks.concrete("learning_rate", learning_rate, above=0)
    quiet: Options = {"progress": False}
    problem, engine = given(
        loss_fn, model_state is not None, options if "engine" in options else {**quiet, **options}
    )
    steps = steps_of("num_steps", num_steps, batches)
    count = int(checks.steps("num_rates", num_rates, minimum=3, whole=True))
    length = None if horizon is None else steps_of("horizon", horizon, batches)
    runs = checks.size("seeds", seeds)
    lane = example_lane({"learning_rate": now}, steps)
    posed = pose(
        problem,
        params,
        optimizer,
        batches,
        model_state=model_state,
        opt_state=opt_state,
        eval_batch=eval_batch,
        lane=lane,
        read=steps,
        seeds=runs + 1,
        key=key,
    )
    evals = tuple(sorted({-(-steps // 4), -(-steps // 2), steps}))
    policy = Around(now, REFIND_RATIO, count, steps, runs, tables.constant, evals, length)
    opening = Opening(
        lane=lane,
        lanes=count,
        seeds=runs,
        longest=steps,
        ceilings=ceilings.of_search(ceilings.factor_of(stop_factor)),
        reference=without_training(posed, steps, evals),
        judgment=judgment,
        settings={"learning_rate": now, "num_steps": steps, "num_rates": count, "seeds": runs},
        description="lr_refind",
    )
    return search(posed, policy, engine, opening)
