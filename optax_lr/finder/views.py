"""Views: rows of the engine's table as the curve of a sweep."""

import numpy as np

from ..engine.runs import Runs
from .curve import LRCurve
from .optimizer import TABLE


def curve_of(runs: Runs, placement: str = "") -> LRCurve:
    """Rows of one length, every lane on every seed, as a curve.

    Lanes of a rate alone come in its order, others as they were asked for.
    """
    lanes = {name: values for name, values in runs.lanes.items() if name != TABLE}
    which = list(zip(*(values.tolist() for values in lanes.values()), strict=True))
    seeds = runs.columns["seed"].tolist()
    place: dict[tuple, dict[int, list[int]]] = {}
    for row, (lane, seed) in enumerate(zip(which, seeds, strict=True)):
        place.setdefault(lane, {}).setdefault(seed, []).append(row)
    every = sorted(set(seeds))
    # Lanes that are alike stay apart: the first of each seed belong together, then the second.
    columns = [column for lane in place.values() for column in np.array([lane[seed] for seed in every]).T]
    if len(lanes) == 1:
        columns.sort(key=lambda column: float(lanes["learning_rate"][column[0]]))
    rows = np.array(columns).T
    steps, evals = int(runs.columns["steps"][rows].max()), len(runs.eval_steps[rows[0, 0]])
    metrics = {name: values[rows, :steps] for name, values in runs.metrics.items()}
    measured = {name: values[rows, :evals] for name, values in runs.evals.items()}
    return LRCurve(
        learning_rates=lanes["learning_rate"][rows[0]].astype(np.float64),
        losses=metrics.pop("loss"),
        eval_losses=measured.pop("loss", None),
        eval_steps=np.array(runs.eval_steps[rows[0, 0]] if runs.evals else (), np.int32),
        diverged_at=runs.columns["stopped_at"][rows].astype(np.int32),
        placement=placement,
        metrics=metrics,
        eval_metrics=measured,
        hyperparameters={name: values[rows[0]] for name, values in lanes.items() if name != "learning_rate"},
    )
