"""Labels whose start lies beyond a search: their parameters never train in it, and the rate is for the others."""

import warnings
from typing import Any

import jax
import numpy as np

from ..engine.layout import context, mesh_of_user
from ..layers.freezing import ZeroUntilState
from ..types import PyTree
from .optimizer import Lane
from .training import TakesNumbersOnlyError, Trainer


def warn_of_late_labels(trainers: list[Trainer], start: PyTree, lane: Lane, longest: int) -> None:
    """Warn of labels that begin after the last step of the longest run.

    Args:
      trainers: the functions of the search, the best first.
      start, lane: an example of either.
      longest: the steps of the longest run.
    """
    asleep = {name: left for name, left in _left(trainers, start, lane).items() if left >= longest}
    if not asleep:
        return
    named = ", ".join(f"{name!r} in {left}" for name, left in sorted(asleep.items()))
    warnings.warn(
        f"labels that start after the end of the search are not trained in it: {named} steps, and no run is longer "
        f"than {longest}. The answer is for the others: search without these starts, or for longer.",
        stacklevel=5,
    )


def _left(trainers: list[Trainer], start: PyTree, lane: Lane) -> dict[str, int]:
    """By label, how many optimizer steps are left until its start, of several clocks the most."""
    with context(mesh_of_user(jax.tree.leaves(start))):
        for trainer in trainers:

            def clocks(start: PyTree, lane: Lane, trainer: Trainer = trainer) -> list[tuple[Any, Any]]:
                carry = trainer.begin(start, lane, np.int32(0))
                nodes = jax.tree.leaves(carry["optimizer"], is_leaf=_is_clock)
                return [(node.count, node.starts) for node in nodes if _is_clock(node)]

            try:
                if not jax.eval_shape(clocks, start, dict(lane)):
                    return {}
                found = jax.device_get(jax.jit(clocks)(start, dict(lane)))
            except TakesNumbersOnlyError:
                continue
            left: dict[str, int] = {}
            for count, starts in found:
                for name, at in starts.items():
                    left[name] = max(left.get(name, 0), int(np.max(at)) - int(np.max(count)))
            return left
    return {}


def _is_clock(node: Any) -> bool:
    return isinstance(node, ZeroUntilState)
