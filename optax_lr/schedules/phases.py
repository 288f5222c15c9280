"""Schedules from one value to another, in one phase or a few."""

import jax.numpy as jnp

from .. import checks
from ..types import Array, Curve, ScalarLike, Schedule, Step
from . import curves
from .named import Named, known_sum, named
from .pieces import blend, log, part, phase, phases, remaining
from .times import Time, as_float, clock, divide, reached, since, span


@named
def constant_schedule(value: ScalarLike) -> Schedule:
    """The same value at every step.

    Args:
      value: at least 0.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete `value` is not a finite number of at least 0.

    >>> float(constant_schedule(0.5)(10))
    0.5

    Source: `optax.constant_schedule`.
    """
    held = checks.number("value", value, minimum=0)
    return lambda step: jnp.asarray(held, float)


@named
def anneal_schedule(
    init_value: ScalarLike,
    end_value: ScalarLike,
    transition_steps: ScalarLike,
    *,
    curve: Curve = curves.cosine,
) -> Schedule:
    """From one value to another along a curve, then held.

    value(t) = init_value + (end_value - init_value) * curve(min(t / transition_steps, 1))

    Args:
      init_value: the value at step 0, at least 0.
      end_value: the value from step `transition_steps` on, at least 0.
      transition_steps: how many steps the transition takes, at least 1.
      curve: a curve of `curves`, or your own function from [0, 1] to [0, 1].

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is out of its range, or `curve` is not a curve.

    >>> schedule = anneal_schedule(0.1, 0.0, 100, curve=curves.rex)
    >>> [round(float(schedule(step)), 4) for step in (0, 50, 100, 200)]
    [0.1, 0.0667, 0.0, 0.0]

    Source: with `curves.cosine`, one cycle of Loshchilov & Hutter 2017 (arXiv:1608.03983), equation 5.
    """
    init = checks.number("init_value", init_value, minimum=0)
    end = checks.number("end_value", end_value, minimum=0)
    return phases(
        [init, end], [checks.steps("transition_steps", transition_steps)], checks.curve("curve", curve)
    )


@named
def polynomial_schedule(
    init_value: ScalarLike,
    end_value: ScalarLike,
    power: ScalarLike,
    transition_steps: ScalarLike,
    transition_begin: ScalarLike = 0,
    *,
    cycle: bool = False,
) -> Schedule:
    """From one value to another along a power of what is left, then held.

    value(t) = end_value + (init_value - end_value) * (1 - s / M)^power, for s = t - transition_begin from 0 to M

    M is N = `transition_steps`. With `cycle` it is N * ceil(s / N): the value is `end_value` at every multiple
    of N, and jumps up right after it, less each time.

    Args:
      init_value: the value until step `transition_begin`, at least 0.
      end_value: the value N steps later, at least 0.
      power: above 0; 1 is a straight line ("linear until tau, then constant").
      transition_steps: N, at least 1.
      transition_begin: the step at which the transition begins, at least 0.
      cycle: whether to run again.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is out of its range. (Optax is silently constant for 0 steps.)

    >>> schedule = polynomial_schedule(1.0, 0.0, 2.0, 10)
    >>> [round(float(schedule(step)), 4) for step in (0, 5, 10, 20)]
    [1.0, 0.25, 0.0, 0.0]
    >>> [float(polynomial_schedule(1.0, 0.0, 1.0, 10, cycle=True)(step)) for step in (10, 15, 20)]
    [0.0, 0.25, 0.0]

    Source: `optax.polynomial_schedule`; Goodfellow, Bengio & Courville 2016, equation 8.14; `cycle` as in Keras'
    `PolynomialDecay`.
    """
    init = checks.number("init_value", init_value, minimum=0)
    end = checks.number("end_value", end_value, minimum=0)
    steps = checks.steps("transition_steps", transition_steps)
    wait = checks.steps("transition_begin", transition_begin, minimum=0)
    bend = curves.power(checks.number("power", power, above=0))
    begin, length = span(wait), span(steps)

    def schedule(step: Step) -> Array:
        time = since(clock(step), begin)
        if not cycle:
            return blend(end, init, bend(remaining(time, length)))
        index, rest = divide(time, length)
        at_end = (rest.whole == 0) & (rest.part == 0) & (index > 0)
        left = remaining(rest, length) / (index.astype(float) + 1)
        return blend(end, init, bend(jnp.where(at_end, 0.0, left)))

    return Named(schedule, None if cycle else known_sum(wait, steps))


