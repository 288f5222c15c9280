"""Regimes: which rates of a curve are too low, good and too high, as spans to read or to shade."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .classic import SHARP, cyclical_bounds
from .comparison import (
    SEARCH_LEVEL,
    excess,
    interval,
    lowest_lane,
    span_around,
    untrained_loss,
)
from .curve import LRCurve
from .judging import judged
from .outcomes import final_losses

Span = tuple[float, float]


@dataclass(frozen=True)
class Regimes:
    """Spans of rates, as (from, to); iterated, they are pairs of a name and a span, those that were seen.

    Attributes:
      low, good, high: rates that are too low, good and too high; None where none was seen.
      unseen: a sentence for each span that is missing.
    """

    low: Span | None
    good: Span | None
    high: Span | None
    unseen: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[tuple[str, Span]]:
        for name, span in (("too low", self.low), ("good", self.good), ("too high", self.high)):
            if span is not None:
                yield name, span

    def __str__(self) -> str:
        return "\n".join(
            [*(f"{name:<8}  {low:.3g} to {high:.3g}" for name, (low, high) in self), *self.unseen]
        )


def regimes(curve: LRCurve) -> Regimes:
    """Which rates are too low, good and too high.

    Of separate runs, those around the best are good whose loss is above the lowest by no more than the noise of the
    seeds (a t-test at 95%), or by a tenth of what the best fell from the untrained loss; between two lanes losses
    lie on a line. Of a ramp, the good rates are those between `cyclical_bounds`, or up to the largest rate if the
    loss had not risen by then. The others down to the smallest and up to the largest are too low and too high.

    Raises:
      ValueError: every rate diverged, or the curve has other hyperparameters that vary.

    >>> rates = np.geomspace(0.001, 10.0, 5)
    >>> losses = np.array([2.2, 1.5, 0.4, 0.9, 2.3], np.float32)
    >>> history = np.stack([np.full(5, 2.3, np.float32), *[losses] * 19], axis=-1)
    >>> curve = LRCurve(rates, history[None], None, np.array([], np.int32), np.full((1, 5), -1, np.int32))
    >>> print(regimes(curve))
    too low   0.001 to 0.0672
    good      0.0672 to 0.24
    too high  0.24 to 10
    """
    losses, rates = final_losses(curve), curve.learning_rates
    try:
        good = _good_of_ramp(curve, losses) if curve.losses.shape[-1] == 1 else _good(curve, losses)
    except ValueError:
        return Regimes(
            None, None, None, (f"No rate from {rates[0]:.3g} to {rates[-1]:.3g} was seen to learn.",)
        )
    low = (float(rates[0]), good[0]) if good[0] > rates[0] else None
    high = (good[1], float(rates[-1])) if good[1] < rates[-1] else None
    unseen = []
    if low is None:
        unseen.append("No rate was seen that is too low: the smallest is good.")
    if high is None:
        unseen.append("No rate was seen that is too high: the largest is good.")
    return Regimes(low, good, high, tuple(unseen))


def _good_of_ramp(curve: LRCurve, losses: np.ndarray) -> Span:
    base, peak = cyclical_bounds(curve)
    means = losses.mean(axis=0)
    rise, fall = means[-1] - np.nanmin(means), untrained_loss(curve).value - np.nanmin(means)
    risen = not curve.stable[-1] or rise > SHARP * fall
    return base, peak if risen else float(curve.learning_rates[-1])


def _good(curve: LRCurve, losses: np.ndarray) -> Span:
    untrained = untrained_loss(curve)
    best, above = lowest_lane(losses), excess(losses)
    fall = untrained.value - losses[:, best].mean()
    if fall <= 3 * untrained.error:
        raise ValueError("No rate learned.")
    most = max(judged(curve)[-1].noise_threshold(SEARCH_LEVEL, tolerance=0.0), SHARP * fall)
    return interval(curve.learning_rates, above, most, span_around(above, most))
