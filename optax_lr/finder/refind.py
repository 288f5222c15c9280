"""Finding the rate again: the present state of a run to the rate to go on with."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal, Unpack

import optax

from .. import checks
from ..engine.lengths import Epochs, steps_of
from ..engine.opening import Opening
from ..types import Array, PyTree, ScalarLike
from . import ceilings, tables
from .branches import FIRST, Branches
from .constant import Around
from .inputs import pose
from .policy import WIDEST, Bounds, Policy
from .problem import Problem
from .search import Options, example_lane, given, judgment_of, search, without_training
from .spending import Spending, spending
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
    budget: ScalarLike | None = None,
    decay_steps: int | Epochs | None = None,
    num_steps: int | Epochs | None = None,
    num_rates: int | None = None,
    seeds: int | None = None,
    key: Array | None = None,
    stop_factor: ScalarLike = 100.0,
    metric: str = "loss",
    mode: Literal["min", "max"] = "min",
    model_state: PyTree = None,
    **options: Unpack[Options],
) -> Suggestion:
    """Find the rate to go on with, from the present state of a run.

    1. With `budget`: *branches* go on from the present state at rates around the present one: five short ones, from
       a 16th of it to 16 times it, and then long ones, at the best, at the present rate, and where they lower the
       expected loss of the answer most; the model is that of `lr_find(budget=)`. The present rate is the answer
       unless another one is expected to be better by more than half of the deviation of that difference.
    2. Without: rates are learning_rate * 2^k, k from -(num_rates // 2) to num_rates // 2, each for `num_steps`
       steps; further ones are tried while the best is at the edge. A short look ahead favors small rates, whose
       gain is quick and whose price comes later; `horizon` corrects for what can be seen of that in short runs.

    Where all diverge, smaller rates are tried; the answer is within a factor of 100 of the present rate. Made to be
    called in the middle of a run: a second call with the same functions (the same objects) and the same shapes
    compiles nothing.

    Args:
      loss_fn, optimizer, batches, eval_batch, key, metric, mode, model_state, options: as in `lr_find`; no bar
        shows unless `progress=True`. Seed 0 takes the batches in order: hand over those to come.
      params, opt_state: where the run is now; without `opt_state` the optimizer starts anew.
      learning_rate: the present rate, above 0.
      horizon: how many steps the run has left; with a budget it must be given, without one the rate is by default
        that which is best over `num_steps`.
      budget: how many runs of `horizon` steps the search may cost, kept to the step, such as 1, 2 or 3; it must buy
        10 steps. It decides `num_steps`, `num_rates` and `seeds`, which must then be left out. In 48 runs of the
        benchmark no answer was worse than going on by more than 1.1%; with 3, three of four were within 10% of the
        best rate from there on, with 1 half of them.
      decay_steps: with a budget, in how many of the steps that are left the rate falls linearly to zero, as at the
        end of a warmup-stable-decay schedule; from 0, the default, up to `horizon`. Shorter branches decay in the
        same share of their steps.
      num_steps: without a budget, how many steps each lane takes, at least 1; by default 50.
      num_rates: how many rates are tried first, at least 3; by default 5.
      seeds: how many orders of the batches each rate is tried with; by default 2.
      stop_factor: how far a lane's loss may rise before the lane is stopped; see `sweep`. Losses that are small
        already swing by large factors, so it is larger than there.

    Returns:
      A `Suggestion`. The state that was passed in is as it was.

    Raises:
      ValueError: wrong input, in one sentence.
      RuntimeError: every lane diverged.

    >>> import jax.numpy as jnp
    >>> batches = jnp.linspace(-1, 1, 80).reshape(20, 4)
    >>> found = lr_refind(lambda w, x: jnp.mean((w * x - 3 * x) ** 2), jnp.array(2.0), optax.sgd, batches,
    ...                   learning_rate=0.01, eval_batch=jnp.ones(1), horizon=20, budget=2)
    >>> found.learning_rate > 0.01, found.lane_steps <= 40
    (True, True)

    Source: branches of a run at a constant rate: Hu et al. 2024 (arXiv:2404.06395), section 4.
    """
    judgment = judgment_of(metric, mode)
    now = checks.concrete("learning_rate", learning_rate, above=0)
    quiet: Options = {"progress": False}
    problem, engine = given(
        loss_fn, model_state is not None, options if "engine" in options else {**quiet, **options}
    )
    length = None if horizon is None else steps_of("horizon", horizon, batches)
    left_out = {"num_steps": num_steps, "num_rates": num_rates, "seeds": seeds}
    spend = spending(budget, None, None, length, 1, left_out, fewest=2 * len(FIRST))
    share = _decay(decay_steps, spend, batches)
    settings: dict[str, Any] = {"learning_rate": now}
    policy: Policy
    if spend is None:
        policy = _around(now, length, batches, num_steps, num_rates, seeds)
        settings |= {"num_steps": policy.steps, "num_rates": policy.count, "seeds": policy.seeds}
    else:
        within, branch = Bounds(now / WIDEST, now * WIDEST), functools.partial(tables.branch, share=share)
        policy = Branches(within, spend, lambda steps: branch, now=now)
        settings |= {"num_steps": policy.longest, "num_rates": len(policy.scan), "seeds": 1}
        settings |= {**spend._asdict(), "decay_steps": share}
    orders = settings["seeds"] + 1 if spend is None else spend.most_seeds
    lane = example_lane({"learning_rate": now}, policy.longest)
    posed = pose(
        problem, params, optimizer, batches, model_state=model_state, opt_state=opt_state, eval_batch=eval_batch,
        lane=lane, read=policy.longest, seeds=orders, key=key,
    )  # fmt: skip
    opening = Opening(
        lane=lane,
        lanes=settings["num_rates"],
        seeds=settings["seeds"],
        longest=policy.longest,
        ceilings=ceilings.of_search(ceilings.factor_of(stop_factor)),
        reference=without_training(posed, policy.longest, policy.evals),
        judgment=judgment,
        settings=settings,
        description="lr_refind",
    )
    return search(posed, policy, engine, opening)


def _around(
    now: float,
    length: int | None,
    batches: PyTree | Iterable[PyTree],
    num_steps: int | Epochs | None,
    num_rates: int | None,
    seeds: int | None,
) -> Around:
    """The policy without a budget."""
    steps = steps_of("num_steps", REFIND_STEPS if num_steps is None else num_steps, batches)
    rates = REFIND_LANES if num_rates is None else num_rates
    count = int(checks.steps("num_rates", rates, minimum=3, whole=True))
    runs = checks.size("seeds", REFIND_SEEDS if seeds is None else seeds, unit="seeds")
    evals = tuple(sorted({-(-steps // 4), -(-steps // 2), steps}))
    return Around(now, REFIND_RATIO, count, steps, runs, tables.constant, evals, length)


def _decay(
    decay_steps: int | Epochs | None, spend: Spending | None, batches: PyTree | Iterable[PyTree]
) -> float:
    """The share of what is left in which the rate falls to zero.

    Raises:
      ValueError: it is no whole number of at least 0, longer than what is left, or there is no budget.
    """
    if not decay_steps:
        return 0.0
    if spend is None:
        raise ValueError("decay_steps needs a budget: only branches decay.")
    if isinstance(decay_steps, Epochs):
        steps = steps_of("decay_steps", decay_steps, batches)
    else:
        steps = int(checks.steps("decay_steps", decay_steps, minimum=0, whole=True))
    if steps > spend.horizon:
        raise ValueError(f"decay_steps must be at most horizon={spend.horizon}, got {steps}.")
    return steps / spend.horizon
