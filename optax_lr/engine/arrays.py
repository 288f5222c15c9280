"""Arrays that all calls of a search read, where its programs read them: one copy for all."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ..types import PyTree
from .batches import Data, aligned
from .layout import ALL, SEEDS, Layout
from .leaves import key_bits


class Arrays(NamedTuple):
    """What the programs read.

    Attributes:
      start, eval_batch: functions of the seeds of a call to the leaves.
      batches: all of them, or None where they are sent for each window.
      constants: by function of the task, what it captured.
      keys: a function of the seeds of a call to the bits of their keys, [seeds, words].
      orders: a function of seeds and a number of steps to the batches that they read, [seeds, steps].
    """

    start: Callable[[tuple[int, ...]], list[Any]]
    batches: list[Any] | None
    eval_batch: Callable[[tuple[int, ...]], list[Any]]
    constants: Mapping[str, list[Any]]
    keys: Callable[[tuple[int, ...]], np.ndarray]
    orders: Callable[[tuple[int, ...], int], np.ndarray]


def placed(layout: Layout, data: Data, constants: Mapping[str, list[Any]], resident: bool) -> Arrays:
    """The arrays that all calls of a layout read."""

    def held(leaves: list[Any], kind: str) -> list[Any]:
        """One copy on the device for all calls."""
        if layout.mesh is None:
            return jax.device_put(leaves, layout.sharding(kind))
        return layout.put(leaves, kind)

    def of_seeds(of_seed: Callable[[int], PyTree], per_seed: bool, seeds: tuple[int, ...]) -> list[Any]:
        if per_seed and layout.seeds > 1:
            each = [[key_bits(leaf) for leaf in jax.tree.leaves(of_seed(seed))] for seed in seeds]
            leaves = [np.stack([np.asarray(leaf) for leaf in some]) for some in zip(*each, strict=True)]
        else:
            leaves = [key_bits(leaf) for leaf in jax.tree.leaves(of_seed(seeds[0]))]
        return held(leaves, SEEDS if per_seed else ALL)

    batches = layout.put(jax.tree.leaves(data.batches), ALL) if resident else None
    if batches is not None and layout.mesh is None and not layout.width:
        batches = held([aligned(leaf) for leaf in batches], ALL)
    return Arrays(
        start=functools.cache(lambda seeds: of_seeds(data.start_of, data.start_per_seed, seeds)),
        batches=batches,
        eval_batch=functools.cache(lambda seeds: of_seeds(data.eval_batch_of, data.folds is not None, seeds)),
        constants={name: held(values, ALL) for name, values in constants.items()},
        keys=functools.cache(lambda seeds: np.stack([data.key(seed) for seed in seeds])),
        orders=functools.cache(lambda seeds, steps: np.stack([data.order(seed, steps) for seed in seeds])),
    )
