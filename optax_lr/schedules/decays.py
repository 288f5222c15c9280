"""Decays: schedules that fall by a formula in the step, for a run of any length."""

from collections.abc import Iterable

import jax.numpy as jnp

from .. import checks
from ..types import Array, ScalarLike, Schedule, Step
from . import curves
from .cycles import as_float, clock, divide, reached, since, span
from .phases import blend, log, phase


def step_decay_schedule(
    init_value: ScalarLike,
    decay_steps: ScalarLike,
    decay_rate: ScalarLike,
    *,
    end_value: ScalarLike = 0.0,
) -> Schedule:
    """Multiplied by a factor every so many steps. PyTorch's `StepLR`; Optax's staircase, right under jit.

    value(t) = max(init_value * decay_rate^floor(t / decay_steps), end_value)

    Args:
      init_value: the value at step 0, at least `end_value`.
      decay_steps: how many steps lie between drops, at least 1.
      decay_rate: the factor at each drop, in (0, 1].
      end_value: the floor, at least 0.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is out of its range.

    >>> schedule = step_decay_schedule(0.1, 30, 0.5)
    >>> [round(float(schedule(step)), 4) for step in (0, 29, 30, 60)]
    [0.1, 0.1, 0.05, 0.025]

    Source: He et al. 2016 (arXiv:1512.03385), section 3.4; `torch.optim.lr_scheduler.StepLR`.
    """
    init, end = _falling(init_value, end_value)
    log_rate = log(checks.number("decay_rate", decay_rate, above=0, maximum=1))
    period = span(checks.steps("decay_steps", decay_steps))

    def schedule(step: Step) -> Array:
        drops, _ = divide(clock(step), period)
        return jnp.maximum(init * jnp.exp(drops.astype(float) * log_rate), end)

    return schedule


def multistep_decay_schedule(
    init_value: ScalarLike, boundaries: Iterable[ScalarLike], decay_rate: ScalarLike
) -> Schedule:
    """Multiplied by a factor at each of some steps. PyTorch's `MultiStepLR`.

    value(t) = init_value * decay_rate^(how many boundaries are at most t)

    Args:
      init_value: the value before the first boundary, at least 0.
      boundaries: steps from 0 on, in increasing order, maybe none; each may be traced. One that stands twice
        counts twice.
      decay_rate: the factor at each boundary, in (0, 1].

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is out of its range, or the boundaries decrease.

    >>> schedule = multistep_decay_schedule(1.0, [30, 80], 0.1)
    >>> [round(float(schedule(step)), 4) for step in (0, 29, 30, 80)]
    [1.0, 1.0, 0.1, 0.01]

    Source: Zagoruyko & Komodakis 2016 (arXiv:1605.07146), section 3; `torch.optim.lr_scheduler.MultiStepLR`.
    """
    init = checks.number("init_value", init_value, minimum=0)
    starts = [span(boundary) for boundary in checks.boundaries("boundaries", boundaries)]
    log_rate = log(checks.number("decay_rate", decay_rate, above=0, maximum=1))

    def schedule(step: Step) -> Array:
        time = clock(step)
        drops = sum((reached(time, start).astype(float) for start in starts), jnp.zeros((), float))
        return init * jnp.exp(drops * log_rate)

    return schedule


def exponential_decay_schedule(
    init_value: ScalarLike,
    decay_steps: ScalarLike,
    decay_rate: ScalarLike,
    *,
    end_value: ScalarLike = 0.0,
) -> Schedule:
    """Multiplied by a factor over every so many steps, smoothly. PyTorch's `ExponentialLR` for 1 step.

    value(t) = max(init_value * decay_rate^(t / decay_steps), end_value)

    Args:
      init_value: the value at step 0, at least `end_value`.
      decay_steps: over how many steps the factor applies once, at least 1.
      decay_rate: the factor, in (0, 1].
      end_value: the floor, at least 0.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is out of its range.

    >>> schedule = exponential_decay_schedule(1.0, 100, 0.25)
    >>> [round(float(schedule(step)), 4) for step in (0, 50, 100, 200)]
    [1.0, 0.5, 0.25, 0.0625]

    Source: Keras' `ExponentialDecay`; with a rate of 0.01 over the whole run, the fall "by about 100" of
    Stanford's cs231n notes.
    """
    init, end = _falling(init_value, end_value)
    log_rate = log(checks.number("decay_rate", decay_rate, above=0, maximum=1))
    period = span(checks.steps("decay_steps", decay_steps))

    def schedule(step: Step) -> Array:
        periods = as_float(clock(step)) / as_float(period)
        return jnp.maximum(init * jnp.exp(periods * log_rate), end)

    return schedule


