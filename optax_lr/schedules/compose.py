"""Composition: schedules to a schedule.

A part may be any function of the step: one of ours, one of Optax's, or your own. A part is asked with an integer
step wherever that is possible.

What other libraries call by other names, with s a schedule, n the steps of the run and w those of a warm-up:

    LambdaLR              multiply_schedules(constant_schedule(rate), factor)
    MultiplicativeLR      table_schedule(rate * np.cumprod([1.0, *factors]))
    ConstantLR            multiply_schedules(s, piecewise_constant_schedule(1 / 3, {5: 3}))
    LinearLR              multiply_schedules(s, linear_schedule(1 / 3, 1, 5))
    StepLR                exponential_decay(rate, 30, gamma, staircase=True)
    MultiStepLR           piecewise_constant_schedule(rate, {30: gamma, 80: gamma})
    ExponentialLR         exponential_decay(rate, 1, gamma)
    PolynomialLR          polynomial_schedule(rate, 0, power, n)
    CosineAnnealingLR     anneal_schedule(rate, low, n)
    WarmRestarts          sgdr_schedule(rate, low, Cycles(30, growth=2))
    CyclicLR              cyclical_schedule(low, low + gap, 20)
    its scale by step     add_schedules(lambda t: low, multiply_schedules(cyclical_schedule(0, gap, 20), s))
    hard restarts         with_warmup(sgdr_schedule(rate, 0, Cycles((n - w) / 3, limit=3)), w)
    WSD, rsqrt plateau    multiply_schedules(inverse_sqrt_schedule(rate, w), knot_schedule({n - 20: 1, n: 0}))
    values from steps on  join_schedules([constant_schedule(rate), constant_schedule(low)], [30])
    timm noise            multiply_schedules(s, lambda t: 1 + uniform(fold_in(key, t), minval=-0.67, maxval=0.67))
"""

import functools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from .. import checks
from ..types import Array, Float, ScalarLike, Schedule, Step
from .named import Named, known_maximum, known_sum, length_of, named
from .times import Time, as_float, clock, divide, later, reached, since, span


@named
def shift_schedule(schedule: Schedule, steps: ScalarLike) -> Schedule:
    """A schedule whose clock starts some steps ahead: schedule(t + steps).

    Args:
      schedule: what is shifted.
      steps: how far ahead, at least 0. The clock saturates at 2^31 - 1.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is out of its range, or `schedule` is not a function.

    >>> import optax_lr as olr
    >>> round(float(shift_schedule(olr.cosine_decay_schedule(1.0, 100), 50)(0)), 4)
    0.5
    """
    part = checks.function("schedule", schedule)
    count = checks.steps("steps", steps, minimum=0)
    ahead, end = span(count), length_of(part)
    passed = known_sum(count)
    left = None if end is None or passed is None else max(end - passed, 0)
    return Named(lambda step: value_at(part, later(clock(step), ahead), step), left)


