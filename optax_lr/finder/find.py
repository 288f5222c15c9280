"""`lr_find`: a loss, parameters, an optimizer and batches to a learning rate.

Nothing that is passed in is changed: training runs on copies.
"""

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Unpack

import numpy as np
import optax

from .. import checks
from ..engine.lengths import Epochs, steps_of
from ..schedules.named import length_of
from ..types import Array, PeakToSchedule, PyTree, ScalarLike
from . import ceilings, tables
from .folds import folds_wanted
from .grids import combinations_of, first_of
from .inputs import pose
from .policy import Bounds
from .problem import Problem
from .search import Options, bounds, example_lane, given, judgment_of, noting_bounds, search
from .spending import spending, usual_budget
from .suggestion import Suggestion
from .ways import opening_of, policy_of

QUICK_STEPS = 100
COARSE_STEPS = 50
FULL_HORIZON = 5000


def lr_find(
    loss_fn: Callable[..., Any] | Problem,
    params: PyTree | Callable[[Array], PyTree],
    optimizer: Callable[..., optax.GradientTransformation],
    batches: PyTree | Iterable[PyTree],
    *,
    eval_batch: PyTree = None,
    horizon: int | Epochs | None = None,
    schedule: PeakToSchedule | None = None,
    lanes: Mapping[str, Sequence[float] | np.ndarray] | None = None,
    budget: ScalarLike | None = None,
    tolerance: ScalarLike | None = None,
    max_rounds: int | None = None,
    finalists: int | None = None,
    max_full_horizon: int | None = None,
    num_steps: int | Epochs | None = None,
    seeds: int | None = None,
    folds: int | None = None,
    key: Array | None = None,
    min_learning_rate: float = 1e-6,
    max_learning_rate: float = 10.0,
    stop_factor: ScalarLike = 3.0,
    metric: str = "loss",
    mode: Literal["min", "max"] = "min",
    model_state: PyTree | Callable[[Array], PyTree] = None,
    opt_state: optax.OptState | None = None,
    **options: Unpack[Options],
) -> Suggestion:
    """Find a learning rate by training copies of a model at many rates.

    1. Neither `horizon` nor `schedule`: runs of `num_steps` at constant rates, two a decade and then ten around
       the best; the answer is `suggest.lowest_loss`.
    2. *By budget*, with `horizon` or `schedule`: the rate of a run of `horizon` steps, the peak of `schedule` or
       else of one cycle, for at most `budget` such runs. It decides by itself between lengths, rates and seeds:
       short runs at all rates, then few longer ones, in each round those that lower the expected loss of the answer
       most. `model` says what it believes: a Gaussian process over the log of rate and length, and a chance of
       divergence. Its priors: the best rate falls by 0.5 +- 0.4 octaves where runs are twice as long; a bowl is 1.5
       or 3 octaves wide.
    By a fixed recipe, on several seeds, where any of `num_steps`, `seeds`, `folds`, `finalists`, `max_full_horizon`
    is given and no budget:
    3. *Quick*, without a schedule: runs of a quarter of `num_steps` at two rates a decade, then few, around the
       best, of twice and of four times `num_steps`, but no longer than `horizon`. Each is under a whole one-cycle
       schedule, since a peak that is warmed up to and left again may be higher than a constant rate. The answer
       is `suggest.for_horizon`, the drift of the best rate with the length of the run, carried on.
    4. *Scheduled*, with one: the same, coarsely, under that schedule, squeezed; then `finalists` rates around the
       answer at ratio 3, each for the whole run under its real schedule. More are added while the best is at an
       edge, and then two half way to the lanes beside the best; where noise leaves rates that may be better, all
       have as many seeds again. Of a run longer than `max_full_horizon` they go through the schedule in a tenth, a
       fifth and half of its steps, and the drift is carried on.
    Where the best rate lies at the edge of the bounds, the search goes on up to a factor of 100 beyond them, and
    says so. A second search with the same functions (the same objects) and shapes compiles nothing.

    More than the rate: with `lanes`, such as `olr.grid(weight_decay=[0.01, 0.1])`, the rate is found for each
    combination, in the same rounds and programs, and the answer holds the best combination, too. Those whose lowest
    loss is above the best by more than a tenth and more than the noise are dropped when a length of runs ends; by
    budget none is, and each has an equal part of it.

    The loss may take a key, carry a model state and report metrics, and validation may differ from it: `Problem`
    says how, and where a search runs `Engine` does. Their arguments may be given here by themselves, too:
    `with_key`, `has_aux`, `eval_fn`, and `lanes_at_once`, `mesh`, `checkpoint`, `progress`, `on_round`.

    From the middle of a run: hand over its present parameters, `model_state` and `opt_state`. Moments and counts
    go on from there, so a schedule begins at the step that the state has counted; the rate is the lane's,
    whatever the state says, and a set one is no longer in force.

    Args:
      loss_fn: `(params, batch) -> loss`, a scalar; or a `Problem`.
      params: the start, a pytree; or a function `key -> pytree`, and then every seed draws its own start.
        Floating arrays are trained; all other leaves are put aside and put back.
      optimizer: `learning_rate -> optax.GradientTransformation`, such as `optax.adam`. It is called with a
        schedule, which it reads by its own clock, as in your training; one that takes none, with traced numbers.
      batches: an array, tuple or mapping of arrays with leading axis [steps], or a list of batches, or another
        iterable of them, endless or not, of which as many as the longest run has steps are read once. Seed 0 takes
        them in order, the others permuted.
      eval_batch: validation data; with it rates are judged by validation loss, which is `loss_fn`'s unless
        there is an `eval_fn`. A key is then the same at every evaluation, and a new model state is dropped.
      horizon: how many steps the coming run has, or `Epochs`; by default as many as the schedule's own, where it
        is one of this package with an end.
      schedule: `peak -> Schedule`, what the coming run will use, such as
        `lambda peak: optax.warmup_cosine_decay_schedule(0.0, peak, 100, horizon)`: any function of the step.
      lanes: combinations of other hyperparameters by name, each [combinations], as `grid` makes them; the optimizer
        is called with these names and `learning_rate` as keywords, whatever they are: `weight_decay`, or the
        multiplier of a new head in a function of your own.
      budget: how many runs of `horizon` steps the search may cost, such as 0.3, 1, 3 or 10; it must buy 8 steps and
        is kept to the step. By default 3, or 10,000 steps where those are more, up to 30 runs; as much for each of
        several combinations. On 18 cases that were held out the answer's loss was above the best rate's by so much
        in the median, and in one of ten: with 0.3, 12% and 570%; with 1, 10% and 47%; with 3, 1.6% and 5%; with 10,
        0.9% and 6%; with 30, 0.5% and 4%.
      tolerance: by budget, the expected excess of the answer at which the search ends: its loss above that of
        the best rate, as a share of what that falls from the loss without training. 0.01 is one percent.
      max_rounds: by budget, how many rounds there are at most. Lanes of a round ride side by side, so what a
        search takes on a device is the longest chain of steps: rounds times their lengths.
      finalists: how many rates a scheduled search tries first for the whole run, at least 1; 3 by default.
      max_full_horizon: the longest run that finalists go through step by step; 5000 by default.
      num_steps: how many steps lanes at constant rates take, and what the runs of a quick search are reckoned in,
        which with three seeds takes about 100 times as many in all: 100, or 50 before finalists. There must be as
        many batches; left out, and in longer runs, batches that run out are gone through again.
      seeds: how many runs each rate has, 3 or as many as `folds`; finalists that cannot be told apart have as many
        again. By budget it is decided rate by rate.
      folds: in place of `eval_batch`, into how many parts the batches fall, at least 2, so that small data can be
        judged: each seed trains without one of them and is judged on it. A part is a run of as many batches as
        there are in a `folds`-th, joined along the first axis of their arrays, so shuffle data that are sorted; a
        rest of batches always trains. The interval knows that parts which train in turn are no independent data.
      key: where random starts and orders come from; `jax.random.key(0)` by default.
      min_learning_rate, max_learning_rate: the rates to search between.
      stop_factor: how far a lane's loss may rise before the lane is stopped; see `sweep`.
      metric: what judges rates: a name that `eval_fn` reports or, without validation, the loss with `has_aux`; by
        default the loss. Gradients stay those of the loss. Where another metric judges, no finite loss stops a run.
      mode: "min" where the metric is better when low, as an error, or "max" when high, as an accuracy.
      model_state: what the model carries along beside its parameters, a pytree of arrays; a function
        `key -> pytree` where `params` is one.
      opt_state: the optimizer's state to start from, as `optimizer(rate).init(params)` or
        `optimizer(schedule).init(params)` makes it.
      options: as in `Problem` and `Engine`, and `engine`, an `Engine`.

    Returns:
      A `Suggestion`: `.learning_rate`, `.low`, `.high`, `.reason`, `.curve`, `.plot()`; printed, a table. By
      budget also `.trace`, answer, expected excess, price and chain after each round, and `.plot_trace()`. With
      `lanes` also `.hyperparameters`, the best combination, and `.plot()` is a heat map.

    Raises:
      ValueError: wrong input, in one sentence.
      RuntimeError: every lane diverged.

    >>> import jax.numpy as jnp
    >>> batches = jnp.linspace(-1, 1, 20).reshape(5, 4)
    >>> found = lr_find(lambda w, x: jnp.mean((w * x - 3 * x) ** 2), jnp.zeros(()), optax.sgd, batches,
    ...                 eval_batch=jnp.ones(1), num_steps=5, progress=False)
    >>> found.low <= found.learning_rate <= found.high
    True

    The head at several multiples of the body's rate:

    >>> import optax_lr as olr
    >>> def adam(learning_rate, head_multiplier):
    ...     multipliers = {"body": 1.0, "head": head_multiplier}
    ...     return olr.fine_tune(optax.adam(learning_rate), multipliers, {"body": "body", "head": "head"})
    >>> found = lr_find(lambda w, x: jnp.mean((w["head"] + 0.1 * w["body"] - 3 + 0 * x) ** 2),
    ...                 {"body": jnp.zeros(()), "head": jnp.zeros(())}, adam, batches, num_steps=5,
    ...                 lanes=olr.grid(head_multiplier=[1, 10]), progress=False)
    >>> sorted(found.hyperparameters)
    ['head_multiplier']

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
    problem, engine = given(loss_fn, model_state is not None, options)
    length = _length(schedule, horizon, batches)
    factor, judgment = ceilings.factor_of(stop_factor), judgment_of(metric, mode, folds)
    parts = _validation(length, eval_batch, folds)
    usual = min(QUICK_STEPS if schedule is None else COARSE_STEPS, length or QUICK_STEPS)
    steps = steps_of("num_steps", usual if num_steps is None else num_steps, batches)
    longest = checks.size("max_full_horizon", FULL_HORIZON if max_full_horizon is None else max_full_horizon)
    runs = checks.size("seeds", (parts or 3) if seeds is None else seeds, unit="seeds")
    rates = checks.size("finalists", 3 if finalists is None else finalists, unit="rates")
    axes = combinations_of(lanes)
    recipe = {
        "num_steps": num_steps, "seeds": seeds, "finalists": finalists, "max_full_horizon": max_full_horizon,
    }  # fmt: skip
    combinations = len(next(iter(axes.values()), [0]))
    by_recipe = any(knob is not None for knob in (folds, *recipe.values()))
    if budget is None and length is not None and not by_recipe:
        budget = combinations * usual_budget(length)
    looks = eval_batch is None or problem.with_key or model_state is not None
    spend = spending(budget, tolerance, max_rounds, length, combinations, recipe, looks=looks)
    within = Bounds(low, high)
    make = functools.partial(policy_of, within, axes, spend, steps, length, schedule, runs, rates, longest)
    plan = make(0)
    lane = example_lane({"learning_rate": low, **first_of(axes)}, plan.longest)
    starts = 2 * runs if spend is None else spend.most_seeds
    posed = pose(
        problem, params, optimizer, batches, model_state=model_state, opt_state=opt_state, eval_batch=eval_batch,
        lane=lane, by_name=bool(axes), read=plan.longest, seeds=starts, key=key, folds=parts,
    )  # fmt: skip
    plan = make(posed.first)
    opening = opening_of(plan, lane, low, high, runs if spend is None else 1, factor, posed, judgment)
    return noting_bounds(search(posed, plan, engine, opening), low, high)


def _length(
    schedule: PeakToSchedule | None,
    horizon: int | Epochs | None,
    batches: PyTree | Iterable[PyTree],
) -> int | None:
    """The steps of the run to come: as given, or as the schedule knows; None where neither is."""
    length = None if horizon is None else steps_of("horizon", horizon, batches)
    if schedule is None:
        return length
    one = tables.peaked(schedule)(1.0)
    own = length_of(one)
    if length is None and own is None:
        raise ValueError(
            "schedule needs horizon: the number of steps of the run that it is for. Schedules of this package that "
            "have an end know it themselves."
        )
    if length is None:
        return checks.size("horizon", math.ceil(own or 1))
    tables.warn_if_cut(one, length, own)
    return length


def _validation(horizon: int | None, eval_batch: PyTree, folds: int | None) -> int | None:
    """Into how many parts the data fall, None where they do not; a warning where nothing validates a long run."""
    parts = folds_wanted(folds, eval_batch)
    if horizon is not None and eval_batch is None and parts is None:
        warnings.warn(
            "horizon without eval_batch: the training loss overestimates the rate where a model overfits.",
            stacklevel=3,
        )
    return parts
