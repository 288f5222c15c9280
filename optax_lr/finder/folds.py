"""Folds: parts of the data, each of which validates where the others train."""

from collections.abc import Sized

import jax
import numpy as np

from .. import checks
from ..engine.batches import is_stacked
from ..types import Int, PyTree


def folds_wanted(folds: int | None, eval_batch: PyTree) -> int | None:
    """How many parts the data fall into; None where they are not parted.

    Raises:
      ValueError: `folds` is no whole number of at least 2, or validation data are given, too.
    """
    if folds is None:
        return None
    if eval_batch is not None:
        raise ValueError("eval_batch must not be given beside folds, which validate on parts of the batches.")
    if checks.size("folds", folds, unit="parts") < 2:
        raise ValueError(f"folds must be at least 2, got {folds!r}.")
    return folds


def length_of_all(batches: PyTree) -> int:
    """How many batches there are, which must have an end.

    Raises:
      ValueError: they have no known length.
    """
    if is_stacked(batches):
        return checks.leading_axis("batches", batches)
    if isinstance(batches, Sized):
        return len(batches)
    raise ValueError("folds need batches with a length: arrays, a list, or a loader with len().")


def folds_of(count: int, folds: int) -> Int[np.ndarray, "folds trained"]:
    """Which batches each fold trains on: all but a run of count // folds of them; the last few may train in all.

    Raises:
      ValueError: there are fewer batches than folds.

    >>> folds_of(5, 2)
    array([[2, 3, 4],
           [0, 1, 4]], dtype=int32)
    """
    size = count // folds
    if not size:
        raise ValueError(
            f"folds must be at most the number of batches, {count}, got {folds}: make smaller batches."
        )
    every = np.arange(count, dtype=np.int32)
    return np.stack([np.delete(every, slice(fold * size, (fold + 1) * size)) for fold in range(folds)])


def left_out(batches: PyTree, folds: Int[np.ndarray, "folds trained"], count: int) -> PyTree:
    """The batches that each fold leaves out, joined along their examples; [folds, examples, ...].

    Raises:
      ValueError: an array of a batch has no axis of examples.
    """
    size = count - folds.shape[1]

    def parts(leaf: np.ndarray) -> np.ndarray:
        if np.ndim(leaf) < 2:
            raise ValueError(
                f"folds need batches of examples: each array of a batch must have an axis of them, got "
                f"{checks.shapes(jax.tree.map(lambda each: each[0], batches))}."
            )
        some = np.asarray(leaf)[: len(folds) * size]
        return some.reshape(len(folds), size * some.shape[1], *some.shape[2:])

    return jax.tree.map(parts, batches)
