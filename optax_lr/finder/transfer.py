"""A found rate for another run: longer, on larger batches, or of a wider model."""

import dataclasses
import math

import numpy as np

from .. import checks
from .comparison import lowest_lane
from .judging import Judged, judged
from .outcomes import lost_above
from .rules import SLOPES, lowest_loss
from .suggestion import Suggestion

# The power of the batch size by which the rate rises up to the critical size, and the range in which it may lie.
_POWERS = {"sgd": (1.0, 0.5, 1.0), "adam": (0.5, 0.25, 0.75)}
# That of a larger batch if the critical size is not told: for SGD the middle of linear and none.
_UNTOLD = {"sgd": (0.5, 0.0, 1.0), "adam": (0.5, 0.0, 0.75)}
_LIKE_ADAM = ("adam", "lion", "muon")
_BATCH_SOURCES = {
    "sgd": "linear, Goyal et al. 2017, arXiv:1706.02677",
    "adam": "square root, Malladi et al. 2022, arXiv:2205.10287",
}
# Where longer ones tell a drift, runs that fell by less than this share of what the longest did have barely begun.
BEGUN = 0.5
# By how much the slope of a line through the best rates of several lengths may differ from the one to come.
UNSURE = 0.25
# The power of the width by which the best rate may move under the multipliers.
WIDTH_UNSURE = 0.2


def lr_transfer(
    found: Suggestion,
    *,
    horizon: int | None = None,
    base_horizon: int | None = None,
    batch_size: float | None = None,
    base_batch_size: float | None = None,
    critical_batch_size: float | None = None,
    width: float | None = None,
    base_width: float | None = None,
    optimizer: str = "adam",
) -> Suggestion:
    """Carry a found rate over to a longer run, another batch size and a wider model.

    rate = found * (horizon / base)^slope * (batch / base)^power * 1

    The slope is that of a line through the logs of the best rates (`suggest.lowest_loss`) of `found` and of its
    shorter runs, within -1 and 0; -0.5 if no shorter runs tell. Lengths do not count whose best rate stands beside
    one that diverged; where that of the longest does, the slope is 0. Of more than two, those do not count either
    that fell less than half as far as the longest. The power is 0.5; for SGD it is 1, on smaller batches and up
    to the `critical_batch_size`. Above that the rate stays: noise limits the rate of small batches, stability that
    of large ones. If SGD is not told where this changes, larger batches take 0.5, the middle. The width changes
    nothing under `width_multipliers`.

    A run that diverges costs more than a rate that is low. So the slope of a longer run is at most -0.25, and
    larger batches raise the rate no further than to half of the lowest one at which a run of `found` diverged.

    The interval of `found` widens by what is not known: a slope by a quarter (within -1 and 0; by a half without
    shorter runs), the power by a quarter (0.5 to 1 for SGD; down to 0 for larger batches without a
    `critical_batch_size`), and the width by a power of 0.2.

    Args:
      found: what `lr_find` returned.
      horizon, base_horizon: the steps of the run to come and of the run that `found` is for; the latter by
        default the horizon that it was found or carried over for, else the length of its full or longest runs.
      batch_size, base_batch_size: examples a step, of the run to come and of the runs of `found`, above 0.
      critical_batch_size: the batch size beyond which more examples a step do not allow a larger rate, above 0.
      width, base_width: of the model to come and of that of `found`, above 0.
      optimizer: "adam", "lion", "muon" or "sgd".

    Returns:
      A `Suggestion` whose `reason` has a line for each factor: its rule and its source.

    Raises:
      ValueError: nothing is given to carry over to, one of a pair lacks the other, a number is out of range, or
        `found` is that of a range test and base_horizon is lacking.

    >>> import numpy as np
    >>> from .curve import LRCurve
    >>> rates = np.array([0.1, 0.2, 0.4])
    >>> curve = LRCurve(rates, np.array([[[2.0], [1.0], [2.0]]], np.float32), None, np.array([], np.int32),
    ...                 np.full((1, 3), -1, np.int32))
    >>> found = lr_transfer(Suggestion(0.2, 0.1, 0.3, "Lowest.", curve), batch_size=256, base_batch_size=64)
    >>> print(found.reason)
    Lowest.
    Batch size 64 to 256: x2, between 1 and 2.83 (square root, Malladi et al. 2022, arXiv:2205.10287).
    >>> found.learning_rate, found.low
    (0.4, 0.1)

    Source: each rule's is in the reason; the critical batch size: McCandlish et al. 2018 (arXiv:1812.06162).
    """
    like = "sgd" if checks.choice("optimizer", optimizer, (*_LIKE_ADAM, "sgd")) == "sgd" else "adam"
    sizes = _pair("batch_size", batch_size, base_batch_size)
    widths = _pair("width", width, base_width)
    if base_horizon is not None and horizon is None:
        raise ValueError("base_horizon needs horizon, the length of the run to come.")
    if critical_batch_size is not None and sizes is None:
        raise ValueError("critical_batch_size needs batch_size and base_batch_size.")
    factors = []
    if horizon is not None:
        factors.append(_of_horizon(found, horizon, base_horizon))
    if sizes:
        factors.append(_of_batch(found, *sizes, critical_batch_size, like))
    if widths:
        factors.append(_of_width(*widths))
    if not factors:
        raise ValueError(
            "lr_transfer needs a horizon, a batch_size or a width to carry the rate over to, got none."
        )
    rates = [found.learning_rate, found.low, found.high]
    for factor in factors:
        rates = [rate * one for rate, one in zip(rates, factor[:3], strict=True)]
    return dataclasses.replace(
        found,
        learning_rate=rates[0],
        low=rates[1],
        high=rates[2],
        horizon=found.horizon if horizon is None else int(horizon),
        reason="\n".join([found.reason, *(factor[3] for factor in factors)]),
    )


