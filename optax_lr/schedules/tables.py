"""Schedules from a table: values at some steps, or one value for each step."""

import itertools
import operator
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..types import Array, ArrayLike, Curve, Float, ScalarLike, Schedule, Step
from . import curves
from .named import Named, named
from .pieces import by_step, phase
from .times import clock, entry, reached, row, since, table


@named
def knot_schedule(knots: Mapping[ScalarLike, ScalarLike], *, curve: Curve = curves.linear) -> Schedule:
    """Through given values at given steps, along a curve between them; held outside them.

    Between knots (s, a) and (e, b): value(t) = a + (b - a) * curve((t - s) / (e - s))

    Args:
      knots: value by step. Steps are static (concrete, never traced), at least 0, in any order. Values are at
        least 0, 0 included.
      curve: a curve of `curves`, or your own function from [0, 1] to [0, 1].

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: there is no knot, a number is out of its range, or `curve` is not a curve.

    >>> schedule = knot_schedule({0: 0.0, 10: 1.0, 30: 0.2})
    >>> [round(float(schedule(step)), 4) for step in (0, 5, 10, 20, 30, 99)]
    [0.0, 0.5, 1.0, 0.6, 0.2, 0.2]

    Source: the piecewise-linear schedules of DAWNBench entries (`PiecewiseLinear`, Page 2018).
    """
    steps, values = by_step("knots", knots)
    return _between([0, *steps], [values[0], *values], checks.curve("curve", curve))


@named
def piecewise_interpolate_schedule(
    interpolate_type: Literal["linear", "cosine"],
    init_value: ScalarLike,
    boundaries_and_scales: Mapping[ScalarLike, ScalarLike] | None = None,
) -> Schedule:
    """Through products of scales at given steps, in straight lines or along cosines.

    At the i-th boundary the value is init_value * scales[0] * ... * scales[i], so that nothing follows a scale of
    0. `knot_schedule` takes the values themselves.

    Args:
      interpolate_type: "linear" or "cosine".
      init_value: the value at step 0, at least 0.
      boundaries_and_scales: scale by step; steps are static (concrete, never traced), at least 0, in any order;
        scales are at least 0.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a number is out of its range, or `interpolate_type` is another word.

    >>> schedule = piecewise_interpolate_schedule("linear", 1.0, {4: 0.1, 8: 0.01})
    >>> [round(float(schedule(step)), 4) for step in (0, 2, 4, 6, 8, 10)]
    [1.0, 0.55, 0.1, 0.0505, 0.001, 0.001]

    Source: `optax.piecewise_interpolate_schedule`.
    """
    checks.choice("interpolate_type", interpolate_type, ("linear", "cosine"))
    steps, values = _products(init_value, boundaries_and_scales)
    return _between([0, *steps], values, curves.linear if interpolate_type == "linear" else curves.cosine)


@named
def piecewise_constant_schedule(
    init_value: ScalarLike, boundaries_and_scales: Mapping[ScalarLike, ScalarLike] | None = None
) -> Schedule:
    """Multiplied by a scale at each of some steps. PyTorch's `MultiStepLR`.

    value(t) = init_value * the product of the scales whose boundary is at most t

    Args:
      init_value: the value before the first boundary, at least 0.
      boundaries_and_scales: scale by step; steps are static (concrete, never traced), at least 0, in any order;
        scales are at least 0. (Traced boundaries: `join_schedules` of `constant_schedule`s.)

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a number is out of its range.

    >>> schedule = piecewise_constant_schedule(1.0, {30: 0.1, 80: 0.5})
    >>> [round(float(schedule(step)), 4) for step in (0, 29, 30, 80)]
    [1.0, 1.0, 0.1, 0.05]

    Source: `optax.piecewise_constant_schedule`; Zagoruyko & Komodakis 2016 (arXiv:1605.07146), section 3.
    """
    steps, values = _products(init_value, boundaries_and_scales)
    starts, levels = table(np.array(steps, np.float64)), _stacked(values)

    def schedule(step: Step) -> Array:
        return row(levels, jnp.sum(reached(clock(step), starts), dtype=jnp.int32)).astype(float)

    return schedule


@named
def table_schedule(values: Sequence[ScalarLike] | ArrayLike) -> Schedule:
    """One value for each step, the last one held: what `sample_schedule` returns, as a schedule again.

    value(t) = values[min(floor(t), len(values) - 1)]

    Args:
      values: [steps], finite and at least 0, at least one; may be traced.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: `values` is not one row of numbers, or a concrete one is out of its range.

    >>> [round(float(table_schedule([0.1, 0.2, 0.4])(step)), 4) for step in (0, 1, 2, 99)]
    [0.1, 0.2, 0.4, 0.4]

    Source: PyTorch's `MultiplicativeLR` with factors f is `table_schedule(rate * np.cumprod([1.0, *f]))`.
    """
    levels = _row(values)
    last = len(levels) - 1

    def schedule(step: Step) -> Array:
        return row(levels, jnp.minimum(clock(step).whole, last).astype(jnp.int32)).astype(float)

    return Named(schedule, len(levels))


def _row(values: Any) -> Float[Array, "n"]:
    if getattr(values, "ndim", 1) != 1 or not hasattr(values, "__len__") or not len(values):
        raise ValueError(f"values must be one row of at least one number, got {values!r}.")
    if checks.is_traced(values):
        return values.astype(float)
    given = np.asarray(values) if isinstance(values, jax.Array) else values
    return _stacked([checks.number(f"values[{i}]", value, minimum=0) for i, value in enumerate(given)])


def _stacked(values: Sequence[float | Array]) -> Float[Array, "n"]:
    if any(map(checks.is_traced, values)):
        return jnp.stack([jnp.asarray(value, float) for value in values])
    return jnp.asarray(values, float)


def _products(init_value: ScalarLike, boundaries_and_scales: Any) -> tuple[list[Any], list[Any]]:
    """The steps, and the values before the first and after each."""
    init = checks.number("init_value", init_value, minimum=0)
    steps, scales = by_step("boundaries_and_scales", boundaries_and_scales or {}, least=0)
    return steps, list(itertools.accumulate(scales, operator.mul, initial=init))


def _between(steps: list[Any], values: list[Any], curve: Curve) -> Named:
    """Along a curve from each value, at its step, to the next; the last one is held. The first step is 0."""
    levels = _stacked([*values, values[-1]])
    known = np.array(steps, np.float64)
    starts, lengths, stops = table(known), table(np.append(np.diff(known), 0)), table(known[1:])

    def schedule(step: Step) -> Array:
        time = clock(step)
        index = jnp.sum(reached(time, stops), dtype=jnp.int32)
        passed = since(time, entry(starts, index))
        return phase(row(levels, index), row(levels, index + 1), curve, passed, entry(lengths, index))

    return Named(schedule, steps[-1])
