"""What schedules are made of: a phase along a curve, and several in a row.

Steps count from 0. A step stays an integer until the last division, so that boundaries fall on their step
and values keep their digits up to step 2^31 - 1. Before step 0 a schedule has its value at 0; float steps
(epochs) work in float32. A number of steps that is whole, as a float or traced too, is exact in integers; one
with a fraction is divided in float32. A step, a period or a traced number that is not finite gives a value
without meaning, at that step alone.
"""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from .. import checks
from ..types import Array, Curve, ScalarLike, Step
from .named import Named, known_sum
from .times import Time, as_float, clock, reached, since, span


def phase(init: ScalarLike, end: ScalarLike, curve: Curve, time: Time, length: Time) -> Array:
    """From `init` to `end` along a curve, `time` since the start; exactly `end` from `length` on."""
    over = reached(time, length)
    # Beyond the end the curve is asked at a harmless place: its slope may be infinite at 1, and a gradient
    # of 0 times infinity would be NaN though the value is not used.
    progress = jnp.where(over, 0.5, as_float(time) / jnp.where(over, 1.0, as_float(length)))
    return jnp.where(over, jnp.asarray(end, float), blend(init, end, curve(progress)))


def phases(values: Sequence[Any], ends: Sequence[Any], curve: Curve) -> Named:
    """From each value to the next along a curve, one phase until each of `ends`; then the last value is held."""
    starts = [0, *ends[:-1]]
    lengths = [_difference(end, start) for start, end in zip(starts, ends, strict=True)]
    pieces = [
        (span(start), length, init, end)
        for start, length, (init, end) in zip(starts, lengths, itertools.pairwise(values), strict=True)
    ]

    def schedule(step: Step) -> Array:
        time = clock(step)
        shown = [
            (start, phase(init, end, curve, since(time, start), length))
            for start, length, init, end in pieces
        ]
        return functools.reduce(
            lambda value, piece: jnp.where(reached(time, piece[0]), piece[1], value), shown[1:], shown[0][1]
        )

    return Named(schedule, known_sum(ends[-1]))


def remaining(time: Time, length: Time) -> Array:
    """The share of a length that is left: 1 at its start, 0 from its end on.

    It is counted in steps, since 1 - t / n loses the digits that a root needs.
    """
    total = as_float(length)
    return as_float(since(length, time)) / jnp.where(total > 0, total, 1.0)


def blend(start: ScalarLike, end: ScalarLike, weight: Array) -> Array:
    """start + (end - start) * weight, in a form that is exact at both ends."""
    return jnp.asarray(start, float) * (1 - weight) + jnp.asarray(end, float) * weight


def log(value: float | Array) -> float | Array:
    """The natural logarithm; of a known number in float64, for float32(gamma)^t errs by 1e-4."""
    return math.log(value) if isinstance(value, float) else jnp.log(value)


def part(share: float | Array, count: Any, *, whole: bool = False) -> Any:
    """A share of a number of steps; with `whole`, rounded down.

    A product that is a rounding error short of a whole number is that number: 0.29 * 100 is 29.
    """
    product = share * (count.astype(float) if checks.is_traced(count) else count)
    if not whole:
        return product
    if checks.is_traced(product):
        return jnp.floor(product * (1 + 2.0**-22)).astype(jnp.int32)
    return math.floor(product * (1 + 1e-12))


def momenta(min_value: ScalarLike, max_value: ScalarLike) -> tuple[float | Array, float | Array]:
    """Two checked momenta, the lower first."""
    low = checks.number("min_value", min_value, minimum=0, below=1)
    high = checks.number("max_value", max_value, minimum=0, below=1)
    checks.not_below("max_value", high, "min_value", low)
    return low, high


def by_step(name: str, mapping: Any, *, least: int = 1) -> tuple[list[int | float], list[float | Array]]:
    """The steps and the values of a dict, in the order of the steps, which are concrete.

    Raises:
      ValueError: it is no dict, has fewer than `least` entries, or a number is out of its range.
    """
    if not isinstance(mapping, Mapping) or len(mapping) < least:
        raise ValueError(f"{name} must be a dict with at least one step and its value, got {mapping!r}.")
    checked: list[tuple[Any, Any]] = [
        (
            checks.steps(f"a step of {name}", step, minimum=0),
            checks.number(f"{name}[{step!r}]", value, minimum=0),
        )
        for step, value in mapping.items()
    ]
    checked.sort(key=lambda pair: pair[0])
    return [step for step, _ in checked], [value for _, value in checked]


def _difference(end: Any, start: Any) -> Time:
    if checks.is_traced(end) or checks.is_traced(start):
        return since(span(end), span(start))
    return span(end - start)
