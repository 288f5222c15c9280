"""Rules that read a learning rate off a curve: `LRCurve` to `Suggestion`, each with its interval.

Every rule looks at one number for each rate and seed: the last validation loss where the curve has one, else
the training loss averaged over the last quarter of the steps. Rates at which any seed diverged are left out.

The interval of `lowest_loss` and `for_horizon` holds the rates around the best whose loss cannot be told from
the lowest, by a one-sided t-test at 75%, or lies within 1% of it; between two lanes losses lie on a line. The
seeds' noise is what is left of the losses after the means of rates and of seeds, pooled over the rates whose loss
is within twice the lowest.
`for_horizon` adds what it does not know of the drift. The classic rules have no notion of certainty; their
interval spans what they say of each seed alone.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from .curve import LRCurve
from .suggestion import Suggestion

TOLERANCE = 0.01
# How the log of the best rate may move with the log of the length of a run.
SLOPES = (-1.0, 0.0)
# By how much the slope that was seen may differ from the one to come.
UNSURE = 0.25
# Lanes within this factor of the best shape its parabola, whatever can be told apart.
AROUND = 2.0
# A lane whose loss is above the lowest by this share of it weighs e times less in the center of a curve.
SOFTNESS = 0.2
# How sure a t-test must be that a rate is worse than the best: to end an interval, to need no more seeds, and to
# look no further. (The first makes intervals hold the best in nine of ten searches; at 95% nearly all of them do.)
INTERVAL_LEVEL, SEEDS_LEVEL, SEARCH_LEVEL = 0.75, 0.9, 0.95
# The ratio of the lanes that surround the best of one length, and how many there are at most on either side.
BESIDE, MOST_BESIDE = 2.0, 2
# Full runs at rates closer than this differ by their noise.
CLOSE = 1.4
# What a lost run counts, in losses of the best.
LOST = 10.0
# The share of the whole fall of a loss at which the classic hand rules see it begin to fall, or to rise.
SHARP = 0.1


def lowest_loss(curve: LRCurve) -> Suggestion:
    """The rate of the lowest loss, averaged over the seeds, by a parabola in log-log.

    It is fitted by least squares to the lanes within a factor of 2 of the best and those of its interval, its two
    neighbors at least: the less can be told apart, the more lanes have a say. Where the next higher rate was
    lost, it goes through the neighbors alone and the lost one counts ten times the best. What these runs survived
    the next may not: so the answer moves away, by up to half the way to the lower rate.

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
    rates, best = curve.learning_rates, _best(losses)
    above, most = _excess(losses), _alike(losses, INTERVAL_LEVEL)
    span = _span(above > most, best)
    rate = _away_from_lost(rates, losses, best) or _bottom(rates, losses, best, span)
    low, high = _interval(rates, above, most, span)
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
    """The rate for a run of `horizon` steps: the best rate's drift with the length of runs, carried on.

    log rate(horizon) = log rate(n) + slope * log(horizon / n), where n is the longest run and `slope` what the rate
    moved since the run before it, kept in [-1, 0]: where models overfit, the best rate falls as 1 / steps, since
    the product of both is what counts; where stability limits it, it stays. Shorter runs have no say: what limits
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

    def carried(rate: float, change: float) -> float:
        return float(np.clip(rate * (horizon / last) ** np.clip(change, *SLOPES), floor, ceiling))

    rate = carried(center, slope)
    low, high = (carried(end, slope + sign * UNSURE) for end, sign in ((here.low, -1), (here.high, 1)))
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
    """Which lanes lack to surround the best: at ratio 2, on either side up to one that can be told from it.

    At least one and at most two on a side, but none beyond one that was lost.
    """
    rates = curve.learning_rates
    if _none_usable(curve):
        return [float(rates[0] / BESIDE)]
    losses, best = final_losses(curve), best_lane(curve)
    above, most = _excess(losses), _alike(losses, SEARCH_LEVEL)
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
    """Where one more lane tells most: half way into the wider gap beside the best, the better side of equal ones.

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
    """Whether noise, and no tolerance of a percent, leaves rates beside the best that may be better."""
    losses, best = final_losses(curve), best_lane(curve)
    most = _alike(losses, SEEDS_LEVEL)
    left, right = _span(_excess(losses) > most, best)
    return left < right and most > TOLERANCE * _lowest(losses)


