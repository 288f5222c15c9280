"""Rules that read a learning rate off a curve: `LRCurve` to `Suggestion`, each with its interval.

Every rule looks at one number for each rate and seed: the last validation loss where the curve has one, else
the training loss averaged over the last quarter of the steps. Rates at which any seed diverged are left out.

The interval of `lowest_loss` and `for_horizon` holds the rates around the best whose loss cannot be told from
the lowest, by a one-sided t-test at 95%, or lies within 1% of it. The seeds' noise is what is left of the
losses after the means of rates and of seeds, pooled over the rates whose loss is within twice the lowest. The
classic rules have no notion of certainty; their interval spans what they say of each seed alone.
"""

import contextlib
import dataclasses
from collections.abc import Callable

import numpy as np

from .results import LRCurve, Suggestion

TOLERANCE = 0.01


def lowest_loss(curve: LRCurve) -> Suggestion:
    """The rate of the lowest loss, averaged over the seeds, by a parabola in log-log through three rates.

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
    best, rate = _bottom(curve.learning_rates, losses)
    low, high = _interval(curve.learning_rates, losses, best)
    seeds, kind = len(losses), "training" if curve.eval_losses is None else "validation"
    reason = (
        f"The {kind} loss is lowest at this rate after {curve.losses.shape[-1]} steps "
        f"({losses[:, best].mean():.4g}, the mean of {seeds} seed{'s' if seeds > 1 else ''})."
    )
    return Suggestion(
        learning_rate=rate,
        low=min(low, rate),
        high=max(high, rate),
        reason=reason,
        curve=curve,
        at_edge=best in (0, len(curve.learning_rates) - 1),
        lane_steps=curve.lane_steps,
    )


def for_horizon(curve: LRCurve, horizon: int) -> Suggestion:
    """The rate for a run of `horizon` steps: the best rate's drift over the curve's evaluations, carried on.

    log rate(horizon) = log rate(n) + slope / 2 * log(horizon / n), where n is the last evaluation's step and
    `slope` that of the best log rate against the log of the step, by least squares. A best rate falls with the
    length of a run where models overfit and stays where stability limits it; half the slope is the middle.

    Raises:
      ValueError: the curve has validation losses at fewer than two steps, or every rate diverged.
    """
    history = _history(curve)
    if len(history) < 2:
        raise ValueError(f"for_horizon needs losses at two or more steps of the curve, got {len(history)}.")
    here, steps = lowest_loss(curve), [step for step, _ in history]
    bests = [np.log(_bottom(curve.learning_rates, losses)[1]) for _, losses in history]
    slope = np.polyfit(np.log(steps), bests, 1)[0]
    shift = float(np.exp(slope / 2 * np.log(horizon / steps[-1])))
    floor, ceiling = curve.learning_rates[0], curve.learning_rates[curve.stable].max()
    ends = (here.learning_rate, here.low, here.high)
    rate, low, high = (float(np.clip(end * shift, floor, ceiling)) for end in ends)
    reason = (
        f"{here.reason[:-1]}; from {steps[0]} to {steps[-1]} steps the best rate moved as steps^{slope:.2f}, "
        f"and half of that, carried on to {horizon} steps, multiplies it by {rate / here.learning_rate:.2g}."
    )
    return dataclasses.replace(here, learning_rate=rate, low=low, high=high, reason=reason)


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
    "minimum over ten": minimum_over_ten,
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
    if not _usable(curve, curve.losses[..., 0]).any():
        return 0
    return _bottom(curve.learning_rates, final_losses(curve))[0]


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


def _usable(curve: LRCurve, losses: np.ndarray) -> np.ndarray:
    return curve.stable & np.isfinite(losses).all(axis=0)


def _bottom(rates: np.ndarray, losses: np.ndarray) -> tuple[int, float]:
    """The lane of the lowest mean loss, and the vertex of the parabola through it and its two neighbours."""
    means = losses.mean(axis=0)
    best = int(np.nanargmin(means))
    if not 0 < best < len(rates) - 1:
        return best, float(rates[best])
    x, y = np.log(rates[best - 1 : best + 2]), means[best - 1 : best + 2]
    if not np.isfinite(y).all():
        return best, float(rates[best])
    square, line, _ = np.polyfit(x - x[1], np.log(y) if (y > 0).all() else y, 2)
    if square <= 0:
        return best, float(rates[best])
    return best, float(np.exp(np.clip(x[1] - line / (2 * square), x[0], x[2])))


def _interval(rates: np.ndarray, losses: np.ndarray, best: int) -> tuple[float, float]:
    """The rates that cannot be told from the best: up to half way to the nearest lane on each side that can."""
    from scipy.special import stdtrit  # a third of a second that `import optax_lr` need not take

    means = losses.mean(axis=0)
    scale = abs(means[best])
    near = losses[:, means <= means[best] + scale]
    rest = near - near.mean(axis=0) - near.mean(axis=1, keepdims=True) + near.mean()
    freedom = (near.shape[0] - 1) * (near.shape[1] - 1)
    noise = stdtrit(freedom, 0.95) * np.sqrt((rest**2).sum() / freedom * 2 / len(losses)) if freedom else 0.0
    alike = np.nan_to_num(means - means[best], nan=np.inf) <= max(noise, TOLERANCE * scale)
    worse = np.flatnonzero(~alike)
    left, right = worse[worse < best].max(initial=-1), worse[worse > best].min(initial=len(rates))
    low = np.sqrt(rates[left] * rates[left + 1]) if left >= 0 else rates[0]
    high = np.sqrt(rates[right - 1] * rates[right]) if right < len(rates) else rates[-1]
    return float(low), float(high)


def _classic(curve: LRCurve, name: str, rule: Callable[[np.ndarray, np.ndarray], float]) -> Suggestion:
    """A rule of one loss per rate: of the seeds' mean, and of each seed for the interval."""
    losses = final_losses(curve)
    kept = np.isfinite(losses).all(axis=0)
    rates = curve.learning_rates[kept]
    if len(rates) < 2:
        raise ValueError(f"The rule {name!r} needs two rates that did not diverge, got {len(rates)}.")
    rate, each = (
        float(rule(rates, losses[:, kept].mean(axis=0))),
        [float(rule(rates, y)) for y in losses[:, kept]],
    )
    return Suggestion(
        learning_rate=rate,
        low=min(rate, *each),
        high=max(rate, *each),
        reason=f"The rule {name!r}, read off {len(rates)} rates.",
        curve=curve,
        lane_steps=curve.lane_steps,
    )


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
