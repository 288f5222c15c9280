"""Placement: which lanes run where. Devices, a mesh and a model's size to the jobs that a sweep is cut into.

A job is one call after another of one program on some lanes: one lane of one seed, or a chunk of lanes of all
seeds, of which a mesh gives every device an equal share.
"""

import functools
import math
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ..types import PyTree
from .lanes import Layout

# The share of a device's memory that lanes may fill.
MEMORY_SHARE = 0.9


class Place(NamedTuple):
    """Where the lanes of a sweep run.

    Attributes:
      layout: the layout of the program.
      width: how many lanes one call holds, over all devices; 1 where the layout is not batched.
      workers: how many jobs run at a time, on host threads.
      stepwise: whether each step is dispatched on its own.
      alone: whether one program starts a lone lane and trains it.
      words: all of it in a phrase.
    """

    layout: Layout
    width: int
    workers: int
    stepwise: bool
    words: str
    alone: bool = False

    @property
    def devices(self) -> int:
        """How many devices share a call."""
        return self.layout.mesh.size if self.layout.mesh else 1

    def shape(self, num_seeds: int) -> tuple[int, ...]:
        """The leading axes of what one job trains."""
        return (num_seeds, self.width) if self.layout.batched else ()

    def jobs(self, num_seeds: int, num_lanes: int) -> list[tuple[Any, Any]]:
        """What each job trains, as indices of seeds and of lanes. Chunks are equal: the last repeats a lane."""
        if not self.layout.batched:
            return [(seed, lane) for seed in range(num_seeds) for lane in range(num_lanes)]
        starts = range(0, num_lanes, self.width)
        return [(slice(None), np.minimum(np.arange(a, a + self.width), num_lanes - 1)) for a in starts]

    def join(self, values: np.ndarray, num_seeds: int, num_lanes: int) -> np.ndarray:
        """Results of all jobs, with leading axis [jobs], as [seeds, lanes, ...]."""
        if not self.layout.batched:
            return values.reshape(num_seeds, num_lanes, *values.shape[1:])
        return np.concatenate(list(values), axis=1)[:, :num_lanes]

    def put(self, tree: PyTree, *, split: bool = False) -> PyTree:
        """A tree on the mesh: the same on all devices, or its leading axis of lanes split over them.

        Where there is no mesh it stays as it is: a compiled call takes NumPy arrays, and slicing them costs less.
        """
        mesh = self.layout.mesh
        if mesh is None:
            return tree
        sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names) if split else PartitionSpec())
        across = jax.process_count() > 1
        return jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf) if across else leaf, sharding), tree)

    def get(self, tree: PyTree) -> PyTree:
        """A tree as NumPy arrays, whole on every host; random keys as their bits."""
        bits = jax.tree.map(key_bits, tree)
        if self.layout.mesh is not None and jax.process_count() > 1:
            from jax.experimental import multihost_utils

            return multihost_utils.process_allgather(bits, tiled=True)
        return jax.device_get(bits)


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of typed random keys, which NumPy cannot hold."""
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def key_bits(leaf: Any) -> Any:
    """The bits of a random key; any other leaf as it is."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def choose(
    start: PyTree,
    *,
    num_lanes: int,
    num_seeds: int,
    chunk: int | None,
    mesh: Mesh | None,
    per_seed: bool,
    convolves: bool,
    freeze: bool,
    bytes_of: Callable[[int], int],
) -> Place:
    """Where lanes run fastest (module docstring of `sweep`).

    Args:
      start: the start of one lane; where it is sharded, it stays so.
      freeze: whether final carries are asked for.
      chunk: lanes at once on each device, where the user says so.
      bytes_of: how many bytes a program needs that holds so many lanes.
    """
    work = f"{num_lanes} lanes x {num_seeds} seeds"
    if any(map(_is_sharded, jax.tree.leaves(start))):
        layout = Layout(batched=False, per_seed=per_seed, freeze=freeze)
        return Place(layout, 1, 1, False, f"{work}, one after the other, sharded as their start")
    devices = list(jax.devices() if mesh is None else mesh.devices.flat)
    platform = devices[0].platform
    if platform == "cpu" and len(devices) == 1 and chunk is None:
        way = "step by step" if convolves else "one program a lane"
        layout = Layout(batched=False, per_seed=per_seed, freeze=freeze)
        words = f"{work} on {cores()} host threads, {way}"
        return Place(layout, 1, cores(), convolves, words, alone=not convolves)
    most = math.ceil(num_lanes / len(devices))
    fits = most if chunk is None else min(chunk, most)
    if chunk is None and platform == "cpu":
        fits = 1
    elif chunk is None and (limit := (devices[0].memory_stats() or {}).get("bytes_limit")):
        fits = lanes_that_fit(bytes_of, int(limit * MEMORY_SHARE), most)
    # Equal chunks: the last is not a small one.
    each = math.ceil(most / math.ceil(most / fits))
    flat = None
    if len(devices) > 1:
        flat = Mesh(np.array(devices), ("lanes",), axis_types=(AxisType.Auto,))
    words = f"{work}, {each} at once on {'each of ' if flat else ''}{len(devices)} {platform} device(s)"
    return Place(Layout(True, flat, per_seed), each * len(devices), 1, False, words)


def lanes_that_fit(bytes_of: Callable[[int], int], limit: int, most: int) -> int:
    """The largest number of lanes, from 1 to `most`, whose program needs at most `limit` bytes.

    Bytes grow about linearly with lanes. Two programs predict the rest; what is predicted is compiled, and then
    either predicts again from farther out or is lowered by a tenth until it holds.

    >>> lanes_that_fit(lambda lanes: 100 + 30 * lanes, 500, 64)
    13
    """
    need = functools.cache(bytes_of)
    if most == 1 or need(1) >= limit:
        return 1

    def predicted(width: int) -> int:
        per_lane = max(1, (need(width) - need(1)) // (width - 1))
        return max(2, min(most, 1 + (limit - need(1)) // per_lane))

    width = predicted(2)
    if need(width) <= limit and need(farther := predicted(width)) <= limit:
        return max(width, farther)
    while width > 1 and need(width) > limit:
        width = width * 9 // 10
    return width


def bytes_needed(lowered: Any) -> int:
    """How many bytes of a device's memory a program needs; more than any has where the compiler gives up."""
    try:
        memory = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return sys.maxsize
    sizes = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    return sizes - memory.alias_size_in_bytes


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_sharded(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1 and not leaf.is_fully_replicated
