"""Short runs that check the peak that a ramp shows: which rates are tried next. Pure, of curves alone."""

import numpy as np

from ..engine.runs import Plan
from . import tables
from .classic import cyclical_bounds
from .curve import LRCurve
from .neighbors import next_rate
from .outcomes import best_lane
from .policy import rows_of

# The rates that are tried first lie this factor apart; so does the next one, while the best is at an edge.
APART = 3.0


def plan_of_checks(ramp: LRCurve, most: int, seeds: int, steps: int) -> Plan | None:
    """The next short runs, of at most `most` rates in all; None where no more are allowed, or needed."""
    tried = 0 if ramp.checked is None else len(ramp.checked.learning_rates)
    if tried >= most or not ramp.stable.any():
        return None
    rates = rates_to_check(ramp)[: most - tried]
    if not len(rates):
        return None
    return rows_of(np.sort(rates), range(seeds), steps, tables.constant, stage=1, eval_steps=(steps,))


def rates_to_check(ramp: LRCurve) -> np.ndarray:
    """The rates of the next short runs, the most telling first; empty where no more are needed.

    First three around the peak of the ramp's bounds (around its lowest loss, where it saw no fall). Then one at a
    time: beyond the edge that the best lies at, or the middle of the wider gap next to the best.
    """
    checked = ramp.checked
    if checked is None:
        return _peak(ramp) * np.array([1.0, 1 / APART, APART])
    rates, best = checked.learning_rates, best_lane(checked)
    if best == 0:
        return np.array([rates[0] / APART])
    if best == len(rates) - 1:
        return np.array([rates[-1] * APART])
    wanted = next_rate(checked)
    return np.array([] if wanted is None else [wanted])


def _peak(ramp: LRCurve) -> float:
    try:
        return cyclical_bounds(ramp)[1]
    except ValueError:
        losses = np.where(ramp.stable, ramp.losses[..., -1].mean(axis=0), np.inf)
        return float(ramp.learning_rates[losses.argmin()])
