"""The data of a search: starts, batches and validation data on the host, and the order in which each seed reads.

Batches are copied as they are read, so a loader may use its buffer again. All arrays are arguments of the compiled
programs, never constants in them.
"""

import ctypes
import functools
import itertools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from .. import checks
from ..types import Array, Int, PyTree, UInt32
from .layout import part
from .leaves import is_key, on_host, typed_key

# XLA's CPU backend reads host memory that begins at a multiple of this in place.
ALIGNMENT = 64
# Fewer bytes are padded to a power of two of batches, so that a longer stream compiles nothing.
SMALL = 2**26


class Data(NamedTuple):
    """What the programs of a search read.

    Attributes:
      start: what every lane starts from; with leading axis [starts] where `start_per_seed`.
      batches: arrays with leading axis [batches].
      num_batches: how many of them each seed goes round.
      folds: which batches a seed goes round, [folds, num_batches]; seeds go round the folds, too. None where all
        seeds share all batches.
      eval_batch: validation data; with leading axis [folds] where there are `folds`.
      streamed: whether they came one by one, and stay on the host where memory is short.
      bits: those of the random key that orders and the keys of steps come from.
      key_impl: the kind of that key.
    """

    start: PyTree
    batches: PyTree
    num_batches: int
    bits: UInt32[np.ndarray, "words"]
    key_impl: str
    start_per_seed: bool = False
    folds: Int[np.ndarray, "folds num_batches"] | None = None
    eval_batch: PyTree = None
    streamed: bool = False

    @property
    def rows(self) -> int:
        """How many batches the arrays have, those included that stand there for their shape alone."""
        return int(jax.tree.leaves(self.batches)[0].shape[0])

    @property
    def nbytes(self) -> int:
        """The bytes of all batches."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.batches))

    def start_of(self, seed: int) -> PyTree:
        """What the lanes of a seed start from."""
        return jax.tree.map(lambda leaf: part(leaf, seed), self.start) if self.start_per_seed else self.start

    def eval_batch_of(self, seed: int) -> PyTree:
        """The validation data of a seed."""
        if self.folds is None:
            return self.eval_batch
        fold = seed % len(self.folds)
        return jax.tree.map(lambda leaf: part(leaf, fold), self.eval_batch)

    def order(self, seed: int, num_steps: int) -> Int[np.ndarray, "steps"]:
        """Which batch each step of a seed reads: seed 0 in the given order, the others permuted.

        Batches are gone through again where they run out, in a new order by every seed but 0.
        """
        order = batch_order(self.num_batches, num_steps, seed, self.bits)
        return order if self.folds is None else self.folds[seed % len(self.folds)][order]

    def key(self, seed: int) -> UInt32[np.ndarray, "words"]:
        """The bits of a seed's key, drawn on the host: nothing is compiled for it."""
        return np.random.SeedSequence(self.bits.tolist(), spawn_key=(seed,)).generate_state(self.bits.size)


