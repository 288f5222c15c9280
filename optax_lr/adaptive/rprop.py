"""Rprop, resilient backpropagation: the signs of gradients, and nothing else of them, to a transformation.

As gains, it is for full batches: with mini-batches the signs are noise, and steps keep shrinking.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from .. import checks
from ..learning_rate import scale_by_learning_rate
from ..types import Array, ArrayLike, Float, PyTree, ScalarLike, Schedule
from .signs import (
    LARGEST,
    Bounds,
    Scalar,
    adapt,
    checked_bounds,
    filled,
    float32,
    in_float32,
    map_leaves,
    remembered,
    sign_of,
)

Variant: TypeAlias = Literal["iRprop-", "iRprop+", "Rprop+", "Rprop-"]


class RpropState(NamedTuple):
    """State of `scale_by_rprop`.

    Attributes:
      steps: the size of each parameter's step, float32.
      last_sign: the sign that the next gradient is compared with, int8: -1, 1, or 0 for neither.
      last_value: the last finite loss, for iRprop+ (else None).
      last_min: the lower bound that the last update used: a record, for `gain_statistics`.
      last_max: the upper bound, likewise.
    """

    steps: PyTree
    last_sign: PyTree
    last_value: Float[Array, "..."] | None
    last_min: Float[Array, "..."]
    last_max: Float[Array, "..."]


def scale_by_rprop(
    *,
    variant: Variant = "iRprop-",
    decrease: ScalarLike = 0.5,
    increase: ScalarLike = 1.2,
    initial_step: ScalarLike = 0.1,
    min_step: ScalarLike = 1e-6,
    max_step: ScalarLike = 50.0,
    keep_sign: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Rprop in its four variants: every parameter moves by a step of its own, in the direction of its sign.

    step <- clip(step * increase, min_step, max_step)   where g * last > 0
            clip(step * decrease, min_step, max_step)   where g * last < 0,    update = sign(g) * step

    `last` is the gradient of the step before. Where the sign changed,

        "Rprop-"   does just that;
        "iRprop-"  stays, and counts g as zero, so that the next step is neither longer nor shorter;
        "Rprop+"   takes the last step back, and counts g as zero;
        "iRprop+"  is Rprop+ where the loss rose since the last step, else iRprop-.

    It is for full batches: the signs of mini-batches are noise, steps keep shrinking and the error ends higher.

    Unlike `optax.rprop`, the update is the one of this gradient, not of the gradient before. iRprop+ takes
    the loss: `update(updates, state, params, value=loss)`. A step is taken back as it was before the learning
    rate: a rate that has changed since takes back that much more or less. State: one float32 and one int8 for
    each parameter.

    A non-finite gradient leaves its step as it was and is passed on; a non-finite loss counts as risen, and
    is not remembered.

    Args:
      variant: "iRprop-", "iRprop+", "Rprop+" or "Rprop-".
      decrease: what a change of sign multiplies by, in (0, 1); eta- in the papers.
      increase: what a kept sign multiplies by, above 1; eta+ in the papers.
      initial_step: the first step, from `min_step` to `max_step`, in units of the parameters.
      min_step: the shortest step, in [1e-30, 1e30].
      max_step: the longest step, from `min_step` to 1e30.
      keep_sign: whether a zero gradient leaves the remembered sign as it is, as if its step had not been. It
        is for rows that few batches touch (embeddings): else no two of their gradients are ever compared.

    Returns:
      A transformation of gradients to steps (uphill).

    Raises:
      ValueError: a concrete number is out of its range, the variant is not one of the four, a parameter is
        complex, or iRprop+ gets no loss.

    >>> transformation = scale_by_rprop()
    >>> state = transformation.init(jnp.zeros(2))
    >>> for gradient in (jnp.array([3.0, 3.0]), jnp.array([7.0, -7.0]), jnp.array([7.0, -7.0])):
    ...     updates, state = transformation.update(gradient, state)
    ...     print([round(float(update), 4) for update in updates])
    [0.1, 0.1]
    [0.12, 0.0]
    [0.144, -0.05]

    Source: Riedmiller & Braun 1993, A direct adaptive method for faster backpropagation learning; Igel &
    Hüsken 2003, Empirical evaluation of the improved Rprop learning algorithms, Neurocomputing 50, algorithms
    1 to 4. A zero gradient that is skipped: `torch.optim.SparseAdam`, which updates only what a gradient holds.
    """
    checks.choice("variant", variant, get_args(Variant))
    shorter = float32(checks.number("decrease", decrease, above=0, below=1))
    longer = float32(checks.number("increase", increase, above=1))
    bounds = checked_bounds("min_step", min_step, "max_step", max_step)
    start = checks.number("initial_step", initial_step)
    checks.not_below("initial_step", start, "min_step", min_step)
    checks.not_below("max_step", max_step, "initial_step", start)
    step = _step(variant, keep_sign, shorter, longer, bounds)

    def stateful(steps: PyTree, signs: PyTree, value: Array | None) -> RpropState:
        return RpropState(steps, signs, value, *(jnp.asarray(bound, jnp.float32) for bound in bounds))

    def init(params: PyTree) -> RpropState:
        first = jnp.clip(float32(start), *bounds)
        # The largest number, above which no loss has risen: an infinity would stop a run under `jax_debug_infs`.
        value = jnp.asarray(LARGEST) if variant == "iRprop+" else None
        return stateful(filled(params, first), filled(params, 0, jnp.int8), value)

    def update(
        updates: PyTree,
        state: RpropState,
        params: PyTree | None = None,
        *,
        value: ArrayLike | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, RpropState]:
        del params, extra_args
        loss_rose, last_value = (
            (np.float32(1), None) if state.last_value is None else _loss_rose(value, state.last_value)
        )
        move = functools.partial(step, loss_rose)
        emitted, steps, signs = map_leaves(move, updates, state.steps, state.last_sign)
        return emitted, stateful(steps, signs, last_value)

    return optax.GradientTransformationExtraArgs(init, update)


