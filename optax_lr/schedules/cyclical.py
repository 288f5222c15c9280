"""Cyclical schedules, for a run of any length. The cost is that of one cycle, however many there are."""

from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp

from .. import checks
from ..types import Array, Curve, ScalarLike, Schedule, Step
from . import curves
from .cycles import Cycles, Position
from .named import Named, named
from .pieces import blend, log, momenta, phase
from .times import Time, as_float, clock, divide, reached, since, span

Mode = Literal["triangular", "triangular2", "exp_range"]


@named
def cyclical_schedule(
    init_value: ScalarLike,
    peak_value: ScalarLike,
    up_steps: ScalarLike = 2000,
    *,
    down_steps: ScalarLike | None = None,
    mode: Mode = "triangular",
    decay_rate: ScalarLike = 1.0,
    curve: Curve = curves.linear,
    scale: Callable[[Array], ScalarLike] | None = None,
) -> Schedule:
    """Cyclical learning rates (CLR): up to a peak and down again, without end. PyTorch's `CyclicLR`.

    In cycle c, counted from 0, height h rises from 0 to 1 over `up_steps` and falls over `down_steps`:
    value(t) = init_value + (peak_value - init_value) * h * s, where s is

    1. "triangular": 1
    2. "triangular2": 2^-c
    3. "exp_range": decay_rate^t

    Args:
      init_value: the value at step 0 and between the peaks, at least 0.
      peak_value: the value at the first peak, at least `init_value`.
      up_steps: steps up to a peak, at least 1. The source's half cycle is 2,000.
      down_steps: steps down from a peak, at least 1; None for `up_steps`.
      mode: how the peaks shrink.
      decay_rate: in (0, 1], for "exp_range" alone.
      curve: the shape of the rise, and of the fall from the peak.
      scale: s as a function of the cycle c (an int32 scalar), instead of a mode. For PyTorch's
        `scale_mode="iterations"`, with s a function of the step: `add_schedules(constant_schedule(low),
        multiply_schedules(cyclical_schedule(0.0, high - low, up_steps), s))`.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is out of its range, or an option has no effect in this mode.

    >>> schedule = cyclical_schedule(0.1, 0.5, 4, mode="triangular2")
    >>> [round(float(schedule(step)), 4) for step in (0, 2, 4, 8, 12, 16)]
    [0.1, 0.3, 0.5, 0.1, 0.3, 0.1]

    Source: Smith 2017 (arXiv:1506.01186), section 3; `scale` as in his Keras callback.
    """
    init = checks.number("init_value", init_value, minimum=0)
    peak = checks.number("peak_value", peak_value, minimum=0)
    checks.not_below("peak_value", peak, "init_value", init)
    height = _height(up_steps, down_steps, mode, decay_rate, curve, scale)
    return lambda step: blend(init, peak, height(step))


@named
def cyclical_momentum_schedule(
    min_value: ScalarLike = 0.8,
    max_value: ScalarLike = 0.9,
    up_steps: ScalarLike = 2000,
    *,
    down_steps: ScalarLike | None = None,
    mode: Mode = "triangular",
    decay_rate: ScalarLike = 1.0,
    curve: Curve = curves.linear,
    scale: Callable[[Array], ScalarLike] | None = None,
) -> Schedule:
    """The momentum (or Adam's b1) beside `cyclical_schedule`: low where the rate is high.

    value(t) = max_value - (max_value - min_value) * h * s, with h and s as for the rate. `optax.sgd(momentum=...)`
    takes no schedule: see `one_cycle_momentum_schedule` for the line that injects it. Momentum moves the best rate
    (a steady gradient moves a parameter by 1 / (1 - momentum) as much): find the peak with both schedules in place.

    Args:
      min_value: the momentum at the first peak of the rate, in [0, 1).
      max_value: the momentum between the peaks, in [0, 1), at least `min_value`.
      up_steps, down_steps, mode, decay_rate, curve, scale: as for the rate.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is out of its range, or an option has no effect in this mode.

    >>> schedule = cyclical_momentum_schedule(0.8, 0.9, 4)
    >>> [round(float(schedule(step)), 4) for step in (0, 2, 4, 8)]
    [0.9, 0.85, 0.8, 0.9]

    Source: Smith 2018 (arXiv:1803.09820), section 4.3; values of PyTorch's `CyclicLR`.
    """
    low, high = momenta(min_value, max_value)
    height = _height(up_steps, down_steps, mode, decay_rate, curve, scale)
    return lambda step: blend(high, low, height(step))


