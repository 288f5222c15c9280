"""The numbers that code says, rates and multipliers: those of the next update, and of the last."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..layers.scaling import ScaleByLabelState
from ..learning_rate import ScaleByLearningRateState, get_learning_rates, is_holder
from .leaves import like, names, shown

_RECORDERS = (ScaleByLearningRateState, ScaleByLabelState)
Place = tuple[str, ...]


def with_rates(
    state: optax.OptState, paths: list[str], optimizer: optax.GradientTransformation, params: optax.Params
) -> optax.OptState:
    """The state, showing at some paths the rate of the next update, of which the old state knew nothing."""
    rates = _after_one_update(get_learning_rates, optimizer)(state, params) if paths else {}

    def put(path: tuple[Any, ...], node: Any) -> Any:
        rate = rates.get("/".join(names(path)))
        if rate is None or "/".join(names(path)) not in paths:
            return node
        if isinstance(node, ScaleByLearningRateState):
            return node._replace(
                learning_rate=like(rate, node.learning_rate), written=like(rate, node.written)
            )
        told = {"learning_rate": like(rate, node.hyperparams["learning_rate"])}
        return node._replace(hyperparams={**node.hyperparams, **told})

    return jax.tree_util.tree_map_with_path(put, state, is_leaf=is_holder)


def changed_numbers(
    state: optax.OptState,
    recorded: Mapping[Place, str],
    optimizer: optax.GradientTransformation,
    params: optax.Params,
) -> Iterator[tuple[Place, str]]:
    """Where a carried state has recorded another number than the code says: the place, and a line.

    The optimizer makes the last update once more, from the counts before it. A number that this does not reach,
    inside `MultiSteps`, is not told.

    Args:
      state: the carried state.
      recorded: the places of the numbers of the last update, and what each is.
      optimizer: the optimizer to go on with.
      params: its parameters.
    """
    if not recorded:
        return
    before = jax.tree.map(_one_back, state, is_leaf=_is_recorder)
    try:
        said = _after_one_update(_records, optimizer)(before, params)
    except (TypeError, KeyError):  # an optimizer that needs further extra arguments
        return
    was = _records(state)
    for place, what in recorded.items():
        if not np.allclose(said[place], was[place], rtol=1e-5, atol=0, equal_nan=True):
            yield (
                place,
                f"{what} was {shown(was[place])} in the last update, and is {shown(said[place])} by the code",
            )


def _after_one_update(
    read: Callable[[optax.OptState], Any], optimizer: optax.GradientTransformation
) -> Callable[..., Any]:
    """What a reader finds after one more update; the update itself is compiled away."""
    full = optax.with_extra_args_support(optimizer)

    @jax.jit
    def readings(state: optax.OptState, params: optax.Params) -> Any:
        still = jax.tree.map(jnp.zeros_like, params)
        return read(full.update(still, state, params, value=jnp.zeros(()))[1])

    return readings


def _records(state: optax.OptState) -> dict[Place, Any]:
    """The rates and multipliers of the last update, by their places."""
    found: dict[Place, Any] = {}
    for path, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=_is_recorder):
        if isinstance(node, ScaleByLearningRateState):
            found[*names(path), "learning_rate"] = node.learning_rate
        elif isinstance(node, ScaleByLabelState):
            for label, value in node.last_multipliers.items():
                found[*names(path), "last_multipliers", label] = value
    return found


def _is_recorder(node: Any) -> bool:
    return isinstance(node, _RECORDERS)


def _one_back(node: Any) -> Any:
    return node._replace(count=jnp.maximum(node.count - 1, 0)) if _is_recorder(node) else node
