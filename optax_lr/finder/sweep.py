"""`lr_sweep`: the losses of training runs at given learning rates, or lanes of more hyperparameters."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Unpack

import numpy as np
import optax

from .. import checks
from ..engine.batches import is_stacked
from ..engine.checkpoints import digest
from ..engine.lengths import Epochs, steps_of
from ..engine.opening import Opening
from ..types import Array, PeakToSchedule, PyTree, ScalarLike
from . import ceilings, tables
from .curve import LRCurve
from .grids import first_of, lanes_of
from .inputs import pose
from .optimizer import TABLE
from .problem import Problem
from .search import Options, example_lane, given, judgment_of, run_all, with_a_survivor, without_training
from .views import curve_of

USUAL_STEPS = 100


def lr_sweep(
    loss_fn: Callable[..., Any] | Problem,
    params: PyTree | Callable[[Array], PyTree],
    optimizer: Callable[..., optax.GradientTransformation],
    batches: PyTree | Iterable[PyTree],
    *,
    learning_rates: Sequence[float] | np.ndarray | None = None,
    lanes: Mapping[str, Sequence[float] | np.ndarray] | None = None,
    num_steps: int | Epochs | None = None,
    eval_batch: PyTree = None,
    eval_every: int | None = None,
    schedule: PeakToSchedule | None = None,
    seeds: int = 1,
    key: Array | None = None,
    stop_factor: ScalarLike = 3.0,
    metric: str = "loss",
    mode: Literal["min", "max"] = "min",
    model_state: PyTree | Callable[[Array], PyTree] = None,
    opt_state: optax.OptState | None = None,
    **options: Unpack[Options],
) -> LRCurve:
    """Train copies of a model at the given learning rates, or lanes of more hyperparameters; return their losses.

    Args:
      loss_fn, params, optimizer, batches, eval_batch, key, stop_factor, metric, mode, model_state, opt_state,
        options: as in `lr_find`.
      learning_rates: the rates, positive and increasing; [lanes].
      lanes: in place of `learning_rates`, hyperparameters by name, `learning_rate` among them, each [lanes], as
        `grid` makes them; the optimizer is called with these names. Rates need not increase where others vary.
      num_steps: how many steps each lane takes, or `Epochs`: by default as many as there are batches where they
        have an end, else 100. Batches that run out are gone through again.
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
    problem, engine = given(loss_fn, model_state is not None, options)
    factor, runs = ceilings.factor_of(stop_factor), checks.size("seeds", seeds, unit="seeds")
    steps = _length(batches, num_steps)
    lane = example_lane(first_of(wanted), steps)
    posed = pose(
        problem,
        params,
        optimizer,
        batches,
        model_state=model_state,
        opt_state=opt_state,
        eval_batch=eval_batch,
        lane=lane,
        by_name=lanes is not None,
        read=steps,
        seeds=runs,
        key=key,
    )
    if num_steps is None and not is_stacked(batches):
        steps = posed.data.num_batches
    table = tables.of_peaks(schedule, wanted["learning_rate"], steps, posed.first)
    every = _evals(eval_every, steps)
    evals = [] if eval_batch is None else every
    settings = {"lanes": digest([wanted, table]), "num_steps": steps, "eval_steps": evals, "seeds": runs}
    opening = Opening(
        lane=lane,
        lanes=len(table),
        seeds=runs,
        longest=len(lane[TABLE]),
        ceilings=ceilings.of_sweep(factor),
        reference=without_training(posed, steps, evals),
        judgment=judgment_of(metric, mode),
        settings={**settings, "stop factor": factor},
        description="lr_sweep",
    )
    plan = tables.on_seeds(wanted, table, range(runs), eval_steps=evals)
    ended = run_all(posed, engine, opening, lambda made: None if len(made) else plan)
    return with_a_survivor(curve_of(ended.runs, ended.placement), posed)


def _evals(every: int | None, steps: int) -> list[int]:
    """After how many steps runs are evaluated; always at their end."""
    count = steps if every is None else checks.size("eval_every", every)
    return sorted({*range(count, steps, count), steps})


def _length(batches: PyTree | Iterable[PyTree], num_steps: int | Epochs | None) -> int:
    """How many steps each lane takes, before it is known how many batches there are."""
    if num_steps is not None:
        return steps_of("num_steps", num_steps, batches)
    return checks.leading_axis("batches", batches) if is_stacked(batches) else USUAL_STEPS