def batch_order(num_batches: int, num_steps: int, seed: int, bits: np.ndarray) -> Int[np.ndarray, "steps"]:
    """The order of `Data.order`, int32, for batches that begin at 0."""
    passes = -(-num_steps // num_batches)
    if seed == 0:
        return np.tile(np.arange(num_batches, dtype=np.int32), passes)[:num_steps]
    draw = np.random.default_rng([*bits.tolist(), seed])
    order = np.concatenate([draw.permutation(num_batches) for _ in range(passes)])
    return order[:num_steps].astype(np.int32)


def read_batches(batches: PyTree | Iterable[PyTree], count: int) -> tuple[PyTree, int]:
    """Batches as host arrays with leading axis [batches], and how many there are; a list is read whole, of another
    iterable at most `count`.

    Arrays of JAX that lie on several devices stay where they are. An iterable is read once and copied once.

    Raises:
      ValueError: there is no batch, shapes or dtypes differ, or a field is no array of numbers.
    """
    if is_stacked(batches):
        stacked = host_arrays("batches", batches)
        return stacked, checks.leading_axis("batches", stacked)
    if isinstance(batches, Mapping):
        _refuse_what_is_no_number("batches", batches)
    if not isinstance(batches, Iterable) or isinstance(batches, Mapping):
        raise ValueError(f"batches must be arrays or an iterable of batches, got a {type(batches).__name__}.")
    # A list is in memory: seeds permute all of it, as they do an array.
    most = max(count, len(batches)) if isinstance(batches, list) else count
    store = _Store(most)
    for batch in itertools.islice(batches, most):
        store.add(batch)
    return store.stacked(), store.size


def is_stacked(batches: PyTree | Iterable[PyTree]) -> bool:
    """Whether batches are arrays with a leading axis; a list, a generator or a loader holds them one by one."""
    leaves = jax.tree.leaves(batches, is_leaf=yields)
    return not isinstance(batches, list) and bool(leaves) and all(hasattr(leaf, "shape") for leaf in leaves)


def yields(node: Any) -> bool:
    """Whether a node is an iterable that is no container of arrays: a generator, a data loader."""
    return (
        isinstance(node, Iterable)
        and not isinstance(node, tuple | list | Mapping)
        and not hasattr(node, "shape")
    )


class _Store:
    """Batches, copied one by one into memory that grows in place."""

    def __init__(self, most: int):
        self.size, self._most = 0, most
        self._memory: list[np.ndarray] = []
        self._like: list[np.ndarray] = []
        self._shardings: list[NamedSharding | None] = []
        self._structure: Any = None
        self._first = ""

    def add(self, batch: PyTree) -> None:
        leaves, structure = jax.tree.flatten(batch)
        if not self.size:
            _refuse_what_is_no_number("batches", batch)
            self._structure, self._first = structure, checks.shapes(batch)
            self._shardings = [_of_steps(leaf) for leaf in leaves]
        leaves = [np.asarray(host_array(on_host(leaf))) for leaf in leaves]
        if not self.size:
            self._like = [np.empty_like(leaf) for leaf in leaves]
            self._memory = [np.empty(0, np.uint8) for _ in leaves]
        if structure != self._structure:
            raise ValueError(
                f"batches must all have one structure, got {checks.shapes(batch)} at batch {self.size} after "
                f"{self._first}: give each the same fields."
            )
        if any(leaf.shape != like.shape for leaf, like in zip(leaves, self._like, strict=True)):
            bare = jax.tree_util.treedef_is_leaf(structure)
            hint = "; arrays with an axis of steps go into a tuple, (inputs, targets)" if bare else ""
            raise ValueError(
                f"batches must all have one shape, got {checks.shapes(batch)} at batch {self.size} after "
                f"{self._first}: drop the last, smaller batch of an epoch{hint}."
            )
        for at, (leaf, like) in enumerate(zip(leaves, self._like, strict=True)):
            if leaf.dtype != like.dtype:
                path, _ = jax.tree_util.tree_leaves_with_path(batch)[at]
                raise ValueError(
                    f"batches must all have one dtype, got {leaf.dtype} at batch {self.size} after {like.dtype} "
                    f"in batch{jax.tree_util.keystr(path)}: convert it where batches are read, as in "
                    "[jax.tree.map(numpy.float32, batch) for batch in loader]."
                )
        room = len(self._memory[0]) // max(1, self._like[0].nbytes) if self._memory else 0
        if self.size >= room:
            self._resize(min(self._most, max(self.size * 5 // 4, self.size + 16)))
        for memory, like, leaf in zip(self._memory, self._like, leaves, strict=True):
            part = memory[self.size * like.nbytes : (self.size + 1) * like.nbytes]
            part.view(like.dtype).reshape(like.shape)[...] = leaf
        self.size += 1

    def _resize(self, room: int) -> None:
        for memory, like in zip(self._memory, self._like, strict=True):
            # Where the system can, it grows where it lies: large data are not held twice.
            memory.resize(room * like.nbytes + ALIGNMENT, refcheck=False)

    def stacked(self) -> PyTree:
        if not self.size:
            raise ValueError("batches must have at least one batch, got an empty iterable.")
        room = self.size
        if sum(like.nbytes for like in self._like) * self.size < SMALL:
            room = power_of_two(self.size)
        self._resize(room)
        rows = [
            self._aligned(memory, like, room) for memory, like in zip(self._memory, self._like, strict=True)
        ]
        # What came split over devices is split again: a loss may need it so.
        leaves = [
            each if where is None else jax.device_put(each, where)
            for each, where in zip(rows, self._shardings, strict=True)
        ]
        return jax.tree.unflatten(self._structure, leaves)

    def _aligned(self, memory: np.ndarray, like: np.ndarray, room: int) -> np.ndarray:
        """The batches of a field at an address from which a CPU device reads them in place; then zeros."""
        filled, shift = self.size * like.nbytes, -memory.ctypes.data % ALIGNMENT
        if shift:
            ctypes.memmove(memory.ctypes.data + shift, memory.ctypes.data, filled)
        memory[shift + filled :] = 0
        rows = memory[shift : shift + room * like.nbytes]
        return rows.view(like.dtype).reshape(room, *like.shape)


def _of_steps(leaf: Any) -> NamedSharding | None:
    """Where batches stacked along a new axis lie, if one of them is split over devices."""
    sharding = getattr(leaf, "sharding", None)
    if not isinstance(sharding, NamedSharding) or len(sharding.device_set) == 1:
        return None
    return NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))


def host_arrays(name: str, tree: PyTree) -> PyTree:
    """A tree of arrays on the host.

    Raises:
      ValueError: a leaf holds no numbers.
    """
    checks.not_traced("a search", tree)
    _refuse_what_is_no_number(name, tree)
    return jax.tree.map(host_array, tree)


def _refuse_what_is_no_number(name: str, tree: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not isinstance(leaf, jax.Array) and np.asarray(leaf).dtype.kind not in "biufcV":
            raise ValueError(
                f"{name} must be arrays of numbers, got {type(leaf).__name__} {leaf!r:.40} at "
                f"{name}{jax.tree_util.keystr(path)}: leave the field out, as in "
                "[{key: x for key, x in batch.items() if key != ...} for batch in loader]."
            )


def host_array(leaf: Any) -> Any:
    """An array on the host, in a dtype that JAX has here; one of JAX that lies on several devices stays there."""
    if isinstance(leaf, jax.Array) and (is_key(leaf) or len(leaf.sharding.device_set) > 1):
        return leaf
    array = np.asarray(leaf)
    return np.asarray(array, jax.dtypes.canonicalize_dtype(array.dtype))


def aligned(array: np.ndarray) -> np.ndarray:
    """The array, or a copy of it, at an address from which a CPU device reads it in place."""
    if array.ctypes.data % ALIGNMENT == 0 or not array.nbytes:
        return array
    memory = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    copy = memory[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def power_of_two(count: int) -> int:
    """The smallest power of two that is not below a count.

    >>> [power_of_two(count) for count in (1, 2, 3, 100, 128)]
    [1, 2, 4, 128, 128]
    """
    return 1 << (count - 1).bit_length()


@functools.cache
def _words(impl: str) -> int:
    """How many words the bits of a kind of key have."""
    return jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=impl))).size


def root_bits(key: Array | None) -> tuple[UInt32[np.ndarray, "words"], str]:
    """The bits of a key, on the host, and its kind; by default those of `jax.random.key(0)`, which are zeros."""
    if key is not None:
        typed = typed_key(key)
        return np.asarray(jax.device_get(jax.random.key_data(typed))), str(jax.random.key_impl(typed))
    impl: str = jax.config.jax_default_prng_impl  # type: ignore[attr-defined]
    return np.zeros(_words(impl), np.uint32), impl


def root_key(key: Array | None) -> Array:
    """The given key, typed, or `jax.random.key(0)`; nothing is compiled for it."""
    bits, impl = root_bits(key)
    return jax.random.wrap_key_data(jax.device_put(bits), impl=impl)
