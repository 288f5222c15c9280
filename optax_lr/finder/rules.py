"""Rules on separate runs, one lane a rate: `LRCurve` to `Suggestion`, and which lanes a search tries next.

Every rule looks at one number for each rate and seed: how far the last validation loss is below the loss without
training; where there is no validation, the training loss of the last quarter of the steps below that of the
untrained parameters on the same batches. Rates at which any seed diverged are left out.

The interval of `lowest_loss` and `for_horizon` holds the rates around the best that cannot be told from it: by a
one-sided t-test at 75%, or since they lost less than a thousandth of what the best fell; between two lanes losses
lie on a line. `for_horizon` adds what it does not know of the drift.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from .comparison import (
    INTERVAL_LEVEL,
    SEARCH_LEVEL,
    SEEDS_LEVEL,
    TOLERANCE,
    excess,
    interval,
    lowest_lane,
    lowest_lanes,
    open_sides,
    span_around,
)
from .curve import LRCurve
from .judging import Judged, judged
from .losses import as_reported, judged_losses
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
# The ratio of the lanes that surround the best of one length, and how many there are at most on either side.
BESIDE, MOST_BESIDE = 2.0, 2
# Full runs at rates closer than this differ by their noise.
CLOSE = 1.4
# Beside a rate that diverged the search goes on until the two are closer than this; while more can be gained than
# noise hides, until they are closer than that.
EDGE, SHARP_EDGE = 1.25, 1.07
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
    end = _usable(curve)[-1]
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
        (each, point) for each in curves for point in (_usable(each) if constant else _usable(each)[-1:])
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
    if _beside_lost(end):
        return here.learning_rate, 0.0, "beside a rate that diverged it is taken to stay"
    center = float(np.clip(_center(longest.learning_rates, end), here.low, here.high))
    telling = [pair for pair in shorter if pair[1].learned and not _beside_lost(pair[1])]
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


def rates_beside(curve: LRCurve) -> list[float]:
    """The rates that are still missing around the best: at ratio 2, on either side up to one that is clearly worse.

    At least one and at most two on a side, but none beyond one that diverged.
    """
    rates, end = curve.learning_rates, _end(curve)
    if end is None:
        return [float(rates[0] / BESIDE)]
    # What is alike to the bit has no neighbor that is clearly worse.
    above, most = excess(end.heights), end.noise_threshold(SEARCH_LEVEL)
    lacking = []
    for ratio, edge in zip((1 / BESIDE, BESIDE), open_sides(above), strict=True):
        for count in range(1, MOST_BESIDE + 1 if edge is not None else 1):
            wanted = rates[edge] * ratio**count
            lane = int(np.abs(np.log(rates / wanted)).argmin())
            between = above[(rates - rates[edge]) * (rates - wanted) < 0]
            if np.abs(np.log(rates[lane] / wanted)) > np.log(BESIDE) / 3:
                lacking += [] if np.isinf(between).any() else [float(wanted)]
                break
            if above[lane] > most:
                break
    return lacking


def next_rate(curve: LRCurve) -> float | None:
    """The next rate to try: the middle of the wider gap next to the best rate, on the better side of equal ones.

    Beside a rate that diverged it is the middle between both, until they are closer than 1.25; see `edge_rate`.
    None where the best is at an edge or both gaps are small. (A sharp optimum lies between lanes as often as at
    one, and a parabola through three of them does not see it.)
    """
    rates, end = curve.learning_rates, _end(curve)
    if end is None:
        return None
    means, best = np.nan_to_num(end.heights.mean(axis=0), nan=np.inf), lowest_lane(end.heights)
    if lost_above(end.heights, best):
        return edge_rate(curve)
    if not 0 < best < len(rates) - 1:
        return None
    gaps = np.log(rates[best] / rates[best - 1]), np.log(rates[best + 1] / rates[best])
    if np.isclose(*gaps):
        side = best + 1 if means[best + 1] < means[best - 1] else best - 1
    else:
        side = best + 1 if gaps[1] > gaps[0] else best - 1
    return float(np.sqrt(rates[best] * rates[side])) if max(gaps) > np.log(CLOSE) else None


def edge_rate(curve: LRCurve) -> float | None:
    """The middle between the best rate and the next higher one, where that diverged and is not close; else None.

    Close is a ratio of 1.25; or of 1.07 while the line through the best rate and the next lower one promises more
    in the middle than noise hides.
    """
    rates, end = curve.learning_rates, _end(curve)
    if end is None or not (end.learned and _beside_lost(end)):
        return None
    best = lowest_lane(end.heights)
    ratio, lower = rates[best + 1] / rates[best], excess(end.heights)[max(0, best - 1)]
    slope = lower / np.log(rates[best] / rates[best - 1]) if best and np.isfinite(lower) else 0.0
    promising = slope * np.log(ratio) / 2 > end.noise_threshold(SEARCH_LEVEL, tolerance=0.0)
    return float(rates[best] * np.sqrt(ratio)) if ratio > (SHARP_EDGE if promising else EDGE) else None


def undecided(curve: LRCurve) -> bool:
    """True if a neighbor of the best rate may be better: the difference is within noise, and above a thousandth of
    what the best fell."""
    end = _usable(curve)[-1]
    most = end.noise_threshold(SEEDS_LEVEL)
    left, right = span_around(excess(end.heights), most)
    return left < right and most > TOLERANCE * end.fall


def best_lane(curve: LRCurve) -> int:
    """The lane of the lowest mean loss; 0 where every rate diverged, since a lower one may not."""
    end = _end(curve)
    return 0 if end is None else lowest_lane(end.heights)


def final_losses(curve: LRCurve) -> np.ndarray:
    """What the rules compare, float64 [seeds, lanes]; NaN at rates where any seed diverged. Low is good: a metric
    that is judged by its highest comes as its negative.

    Raises:
      ValueError: every rate diverged.
    """
    _usable(curve)
    return judged_losses(curve)[-1][1]


def nothing_learned(curve: LRCurve) -> bool:
    """Whether no rate fell below the loss without training by more than noise explains."""
    return not _usable(curve)[-1].learned


def harmless_side(curve: LRCurve) -> int:
    """Where the search goes on where nothing was learned: up where no rate did harm, down where none is better.

    Nowhere where some did harm, and where the loss does not depend on the parameters at all.
    """
    end = _usable(curve)[-1]
    if end.harmless.all():
        return 0 if end.constant else 1
    return -1 if best_lane(curve) == 0 else 0


def lost_above(heights: np.ndarray, lane: int) -> bool:
    """Whether the next higher rate diverged."""
    return lane + 1 < heights.shape[1] and not np.isfinite(heights[:, lane + 1]).all()


def _usable(curve: LRCurve) -> list[Judged]:
    refuse_more_axes(curve)
    points = judged(curve)
    if not points[-1].survives:
        raise ValueError("Every rate diverged, so no rate can be suggested.")
    return points


def _end(curve: LRCurve) -> Judged | None:
    """The runs at their end; None where every rate diverged."""
    refuse_more_axes(curve)
    end = judged(curve)[-1]
    return end if end.survives else None


def _beside_lost(point: Judged) -> bool:
    return lost_above(point.heights, lowest_lane(point.heights))


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
            f"by more than noise; try {LONGER * end.steps}"
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


def refuse_more_axes(curve: LRCurve) -> None:
    """Refuse a curve that is not over learning rates alone, in their order.

    Raises:
      ValueError: another hyperparameter varies, too, or the rates do not increase.
    """
    if len(curve.axes) > 1:
        name = curve.axes[1]
        raise ValueError(
            f"A rule needs a curve over learning rates alone, got one over {', '.join(curve.axes)}; take a part of "
            f"it, such as curve.take(curve.lanes[{name!r}] == {curve.lanes[name][0].item()!r})."
        )
    if (np.diff(curve.learning_rates) < 0).any():
        raise ValueError(
            f"A rule needs learning rates in increasing order, got {curve.learning_rates.tolist()}; "
            "curve.take(np.argsort(curve.learning_rates)) has them so."
        )


def _center(rates: np.ndarray, point: Judged) -> float:
    """The middle of the rates whose loss is near the lowest; see `for_horizon`."""
    if len(rates) == 1:
        return float(rates[0])
    x, scale = np.log(rates), max(SOFTNESS * point.fall, np.finfo(float).tiny)
    return float(np.exp(np.average(x, weights=np.gradient(x) * np.exp(-excess(point.heights) / scale))))
