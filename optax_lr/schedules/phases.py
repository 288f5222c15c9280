"""Schedules: numbers and curves to a pure function of the step.

Steps count from 0. A step stays an integer until the last division, so that boundaries fall on their step
and values keep their digits up to step 2^31 - 1. Before step 0 a schedule has its value at 0; float steps
(epochs) work in float32. Every number may be a traced JAX scalar. Values are learning rates (or momenta), so
never negative. A number of steps that is whole, as a float or traced too, is exact in integers; one with a
fraction is divided in float32. A step, a period or a traced number that is not finite gives a value without
meaning, at that step alone.

Here are the schedules of a run with an end, made of phases. Those that fall for ever are in `decays`, those
that come round again in `cyclical`.
"""

import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from .. import checks
from ..types import Array, Curve, ScalarLike, Schedule, Step
from . import curves
from .cycles import Time, as_float, clock, divide, entry, reached, row, since, span, table


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
      curve: progress in [0, 1] to weight in [0, 1].

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is out of its range.

    >>> schedule = anneal_schedule(0.1, 0.0, 100)
    >>> [round(float(schedule(step)), 4) for step in (0, 25, 50, 100, 200)]
    [0.1, 0.0854, 0.05, 0.0, 0.0]

    Source: with `curves.cosine`, one cycle of Loshchilov & Hutter 2017 (arXiv:1608.03983), equation 5.
    """
    init = checks.number("init_value", init_value, minimum=0)
    end = checks.number("end_value", end_value, minimum=0)
    length = span(checks.steps("transition_steps", transition_steps))

    def schedule(step: Step) -> Array:
        return phase(init, end, curve, clock(step), length)

    return schedule


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
    length = span(checks.steps("transition_steps", transition_steps))
    log_ratio = log(end) - log(init)

    def schedule(step: Step) -> Array:
        time = clock(step)
        # From the larger end, so that the exponent is never positive and its error shrinks with the value.
        passed, left = as_float(time) / as_float(length), as_float(since(length, time)) / as_float(length)
        growing = jnp.asarray(log_ratio) >= 0
        exponent = log_ratio * jnp.where(growing, -left, jnp.where(left > 0, passed, 1.0))
        return jnp.where(left > 0, jnp.where(growing, end, init) * jnp.exp(exponent), jnp.asarray(end, float))

    return schedule


def one_cycle_schedule(
    peak_value: ScalarLike,
    total_steps: ScalarLike,
    *,
    pct_start: ScalarLike = 0.3,
    div_factor: ScalarLike = 25.0,
    final_div_factor: ScalarLike = 1e4,
    three_phase: bool = False,
    curve: Curve = curves.cosine,
) -> Schedule:
    """The one-cycle policy: up to a peak, then down far below the start. Exactly PyTorch's `OneCycleLR`.

    With N = `total_steps`, p = `pct_start`, first = peak_value / div_factor, last = first / final_div_factor:
    up from first to peak until step pN - 1, down to last until step N - 1, then held. With `three_phase`:
    up until pN - 1, down to first until 2pN - 2, down to last until N - 1. Phases may end between steps.

    Args:
      peak_value: the largest value, above 0.
      total_steps: how many steps the run has; steps 0 to N - 1 are used.
      pct_start: the share of the run spent rising, in (0, 1).
      div_factor: peak over first value, at least 1.
      final_div_factor: first value over last value, at least 1.
      three_phase: whether the fall to the first value mirrors the rise.
      curve: the shape of each phase; PyTorch's "cos" is `curves.cosine`, its "linear" is `curves.linear`.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is out of its range, or a phase would be empty.

    >>> schedule = one_cycle_schedule(1.0, 10)
    >>> [round(float(schedule(step)), 4) for step in (0, 1, 2, 9)]
    [0.04, 0.52, 1.0, 0.0]

    Source: Smith & Topin 2018 (arXiv:1708.07120); phase ends as in `torch.optim.lr_scheduler.OneCycleLR`.
    """
    peak = checks.number("peak_value", peak_value, above=0)
    first = peak / checks.number("div_factor", div_factor, minimum=1)
    last = first / checks.number("final_div_factor", final_div_factor, minimum=1)
    return _one_cycle(first, peak, last, total_steps, pct_start, three_phase, curve)


def one_cycle_momentum_schedule(
    total_steps: ScalarLike,
    *,
    low_value: ScalarLike = 0.85,
    high_value: ScalarLike = 0.95,
    pct_start: ScalarLike = 0.3,
    three_phase: bool = False,
    curve: Curve = curves.cosine,
) -> Schedule:
    """The momentum (or Adam's b1) beside `one_cycle_schedule`: low where the rate is high.

    From `high_value` down to `low_value` until step pN - 1, up again until N - 1 (with `three_phase` until
    2pN - 2), then held.

    Args:
      total_steps: how many steps the run has, as for the rate.
      low_value: the momentum at the peak of the rate, in [0, 1).
      high_value: the momentum at both ends, in [0, 1), at least `low_value`.
      pct_start, three_phase, curve: as for the rate.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is out of its range, or a phase would be empty.

    >>> schedule = one_cycle_momentum_schedule(10)
    >>> [round(float(schedule(step)), 4) for step in (0, 1, 2, 9)]
    [0.95, 0.9, 0.85, 0.95]

    Source: Smith 2018 (arXiv:1803.09820), section 4.3; values and phases of PyTorch's `OneCycleLR`.
    """
    low, high = momenta(low_value, high_value)
    return _one_cycle(high, low, high, total_steps, pct_start, three_phase, curve)


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
    cycles: ScalarLike = 1,
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
      warmup_curve, decay_curve: progress in [0, 1] to weight in [0, 1].
      cycles: how many cycles, at least 1.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is out of its range, or no phase has a step.

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
    warmup = span(checks.steps("warmup_steps", warmup_steps, minimum=0))
    stable = span(checks.steps("stable_steps", stable_steps, minimum=0))
    decay = span(checks.steps("decay_steps", decay_steps, minimum=0))
    number_of_cycles = checks.steps("cycles", cycles, whole=True, unit="cycles")
    decay_start, period = span(warmup, stable), span(warmup, stable, decay)
    if isinstance(period.whole, int) and period == Time(0):
        raise ValueError(
            f"warmup_steps={warmup_steps!r}, stable_steps={stable_steps!r} and decay_steps={decay_steps!r} "
            "leave the schedule without a step."
        )

    def schedule(step: Step) -> Array:
        index, time = divide(clock(step), period)
        up = phase(init, peak, warmup_curve, time, warmup)
        down = phase(peak, end, decay_curve, since(time, decay_start), decay)
        value = jnp.where(reached(time, decay_start), down, up)
        return jnp.where(index < number_of_cycles, value, end)

    return schedule


def slanted_triangular_schedule(
    peak_value: ScalarLike,
    total_steps: ScalarLike,
    *,
    cut_fraction: ScalarLike = 0.1,
    ratio: ScalarLike = 32.0,
) -> Schedule:
    """A short straight rise and a long straight fall, for fine-tuning (ULMFiT), then held.

    With N = `total_steps`, cut = floor(cut_fraction * N): q = t / cut below step cut, from there
    1 - (t - cut) / (N - cut), and value(t) = peak_value * (1 + q (ratio - 1)) / ratio.

    Args:
      peak_value: the value at step cut, at least 0.
      total_steps: how many steps the run has, at least 2.
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
    total = checks.steps("total_steps", total_steps, minimum=2)
    share = checks.number("cut_fraction", cut_fraction, above=0, below=1)
    lowest = peak / checks.number("ratio", ratio, minimum=1)
    # A product a rounding error short of a whole number is that number: 0.29 * 100 cuts at 29.
    at = share * total
    cut = jnp.floor(at * (1 + 2.0**-22)).astype(int) if checks.is_traced(at) else math.floor(at * (1 + 1e-12))
    if not checks.is_traced(cut) and cut < 1:
        raise ValueError(
            f"cut_fraction={cut_fraction!r} leaves no step to rise in of total_steps={total_steps!r}."
        )
    rise, fall = span(cut), span(total - cut)

    def schedule(step: Step) -> Array:
        time = clock(step)
        up = phase(lowest, peak, curves.linear, time, rise)
        return jnp.where(reached(time, rise), phase(peak, lowest, curves.linear, since(time, rise), fall), up)

    return schedule


def knot_schedule(knots: Mapping[ScalarLike, ScalarLike], *, curve: Curve = curves.linear) -> Schedule:
    """Through given values at given steps, along a curve between them; held outside them.

    Between knots (s, a) and (e, b): value(t) = a + (b - a) * curve((t - s) / (e - s))

    Args:
      knots: value by step. Steps are concrete, at least 0, in any order; values at least 0, 0 included.
      curve: progress in [0, 1] to weight in [0, 1].

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: there is no knot, or a number is out of its range.

    >>> schedule = knot_schedule({0: 0.0, 10: 1.0, 30: 0.2})
    >>> [round(float(schedule(step)), 4) for step in (0, 5, 10, 20, 30, 99)]
    [0.0, 0.5, 1.0, 0.6, 0.2, 0.2]

    Source: the piecewise-linear schedules of DAWNBench entries (`PiecewiseLinear`, Page 2018).
    """
    if not isinstance(knots, Mapping) or not knots:
        raise ValueError(f"knots must be a dict with at least one step and its value, got {knots!r}.")
    by_step = sorted(
        (
            checks.steps("a step of knots", step, minimum=0),
            checks.number(f"knots[{step!r}]", value, minimum=0),
        )
        for step, value in knots.items()
    )
    steps = np.array([0, *(step for step, _ in by_step)], np.float64)
    levels = [jnp.asarray(value, float) for _, value in by_step]
    inits, ends = jnp.stack([levels[0], *levels]), jnp.stack([*levels, levels[-1]])
    starts, lengths = table(steps), table(np.append(np.diff(steps), 0))
    stops = table(steps[1:])

    def schedule(step: Step) -> Array:
        time = clock(step)
        index = jnp.sum(reached(time, stops), dtype=jnp.int32)
        passed = since(time, entry(starts, index))
        return phase(row(inits, index), row(ends, index), curve, passed, entry(lengths, index))

    return schedule


def phase(init: ScalarLike, end: ScalarLike, curve: Curve, time: Time, length: Time) -> Array:
    """From `init` to `end` along a curve, `time` since the start; exactly `end` from `length` on."""
    over = reached(time, length)
    # Beyond the end the curve is asked at a harmless place: its slope may be infinite at 1, and a gradient
    # of 0 times infinity would be NaN though the value is not used.
    progress = jnp.where(over, 0.5, as_float(time) / jnp.where(over, 1.0, as_float(length)))
    return jnp.where(over, jnp.asarray(end, float), blend(init, end, curve(progress)))


def blend(start: ScalarLike, end: ScalarLike, weight: Array) -> Array:
    """start + (end - start) * weight, in a form that is exact at both ends."""
    return jnp.asarray(start, float) * (1 - weight) + jnp.asarray(end, float) * weight


def log(value: float | Array) -> float | Array:
    """The natural logarithm; of a known number in float64, for float32(gamma)^t errs by 1e-4."""
    return math.log(value) if isinstance(value, float) else jnp.log(value)


def momenta(low_value: ScalarLike, high_value: ScalarLike) -> tuple[float | Array, float | Array]:
    """Two checked momenta, the lower first."""
    low = checks.number("low_value", low_value, minimum=0, below=1)
    high = checks.number("high_value", high_value, minimum=0, below=1)
    checks.not_below("high_value", high, "low_value", low)
    return low, high


def _one_cycle(
    first: ScalarLike,
    middle: ScalarLike,
    last: ScalarLike,
    total_steps: ScalarLike,
    pct_start: ScalarLike,
    three_phase: bool,
    curve: Curve,
) -> Schedule:
    """From `first` to `middle`, with `three_phase` back to `first`, and to `last`."""
    total = checks.steps("total_steps", total_steps)
    rising = checks.number("pct_start", pct_start, above=0, below=1)
    turn = rising * total - 1
    back = 2 * turn if three_phase else turn
    for length in (turn, total - 1 - back):
        if not checks.is_traced(length) and length <= 0:
            raise ValueError(
                f"pct_start={pct_start!r} leaves a phase of total_steps={total_steps!r} without a step."
            )
    at_turn, at_back, remaining = span(turn), span(back), span(total - 1 - back)

    def schedule(step: Step) -> Array:
        time = clock(step)
        rise = phase(first, middle, curve, time, at_turn)
        fall = phase(first if three_phase else middle, last, curve, since(time, at_back), remaining)
        if not three_phase:
            return jnp.where(reached(time, at_turn), fall, rise)
        back_down = phase(middle, first, curve, since(time, at_turn), at_turn)
        return jnp.where(reached(time, at_back), fall, jnp.where(reached(time, at_turn), back_down, rise))

    return schedule
