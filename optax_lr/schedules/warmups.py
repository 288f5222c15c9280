"""Warm-ups before a schedule."""

from .. import checks
from ..types import Array, Curve, ScalarLike, Schedule, Step
from . import curves
from .compose import value_at
from .decays import bounded_decay
from .named import Named, known_sum, length_of, named
from .phases import constant_schedule, cosine_decay
from .pieces import phase
from .times import clock, since, span


@named
def with_warmup(
    schedule: Schedule,
    warmup_steps: ScalarLike,
    *,
    init_value: ScalarLike = 0.0,
    curve: Curve = curves.linear,
) -> Schedule:
    """A warm-up before a schedule, whose own clock starts when the warm-up ends.

    With w = `warmup_steps`:
    1. t < w: init_value + (schedule(0) - init_value) * curve(t / w)
    2. from there: schedule(t - w)

    Args:
      schedule: what follows.
      warmup_steps: w, at least 0.
      init_value: the value at step 0 of a warm-up, at least 0.
      curve: a curve of `curves`, or your own function from [0, 1] to [0, 1].

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is out of its range, `schedule` is not a function, or `curve` is not a curve.

    >>> import optax_lr as olr
    >>> schedule = with_warmup(olr.cosine_decay_schedule(1.0, 100), 10)
    >>> [round(float(schedule(step)), 4) for step in (0, 5, 10, 60, 110)]
    [0.0, 0.5, 1.0, 0.5, 0.0]

    Source: Goyal et al. 2017 (arXiv:1706.02677), section 2.2.
    """
    part = checks.function("schedule", schedule)
    init = checks.number("init_value", init_value, minimum=0)
    count, shape = checks.steps("warmup_steps", warmup_steps, minimum=0), checks.curve("curve", curve)
    warmup = span(count)

    def warmed_up(step: Step) -> Array:
        time = clock(step)
        # Before the warm-up ends, the schedule's clock stands at 0.
        return phase(init, value_at(part, since(time, warmup), step), shape, time, warmup)

    return Named(warmed_up, known_sum(count, length_of(part)))


@named
def warmup_constant_schedule(
    init_value: ScalarLike, peak_value: ScalarLike, warmup_steps: ScalarLike
) -> Schedule:
    """A straight warm-up to a value, which is then held.

    Args:
      init_value: the value at step 0 of a warm-up, at least 0.
      peak_value: the value from step `warmup_steps` on, at least 0.
      warmup_steps: at least 0. (Without a warm-up Optax's schedule stays at `init_value`.)

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is out of its range.

    >>> [float(warmup_constant_schedule(0.0, 1.0, 4)(step)) for step in (0, 2, 4, 9)]
    [0.0, 0.5, 1.0, 1.0]

    Source: `optax.warmup_constant_schedule`.
    """
    peak = constant_schedule(checks.number("peak_value", peak_value, minimum=0))
    return Named(with_warmup(peak, warmup_steps, init_value=init_value))


@named
def warmup_cosine_decay_schedule(
    init_value: ScalarLike,
    peak_value: ScalarLike,
    warmup_steps: ScalarLike,
    decay_steps: ScalarLike,
    end_value: ScalarLike = 0.0,
    exponent: ScalarLike = 1.0,
) -> Schedule:
    """A straight warm-up to a peak, then a decay along a cosine.

    With w = `warmup_steps`, N = `decay_steps`:
    1. t < w: init_value + (peak_value - init_value) * t / w
    2. from there: end_value + (peak_value - end_value) * ((1 + cos(pi * min((t - w) / (N - w), 1))) / 2)^exponent

    Args:
      init_value: the value at step 0 of a warm-up, at least 0.
      peak_value: the value at step w, at least 0.
      warmup_steps: w, at least 0.
      decay_steps: N, the length of the whole schedule, the warm-up included; above w.
      end_value: the value from step N on, at least 0.
      exponent: above 0.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is out of its range.

    >>> schedule = warmup_cosine_decay_schedule(0.0, 1.0, 10, 110, end_value=0.1)
    >>> [round(float(schedule(step)), 4) for step in (0, 5, 10, 60, 110)]
    [0.0, 0.5, 1.0, 0.55, 0.1]

    Source: `optax.warmup_cosine_decay_schedule`.
    """
    peak = checks.number("peak_value", peak_value, minimum=0)
    end = checks.number("end_value", end_value, minimum=0)
    warmup = checks.steps("warmup_steps", warmup_steps, minimum=0)
    total = checks.steps("decay_steps", decay_steps)
    if not (checks.is_traced(warmup) or checks.is_traced(total)) and total <= warmup:
        raise ValueError(
            f"decay_steps counts the warm-up too and must be above warmup_steps={warmup_steps!r}, "
            f"got {decay_steps!r}."
        )
    decay = cosine_decay(peak, end, since(span(total), span(warmup)), exponent)
    return Named(with_warmup(decay, warmup, init_value=init_value), known_sum(total))


@named
def warmup_exponential_decay_schedule(
    init_value: ScalarLike,
    peak_value: ScalarLike,
    warmup_steps: ScalarLike,
    transition_steps: ScalarLike,
    decay_rate: ScalarLike,
    transition_begin: ScalarLike = 0,
    staircase: bool = False,
    end_value: ScalarLike | None = None,
) -> Schedule:
    """A straight warm-up to a peak, then an exponential decay, whose clock starts when the warm-up ends.

    Args:
      init_value: the value at step 0 of a warm-up, at least 0.
      peak_value: the value at step `warmup_steps`, at least 0.
      warmup_steps: at least 0.
      transition_steps, decay_rate, transition_begin, staircase, end_value: of the decay, as in
        `exponential_decay`; `transition_begin` counts from the end of the warm-up.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is out of its range.

    >>> schedule = warmup_exponential_decay_schedule(0.0, 1.0, 10, 20, 0.5)
    >>> [round(float(schedule(step)), 4) for step in (0, 5, 10, 30, 50)]
    [0.0, 0.5, 1.0, 0.5, 0.25]

    Source: `optax.warmup_exponential_decay_schedule`.
    """
    decay = bounded_decay(
        "peak_value", peak_value, transition_steps, decay_rate, transition_begin, staircase, end_value
    )
    return with_warmup(decay, warmup_steps, init_value=init_value)
