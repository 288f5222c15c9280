"""The losses by which the runs of a curve are compared: of the metric that judges, and after which steps."""

import dataclasses
from typing import Any, TypeVar

import numpy as np

# An `LRCurve`: its own methods call these functions, so its module imports this one.
AnyCurve = TypeVar("AnyCurve", bound=Any)


def as_losses(curve: AnyCurve) -> AnyCurve:
    """The curve with what judges in place of its losses: a metric, negative where it is better when high.

    Rules, comparisons and verdicts look at this curve alone. A metric of validation that no training step reports
    leaves the training loss, which then judges nothing.
    """
    if (curve.metric, curve.mode) == ("loss", "min"):
        return curve
    train = {"loss": curve.losses, **curve.metrics}.get(curve.metric)
    evals = (
        None if curve.eval_losses is None else {"loss": curve.eval_losses, **curve.eval_metrics}[curve.metric]
    )
    return dataclasses.replace(
        curve,
        losses=curve.losses if train is None else as_reported(curve, train),
        eval_losses=None if evals is None else as_reported(curve, evals),
        reference=None if curve.reference is None else as_reported(curve, curve.reference),
        metric="loss",
        mode="min",
    )


def as_reported(curve: Any, judged: np.ndarray) -> np.ndarray:
    """What judges, as it was reported, from what is better when low; and the other way around."""
    return -judged if curve.mode == "max" else judged


def points_of(curve: Any) -> list[tuple[int, np.ndarray, slice]]:
    """After how many steps runs may be compared, the losses there, [seeds, lanes, count], and their places.

    Single validation losses where the curve has them, else the training losses of the last quarter of the steps; or
    the metric that judges, in their place: see `as_losses`.
    """
    judged = as_losses(curve)
    steps, evals = judged.losses.shape[-1], judged.eval_losses
    if evals is not None:
        places = [(int(step), slice(at, at + 1)) for at, step in enumerate(curve.eval_steps)]
        return [(step, evals[..., at], at) for step, at in places]
    ends = sorted({-(-steps // 4), -(-steps // 2), steps})
    quarters = [(end, slice(end - max(1, end // 4), end)) for end in ends]
    return [(end, judged.losses[..., at], at) for end, at in quarters]


def judged_losses(curve: Any) -> list[tuple[int, np.ndarray]]:
    """After how many steps runs may be compared, and the means of `points_of` there, float64 [seeds, lanes].

    NaN at lanes where any seed diverged, or where the last loss is not finite.
    """
    points = [(step, losses.astype(np.float64).mean(axis=-1)) for step, losses, _ in points_of(curve)]
    usable = curve.stable & np.isfinite(points[-1][1]).all(axis=0)
    return [(step, np.where(usable, losses, np.nan)) for step, losses in points]