@named
def join_schedules(schedules: Sequence[Schedule], boundaries: Iterable[ScalarLike]) -> Schedule:
    """One schedule after another, each with its own clock, which starts at 0 on its boundary.

    value(t) = schedules[i](t - boundaries[i - 1]) for the last boundary up to t, else schedules[0](t).

    Args:
      schedules: at least one. None of them sees a step below 0, so that gradients stay finite.
      boundaries: where each schedule but the first begins: steps from 0 on, in increasing order; each may be
        traced. Between two equal ones nothing runs.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: the numbers of schedules and boundaries do not fit, boundaries decrease, or a schedule is
        not a function.

    >>> import optax_lr as olr
    >>> up, down = olr.linear_schedule(0.0, 1.0, 10), olr.cosine_decay_schedule(1.0, 20)
    >>> [round(float(join_schedules([up, down], [10])(step)), 4) for step in (0, 5, 10, 20, 30)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    parts = [checks.function(f"schedules[{i}]", part) for i, part in enumerate(schedules)]
    if not parts:
        raise ValueError(f"schedules must hold at least one schedule, got {schedules!r}.")
    checked = checks.boundaries("boundaries", boundaries, number=len(parts) - 1)
    starts = [span(boundary) for boundary in checked]

    def joined(step: Step) -> Array:
        time = clock(step)
        later_values = [
            (start, value_at(part, since(time, start), step))
            for start, part in zip(starts, parts[1:], strict=True)
        ]
        return functools.reduce(
            lambda value, later_one: jnp.where(reached(time, later_one[0]), later_one[1], value),
            later_values,
            value_at(parts[0], time, step),
        )

    return Named(joined, known_sum(*checked[-1:], length_of(parts[-1])))


@named
def scale_schedule(schedule: Schedule, factor: ScalarLike) -> Schedule:
    """A schedule times a number: factor * schedule(t).

    Args:
      schedule: what is scaled.
      factor: any finite number; -1 turns a rate into what `optax.scale_by_schedule` wants.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete `factor` is not finite, or `schedule` is not a function.

    >>> import optax_lr as olr
    >>> round(float(scale_schedule(olr.cosine_decay_schedule(1.0, 100), 0.5)(50)), 4)
    0.25
    """
    part = checks.function("schedule", schedule)
    times = checks.number("factor", factor)
    return Named(lambda step: times * value_at(part, clock(step), step), length_of(part))


@named
def multiply_schedules(*schedules: Schedule) -> Schedule:
    """The product of schedules at the same step.

    Args:
      schedules: at least one.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: there is none, or one is not a function.

    >>> import optax_lr as olr
    >>> fade = olr.knot_schedule({80: 1.0, 100: 0.0})
    >>> cooled = multiply_schedules(olr.inverse_sqrt_schedule(1.0, 10), fade)
    >>> [round(float(cooled(step)), 4) for step in (10, 40, 90, 100)]
    [1.0, 0.5, 0.1667, 0.0]
    """
    return _reduced(operator.mul, schedules)


@named
def add_schedules(*schedules: Schedule) -> Schedule:
    """The sum of schedules at the same step.

    Args:
      schedules: at least one.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: there is none, or one is not a function.

    >>> import optax_lr as olr
    >>> wave = olr.cyclical_schedule(0.0, 0.2, 10)
    >>> waving = add_schedules(olr.linear_schedule(1.0, 0.0, 100), wave)
    >>> [round(float(waving(step)), 4) for step in (0, 10, 20, 110)]
    [1.0, 1.1, 0.8, 0.2]
    """
    return _reduced(operator.add, schedules)


@named
def clip_schedule(schedule: Schedule, min_value: ScalarLike, max_value: ScalarLike) -> Schedule:
    """A schedule kept between two values.

    Args:
      schedule: what is clipped.
      min_value: the smallest value.
      max_value: the largest value, at least `min_value`.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is not finite, `max_value` is below `min_value`, or `schedule` is not a
        function.

    >>> import optax_lr as olr
    >>> schedule = clip_schedule(olr.cosine_decay_schedule(1.0, 100), 0.25, 0.75)
    >>> [round(float(schedule(step)), 4) for step in (0, 50, 100)]
    [0.75, 0.5, 0.25]
    """
    part = checks.function("schedule", schedule)
    low, high = checks.number("min_value", min_value), checks.number("max_value", max_value)
    checks.not_below("max_value", high, "min_value", low)
    return Named(lambda step: jnp.clip(value_at(part, clock(step), step), low, high), length_of(part))


@named
def in_epochs(schedule: Schedule, steps_per_epoch: ScalarLike, *, staircase: bool = False) -> Schedule:
    """A schedule that reads epochs, as a schedule that reads steps.

    value(t) = schedule(t // n + (t % n) / n), with n = `steps_per_epoch`

    The schedule is built with numbers of epochs, at least 1 each. What lasts a part of an epoch is given in steps,
    outside: `with_warmup(in_epochs(schedule, n), n / 2)`.

    Args:
      schedule: what reads epochs, in float32 (which has steps of 1/1024 up to epoch 8,192).
      steps_per_epoch: n, at least 1; a fraction where the last batch of an epoch is smaller.
      staircase: whether the schedule sees whole epochs alone, as integers.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is out of its range, or `schedule` is not a function.

    >>> import optax_lr as olr
    >>> epochs = olr.cosine_decay_schedule(1.0, 2)
    >>> [round(float(in_epochs(epochs, 100)(step)), 4) for step in (0, 100, 150, 200)]
    [1.0, 0.5, 0.1464, 0.0]
    >>> [round(float(in_epochs(epochs, 100, staircase=True)(step)), 4) for step in (0, 100, 150, 200)]
    [1.0, 0.5, 0.5, 0.0]
    """
    part = checks.function("schedule", schedule)
    count = checks.steps("steps_per_epoch", steps_per_epoch)
    epoch, epochs = span(count), length_of(part)

    def by_step(step: Step) -> Array:
        index, rest = divide(clock(step), epoch)
        at = index if staircase else index.astype(float) + as_float(rest) / as_float(epoch)
        return jnp.asarray(part(at), float)

    known = known_sum(count)
    return Named(by_step, None if epochs is None or known is None else epochs * known)


def sample_schedule(schedule: Schedule, num_steps: int) -> Float[Array, "steps"]:
    """The values at steps 0 to num_steps - 1, in one vmapped call: to print, to plot, to compare.

    Args:
      schedule: a function of the step.
      num_steps: how many values, at least 1; concrete.

    Raises:
      ValueError: `num_steps` is traced, has a fraction or is below 1, or `schedule` is not a function.

    >>> import optax_lr as olr
    >>> sample_schedule(olr.knot_schedule({0: 0.0, 2: 1.0}), 4).tolist()
    [0.0, 0.5, 1.0, 1.0]
    """
    part = checks.function("schedule", schedule)
    if checks.is_traced(num_steps):
        raise ValueError(f"num_steps must be concrete, got {num_steps}.")
    number = checks.steps("num_steps", num_steps, whole=True)
    return jax.jit(jax.vmap(lambda step: jnp.asarray(part(step), float)))(jnp.arange(number))


def rescale_for_batch(
    learning_rate: ScalarLike,
    from_batch_size: ScalarLike,
    to_batch_size: ScalarLike,
    *,
    rule: Literal["linear", "sqrt"] = "linear",
) -> float | Array:
    """A learning rate found at one batch size, for another.

    With k = to_batch_size / from_batch_size: learning_rate * k ("linear", for SGD) or * sqrt(k) ("sqrt", for
    Adam and its kin). To rescale a schedule: `scale_schedule(schedule, rescale_for_batch(1.0, 256, 1024))`.

    The linear rule is for rates that the noise of the gradient limits. For small batches it is too steep, and where
    curvature limits the rate no larger batch allows a larger one: on a small network batches of 8, 32 and 128 had
    best rates of 0.41, 0.76 and 0.84 (benchmarks/rules.py). `lr_transfer` gives a range.

    Args:
      learning_rate: at least 0.
      from_batch_size, to_batch_size: examples a step, at least 1.
      rule: "linear" or "sqrt".

    Returns:
      A Python float, or an array where an argument is traced.

    Raises:
      ValueError: a concrete number is out of its range, or the rule is another word.

    >>> rescale_for_batch(0.1, 256, 1024), rescale_for_batch(1e-3, 256, 1024, rule="sqrt")
    (0.4, 0.002)

    Source: Goyal et al. 2017 (arXiv:1706.02677), section 2.1; Malladi et al. 2022 (arXiv:2205.10287).
    """
    rate = checks.number("learning_rate", learning_rate, minimum=0)
    checks.choice("rule", rule, ("linear", "sqrt"))
    ratio = checks.number("to_batch_size", to_batch_size, minimum=1) / checks.number(
        "from_batch_size", from_batch_size, minimum=1
    )
    if rule == "linear":
        return rate * ratio
    return rate * (math.sqrt(ratio) if isinstance(ratio, float) else jnp.sqrt(ratio))


def _reduced(combine: Callable[[Array, Array], Array], schedules: Sequence[Schedule]) -> Named:
    """The values of schedules at the same step, combined."""
    parts = [checks.function(f"schedules[{i}]", part) for i, part in enumerate(schedules)]
    if not parts:
        raise ValueError("schedules must hold at least one schedule, got ().")

    def combined(step: Step) -> Array:
        return functools.reduce(combine, (value_at(part, clock(step), step) for part in parts))

    return Named(combined, known_maximum([length_of(part) for part in parts]))


def value_at(schedule: Schedule, time: Time, step: Step) -> Array:
    """A schedule's value at a time: at an integer step where that is whole, unless `step` came as a float."""
    whole = jnp.minimum(time.whole, checks.MAX_STEP).astype(jnp.int32)
    if isinstance(time.part, int):
        return jnp.asarray(schedule(whole), float)
    between = jnp.asarray(schedule(as_float(time)), float)
    if jnp.issubdtype(jnp.asarray(step).dtype, jnp.floating):
        return between
    return jnp.where(time.part == 0, jnp.asarray(schedule(whole), float), between)
