"""Lengths of runs: a number of steps, or of passes through the batches."""

from collections.abc import Iterable, Sized
from typing import Any, NamedTuple

from .. import checks
from ..types import PyTree
from .batches import is_stacked


class Epochs(NamedTuple):
    """A length as so many passes through the batches, wherever a number of steps is asked for.

    Attributes:
      passes: how many, above 0; a fraction is rounded to whole steps.

    >>> import numpy as np
    >>> steps_of("num_steps", Epochs(2.5), np.zeros((10, 3)))
    25
    """

    passes: float


def steps_of(
    name: str, value: Any, batches: PyTree | Iterable[PyTree], *, maximum: int = checks.MAX_STEP
) -> int:
    """A length in steps.

    Raises:
      ValueError: it is no whole number of at least 1, or it is given in epochs of batches that have no known end.
    """
    if not isinstance(value, Epochs):
        return checks.size(name, value, maximum=maximum)
    passes = checks.concrete(f"{name}, in epochs,", value.passes, above=0)
    if is_stacked(batches):
        size = checks.leading_axis("batches", batches)
    elif isinstance(batches, Sized):
        size = len(batches)
    else:
        raise ValueError(
            f"{name} in epochs needs batches with a length: arrays, a list, or a loader with len()."
        )
    return checks.size(name, max(1, round(passes * size)), maximum=maximum)
