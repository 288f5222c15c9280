"""Batches: what a user hands over to stacked arrays on the host, and the order in which each seed reads them."""

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from .. import checks
from ..types import Array, Int, PyTree, UInt32


def read_batches(batches: PyTree | Iterable[PyTree], count: int, needed: int | None) -> PyTree:
    """Batches as host arrays with leading axis [batches]; of an iterable, at most `count` are read."""
    if is_stacked(batches):
        stacked = jax.tree.map(np.asarray, batches)
    elif isinstance(batches, Iterable):
        each = [jax.tree.map(np.asarray, batch) for batch in itertools.islice(batches, count)]
        stacked = _stack(each)
    else:
        raise ValueError(f"batches must be arrays or an iterable of batches, got a {type(batches).__name__}.")
    found = checks.leading_axis("batches", stacked)
    if needed is not None and found < needed:
        raise ValueError(f"num_steps={needed} needs as many batches, got {found}.")
    return stacked


def is_stacked(batches: PyTree | Iterable[PyTree]) -> bool:
    """Whether batches are arrays with a leading axis; a list, a generator or a loader holds them one by one."""
    leaves = jax.tree.leaves(batches, is_leaf=_yields)
    return not isinstance(batches, list) and bool(leaves) and all(hasattr(leaf, "shape") for leaf in leaves)


def _yields(node: Any) -> bool:
    """Whether a node is an iterable that is no container of arrays: a generator, a data loader."""
    return (
        isinstance(node, Iterable)
        and not isinstance(node, tuple | list | Mapping)
        and not hasattr(node, "shape")
    )


def _stack(each: Sequence[PyTree]) -> PyTree:
    if not each:
        raise ValueError("batches must have at least one batch, got an empty iterable.")
    for index, batch in enumerate(each):
        if checks.shapes(batch) != checks.shapes(each[0]):
            raise ValueError(
                f"batches must all have one shape, got {checks.shapes(batch)} at batch {index} after "
                f"{checks.shapes(each[0])}; drop the last, smaller batch of an epoch."
            )
    return jax.tree.map(lambda *leaves: np.stack(leaves), *each)


def batch_orders(
    num_batches: int, num_steps: int, num_seeds: int, bits: UInt32[np.ndarray, "words"]
) -> Int[np.ndarray, "seeds steps"]:
    """Which batch each step reads, int32 [seeds, steps]: seed 0 in the given order, the others permuted.

    Batches are gone through again where they run out, in a new order by every seed but 0. `bits` are a key's.
    """
    passes = -(-num_steps // num_batches)

    def order(seed: int) -> np.ndarray:
        if seed == 0:
            return np.tile(np.arange(num_batches), passes)[:num_steps]
        draw = np.random.default_rng([*bits.tolist(), seed])
        return np.concatenate([draw.permutation(num_batches) for _ in range(passes)])[:num_steps]

    return np.stack([order(seed) for seed in range(num_seeds)]).astype(np.int32)


@functools.cache
def _words(impl: str) -> int:
    """How many words the bits of a kind of key have."""
    return jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=impl))).size


def root_bits(key: Array | None) -> tuple[UInt32[np.ndarray, "words"], str]:
    """The bits of a key, on the host, and its kind; by default those of `jax.random.key(0)`, which are zeros."""
    if key is not None:
        return np.asarray(jax.random.key_data(key)), str(jax.random.key_impl(key))
    impl: str = jax.config.jax_default_prng_impl  # type: ignore[attr-defined]
    return np.zeros(_words(impl), np.uint32), impl


def root_key(key: Array | None) -> Array:
    """The given key, or `jax.random.key(0)`, for which nothing is compiled."""
    return jax.random.wrap_key_data(jax.device_put(root_bits(None)[0])) if key is None else key


def seed_keys(num_seeds: int, bits: UInt32[np.ndarray, "words"]) -> UInt32[np.ndarray, "seeds words"]:
    """The bits of each seed's key, drawn on the host: a sweep compiles nothing beside its own program."""
    seeds = [np.random.SeedSequence(bits.tolist(), spawn_key=(seed,)) for seed in range(num_seeds)]
    return np.stack([seed.generate_state(bits.size) for seed in seeds])
