"""Gains: the signs of gradients to a transformation that gives every parameter a rate of its own.

A gain grows while a parameter's gradient keeps its sign and shrinks when the sign changes, within bounds.
Signs say something only where gradients are not mostly noise: full batches, or large mini-batches.

The updates point uphill, as those of Optax's `scale_by_*` do: a negative learning rate comes after them. A
zero gradient leaves its gain unchanged, now and at the next step. A parameter whose gradient is not finite
keeps its gain, sign and velocity, and the gradient is passed on (as NaN where there is a velocity), so that
`optax.apply_if_finite` sees it.
State is float32 whatever the parameters' type is; updates leave with the type they came with.

Every stored array is read again to make the update. So each leaf compiles to one kernel, where an array that
is only stored costs a TPU a second one, and a CPU a copy. A CPU has a kernel for each array that is written;
the state beside a velocity is such that these read no array twice that Adam's do not.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from .. import checks
from ..learning_rate import scale_by_learning_rate
from ..types import Array, ArrayLike, Bool, Float, PyTree, ScalarLike, Schedule

SMALLEST, LARGEST = 2.0**-30, 2.0**30


Bounds: TypeAlias = tuple[float | Array, float | Array]


class Gains(NamedTuple):
    """One float32 for each parameter, and the lowest and highest size that it may have.

    It is `code` of a gain and the sign that the next gradient is compared with; beside a velocity, whose own
    sign that is, the gain alone, which decodes as itself.
    """

    coded: PyTree
    low: Float[Array, ""]
    high: Float[Array, ""]


class LocalGainsState(NamedTuple):
    """State of `scale_by_local_gains`; without momentum, `velocity` and `factors` are None.

    With momentum, each velocity is `marked` with how it agreed with the last gradient, and the gains are those
    before that gradient: what it changes in them, by `factors` (increase, decrease), is made up for when they
    are read (`gains_in_use`).
    """

    gains: Gains
    velocity: PyTree
    factors: tuple[Array, Array] | None


class DeltaBarDeltaState(NamedTuple):
    """State of `scale_by_delta_bar_delta`: the gains and the average of the gradients."""

    gains: Gains
    average: PyTree


class GainStatistics(NamedTuple):
    """What `gain_statistics` returns: one dict over all parameters, and one for each leaf by its path."""

    overall: dict[str, Array]
    leaves: dict[str, dict[str, Array]]


def code(size: Array, sign: Array) -> Array:
    """A size in [2^-30, 2^30] and a sign in one float32: ±size, or size * 2^64 where the sign is zero.

    A sign bit alone tells two signs, and there are three: "zero" and "no last gradient" are neither.
    """
    return jnp.where(sign == 0, size * 2.0**64, jnp.where(sign < 0, -size, size))


def decode(coded: Array) -> tuple[Array, Array]:
    """The size and the sign (-1, 0 or 1) that `code` put into a float32; exactly, by powers of two."""
    size = jnp.abs(coded)
    signless = size > 2.0**32
    return jnp.where(signless, size * 2.0**-64, size), jnp.where(signless, 0.0, jnp.sign(coded))


# What a velocity is marked with: how it agreed with the last gradient, or that this was not finite.
NEITHER, AGREED, DISAGREED, LOST = range(4)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _with_low_bits(value: Array, low_bits: Array, rounding: int) -> Array:
    """`value` with its lowest two bits replaced; as if unchanged to derivatives."""
    bits = jax.lax.bitcast_convert_type(value, jnp.uint32)
    return jax.lax.bitcast_convert_type((bits + rounding) & ~jnp.uint32(3) | low_bits, jnp.float32)


@_with_low_bits.defjvp
def _with_low_bits_jvp(
    rounding: int, primals: tuple[Array, Array], tangents: tuple[Array, Any]
) -> tuple[Array, Array]:
    return _with_low_bits(*primals, rounding), tangents[0]


def marked(value: Array, mark: Array) -> Array:
    """A finite float32, rounded to 22 bits, and one of four marks in the bits that this leaves."""
    return _with_low_bits(value, mark, 2)


def unmarked(value: Array) -> tuple[Array, Array]:
    """The rounded value and the mark that `marked` put into a float32; both exactly."""
    mark = jax.lax.bitcast_convert_type(value, jnp.uint32) & 3
    return _with_low_bits(value, jnp.zeros_like(mark), 0), mark


def adapt(size: Array, agreement: Array, larger: Array, smaller: Array, bounds: Bounds) -> Array:
    """The size after a gradient whose agreement with the last is above, below or equal to zero."""
    changed = jnp.where(agreement > 0, larger, jnp.where(agreement < 0, smaller, size))
    return jnp.clip(changed, *bounds).astype(size.dtype)


def filled(params: PyTree, value: ArrayLike) -> PyTree:
    """`value` in float32 for every parameter, sharded as the parameters are."""

    def fill(leaf: ArrayLike) -> Array:
        if jnp.iscomplexobj(leaf):
            raise ValueError(
                f"params must be real, to have signs, got {jnp.result_type(leaf)} of shape {jnp.shape(leaf)}."
            )
        start = jnp.asarray(value, jnp.float32)
        # Both choices are one: the parameter is read only so that a compiled init is sharded as it is.
        return jnp.where(jnp.isnan(leaf), start, start)

    return jax.tree.map(fill, params)


def checked_bounds(low_name: str, low: ScalarLike, high_name: str, high: ScalarLike) -> Bounds:
    """Both bounds; a traced one is brought into the range that `code` can hold.

    Raises:
      ValueError: a concrete bound is outside [2^-30, 2^30], or `high` is below `low`.
    """
    given = [
        checks.number(name, bound, minimum=SMALLEST, maximum=LARGEST)
        for name, bound in ((low_name, low), (high_name, high))
    ]
    checks.not_below(high_name, given[1], low_name, given[0])
    lowest, highest = (
        jnp.clip(bound, SMALLEST, LARGEST) if checks.is_traced(bound) else bound for bound in given
    )
    return lowest, highest


def gains_of(coded: PyTree, bounds: Bounds) -> Gains:
    """The part of a state that says how large each gain is, and may be."""
    return Gains(coded, *(jnp.asarray(bound, jnp.float32) for bound in bounds))


def scale_by_local_gains(
    *,
    increase: ScalarLike = 0.05,
    decrease: ScalarLike = 0.95,
    min_gain: ScalarLike = 0.1,
    max_gain: ScalarLike = 10.0,
    momentum: ScalarLike | None = None,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Hinton's local gains: a gain for every parameter, larger while its gradient keeps its sign.

    gain <- clip(gain + increase, min_gain, max_gain)   where g * last > 0
            clip(gain * decrease, min_gain, max_gain)   where g * last < 0,    update = gain * g

    `last` is the gradient of the step before. With momentum it is the velocity, and the velocity is what
    leaves: velocity <- momentum * velocity + gain * g, or with Nesterov momentum * velocity + gain * g once
    more.

    The bounds and factors may differ from step to step (`optax.inject_hyperparams`). State: one float32 for
    each parameter without momentum, two with it, of which the velocity has 22 bits. A non-finite gradient is
    passed on, with momentum as NaN, and leaves all of the state as it was.

    Args:
      increase: what agreement adds, at least 0.
      decrease: what disagreement multiplies by, in (0, 1].
      min_gain: the smallest gain, in [2^-30, 2^30]; Hinton: 0.1 or 0.01.
      max_gain: the largest gain, from `min_gain` to 2^30; Hinton: 10 or 100.
      momentum: the share of the velocity kept at each step, in [0, 1), or None.
      nesterov: whether the update looks one step ahead; needs momentum.

    Returns:
      A transformation whose gains start at 1, or at the bound that is nearest.

    Raises:
      ValueError: a concrete number is out of its range, `nesterov` is set without momentum, or a parameter is
        complex.

    >>> transformation = scale_by_local_gains()
    >>> state = transformation.init(jnp.zeros(3))
    >>> for gradient in (jnp.array([1.0, 1.0, 0.0]), jnp.array([1.0, -1.0, 1.0])):
    ...     updates, state = transformation.update(gradient, state)
    >>> [round(float(update), 4) for update in updates]
    [1.05, -0.95, 1.0]

    Source: Hinton, Neural Networks for Machine Learning (2012), Lecture 6b, "A separate, adaptive learning
    rate for each connection"; with momentum, as that lecture says, Jacobs's comparison with the velocity.
    """
    added = checks.number("increase", increase, minimum=0)
    kept = checks.number("decrease", decrease, above=0, maximum=1)
    bounds = checked_bounds("min_gain", min_gain, "max_gain", max_gain)
    if momentum is None:
        if nesterov:
            raise ValueError("nesterov must be False where momentum is None, got True.")
        return _local_gains(added, kept, bounds)
    return _local_gains_with_velocity(
        added, kept, bounds, checks.number("momentum", momentum, minimum=0, below=1), nesterov
    )


