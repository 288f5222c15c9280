"""Gains: the signs of gradients to a transformation that gives every parameter a rate of its own.

A gain grows while a parameter's gradient keeps its sign and shrinks when the sign changes, within bounds.
Signs say something only where gradients are not mostly noise: full batches, or large mini-batches.

The updates point uphill, as those of Optax's `scale_by_*` do: a negative learning rate comes after them. A
parameter whose gradient is not finite keeps its gain, sign, velocity and average, and the gradient is passed
on, so that `optax.apply_if_finite` sees it. State is float32 whatever the parameters' type is; a sign is an
int8. Updates leave with the type they came with.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from .. import checks
from ..learning_rate import scale_by_learning_rate
from ..types import Array, Float, PyTree, ScalarLike, Schedule
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
    scaled,
    sign_of,
)


class LocalGainsState(NamedTuple):
    """State of `scale_by_local_gains` without momentum.

    Attributes:
      gains: one float32 for each parameter.
      last_sign: the sign that the next gradient is compared with, int8: -1, 1, or 0 for neither.
      last_min: the lower bound that the last update used: a record, for `gain_statistics`.
      last_max: the upper bound, likewise.
    """

    gains: PyTree
    last_sign: PyTree
    last_min: Float[Array, "..."]
    last_max: Float[Array, "..."]


class LocalGainsWithVelocityState(NamedTuple):
    """State of `scale_by_local_gains` with momentum; the next gradient is compared with the velocity, float32."""

    gains: PyTree
    velocity: PyTree
    last_min: Float[Array, "..."]
    last_max: Float[Array, "..."]


class DeltaBarDeltaState(NamedTuple):
    """State of `scale_by_delta_bar_delta`; the next gradient is compared with the average, float32."""

    gains: PyTree
    average: PyTree
    last_min: Float[Array, "..."]
    last_max: Float[Array, "..."]


State: TypeAlias = LocalGainsState | LocalGainsWithVelocityState | DeltaBarDeltaState


def scale_by_local_gains(
    *,
    increase: ScalarLike = 0.05,
    decrease: ScalarLike = 0.95,
    min_gain: ScalarLike = 0.1,
    max_gain: ScalarLike = 10.0,
    momentum: ScalarLike | None = None,
    nesterov: bool = False,
    keep_sign: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Hinton's local gains: a gain for every parameter, larger while its gradient keeps its sign.

    gain <- clip(gain + increase, min_gain, max_gain)   where g * last > 0
            clip(gain * decrease, min_gain, max_gain)   where g * last < 0,    update = gain * g

    `last` is the gradient of the step before. With momentum it is the velocity, and the velocity is what
    leaves: velocity <- momentum * velocity + gain * g, or with Nesterov momentum * velocity + gain * g once
    more. A zero gradient leaves its gain as it is, now and (without `keep_sign` or momentum) at the next step.

    Gains act along the parameters' own axes: a valley that is turned by 45 degrees stays as slow as it was. They
    are for full batches, or large mini-batches: of noisy gradients the signs say little.

    The bounds and factors may differ from step to step (`optax.inject_hyperparams`). State, for each
    parameter: one float32 and one int8 without momentum, two float32 with it. A non-finite gradient is passed
    on and leaves all of the state as it was. A velocity beyond float32 stays at its largest number.

    Args:
      increase: what agreement adds, at least 0.
      decrease: what disagreement multiplies by, in (0, 1].
      min_gain: the smallest gain, in [1e-30, 1e30]; Hinton: 0.1 or 0.01.
      max_gain: the largest gain, from `min_gain` to 1e30; Hinton: 10 or 100.
      momentum: the share of the velocity kept at each step, in [0, 1), or None. A steady gradient moves a
        parameter by 1 / (1 - momentum) as much: divide the rate by that.
      nesterov: whether the update looks one step ahead; needs momentum.
      keep_sign: whether a zero gradient leaves the remembered sign as it is. It is for rows that few batches
        touch (embeddings): else no two of their gradients are ever compared. Only without momentum, since a
        velocity keeps its sign, until float32 ends: for 800 steps without a gradient at 0.9, 120 at 0.5.

    Returns:
      A transformation whose gains start at 1, or at the bound that is nearest.

    Raises:
      ValueError: a concrete number is out of its range, `nesterov` is set without momentum or `keep_sign` with
        it, or a parameter is complex.

    >>> transformation = scale_by_local_gains()
    >>> state = transformation.init(jnp.zeros(3))
    >>> for gradient in (jnp.array([1.0, 1.0, 0.0]), jnp.array([1.0, -1.0, 1.0])):
    ...     updates, state = transformation.update(gradient, state)
    >>> [round(float(update), 4) for update in updates]
    [1.05, -0.95, 1.0]

    Source: Hinton, Neural Networks for Machine Learning (2012), Lecture 6b, "A separate, adaptive learning
    rate for each connection"; with momentum, as that lecture says, Jacobs's comparison with the velocity.
    A zero gradient that is skipped: `torch.optim.SparseAdam`, which updates only what a gradient holds.
    """
    rule = _rule(increase, decrease, min_gain, max_gain)
    if momentum is None:
        if nesterov:
            raise ValueError("nesterov must be False where momentum is None, got True.")
        return _transformation(LocalGainsState, _signed(rule, keep_sign), jnp.int8, rule.bounds)
    if keep_sign:
        raise ValueError(
            "keep_sign must be False where momentum is given: the velocity keeps its sign, got True."
        )
    share = checks.number("momentum", momentum, minimum=0, below=1)
    step = _with_velocity(rule, float32(share), nesterov)
    return _transformation(LocalGainsWithVelocityState, step, jnp.float32, rule.bounds)