def polynomial_decay_schedule(
    init_value: ScalarLike,
    end_value: ScalarLike,
    decay_steps: ScalarLike,
    *,
    power: ScalarLike = 1.0,
    cycle: bool = False,
) -> Schedule:
    """Down to a value along a power of what is left, then held; with `cycle`, stretched and run again.

    value(t) = end_value + (init_value - end_value) * (1 - t / M)^power, for t up to M

    M is N = `decay_steps`; with `cycle` it is N * ceil(t / N), so that the value is `end_value` at every
    multiple of N and jumps up right after it, less each time.

    Args:
      init_value: the value at step 0, at least 0.
      end_value: the value at step N, at least 0.
      decay_steps: N, at least 1.
      power: above 0; 1 is a straight line ("linear until tau, then constant").
      cycle: whether to run again.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is out of its range.

    >>> schedule = polynomial_decay_schedule(1.0, 0.0, 10, power=2.0)
    >>> [round(float(schedule(step)), 4) for step in (0, 5, 10, 20)]
    [1.0, 0.25, 0.0, 0.0]
    >>> [float(polynomial_decay_schedule(1.0, 0.0, 10, cycle=True)(step)) for step in (10, 15, 20)]
    [0.0, 0.25, 0.0]

    Source: Goodfellow, Bengio & Courville 2016, equation 8.14; `cycle` as in Keras' `PolynomialDecay`.
    """
    init = checks.number("init_value", init_value, minimum=0)
    end = checks.number("end_value", end_value, minimum=0)
    length = span(checks.steps("decay_steps", decay_steps))
    bend = curves.power(checks.number("power", power, above=0))

    def schedule(step: Step) -> Array:
        time = clock(step)
        # What is left is counted in whole steps, for 1 - t / N loses its digits where a root needs them.
        if not cycle:
            return blend(end, init, bend(as_float(since(length, time)) / as_float(length)))
        index, rest = divide(time, length)
        at_end = (rest.whole == 0) & (rest.part == 0) & (index > 0)
        left = as_float(since(length, rest)) / as_float(length) / (index.astype(float) + 1)
        return blend(end, init, bend(jnp.where(at_end, 0.0, left)))

    return schedule


def inverse_time_schedule(
    init_value: ScalarLike,
    decay_steps: ScalarLike,
    decay_rate: ScalarLike,
    *,
    power: ScalarLike = 1.0,
) -> Schedule:
    """Falling with the inverse of the time. Keras' `InverseTimeDecay`; with a power, Caffe's "inv".

    value(t) = init_value / (1 + decay_rate * t / decay_steps)^power

    Args:
      init_value: the value at step 0, at least 0.
      decay_steps: the unit of time, in steps, at least 1.
      decay_rate: how fast it falls, at least 0.
      power: above 0.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is out of its range.

    >>> schedule = inverse_time_schedule(1.0, 10, 0.5)
    >>> [round(float(schedule(step)), 4) for step in (0, 10, 20, 60)]
    [1.0, 0.6667, 0.5, 0.25]

    Source: Robbins & Monro 1951; Caffe's `inv` policy (Jia et al. 2014, arXiv:1408.5093).
    """
    init = checks.number("init_value", init_value, minimum=0)
    period = span(checks.steps("decay_steps", decay_steps))
    rate = checks.number("decay_rate", decay_rate, minimum=0)
    exponent = checks.number("power", power, above=0)

    def schedule(step: Step) -> Array:
        growth = jnp.log1p(rate * (as_float(clock(step)) / as_float(period)))
        return init * jnp.exp(-exponent * growth)

    return schedule


def inverse_sqrt_schedule(
    peak_value: ScalarLike,
    warmup_steps: ScalarLike,
    *,
    timescale: ScalarLike | None = None,
    init_value: ScalarLike = 0.0,
) -> Schedule:
    """A straight warm-up, then a fall with the inverse square root of the time.

    With w = `warmup_steps`, tau = `timescale`:
    1. t < w: init_value + (peak_value - init_value) * t / w
    2. from there: peak_value * sqrt(tau / (t - w + tau))

    Args:
      peak_value: the value at step w, at least `init_value`.
      warmup_steps: w, at least 0.
      timescale: tau, in steps, above 0; None for w, or 10,000 where w is 0.
      init_value: the value at step 0 of a warm-up, at least 0.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is out of its range.

    >>> schedule = inverse_sqrt_schedule(1.0, 100)
    >>> [round(float(schedule(step)), 4) for step in (0, 50, 100, 400)]
    [0.0, 0.5, 1.0, 0.5]

    Source: Vaswani et al. 2017 (arXiv:1706.03762), equation 3; `timescale` as in Hugging Face Transformers'
    `get_inverse_sqrt_schedule`.
    """
    peak = checks.number("peak_value", peak_value, minimum=0)
    init = checks.number("init_value", init_value, minimum=0)
    checks.not_below("peak_value", peak, "init_value", init)
    warmup = span(checks.steps("warmup_steps", warmup_steps, minimum=0))
    tau = None if timescale is None else checks.number("timescale", timescale, above=0)

    def schedule(step: Step) -> Array:
        time, w = clock(step), as_float(warmup)
        scale = jnp.where(w > 0, w, 10_000.0) if tau is None else tau
        fall = peak * jnp.sqrt(scale / (as_float(since(time, warmup)) + scale))
        return jnp.where(reached(time, warmup), fall, phase(init, peak, curves.linear, time, warmup))

    return schedule


def _falling(init_value: ScalarLike, end_value: ScalarLike) -> tuple[float | Array, float | Array]:
    """The checked ends of a fall to a floor."""
    init = checks.number("init_value", init_value, minimum=0)
    end = checks.number("end_value", end_value, minimum=0)
    checks.not_below("init_value", init, "end_value", end)
    return init, end
