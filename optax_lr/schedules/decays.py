"""Decays: schedules that fall by a formula in the step, for a run of any length."""

import jax.numpy as jnp

from .. import checks
from ..types import Array, ScalarLike, Schedule, Step
from . import curves
from .named import named
from .pieces import log, phase
from .times import as_float, clock, divide, reached, since, span

_MAX_EXPONENT = 80.0
"""exp(80) is 5e34: a growing value stays finite, and so does its gradient."""


@named
def exponential_decay(
    init_value: ScalarLike,
    transition_steps: ScalarLike,
    decay_rate: ScalarLike,
    transition_begin: ScalarLike = 0,
    staircase: bool = False,
    end_value: ScalarLike | None = None,
) -> Schedule:
    """Multiplied by a factor over every so many steps: smoothly, or all at once with `staircase`.

    value(t) = init_value * decay_rate^(s / transition_steps), with s = max(t - transition_begin, 0)

    With `staircase` the exponent is rounded down. A rate below 1 falls to `end_value` at least, one above 1 grows
    to `end_value` at most, and at 1 the value stays.

    Args:
      init_value: the value until step `transition_begin`, at least 0.
      transition_steps: over how many steps the factor applies once, at least 1.
      decay_rate: the factor, above 0.
      transition_begin: the step at which the decay begins, at least 0.
      staircase: whether the value drops once every `transition_steps`. PyTorch's `StepLR`.
      end_value: the bound, at least 0, on the side of `init_value` that the rate leads to; None for none.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is out of its range. (Optax is silently constant for 0 steps or a rate of 0.)

    >>> schedule = exponential_decay(1.0, 100, 0.25)
    >>> [round(float(schedule(step)), 4) for step in (0, 50, 100, 200)]
    [1.0, 0.5, 0.25, 0.0625]
    >>> schedule = exponential_decay(0.1, 30, 0.5, staircase=True)
    >>> [round(float(schedule(step)), 4) for step in (0, 29, 30, 60)]
    [0.1, 0.1, 0.05, 0.025]

    Source: `optax.exponential_decay`, with drops on their step under jit too. He et al. 2016 (arXiv:1512.03385),
    section 3.4. A rate of 0.01 over the whole run is the fall "by about 100" of Stanford's cs231n notes.
    """
    return bounded_decay(
        "init_value", init_value, transition_steps, decay_rate, transition_begin, staircase, end_value
    )


def bounded_decay(
    name: str,
    first_value: ScalarLike,
    transition_steps: ScalarLike,
    decay_rate: ScalarLike,
    transition_begin: ScalarLike,
    staircase: bool,
    end_value: ScalarLike | None,
) -> Schedule:
    """`exponential_decay` from a value that errors call `name`."""
    first = checks.number(name, first_value, minimum=0)
    rate = checks.number("decay_rate", decay_rate, above=0)
    bound = None if end_value is None else checks.number("end_value", end_value, minimum=0)
    if bound is not None and not checks.is_traced(rate):
        if rate < 1:
            checks.not_below(name, first, "end_value", bound)
        elif rate > 1:
            checks.not_below("end_value", bound, name, first)
    period = span(checks.steps("transition_steps", transition_steps))
    begin = span(checks.steps("transition_begin", transition_begin, minimum=0))
    log_rate = log(rate)

    def schedule(step: Step) -> Array:
        time = since(clock(step), begin)
        periods = divide(time, period)[0].astype(float) if staircase else as_float(time) / as_float(period)
        value = first * jnp.exp(jnp.minimum(periods * log_rate, _MAX_EXPONENT))
        if bound is None:
            return value
        bounded = jnp.where(log_rate < 0, jnp.maximum(value, bound), jnp.minimum(value, bound))
        return jnp.where(log_rate == 0, first, bounded)

    return schedule


@named
def inverse_time_schedule(
    init_value: ScalarLike,
    transition_steps: ScalarLike,
    decay_rate: ScalarLike,
    *,
    power: ScalarLike = 1.0,
) -> Schedule:
    """Falling with the inverse of the time. Keras' `InverseTimeDecay`; with a power, Caffe's "inv".

    value(t) = init_value / (1 + decay_rate * t / transition_steps)^power

    Args:
      init_value: the value at step 0, at least 0.
      transition_steps: the unit of time, in steps, at least 1.
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
    period = span(checks.steps("transition_steps", transition_steps))
    rate = checks.number("decay_rate", decay_rate, minimum=0)
    exponent = checks.number("power", power, above=0)

    def schedule(step: Step) -> Array:
        growth = jnp.log1p(rate * (as_float(clock(step)) / as_float(period)))
        return init * jnp.exp(-exponent * growth)

    return schedule


@named
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
      timescale: tau, in steps, at least 1; None for w, or 10,000 where w is 0.
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
    tau = None if timescale is None else span(checks.steps("timescale", timescale))

    def schedule(step: Step) -> Array:
        time, w = clock(step), as_float(warmup)
        scale = jnp.where(w > 0, w, 10_000.0) if tau is None else as_float(tau)
        fall = peak * jnp.sqrt(scale / (as_float(since(time, warmup)) + scale))
        return jnp.where(reached(time, warmup), fall, phase(init, peak, curves.linear, time, warmup))

    return schedule
