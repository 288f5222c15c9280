"""Views: rows of the engine's table as the curve of a sweep."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ..engine.runs import Runs
from .curve import LRCurve
from .judging import Judged, judged, with_lost_runs
from .optimizer import TABLE


def curve_of(runs: Runs, placement: str = "") -> LRCurve:
    """Rows of one length, every lane on every seed, as a curve.

    Lanes of a rate alone come in its order, others as they were asked for. A run that ended above the reference is
    noted as diverged; see `LRCurve`. Of a seed that some lanes lack, it only counts whether they diverged there.
    """
    lanes = {name: values for name, values in runs.lanes.items() if name != TABLE}
    which = list(zip(*(values.tolist() for values in lanes.values()), strict=True))
    seeds = runs.columns["seed"].tolist()
    place: dict[tuple, dict[int, list[int]]] = {}
    for row, (lane, seed) in enumerate(zip(which, seeds, strict=True)):
        place.setdefault(lane, {}).setdefault(seed, []).append(row)
    every = sorted(set.intersection(*(set(column) for column in place.values())))
    # Lanes that are alike stay apart: the first of each seed belong together, then the second.
    columns = [column for lane in place.values() for column in np.array([lane[seed] for seed in every]).T]
    if len(lanes) == 1:
        columns.sort(key=lambda column: float(lanes["learning_rate"][column[0]]))
    rows = np.array(columns).T
    steps, evals = int(runs.columns["steps"][rows].max()), len(runs.eval_steps[rows[0, 0]])
    asked = runs.eval_steps[rows[0, 0]] if runs.evals else ()
    metrics = {name: values[rows, :steps] for name, values in runs.metrics.items()}
    measured = {name: values[rows, :evals] for name, values in runs.evals.items()}
    curve = LRCurve(
        learning_rates=lanes["learning_rate"][rows[0]].astype(np.float64),
        losses=metrics.pop("loss"),
        eval_losses=measured.pop("loss", None),
        eval_steps=np.array(asked, np.int32),
        diverged_at=runs.columns["stopped_at"][rows].astype(np.int32),
        placement=placement,
        metrics=metrics,
        eval_metrics=measured,
        hyperparameters={name: values[rows[0]] for name, values in lanes.items() if name != "learning_rate"},
        reference=_reference(runs, every, steps, asked),
        metric=runs.judgment.metric,
        mode=runs.judgment.mode,
        folds=runs.judgment.folds,
    )
    return with_lost_runs(_with_further_losses(curve, runs, rows, list(place.values())))


def ends_of(runs: Runs) -> list[Judged]:
    """The runs of each length at their end."""
    return [judged(curve_of(runs.where(steps=steps)))[-1] for steps in np.unique(runs.columns["steps"])]


def _with_further_losses(
    curve: LRCurve, runs: Runs, rows: np.ndarray, lanes: Sequence[dict[int, list[int]]]
) -> LRCurve:
    """The curve, in which a lane counts as diverged that did so on a seed which others do not have."""
    stopped, diverged = runs.columns["stopped_at"], curve.diverged_at.copy()
    for at, column in enumerate(rows.T):
        of_lane = next(lane for lane in lanes if any(column[0] in each for each in lane.values()))
        further = [row for each in of_lane.values() if len(each) == 1 for row in each if row not in column]
        lost = [int(stopped[row]) for row in further if stopped[row] >= 0]
        if lost and (diverged[:, at] < 0).all():
            diverged[0, at] = min(lost)
    return dataclasses.replace(curve, diverged_at=diverged)


def _reference(runs: Runs, seeds: Sequence[int], steps: int, asked: Sequence[int]) -> np.ndarray | None:
    """What judges the runs of some seeds, without training: at each step, or at each evaluation."""
    known, metric = runs.reference, runs.judgment.metric
    places = [np.flatnonzero(known.seeds == seed) for seed in seeds]
    if not all(map(len, places)):
        return None
    rows = np.concatenate(places)
    if metric in known.metrics:
        return known.metrics[metric][rows, :steps]
    # Starts that are evaluated as they are have one value; a model state that goes on has one at each evaluation.
    at = [max(0, sum(have <= step for have in known.eval_steps) - 1) for step in asked]
    return known.evals[metric][rows][:, at]


def final_loss(runs: Runs, row: int) -> float:
    """What a run is judged by at its end: its last validation, else its mean over the last quarter; low is good."""
    return _at_end(runs, row, 0.0)


def final_height(runs: Runs, row: int) -> float:
    """What a run is judged by, above the same without training; infinite where it was stopped."""
    steps = int(runs.columns["steps"][row])
    known = _reference(runs, [int(runs.columns["seed"][row])], steps, runs.eval_steps[row])
    if known is None:
        return _at_end(runs, row, 0.0)
    validated = runs.judgment.metric in runs.evals
    height = _at_end(runs, row, known[0, -1:] if validated else known[0, _last_quarter(steps)])
    return height if np.isfinite(height) else float("inf")


def _at_end(runs: Runs, row: int, start: float | np.ndarray) -> float:
    """What judges at the end of a run, above what it was at each place; the mean of the differences is exact."""
    steps, metric = int(runs.columns["steps"][row]), runs.judgment.metric
    if runs.columns["stopped_at"][row] >= 0:
        return float("inf")
    if metric in runs.evals:
        ends = runs.evals[metric][row, [len(runs.eval_steps[row]) - 1]]
    else:
        ends = runs.metrics[metric][row, _last_quarter(steps)]
    height = float((ends.astype(np.float64) - np.asarray(start, np.float64)).mean())
    return -height if runs.judgment.mode == "max" else height


def _last_quarter(steps: int) -> slice:
    return slice(steps - -(-steps // 4), steps)
