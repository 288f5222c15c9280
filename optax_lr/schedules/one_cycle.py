"""One-cycle schedules, on the clocks of PyTorch, of Optax and of fastai.

They differ in where the phases end. PyTorch's last phase ends on the last step of the run, N - 1, and its peak
is at pN - 1. Optax's and fastai's end at step N, one after the last, so their last value is never used.
"""

from dataclasses import replace
from typing import Any

from .. import checks
from ..types import Array, Curve, ScalarLike, Schedule
from . import curves
from .named import Named, known_sum, named
from .pieces import momenta, part, phases


@named
def one_cycle_schedule(
    peak_value: ScalarLike,
    transition_steps: ScalarLike,
    *,
    pct_start: ScalarLike = 0.3,
    div_factor: ScalarLike = 25.0,
    final_div_factor: ScalarLike = 1e4,
    three_phase: bool = False,
    curve: Curve = curves.cosine,
) -> Schedule:
    """The one-cycle policy: up to a peak, then down far below the start. Exactly PyTorch's `OneCycleLR`.

    With N = `transition_steps`, p = `pct_start`, first = peak_value / div_factor, last = first / final_div_factor:
    up from first to peak until step pN - 1, down to last until step N - 1, then held. With `three_phase`:
    up until pN - 1, down to first until 2pN - 2, down to last until N - 1. Phases may end between steps.

    Args:
      peak_value: the largest value, above 0.
      transition_steps: how many steps the run has; steps 0 to N - 1 are used.
      pct_start: the share of the run spent rising, in (0, 1).
      div_factor: peak over first value, at least 1.
      final_div_factor: first value over last value, at least 1.
      three_phase: whether the fall to the first value mirrors the rise.
      curve: the shape of each phase; PyTorch's "cos" is `curves.cosine`, its "linear" is `curves.linear`.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is out of its range, a phase would be empty, or `curve` is not a curve.

    >>> schedule = one_cycle_schedule(1.0, 10)
    >>> [round(float(schedule(step)), 4) for step in (0, 1, 2, 9)]
    [0.04, 0.52, 1.0, 0.0]

    Source: Smith & Topin 2018 (arXiv:1708.07120); phase ends as in `torch.optim.lr_scheduler.OneCycleLR`.
    """
    first, peak = _ends(peak_value, div_factor)
    last = first / checks.number("final_div_factor", final_div_factor, minimum=1)
    return _one_cycle(first, peak, last, transition_steps, pct_start, three_phase, curve)


@named
def one_cycle_momentum_schedule(
    transition_steps: ScalarLike,
    *,
    min_value: ScalarLike = 0.85,
    max_value: ScalarLike = 0.95,
    pct_start: ScalarLike = 0.3,
    three_phase: bool = False,
    curve: Curve = curves.cosine,
) -> Schedule:
    """The momentum (or Adam's b1) beside `one_cycle_schedule`: low where the rate is high.

    From `max_value` down to `min_value` until step pN - 1, up again until N - 1 (with `three_phase` until
    2pN - 2), then held. `optax.sgd(momentum=...)` takes no schedule: inject it, as below.

    Momentum moves the best rate: a steady gradient moves a parameter by 1 / (1 - momentum) as much, so a rate found
    at one momentum is not the best at another. Find the peak of the rate with the momentum schedule in place.

    Args:
      transition_steps: how many steps the run has, as for the rate.
      min_value: the momentum at the peak of the rate, in [0, 1).
      max_value: the momentum at both ends, in [0, 1), at least `min_value`.
      pct_start, three_phase, curve: as for the rate.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is out of its range, a phase would be empty, or `curve` is not a curve.

    >>> schedule = one_cycle_momentum_schedule(10)
    >>> [round(float(schedule(step)), 4) for step in (0, 1, 2, 9)]
    [0.95, 0.9, 0.85, 0.95]
    >>> import optax
    >>> sgd = optax.inject_hyperparams(optax.sgd, hyperparam_dtype=float)
    >>> optimizer = sgd(learning_rate=one_cycle_schedule(0.1, 10), momentum=schedule)

    Source: Smith 2018 (arXiv:1803.09820), section 4.3; values and phases of PyTorch's `OneCycleLR`.
    """
    low, high = momenta(min_value, max_value)
    return _one_cycle(high, low, high, transition_steps, pct_start, three_phase, curve)


@named
def fastai_one_cycle_schedule(
    peak_value: ScalarLike,
    transition_steps: ScalarLike,
    *,
    pct_start: ScalarLike = 0.25,
    div_factor: ScalarLike = 25.0,
    final_div_factor: ScalarLike = 1e5,
) -> Schedule:
    """The one-cycle policy of fastai's `fit_one_cycle`: its numbers and its clock.

    With N = `transition_steps`, along a cosine: up from peak_value / div_factor to the peak until step
    pct_start * N, and down to peak_value / final_div_factor until step N.

    Args:
      peak_value: the largest value, above 0; fastai's `lr_max`.
      transition_steps: how many steps the run has.
      pct_start: the share of the run spent rising, in (0, 1).
      div_factor: peak over first value, at least 1; fastai's `div`.
      final_div_factor: *peak* over last value, at least 1; fastai's `div_final`.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is out of its range.

    >>> schedule = fastai_one_cycle_schedule(1.0, 100)
    >>> [round(float(schedule(step)), 5) for step in (0, 25, 100)]
    [0.04, 1.0, 1e-05]

    Source: fastai, `fit_one_cycle` and `combined_cos`.
    """
    first, peak = _ends(peak_value, div_factor)
    last = peak / checks.number("final_div_factor", final_div_factor, minimum=1)
    total = checks.steps("transition_steps", transition_steps)
    top = part(checks.number("pct_start", pct_start, above=0, below=1), total)
    return phases([first, peak, last], [top, total], curves.cosine)


