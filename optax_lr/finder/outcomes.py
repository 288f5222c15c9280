"""How the runs of a curve ended: which rates are left, which is the best, and whether anything was learned."""

import numpy as np

from .comparison import lowest_lane
from .curve import LRCurve
from .judging import Judged, judged
from .losses import judged_losses


def best_lane(curve: LRCurve) -> int:
    """The lane of the lowest mean loss; 0 where every rate diverged, since a lower one may not."""
    end = end_of(curve)
    return 0 if end is None else lowest_lane(end.heights)


def final_losses(curve: LRCurve) -> np.ndarray:
    """What the rules compare, float64 [seeds, lanes]; NaN at rates where any seed diverged. Low is good: a metric
    that is judged by its highest comes as its negative.

    Raises:
      ValueError: every rate diverged.
    """
    usable(curve)
    return judged_losses(curve)[-1][1]


def nothing_learned(curve: LRCurve) -> bool:
    """Whether no rate fell below the loss without training by more than noise explains."""
    return not usable(curve)[-1].learned


def harmless_side(curve: LRCurve) -> int:
    """Where the search goes on where nothing was learned: up where no rate did harm, down where none is better.

    Nowhere where some did harm, and where the loss does not depend on the parameters at all.
    """
    end = usable(curve)[-1]
    if end.harmless.all():
        return 0 if end.constant else 1
    return -1 if best_lane(curve) == 0 else 0


def lost_above(heights: np.ndarray, lane: int) -> bool:
    """Whether the next higher rate diverged."""
    return lane + 1 < heights.shape[1] and not np.isfinite(heights[:, lane + 1]).all()


def usable(curve: LRCurve) -> list[Judged]:
    """The runs after as many steps as they can be compared at.

    Raises:
      ValueError: every rate diverged.
    """
    refuse_more_axes(curve)
    points = judged(curve)
    if not points[-1].survives:
        raise ValueError("Every rate diverged, so no rate can be suggested.")
    return points


def end_of(curve: LRCurve) -> Judged | None:
    """The runs at their end; None where every rate diverged."""
    refuse_more_axes(curve)
    end = judged(curve)[-1]
    return end if end.survives else None


def stands_beside_lost(point: Judged) -> bool:
    """Whether the rate above the best one diverged."""
    return lost_above(point.heights, lowest_lane(point.heights))


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