def _with_sign(added: ScalarLike, kept: ScalarLike, bounds: Bounds) -> Callable[[Array, Array, Array], Array]:
    """What makes, of a coded gain and the sign that it was coded with, the next gain coded with the next."""

    def remember(gradient: Array, coded: Array, signed: Array) -> Array:
        g = gradient.astype(jnp.float32)
        gain, last = decode(coded)
        after = adapt(gain, g * last, gain + added, gain * kept, bounds)
        return jnp.where(jnp.isfinite(g), code(after, signed.astype(jnp.float32)), coded)

    return remember


def _scaled(gradient: Array, coded: Array) -> Array:
    return (decode(coded)[0] * gradient).astype(gradient.dtype)


def _local_gains(
    added: ScalarLike, kept: ScalarLike, bounds: Bounds
) -> optax.GradientTransformationExtraArgs:
    """Gains that carry the sign of the last gradient with them."""
    remember = _with_sign(added, kept, bounds)

    def init(params: PyTree) -> LocalGainsState:
        first = code(jnp.clip(1.0, *bounds), jnp.float32(0))
        return LocalGainsState(gains_of(filled(params, first), bounds), None, None)

    def update(
        updates: PyTree, state: LocalGainsState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, LocalGainsState]:
        del params, extra_args
        coded = jax.tree.map(remember, updates, state.gains.coded, updates)
        return jax.tree.map(_scaled, updates, coded), LocalGainsState(gains_of(coded, bounds), None, None)

    return optax.GradientTransformationExtraArgs(init, update)


