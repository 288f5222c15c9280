"""Schedules: numbers and curves to a pure function of the step.

Steps count from 0. A step stays an integer until the last division, so that boundaries fall on their step
and values keep their digits up to step 2^31 - 1. Before step 0 a schedule has its value at 0; float steps
(epochs) work in float32. Every number may be a traced JAX scalar.
"""

import jax.numpy as jnp
from jaxtyping import Array, ScalarLike

from . import checks, curves
from .types import Curve, Schedule, Step


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
      init_value: the value at step 0; any finite number.
      end_value: the value from step `transition_steps` on; any finite number.
      transition_steps: how many steps the transition takes, at least 1.
      curve: progress in [0, 1] to weight in [0, 1].

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is not finite, or `transition_steps` is below 1.

    >>> schedule = anneal_schedule(0.1, 0.0, 100)
    >>> [round(float(schedule(step)), 4) for step in (0, 25, 50, 100, 200)]
    [0.1, 0.0854, 0.05, 0.0, 0.0]

    Source: with `curves.cosine`, one cycle of Loshchilov & Hutter 2017 (arXiv:1608.03983), equation 5.
    """
    init = checks.number("init_value", init_value)
    end = checks.number("end_value", end_value)
    length = checks.steps("transition_steps", transition_steps)

    def schedule(step: Step) -> Array:
        return _blend(init, end, curve(_progress(_clock(step), 0, length)))

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
    total = checks.steps("total_steps", total_steps)
    rising = checks.number("pct_start", pct_start, above=0, below=1)
    first = peak / checks.number("div_factor", div_factor, minimum=1)
    last = first / checks.number("final_div_factor", final_div_factor, minimum=1)
    at_peak = rising * total - 1
    at_first = 2 * rising * total - 2 if three_phase else at_peak
    for phase in (at_peak, total - 1 - at_first):
        if not checks.is_traced(phase) and phase <= 0:
            raise ValueError(
                f"pct_start={pct_start!r} leaves a phase of total_steps={total_steps!r} without a step."
            )

    def schedule(step: Step) -> Array:
        t = _clock(step)
        rise = _progress(t, 0, at_peak)
        fall = _progress(t, at_first, total - 1 - at_first)
        middle = (
            _blend(peak, first, curve(_progress(t, at_peak, at_first - at_peak))) if three_phase else peak
        )
        down = jnp.where(fall > 0, _blend(first if three_phase else peak, last, curve(fall)), middle)
        return jnp.where(rise < 1, _blend(first, peak, curve(rise)), down)

    return schedule


def _clock(step: Step) -> Array:
    """The step from 0 on, in int32 or the default float type (whichever kind it came in)."""
    t = jnp.asarray(step)
    if jnp.issubdtype(t.dtype, jnp.floating):
        return jnp.maximum(t.astype(float), 0)
    return jnp.maximum(t, 0).astype(jnp.int32)


def _progress(t: Array, start: ScalarLike, length: ScalarLike) -> Array:
    """The share of `length` steps from `start` that is over at `t`, in [0, 1]; both may be fractions."""
    whole = jnp.floor(start).astype(t.dtype)
    elapsed = (t - whole).astype(float) - (start - jnp.floor(start))
    span = jnp.asarray(length, float)
    share = elapsed / jnp.maximum(span, jnp.finfo(span.dtype).tiny)
    # Exactly 1 at the end, where a division that became a multiplication may fall short.
    return jnp.where(elapsed >= span, 1.0, jnp.maximum(share, 0.0))


def _blend(start: ScalarLike, end: ScalarLike, weight: Array) -> Array:
    """start + (end - start) * weight, in a form that is exact at both ends."""
    return jnp.asarray(start, float) * (1 - weight) + jnp.asarray(end, float) * weight