class _Rule(NamedTuple):
    """How a gain answers to a gradient."""

    added: Scalar
    kept: Scalar
    bounds: Bounds

    def next_gain(self, gain: Array, agreed: Array, finite: Array) -> Array:
        return adapt(gain, agreed, finite, gain + self.added, gain * self.kept, self.bounds)


def _rule(increase: ScalarLike, decrease: ScalarLike, min_gain: ScalarLike, max_gain: ScalarLike) -> _Rule:
    return _Rule(
        float32(checks.number("increase", increase, minimum=0)),
        float32(checks.number("decrease", decrease, above=0, maximum=1)),
        checked_bounds("min_gain", min_gain, "max_gain", max_gain),
    )


def _signed(rule: _Rule, keep_sign: bool) -> Callable[..., tuple[Array, ...]]:
    """A step of gains that are compared with the last sign.

    An int8 is a fourth of the array that the gradient itself would be, and on a CPU 0.98 of Adam's step, not 1.26.
    """

    def step(gradient: Array, old_gain: Array, last_sign: Array) -> tuple[Array, ...]:
        g, before = in_float32(gradient), lax.convert_element_type(last_sign, jnp.int8)
        finite, sign = lax.is_finite(g), sign_of(g)
        gain = rule.next_gain(in_float32(old_gain), g * in_float32(last_sign), finite)
        kept = lax.select(lax.eq(sign, np.int8(0)), before, sign) if keep_sign else sign
        after = remembered(kept, before, finite, gain)
        return scaled(gradient, gain, lax.lt(after, np.int8(2))), gain, after

    return step


def _with_velocity(rule: _Rule, momentum: Scalar, nesterov: bool) -> Callable[..., tuple[Array, ...]]:
    """A step of gains that are compared with the velocity, which is the update."""

    def step(gradient: Array, old_gain: Array, old_velocity: Array) -> tuple[Array, ...]:
        g, before = in_float32(gradient), in_float32(old_velocity)
        finite = lax.is_finite(g)
        gain = rule.next_gain(in_float32(old_gain), g * lax.sign(before), finite)
        # An infinite velocity would stay infinite.
        moved = lax.clamp(-LARGEST, momentum * before + gain * g, LARGEST)
        velocity = lax.select(finite, moved, before)
        # The absolute value changes nothing, but that this product is not the one above: a CPU would keep that.
        ahead = momentum * velocity + lax.abs(gain) * g if nesterov else velocity
        update = lax.select(finite, ahead, g)
        return lax.convert_element_type(update, gradient.dtype), gain, velocity

    return step


def _transformation(
    state_type: Callable[..., State], step: Callable[..., tuple[Array, ...]], dtype: Any, bounds: Bounds
) -> optax.GradientTransformationExtraArgs:
    """Gains from 1, and beside them zeros of a type, that a step changes leaf by leaf."""

    def stateful(gains: PyTree, compared: PyTree) -> State:
        return state_type(gains, compared, *(jnp.asarray(bound, jnp.float32) for bound in bounds))

    def init(params: PyTree) -> State:
        first = jnp.clip(jnp.float32(1), *bounds)
        return stateful(filled(params, first), filled(params, 0, dtype))

    def update(
        updates: PyTree, state: State, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, State]:
        del params, extra_args
        emitted, gains, compared = map_leaves(step, updates, state[0], state[1])
        return emitted, stateful(gains, compared)

    return optax.GradientTransformationExtraArgs(init, update)


