"""The arrays of an optimizer's state, each with the node that holds it and its name there."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import checks
from ..types import PyTree

RATE, LATE, SCALE = "ScaleByLearningRateState", "UnfreezeAtState", "ScaleByLabelState"
SNAPSHOTS = "SnapshotAtCycleEndsState"
# What code says, and a state only repeats: kinds of state and their fields.
CODE = {("ZeroUntilState", "starts"), ("InjectStatefulHyperparamsState", "hyperparams")}
_CLOCKS = ("count", "gradient_step")
# Kinds of state whose `count` is of something else than updates.
_OTHER_COUNTS = {"PlateauState", "ReduceLROnPlateauState"}
# Kinds of state whose numbers are by label or for all, and belong to no parameter whatever they are called.
_WITHOUT_MOMENTS = {RATE, LATE, SCALE, "EffectiveRates", *(kind for kind, _ in CODE)}


class Leaf(NamedTuple):
    """An array of a state: in which node of which kind, and under which name there."""

    node: tuple[str, ...]
    kind: str
    name: tuple[str, ...]
    value: Any
    is_moment: bool  # whether it belongs to one parameter

    @property
    def field(self) -> str:
        return self.name[0]

    @property
    def place(self) -> tuple[str, ...]:
        return (*self.node, *self.name)

    @property
    def is_clock(self) -> bool:
        return len(self.name) == 1 and self.field in _CLOCKS and self.kind not in _OTHER_COUNTS


def located(tree: PyTree, params: optax.Params) -> Iterator[Leaf]:
    """The leaves of a state, each with the innermost state that it is in; NamedTuples of parameters are none."""
    of_params = {type(node).__name__ for node in _named_tuples(params)}
    shapes = {names(keys): np.shape(leaf) for keys, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for keys, value in jax.tree_util.tree_leaves_with_path(tree):
        path = names(keys)
        here, kind, start = tree, "", 0
        for depth, key in enumerate(keys):
            if hasattr(here, "_fields") and type(here).__name__ not in of_params:
                kind, start = type(here).__name__, depth
            here = _child(here, key)
        name = path[start:] or ("",)
        of_parameter = any(name[at:] in shapes for at in range(1, len(name))) or shapes.get(()) == np.shape(
            value
        )
        yield Leaf(path[:start], kind, name, value, of_parameter and kind not in _WITHOUT_MOMENTS)


def names(keys: tuple[Any, ...]) -> tuple[str, ...]:
    """The keys of a path as strings."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in keys)


def by_node(leaves: list[Leaf]) -> dict[tuple[str, ...], list[Leaf]]:
    """The leaves by the node that holds them."""
    nodes: dict[tuple[str, ...], list[Leaf]] = {}
    for leaf in leaves:
        nodes.setdefault(leaf.node, []).append(leaf)
    return nodes


def like(value: Any, leaf: Any) -> Any:
    """A copy of the value, of the dtype and in the place of a leaf."""
    if not isinstance(leaf, jax.Array):
        return np.array(value, np.result_type(leaf))
    if leaf.committed:
        return jax.device_put(jnp.array(value, leaf.dtype), leaf.sharding)
    on_host = value if jnp.issubdtype(leaf.dtype, jax.dtypes.extended) else np.asarray(value)
    return jnp.array(on_host, leaf.dtype)


def kinds(leaves: list[Leaf]) -> str:
    """The kinds of state that leaves are in, listed."""
    return checks.listed(dict.fromkeys(leaf.kind for leaf in leaves)) or "nothing"


def shown(value: Any) -> str:
    """A number, or the numbers of an array, as text."""
    return str(np.asarray(value).tolist()) if np.ndim(value) else f"{np.asarray(value).item():g}"


def _child(node: Any, key: Any) -> Any:
    if isinstance(node, dict):
        return node[key.key]
    if isinstance(node, tuple | list):
        return getattr(node, key.name) if hasattr(key, "name") else node[key.idx]
    return None  # a module or another tree of parameters, in which there is no state


def _named_tuples(tree: PyTree) -> Iterator[Any]:
    is_named = lambda node: hasattr(node, "_fields")  # noqa: E731
    for node in jax.tree.leaves(tree, is_leaf=is_named):
        if is_named(node):
            yield node
            yield from _named_tuples(tuple(node))
