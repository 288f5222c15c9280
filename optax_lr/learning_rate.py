"""A learning rate that is in the state: it can be read and set.

In a training loop:

    tx = visible(optax.adam)(schedule)        # or optax.chain(..., scale_by_learning_rate(schedule))
    get_learning_rate(state)                  # the rate of the last update, for the log
    state = set_learning_rate(state, 1e-4)    # from here on; nothing is compiled again
    state = clear_learning_rate(state)        # back to the schedule
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import checks
from .types import Array, ArrayLike, Bool, Float, Int, ScalarLike, Schedule

_SET = -1.0


class ScaleByLearningRateState(NamedTuple):
    """The state of `scale_by_learning_rate`.

    `optax.tree.set(state, learning_rate=0.1)`, or any other way to change the field, puts that rate in force, as
    `set_learning_rate` does. (The very number that is there changes nothing: only `set_learning_rate` holds it.)

    Attributes:
      count: updates so far; int32, stays at 2^31 - 1.
      learning_rate: the rate that the last update used; before the first, or after a set, that of the next.
      written: the rate that the last update took from the number or schedule; -1 after a set. A `learning_rate`
        that differs from it was set, and stays in force until `clear_learning_rate`.
    """

    count: Int[Array, "..."]  # type: ignore[assignment]  # a tuple has a method of that name
    learning_rate: Float[Array, "..."]
    written: Float[Array, "..."]


def scale_by_learning_rate(
    learning_rate: ScalarLike | Schedule, *, flip_sign: bool = True
) -> optax.GradientTransformationExtraArgs:
    """Scale updates by minus a learning rate that is in the state, to be read and to be set.

    updates = -rate * updates, where rate is the one that was set, if any, else `learning_rate`, or
    `learning_rate(count)` if that is a schedule. The count is that of this transformation's updates, from init on.
    It replaces `optax.scale_by_learning_rate` at the end of a chain. For a whole optimizer such as `optax.adam` see
    `visible`.

    The product is taken in float32, or the updates' own precision if that is finer. It has the updates' dtype.
    A non-finite update stays where it is, and reaches neither the state nor another parameter. A schedule's
    non-finite value is passed on to every update.

    Args:
      learning_rate: a finite number of at least 0, or a schedule: a function from the count of updates
        (int32, from 0) to a scalar.
      flip_sign: whether to multiply by minus the rate, for descent; as in Optax.

    Returns:
      A transformation whose state is a `ScaleByLearningRateState`.

    Raises:
      ValueError: a concrete `learning_rate` is negative, not finite or not a scalar.

    >>> tx = optax.chain(optax.trace(0.9), scale_by_learning_rate(0.5))
    >>> params = {"w": jnp.ones(2)}
    >>> state = tx.init(params)
    >>> updates, state = tx.update({"w": jnp.ones(2)}, state)
    >>> updates["w"].tolist(), float(get_learning_rate(state))
    ([-0.5, -0.5], 0.5)

    Source: `optax.scale_by_learning_rate`, of which it keeps name, sign and place.
    """
    schedule = as_schedule(learning_rate)
    sign = -1 if flip_sign else 1

    def init(params: optax.Params) -> ScaleByLearningRateState:
        del params
        return first_rate(schedule)

    def update(
        updates: optax.Updates,
        state: ScaleByLearningRateState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByLearningRateState]:
        del params, extra_args
        after = next_rate(schedule, state)
        factor = sign * after.learning_rate
        return jax.tree.map(lambda update: times(factor, update), updates), after

    return optax.GradientTransformationExtraArgs(init, update)


def as_schedule(learning_rate: ScalarLike | Schedule) -> Schedule:
    """A schedule as it is; a number, checked, as a constant one."""
    if callable(learning_rate):
        return learning_rate
    rate = checks.number("learning_rate", learning_rate, minimum=0)
    return lambda step: jnp.asarray(rate, float)


def first_rate(schedule: Schedule) -> ScaleByLearningRateState:
    """The state before the first update."""
    count = jnp.zeros((), jnp.int32)
    rate = jnp.asarray(checks.value_at("learning_rate", schedule, count), float)
    return ScaleByLearningRateState(count, rate, jnp.array(rate))  # two buffers, so that both can be donated


def next_rate(schedule: Schedule, state: ScaleByLearningRateState) -> ScaleByLearningRateState:
    """The state after one more update, which uses the `learning_rate` in it."""
    given = jnp.asarray(checks.value_at("learning_rate", schedule, state.count), float)
    set_by_hand = is_set(state)
    return ScaleByLearningRateState(
        optax.safe_increment(state.count),
        jnp.where(set_by_hand, jnp.asarray(state.learning_rate, given.dtype), given),
        jnp.where(set_by_hand, jnp.asarray(_SET, given.dtype), given),
    )


def is_set(state: ScaleByLearningRateState) -> Bool[Array, "..."]:
    """Whether a rate that was set is in force, in place of the number or schedule.

    The margin is rounding: a compiler may compute the rate twice, once for each field.
    """
    rate, written = jnp.asarray(state.learning_rate, float), jnp.asarray(state.written, float)
    same = (rate == written) | (jnp.isnan(rate) & jnp.isnan(written))
    return ~(same | (jnp.abs(rate - written) <= 1e-6 * jnp.abs(written)))


def times(factor: Array, update: Any) -> Any:
    """The product in float32 or finer, of the update's own dtype; what has no derivative (float0) passes."""
    dtype = jnp.result_type(update)
    if dtype == jax.dtypes.float0:
        return update
    with jax.numpy_dtype_promotion("standard"):
        return (factor * update).astype(dtype)


