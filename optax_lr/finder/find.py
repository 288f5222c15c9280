"""The finder: a loss, parameters, an optimizer and batches to a curve over learning rates, or to one rate.

Nothing that is passed in is changed: training runs on copies.
"""

import functools
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from .. import checks
from ..types import Array, PyTree, ScalarLike, Schedule
from .curve import LRCurve
from .grids import lanes_of
from .problem import Loss, Timed, pose
from .runs import WIDEST, bounds, build_stage, refuse_if_all_diverged
from .searches import (
    FINALIST_RATIO,
    by_length,
    constant_lanes,
    full_finals,
    noting_bounds,
    one_cycle,
    quick_lengths,
    shortened_finals,
    squeezed,
)
from .suggestion import Suggestion

QUICK_STEPS = 100
COARSE_STEPS = 50


def lr_find(
    loss_fn: Callable[..., Any],
    params: PyTree | Callable[[Array], PyTree],
    optimizer: Callable[..., optax.GradientTransformation],
    batches: PyTree | Iterable[PyTree],
    *,
    eval_batch: PyTree = None,
    horizon: int | None = None,
    schedule: Callable[[ScalarLike], Schedule] | None = None,
    finalists: int = 3,
    max_full_horizon: int = 5000,
    num_steps: int | None = None,
    seeds: int = 3,
    key: Array | None = None,
    min_learning_rate: float = 1e-6,
    max_learning_rate: float = 10.0,
    stop_factor: ScalarLike = 3.0,
    progress: bool = True,
    with_key: bool = False,
    model_state: PyTree | Callable[[Array], PyTree] = None,
    has_aux: bool = False,
    eval_fn: Callable[..., Any] | None = None,
    opt_state: optax.OptState | None = None,
    lanes_at_once: int | Literal["auto"] = "auto",
    mesh: Mesh | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> Suggestion:
    """Find a learning rate by training copies of a model at many rates.

    1. Neither `horizon` nor `schedule`: runs of `num_steps` at constant rates, two a decade and then ten around
       the best; the answer is `suggest.lowest_loss`.
    2. *Quick*, with `horizon`: runs of a quarter of `num_steps` at two rates a decade, then few, around the best,
       of twice and of four times `num_steps`, but no longer than `horizon`. Each is under a whole one-cycle
       schedule, since a peak that is warmed up to and left again may be higher than a constant rate. The answer is
       `suggest.for_horizon`, the drift of the best rate with the length of the run, carried on.
    3. *Scheduled*, with `horizon` and `schedule`: the same, coarsely, under that schedule, squeezed; then
       `finalists` rates around the answer at ratio 3, each for the whole run under its real schedule. More are
       added while the best is at an edge, and then two half way to the lanes beside the best; where noise leaves
       rates that may be better, all have as many seeds again. Of a run longer than `max_full_horizon` they go
       through the schedule in a tenth, a fifth and half of its steps, and the drift is carried on.
    Where the best rate lies at the edge of the bounds, the search goes on up to a factor of 100 beyond them, and
    says so. A second search with the same functions (the same objects) and shapes compiles nothing.

    The loss may have other forms, in any combination:
    1. `with_key=True`: `loss_fn(params, batch, key)`, for dropout. Lanes of one seed get the same keys.
    2. `model_state=state`: `loss_fn(params, model_state, batch) -> (loss, new_state)`, for batch norm.
    3. `has_aux=True`: `loss_fn(params, batch) -> (loss, metrics)`, a dict of scalars that are recorded, too.
    All of them: `loss_fn(params, model_state, batch, key) -> (loss, (new_state, metrics))`.

    From the middle of a run: hand over its present parameters, `model_state` and `opt_state`. Moments and counts
    go on from there, so a schedule begins at the step that the state has counted; the rate is the lane's,
    whatever the state says, and a set one is no longer in force.

    Args:
      loss_fn: `(params, batch) -> loss`, a scalar, or as above.
      params: the start, a pytree; or a function `key -> pytree`, and then every seed draws its own start.
        Floating arrays are trained; all other leaves are put aside and put back.
      optimizer: `learning_rate -> optax.GradientTransformation`, such as `optax.adam`; it is called with a
        traced number, or with a schedule where `schedule` is given.
      batches: an array, tuple or mapping of arrays with leading axis [steps], or a list or other iterable of
        batches, endless or not, of which as many as the longest run has steps are read once. Seed 0 takes them
        in order, the others permuted.
      eval_batch: validation data; with it rates are judged by validation loss, which is `loss_fn`'s unless
        there is an `eval_fn`. A key is then the same at every evaluation, and a new model state is dropped.
      horizon: how many steps the coming run has.
      schedule: `peak -> Schedule`, what the coming run will use, such as
        `lambda peak: olr.one_cycle_schedule(peak, horizon)`.
      finalists: how many rates a scheduled search tries first for the whole run, at least 1.
      max_full_horizon: the longest run that finalists go through step by step.
      num_steps: how many steps lanes at constant rates take, and what the runs of a quick search are reckoned in,
        which with three seeds takes about 100 times as many in all: 100, or 50 before finalists. There must be as
        many batches; left out, and in longer runs, batches that run out are gone through again.
      seeds: how many runs each rate has; finalists that cannot be told apart have as many again.
      key: where random starts and orders come from; `jax.random.key(0)` by default.
      min_learning_rate, max_learning_rate: the rates to search between.
      stop_factor: how far a lane's loss may rise before the lane is stopped; see `sweep`.
      progress: whether a bar shows, where there is a terminal.
      with_key, has_aux: the form of `loss_fn`, see above.
      model_state: what the model carries along beside its parameters, a pytree of arrays; a function
        `key -> pytree` where `params` is one.
      eval_fn: `(params, eval_batch)`, or `(params, model_state, eval_batch)`, to the validation loss or to a dict
        of scalars with "loss" and others: without dropout, with running averages, or the error rate.
      opt_state: the optimizer's state to start from, as `optimizer(rate).init(params)` or
        `optimizer(schedule).init(params)` makes it.
      lanes_at_once: how many lanes ride in one `vmap`; see `sweep`.
      mesh: the devices that lanes are split over, on all hosts; all of them by default; see `sweep`.
      checkpoint: a directory; called again after it was killed, the search goes on from there, to the same bits.

    Returns:
      A `Suggestion`: `.learning_rate`, `.low`, `.high`, `.reason`, `.curve`, `.plot()`; printed, a table.

    Raises:
      ValueError: wrong input, in one sentence.
      RuntimeError: every lane diverged.

    >>> import jax.numpy as jnp
    >>> batches = jnp.linspace(-1, 1, 20).reshape(5, 4)
    >>> found = lr_find(lambda w, x: jnp.mean((w * x - 3 * x) ** 2), jnp.zeros(()), optax.sgd, batches,
    ...                 eval_batch=jnp.ones(1), num_steps=5, progress=False)
    >>> found.low <= found.learning_rate <= found.high
    True

    A model state and metrics:

    >>> def loss_fn(w, mean, x):
    ...     new_mean = 0.9 * mean + 0.1 * jnp.mean(x)
    ...     error = w * (x - new_mean) - x
    ...     return jnp.mean(error**2), (new_mean, {"largest_error": jnp.abs(error).max()})
    >>> found = lr_find(loss_fn, jnp.zeros(()), optax.sgd, batches, num_steps=5, progress=False,
    ...                 model_state=jnp.zeros(()), has_aux=True)
    >>> found.curve.metrics["largest_error"].shape == found.curve.losses.shape
    True

    Source: after Smith 2017 (arXiv:1506.01186), whose ramp of one run is replaced by one run a rate.
    """
    low, high = bounds(min_learning_rate, max_learning_rate)
    length = None if horizon is None else checks.size("horizon", horizon)
    checks.size("finalists", finalists)
    if schedule is not None and length is None:
        raise ValueError("schedule needs horizon: the number of steps of the run that it is for.")
    if length is not None and eval_batch is None:
        warnings.warn(
            "horizon without eval_batch: the training loss overestimates the rate where a model overfits.",
            stacklevel=2,
        )
    usual = min(QUICK_STEPS if schedule is None else COARSE_STEPS, length or QUICK_STEPS)
    steps = checks.size("num_steps", usual if num_steps is None else num_steps)
    runs = checks.size("seeds", seeds)
    longest = checks.size("max_full_horizon", max_full_horizon)
    full_steps = 0 if schedule is None or length is None else length if length <= longest else -(-length // 2)
    lengths = [steps] if length is None else quick_lengths(steps, length)
    problem = pose(
        Loss(loss_fn, eval_fn, with_key, model_state is not None, has_aux),
        params,
        optimizer,
        batches,
        model_state=model_state,
        opt_state=opt_state,
        eval_batch=eval_batch,
        lane={"learning_rate": low},
        scheduled=schedule is not None,
        read=max(*lengths, full_steps),
        needed=num_steps,
        seeds=2 * runs if full_steps == length else runs,
        key=key,
    )
    stage = functools.partial(
        build_stage,
        problem,
        stop_factor=stop_factor,
        lanes_at_once=lanes_at_once,
        mesh=mesh,
        checkpoint=checkpoint,
        progress=progress,
    )
    within = (low / WIDEST, high * WIDEST)
    if length is None:
        return noting_bounds(constant_lanes(stage(steps, lengths), low, high, runs), low, high)
    # A schedule of the user's begins where its state has counted to: squeezed, it would begin at step 0.
    by_clock = Timed(squeezed, (schedule, length))
    timed = Timed(one_cycle) if schedule is None or opt_state is not None else by_clock
    quick = by_length(stage(lengths[-1], lengths, timed), lengths, length, low, high, runs)
    if schedule is None:
        return noting_bounds(quick, low, high)
    ratios = FINALIST_RATIO ** (np.arange(finalists) - (finalists - 1) / 2)
    if length <= longest:
        found = full_finals(stage(length, [length], schedule), quick, ratios, runs, within)
    else:
        lengths = sorted({-(-length // 10), -(-length // 5), full_steps})
        full = stage(full_steps, lengths, by_clock)
        found = shortened_finals(full, quick, ratios, lengths, length, runs, within)
    return noting_bounds(found, low, high)


def lr_sweep(
    loss_fn: Callable[..., Any],
    params: PyTree | Callable[[Array], PyTree],
    optimizer: Callable[..., optax.GradientTransformation],
    batches: PyTree | Iterable[PyTree],
    *,
    learning_rates: Sequence[float] | np.ndarray | None = None,
    lanes: Mapping[str, Sequence[float] | np.ndarray] | None = None,
    num_steps: int | None = None,
    eval_batch: PyTree = None,
    eval_every: int | None = None,
    schedule: Callable[[ScalarLike], Schedule] | None = None,
    seeds: int = 1,
    key: Array | None = None,
    stop_factor: ScalarLike = 3.0,
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
    """Train copies of a model at the given learning rates, or lanes of more hyperparameters; return their losses.

    Args:
      loss_fn, params, optimizer, batches, eval_batch, key, stop_factor, progress, with_key, model_state, has_aux,
        eval_fn, opt_state, lanes_at_once, mesh, checkpoint: as in `lr_find`.
      learning_rates: the rates, positive and increasing; [lanes].
      lanes: in place of `learning_rates`, hyperparameters by name, `learning_rate` among them, each [lanes], as
        `grid` makes them; the optimizer is called with these names. Rates need not increase where others vary.
      num_steps: how many steps each lane takes: as many as there are batches where they have an end, else 100.
      eval_every: after how many steps the validation loss is taken, again and again; None is at the end only.
      schedule: `peak -> Schedule`; each rate is then the peak of its lane's schedule.
      seeds: how many runs each rate has.

    Returns:
      An `LRCurve`: losses [seeds, lanes, steps], validation losses [seeds, lanes, evals], where each diverged.

    Raises:
      ValueError: wrong input, in one sentence.
      RuntimeError: every lane diverged.

    >>> import jax.numpy as jnp
    >>> import optax_lr as olr
    >>> curve = lr_sweep(lambda w, x: jnp.mean((w * x) ** 2), jnp.ones(()), optax.sgd, jnp.ones((20, 4)),
    ...                  learning_rates=[0.1, 0.5, 3.0], progress=False)
    >>> curve.losses.shape, curve.stable.tolist()
    ((1, 3, 20), [True, True, False])

    >>> curve = lr_sweep(lambda w, x: jnp.mean((w * x) ** 2), jnp.ones(()), optax.adamw, jnp.ones((20, 4)),
    ...                  lanes=olr.grid(learning_rate=[0.01, 0.1], weight_decay=[0.0, 0.1]), progress=False)
    >>> curve.lanes["weight_decay"].tolist()
    [0.0, 0.1, 0.0, 0.1]
    """
    wanted = lanes_of(learning_rates, lanes)
    if num_steps is not None:
        checks.size("num_steps", num_steps)
    problem = pose(
        Loss(loss_fn, eval_fn, with_key, model_state is not None, has_aux),
        params,
        optimizer,
        batches,
        model_state=model_state,
        opt_state=opt_state,
        eval_batch=eval_batch,
        lane={name: values[0] for name, values in wanted.items()},
        by_name=lanes is not None,
        scheduled=schedule is not None,
        read=num_steps or QUICK_STEPS,
        needed=num_steps,
        seeds=checks.size("seeds", seeds),
        key=key,
    )
    steps = num_steps or len(jax.tree.leaves(problem.batches)[0])
    every = steps if eval_every is None else checks.size("eval_every", eval_every)
    evals = sorted({*range(every, steps, every), steps})
    stage = build_stage(
        problem,
        steps,
        evals,
        schedule,
        stop_factor=stop_factor,
        lanes_at_once=lanes_at_once,
        mesh=mesh,
        checkpoint=checkpoint,
        progress=progress,
    )
    curve, _ = stage.run(wanted, seeds, "sweep")
    refuse_if_all_diverged(curve, problem, steps)
    return curve
