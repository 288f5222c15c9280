"""Rules that read a learning rate off a curve: `LRCurve` to `Suggestion`, each with its interval.

`lowest_loss` and `for_horizon` read separate runs, and know how far noise reaches. The others read a range test, as
fastai, torch-lr-finder and the field's hand rules do; their interval spans what they say of each seed alone.
"""

from .classic import (
    before_rise,
    classic,
    cyclical_bounds,
    flat_then_rising,
    minimum_over_ten,
    slide,
    steepest,
    valley,
)
from .neighbors import next_rate, rates_beside, undecided
from .outcomes import best_lane, final_losses
from .regimes import regimes
from .rules import for_horizon, lowest_loss
from .stable import halve_until_stable, largest_stable

__all__ = [
    "before_rise",
    "best_lane",
    "classic",
    "cyclical_bounds",
    "final_losses",
    "flat_then_rising",
    "for_horizon",
    "halve_until_stable",
    "largest_stable",
    "lowest_loss",
    "minimum_over_ten",
    "next_rate",
    "rates_beside",
    "regimes",
    "slide",
    "steepest",
    "undecided",
    "valley",
]


def __dir__() -> list[str]:
    return __all__