def _local_gains_with_velocity(
    added: ScalarLike, kept: ScalarLike, bounds: Bounds, momentum: ScalarLike, nesterov: bool
) -> optax.GradientTransformationExtraArgs:
    """Gains beside a velocity, whose sign is the one that gradients are compared with.

    Each kernel of a CPU reads what another has written, and never what another has written over: the gains of
    the last step from their gains before and the marked velocity, the next velocity from these, the gradient
    and the velocity, the update from the next velocity alone. The last operation of each reads two arrays; else
    the compiler would repeat it in the kernels that read its result, and keep copies of what that reads.
    """

    def settled(gain: Array, mark: Array) -> Array:
        return _settled(gain, mark, (added, kept), bounds)

    def init(params: PyTree) -> LocalGainsState:
        first = jnp.clip(1.0, *bounds)
        return stateful(filled(params, first), filled(params, 0.0))

    def stateful(gains: PyTree, velocity: PyTree) -> LocalGainsState:
        factors = jnp.asarray(added, jnp.float32), jnp.asarray(kept, jnp.float32)
        return LocalGainsState(gains_of(gains, bounds), velocity, factors)

    def accumulate(gradient: Array, gain: Array, velocity: Array) -> Array:
        before, _ = unmarked(velocity)
        product = gradient.astype(jnp.float32) * jnp.sign(before)
        mark = jnp.where(product > 0, AGREED, jnp.where(product < 0, DISAGREED, NEITHER)).astype(jnp.uint32)
        moved = jnp.asarray(momentum * before + settled(gain, mark) * gradient, velocity.dtype)
        # Between this and the largest float32, rounding would make an infinity.
        finite = jnp.abs(moved) < 3.4e38
        return jnp.where(finite, marked(moved, mark), marked(before, jnp.full_like(mark, LOST)))

    def emit(gradient: Array, gain: Array, velocity: Array) -> Array:
        moved, mark = unmarked(velocity)
        ahead = momentum * moved + settled(gain, mark) * gradient if nesterov else moved
        return jnp.where(mark == LOST, jnp.nan, ahead).astype(gradient.dtype)

    def update(
        updates: PyTree, state: LocalGainsState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, LocalGainsState]:
        del params, extra_args
        gains = gains_in_use(state).coded
        velocity = jax.tree.map(accumulate, updates, gains, state.velocity)
        return jax.tree.map(emit, updates, gains, velocity), stateful(gains, velocity)

    return optax.GradientTransformationExtraArgs(init, update)


