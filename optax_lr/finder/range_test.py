"""The range test: a loss, parameters, an optimizer and batches to the curve of one ramp of the learning rate."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Unpack

import numpy as np
import optax

from .. import checks
from ..engine.checkpoints import digest
from ..engine.lengths import Epochs, steps_of
from ..engine.opening import Opening
from ..engine.runs import Plan, Runs
from ..schedules import curves
from ..schedules.phases import anneal_schedule, geometric_schedule
from ..types import Array, Float, PyTree
from . import tables
from .curve import LRCurve
from .inputs import pose
from .problem import Problem
from .ramp_checks import plan_of_checks
from .search import Options, bounds, example_lane, given, run_all, with_a_survivor
from .views import curve_of


def lr_range_test(
    loss_fn: Callable[..., Any] | Problem,
    params: PyTree | Callable[[Array], PyTree],
    optimizer: Callable[..., optax.GradientTransformation],
    batches: PyTree | Iterable[PyTree],
    *,
    min_learning_rate: float = 1e-7,
    max_learning_rate: float = 10.0,
    num_steps: int | Epochs = 100,
    shape: Literal["exponential", "linear"] = "exponential",
    smoothing: float = 0.98,
    stop_factor: float = 4.0,
    eval_batch: PyTree = None,
    seeds: int = 1,
    check_runs: int = 0,
    key: Array | None = None,
    model_state: PyTree | Callable[[Array], PyTree] = None,
    opt_state: optax.OptState | None = None,
    **options: Unpack[Options],
) -> LRCurve:
    """The classic range test: one run whose rate rises at every step, until its loss does.

    The rate of step t of n is min * (max / min)^(t / (n - 1)), or min + (max - min) * t / (n - 1) if linear.
    With s = `smoothing` and loss l(t), average(t) = s * average(t - 1) + (1 - s) * l(t) from 0, and

        smoothed(t) = average(t) / (1 - s^(t + 1))

    The test stops where smoothed > stop_factor * lowest smoothed, or is not finite. (For losses below zero,
    where smoothed - lowest > (stop_factor - 1) * |lowest|, which is the same above.) It is cheaper than
    `lr_find`, which is far more accurate: a ramp mixes the effect of a rate with that of all before it.

    Args:
      loss_fn, params, optimizer, batches, key, model_state, opt_state, options: as in `lr_find`. Batches that run
        out are gone through again.
      min_learning_rate, max_learning_rate: the ends of the ramp, both trained with.
      num_steps: how many steps the ramp has, at least 2, or `Epochs`.
      shape: "exponential" or "linear".
      smoothing: the weight of the past, in [0, 1); 0 takes losses as they come.
      stop_factor: above 1; at infinity only what is not finite stops the test.
      eval_batch: validation data, evaluated after every step; its loss is then smoothed, too, and stops the test.
      seeds: how many runs of the ramp there are; seed 0 takes the batches in order.
      check_runs: how many runs at constant rates may check what the ramp shows, each of `num_steps` steps on every
        seed: three around its peak, then further ones beside the best, until they lie within a factor of 1.4. A
        ramp by itself is often off by four.

    Returns:
      An `LRCurve` whose lanes are the points of the ramp, one step each: smoothed losses [seeds, points, 1], and
      metrics["unsmoothed_loss"] as they came. From the point on where a run stopped, `diverged_at` is 0; what
      comes after it is NaN. `suggest.steepest`, `valley` and `minimum_over_ten` read a rate off it; `take` leaves
      out noise at the start: `curve.take(slice(10, -5))`. Runs that checked it are the curve `checked`, which
      `suggest.cyclical_bounds` reads.

    Raises:
      ValueError: wrong input, in one sentence.
      RuntimeError: the first loss is not finite.

    >>> import jax.numpy as jnp
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
    problem, engine = given(loss_fn, model_state is not None, options)
    points = int(checks.steps("num_steps", steps_of("num_steps", num_steps, batches), minimum=2, whole=True))
    decay = checks.concrete("smoothing", smoothing, minimum=0, below=1)
    factor = np.inf if stop_factor == np.inf else checks.concrete("stop_factor", stop_factor, above=1)
    runs, most = (
        checks.size("seeds", seeds, unit="seeds"),
        int(checks.steps("check_runs", check_runs, minimum=0, whole=True)),
    )
    lane = example_lane({"learning_rate": low}, points)
    posed = pose(
        problem,
        params,
        optimizer,
        batches,
        model_state=model_state,
        opt_state=opt_state,
        eval_batch=eval_batch,
        lane=lane,
        read=points,
        seeds=runs,
        key=key,
    )
    rates = _ramp(low, high, points, shape)
    opening = Opening(
        lane=lane,
        lanes=1,
        seeds=runs,
        longest=points,
        settings={"rates": digest(rates), "seeds": runs, "check_runs": most},
        description="range test",
    )
    first = {"learning_rate": rates[:1].astype(np.float64)}
    # Evaluated after every step, where there is what to evaluate with.
    plan = tables.on_seeds(first, rates[None], range(runs), eval_steps=range(1, points + 1))
    test = _Test(plan, rates.astype(np.float64), decay, factor, most)
    ended = run_all(posed, engine, opening, test.next_plan)
    return with_a_survivor(test.curve(ended.runs, ended.placement), posed)


@dataclasses.dataclass(frozen=True)
class _Test:
    """A ramp, and then the runs that check it, round by round: pure functions of the table of runs."""

    plan: Plan
    rates: Float[np.ndarray, "points"]
    smoothing: float
    stop_factor: float
    check_runs: int

    def next_plan(self, runs: Runs) -> Plan | None:
        """The ramp, then what is still to be checked; None where all is done."""
        if not len(runs):
            return self.plan
        return plan_of_checks(self.curve(runs), self.check_runs, len(self.plan.seeds), len(self.rates))

    def curve(self, runs: Runs, placement: str = "") -> LRCurve:
        """The ramp and what checked it."""
        ramp = _ramp_curve(self.rates, runs.where(stage=0), placement, self.smoothing, self.stop_factor)
        short = runs.where(stage=1)
        return dataclasses.replace(ramp, checked=curve_of(short, placement)) if len(short) else ramp


def _ramp(low: float, high: float, points: int, shape: str) -> Float[np.ndarray, "points"]:
    """The rate of every step of the test."""
    whole = (
        geometric_schedule(low, high, points - 1)
        if checks.choice("shape", shape, ("exponential", "linear")) == "exponential"
        else anneal_schedule(low, high, points - 1, curve=curves.linear)
    )
    return tables.tabulated(whole, np.arange(points))


def _ramp_curve(rates: np.ndarray, runs: Runs, placement: str, decay: float, stop_factor: float) -> LRCurve:
    """The points of a ramp as lanes, their losses smoothed, up to where each seed stops."""
    trained, evaluated = _with_smooth_loss(runs.metrics, decay), _with_smooth_loss(runs.evals, decay)
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
        placement=placement,
        metrics=metrics,
        eval_metrics=evals,
    )


def _with_smooth_loss(said: Mapping[str, np.ndarray], decay: float) -> dict[str, np.ndarray]:
    """What the run of each seed reported, [seeds, points], its loss smoothed and as it came."""
    if not said:
        return {}
    reported = {name: np.asarray(values, np.float64) for name, values in said.items()}
    average, points = 0.0, []
    for t, loss in enumerate(reported["loss"].T):
        average = decay * average + (1 - decay) * loss
        points.append(average / (1 - decay ** (t + 1)))
    return {**reported, "loss": np.stack(points, axis=1), "unsmoothed_loss": reported["loss"]}
