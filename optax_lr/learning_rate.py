"""A learning rate that can be read and set: a rate or schedule to a transformation, its state to a rate.

In a training loop:

    tx = optax.chain(optax.scale_by_adam(), scale_by_learning_rate(schedule))
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
from .types import Array, Float, Int, ScalarLike, Schedule

_NO_OVERRIDE = -1.0


class ScaleByLearningRateState(NamedTuple):
    """The state of `scale_by_learning_rate`.

    Attributes:
      count: updates so far; int32, stays at 2^31 - 1.
      learning_rate: the rate that the last update used; before the first, or after a set, that of the next.
      override: the rate in force in place of the given one; -1 for none.
    """

    count: Int[Array, "..."]  # type: ignore[assignment]  # a tuple has a method of that name
    learning_rate: Float[Array, "..."]
    override: Float[Array, "..."]


def scale_by_learning_rate(
    learning_rate: ScalarLike | Schedule, *, flip_sign: bool = True
) -> optax.GradientTransformationExtraArgs:
    """Scale updates by minus a learning rate that stands in the state, to be read and to be set.

    updates = -rate * updates, where rate is the override if one is set, else `learning_rate`, or
    `learning_rate(count)` if that is a schedule. The product is taken in float32 or the updates' own
    precision, whichever is finer, and leaves with the dtype it came with. It takes the place of
    `optax.scale_by_learning_rate` at the end of a chain.

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
    schedule = learning_rate if callable(learning_rate) else _constant(learning_rate)
    sign = -1 if flip_sign else 1

    def init(params: optax.Params) -> ScaleByLearningRateState:
        del params
        count = jnp.zeros((), jnp.int32)
        return ScaleByLearningRateState(
            count, jnp.asarray(schedule(count), float), jnp.asarray(_NO_OVERRIDE, float)
        )

    def update(
        updates: optax.Updates,
        state: ScaleByLearningRateState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByLearningRateState]:
        del params, extra_args
        given = jnp.asarray(schedule(state.count), float)
        rate = jnp.where(state.override >= 0, state.override, given)
        scaled = jax.tree.map(lambda update: (sign * rate * update).astype(update.dtype), updates)
        return scaled, ScaleByLearningRateState(optax.safe_increment(state.count), rate, state.override)

    return optax.GradientTransformationExtraArgs(init, update)


def get_learning_rate(opt_state: optax.OptState) -> Array | dict[str, Array]:
    """The learning rate in an optimizer's state: the one that the last update used, or the next one will.

    It is found inside any nest of wrappers: `chain`, `named_chain`, `masked`, `partition`, `MultiSteps`,
    `apply_if_finite` and this package's own. Where `optax.inject_hyperparams` injects a `learning_rate`,
    that is the rate, and those inside it are not looked at.

    Args:
      opt_state: the state of an optimizer with `scale_by_learning_rate` or an injected `learning_rate`.

    Returns:
      The rate, a scalar (an array where the state itself is stacked); where there are several, a dict from
      the path of each in the state to the rate.

    Raises:
      ValueError: the state holds no visible rate.

    >>> schedule = optax.linear_schedule(1.0, 0.0, 4)
    >>> parts = {"a": scale_by_learning_rate(schedule), "b": scale_by_learning_rate(0.5)}
    >>> tx = optax.partition(parts, ["a", "b"])
    >>> state = tx.init([jnp.ones(2), jnp.ones(2)])
    >>> {path: float(rate) for path, rate in get_learning_rate(state).items()}
    {'inner_states/a/inner_state': 1.0, 'inner_states/b/inner_state': 0.5}
    """
    rates = {path: _rate_of(holder) for path, holder in _holders(opt_state).items()}
    return next(iter(rates.values())) if len(rates) == 1 else rates


