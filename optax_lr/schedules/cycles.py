"""Cycles: a step to its position in its cycle, in integers until the last division."""

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import checks
from ..types import Array, Bool, Float, Int, ScalarLike, Step
from .times import MAX_WHOLE, Time, as_float, clock, divide, reached, row, since, span, table

MAX_CYCLES = 4096
"""The largest table of cycles."""


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
    """Cycles of equal, growing or shrinking length: cycle i lasts first * growth^i steps, at least 1.

    Lengths are real numbers: 10 * 1.5^i restarts at 0, 10, 25, 47.5 and 81.25, so on step 48 after step 25. A
    start closer than 1e-6 to a whole number is that number.

    Args:
      first: steps of the first cycle, at least 1. It may have a fraction, as where a run is divided into cycles:
        `Cycles(1000 / 3, limit=3)`. It may be traced where `growth` is whole, and is then rounded down.
      growth: each length over the last one, above 0; static (concrete, never traced). Below 1 cycles shrink until
        they are one step long, from a whole step on, and stay so.
      limit: how many cycles there are, at least 1; None for no end. May be traced.

    Raises:
      ValueError: a number is out of its range; `first` is traced and `growth` is not whole; or `growth` is so
        close to 1 that there are more than 4,096 cycles in 2^31 steps, or before they are one step long.

    >>> cycles = Cycles(10, growth=2)
    >>> cycles.ends(100)
    (9, 29, 69)
    >>> position = cycles.position(25)
    >>> int(position.index), int(position.offset), int(position.length), float(position.progress)
    (1, 15, 20, 0.75)
    >>> Cycles(100 / 3).ends(100), Cycles(8, growth=0.5).ends(18)
    ((33, 66, 99), (7, 11, 13, 14, 15, 16, 17))

    Source: Loshchilov & Hutter 2017 (arXiv:1608.03983), section 3; real lengths as in timm.
    """

    first: Any
    growth: float = 1.0
    limit: Any = None

    def __post_init__(self) -> None:
        if checks.is_traced(self.growth):
            raise ValueError(f"growth must be concrete, got {self.growth}.")
        set_ = functools.partial(object.__setattr__, self)
        set_("growth", checks.number("growth", self.growth, above=0, maximum=checks.MAX_STEP))
        set_("first", checks.steps("first", self.first, whole=checks.is_traced(self.first)))
        set_(
            "limit",
            None if self.limit is None else checks.steps("limit", self.limit, whole=True, unit="cycles"),
        )
        if not self._is_whole():
            self._starts()

    @classmethod
    def of(cls, name: str, cycles: "Cycles | ScalarLike") -> "Cycles":
        """The cycles that an argument stands for: itself, or cycles of that many steps without an end.

        Raises:
          ValueError: `cycles` is neither a `Cycles` nor a number of steps of at least 1.
        """
        if isinstance(cycles, cls):
            return cycles
        return cls(checks.steps(name, cycles, whole=checks.is_traced(cycles)))

    def tree_flatten(self) -> tuple[tuple[Any, Any], tuple[float, Any]]:
        # Where a start may have a fraction the first length sizes a table, so it is static.
        static = None if self._is_whole() else self.first
        return (self.first if static is None else None, self.limit), (self.growth, static)

    @classmethod
    def tree_unflatten(cls, static: tuple[float, Any], children: tuple[Any, Any]) -> "Cycles":
        # Not by the constructor: JAX also puts placeholders into the leaves, which no check would pass.
        cycles = object.__new__(cls)
        (growth, known), (first, limit) = static, children
        values = {"first": first if known is None else known, "growth": growth, "limit": limit}
        for name, value in values.items():
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

    def ends(self, num_steps: int) -> tuple[int, ...]:
        """The last step of each cycle that ends within steps 0 to `num_steps` - 1.

        Raises:
          ValueError: `num_steps` is not a whole number of at least 1, or `first` or `limit` is traced.
        """
        for name, value in (("num_steps", num_steps), ("first", self.first), ("limit", self.limit)):
            if checks.is_traced(value):
                raise ValueError(f"{name} must be concrete where the ends of cycles are listed, got {value}.")
        total = int(checks.steps("num_steps", num_steps, whole=True))
        ends = itertools.takewhile(lambda end: end < total, (math.ceil(s) - 1 for s in self._later_starts()))
        return tuple(itertools.islice(ends, self.limit))

    @property
    def transition_steps(self) -> int | None:
        """How many steps all cycles have; None where they have no end, or where a number is traced."""
        if self.limit is None or checks.is_traced(self.limit) or checks.is_traced(self.first):
            return None
        if self.growth == 1:
            return math.ceil(self.limit * _fraction(self.first))
        start = next(itertools.islice(self._later_starts(), self.limit - 1, None), None)
        return None if start is None else math.ceil(start)

    def _is_whole(self) -> bool:
        """Whether all cycles begin on whole steps because `first` and `growth` are whole."""
        return self.growth.is_integer() and not isinstance(self.first, float)

    def _later_starts(self) -> Iterator[float]:
        """The real starts of the cycles after the first, as far as the table or its repetition goes."""
        if self._is_whole() and self.growth == 1:
            yield from itertools.count(self.first, self.first)
        starts, repeating = self._starts()
        yield from starts[1:]
        if repeating:
            period = starts[-1] - starts[-1 - repeating]
            yield from (start + i * period for i in itertools.count(1) for start in starts[-repeating:])

    def _starts(self) -> "_Starts":
        if checks.is_traced(self.first):
            raise ValueError(f"first must be concrete where growth={self.growth!r} is not whole.")
        if self.growth == 1:
            return _equal_starts(self.first)
        if self.growth < 1:
            return _shrinking_starts(self.first, self.growth)
        return _Starts(_growing_starts(self.first, self.growth))

    def _index(self, time: Time) -> Array:
        """The cycle of a time, were there no limit."""
        if not self._is_whole():
            return self._starts().index(time)
        # In units of the first length all starts are whole, whatever that length is.
        units = lax.div(time.whole, jnp.asarray(self.first, jnp.uint32))
        if self.growth == 1:
            return units.astype(jnp.int32)
        starts = _growing_starts(1, self.growth)[:-1].astype(np.uint32)
        return jnp.sum(units >= starts, dtype=jnp.int32) - 1

    def _bounds(self, index: Array) -> tuple[Array, Array, Array | float, Array]:
        """A cycle's first whole step, number of whole steps, the time from its real start to that step, and
        its real length."""
        if not self._is_whole():
            return self._starts().bounds(index)
        first = jnp.asarray(self.first, jnp.int32)
        if self.growth == 1:
            return first * index, first, 0, first.astype(float)
        starts = _growing_starts(1, self.growth)
        sizes = np.minimum(np.diff(starts), checks.MAX_STEP)
        size = row(jnp.asarray(sizes, jnp.int32), index)
        length = jnp.where(size > lax.div(jnp.int32(checks.MAX_STEP), first), checks.MAX_STEP, first * size)
        real = first.astype(float) * row(jnp.asarray(np.diff(starts), float), index)
        return first * row(jnp.asarray(starts[:-1], jnp.int32), index), length, 0, real


