"""Rules on separate runs, one lane a rate: `LRCurve` to `Suggestion`.

Every rule looks at one number for each rate and seed: how far the last validation loss is below the loss without
training; where there is no validation, the training loss of the last quarter of the steps below that of the
untrained parameters on the same batches. Rates at which any seed diverged are left out.

The interval of `lowest_loss` and `for_horizon` holds the rates around the best that cannot be told from it: by a
one-sided t-test at 75%, or since they lost less than a thousandth of what the best fell; between lanes losses lie
on a smooth curve, beside a rate that diverged on a line. `for_horizon` adds what it does not know of the drift.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from .comparison import INTERVAL_LEVEL, TOLERANCE, excess, interval, lowest_lane, lowest_lanes, span_around
from .curve import LRCurve
from .judging import Judged
from .losses import as_reported
from .outcomes import final_losses, lost_above, stands_beside_lost, usable
from .smooth import lowest
from .suggestion import Suggestion

# How the log of the best rate may move with the log of the length of a run, and how it does on most problems.
SLOPES, USUAL_SLOPE = (-1.0, 0.0), -0.6
# How much the slope between two lengths tells of the one beyond them: rates are a factor of two apart, and noisy.
TOLD = 0.25
# By how much the slope to come may differ from what is expected.
UNSURE = 0.35
# A lane that lost this share of the fall of the best weighs e times less in the center of a curve.
SOFTNESS = 0.004
# So many times as many steps are advised where no rate learned.
LONGER = 5


def lowest_loss(curve: LRCurve) -> Suggestion:
    """The rate of the lowest loss, averaged over the seeds, on a smooth curve over the log of the rate.

    The curve is the mean of a Gaussian process that saw log(1 + excess / scale) of each lane; see `smooth.smooth`.
    Where the next higher rate diverged, the answer is the best rate itself; or below it as far as noise cannot
    tell, by up to half the way to the lower rate: the next run may not survive as these.

    Where no rate fell below the loss without training by more than noise explains, the reason says so, the interval
    is what cannot be told apart, and the answer is the largest harmless rate below the highest that was tried.

    Raises:
      ValueError: every rate diverged.

    >>> rates = np.geomspace(0.01, 1.0, 9)
    >>> losses = 1 + np.log(rates / 0.2) ** 2
    >>> curve = LRCurve(rates, losses.astype(np.float32)[None, :, None], None, np.array([], np.int32),
    ...                 np.full((1, 9), -1, np.int32))
    >>> round(lowest_loss(curve).learning_rate, 2)
    0.2
    """
    end = usable(curve)[-1]
    if not end.learned:
        return _harmless(curve, end)
    heights, rates = end.heights, curve.learning_rates
    best, above = lowest_lane(heights), excess(heights)
    noise = end.noise_threshold(INTERVAL_LEVEL, tolerance=0.0)
    most = max(noise, TOLERANCE * end.fall)
    if lost_above(heights, best):
        # Away from the edge, as far as noise cannot tell; half the way at most.
        away = interval(rates, above, noise, span_around(above, noise))[0]
        rate = float(np.clip(np.sqrt(rates[best] * rates[max(0, best - 1)]), away, rates[best]))
        low, high = interval(rates, above, most, span_around(above, most))
    else:
        rate, low, high = lowest(rates, heights, noise, most, end.folds)
    return Suggestion(
        learning_rate=rate,
        low=low,
        high=high,
        reason=f"{_lowest_at(curve, rate, 'at this rate')}.",
        curve=curve,
        at_edge=bool({0, len(rates) - 1} & {*lowest_lanes(above)}),
        lane_steps=curve.lane_steps,
    )


def for_horizon(curve: LRCurve | Sequence[LRCurve], horizon: int) -> Suggestion:
    """The rate for a run of `horizon` steps: the best rate's drift with the length of runs, extrapolated.

    log rate(horizon) = log rate(n) + slope * log(horizon / n), where n is the longest run and `slope` is kept in
    [-1, 0]: where models overfit, the best rate falls as 1 / steps, since the product of both is what counts; where
    stability limits it, it stays. So it stays where the best rate of the longest runs stands beside one that
    diverged, and no slope is taken from shorter runs of which that holds. Else a quarter of it is what the rate
    moved since the run before the longest, and three quarters are -0.6, what is usual: noise moves the best of two
    lengths as much as training does, and how a rate moved tells little of how it goes on (`benchmarks/runs.json`).
    Shorter runs than the last two lengths do not count: what limits the rate of a model that has barely begun to
    learn tells little of one that has.

    rate(n) is the mean of the log of the rates, each weighed by the width of its lane and by
    exp(-(loss - lowest) / (0.004 fall)), within the interval. Where the curve is flat it is the middle of what is
    flat, which noise moves less than the lowest point. `fall` is what the best rate fell from the loss without
    training. Beside a rate that diverged it is that of `lowest_loss`.

    Args:
      curve: runs of several lengths, each under the whole of its schedule (of runs of one length
        `lowest_loss` is taken, and a slope of -0.6); or one curve of lanes at constant rates with losses at several
        steps. Of the latter half the slope is taken: a constant rate must be smaller than the peak of a schedule,
        and the two errors about cancel.
      horizon: the steps of the run to come.

    The interval is that of the longest runs with slopes 0.35 lower and higher added on its sides. Where no
    rate of the longest runs learned, the answer is that of `lowest_loss`.

    Raises:
      ValueError: a curve at constant rates has losses at one step only, or every rate diverged.
    """
    curves = [curve] if isinstance(curve, LRCurve) else sorted(curve, key=lambda each: each.losses.shape[-1])
    constant, longest = curves[0] is curve, curves[-1]
    here = dataclasses.replace(
        lowest_loss(longest),
        shorter=tuple(curves[:-1]),
        lane_steps=sum(each.lane_steps for each in curves),
    )
    history = [
        (each, point) for each in curves for point in (usable(each) if constant else usable(each)[-1:])
    ]
    end, shorter = history[-1][1], [pair for pair in history if pair[1].steps < history[-1][1].steps]
    if constant and not shorter:
        raise ValueError("for_horizon needs losses at two or more steps of the curve, got 1.")
    if not end.learned:
        return here
    center, slope, moved = _drift(here, end, shorter, longest)
    slope = np.clip(slope, *SLOPES) / (2 if constant else 1)
    floor, ceiling = -np.inf, np.inf
    if constant:
        floor, ceiling = longest.learning_rates[0], longest.learning_rates[longest.stable].max()

    def extrapolated(rate: float, change: float) -> float:
        return float(np.clip(rate * (horizon / end.steps) ** np.clip(change, *SLOPES), floor, ceiling))

    rate = extrapolated(center, slope)
    low, high = (extrapolated(edge, slope + sign * UNSURE) for edge, sign in ((here.low, -1), (here.high, 1)))
    return dataclasses.replace(
        here,
        learning_rate=rate,
        low=low,
        high=high,
        reason=f"{_lowest_at(longest, center, f'around {center:.3g}')}; {moved}, which, carried on to {horizon} "
        f"steps, makes {rate:.3g} of it.",
        horizon=int(horizon),
    )


def _drift(
    here: Suggestion, end: Judged, shorter: Sequence[tuple[LRCurve, Judged]], longest: LRCurve
) -> tuple[float, float, str]:
    """The center of the longest runs, the slope that leads there, and what is said of it."""
    if stands_beside_lost(end):
        return here.learning_rate, 0.0, "beside a rate that diverged it is taken to stay"
    center = float(np.clip(_center(longest.learning_rates, end), here.low, here.high))
    telling = [pair for pair in shorter if pair[1].learned and not stands_beside_lost(pair[1])]
    if not telling:
        # Short runs over many rates are flat far from the best.
        return here.learning_rate, USUAL_SLOPE, f"the best rate is taken to move as steps^{USUAL_SLOPE:.2f}"
    curve, before = telling[-1]
    slope = np.log(center / _center(curve.learning_rates, before)) / np.log(end.steps / before.steps)
    expected = float(TOLD * np.clip(slope, *SLOPES) + (1 - TOLD) * USUAL_SLOPE)
    moved = (
        f"from {before.steps} to {end.steps} steps the best rate moved as steps^{slope:.2f}, so it is expected to "
        f"go on as steps^{expected:.2f}"
    )
    return center, expected, moved


def longer(steps: int) -> str:
    """What is advised where no rate learned in so many steps."""
    return f"try {LONGER * steps}"


def _harmless(curve: LRCurve, end: Judged) -> Suggestion:
    """The answer where nothing was learned: up to the largest rate that does no harm, but not the highest tried."""
    rates = curve.learning_rates
    harmless = end.harmless
    below = int(np.argmin(harmless)) if not harmless.all() else len(rates)
    last = max(0, min(below, len(rates) - 1) - 1)
    beyond = rates[min(below, len(rates) - 1)]
    constant, side = end.constant, "above" if curve.mode == "max" else "below"
    name = curve.metric.replace("_", " ")
    if constant:
        said = f"The {name} does not depend on the parameters: no rate changed it in {end.steps} steps"
    else:
        said = (
            f"No rate learned anything in {end.steps} steps: no {name} is {side} that of the untrained parameters "
            f"by more than noise; {longer(end.steps)}"
        )
    which = "this is the largest of the rates that did no harm, below the highest that was tried"
    if not harmless.any():
        which = "every rate that was tried did harm, and this is the smallest"
    return Suggestion(
        learning_rate=float(rates[last]),
        low=float(rates[0]),
        high=float(max(rates[last], np.sqrt(rates[max(0, below - 1)] * beyond))),
        reason=f"{said}; {which}.",
        curve=curve,
        at_edge=below == len(rates) and not constant,
        lane_steps=curve.lane_steps,
    )


def _lowest_at(curve: LRCurve, rate: float, where: str) -> str:
    seeds = len(curve.losses)
    losses, rates = as_reported(curve, final_losses(curve).mean(axis=0)), curve.learning_rates
    usable = np.isfinite(losses)
    loss = np.interp(np.log(rate), np.log(rates[usable]), losses[usable])
    measured = np.isclose(rate, rates[usable], rtol=1e-6).any()
    return (
        f"The {curve.judged_by} is {curve.best_is} {where} after {curve.losses.shape[-1]} steps ({loss:.4g}"
        f"{'' if measured else ', estimated between lanes'}, the mean of {seeds} seed{'s' if seeds > 1 else ''})"
    )


def _center(rates: np.ndarray, point: Judged) -> float:
    """The middle of the rates whose loss is near the lowest; see `for_horizon`."""
    if len(rates) == 1:
        return float(rates[0])
    x, scale = np.log(rates), max(SOFTNESS * point.fall, np.finfo(float).tiny)
    return float(np.exp(np.average(x, weights=np.gradient(x) * np.exp(-excess(point.heights) / scale))))
