"""The range test: a loss, parameters, an optimizer and batches to the curve of one ramp of the learning rate."""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from .. import checks
from ..engine.results import SweepResult
from ..schedules import curves
from ..schedules.phases import anneal_schedule, geometric_schedule
from ..types import Array, PyTree
from .curve import LRCurve
from .problem import Loss, Timed, pose
from .runs import bounds, build_stage, refuse_if_all_diverged

# The range test has a stop of its own: this one leaves only losses that are not finite to the engine.
NEVER = 1e30


def lr_range_test(
    loss_fn: Callable[..., Any],
    params: PyTree | Callable[[Array], PyTree],
    optimizer: Callable[..., optax.GradientTransformation],
    batches: PyTree | Iterable[PyTree],
    *,
    min_learning_rate: float = 1e-7,
    max_learning_rate: float = 10.0,
    num_steps: int = 100,
    shape: Literal["exponential", "linear"] = "exponential",
    smoothing: float = 0.98,
    stop_factor: float = 4.0,
    eval_batch: PyTree = None,
    seeds: int = 1,
    key: Array | None = None,
    progress: bool = True,
    with_key: bool = False,
    model_state: PyTree | Callable[[Array], PyTree] = None,
    has_aux: bool = False,
    eval_fn: Callable[..., Any] | None = None,
    opt_state: optax.OptState | None = None,
    lanes_at_once: int | Literal["auto"] = "auto",
    mesh: Mesh | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> LRCurve:
    """The classic range test: one run whose rate rises at every step, until its loss does.

    The rate of step t of n is min * (max / min)^(t / (n - 1)), or min + (max - min) * t / (n - 1) if linear.
    With s = `smoothing` and loss l(t), average(t) = s * average(t - 1) + (1 - s) * l(t) from 0, and

        smoothed(t) = average(t) / (1 - s^(t + 1))

    The test stops where smoothed > stop_factor * lowest smoothed, or is not finite. (For losses below zero,
    where smoothed - lowest > (stop_factor - 1) * |lowest|, which is the same above.) It is cheaper than
    `lr_find`, which is far more accurate: a ramp mixes the effect of a rate with that of all before it.

    Args:
      loss_fn, params, optimizer, batches, key, progress, with_key, model_state, has_aux, eval_fn, opt_state,
        lanes_at_once, mesh, checkpoint: as in `lr_find`. Batches that run out are gone through again.
      min_learning_rate, max_learning_rate: the ends of the ramp, both trained with.
      num_steps: how many steps the ramp has, at least 2.
      shape: "exponential" or "linear".
      smoothing: the weight of the past, in [0, 1); 0 takes losses as they come.
      stop_factor: above 1.
      eval_batch: validation data, evaluated after every step; its loss is then smoothed, too, and stops the test.
      seeds: how many runs of the ramp there are; seed 0 takes the batches in order.

    Returns:
      An `LRCurve` whose lanes are the points of the ramp, one step each: smoothed losses [seeds, points, 1], and
      metrics["unsmoothed_loss"] as they came. From the point on where a run stopped, `diverged_at` is 0; what
      comes after it is NaN. `suggest.steepest`, `valley` and `minimum_over_ten` read a rate off it; `take` leaves
      out noise at the start: `curve.take(slice(10, -5))`.

    Raises:
      ValueError: wrong input, in one sentence.
      RuntimeError: the first loss is not finite.

    >>> curve = lr_range_test(lambda w, x: jnp.mean((w * x) ** 2), jnp.ones(()), optax.sgd, jnp.ones((1, 4)),
    ...                       min_learning_rate=1e-3, num_steps=9, smoothing=0.0, progress=False)
    >>> curve.learning_rates.round(3).tolist()
    [0.001, 0.003, 0.01, 0.032, 0.1, 0.316, 1.0, 3.162, 10.0]
    >>> print(curve.losses[0, :, 0].round(2))
    [1.   1.   0.98 0.94 0.83 0.53 0.07 0.07 2.03]
    >>> curve.diverged_at.tolist()
    [[-1, -1, -1, -1, -1, -1, -1, -1, 0]]

    Source: Smith 2017 (arXiv:1506.01186), section 3.3, linear; exponential, smoothed and stopped as in fastai.
    """
    low, high = bounds(min_learning_rate, max_learning_rate)
    points = int(checks.steps("num_steps", num_steps, minimum=2, whole=True))
    exponential = checks.choice("shape", shape, ("exponential", "linear")) == "exponential"
    decay = checks.concrete("smoothing", smoothing, minimum=0, below=1)
    factor = checks.concrete("stop_factor", stop_factor, above=1)
    problem = pose(
        Loss(loss_fn, eval_fn, with_key, model_state is not None, has_aux),
        params,
        optimizer,
        batches,
        model_state=model_state,
        opt_state=opt_state,
        eval_batch=eval_batch,
        lane={"learning_rate": low},
        read=points,
        needed=None,
        seeds=checks.size("seeds", seeds),
        key=key,
    )
    ramp = (
        geometric_schedule(low, high, points - 1)
        if exponential
        else anneal_schedule(low, high, points - 1, curve=curves.linear)
    )

    # The ramp has a clock of its own: the optimizer's may have counted steps before.
    stage = build_stage(
        problem,
        points,
        [] if eval_batch is None else range(1, points + 1),
        Timed(lambda lane, step: ramp(step)),
        stop_factor=NEVER,
        lanes_at_once=lanes_at_once,
        mesh=mesh,
        checkpoint=checkpoint,
        progress=progress,
    )
    result = stage.sweep({"learning_rate": np.array([low])}, seeds, "range test")
    curve = _ramp_curve(np.asarray(jax.vmap(ramp)(jnp.arange(points)), np.float64), result, decay, factor)
    refuse_if_all_diverged(curve, problem, points)
    return curve


def _ramp_curve(rates: np.ndarray, result: SweepResult, decay: float, stop_factor: float) -> LRCurve:
    """The points of a ramp as lanes, their losses smoothed, up to where each seed stops."""
    trained, evaluated = _with_smooth_loss(result.metrics, decay), _with_smooth_loss(result.evals, decay)
    judged = (evaluated or trained)["loss"]
    best = np.minimum.accumulate(judged, axis=1)
    with np.errstate(invalid="ignore"):  # inf - inf: such a point stops by itself
        stops = ~np.isfinite(judged) | (judged - best > (stop_factor - 1) * np.abs(best))
    stopped = np.logical_or.accumulate(stops, axis=1)
    after = np.concatenate([np.zeros_like(stopped[:, :1]), stopped[:, :-1]], axis=1)
    metrics, evals = (
        {name: np.where(after, np.nan, x)[..., None].astype(np.float32) for name, x in said.items()}
        for said in (trained, evaluated)
    )
    return LRCurve(
        learning_rates=rates,
        losses=metrics.pop("loss"),
        eval_losses=evals.pop("loss", None),
        eval_steps=np.array([1] if evaluated else [], np.int32),
        diverged_at=np.where(stopped, 0, -1).astype(np.int32),
        placement=result.placement,
        metrics=metrics,
        eval_metrics=evals,
    )


def _with_smooth_loss(said: Mapping[str, np.ndarray], decay: float) -> dict[str, np.ndarray]:
    """What the one lane of each seed reported, [seeds, points], its loss smoothed and as it came."""
    if not said:
        return {}
    reported = {name: np.asarray(values[:, 0], np.float64) for name, values in said.items()}
    average, points = 0.0, []
    for t, loss in enumerate(reported["loss"].T):
        average = decay * average + (1 - decay) * loss
        points.append(average / (1 - decay ** (t + 1)))
    return {**reported, "loss": np.stack(points, axis=1), "unsmoothed_loss": reported["loss"]}
