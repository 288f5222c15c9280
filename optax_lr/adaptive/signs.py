"""Signs, what gains and Rprop share: a size for every parameter, and what its gradient's sign is compared with.

Operations are those of `jax.lax`: `jnp.where` and `jnp.clip` take several times as long to trace. On a TPU and
a GPU each leaf compiles to one kernel, if every stored array is read to make the update. A CPU has one kernel
for each array that is written, and copies nothing if these can run one after the other, the sizes first.
"""

from collections.abc import Callable
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import checks
from ..types import Array, ArrayLike, PyTree, ScalarLike

LARGEST = np.finfo(np.float32).max

Scalar: TypeAlias = np.float32 | Array
Bounds: TypeAlias = tuple[Scalar, Scalar]


def float32(value: ScalarLike) -> Scalar:
    """A checked number, traced or not, in the type of the state."""
    return jnp.asarray(value, jnp.float32) if checks.is_traced(value) else np.float32(cast(float, value))


def checked_bounds(low_name: str, low: ScalarLike, high_name: str, high: ScalarLike) -> Bounds:
    """Both bounds in float32.

    Raises:
      ValueError: a concrete bound is outside [1e-30, 1e30], or `high` is below `low`.
    """
    given = [
        checks.number(name, bound, minimum=1e-30, maximum=1e30)
        for name, bound in ((low_name, low), (high_name, high))
    ]
    checks.not_below(high_name, given[1], low_name, given[0])
    return float32(given[0]), float32(given[1])


def filled(params: PyTree, value: ArrayLike, dtype: Any = jnp.float32) -> PyTree:
    """`value` for every parameter, sharded as the parameters are; they may be `jax.ShapeDtypeStruct`.

    Raises:
      ValueError: a parameter is complex.
    """

    def fill(leaf: Any) -> Array:
        if jnp.issubdtype(_dtype(leaf), jnp.complexfloating):
            raise ValueError(
                f"params must be real, to have signs, got {_dtype(leaf)} of shape {np.shape(leaf)}."
            )
        start = jnp.asarray(value, dtype)
        if isinstance(leaf, jax.ShapeDtypeStruct) or not _is_float(leaf):
            return jnp.full_like(leaf, start, dtype)
        # Both choices are one: the parameter is read only so that a compiled init is sharded as it is.
        return jnp.where(jnp.isnan(leaf), start, start)

    return jax.tree.map(fill, params)


def map_leaves(
    step: Callable[..., tuple[Array, ...]], updates: PyTree, *states: PyTree
) -> tuple[PyTree, ...]:
    """The trees of `step(gradient, *leaves of the states) -> (update, *next leaves)`.

    A leaf of the updates that is None, or is not made of floats (JAX's float0 too), passes; its state stays.
    """
    gradients = jax.tree.leaves(updates, is_leaf=lambda leaf: leaf is None)
    treedef: Any = jax.tree.structure(updates, is_leaf=lambda leaf: leaf is None)
    rows = zip(gradients, *(treedef.flatten_up_to(state) for state in states), strict=True)
    stepped = [step(jnp.asarray(row[0]), *row[1:]) if _is_float(row[0]) else row for row in rows]
    columns = zip(*stepped, strict=True) if stepped else [()] * (1 + len(states))
    return tuple(treedef.unflatten(column) for column in columns)


def in_float32(values: Array) -> Array:
    """Values in the type in which sizes are computed, a state that was cast included."""
    return lax.convert_element_type(values, jnp.float32)


def at_least_float32(dtype: Any) -> Any:
    """The type itself, or float32 in place of a shorter one; not `promote_types`, which can be set to refuse."""
    return dtype if jnp.dtype(dtype).itemsize >= 4 else jnp.dtype(jnp.float32)


def sign_of(gradient: Array) -> Array:
    """The sign as an int8; 0 for NaN. Two comparisons take a CPU less time than a sign that is converted."""
    positive, negative = lax.gt(gradient, np.float32(0)), lax.lt(gradient, np.float32(0))
    return lax.sub(lax.convert_element_type(positive, jnp.int8), lax.convert_element_type(negative, jnp.int8))


def adapt(size: Array, agreed: Array, finite: Array, larger: Array, smaller: Array, bounds: Bounds) -> Array:
    """The size after a gradient that agrees with the last sign (above 0), or does not (below 0), or is not finite.

    `agreed` is the gradient times a sign: the product of two small gradients would be zero.
    """
    shrunk = lax.select(lax.lt(agreed, np.float32(0)), smaller, size)
    changed = lax.select(lax.gt(agreed, np.float32(0)), larger, shrunk)
    # Not `lax.clamp`, which `vmap` over the bounds alone cannot batch where the size is a scalar.
    bounded = lax.min(lax.max(changed, bounds[0]), bounds[1])
    return lax.select(finite, bounded, size)


def remembered(new: Array, old: Array, finite: Array, size: Array) -> Array:
    """What is stored beside the next size: `new` where the gradient is finite, else `old`.

    All sizes are above 0. They are asked so that a CPU writes them first: it would copy what both kernels read.
    """
    return lax.select(lax.bitwise_and(finite, lax.gt(size, np.float32(0))), new, old)


def scaled(gradient: Array, size: Array, read: Array) -> Array:
    """`size * gradient`, in float32 or the gradient's own precision if that is finer, in the gradient's type.

    `read` is true everywhere. It is made of the other stored array, which has to be read to make the update.
    """
    finer = at_least_float32(gradient.dtype)
    exact = lax.convert_element_type(gradient, finer)
    product = lax.mul(lax.convert_element_type(size, finer), exact)
    return lax.convert_element_type(lax.select(read, product, exact), gradient.dtype)


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def _is_float(leaf: Any) -> bool:
    return leaf is not None and jnp.issubdtype(_dtype(leaf), jnp.floating)
