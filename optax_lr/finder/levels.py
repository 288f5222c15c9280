"""Levels: the losses of runs of one length as what their rates and what their seeds have in common, and noise."""

from typing import NamedTuple

import numpy as np

from ..types import Float, Int


class Levels(NamedTuple):
    """What losses are made of.

    Attributes:
      levels: of the rate of each run, seeds aside, [rows].
      noise: the deviation of a run beside its seed's; NaN where no rate ran on several seeds.
    """

    levels: Float[np.ndarray, " rows"]
    noise: float


def levels_of(
    losses: Float[np.ndarray, " rows"],
    rates: Float[np.ndarray, " rows"],
    seeds: Int[np.ndarray, " rows"],
    near: float,
) -> Levels:
    """The levels of rates: their means; of those whose lowest loss is `near` at most the best linear estimates of

        loss = level(rate) + effect(seed) + noise,

    in which effects and noise have one variance. So a rate that ran on few seeds is compared with the others on
    these, and what seeds do far from the best counts for nothing.

    Source: Henderson 1975, "Best Linear Unbiased Estimation and Prediction under a Selection Model".

    >>> import numpy as np
    >>> rates, seeds = np.array([1.0, 1.0, 2.0]), np.array([0, 1, 0])
    >>> found = levels_of(np.array([0.0, 3.0, 0.0]), rates, seeds, near=1.0)
    >>> [round(float(level), 3) for level in found.levels]
    [1.5, 1.5, 0.75]
    """
    known, of_rate = np.unique(rates, return_inverse=True)
    levels = means_of(losses, of_rate)[of_rate]
    lowest = np.full(len(known), np.inf)
    np.minimum.at(lowest, of_rate, losses)
    close = (lowest <= near)[of_rate]
    rate, seed = (np.unique(of[close], return_inverse=True)[1] for of in (rates, seeds))
    count, freedom = rate.max() + 1, close.sum() - rate.max() - 1
    if not freedom:
        return Levels(levels, float("nan"))
    rows = np.hstack([np.eye(count)[rate], np.eye(seed.max() + 1)[seed]])
    # A row for each seed, which holds its effect to zero.
    every = np.vstack([rows, np.eye(rows.shape[1])[count:]])
    wanted = np.concatenate([losses[close], np.zeros(seed.max() + 1)])
    found = np.linalg.lstsq(every, wanted, rcond=None)[0]
    levels[close] = found[:count][rate]
    return Levels(levels, float(np.sqrt(((every @ found - wanted) ** 2).sum() / freedom)))


def means_of(
    values: Float[np.ndarray, " rows"], group: Int[np.ndarray, " rows"]
) -> Float[np.ndarray, " groups"]:
    """The mean of each group."""
    return np.bincount(group, values) / np.bincount(group)