def steepest(curve: LRCurve) -> Suggestion:
    """Where the loss falls fastest: the minimum of d loss / d log rate (fastai's "steep")."""
    return _classic(
        curve, "steepest", lambda rates, losses: rates[np.argmin(np.gradient(losses, np.log(rates)))]
    )


def valley(curve: LRCurve) -> Suggestion:
    """A half into the longest falling subsequence of the losses: a third plus a sixth of it (fastai's "valley")."""

    def rule(rates: np.ndarray, losses: np.ndarray) -> float:
        chain = _longest_fall(losses)
        return rates[chain[len(chain) // 3 + len(chain) // 6]]

    return _classic(curve, "valley", rule)


def minimum_over_ten(curve: LRCurve) -> Suggestion:
    """A tenth of the rate of the lowest loss (fastai's "minimum")."""
    return _classic(curve, "minimum over ten", lambda rates, losses: rates[np.argmin(losses)] / 10)


def slide(curve: LRCurve) -> Suggestion:
    """Coming from the right, the first rate from which on the loss no longer bends (fastai's "slide").

    A window of 15 points (of half the curve where it is shorter) slides to the left while the slopes at its ends,
    in loss per point, differ by more than 0.005; the answer is its left end. Made for ramps of 100 points.
    """

    def rule(rates: np.ndarray, losses: np.ndarray) -> float:
        slopes, distance = np.gradient(losses), min(15, (len(losses) - 1) // 2)
        bends = np.abs(slopes[distance:] - slopes[: len(slopes) - distance]) > 0.005
        calm = np.flatnonzero(~bends)
        # The window before the one that is calm; the last one where none bends, the first where all do.
        return rates[min(calm[-1] + 1, len(bends) - 1) if len(calm) else 0]

    return _classic(curve, "slide", rule)


def before_rise(curve: LRCurve) -> Suggestion:
    """A tenth of the rate from which on the loss rises sharply: the hand rule of the field.

    The rise begins at the last rate above the lowest loss, and connected to it, whose loss is within a tenth of
    the whole fall (from the smallest rate to the lowest loss) of the lowest.
    """

    def rule(rates: np.ndarray, losses: np.ndarray) -> float:
        best = int(np.argmin(losses))
        rises = losses[best:] - losses[best] > SHARP * (losses[0] - losses[best])
        return rates[best + (int(np.argmax(rises)) - 1 if rises[1:].any() else len(rises) - 1)] / 10

    return _classic(curve, "before rise", rule)


def cyclical_bounds(curve: LRCurve) -> tuple[float, float]:
    """The base and the peak of a cyclical schedule: where the loss begins to fall, and where it stops falling.

    The base is the first rate at which a tenth of the whole fall is done, the peak that of the lowest loss, both
    of the seeds' mean. Where the loss does not fall between two rates, the base is a quarter of the peak.

    Raises:
      ValueError: fewer than two rates did not diverge.

    >>> rates = np.geomspace(0.001, 1.0, 7)
    >>> losses = np.array([2.0, 1.99, 1.7, 1.2, 0.8, 0.9, 3.0], np.float32)
    >>> curve = LRCurve(rates, losses[None, :, None], None, np.array([], np.int32), np.full((1, 7), -1, np.int32))
    >>> base, peak = cyclical_bounds(curve)
    >>> round(base, 3), round(peak, 3)
    (0.01, 0.1)

    Source: Smith 2017 (arXiv:1506.01186), section 3.3.
    """
    rates, losses = _kept("cyclical bounds", curve)
    means = losses.mean(axis=0)
    best = int(np.argmin(means))
    base = int(np.argmax(means[0] - means >= SHARP * (means[0] - means[best])))
    return float(rates[base] if base < best else rates[best] / 4), float(rates[best])


def largest_stable(curve: LRCurve) -> Suggestion:
    """The largest rate below which no run diverged, on any seed.

    Raises:
      ValueError: the smallest rate diverged.
    """
    _refuse_more_axes(curve)
    if not curve.stable[0]:
        raise ValueError(f"No rate is stable: the smallest, {curve.learning_rates[0]:.3g}, diverged.")

    def last(stable: np.ndarray) -> float:
        fails = np.flatnonzero(~stable)
        return float(curve.learning_rates[(fails[0] if len(fails) else len(stable)) - 1])

    rate, each = last(curve.stable), [last(seed) for seed in curve.diverged_at < 0]
    return Suggestion(
        learning_rate=rate,
        low=min(rate, *each),
        high=max(rate, *each),
        reason="The largest rate up to which no run diverged.",
        curve=curve,
        at_edge=bool(curve.stable.all()),
        lane_steps=curve.lane_steps,
    )


CLASSIC_RULES: dict[str, Callable[[LRCurve], Suggestion]] = {
    "steepest": steepest,
    "valley": valley,
    "slide": slide,
    "minimum over ten": minimum_over_ten,
    "before rise": before_rise,
    "largest stable": largest_stable,
}


def classic(curve: LRCurve) -> dict[str, float]:
    """What the common rules say of a curve, by name; a rule that it does not suffice for is left out."""
    found = {}
    for name, rule in CLASSIC_RULES.items():
        with contextlib.suppress(ValueError):
            found[name] = rule(curve).learning_rate
    return found


def best_lane(curve: LRCurve) -> int:
    """The lane of the lowest mean loss; 0 where every rate diverged, since a lower one may not."""
    return 0 if _none_usable(curve) else _best(final_losses(curve))


def final_losses(curve: LRCurve) -> np.ndarray:
    """What the rules compare, float64 [seeds, lanes]; NaN at rates where any seed diverged.

    Raises:
      ValueError: every rate diverged.
    """
    return _history(curve)[-1][1]


def _history(curve: LRCurve) -> list[tuple[int, np.ndarray]]:
    """After how many steps the rules may compare the rates, and the losses there, as `final_losses`."""
    _refuse_more_axes(curve)
    steps = curve.losses.shape[-1]
    if curve.eval_losses is not None:
        points = [(int(step), curve.eval_losses[..., at]) for at, step in enumerate(curve.eval_steps)]
    else:
        ends = sorted({-(-steps // 4), -(-steps // 2), steps})
        points = [(end, curve.losses[..., end - max(1, end // 4) : end].mean(axis=-1)) for end in ends]
    usable = _usable(curve, points[-1][1])
    if not usable.any():
        raise ValueError("Every rate diverged, so no rate can be suggested.")
    return [(step, np.where(usable, losses.astype(np.float64), np.nan)) for step, losses in points]


def _lowest_at(curve: LRCurve, where: str) -> str:
    seeds, kind = len(curve.losses), "training" if curve.eval_losses is None else "validation"
    return (
        f"The {kind} loss is lowest {where} after {curve.losses.shape[-1]} steps "
        f"({np.nanmin(final_losses(curve).mean(axis=0)):.4g}, the mean of {seeds} seed{'s' if seeds > 1 else ''})"
    )


def _refuse_more_axes(curve: LRCurve) -> None:
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
    return not _usable(curve, curve.losses[..., 0]).any()


def _usable(curve: LRCurve, losses: np.ndarray) -> np.ndarray:
    return curve.stable & np.isfinite(losses).all(axis=0)


def _best(losses: np.ndarray) -> int:
    """The lane of the lowest mean loss."""
    return int(np.nanargmin(losses.mean(axis=0)))


def _bottom(rates: np.ndarray, losses: np.ndarray, best: int, span: tuple[int, int]) -> float:
    """The vertex of the parabola through the lanes around the best and those of a span."""
    means = losses.mean(axis=0)
    near = np.abs(np.log(rates / rates[best])) <= np.log(AROUND) + 1e-6
    near[max(0, best - 1) : best + 2] = True
    near[span[0] : span[1] + 1] = True
    near &= np.isfinite(means)
    change = _vertex(np.log(rates[near] / rates[best]), means[near]) if near.sum() > 2 else 0.0
    return float(rates[best] * np.exp(change))


def _away_from_lost(rates: np.ndarray, losses: np.ndarray, best: int) -> float | None:
    """The vertex beside a lost rate, the next above the best; None where that is not lost."""
    around = slice(best - 1, best + 2)
    three = losses.mean(axis=0)[around] if 0 < best < len(rates) - 1 else np.zeros(3)
    if np.isfinite(three).tolist() != [True, True, False]:
        return None
    three[2] = three[1] + (LOST - 1) * abs(three[1])
    return float(rates[best] * np.exp(_vertex(np.log(rates[around] / rates[best]), three)))


def _vertex(x: np.ndarray, y: np.ndarray) -> float:
    """Where the parabola through log y (or y, where that is not positive) is lowest, within x; 0 if nowhere."""
    square, line, _ = np.polyfit(x, np.log(y) if (y > 0).all() else y, 2)
    return float(np.clip(-line / (2 * square), x[0], x[-1])) if square > 0 else 0.0


def _center(rates: np.ndarray, losses: np.ndarray) -> float:
    """The middle of the rates whose loss is near the lowest; see `for_horizon`."""
    if len(rates) == 1:
        return float(rates[0])
    x, scale = np.log(rates), max(_lowest(losses), np.finfo(float).tiny)
    return float(np.exp(np.average(x, weights=np.gradient(x) * np.exp(-_excess(losses) / scale / SOFTNESS))))


def _lowest(losses: np.ndarray) -> float:
    """The size of the lowest mean loss, of which others are a share above it."""
    return float(abs(np.nanmin(losses.mean(axis=0))))


def _excess(losses: np.ndarray) -> np.ndarray:
    """How far each rate's mean loss is above the lowest; infinite where it was lost."""
    means = losses.mean(axis=0)
    return np.nan_to_num(means - np.nanmin(means), nan=np.inf)


def _alike(losses: np.ndarray, level: float) -> float:
    """Up to which excess a rate cannot be told from the best."""
    from scipy.special import stdtrit  # a third of a second that `import optax_lr` need not take

    scale = _lowest(losses)
    near = losses[:, _excess(losses) <= scale]
    rest = near - near.mean(axis=0) - near.mean(axis=1, keepdims=True) + near.mean()
    freedom = (near.shape[0] - 1) * (near.shape[1] - 1)
    noise = stdtrit(freedom, level) * np.sqrt((rest**2).sum() / freedom * 2 / len(losses)) if freedom else 0.0
    return float(max(noise, TOLERANCE * scale))


def _span(worse: np.ndarray, best: int) -> tuple[int, int]:
    """The first and the last of the lanes around the best, none of which is worse."""
    others = np.flatnonzero(worse)
    left, right = others[others < best].max(initial=-1), others[others > best].min(initial=len(worse))
    return int(left) + 1, int(right) - 1


def _interval(
    rates: np.ndarray, above: np.ndarray, most: float, span: tuple[int, int]
) -> tuple[float, float]:
    """The rates that cannot be told from the best: up to where a line in log rate crosses what can.

    The line goes to the nearest lane on each side that can be told apart; to a lost one, it is cut in half.
    """
    left, right = span

    def crossing(alike: int, other: int) -> float:
        if not 0 <= other < len(rates):
            return float(rates[alike])
        share = (most - above[alike]) / (above[other] - above[alike]) if np.isfinite(above[other]) else 0.5
        return float(rates[alike] * (rates[other] / rates[alike]) ** share)

    return crossing(left, left - 1), crossing(right, right + 1)


def _classic(curve: LRCurve, name: str, rule: Callable[[np.ndarray, np.ndarray], float]) -> Suggestion:
    """A rule of one loss per rate: of the seeds' mean, and of each seed for the interval."""
    rates, losses = _kept(name, curve)
    rate, each = float(rule(rates, losses.mean(axis=0))), [float(rule(rates, seed)) for seed in losses]
    return Suggestion(
        learning_rate=rate,
        low=min(rate, *each),
        high=max(rate, *each),
        reason=f"The rule {name!r}, read off {len(rates)} rates.",
        curve=curve,
        lane_steps=curve.lane_steps,
    )


def _kept(name: str, curve: LRCurve) -> tuple[np.ndarray, np.ndarray]:
    """The rates that did not diverge, and their losses [seeds, lanes]; at least two."""
    losses = final_losses(curve)
    kept = np.isfinite(losses).all(axis=0)
    if kept.sum() < 2:
        raise ValueError(f"The rule {name!r} needs two rates that did not diverge, got {kept.sum()}.")
    return curve.learning_rates[kept], losses[:, kept]


def _longest_fall(values: np.ndarray) -> list[int]:
    """Indices of the longest strictly falling subsequence."""
    length, previous = np.ones(len(values), int), np.full(len(values), -1)
    for i in range(len(values)):
        for j in range(i):
            if values[j] > values[i] and length[j] + 1 > length[i]:
                length[i], previous[i] = length[j] + 1, j
    chain = [int(np.argmax(length))]
    while previous[chain[-1]] >= 0:
        chain.append(int(previous[chain[-1]]))
    return chain[::-1]