class _Starts(NamedTuple):
    """Real starts of cycles, concrete.

    Attributes:
      real: the starts, and the end of the last cycle.
      repeating: how many of the last cycles come again and again, together a whole number of steps; 0 where the
        table reaches step 2^31 - 1.
    """

    real: np.ndarray
    repeating: int = 0

    def index(self, time: Time) -> Array:  # type: ignore[override]  # every tuple has a method of this name
        """The cycle of a time."""
        head = len(self.real) - 1 - self.repeating
        if not self.repeating:
            return jnp.sum(reached(time, table(self.real[:-1])), dtype=jnp.int32) - 1
        begun = jnp.sum(reached(time, table(self.real[: head + 1])), dtype=jnp.int32) - 1
        blocks, rest = divide(since(time, span(float(self.real[head]))), span(self._period()))
        within = jnp.sum(reached(rest, table(self.real[head:-1] - self.real[head])), dtype=jnp.int32) - 1
        return begun + blocks * self.repeating + within

    def bounds(self, index: Array) -> tuple[Array, Array, Array, Array]:
        """A cycle's first whole step, number of whole steps, the time between, and its real length."""
        whole = np.ceil(self.real)
        rows = [np.minimum(whole[:-1], checks.MAX_STEP), np.minimum(np.diff(whole), checks.MAX_STEP)]
        real_rows = [(whole - self.real)[:-1], np.diff(self.real)]
        head, at, passed = len(self.real) - 1 - self.repeating, index, jnp.int32(0)
        if self.repeating:
            later = jnp.maximum(index - head, 0)
            blocks = lax.div(later, jnp.int32(self.repeating))
            at = jnp.minimum(index, head) + later - blocks * self.repeating
            passed = blocks * self._period()
        start, length = (row(jnp.asarray(values, jnp.int32), at) for values in rows)
        lead, real = (row(jnp.asarray(values, float), at) for values in real_rows)
        return start + passed, length, lead, real

    def _period(self) -> int:
        return round(float(self.real[-1] - self.real[-1 - self.repeating]))