def scale_by_delta_bar_delta(
    *,
    increase: ScalarLike = 0.05,
    decrease: ScalarLike = 0.9,
    average_decay: ScalarLike = 0.7,
    min_gain: ScalarLike = 0.1,
    max_gain: ScalarLike = 10.0,
) -> optax.GradientTransformationExtraArgs:
    """Jacobs's delta-bar-delta: local gains that compare the gradient with an average of those before it.

    gain <- clip(gain + increase, min_gain, max_gain)   where g * average > 0
            clip(gain * decrease, min_gain, max_gain)   where g * average < 0,    update = gain * g
    then average <- average_decay * average + (1 - average_decay) * g, from 0.

    Gains act along the parameters' own axes: a valley that is turned by 45 degrees stays as slow as it was. They
    are for full batches, or large mini-batches: of noisy gradients the signs say little.

    A zero gradient leaves its gain as it is, and the average with its sign, so rows that few batches touch have
    gains too: until float32 ends, for 240 steps without a gradient at 0.7.

    State: two float32 for each parameter; a non-finite gradient is passed on and leaves all of it as it was.

    Args:
      increase: what agreement adds, at least 0; kappa in the paper.
      decrease: what disagreement multiplies by, in (0, 1]; 1 - phi in the paper.
      average_decay: the share of the average kept at each step, in [0, 1); theta in the paper.
      min_gain: the smallest gain, in [1e-30, 1e30].
      max_gain: the largest gain, from `min_gain` to 1e30.

    Returns:
      A transformation whose gains start at 1, or at the bound that is nearest.

    Raises:
      ValueError: a concrete number is out of its range, or a parameter is complex.

    >>> transformation = scale_by_delta_bar_delta()
    >>> state = transformation.init(jnp.zeros(2))
    >>> for gradient in (jnp.array([1.0, 1.0]), jnp.array([1.0, -0.1])):
    ...     updates, state = transformation.update(gradient, state)
    >>> [round(float(update), 4) for update in updates]
    [1.05, -0.09]

    Source: Jacobs 1988, Increased rates of convergence through learning rate adaptation, Neural Networks 1,
    pages 295-307. The paper has no bounds; these are Hinton's, Lecture 6b.
    """
    rule = _rule(increase, decrease, min_gain, max_gain)
    decay = checks.number("average_decay", average_decay, minimum=0, below=1)
    share, rest = float32(decay), float32(1 - decay)

    def step(gradient: Array, old_gain: Array, old_average: Array) -> tuple[Array, ...]:
        g, before = in_float32(gradient), in_float32(old_average)
        finite = lax.is_finite(g)
        gain = rule.next_gain(in_float32(old_gain), g * lax.sign(before), finite)
        average = remembered(share * before + rest * g, before, finite, gain)
        return scaled(gradient, gain, lax.is_finite(average)), gain, average

    return _transformation(DeltaBarDeltaState, step, jnp.float32, rule.bounds)


def local_gains(
    learning_rate: ScalarLike | Schedule,
    *,
    momentum: ScalarLike | None = 0.9,
    nesterov: bool = False,
    increase: ScalarLike = 0.05,
    decrease: ScalarLike = 0.95,
    min_gain: ScalarLike = 0.1,
    max_gain: ScalarLike = 10.0,
    keep_sign: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent with local gains: `scale_by_local_gains`, then a learning rate.

    w <- w - learning_rate * velocity,   velocity <- momentum * velocity + gain * g

    Where curvature lies along the parameters' own axes, gains stand in for a preconditioner. Where it does
    not, they help little: a valley that is turned by 45 degrees stays slow, and a momentum that is tuned to
    the problem (0.96 to 0.99) does better. They are for full batches, or large mini-batches.

    Args:
      learning_rate: at least 0, or a schedule; multiplies every gain. As in Optax, it is outside the
        velocity. With momentum a steady gradient moves a parameter by 1 / (1 - momentum) as much: a rate found
        without momentum is ten times too high with 0.9.
      momentum: the share of the velocity kept at each step, in [0, 1), or None.
      nesterov: whether the update looks one step ahead; needs momentum.
      increase: what agreement of signs adds to a gain, at least 0.
      decrease: what disagreement multiplies it by, in (0, 1].
      min_gain: the smallest gain, in [1e-30, 1e30].
      max_gain: the largest gain, from `min_gain` to 1e30.
      keep_sign: whether a zero gradient leaves the remembered sign as it is, for rows that few batches touch; only
        without momentum. See `scale_by_local_gains`, where its source is.

    Returns:
      An optimizer whose rate `get_learning_rate` reads. A non-finite gradient is passed on.

    Raises:
      ValueError: a concrete number is out of its range, or `nesterov` is set without momentum or `keep_sign`
        with it.

    >>> optimizer = local_gains(0.1, momentum=None)
    >>> params = jnp.array([3.0, -2.0])
    >>> updates, state = optimizer.update(params, optimizer.init(params))
    >>> [round(float(update), 4) for update in updates]
    [-0.3, 0.2]

    Source: Hinton, Neural Networks for Machine Learning (2012), Lecture 6b.
    """
    return optax.chain(
        scale_by_local_gains(
            increase=increase,
            decrease=decrease,
            min_gain=min_gain,
            max_gain=max_gain,
            momentum=momentum,
            nesterov=nesterov,
            keep_sign=keep_sign,
        ),
        scale_by_learning_rate(learning_rate),
    )