def set_learning_rate(
    opt_state: optax.OptState, value: ScalarLike | Mapping[str, ScalarLike]
) -> optax.OptState:
    """A new optimizer state with another rate in force from the next update on. Nothing is compiled again.

    Shape, dtype, sharding and committedness of the state stay as they are, so a compiled step takes the new
    state as it took the old one. The value goes before a schedule until `clear_learning_rate`.

    Args:
      opt_state: the state of an optimizer, see `get_learning_rate`.
      value: a finite number of at least 0, for every rate in the state; or a dict from paths, as
        `get_learning_rate` gives them, to such numbers, for some of them. A traced value that is negative
        or NaN clears the override.

    Returns:
      The new state; `opt_state` is unchanged.

    Raises:
      ValueError: the state holds no visible rate or none at a path that is named; a concrete value is
        negative or not finite; the rate is a schedule that `optax.inject_hyperparams` follows whatever its
        state says.

    >>> tx = optax.chain(optax.scale_by_adam(), scale_by_learning_rate(0.5))
    >>> state = set_learning_rate(tx.init(jnp.ones(2)), 0.25)
    >>> float(get_learning_rate(state))
    0.25
    """
    paths = list(_holders(opt_state))
    named = value if isinstance(value, Mapping) else dict.fromkeys(paths, value)
    for path in named:
        if path not in paths:
            raise ValueError(
                f"value has {path!r}, where opt_state has no learning rate: {checks.close_match(path, paths)}"
            )
    rates = {path: checks.number("value", one, minimum=0) for path, one in named.items()}
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
    _holders(opt_state)

    def clear(path: str, holder: Any) -> Any:
        if isinstance(holder, ScaleByLearningRateState):
            return holder._replace(override=filled(holder.override, _NO_OVERRIDE))
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
            return own._replace(learning_rate=new.learning_rate, override=new.override)
        if isinstance(own, optax.InjectStatefulHyperparamsState):
            return own._replace(hyperparams=new.hyperparams)
        return own

    return jax.tree.map(take, opt_state, other, is_leaf=lambda node: isinstance(node, held))


def filled(old: Any, value: ScalarLike) -> Any:
    """`old` filled with `value`: shape, dtype, sharding and committedness stay, and nothing is compiled."""

    def fill(leaf: Any) -> Any:
        if checks.is_traced(leaf) or checks.is_traced(value):
            return jnp.full_like(leaf, value)
        filled = np.full(np.shape(leaf), value, leaf.dtype)
        if not isinstance(leaf, jax.Array):
            return filled
        if not leaf.committed:
            return jax.device_put(filled)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: filled[index])

    return jax.tree.map(fill, old)


def _constant(learning_rate: ScalarLike) -> Schedule:
    rate = checks.number("learning_rate", learning_rate, minimum=0)
    return lambda step: jnp.asarray(rate, float)


def _is_holder(node: Any) -> bool:
    injected = isinstance(node, optax.InjectStatefulHyperparamsState) and "learning_rate" in node.hyperparams
    return injected or isinstance(node, ScaleByLearningRateState)


def _replace(opt_state: optax.OptState, change: Callable[[str, Any], Any]) -> optax.OptState:
    """The state with every node that holds a rate replaced by `change(path, node)`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, node: change(_path(path), node) if _is_holder(node) else node,
        opt_state,
        is_leaf=_is_holder,
    )


def _holders(opt_state: optax.OptState) -> dict[str, Any]:
    nodes = jax.tree_util.tree_leaves_with_path(opt_state, is_leaf=_is_holder)
    holders = {_path(path): node for path, node in nodes if _is_holder(node)}
    if not holders:
        raise ValueError(
            "opt_state holds no visible learning rate: put optax_lr.scale_by_learning_rate(rate) in place of "
            "optax.scale_by_learning_rate(rate); in place of optax.adam(rate), "
            "optax.chain(optax.scale_by_adam(), optax_lr.scale_by_learning_rate(rate))."
        )
    return holders


def _path(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _rate_of(holder: Any) -> Array:
    if isinstance(holder, ScaleByLearningRateState):
        return jnp.asarray(holder.learning_rate)
    return jnp.asarray(holder.hyperparams["learning_rate"])


def _put(holder: Any, rate: ScalarLike, path: str) -> Any:
    if isinstance(holder, ScaleByLearningRateState):
        return holder._replace(
            learning_rate=filled(holder.learning_rate, rate), override=filled(holder.override, rate)
        )
    if "learning_rate" in holder.hyperparams_states:
        raise ValueError(
            f"The learning rate at {path!r} is a schedule inside optax.inject_hyperparams, which ignores "
            "a set value: use optax_lr.scale_by_learning_rate(schedule) in place of the injection."
        )
    rates = {"learning_rate": filled(holder.hyperparams["learning_rate"], rate)}
    return holder._replace(hyperparams={**holder.hyperparams, **rates})