@named
def sgdr_schedule(
    peak_value: ScalarLike,
    end_value: ScalarLike,
    cycle_steps: Cycles | ScalarLike,
    *,
    peak_decay: ScalarLike = 1.0,
    end_decay: ScalarLike = 1.0,
    warmup_steps: ScalarLike = 0,
    curve: Curve = curves.cosine,
) -> Schedule:
    """Stochastic gradient descent with warm restarts: down along a curve, and from the top again.

    In cycle i, at progress p: peak = peak_value * peak_decay^i, end = end_value * end_decay^i, and
    value = peak + (end - peak) * curve(p)

    Args:
      peak_value: the value at the start of the first cycle, at least `end_value`.
      end_value: the value that the first cycle falls to (and its warm-up rises from), at least 0. A peak that has
        decayed below the end of its cycle is left there, as in timm.
      cycle_steps: the length of a cycle: a `Cycles`, or a number of steps (at least 1) for equal cycles without
        end. After the last of a limited number of cycles the schedule holds that cycle's end.
      peak_decay: next peak over peak, in (0, 1].
      end_decay: next end over end, in (0, 1].
      warmup_steps: whole steps of a straight rise to the peak in every cycle, at least 0 and fewer than the first
        cycle's. The fall takes the rest of the cycle's whole steps. In a cycle that has shrunk (growth below 1) the
        rise leaves the fall at least one step.
      curve: the shape of the fall.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is out of its range, or `curve` is not a curve.

    >>> schedule = sgdr_schedule(1.0, 0.0, Cycles(10, growth=2), peak_decay=0.5)
    >>> [round(float(schedule(step)), 4) for step in (0, 5, 10, 20, 30)]
    [1.0, 0.5, 0.5, 0.25, 0.25]

    Source: Loshchilov & Hutter 2017 (arXiv:1608.03983), section 3, equation 5, where both bounds may shrink at a
    restart; `peak_decay` is timm's `cycle_decay`.
    """
    peak = checks.number("peak_value", peak_value, minimum=0)
    end = checks.number("end_value", end_value, minimum=0)
    checks.not_below("peak_value", peak, "end_value", end)
    log_peak_decay = log(checks.number("peak_decay", peak_decay, above=0, maximum=1))
    log_end_decay = log(checks.number("end_decay", end_decay, above=0, maximum=1))
    cycles = Cycles.of("cycle_steps", cycle_steps)
    warmup = checks.steps("warmup_steps", warmup_steps, minimum=0, whole=True)
    if not (checks.is_traced(warmup) or checks.is_traced(cycles.first)) and warmup >= cycles.first:
        raise ValueError(
            f"warmup_steps must be below the {cycles.first} steps of the first cycle, got {warmup_steps!r}."
        )
    shape = checks.curve("curve", curve)

    def schedule(step: Step) -> Array:
        position = cycles.position(step)
        index = position.index.astype(float)
        top, bottom = peak * jnp.exp(index * log_peak_decay), end * jnp.exp(index * log_end_decay)
        if checks.is_traced(warmup) or warmup > 0:
            rise = warmup if cycles.growth >= 1 else jnp.minimum(warmup, position.length - 1)
            weight = _after_warmup(position, clock(step).part, rise, shape)
        else:
            weight = shape(position.progress)
        value = blend(top, bottom, weight)
        return value if cycles.limit is None else jnp.where(position.progress < 1, value, bottom)

    return Named(schedule, cycles.transition_steps)


def _after_warmup(position: Position, part: Any, warmup: Any, curve: Curve) -> Array:
    """How far the value is from the peak: a straight rise, then a fall in the rest of the whole steps."""
    offset = jnp.maximum(position.offset, 0)
    # A float step between a cycle's real start and its first whole step has not begun to rise.
    within = part if isinstance(part, int) else jnp.where(position.offset < 0, 0.0, part)
    rising = offset < warmup
    rise = as_float(Time(offset, within)) / jnp.asarray(jnp.maximum(warmup, 1), float)
    fallen = Time(jnp.where(rising, 0, offset - warmup), within)
    fall = as_float(fallen) / jnp.maximum(position.length - warmup, 1).astype(float)
    progress = fall if isinstance(warmup, int) else jnp.where(warmup == 0, position.progress, fall)
    return jnp.where(rising, 1 - rise, curve(progress))


def _height(
    up_steps: ScalarLike,
    down_steps: ScalarLike | None,
    mode: Mode,
    decay_rate: ScalarLike,
    curve: Curve,
    scale: Callable[[Array], ScalarLike] | None,
) -> Schedule:
    """How far a cyclical schedule is from its first value, 1 at the first peak."""
    up_count = checks.steps("up_steps", up_steps)
    down_count = up_count if down_steps is None else checks.steps("down_steps", down_steps)
    checks.choice("mode", mode, ("triangular", "triangular2", "exp_range"))
    rate = checks.number("decay_rate", decay_rate, above=0, maximum=1)
    if mode != "exp_range" and (checks.is_traced(rate) or rate != 1):
        raise ValueError(f"decay_rate must be left out unless mode is 'exp_range', got {decay_rate!r}.")
    if scale is not None and mode != "triangular":
        raise ValueError(f"scale must be left out unless mode is 'triangular', got {scale!r}.")
    shape = checks.curve("curve", curve)
    log_rate, up, down, period = log(rate), span(up_count), span(down_count), span(up_count, down_count)

    def schedule(step: Step) -> Array:
        time = clock(step)
        index, rest = divide(time, period)
        rise = phase(0.0, 1.0, shape, rest, up)
        height = jnp.where(reached(rest, up), phase(1.0, 0.0, shape, since(rest, up), down), rise)
        if scale is not None:
            return height * jnp.asarray(scale(index), float)
        if mode == "triangular2":
            return height * jnp.exp2(-index.astype(float))
        if mode == "exp_range":
            return height * jnp.exp(as_float(time) * log_rate)
        return height

    return schedule
