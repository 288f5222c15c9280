"""Grids: hyperparameters as a user gives them to arrays with one value for each lane."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def lanes_of(
    learning_rates: Sequence[float] | np.ndarray | None, lanes: Mapping[str, Any] | None
) -> dict[str, np.ndarray]:
    """What was asked for, as arrays with leading axis [lanes].

    Raises:
      ValueError: both or none are given, or an array is not of finite numbers, of the others' length, or, of
        rates, positive and, where nothing else varies, increasing.
    """
    if (learning_rates is None) == (lanes is None):
        raise ValueError("learning_rates or lanes must be given, and not both.")
    if lanes is not None and not isinstance(lanes, Mapping):
        raise ValueError(f"lanes must be lists of numbers by name, such as grid makes, got {lanes!r}.")
    name = "learning_rates" if lanes is None else 'lanes["learning_rate"]'
    given = {"learning_rate": learning_rates} if lanes is None else dict(lanes)
    if "learning_rate" not in given:
        raise ValueError(f'lanes must have a "learning_rate", got {sorted(given)}.')
    axes = {axis: _numbers(f"lanes[{axis!r}]", x) for axis, x in given.items() if axis != "learning_rate"}
    rates = _numbers(name, given["learning_rate"], finite=False).astype(np.float64)
    _refuse_other_lengths({"learning_rate": len(rates), **{axis: len(x) for axis, x in axes.items()}})
    alone = all((x == x[0]).all() for x in axes.values())
    valid = np.isfinite(rates).all() and (rates > 0).all() and not (alone and (np.diff(rates) <= 0).any())
    if not valid:
        expected = "positive, finite and increasing" if alone else "positive and finite"
        raise ValueError(f"{name} must be {expected}, got {rates.tolist()}.")
    return {"learning_rate": rates, **axes}


def combinations_of(lanes: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
    """What a search varies beside the rate, as arrays with leading axis [combinations]; empty without lanes.

    Raises:
      ValueError: there is a rate among them, no axis at all, the same combination twice, or an array is not of
        finite numbers or not of the others' length.
    """
    if lanes is None:
        return {}
    if not isinstance(lanes, Mapping) or not lanes or "learning_rate" in lanes:
        got = list(lanes) if isinstance(lanes, Mapping) else lanes
        raise ValueError(
            "lanes must be what varies beside the learning rate, such as grid(weight_decay=[0.0, 0.1]), got "
            f"{got!r}; the rates to search between are min_learning_rate and max_learning_rate."
        )
    axes = {name: _numbers(f"lanes[{name!r}]", values) for name, values in lanes.items()}
    _refuse_other_lengths({name: len(values) for name, values in axes.items()})
    rows = list(zip(*(values.tolist() for values in axes.values()), strict=True))
    if len(set(rows)) < len(rows):
        twice = next(row for row in rows if rows.count(row) > 1)
        raise ValueError(
            f"lanes must hold each combination once, got {dict(zip(axes, twice, strict=True))} twice."
        )
    return axes


def _refuse_other_lengths(lengths: Mapping[str, int]) -> None:
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"lanes must be arrays of one length, got {dict(lengths)}; grid makes the product of axes."
        )


def grid(**axes: Sequence[float] | np.ndarray) -> dict[str, np.ndarray]:
    """The product of axes, for the lanes of a sweep: every combination is one lane, the last axis fastest.

    Args:
      **axes: for each hyperparameter its values, finite numbers; [values].

    Returns:
      For each hyperparameter its value in every lane; [lanes].

    Raises:
      ValueError: there is no axis, or one is not a list of finite numbers.

    >>> for name, values in grid(learning_rate=[0.1, 0.3], weight_decay=[0, 1e-4, 1e-2]).items():
    ...     print(name, values.tolist())
    learning_rate [0.1, 0.1, 0.1, 0.3, 0.3, 0.3]
    weight_decay [0.0, 0.0001, 0.01, 0.0, 0.0001, 0.01]
    """
    if not axes:
        raise ValueError("grid needs at least one axis, such as learning_rate=[0.01, 0.1], got none.")
    values = [_numbers(name, axis) for name, axis in axes.items()]
    return {name: mesh.ravel() for name, mesh in zip(axes, np.meshgrid(*values, indexing="ij"), strict=True)}


def _numbers(name: str, values: Any, *, finite: bool = True) -> np.ndarray:
    numbers = np.asarray(values)
    if numbers.ndim != 1 or not len(numbers) or numbers.dtype.kind not in "iuf":
        raise ValueError(
            f"{name} must be a list of numbers, got an array of {numbers.dtype} of shape {numbers.shape}."
        )
    if finite and not np.isfinite(numbers).all():
        raise ValueError(f"{name} must be finite numbers, got {numbers.tolist()}.")
    return numbers


def first_of(lanes: Mapping[str, np.ndarray]) -> dict[str, np.generic]:
    """The first of some lanes."""
    return {name: values[0] for name, values in lanes.items()}