@named
def linear_schedule(
    init_value: ScalarLike,
    end_value: ScalarLike,
    transition_steps: ScalarLike,
    transition_begin: ScalarLike = 0,
) -> Schedule:
    """From one value to another in a straight line, then held.

    value(t) = init_value + (end_value - init_value) * min(max(t - transition_begin, 0) / transition_steps, 1)

    Args:
      init_value: the value until step `transition_begin`, at least 0.
      end_value: the value `transition_steps` later, at least 0.
      transition_steps: how many steps the transition takes, at least 1.
      transition_begin: the step at which the transition begins, at least 0.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is out of its range.

    >>> [round(float(linear_schedule(0.0, 1.0, 10, 5)(step)), 4) for step in (0, 5, 10, 15, 20)]
    [0.0, 0.0, 0.5, 1.0, 1.0]

    Source: `optax.linear_schedule`.
    """
    return polynomial_schedule(init_value, end_value, 1.0, transition_steps, transition_begin)


@named
def cosine_decay_schedule(
    init_value: ScalarLike, decay_steps: ScalarLike, alpha: ScalarLike = 0.0, exponent: ScalarLike = 1.0
) -> Schedule:
    """From a value down to a share of it along a cosine, then held.

    value(t) = init_value * (alpha + (1 - alpha) * ((1 + cos(pi * min(t / decay_steps, 1))) / 2)^exponent)

    Args:
      init_value: the value at step 0, at least 0.
      decay_steps: how many steps the decay takes, at least 1.
      alpha: the last value over the first, at least 0. (`anneal_schedule` takes the last value itself.)
      exponent: above 0.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is out of its range.

    >>> schedule = cosine_decay_schedule(0.1, 100, alpha=0.1)
    >>> [round(float(schedule(step)), 4) for step in (0, 50, 100, 200)]
    [0.1, 0.055, 0.01, 0.01]

    Source: `optax.cosine_decay_schedule`; Loshchilov & Hutter 2017 (arXiv:1608.03983), equation 5.
    """
    init = checks.number("init_value", init_value, minimum=0)
    end = init * checks.number("alpha", alpha, minimum=0)
    steps = checks.steps("decay_steps", decay_steps)
    return Named(cosine_decay(init, end, span(steps), exponent), known_sum(steps))


def cosine_decay(init: float | Array, end: float | Array, length: Time, exponent: ScalarLike) -> Schedule:
    """From `init` to `end` along a power of a cosine, taken of what is left so that no digits are lost."""
    bend = curves.power(checks.number("exponent", exponent, above=0))
    return lambda step: blend(end, init, bend(curves.cosine(remaining(clock(step), length))))


@named
def geometric_schedule(
    init_value: ScalarLike, end_value: ScalarLike, transition_steps: ScalarLike
) -> Schedule:
    """From one value to another by the same factor at every step, then held: the ramp of a range test.

    value(t) = init_value * (end_value / init_value)^min(t / transition_steps, 1)

    Args:
      init_value: the value at step 0, above 0.
      end_value: the value from step `transition_steps` on, above 0.
      transition_steps: how many steps the transition takes, at least 1.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is out of its range.

    >>> schedule = geometric_schedule(1e-3, 10.0, 4)
    >>> [round(float(schedule(step)), 4) for step in (0, 1, 2, 3, 4, 5)]
    [0.001, 0.01, 0.1, 1.0, 10.0, 10.0]

    Source: the exponential ramp of fastai's and torch-lr-finder's range tests.
    """
    init = checks.number("init_value", init_value, above=0)
    end = checks.number("end_value", end_value, above=0)
    steps = checks.steps("transition_steps", transition_steps)
    length, log_ratio = span(steps), log(end) - log(init)

    def schedule(step: Step) -> Array:
        time = clock(step)
        # From the larger end, so that the exponent is never positive and its error shrinks with the value.
        passed, left = as_float(time) / as_float(length), remaining(time, length)
        growing = jnp.asarray(log_ratio) >= 0
        exponent = log_ratio * jnp.where(growing, -left, jnp.where(left > 0, passed, 1.0))
        return jnp.where(left > 0, jnp.where(growing, end, init) * jnp.exp(exponent), jnp.asarray(end, float))

    return Named(schedule, known_sum(steps))


