"""Ceilings: where a run is stopped early, since its training loss is far above the loss without training.

They come from the reference and from rounds that have ended, never from runs beside it, so a stop depends on no
clock, thread or layout. Where validation or another metric judges, a training loss that is finite stops nothing.
"""

from collections.abc import Callable

import numpy as np

from .. import checks
from ..engine.runs import Runs
from ..types import Float, ScalarLike
from .judging import averaged
from .views import ends_of

Ceilings = Callable[[Runs, Runs], Float[np.ndarray, "rows steps"]]


def factor_of(stop_factor: ScalarLike) -> float:
    """A positive number, or infinity, which stops nothing.

    Raises:
      ValueError: it is neither.
    """
    if isinstance(stop_factor, float) and stop_factor == np.inf:
        return stop_factor
    return checks.concrete("stop_factor", stop_factor, above=0)


def of_search(stop_factor: float, *, scans: bool = False) -> Ceilings:
    """The reference plus `stop_factor` times what the best rate of earlier rounds fell; of the first round none.

    Where the first stage `scans` in more than one round, none for all of it, so that its seeds are judged alike.
    """

    def ceilings(before: Runs, rows: Runs) -> np.ndarray:
        if stop_factor == np.inf or (scans and not rows.columns["stage"].any()):
            return _above_reference(rows, lambda losses: np.full(len(losses), np.inf))
        fall = max((end.fall for end in ends_of(before) if end.survives and end.learned), default=0.0)
        return _above_reference(rows, lambda losses: np.full(len(losses), stop_factor * fall or np.inf))

    return ceilings


def of_sweep(stop_factor: float) -> Ceilings:
    """The reference plus `stop_factor` times its size: that of its mean over the steps, or of its deviation."""

    def size(losses: np.ndarray) -> np.ndarray:
        return np.maximum(np.abs(losses.mean(axis=1)), losses.std(axis=1)) + np.finfo(np.float32).tiny

    return lambda before, rows: _above_reference(rows, lambda losses: stop_factor * size(losses))


def _above_reference(rows: Runs, above: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The averages of the reference plus so much; infinite where it is not of training losses, or not finite."""
    longest = int(rows.columns["steps"].max())
    known = rows.reference.metrics.get("loss")
    if known is None or rows.judgment.metric != "loss":
        return np.full((len(rows), longest), np.inf, np.float32)
    places = [int(np.flatnonzero(rows.reference.seeds == seed)[0]) for seed in rows.columns["seed"]]
    losses = known[places, :longest].astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        ceilings = averaged(losses) + above(losses)[:, None]
        return np.where(np.isnan(ceilings), np.inf, ceilings).astype(np.float32)
