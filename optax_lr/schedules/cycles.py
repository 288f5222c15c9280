"""Cycles: a step to its position in its cycle, in integers until the last division.

Near 2^31 a float32 holds every 128th step, and XLA turns `step / n` into a multiplication that may fall
short of a whole number. So a time is split here into whole steps and a part of one: what is whole stays
exact at every step up to 2^31 - 1, be it an integer step, a float step or a traced float that happens to be
whole, and only a period with a fraction is divided in floating point.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import checks
from ..types import Array, Bool, Float, Int, ScalarLike, Step

MAX_CYCLES = 4096
"""The largest table of cycles."""

# The largest float32 below 2^31, so that a float converts to an int32 without overflow.
_MAX_FLOAT_STEP = 2.0**31 - 2.0**7
_MAX_WHOLE = 2**32 - 1


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
    carry = int(part) if isinstance(part, float) else jnp.floor(part).astype(jnp.uint32)
    return Time(_saturating_sum(whole, carry), part - carry)


def reached(time: Time, start: Time) -> Any:
    """Whether a time is at or after a start."""
    whole, begin = _unsigned(time.whole), _unsigned(start.whole)
    if _is_whole(start):
        return whole >= begin
    return (whole > begin) | ((whole == begin) & (time.part >= start.part))


def since(time: Time, start: Time) -> Time:
    """The time since a start, 0 before it; one of both is an array."""
    after = reached(time, start)
    passed = _unsigned(time.whole) - _unsigned(start.whole)
    if _is_whole(start):
        part = time.part if _is_whole(time) else jnp.where(after, time.part, 0.0)
        return Time(jnp.where(after, passed, 0), part)
    part = time.part - start.part
    borrow = part < 0
    return Time(jnp.where(after, passed - borrow, 0), jnp.where(after, part + borrow, 0.0))


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


class Position(NamedTuple):
    """Where a step stands in its cycle.

    Attributes:
      index: the cycle, counted from 0.
      offset: whole steps since the cycle's first whole step. (A float step between the real start of a cycle
        and its first whole step has -1.)
      length: how many whole steps the cycle has, at most 2^31 - 1.
      progress: the share of the cycle that is over, from its real start over its real length, in [0, 1).

    After the last cycle of a limited number: its index and length, its length as offset too, and progress 1.
    """

    index: Int[Array, ""]  # type: ignore[assignment]  # every tuple has a method of this name
    offset: Int[Array, ""]
    length: Int[Array, ""]
    progress: Float[Array, ""]


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True)
class Cycles:
    """Cycles of equal or growing length: cycle i lasts first * growth^i steps.

    Lengths are real numbers: 10 * 1.5^i restarts at 0, 10, 25, 47.5 and 81.25, so on step 48 after step 25. A
    start closer than 1e-6 to a whole number is that number.

    Args:
      first: steps of the first cycle, whole, at least 1. May be traced where `growth` is whole.
      growth: how many times longer each cycle is than the last, at least 1; a concrete number.
      limit: how many cycles there are, at least 1; None for no end. May be traced.

    Raises:
      ValueError: a number is out of its range; `first` is traced and `growth` has a fraction; or growth is so
        slow that there are more than 4,096 cycles in 2^31 steps.

    >>> cycles = Cycles(10, growth=2)
    >>> cycles.ends(100)
    (9, 29, 69)
    >>> position = cycles.position(25)
    >>> int(position.index), int(position.offset), int(position.length), float(position.progress)
    (1, 15, 20, 0.75)

    Source: Loshchilov & Hutter 2017 (arXiv:1608.03983), section 3; real lengths as in timm.
    """

    first: Any
    growth: float = 1.0
    limit: Any = None

    def __post_init__(self) -> None:
        if checks.is_traced(self.growth):
            raise ValueError(f"growth must be concrete, got {self.growth}.")
        set_ = functools.partial(object.__setattr__, self)
        set_("growth", checks.number("growth", self.growth, minimum=1, maximum=checks.MAX_STEP))
        set_("first", checks.steps("first", self.first, whole=True))
        set_(
            "limit",
            None if self.limit is None else checks.steps("limit", self.limit, whole=True, unit="cycles"),
        )
        if not self.growth.is_integer():
            self._starts()

    @classmethod
    def of(cls, name: str, cycles: "Cycles | ScalarLike") -> "Cycles":
        """The cycles that an argument stands for: itself, or cycles of that many steps without an end.

        Raises:
          ValueError: `cycles` is neither a `Cycles` nor a whole number of steps of at least 1.
        """
        return cycles if isinstance(cycles, cls) else cls(checks.steps(name, cycles, whole=True))

    def tree_flatten(self) -> tuple[tuple[Any, Any], float]:
        return (self.first, self.limit), self.growth

    @classmethod
    def tree_unflatten(cls, growth: float, children: tuple[Any, Any]) -> "Cycles":
        # Not by the constructor: JAX also puts placeholders into the leaves, which no check would pass.
        cycles = object.__new__(cls)
        for name, value in zip(("first", "limit", "growth"), (*children, growth), strict=True):
            object.__setattr__(cycles, name, value)
        return cycles

    def position(self, step: Step) -> Position:
        """The cycle that a step is in, and where.

        Args:
          step: a step from 0 on, integer or float; before 0 it counts as 0.
        """
        time = clock(step)
        unlimited = self._index(time)
        index = unlimited if self.limit is None else jnp.minimum(unlimited, self.limit - 1)
        start, length, lead, real_length = self._bounds(index)
        offset = time.whole.astype(jnp.int32) - start
        share = as_float(Time(offset, lead + time.part)) / real_length
        progress = jnp.minimum(share, 1 - float(jnp.finfo(share.dtype).epsneg))
        if self.limit is None:
            return Position(index, offset, length, progress)
        over = unlimited >= self.limit
        return Position(index, jnp.where(over, length, offset), length, jnp.where(over, 1.0, progress))

    def is_end(self, step: Step) -> Bool[Array, ""]:
        """Whether a step is the last whole one of its cycle."""
        position = self.position(step)
        return position.offset == position.length - 1

    def ends(self, total_steps: int) -> tuple[int, ...]:
        """The last step of each cycle that ends within steps 0 to `total_steps` - 1.

        Raises:
          ValueError: `total_steps` is not a whole number of at least 1, or `first` or `limit` is traced.
        """
        for name, value in (("total_steps", total_steps), ("first", self.first), ("limit", self.limit)):
            if checks.is_traced(value):
                raise ValueError(f"{name} must be concrete where the ends of cycles are listed, got {value}.")
        total = int(checks.steps("total_steps", total_steps, whole=True))
        if self.growth == 1:
            ends = list(range(int(self.first) - 1, total, int(self.first)))
        else:
            ends = [int(np.ceil(start)) - 1 for start in self._starts()[1:]]
        return tuple(end for end in ends[: None if self.limit is None else int(self.limit)] if end < total)

    def _starts(self) -> np.ndarray:
        if checks.is_traced(self.first):
            raise ValueError(f"first must be concrete where growth={self.growth!r} has a fraction.")
        return _real_starts(int(self.first), self.growth)

    def _index(self, time: Time) -> Array:
        """The cycle of a time, were there no limit."""
        if not self.growth.is_integer():
            return jnp.sum(reached(time, table(self._starts()[:-1])), dtype=jnp.int32) - 1
        # In units of the first length all starts are whole, whatever that length is.
        units = lax.div(time.whole, jnp.asarray(self.first, jnp.uint32))
        if self.growth == 1:
            return units.astype(jnp.int32)
        starts = _real_starts(1, self.growth)[:-1].astype(np.uint32)
        return jnp.sum(units >= starts, dtype=jnp.int32) - 1

    def _bounds(self, index: Array) -> tuple[Array, Array, Array | float, Array]:
        """A cycle's first whole step, number of whole steps, the time from its real start to that step, and
        its real length."""
        if not self.growth.is_integer():
            starts = self._starts()
            whole = np.ceil(starts)
            lengths = np.minimum(np.diff(whole), checks.MAX_STEP)
            start, length = (row(jnp.asarray(rows, jnp.int32), index) for rows in (whole[:-1], lengths))
            leads, real = (jnp.asarray(rows, float) for rows in ((whole - starts)[:-1], np.diff(starts)))
            return start, length, row(leads, index), row(real, index)
        first = jnp.asarray(self.first, jnp.int32)
        if self.growth == 1:
            return first * index, first, 0, first.astype(float)
        starts = _real_starts(1, self.growth)
        sizes = np.minimum(np.diff(starts), checks.MAX_STEP)
        size = row(jnp.asarray(sizes, jnp.int32), index)
        length = jnp.where(size > lax.div(jnp.int32(checks.MAX_STEP), first), checks.MAX_STEP, first * size)
        real = first.astype(float) * row(jnp.asarray(np.diff(starts), float), index)
        return first * row(jnp.asarray(starts[:-1], jnp.int32), index), length, 0, real


@functools.cache
def _real_starts(first: int, growth: float) -> np.ndarray:
    """The real starts of growing cycles that begin by step 2^31 - 1, and the end of the last of them."""
    cycles = int(math.log1p(checks.MAX_STEP * (growth - 1) / first) / math.log(growth)) + 1
    if cycles > MAX_CYCLES:
        raise ValueError(
            f"growth={growth!r} from first={first!r} makes {cycles} cycles in 2^31 steps, over {MAX_CYCLES}."
        )
    # One more than the logarithm says, for it may be a rounding error short.
    starts = first * (growth ** np.arange(cycles + 2, dtype=np.float64) - 1) / (growth - 1)
    reaching = starts[: np.flatnonzero(starts > checks.MAX_STEP)[0] + 1]
    return np.where(np.abs(reaching - np.round(reaching)) < 1e-6, np.round(reaching), reaching)


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
        return min(a + b, _MAX_WHOLE)
    return _unsigned(a) + jnp.minimum(_unsigned(b), ~_unsigned(a))