def _settled(gain: Array, mark: Array, factors: tuple[ScalarLike, ScalarLike], bounds: Bounds) -> Array:
    """The gain after a gradient that agreed with its velocity as the mark says."""
    agreement = jnp.where(mark == AGREED, 1, jnp.where(mark == DISAGREED, -1, 0))
    after = adapt(gain, agreement, gain + factors[0], gain * factors[1], bounds)
    return jnp.where(mark == LOST, gain, after)


def gains_in_use(state: LocalGainsState) -> Gains:
    """The gains that the last update was made with."""
    if state.factors is None:
        return state.gains
    factors, bounds = state.factors, (state.gains.low, state.gains.high)

    def settle(gain: Array, velocity: Array) -> Array:
        return _settled(gain, unmarked(velocity)[1], factors, bounds)

    return state.gains._replace(coded=jax.tree.map(settle, state.gains.coded, state.velocity))


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

    State: two float32 for each parameter; a non-finite gradient is passed on and leaves all of it as it was.

    Args:
      increase: what agreement adds, at least 0; kappa in the paper.
      decrease: what disagreement multiplies by, in (0, 1]; 1 - phi in the paper.
      average_decay: the share of the average kept at each step, in [0, 1); theta in the paper.
      min_gain: the smallest gain, in [2^-30, 2^30].
      max_gain: the largest gain, from `min_gain` to 2^30.

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
    added = checks.number("increase", increase, minimum=0)
    kept = checks.number("decrease", decrease, above=0, maximum=1)
    decay = checks.number("average_decay", average_decay, minimum=0, below=1)
    bounds = checked_bounds("min_gain", min_gain, "max_gain", max_gain)

    remember = _with_sign(added, kept, bounds)

    def init(params: PyTree) -> DeltaBarDeltaState:
        first = code(jnp.clip(1.0, *bounds), jnp.float32(0))
        return DeltaBarDeltaState(gains_of(filled(params, first), bounds), filled(params, 0.0))

    def follow(gradient: Array, average: Array) -> Array:
        g = gradient.astype(jnp.float32)
        followed = decay * average + (1 - decay) * g
        return jnp.where(jnp.isfinite(g), followed, average).astype(average.dtype)

    def update(
        updates: PyTree, state: DeltaBarDeltaState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, DeltaBarDeltaState]:
        del params, extra_args
        # The sign of the average before is with the gain: so its memory may be written before the gain is.
        average = jax.tree.map(follow, updates, state.average)
        coded = jax.tree.map(remember, updates, state.gains.coded, average)
        return jax.tree.map(_scaled, updates, coded), DeltaBarDeltaState(gains_of(coded, bounds), average)

    return optax.GradientTransformationExtraArgs(init, update)


