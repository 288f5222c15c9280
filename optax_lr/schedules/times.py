"""Times in steps, exact: whole steps in integers, and a part of one.

Near 2^31 a float32 holds every 128th step, and XLA turns `step / n` into a multiplication that may fall
short of a whole number. So whole steps stay integers until the last division, at every step up to 2^31 - 1: for
an integer step, a float step, or a traced float that happens to be whole. Only a period with a fraction is
divided in floating point.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from ..types import Array, Float, Int, ScalarLike, Step

# The largest float32 below 2^31, so that a float converts to an int32 without overflow.
_MAX_FLOAT_STEP = 2.0**31 - 2.0**7

MAX_WHOLE = 2**32 - 1
"""The largest time."""


class Time(NamedTuple):
    """Steps since some moment, or a number of them: whole steps and a part of one in [0, 1).

    What is known when a schedule is built is a Python number; the rest is uint32, which has room for the sum
    of two counts, and float. A part of Python's 0 says that the time is whole whatever the values.
    """

    whole: Any
    part: Any = 0


def clock(step: Step) -> Time:
    """The time at a step, from 0 on: before step 0 it is 0."""
    t = jnp.asarray(step)
    if jnp.issubdtype(t.dtype, jnp.floating):
        return span(t.astype(float))
    return Time(jnp.maximum(t, 0).astype(jnp.uint32))


def span(*counts: ScalarLike | Time) -> Time:
    """The sum of times and of numbers of steps, as `checks.steps` returns them; it saturates at 2^32 - 1."""
    return functools.reduce(later, map(_split, counts))


def table(numbers: np.ndarray) -> Time:
    """Known numbers of steps, at most 2^32 - 1, as one time of arrays."""
    whole = np.floor(numbers)
    parts = numbers - whole
    return Time(jnp.asarray(whole.astype(np.uint32)), jnp.asarray(parts, float) if parts.any() else 0)


def row(rows: Array, index: Array) -> Array:
    """One row of an array, by an index within it."""
    return lax.dynamic_index_in_dim(rows, index, keepdims=False, allow_negative_indices=False)


def entry(times: Time, index: Array) -> Time:
    """One time of a table."""
    return Time(row(times.whole, index), times.part if _is_whole(times) else row(times.part, index))


def later(time: Time, wait: Time) -> Time:
    """The time after a further wait; it saturates at 2^32 - 1."""
    part = time.part + wait.part
    whole = _saturating_sum(time.whole, wait.whole)
    if isinstance(part, int):
        return Time(whole)
    if isinstance(part, float):
        return Time(_saturating_sum(whole, int(part)), part - int(part))
    carry = jnp.floor(part)
    return Time(_saturating_sum(whole, carry.astype(jnp.uint32)), part - carry)


def reached(time: Time, start: Time) -> Any:
    """Whether a time is at or after a start."""
    whole, begin = _unsigned(time.whole), _unsigned(start.whole)
    if _is_whole(start):
        return whole >= begin
    return (whole > begin) | ((whole == begin) & (time.part >= start.part))


def since(time: Time, start: Time) -> Time:
    """The time since a start, 0 before it; one of both is an array."""
    after = reached(time, start)
    passed = jnp.asarray(_unsigned(time.whole)) - _unsigned(start.whole)
    if _is_whole(start):
        part = time.part if _is_whole(time) else jnp.where(after, time.part, 0.0)
        return Time(jnp.where(after, passed, 0), part)
    part = time.part - start.part
    borrowed = part < 0
    part = jnp.where(borrowed, part + 1, part)
    return Time(jnp.where(after, jnp.where(borrowed, passed - 1, passed), 0), jnp.where(after, part, 0.0))


def as_float(time: Time) -> Float[Array, "*table"]:
    """A time as one number of the default float type."""
    if isinstance(time.whole, int) and isinstance(time.part, int | float):
        return jnp.asarray(time.whole + time.part, float)
    whole = jnp.asarray(time.whole).astype(float)
    return whole if _is_whole(time) else whole + time.part


def divide(time: Time, period: Time) -> tuple[Int[Array, ""], Time]:
    """How many periods are over, and the time since the last of them began.

    A whole period is divided in integers; one with a fraction in floating point, where the remainder is exact
    for the float it is given.
    """
    size = jnp.maximum(_unsigned(period.whole), 1)
    count = lax.div(time.whole, size)
    rest = time.whole - count * size
    if _is_whole(period):
        return count.astype(jnp.int32), Time(rest, time.part)
    t, stated = as_float(time), as_float(period)
    length = jnp.where(stated > 0, stated, 1)
    remainder = lax.rem(t, length)
    float_count = jnp.round((t - remainder) / length).astype(jnp.int32)
    float_rest = _split(remainder)
    whole = jnp.asarray(period.part) == 0
    return (
        jnp.where(whole, count.astype(jnp.int32), float_count),
        Time(jnp.where(whole, rest, float_rest.whole), jnp.where(whole, time.part, float_rest.part)),
    )


def _split(count: Any) -> Time:
    if isinstance(count, Time):
        return count
    if isinstance(count, int):
        return Time(count)
    if isinstance(count, float):
        return Time(int(count), count % 1 or 0)
    if jnp.issubdtype(count.dtype, jnp.integer):
        return Time(count.astype(jnp.uint32))
    bounded = jnp.clip(count, 0, _MAX_FLOAT_STEP)
    whole = jnp.floor(bounded)
    return Time(whole.astype(jnp.uint32), bounded - whole)


def _unsigned(whole: Any) -> Any:
    return np.uint32(whole) if isinstance(whole, int) else whole


def _is_whole(time: Time) -> bool:
    return isinstance(time.part, int)


def _saturating_sum(a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, int):
        return min(a + b, MAX_WHOLE)
    return _unsigned(a) + jnp.minimum(_unsigned(b), ~_unsigned(a))
