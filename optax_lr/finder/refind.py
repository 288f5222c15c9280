"""Find the rate again, from the middle of a run."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import optax
from jax.sharding import Mesh

from .. import checks
from ..types import Array, PyTree, ScalarLike
from . import suggest
from .problem import Loss, pose
from .runs import WIDEST, build_stage, refuse_if_all_diverged, widened
from .suggestion import Suggestion

REFIND_STEPS = 50
REFIND_LANES = 5
REFIND_SEEDS = 2
REFIND_RATIO = 2.0


def lr_refind(
    loss_fn: Callable[..., Any],
    params: PyTree,
    optimizer: Callable[..., optax.GradientTransformation],
    batches: PyTree | Iterable[PyTree],
    *,
    learning_rate: ScalarLike,
    opt_state: optax.OptState | None = None,
    eval_batch: PyTree = None,
    horizon: int | None = None,
    num_steps: int = REFIND_STEPS,
    num_rates: int = REFIND_LANES,
    seeds: int = REFIND_SEEDS,
    key: Array | None = None,
    stop_factor: ScalarLike = 100.0,
    progress: bool = False,
    with_key: bool = False,
    model_state: PyTree = None,
    has_aux: bool = False,
    eval_fn: Callable[..., Any] | None = None,
    lanes_at_once: int | Literal["auto"] = "auto",
    mesh: Mesh | None = None,
) -> Suggestion:
    """Find the rate to go on with, from the present state of a run: a few short runs around the present rate.

    Rates are learning_rate * 2^k, k from -(num_rates // 2) to num_rates // 2, each for `num_steps` steps from the
    given state; further ones are tried while the best is at the edge, up to a factor of 100 from the present one.
    Made to be called every few epochs: a second call with the same functions (the same objects) and the same
    shapes compiles nothing. A short look ahead favors small rates, whose gain is quick and whose price comes
    later; `horizon` corrects for what of that can be seen within the short runs.

    Args:
      loss_fn, optimizer, batches, eval_batch, key, progress, with_key, model_state, has_aux, eval_fn,
        lanes_at_once, mesh: as in `lr_find`.
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
    now = checks.concrete("learning_rate", learning_rate, above=0)
    steps, lanes = (
        checks.size("num_steps", num_steps),
        int(checks.steps("num_rates", num_rates, minimum=3, whole=True)),
    )
    length = None if horizon is None else checks.size("horizon", horizon)
    problem = pose(
        Loss(loss_fn, eval_fn, with_key, model_state is not None, has_aux),
        params,
        optimizer,
        batches,
        model_state=model_state,
        opt_state=opt_state,
        eval_batch=eval_batch,
        lane={"learning_rate": now},
        read=steps,
        needed=None,
        seeds=checks.size("seeds", seeds),
        key=key,
    )
    stage = build_stage(
        problem,
        steps,
        sorted({-(-steps // 4), -(-steps // 2), steps}),
        stop_factor=stop_factor,
        lanes_at_once=lanes_at_once,
        mesh=mesh,
        checkpoint=None,
        progress=progress,
    )
    around = now * REFIND_RATIO ** np.arange(-(lanes // 2), lanes // 2 + 1.0)
    curve = stage.run_rates(around, seeds, "rates around the present one")
    refuse_if_all_diverged(curve, problem, steps)
    curve = widened(
        curve,
        REFIND_RATIO,
        (now / WIDEST, now * WIDEST),
        lambda rates: stage.run_rates(rates, seeds, "wider rates"),
    )
    return suggest.lowest_loss(curve) if length is None else suggest.for_horizon(curve, length)
