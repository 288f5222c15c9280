"""The classic rules: a rate read off one loss per rate, as off the curve of a range test.

No rule names a rate outside the curve. Where the loss was not seen to fall, or to rise, and the rule needs it, the
suggestion is `at_edge` and its reason says so.
"""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .comparison import FIRST_OF_RAMP, untrained_loss
from .curve import LRCurve
from .outcomes import final_losses
from .stable import largest_stable
from .suggestion import Suggestion

# The share of the whole fall of a loss at which the classic hand rules see it begin to fall, or to rise.
SHARP = 0.1
# The share of the fall of a ramp at which the peak of a cycle is set.
PEAK = 0.5
# So many standard errors of the untrained loss show a fall or a rise.
CLEAR = 4


def steepest(curve: LRCurve) -> Suggestion:
    """Where the loss falls fastest: the minimum of d loss / d log rate (fastai's "steep")."""
    return _classic(
        curve, "steepest", lambda rates, losses: rates[np.argmin(np.gradient(losses, np.log(rates)))]
    )


def valley(curve: LRCurve) -> Suggestion:
    """A half into the longest falling subsequence of the losses: a third plus a sixth of it (fastai's "valley")."""

    def rule(rates: np.ndarray, losses: np.ndarray) -> float:
        chain = longest_fall(losses)
        return rates[chain[len(chain) // 3 + len(chain) // 6]]

    return _classic(curve, "valley", rule)


def minimum_over_ten(curve: LRCurve) -> Suggestion:
    """A tenth of the rate of the lowest loss (fastai's "minimum")."""
    return _classic(curve, "minimum_over_ten", lambda rates, losses: rates[np.argmin(losses)] / 10)


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
    the whole fall (from the smallest rate to the lowest loss) of the lowest. Of a loss that is flat from the start,
    as that of a trained model, `flat_then_rising` is the rule.
    """

    def rule(rates: np.ndarray, losses: np.ndarray) -> float:
        best = int(np.argmin(losses))
        rises = losses[best:] - losses[best] > SHARP * (losses[0] - losses[best])
        return rates[best + (int(np.argmax(rises)) - 1 if rises[1:].any() else len(rises) - 1)] / 10

    return _classic(curve, "before_rise", rule, rise=True)


def flat_then_rising(curve: LRCurve) -> Suggestion:
    """A tenth of the rate at which a loss that was flat begins to rise: to go on with a trained model.

    The flat level is the median of the losses below the middle of the curve. The rise begins after the last rate
    whose loss is above it by at most a tenth of the whole rise.

    Raises:
      ValueError: fewer than two rates did not diverge.

    >>> rates = np.geomspace(1e-6, 1.0, 13)
    >>> losses = np.where(rates < 0.005, 0.2, 0.2 + rates).astype(np.float32)
    >>> curve = LRCurve(rates, losses[None, :, None], None, np.array([], np.int32), np.full((1, 13), -1, np.int32))
    >>> round(flat_then_rising(curve).learning_rate, 4)
    0.0032

    Source: the fast.ai course's rule for unfrozen, trained layers: ten times less than where the loss rises.
    """

    def rule(rates: np.ndarray, losses: np.ndarray) -> float:
        level = np.median(losses[: max(1, len(losses) // 2)])
        calm = np.flatnonzero(losses - level <= SHARP * (losses.max() - level))
        return rates[calm[-1]] / 10

    return _classic(curve, "flat_then_rising", rule, fall=False, rise=True)


def cyclical_bounds(curve: LRCurve) -> tuple[float, float]:
    """The base and the peak of a cyclical schedule: bounds between which training learns.

    The base is the first rate at which a tenth of the whole fall from the untrained loss is done, of the seeds'
    mean. The peak of separate runs is the rate of the lowest loss. A ramp shows that rate too late: it trains at
    each rate for one step, and its smoothed loss follows even later. There the peak is the rate at which half of
    the fall is done, before the loss turns ragged. Where `lr_range_test` checked the ramp by short runs
    (`check_runs`), the peak is the rate of their lowest loss. The base is at most a quarter of the peak.

    Raises:
      ValueError: fewer than two rates did not diverge, or the loss was not seen to fall.

    >>> rates = np.geomspace(0.001, 1.0, 7)
    >>> losses = np.array([2.0, 1.99, 1.7, 1.2, 0.8, 0.9, 3.0], np.float32)
    >>> runs = LRCurve(rates, np.tile(losses[None, :, None], 20), None, np.array([], np.int32),
    ...                np.full((1, 7), -1, np.int32))
    >>> base, peak = cyclical_bounds(runs)
    >>> round(base, 3), round(peak, 3)
    (0.01, 0.1)

    On ten small problems, cycles end within 10% of the best peak's validation loss on nine where the bounds are
    read off runs of 200 steps, on four off a ramp of 100 (14% above it in the median), and on nine off that ramp
    where `check_runs=5` (`benchmarks/cyclical_bounds.py`).

    Source: Smith 2017 (arXiv:1506.01186), section 3.3: from where the accuracy begins to rise to where it slows,
    becomes ragged, or falls.
    """
    rates, losses = _kept("cyclical_bounds", curve)
    fell, checked = _seen(curve, losses).fall, _checked_peak(curve)
    if not fell and checked is None:
        raise ValueError(
            f"cyclical_bounds needs a loss that falls, got none between {rates[0]:.3g} and {rates[-1]:.3g}."
        )
    if checked is not None and not fell:
        return checked / 4, checked
    means = losses.mean(axis=0)
    # The first points of a ramp are smoothed over few steps.
    first = len(means) // FIRST_OF_RAMP if curve.losses.shape[-1] == 1 else 0
    best = first + int(np.argmin(means[first:]))
    start = untrained_loss(curve).value
    fallen = (start - means[: best + 1]) / max(start - means[best], np.finfo(float).tiny)

    def reached(part: float) -> float:
        """The first rate from which on that part of the fall is done."""
        below = np.flatnonzero(fallen < part)
        return float(rates[min(below[-1] + 1, best) if len(below) else 0])

    peak = checked or (reached(PEAK) if curve.losses.shape[-1] == 1 else float(rates[best]))
    return max(min(reached(SHARP), peak / 4), float(rates[0])), peak


def _checked_peak(curve: LRCurve) -> float | None:
    """The rate of the lowest loss of the runs that checked a ramp, where one of them learned."""
    if curve.checked is None or not curve.checked.stable.any():
        return None
    losses, start = final_losses(curve.checked).mean(axis=0), untrained_loss(curve)
    best = int(np.nanargmin(losses))
    learned = start.value - losses[best] > CLEAR * start.error
    return float(curve.checked.learning_rates[best]) if learned else None


CLASSIC_RULES: dict[str, Callable[[LRCurve], Suggestion]] = {
    rule.__name__: rule
    for rule in (steepest, valley, slide, minimum_over_ten, before_rise, flat_then_rising, largest_stable)
}


def classic(curve: LRCurve) -> dict[str, float]:
    """What the common rules say of a curve, by name; a rule that cannot answer is left out."""
    found = {}
    for name, rule in CLASSIC_RULES.items():
        with contextlib.suppress(ValueError):
            found[name] = rule(curve).learning_rate
    return found


class _Seen(NamedTuple):
    """Whether the loss fell from the untrained one, and rose again, by more than the noise of batches."""

    fall: bool
    rise: bool


def _seen(curve: LRCurve, losses: np.ndarray) -> _Seen:
    start, means = untrained_loss(curve), losses.mean(axis=0)
    # The first points of a ramp are smoothed over few steps.
    lowest = means[len(means) // FIRST_OF_RAMP :].min()
    fall = start.value - lowest
    rise = means[-1] - lowest > max(SHARP * fall, CLEAR * start.error)
    return _Seen(bool(fall > CLEAR * start.error), bool(rise or not curve.stable[-1]))


def _classic(
    curve: LRCurve,
    name: str,
    rule: Callable[[np.ndarray, np.ndarray], float],
    *,
    fall: bool = True,
    rise: bool = False,
) -> Suggestion:
    """A rule of one loss per rate: of the seeds' mean, and of each seed for the interval."""
    rates, losses = _kept(name, curve)
    low, high = curve.learning_rates[0], rates[-1]
    wanted = float(rule(rates, losses.mean(axis=0)))
    rate, *each = (
        float(np.clip(value, low, high)) for value in (wanted, *(float(rule(rates, seed)) for seed in losses))
    )
    seen, notes = _seen(curve, losses), []
    if fall and not seen.fall:
        notes.append(f"no fall was seen between {low:.3g} and {high:.3g}")
    if rise and not seen.rise:
        notes.append(f"the loss had not risen by {high:.3g}")
    if wanted < low:
        notes.append("the rule asks for less than the smallest rate that was tried")
    if not notes and rate in (low, curve.learning_rates[-1]):
        notes.append("that is the edge of the rates that were tried")
    return Suggestion(
        learning_rate=rate,
        low=min(rate, *each),
        high=max(rate, *each),
        reason="; ".join([f"The rule {name!r}, read off {len(rates)} rates", *notes]) + ".",
        curve=curve,
        at_edge=bool(notes),
        lane_steps=curve.lane_steps,
    )


def _kept(name: str, curve: LRCurve) -> tuple[np.ndarray, np.ndarray]:
    """The rates that did not diverge, and their losses [seeds, lanes]; at least two."""
    losses = final_losses(curve)
    kept = np.isfinite(losses).all(axis=0)
    if kept.sum() < 2:
        raise ValueError(f"The rule {name!r} needs two rates that did not diverge, got {kept.sum()}.")
    return curve.learning_rates[kept], losses[:, kept]


def longest_fall(values: np.ndarray) -> list[int]:
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
