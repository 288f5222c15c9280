"""Which rates a search tries next, beside the best of a curve, and whether more seeds would tell."""

import numpy as np

from .comparison import (
    SEARCH_LEVEL,
    SEEDS_LEVEL,
    TOLERANCE,
    excess,
    lowest_lane,
    open_sides,
    span_around,
)
from .curve import LRCurve
from .outcomes import end_of, lost_above, stands_beside_lost, usable
from .smooth import CLOSE

# The ratio of the lanes that surround the best of one length, and how many there are at most on either side.
BESIDE, MOST_BESIDE = 2.0, 2
# Beside a rate that diverged the search goes on until the two are closer than this; while more can be gained than
# noise hides, until they are closer than that.
EDGE, SHARP_EDGE = 1.25, 1.07


def rates_beside(curve: LRCurve) -> list[float]:
    """The rates that are still missing around the best: at ratio 2, on either side up to one that is clearly worse.

    At least one and at most two on a side, but none beyond one that diverged.
    """
    rates, end = curve.learning_rates, end_of(curve)
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
    one, and a curve through them does not show it.)
    """
    rates, end = curve.learning_rates, end_of(curve)
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
    rates, end = curve.learning_rates, end_of(curve)
    if end is None or not (end.learned and stands_beside_lost(end)):
        return None
    best = lowest_lane(end.heights)
    ratio, lower = rates[best + 1] / rates[best], excess(end.heights)[max(0, best - 1)]
    slope = lower / np.log(rates[best] / rates[best - 1]) if best and np.isfinite(lower) else 0.0
    promising = slope * np.log(ratio) / 2 > end.noise_threshold(SEARCH_LEVEL, tolerance=0.0)
    return float(rates[best] * np.sqrt(ratio)) if ratio > (SHARP_EDGE if promising else EDGE) else None


def undecided(curve: LRCurve) -> bool:
    """True if a neighbor of the best rate may be better: the difference is within noise, and above a thousandth of
    what the best fell."""
    end = usable(curve)[-1]
    most = end.noise_threshold(SEEDS_LEVEL)
    left, right = span_around(excess(end.heights), most)
    return left < right and most > TOLERANCE * end.fall
