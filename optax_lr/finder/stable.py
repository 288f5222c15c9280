"""Rates that learned: the largest stable one, and the first one that halving finds."""

import numpy as np

from .comparison import SEEDS_LEVEL, untrained_loss
from .curve import LRCurve
from .judging import judged
from .outcomes import final_losses, refuse_more_axes
from .suggestion import Suggestion

# A rate has learned where it kept this share of the fall of the best one.
LEARNED = 0.1


def largest_stable(curve: LRCurve, *, reference: float | None = None) -> Suggestion:
    """The largest rate that learned, and below which no run diverged, on any seed.

    A rate has learned where its loss is below the untrained one, by more than twice the noise and by a tenth of
    what the best rate fell. A network that died at a large rate stands at chance, and has not learned.

    Args:
      curve: the curve of a sweep or of a range test.
      reference: the untrained loss; by default the curve's own, else what its smallest rate began with.

    Raises:
      ValueError: the smallest rate diverged, no rate learned, or the reference is no finite number.
    """
    refuse_more_axes(curve)
    if not curve.stable[0]:
        raise ValueError(f"No rate is stable: the smallest, {curve.learning_rates[0]:.3g}, diverged.")
    learned, alive = _learned(curve, reference), curve.diverged_at < 0

    def last(stable: np.ndarray) -> float:
        fails = np.flatnonzero(~stable)
        candidates = np.flatnonzero(learned[: fails[0] if len(fails) else None])
        return float(curve.learning_rates[candidates[-1] if len(candidates) else 0])

    below = learned & np.logical_and.accumulate(curve.stable)
    if not below.any():
        raise ValueError("No rate learned: no loss is below the untrained one by more than the noise.")
    rate, each = last(curve.stable), [last(seed) for seed in alive]
    return Suggestion(
        learning_rate=rate,
        low=min(rate, *each),
        high=max(rate, *each),
        reason="The largest rate that learned, up to which no run diverged.",
        curve=curve,
        at_edge=bool(rate == curve.learning_rates[-1]),
        lane_steps=curve.lane_steps,
    )


def halve_until_stable(curve: LRCurve, *, reference: float | None = None) -> Suggestion:
    """Start at the largest rate, and halve it until it learns on every seed: the first rate to try by hand.

    Of a curve, the lanes closest to max / 2^k are looked at. "Does not diverge" would not do: a network may be
    dead. See `largest_stable` for what counts as learned, the arguments and what is raised.

    >>> rates = 2.0 ** np.arange(-6, 3)
    >>> losses = np.array([2.2, 2.0, 1.5, 0.8, 0.4, 0.3, 0.9, 2.3, 2.3], np.float32)
    >>> history = np.stack([np.full(9, 2.3, np.float32), *[losses] * 19], axis=-1)
    >>> curve = LRCurve(rates, history[None], None, np.array([], np.int32), np.full((1, 9), -1, np.int32))
    >>> halve_until_stable(curve).learning_rate
    1.0
    """
    refuse_more_axes(curve)
    rates = curve.learning_rates
    wanted = rates[-1] / 2.0 ** np.arange(1 + int(np.log2(rates[-1] / rates[0]) + 1e-6))
    lanes = np.abs(np.log(rates) - np.log(wanted)[:, None]).argmin(axis=1)
    good = _learned(curve, reference) & curve.stable
    tried = [int(lane) for lane in dict.fromkeys(lanes.tolist())]
    found = [count for count, lane in enumerate(tried) if good[lane]]
    if not found:
        raise ValueError(f"No rate learned, from {rates[-1]:.3g} down to {rates[tried[-1]]:.3g}.")
    rate = float(rates[tried[found[0]]])
    return Suggestion(
        learning_rate=rate,
        low=rate,
        high=float(rates[tried[found[0] - 1]]) if found[0] else rate,
        reason=f"The first rate that learned of {found[0] + 1}, halved from {rates[-1]:.3g}.",
        curve=curve,
        at_edge=found[0] == 0,
        lane_steps=curve.lane_steps,
    )


def _learned(curve: LRCurve, reference: float | None) -> np.ndarray:
    """Whether each lane's loss is below the untrained one, beyond noise and by a share of the best one's fall."""
    losses = final_losses(curve)
    untrained = untrained_loss(curve, reference)
    falls = untrained.value - losses.mean(axis=0)
    noise = judged(curve)[-1].noise_threshold(SEEDS_LEVEL, tolerance=0.0)
    error = np.hypot(untrained.error, noise / 2)
    with np.errstate(invalid="ignore"):
        return falls > max(2 * error, LEARNED * np.nanmax(falls), 0.0)
