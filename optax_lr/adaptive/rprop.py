"""Rprop, resilient backpropagation: the signs of gradients, and nothing else of them, to a transformation.

As gains, it is for full batches: with mini-batches the signs are noise, and steps keep shrinking. A step is
stored as a gain is, with the sign that it was taken with.
"""

from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import optax

from .. import checks
from ..learning_rate import scale_by_learning_rate
from ..types import Array, ArrayLike, Float, PyTree, ScalarLike, Schedule
from .gains import Gains, adapt, checked_bounds, code, decode, filled, gains_of

Variant: TypeAlias = Literal["iRprop-", "iRprop+", "Rprop+", "Rprop-"]


class RpropState(NamedTuple):
    """State of `scale_by_rprop`: the steps, and for iRprop+ the last finite loss (else None)."""

    gains: Gains
    value: Float[Array, ""] | None


def scale_by_rprop(
    *,
    variant: Variant = "iRprop-",
    decrease: ScalarLike = 0.5,
    increase: ScalarLike = 1.2,
    initial_step: ScalarLike = 0.1,
    min_step: ScalarLike = 1e-6,
    max_step: ScalarLike = 50.0,
) -> optax.GradientTransformationExtraArgs:
    """Rprop in its four variants: every parameter moves by a step of its own, in the direction of its sign.

    step <- clip(step * increase, min_step, max_step)   where g * last > 0
            clip(step * decrease, min_step, max_step)   where g * last < 0,    update = sign(g) * step

    `last` is the gradient of the step before. Where the sign changed,

        "Rprop-"   does just that;
        "iRprop-"  stays, and counts g as zero, so that the next step is neither longer nor shorter;
        "Rprop+"   takes the last step back, and counts g as zero;
        "iRprop+"  is Rprop+ where the loss rose since the last step, else iRprop-.

    Unlike `optax.rprop`, the update is the one of this gradient, not of the gradient before. iRprop+ takes
    the
    loss: `update(updates, state, params, value=loss)`. A step is taken back as it was before the learning
    rate: a rate that has changed since takes back that much more or less. State: one float32 for each
    parameter.

    A non-finite gradient leaves its step as it was and is passed on; a non-finite loss counts as risen, and
    is not remembered.

    Args:
      variant: "iRprop-", "iRprop+", "Rprop+" or "Rprop-".
      decrease: what a change of sign multiplies by, in (0, 1); eta- in the papers.
      increase: what a kept sign multiplies by, above 1; eta+ in the papers.
      initial_step: the first step, from `min_step` to `max_step`, in units of the parameters.
      min_step: the shortest step, in [2^-30, 2^30].
      max_step: the longest step, from `min_step` to 2^30.

    Returns:
      A transformation of gradients to steps (uphill).

    Raises:
      ValueError: a concrete number is out of its range, the variant is not one of the four, a parameter is
        complex,
        or iRprop+ gets no loss.

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
    1 to 4.
    """
    checks.choice("variant", variant, get_args(Variant))
    shorter = checks.number("decrease", decrease, above=0, below=1)
    longer = checks.number("increase", increase, above=1)
    bounds = checked_bounds("min_step", min_step, "max_step", max_step)
    start = checks.number("initial_step", initial_step)
    checks.not_below("initial_step", start, "min_step", min_step)
    checks.not_below("max_step", max_step, "initial_step", start)

    def init(params: PyTree) -> RpropState:
        first = code(jnp.clip(start, *bounds), jnp.float32(0))
        return RpropState(
            gains_of(filled(params, first), bounds), jnp.float32(jnp.inf) if variant == "iRprop+" else None
        )

    def remember(gradient: Array, coded: Array) -> Array:
        g = gradient.astype(jnp.float32)
        size, last = decode(coded)
        after = adapt(size, g * last, size * longer, size * shorter, bounds)
        counted = g if variant == "Rprop-" else jnp.where(g * last < 0, 0.0, g)
        return jnp.where(jnp.isfinite(g), code(after, counted), coded)

    def emit(gradient: Array, before: Array, coded: Array, taken_back: ArrayLike) -> Array:
        g = gradient.astype(jnp.float32)
        size, sign = decode(coded)
        # A change of sign leaves no doubt of the last update: it was what is stored.
        turned = g * decode(before)[1] < 0
        step = jnp.where(jnp.logical_and(turned, taken_back), -before, size * sign)
        return jnp.where(jnp.isfinite(g), step, gradient).astype(gradient.dtype)

    def update(
        updates: PyTree,
        state: RpropState,
        params: PyTree | None = None,
        *,
        value: ArrayLike | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, RpropState]:
        del params, extra_args
        before = state.gains.coded
        coded = jax.tree.map(remember, updates, before)
        taken_back, last_value = (
            _loss_rose(value, state.value) if state.value is not None else (variant == "Rprop+", None)
        )
        emitted = jax.tree.map(lambda g, old, new: emit(g, old, new, taken_back), updates, before, coded)
        return emitted, RpropState(gains_of(coded, bounds), last_value)

    return optax.GradientTransformationExtraArgs(init, update)


def rprop(
    learning_rate: ScalarLike | Schedule,
    *,
    variant: Variant = "iRprop-",
    decrease: ScalarLike = 0.5,
    increase: ScalarLike = 1.2,
    initial_step: ScalarLike = 0.1,
    min_step: ScalarLike = 1e-6,
    max_step: ScalarLike = 50.0,
) -> optax.GradientTransformationExtraArgs:
    """Rprop: `scale_by_rprop`, then a learning rate.

    w <- w - learning_rate * sign(g) * step

    The papers' and PyTorch's algorithm is the rate 1 (what they call the learning rate is `initial_step`).
    The rate multiplies every step and so both bounds; a schedule can let all steps fade.

    Args:
      learning_rate: at least 0, or a schedule.
      variant: "iRprop-", "iRprop+", "Rprop+" or "Rprop-"; iRprop+ takes the loss, `update(..., value=loss)`.
      decrease: what a change of sign multiplies a step by, in (0, 1).
      increase: what a kept sign multiplies a step by, above 1.
      initial_step: the first step, from `min_step` to `max_step`, in units of the parameters.
      min_step: the shortest step, in [2^-30, 2^30].
      max_step: the longest step, from `min_step` to 2^30.

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
        ),
        scale_by_learning_rate(learning_rate),
    )


def _loss_rose(value: ArrayLike | None, last: Array) -> tuple[Array, Array]:
    """Whether the loss is above the last finite one, and the loss to remember."""
    if value is None:
        raise ValueError("value must be the loss for iRprop+, as in update(..., value=loss), got None.")
    if jnp.shape(value):
        raise ValueError(f"value must be one number, got an array of shape {jnp.shape(value)}.")
    loss = jnp.asarray(value, jnp.float32)
    return ~(loss <= last), jnp.where(jnp.isfinite(loss), loss, last)
