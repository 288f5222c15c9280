"""Curves as arrays with an axis of lanes: some lanes of one curve, or those of two that agree in all else."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .losses import AnyCurve

# Which axis of a curve's arrays counts its lanes.
LANE_AXES = {
    **dict.fromkeys(("learning_rates", "hyperparameters"), 0),
    **dict.fromkeys(("losses", "eval_losses", "diverged_at", "metrics", "eval_metrics"), 1),
}


def map_lanes(function: Callable[..., np.ndarray], *curves: AnyCurve) -> AnyCurve:
    """The curve made of `function(axis, *arrays)` of the arrays of all curves; `axis` is that of the lanes."""

    def changed(name: str, axis: int) -> Any:
        values = [getattr(curve, name) for curve in curves]
        if isinstance(values[0], Mapping):
            return {key: function(axis, *(value[key] for value in values)) for key in values[0]}
        return None if values[0] is None else function(axis, *values)

    return dataclasses.replace(curves[0], **{name: changed(name, axis) for name, axis in LANE_AXES.items()})


def refuse_to_merge(mine: AnyCurve, theirs: AnyCurve, but_for: str | None = None) -> None:
    """Curves must agree in all but their lanes, and but for one thing more where it is named.

    Raises:
      ValueError: they do not.
    """

    def agreement(curve: AnyCurve) -> dict[str, Any]:
        seeds, _, steps = curve.losses.shape
        return {
            "seeds": seeds,
            "steps": steps,
            "evaluations": None if curve.eval_losses is None else curve.eval_steps.tolist(),
            "metrics": sorted(curve.metrics),
            "validation metrics": sorted(curve.eval_metrics),
            "hyperparameters": sorted(curve.lanes),
            "metric that judges": (curve.metric, curve.mode),
            "folds": curve.folds,
        }

    others = agreement(theirs)
    for name, one in agreement(mine).items():
        if one != others[name] and name != but_for:
            raise ValueError(f"Merged curves must have the same {name}, got {one} and {others[name]}.")