@named
def cosine_onecycle_schedule(
    transition_steps: ScalarLike,
    peak_value: ScalarLike,
    pct_start: ScalarLike = 0.3,
    div_factor: ScalarLike = 25.0,
    final_div_factor: ScalarLike = 1e4,
) -> Schedule:
    """Optax's one-cycle policy in two cosine phases. `one_cycle_schedule` uses its last value too.

    With N = `transition_steps`, first = peak_value / div_factor: from first up to the peak until step
    floor(pct_start * N), and down to first / final_div_factor until step N.

    Args:
      transition_steps: how many steps the run has.
      peak_value: the largest value, above 0.
      pct_start: the share of the run spent rising, in [0, 1].
      div_factor: peak over first value, at least 1.
      final_div_factor: first value over last value, at least 1.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is out of its range.

    >>> schedule = cosine_onecycle_schedule(10, 1.0)
    >>> [round(float(schedule(step)), 4) for step in (0, 3, 9, 10)]
    [0.04, 1.0, 0.0495, 0.0]

    Source: `optax.cosine_onecycle_schedule`; Smith & Topin 2018 (arXiv:1708.07120).
    """
    first, peak = _ends(peak_value, div_factor)
    last = first / checks.number("final_div_factor", final_div_factor, minimum=1)
    total = checks.steps("transition_steps", transition_steps)
    top = part(checks.number("pct_start", pct_start, minimum=0, maximum=1), total, whole=True)
    return phases([first, peak, last], [top, total], curves.cosine)


@named
def linear_onecycle_schedule(
    transition_steps: ScalarLike,
    peak_value: ScalarLike,
    pct_start: ScalarLike = 0.3,
    pct_final: ScalarLike = 0.85,
    div_factor: ScalarLike = 25.0,
    final_div_factor: ScalarLike = 1e4,
) -> Schedule:
    """Optax's one-cycle policy in three straight phases: up, down to the start, and far below it.

    With N = `transition_steps`, first = peak_value / div_factor: from first up to the peak until step
    floor(pct_start * N), down to first until step floor(pct_final * N), down to first / final_div_factor until N.

    Args:
      transition_steps: how many steps the run has.
      peak_value: the largest value, above 0.
      pct_start: the share of the run spent rising, in [0, 1].
      pct_final: the share of the run until the value is back at first, from `pct_start` to 1. Equal to it, the
        value falls from the peak in one step. (There Optax's schedule has no peak at all.)
      div_factor: peak over first value, at least 1.
      final_div_factor: first value over last value, at least 1.

    Returns:
      A function from a step to a float32 scalar.

    Raises:
      ValueError: a concrete number is out of its range.

    >>> schedule = linear_onecycle_schedule(20, 1.0)
    >>> [round(float(schedule(step)), 4) for step in (0, 6, 17, 20)]
    [0.04, 1.0, 0.04, 0.0]

    Source: `optax.linear_onecycle_schedule`; Smith & Topin 2018 (arXiv:1708.07120).
    """
    first, peak = _ends(peak_value, div_factor)
    last = first / checks.number("final_div_factor", final_div_factor, minimum=1)
    total = checks.steps("transition_steps", transition_steps)
    rising = checks.number("pct_start", pct_start, minimum=0, maximum=1)
    falling = checks.number("pct_final", pct_final, minimum=0, maximum=1)
    checks.not_below("pct_final", falling, "pct_start", rising)
    top, back = part(rising, total, whole=True), part(falling, total, whole=True)
    return phases([first, peak, first, last], [top, back, total], curves.linear)


def _ends(peak_value: ScalarLike, div_factor: ScalarLike) -> tuple[float | Array, float | Array]:
    """The first value and the peak."""
    peak = checks.number("peak_value", peak_value, above=0)
    return peak / checks.number("div_factor", div_factor, minimum=1), peak


def _one_cycle(
    first: Any,
    middle: Any,
    last: Any,
    transition_steps: ScalarLike,
    pct_start: ScalarLike,
    three_phase: bool,
    curve: Curve,
) -> Named:
    """From `first` to `middle`, with `three_phase` back to `first`, and to `last`, on PyTorch's clock."""
    total = checks.steps("transition_steps", transition_steps)
    turn = part(checks.number("pct_start", pct_start, above=0, below=1), total) - 1
    back = 2 * turn if three_phase else turn
    known = not (checks.is_traced(back) or checks.is_traced(total))
    for length in (turn, total - 1 - back) if known else ():
        if length <= 0:
            raise ValueError(
                f"pct_start={pct_start!r} leaves a phase of transition_steps={transition_steps!r} without a step."
            )
    shape = checks.curve("curve", curve)
    values = [first, middle, first, last] if three_phase else [first, middle, last]
    ends = [turn, back, total - 1] if three_phase else [turn, total - 1]
    return replace(phases(values, ends, shape), transition_steps=known_sum(total))