def get_learning_rate(opt_state: optax.OptState) -> Array:
    """The learning rate in an optimizer's state: the one that the last update used, or the next one will.

    It is found inside any nest of wrappers: `chain`, `named_chain`, `masked`, `partition`, `MultiSteps`,
    `apply_if_finite` and this package's own. If `optax.inject_hyperparams` injects a `learning_rate`, that is the
    rate, and those inside it are not looked at.

    It is the rate alone, without multipliers of labels or the scale of a plateau: see `learning_rates_in_force`.

    Args:
      opt_state: the state of an optimizer with `visible`, `scale_by_learning_rate` or an injected `learning_rate`.

    Returns:
      The rate, a scalar; with the leading axes of the state if that is stacked (`vmap`, `pmap`).

    Raises:
      ValueError: the state holds no visible rate, or several: see `get_learning_rates`.

    >>> state = scale_by_learning_rate(0.5).init(jnp.ones(2))
    >>> float(get_learning_rate(state))
    0.5
    """
    rates = get_learning_rates(opt_state)
    if len(rates) > 1:
        raise ValueError(
            f"opt_state holds {len(rates)} learning rates, at {checks.listed(rates)}: use get_learning_rates, or "
            "learning_rates_in_force for one number for each label."
        )
    return next(iter(rates.values()))


def get_learning_rates(opt_state: optax.OptState) -> dict[str, Array]:
    """Every learning rate in an optimizer's state, by its path in the state; see `get_learning_rate`.

    Args:
      opt_state: as in `get_learning_rate`.

    Returns:
      A dict from the path of each rate to the rate. `set_learning_rate` takes it.

    Raises:
      ValueError: the state holds no visible rate.

    >>> schedule = optax.linear_schedule(1.0, 0.0, 4)
    >>> parts = {"a": scale_by_learning_rate(schedule), "b": scale_by_learning_rate(0.5)}
    >>> tx = optax.partition(parts, ["a", "b"])
    >>> state = tx.init([jnp.ones(2), jnp.ones(2)])
    >>> {path: float(rate) for path, rate in get_learning_rates(state).items()}
    {'inner_states/a/inner_state': 1.0, 'inner_states/b/inner_state': 0.5}
    """
    return {path: _rate_of(holder) for path, holder in _holders(opt_state).items()}