@named
def warmup_stable_decay_schedule(
    peak_value: ScalarLike,
    *,
    warmup_steps: ScalarLike,
    stable_steps: ScalarLike,
    decay_steps: ScalarLike,
    init_value: ScalarLike = 0.0,
    end_value: ScalarLike = 0.0,
    warmup_curve: Curve = curves.linear,
    decay_curve: Curve = curves.cosine,
    num_cycles: ScalarLike = 1,
) -> Schedule:
    """Up to a peak, held there, and down: the trapezoid (WSD), or several in a row (WSD-S).

    1. t < warmup_steps: init_value + (peak_value - init_value) * warmup_curve(t / warmup_steps)
    2. then for stable_steps: peak_value
    3. then for decay_steps: peak_value + (end_value - peak_value) * decay_curve(progress); and again from 1,
       or held at `end_value` after the last cycle.

    Args:
      peak_value: the largest value, at least `init_value` and `end_value`.
      warmup_steps, stable_steps, decay_steps: of each cycle; each at least 0, at least 1 together.
      init_value: the value at the start of each cycle, at least 0.
      end_value: the value that the decay ends at, at least 0.
      warmup_curve, decay_curve: curves of `curves`, or your own functions.
      num_cycles: how many cycles, at least 1.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is out of its range, no phase has a step, or a curve is not one.

    >>> schedule = warmup_stable_decay_schedule(1.0, warmup_steps=4, stable_steps=10, decay_steps=6)
    >>> [round(float(schedule(step)), 4) for step in (0, 2, 4, 13, 17, 20)]
    [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]

    Source: Hu et al. 2024 (arXiv:2404.06395), section 4.2; cycles: Wen et al. 2024 (arXiv:2410.05192).
    """
    peak = checks.number("peak_value", peak_value, minimum=0)
    init = checks.number("init_value", init_value, minimum=0)
    end = checks.number("end_value", end_value, minimum=0)
    checks.not_below("peak_value", peak, "init_value", init)
    checks.not_below("peak_value", peak, "end_value", end)
    counts = [
        checks.steps(name, value, minimum=0)
        for name, value in (
            ("warmup_steps", warmup_steps),
            ("stable_steps", stable_steps),
            ("decay_steps", decay_steps),
        )
    ]
    cycles = checks.steps("num_cycles", num_cycles, whole=True, unit="cycles")
    up_curve, down_curve = (
        checks.curve("warmup_curve", warmup_curve),
        checks.curve("decay_curve", decay_curve),
    )
    rounds = known_sum(cycles)
    warmup, _, decay = map(span, counts)
    decay_start, period, total = span(*counts[:2]), span(*counts), known_sum(*counts)
    if total == 0:
        raise ValueError(
            f"warmup_steps={warmup_steps!r}, stable_steps={stable_steps!r} and decay_steps={decay_steps!r} "
            "leave the schedule without a step."
        )

    def schedule(step: Step) -> Array:
        index, time = divide(clock(step), period)
        up = phase(init, peak, up_curve, time, warmup)
        down = phase(peak, end, down_curve, since(time, decay_start), decay)
        value = jnp.where(reached(time, decay_start), down, up)
        return jnp.where(index < cycles, value, end)

    return Named(schedule, None if total is None or rounds is None else total * rounds)


@named
def slanted_triangular_schedule(
    peak_value: ScalarLike,
    transition_steps: ScalarLike,
    *,
    cut_fraction: ScalarLike = 0.1,
    ratio: ScalarLike = 32.0,
) -> Schedule:
    """A short straight rise and a long straight fall, for fine-tuning (ULMFiT), then held.

    With N = `transition_steps`, cut = floor(cut_fraction * N): q = t / cut below step cut, from there
    1 - (t - cut) / (N - cut), and value(t) = peak_value * (1 + q (ratio - 1)) / ratio.

    Args:
      peak_value: the value at step cut, at least 0.
      transition_steps: how many steps the run has, at least 2.
      cut_fraction: the share of the run spent rising, in (0, 1).
      ratio: peak over lowest value, at least 1.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is out of its range, or no step is left to rise in.

    >>> schedule = slanted_triangular_schedule(0.32, 100)
    >>> [round(float(schedule(step)), 4) for step in (0, 5, 10, 55, 100)]
    [0.01, 0.165, 0.32, 0.165, 0.01]

    Source: Howard & Ruder 2018 (arXiv:1801.06146), equation 3.
    """
    peak = checks.number("peak_value", peak_value, minimum=0)
    total = checks.steps("transition_steps", transition_steps, minimum=2)
    lowest = peak / checks.number("ratio", ratio, minimum=1)
    cut = part(checks.number("cut_fraction", cut_fraction, above=0, below=1), total, whole=True)
    if not checks.is_traced(cut) and cut < 1:
        raise ValueError(
            f"cut_fraction={cut_fraction!r} leaves no step to rise in of transition_steps={transition_steps!r}."
        )
    return phases([lowest, peak, lowest], [cut, total], curves.linear)
