"""Rules on separate runs, one lane a rate: `LRCurve` to `Suggestion`, and which lanes a search tries next.

Every rule looks at one number for each rate and seed: the last validation loss where the curve has one, else
the training loss averaged over the last quarter of the steps. Rates at which any seed diverged are left out.

The interval of `lowest_loss` and `for_horizon` holds the rates around the best whose loss cannot be told from
the lowest, by a one-sided t-test at 75%, or lies within 1% of it; between two lanes losses lie on a line.
`for_horizon` adds what it does not know of the drift.
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
    lowest_size,
    noise_threshold,
    span_around,
)
from .curve import LRCurve, judged_losses
from .suggestion import Suggestion

# How the log of the best rate may move with the log of the length of a run.
SLOPES = (-1.0, 0.0)
# By how much the slope that was seen may differ from the one to come.
UNSURE = 0.25
# Lanes within this factor of the best shape its parabola, whatever can be told apart.
AROUND = 2.0
# A lane whose loss is above the lowest by this share of it weighs e times less in the center of a curve.
SOFTNESS = 0.2
# The ratio of the lanes that surround the best of one length, and how many there are at most on either side.
BESIDE, MOST_BESIDE = 2.0, 2
# Full runs at rates closer than this differ by their noise.
CLOSE = 1.4
# What a diverged run counts, in losses of the best.
DIVERGED_LOSS = 10.0


def lowest_loss(curve: LRCurve) -> Suggestion:
    """The rate of the lowest loss, averaged over the seeds, by a parabola in log-log.

    It is fitted by least squares to the lanes within a factor of 2 of the best and those of its interval, its two
    neighbors at least: the less can be told apart, the more lanes count. Where the next higher rate diverged, it
    goes through the neighbors alone, and the diverged one counts ten times the best. The next run may not survive
    what these did: so the answer moves away, by up to half the way to the lower rate.

    Raises:
      ValueError: every rate diverged.

    >>> rates = np.geomspace(0.01, 1.0, 9)
    >>> losses = 1 + np.log(rates / 0.2) ** 2
    >>> curve = LRCurve(rates, losses.astype(np.float32)[None, :, None], None, np.array([], np.int32),
    ...                 np.full((1, 9), -1, np.int32))
    >>> round(lowest_loss(curve).learning_rate, 2)
    0.2
    """
    losses = final_losses(curve)
    rates, best = curve.learning_rates, lowest_lane(losses)
    above, most = excess(losses), noise_threshold(losses, INTERVAL_LEVEL)
    span = span_around(above > most, best)
    rate = _away_from_diverged(rates, losses, best) or _bottom(rates, losses, best, span)
    low, high = interval(rates, above, most, span)
    return Suggestion(
        learning_rate=rate,
        low=min(low, rate),
        high=max(high, rate),
        reason=f"{_lowest_at(curve, 'at this rate')}.",
        curve=curve,
        at_edge=best in (0, len(rates) - 1),
        lane_steps=curve.lane_steps,
    )


def for_horizon(curve: LRCurve | Sequence[LRCurve], horizon: int) -> Suggestion:
    """The rate for a run of `horizon` steps: the best rate's drift with the length of runs, extrapolated.

    log rate(horizon) = log rate(n) + slope * log(horizon / n), where n is the longest run and `slope` what the rate
    moved since the run before it, kept in [-1, 0]: where models overfit, the best rate falls as 1 / steps, since
    the product of both is what counts; where stability limits it, it stays. Shorter runs do not count: what limits
    the rate of a model that has barely begun to learn tells little of one that has.

    rate(n) is the mean of the log of the rates, each weighed by the width of its lane and by
    exp(-(loss - lowest) / (0.2 |lowest|)). Where the curve is flat it is the middle of what is flat, which noise
    moves less than the lowest point.

    Args:
      curve: runs of several lengths, each under the whole of its schedule (of runs of one length
        `lowest_loss` is taken, and a slope of -0.5); or one curve of lanes at constant rates with losses at several
        steps. Of the latter half the slope is taken: a constant rate must be smaller than the peak of a schedule,
        and the two errors about cancel.
      horizon: the steps of the run to come.

    The interval is that of the longest runs with a quarter of the range of slopes added on both sides.

    Raises:
      ValueError: a curve at constant rates has losses at one step only, or every rate diverged.
    """
    curves = [curve] if isinstance(curve, LRCurve) else sorted(curve, key=lambda each: each.losses.shape[-1])
    constant = curves[0] is curve
    history = [
        (step, _center(each.learning_rates, losses))
        for each in curves
        for step, losses in (_history(each) if constant else _history(each)[-1:])
    ]
    here, (last, center) = lowest_loss(curves[-1]), history[-1]
    shorter = [point for point in history if point[0] < last]
    if constant and not shorter:
        raise ValueError("for_horizon needs losses at two or more steps of the curve, got 1.")
    if shorter:
        before, earlier = shorter[-1]
        slope = np.log(center / earlier) / np.log(last / before)
        moved = f"from {before} to {last} steps the best rate moved as steps^{slope:.2f}"
    else:
        # Short runs over many rates are flat far from the best.
        center, slope = here.learning_rate, np.mean(SLOPES)
        moved = f"the best rate is taken to move as steps^{slope:.2f}"
    slope = np.clip(slope, *SLOPES) / (2 if constant else 1)
    floor, ceiling = -np.inf, np.inf
    if constant:
        floor, ceiling = curves[0].learning_rates[0], curves[0].learning_rates[curves[0].stable].max()

    def extrapolated(rate: float, change: float) -> float:
        return float(np.clip(rate * (horizon / last) ** np.clip(change, *SLOPES), floor, ceiling))

    rate = extrapolated(center, slope)
    low, high = (extrapolated(end, slope + sign * UNSURE) for end, sign in ((here.low, -1), (here.high, 1)))
    return dataclasses.replace(
        here,
        learning_rate=rate,
        low=min(low, rate),
        high=max(high, rate),
        reason=f"{_lowest_at(curves[-1], f'around {center:.3g}')}; {moved}, which, carried on to {horizon} steps, "
        f"makes {rate:.3g} of it.",
        shorter=tuple(curves[:-1]),
        lane_steps=sum(each.lane_steps for each in curves),
    )


def rates_beside(curve: LRCurve) -> list[float]:
    """The rates that are still missing around the best: at ratio 2, on either side up to one that is clearly worse.

    At least one and at most two on a side, but none beyond one that diverged.
    """
    rates = curve.learning_rates
    if _none_usable(curve):
        return [float(rates[0] / BESIDE)]
    losses, best = final_losses(curve), best_lane(curve)
    above, most = excess(losses), noise_threshold(losses, SEARCH_LEVEL)
    lacking = []
    for ratio in (1 / BESIDE, BESIDE):
        for count in range(1, MOST_BESIDE + 1):
            wanted = rates[best] * ratio**count
            lane = int(np.abs(np.log(rates / wanted)).argmin())
            between = above[(rates - rates[best]) * (rates - wanted) < 0]
            if np.abs(np.log(rates[lane] / wanted)) > np.log(BESIDE) / 3:
                lacking += [] if np.isinf(between).any() else [float(wanted)]
                break
            if above[lane] > most:
                break
    return lacking


def next_rate(curve: LRCurve) -> float | None:
    """The next rate to try: the middle of the wider gap next to the best rate, on the better side of equal ones.

    None where the best is at an edge or both gaps are small. (A sharp optimum lies between lanes as often as at
    one, and a parabola through three of them does not see it.)
    """
    rates, means = curve.learning_rates, np.nan_to_num(final_losses(curve).mean(axis=0), nan=np.inf)
    best = best_lane(curve)
    if not 0 < best < len(rates) - 1:
        return None
    gaps = np.log(rates[best] / rates[best - 1]), np.log(rates[best + 1] / rates[best])
    if np.isclose(*gaps):
        side = best + 1 if means[best + 1] < means[best - 1] else best - 1
    else:
        side = best + 1 if gaps[1] > gaps[0] else best - 1
    return float(np.sqrt(rates[best] * rates[side])) if max(gaps) > np.log(CLOSE) else None


def undecided(curve: LRCurve) -> bool:
    """True if a neighbor of the best rate may be better: the difference is within noise and above 1%."""
    losses, best = final_losses(curve), best_lane(curve)
    most = noise_threshold(losses, SEEDS_LEVEL)
    left, right = span_around(excess(losses) > most, best)
    return left < right and most > TOLERANCE * lowest_size(losses)


def best_lane(curve: LRCurve) -> int:
    """The lane of the lowest mean loss; 0 where every rate diverged, since a lower one may not."""
    return 0 if _none_usable(curve) else lowest_lane(final_losses(curve))


def final_losses(curve: LRCurve) -> np.ndarray:
    """What the rules compare, float64 [seeds, lanes]; NaN at rates where any seed diverged.

    Raises:
      ValueError: every rate diverged.
    """
    return _history(curve)[-1][1]


def _history(curve: LRCurve) -> list[tuple[int, np.ndarray]]:
    """After how many steps the rules may compare the rates, and the losses there, as `final_losses`."""
    if _none_usable(curve):
        raise ValueError("Every rate diverged, so no rate can be suggested.")
    return judged_losses(curve)


def _lowest_at(curve: LRCurve, where: str) -> str:
    seeds, kind = len(curve.losses), "training" if curve.eval_losses is None else "validation"
    return (
        f"The {kind} loss is lowest {where} after {curve.losses.shape[-1]} steps "
        f"({np.nanmin(final_losses(curve).mean(axis=0)):.4g}, the mean of {seeds} seed{'s' if seeds > 1 else ''})"
    )


def refuse_more_axes(curve: LRCurve) -> None:
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


def _none_usable(curve: LRCurve) -> bool:
    refuse_more_axes(curve)
    return not np.isfinite(judged_losses(curve)[-1][1]).any()


def _bottom(rates: np.ndarray, losses: np.ndarray, best: int, span: tuple[int, int]) -> float:
    """The vertex of the parabola through the lanes around the best and those of a span."""
    means = losses.mean(axis=0)
    near = np.abs(np.log(rates / rates[best])) <= np.log(AROUND) + 1e-6
    near[max(0, best - 1) : best + 2] = True
    near[span[0] : span[1] + 1] = True
    near &= np.isfinite(means)
    change = _vertex(np.log(rates[near] / rates[best]), means[near]) if near.sum() > 2 else 0.0
    return float(rates[best] * np.exp(change))


def _away_from_diverged(rates: np.ndarray, losses: np.ndarray, best: int) -> float | None:
    """The vertex beside a diverged rate, the next above the best; None where that did not diverge."""
    around = slice(best - 1, best + 2)
    three = losses.mean(axis=0)[around] if 0 < best < len(rates) - 1 else np.zeros(3)
    if np.isfinite(three).tolist() != [True, True, False]:
        return None
    three[2] = three[1] + (DIVERGED_LOSS - 1) * abs(three[1])
    return float(rates[best] * np.exp(_vertex(np.log(rates[around] / rates[best]), three)))


def _vertex(x: np.ndarray, y: np.ndarray) -> float:
    """Where the parabola through log y (or y, where that is not positive) is lowest, within x; 0 if nowhere."""
    square, line, _ = np.polyfit(x, np.log(y) if (y > 0).all() else y, 2)
    return float(np.clip(-line / (2 * square), x[0], x[-1])) if square > 0 else 0.0


def _center(rates: np.ndarray, losses: np.ndarray) -> float:
    """The middle of the rates whose loss is near the lowest; see `for_horizon`."""
    if len(rates) == 1:
        return float(rates[0])
    x, scale = np.log(rates), max(lowest_size(losses), np.finfo(float).tiny)
    return float(np.exp(np.average(x, weights=np.gradient(x) * np.exp(-excess(losses) / scale / SOFTNESS))))