def local_gains(
    learning_rate: ScalarLike | Schedule,
    *,
    momentum: ScalarLike | None = 0.9,
    nesterov: bool = False,
    increase: ScalarLike = 0.05,
    decrease: ScalarLike = 0.95,
    min_gain: ScalarLike = 0.1,
    max_gain: ScalarLike = 10.0,
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent with local gains: `scale_by_local_gains`, then a learning rate.

    w <- w - learning_rate * velocity,   velocity <- momentum * velocity + gain * g

    Where curvature lies along the parameters' own axes, gains stand in for a preconditioner; where it does
    not, they help less, and a momentum that is tuned to the problem (0.96 to 0.99) does as well or better.

    Args:
      learning_rate: at least 0, or a schedule; multiplies every gain. As in Optax, it is outside the
        velocity.
      momentum: the share of the velocity kept at each step, in [0, 1), or None.
      nesterov: whether the update looks one step ahead; needs momentum.
      increase: what agreement of signs adds to a gain, at least 0.
      decrease: what disagreement multiplies it by, in (0, 1].
      min_gain: the smallest gain, in [2^-30, 2^30].
      max_gain: the largest gain, from `min_gain` to 2^30.

    Returns:
      An optimizer whose rate `get_learning_rate` reads. A non-finite gradient is passed on.

    Raises:
      ValueError: a concrete number is out of its range, or `nesterov` is set without momentum.

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
        ),
        scale_by_learning_rate(learning_rate),
    )


def gain_statistics(opt_state: PyTree) -> GainStatistics:
    """How large the gains (or Rprop's steps) in an optimizer's state are, to be logged.

    Args:
      opt_state: any state that holds gains: of a chain, a partition, a wrapper. It may be traced.

    Returns:
      `overall`, a dict of float32 scalars over all parameters, and `leaves`, such a dict for each leaf under
      its
      path: "min", "lower_quartile", "median", "upper_quartile", "max", and the shares "at_min" and "at_max"
        of parameters whose gain is at a bound. The quartiles sort: log now and then, not at every step.

    Raises:
      ValueError: the state holds no gains, or two gains for one leaf.

    >>> transformation = scale_by_local_gains(max_gain=1.05)
    >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    >>> state = transformation.init(params)
    >>> for _ in range(2):
    ...     _, state = transformation.update(params, state)
    >>> statistics = gain_statistics(state)
    >>> round(float(statistics.overall["median"]), 4), float(statistics.leaves["bias"]["at_max"])
    (1.05, 1.0)
    """
    parts = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, Gains | LocalGainsState))
    sizes: dict[str, Array] = {}
    at_bounds: dict[str, Array] = {}
    parts = [gains_in_use(part) if isinstance(part, LocalGainsState) else part for part in parts]
    for gains in (part for part in parts if isinstance(part, Gains)):
        for path, coded in jax.tree.leaves_with_path(gains.coded):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            if name in sizes:
                raise ValueError(f"opt_state must hold one gain for each leaf, got two for {name!r}.")
            sizes[name] = decode(jnp.ravel(coded))[0]
            at_bounds[name] = sizes[name][:, None] == jnp.stack([gains.low, gains.high])
    if not sizes:
        raise ValueError(
            "opt_state must hold the gains of scale_by_local_gains, scale_by_delta_bar_delta"
            " or scale_by_rprop, got a state without gains."
        )
    return GainStatistics(
        _summary(jnp.concatenate([*sizes.values()]), jnp.concatenate([*at_bounds.values()])),
        {name: _summary(sizes[name], at_bounds[name]) for name in sizes if sizes[name].size},
    )


def _summary(sizes: Float[Array, "n"], at_bounds: Bool[Array, "n 2"]) -> dict[str, Array]:
    quartiles = jnp.quantile(sizes, jnp.linspace(0, 1, 5))
    names = ("min", "lower_quartile", "median", "upper_quartile", "max")
    shares = jnp.mean(at_bounds, axis=0, dtype=jnp.float32)
    return dict(zip(names, quartiles, strict=True)) | {"at_min": shares[0], "at_max": shares[1]}