_Factor = tuple[float, float, float, str]


def _pair(name: str, value: float | None, base: float | None) -> tuple[float, float] | None:
    """Both numbers, the base's first; None if neither is given."""
    if (value is None) != (base is None):
        raise ValueError(
            f"{name} needs base_{name} beside it, got {name}={value!r} and base_{name}={base!r}."
        )
    if value is None:
        return None
    return checks.concrete(f"base_{name}", base, above=0), checks.concrete(name, value, above=0)


def _factor(ratio: float, power: float, lowest: float, highest: float, what: str, source: str) -> _Factor:
    """The factor of a ratio under a power and the range of it."""
    factor, *ends = (ratio**one for one in (power, lowest, highest))
    return _with_line(factor, min(*ends, factor), max(*ends, factor), what, source)


def _with_line(factor: float, low: float, high: float, what: str, source: str) -> _Factor:
    """A factor, its bounds, and the line that says so."""
    return factor, low, high, f"{what}: x{factor:.3g}, between {low:.3g} and {high:.3g} ({source})."


def _of_horizon(found: Suggestion, horizon: int, base_horizon: int | None) -> _Factor:
    base = _steps_of(found) if base_horizon is None else checks.size("base_horizon", base_horizon)
    steps = checks.size("horizon", horizon)
    drift = _drift(found, shortens=steps < base)
    if drift:
        (slope, of), unsure = drift, UNSURE
        if steps > base:
            slope = min(slope, -UNSURE)
        source = f"steps^{slope:.2f}, {of}"
    else:
        slope, unsure = sum(SLOPES) / 2, (SLOPES[1] - SLOPES[0]) / 2
        source = f"steps^{slope:.2f}, since no shorter runs tell a drift"
    lowest, highest = max(slope - unsure, SLOPES[0]), min(slope + unsure, SLOPES[1])
    return _factor(steps / base, slope, lowest, highest, f"Steps {base} to {steps}", source)


def _drift(found: Suggestion, *, shortens: bool) -> tuple[float, str] | None:
    """By which power of the length the best rate moves, and of what that was read; None where no runs tell.

    Beside a rate that diverged it does not move: no shorter run raises the rate to that one.
    """
    curves = [*found.shorter, found.curve]
    ends = [judged(curve)[-1] for curve in curves]
    if (found.shorter or shortens) and _at_edge(ends[-1]):
        return 0.0, "since the best rate stands beside one that diverged"
    telling = [pair for pair in zip(curves, ends, strict=True) if pair[1].learned and not _at_edge(pair[1])]
    if len(telling) < 2:
        return None
    begun = [pair for pair in telling[:-2] if pair[1].fall >= BEGUN * ends[-1].fall]
    told = [curve for curve, _ in (*begun, *telling[-2:])]
    lengths = [curve.losses.shape[-1] for curve in told]
    rates = [lowest_loss(curve).learning_rate for curve in told]
    slope = np.clip(np.polyfit(np.log(lengths), np.log(rates), 1)[0], *SLOPES)
    *shorter, longest = map(str, lengths)
    return float(slope), f"off the best rates of runs of {', '.join(shorter)} and {longest} steps"


def _at_edge(end: Judged) -> bool:
    """Whether the best rate stands beside one that diverged, or all diverged."""
    return not end.survives or lost_above(end.heights, lowest_lane(end.heights))


def _steps_of(found: Suggestion) -> int:
    """The length of the run that a rate is for."""
    steps = found.deciding.losses.shape[-1] if found.horizon is None else found.horizon
    if steps == 1:
        raise ValueError(
            "horizon needs base_horizon beside it, since a range test does not tell for how many steps its rate is."
        )
    return steps


def _of_batch(found: Suggestion, base: float, size: float, critical: float | None, like: str) -> _Factor:
    what, source = f"Batch size {base:g} to {size:g}", _BATCH_SOURCES[like]
    powers, ratio = _POWERS[like], size / base
    if critical is not None:
        most = checks.concrete("critical_batch_size", critical, above=0)
        ratio = min(size, most) / min(base, most)
        source += f", up to {most:g}, McCandlish et al. 2018, arXiv:1812.06162"
    elif size > base:
        if powers[0] != _UNTOLD[like][0]:
            source = f"square root, the middle of none and {source}; no critical batch size is told"
        powers = _UNTOLD[like]
    factor, low, high, line = _factor(ratio, *powers, what, source)
    curve = found.deciding
    lowest_diverged = min(curve.learning_rates[~curve.stable], default=math.inf)
    most_stable = max(1.0, lowest_diverged / 2 / found.learning_rate)
    if factor <= most_stable:
        return factor, low, high, line
    return _with_line(most_stable, min(low, 1.0), high, what, "half of the lowest rate that diverged")


def _of_width(base: float, width: float) -> _Factor:
    source = "unchanged under width_multipliers and rescale_init, Yang et al. 2022, arXiv:2203.03466"
    return _factor(width / base, 0.0, -WIDTH_UNSURE, WIDTH_UNSURE, f"Width {base:g} to {width:g}", source)