@functools.cache
def _growing_starts(first: float, growth: float) -> np.ndarray:
    """The real starts of growing cycles that begin by step 2^31 - 1, and the end of the last of them."""
    cycles = int(math.log1p(checks.MAX_STEP * (growth - 1) / first) / math.log(growth)) + 1
    if cycles > MAX_CYCLES:
        raise ValueError(
            f"growth={growth!r} from first={first!r} makes {cycles} cycles in 2^31 steps, over {MAX_CYCLES}."
        )
    # One more than the logarithm says, for it may be a rounding error short.
    starts = first * (growth ** np.arange(cycles + 2, dtype=np.float64) - 1) / (growth - 1)
    return _rounded(starts[: np.flatnonzero(starts > checks.MAX_STEP)[0] + 1])


@functools.cache
def _shrinking_starts(first: float, growth: float) -> _Starts:
    """The real starts of shrinking cycles until they are one step long; the last one repeats."""
    cycles = max(math.ceil(-math.log(first) / math.log(growth) - 1e-9), 0)
    if cycles > MAX_CYCLES:
        raise ValueError(
            f"growth={growth!r} from first={first!r} makes {cycles} cycles before they are one step long, "
            f"over {MAX_CYCLES}."
        )
    starts = first * (1 - growth ** np.arange(cycles + 1, dtype=np.float64)) / (1 - growth)
    bounded = np.minimum(_rounded(starts), float(MAX_WHOLE - 1))
    # Single steps begin on whole steps. Else each would stand at the same late progress, far below the peak.
    bounded[-1] = math.ceil(bounded[-1])
    return _Starts(np.append(bounded, bounded[-1] + 1), 1)


@functools.cache
def _equal_starts(first: float) -> _Starts:
    """The real starts of equal cycles of fractional length, as many as last a whole number of steps."""
    length = _fraction(first)
    return _Starts(_rounded(np.arange(length.denominator + 1) * float(length)), length.denominator)


def _fraction(first: float) -> Fraction:
    """The nearest fraction whose repetition is a short table and a number of steps below 2^31."""
    return Fraction(first).limit_denominator(max(1, min(MAX_CYCLES, checks.MAX_STEP // math.ceil(first))))


def _rounded(starts: np.ndarray) -> np.ndarray:
    """Starts, those within 1e-6 of a whole number being that number."""
    return np.where(np.abs(starts - np.round(starts)) < 1e-6, np.round(starts), starts)