def set_learning_rate(
    opt_state: optax.OptState, value: ArrayLike | Mapping[str, ArrayLike]
) -> optax.OptState:
    """A new optimizer state with another rate in force from the next update on. Nothing is compiled again.

    Shape, dtype, sharding and committedness of the state stay as they are, so a compiled step takes the new
    state as it took the old one. The value replaces a schedule until `clear_learning_rate`.

    Args:
      opt_state: the state of an optimizer, see `get_learning_rate`.
      value: a finite number of at least 0 for every rate in the state; if the state is stacked, also an array of
        the rate's shape; or a dict from paths, as `get_learning_rates` gives them, to such values for some rates.
        A traced value that is negative or NaN clears a set rate.

    Returns:
      The new state; `opt_state` is unchanged.

    Raises:
      ValueError: the state holds no visible rate or none at a path that is named; a concrete value is
        negative, not finite or of another shape; the rate is a schedule that `optax.inject_hyperparams` follows
        whatever its state says; `opt_state` is a module of Flax, which `optax_lr.nnx` changes in place.

    >>> tx = optax.chain(optax.scale_by_adam(), scale_by_learning_rate(0.5))
    >>> state = set_learning_rate(tx.init(jnp.ones(2)), 0.25)
    >>> float(get_learning_rate(state))
    0.25
    """
    _refuse_module(opt_state, "set_learning_rate")
    holders = _holders(opt_state)
    named = value if isinstance(value, Mapping) else dict.fromkeys(holders, value)
    for path in named:
        if path not in holders:
            raise ValueError(
                f"value has {path!r}, where opt_state has no learning rate: {checks.close_match(path, holders)}"
            )
    rates = {path: _checked(one, jnp.shape(_rate_of(holders[path]))) for path, one in named.items()}
    return _replace(
        opt_state, lambda path, holder: _put(holder, rates[path], path) if path in rates else holder
    )


def clear_learning_rate(opt_state: optax.OptState) -> optax.OptState:
    """A new optimizer state in which no set rate is in force: back to the number or schedule that was given.

    `get_learning_rate` shows the returned rate once an update has used it: the state does not hold the
    schedule.

    Args:
      opt_state: the state of an optimizer, see `get_learning_rate`.

    Returns:
      The new state; `opt_state` is unchanged.

    Raises:
      ValueError: the state holds no visible rate, or one that `optax.inject_hyperparams` holds as a number,
        which is the only place where that number stands.

    >>> tx = scale_by_learning_rate(0.5)
    >>> state = clear_learning_rate(set_learning_rate(tx.init(jnp.ones(2)), 0.25))
    >>> updates, state = tx.update(jnp.ones(2), state)
    >>> float(get_learning_rate(state))
    0.5
    """
    _refuse_module(opt_state, "clear_learning_rate")
    _holders(opt_state)

    def clear(path: str, holder: Any) -> Any:
        if isinstance(holder, ScaleByLearningRateState):
            return holder._replace(written=filled(holder.written, holder.learning_rate))
        if "learning_rate" in holder.hyperparams_states:
            return holder
        raise ValueError(
            f"The learning rate at {path!r} is a number that optax.inject_hyperparams holds, with nothing "
            "to go back to: use set_learning_rate, or optax_lr.scale_by_learning_rate in its place."
        )

    return _replace(opt_state, clear)


def with_rates_of(opt_state: optax.OptState, other: optax.OptState) -> optax.OptState:
    """`opt_state` with the visible rates, and all that `optax.inject_hyperparams` holds, of another state.

    No set rate is in force afterwards unless one is in `other`. Both states have one structure.
    """
    held = (ScaleByLearningRateState, optax.InjectStatefulHyperparamsState)

    def take(own: Any, new: Any) -> Any:
        if isinstance(own, ScaleByLearningRateState):
            return own._replace(learning_rate=new.learning_rate, written=new.written)
        if isinstance(own, optax.InjectStatefulHyperparamsState):
            return own._replace(hyperparams=new.hyperparams)
        return own

    return jax.tree.map(take, opt_state, other, is_leaf=lambda node: isinstance(node, held))


