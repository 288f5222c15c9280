"""Leaves: a tree of arrays as programs take it, a flat list in which random keys are their bits."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from ..types import PyTree
from .layout import is_explicit


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of typed random keys."""
    return jax.dtypes.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key)


def typed_key(key: Any) -> jax.Array:
    """A random key of the user's, typed.

    Raises:
      ValueError: it is no key, or it is several.
    """
    try:
        typed = key if is_key(key) else jax.random.wrap_key_data(key)
    except (TypeError, ValueError):
        typed = None
    if typed is None or typed.ndim:
        raise ValueError(f"key must be one random key, such as jax.random.key(0), got {key!r}.")
    return typed


def key_bits(leaf: Any) -> Any:
    """The bits of a random key; any other leaf as it is."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def on_host(leaf: Any) -> np.ndarray:
    """An array as NumPy's, whole on every host; random keys as their bits."""
    bits = key_bits(leaf)
    if isinstance(bits, jax.Array) and not bits.is_fully_addressable:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(bits, tiled=True))
    return np.asarray(jax.device_get(bits))


class Leaves(NamedTuple):
    """The structure of a tree, and the shape, dtype and sharding of every leaf; programs see its leaves as a list.

    Typed random keys cross the boundary of a program as their bits, which every host and thread can hold.
    """

    structure: Any
    shapes: tuple[jax.ShapeDtypeStruct, ...]

    @classmethod
    def of(cls, tree: PyTree) -> "Leaves":
        """What there is to know of a tree of arrays before its numbers."""
        leaves, structure = jax.tree.flatten(tree)
        return cls(structure, tuple(_shape_of(leaf) for leaf in leaves))

    def example(self) -> PyTree:
        """The tree with a shape in place of each leaf."""
        return jax.tree.unflatten(self.structure, self.shapes)

    def bits(self) -> list[jax.ShapeDtypeStruct]:
        """The shapes of the leaves as programs take them."""
        return [jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf for leaf in self.shapes]

    def typed(self, flat: Sequence[Any]) -> list[Any]:
        """Leaves inside a program, random keys made of their bits."""
        return [
            jax.random.wrap_key_data(leaf, impl=_impls()[str(like.dtype)]) if is_key(like) else leaf
            for like, leaf in zip(self.shapes, flat, strict=True)
        ]

    def tree(self, flat: Sequence[Any]) -> PyTree:
        """The tree of some leaves."""
        return jax.tree.unflatten(self.structure, list(flat))


@functools.cache
def _impls() -> dict[str, str]:
    """The kinds of random keys by the names of their dtypes."""
    kinds = ("threefry2x32", "rbg", "unsafe_rbg")
    return {
        str(jax.eval_shape(functools.partial(jax.random.key, 0, impl=kind)).dtype): kind for kind in kinds
    }


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    # What is traced under axes that are Explicit has its sharding in its type.
    spread = mesh.size > 1 if isinstance(mesh, Mesh) else mesh is not None and is_explicit(mesh)
    dtype = leaf.dtype if is_key(leaf) else jax.dtypes.canonicalize_dtype(jnp.result_type(leaf))
    return jax.ShapeDtypeStruct(np.shape(leaf), dtype, sharding=sharding if spread else None)