def _step(
    variant: Variant, keep_sign: bool, shorter: Scalar, longer: Scalar, bounds: Bounds
) -> Callable[..., tuple[Array, ...]]:
    """A step of one leaf; the first argument is 1 where Rprop+ and iRprop+ take a step back, else 0."""

    def step(loss_rose: Scalar, gradient: Array, old_size: Array, last_sign: Array) -> tuple[Array, ...]:
        g, size = in_float32(gradient), in_float32(old_size)
        before, finite = lax.convert_element_type(last_sign, jnp.int8), lax.is_finite(g)
        sign, agreed, zero = sign_of(g), g * in_float32(last_sign), lax.full_like(before, 0)
        after = adapt(size, agreed, finite, size * longer, size * shorter, bounds)
        turned = lax.lt(agreed, np.float32(0))
        counted = sign if variant == "Rprop-" else lax.select(turned, zero, sign)
        kept = lax.select(lax.eq(sign, zero), before, counted) if keep_sign else counted
        stored = remembered(kept, before, finite, after)
        update = after * in_float32(stored)
        if keep_sign:
            update = lax.select(lax.eq(g, np.float32(0)), g, update)
        if variant in ("Rprop+", "iRprop+"):
            # A sign that turned is not stored, and its last update was -sign(g) * size: the last sign is not read.
            taken_back = lax.sign(g) * size * loss_rose
            update = lax.select(lax.ne(sign, stored), taken_back, update)
        return lax.convert_element_type(lax.select(finite, update, g), gradient.dtype), after, stored

    return step


def rprop(
    learning_rate: ScalarLike | Schedule,
    *,
    variant: Variant = "iRprop-",
    decrease: ScalarLike = 0.5,
    increase: ScalarLike = 1.2,
    initial_step: ScalarLike = 0.1,
    min_step: ScalarLike = 1e-6,
    max_step: ScalarLike = 50.0,
    keep_sign: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Rprop: `scale_by_rprop`, then a learning rate.

    w <- w - learning_rate * sign(g) * step

    The papers' and PyTorch's algorithm is the rate 1 (what they call the learning rate is `initial_step`).
    The rate multiplies every step and so both bounds; a schedule can let all steps fade. It is for full
    batches, not for mini-batches, whose signs are noise.

    Args:
      learning_rate: at least 0, or a schedule.
      variant: "iRprop-", "iRprop+", "Rprop+" or "Rprop-"; iRprop+ takes the loss, `update(..., value=loss)`.
      decrease: what a change of sign multiplies a step by, in (0, 1).
      increase: what a kept sign multiplies a step by, above 1.
      initial_step: the first step, from `min_step` to `max_step`, in units of the parameters.
      min_step: the shortest step, in [1e-30, 1e30].
      max_step: the longest step, from `min_step` to 1e30.
      keep_sign: whether a zero gradient leaves the remembered sign as it is, for rows that few batches touch.

    Returns:
      An optimizer whose rate `get_learning_rate` reads. A non-finite gradient is passed on.

    Raises:
      ValueError: a concrete number is out of its range, or the variant is not one of the four.

    >>> optimizer = rprop(1.0, initial_step=0.5)
    >>> params = jnp.array([3.0, -2.0])
    >>> updates, state = optimizer.update(params, optimizer.init(params))
    >>> updates.tolist()
    [-0.5, 0.5]

    Source: Igel & Hüsken 2003, Empirical evaluation of the improved Rprop learning algorithms, Neurocomputing
    50, algorithms 1 to 4.
    """
    return optax.chain(
        scale_by_rprop(
            variant=variant,
            decrease=decrease,
            increase=increase,
            initial_step=initial_step,
            min_step=min_step,
            max_step=max_step,
            keep_sign=keep_sign,
        ),
        scale_by_learning_rate(learning_rate),
    )


def _loss_rose(value: ArrayLike | None, last: Array) -> tuple[Array, Array]:
    """1 where the loss is above the last finite one, else 0, and the loss to remember."""
    if value is None:
        raise ValueError("value must be the loss for iRprop+, as in update(..., value=loss), got None.")
    if jnp.shape(value):
        raise ValueError(f"value must be one number, got an array of shape {jnp.shape(value)}.")
    loss = jnp.asarray(value, jnp.float32)
    return (~(loss <= last)).astype(jnp.float32), jnp.where(jnp.isfinite(loss), loss, last)