def filled(old: Any, value: ArrayLike) -> Any:
    """`old` filled with `value`: shape, dtype, sharding and committedness stay, and nothing is compiled."""

    def fill(leaf: Any) -> Any:
        if checks.is_traced(leaf) or checks.is_traced(value):
            if np.ndim(value) == 0:
                return jnp.full_like(leaf, value)  # of the leaf's sharding, in explicit mode too
            return jnp.broadcast_to(value, jnp.shape(leaf)).astype(leaf.dtype)
        filled = np.array(np.broadcast_to(np.asarray(value), np.shape(leaf)), jnp.result_type(leaf))
        if not isinstance(leaf, jax.Array):
            return filled
        if not leaf.committed:
            return jax.device_put(filled)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: filled[index])

    return jax.tree.map(fill, old)


def _checked(value: Any, shape: tuple[int, ...]) -> Any:
    """A rate to set: a number, or one for each lane of a stacked state."""
    if isinstance(value, str) or np.ndim(value) == 0:
        return checks.number("value", value, minimum=0)
    if np.shape(value) != shape:
        raise ValueError(
            f"value must be a number, or an array of the learning rate's shape {shape}, got the shape "
            f"{np.shape(value)}."
        )
    known = value if checks.is_traced(value) else np.asarray(value, float)
    if not checks.is_traced(value) and not (np.isfinite(known).all() and (known >= 0).all()):
        raise ValueError(f"value must be finite numbers of at least 0, got {known.tolist()!r}.")
    return known


def _refuse_module(opt_state: Any, name: str) -> None:
    """A new state of a module of Flax would be lost: it is the module that a training step reads."""
    if any(part.__module__.split(".")[:2] == ["flax", "nnx"] for part in type(opt_state).__mro__):
        raise ValueError(
            f"opt_state is an nnx module, a {type(opt_state).__name__}, which {name} cannot change in place: use "
            f"optax_lr.nnx.{name}(optimizer, ...)."
        )


def is_holder(node: Any) -> bool:
    """Whether a part of a state holds a learning rate that is visible."""
    injected = isinstance(node, optax.InjectStatefulHyperparamsState) and "learning_rate" in node.hyperparams
    return injected or isinstance(node, ScaleByLearningRateState)


def _replace(opt_state: optax.OptState, change: Callable[[str, Any], Any]) -> optax.OptState:
    """The state with every node that holds a rate replaced by `change(path, node)`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, node: change(_path(path), node) if is_holder(node) else node,
        opt_state,
        is_leaf=is_holder,
    )


def _holders(opt_state: optax.OptState) -> dict[str, Any]:
    nodes = jax.tree_util.tree_leaves_with_path(opt_state, is_leaf=is_holder)
    holders = {_path(path): node for path, node in nodes if is_holder(node)}
    if not holders:
        raise ValueError(
            "opt_state holds no visible learning rate: write optax_lr.visible(optax.adam)(rate) in place of "
            "optax.adam(rate), and optax_lr.scale_by_learning_rate(rate) in place of "
            "optax.scale_by_learning_rate(rate)."
        )
    return holders


def _path(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _rate_of(holder: Any) -> Array:
    if isinstance(holder, ScaleByLearningRateState):
        return jnp.asarray(holder.learning_rate)
    return jnp.asarray(holder.hyperparams["learning_rate"])


def _put(holder: Any, rate: ArrayLike, path: str) -> Any:
    if isinstance(holder, ScaleByLearningRateState):
        if not checks.is_traced(rate):
            return holder._replace(
                learning_rate=filled(holder.learning_rate, rate), written=filled(holder.written, _SET)
            )
        holds = jnp.asarray(rate) >= 0
        new = jnp.where(holds, rate, holder.learning_rate)
        return holder._replace(
            learning_rate=filled(holder.learning_rate, new),
            written=filled(holder.written, jnp.where(holds, _SET, new)),
        )
    if "learning_rate" in holder.hyperparams_states:
        raise ValueError(
            f"The learning rate at {path!r} is a schedule inside optax.inject_hyperparams, which ignores "
            "a set value: use optax_lr.scale_by_learning_rate(schedule) in place of the injection."
        )
    rates = {"learning_rate": filled(holder.hyperparams["learning_rate"], rate)}
    return holder._replace(hyperparams={**holder.hyperparams, **rates})
