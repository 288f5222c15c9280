"""The finder: a loss, parameters, an optimizer and batches to a curve over learning rates, or to one rate.

Nothing that is passed in is changed: training runs on copies.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ScalarLike

from . import checks, suggest
from .batches import batch_orders, read_batches, shapes
from .results import LRCurve, Suggestion
from .sweep import Engine
from .types import Metrics, PyTree, Schedule

QUICK_STEPS = 100
QUICK_SEEDS = 3
COARSE_STEPS = 50
COARSE_LANES_PER_DECADE = 2
FINE_LANES = 10
FINALIST_SEEDS = 2
FINALIST_RATIO = 3.0
# How far beyond the given bounds a search goes on while the best rate lies at its edge.
WIDEST = 100.0


class _Problem(NamedTuple):
    """What all stages of a search share. `starts` are (trained, kept) parameters with leading axis [seeds]."""

    loss_fn: Callable[[PyTree, PyTree], Array]
    optimizer: Callable[..., optax.GradientTransformation]
    starts: PyTree
    static: PyTree
    batches: PyTree
    eval_batch: PyTree
    key: Array
    progress: bool

    def params(self, carry: PyTree) -> PyTree:
        """The user's own parameters, whole again."""
        return _combine(carry["trained"], _combine(carry["kept"], self.static))


def lr_find(
    loss_fn: Callable[[PyTree, PyTree], Array],
    params: PyTree | Callable[[Array], PyTree],
    optimizer: Callable[..., optax.GradientTransformation],
    batches: PyTree | Iterable[PyTree],
    *,
    eval_batch: PyTree = None,
    horizon: int | None = None,
    schedule: Callable[[ScalarLike], Schedule] | None = None,
    finalists: int = 3,
    num_steps: int | None = None,
    seeds: int | None = None,
    key: Array | None = None,
    min_learning_rate: float = 1e-6,
    max_learning_rate: float = 10.0,
    stop_factor: ScalarLike = 3.0,
    progress: bool = True,
) -> Suggestion:
    """Find a learning rate by training copies of a model at many rates.

    *Quick*, without `schedule`: short runs at constant rates, two a decade and then ten around the best; the
    answer is `suggest.lowest_loss`, or `suggest.for_horizon` where `horizon` is given. *Scheduled*, with
    `schedule` and `horizon`: a quick search, and then `finalists` rates around it at ratio 3, each for the
    whole run under its real schedule; more are added while the best is at an edge. Where the best rate lies at
    the edge of the bounds, the search goes on up to a factor of 100 beyond them, and says so.

    Args:
      loss_fn: `(params, batch) -> loss`, a scalar.
      params: the start, a pytree; or a function `key -> pytree`, and then every seed draws its own start.
        Floating arrays are trained; all other leaves are put aside and put back.
      optimizer: `learning_rate -> optax.GradientTransformation`, such as `optax.adam`; it is called with a
        traced number, or with a schedule where `schedule` is given.
      batches: an array, tuple or mapping of arrays with leading axis [steps], or a list or other iterable of
        batches, endless or not, of which up to `num_steps` (`horizon`) are read once. Seed 0 takes them in
        order, the others permuted.
      eval_batch: validation data for `loss_fn`; with it rates are judged by validation loss.
      horizon: how many steps the coming run has.
      schedule: `peak -> Schedule`, what the coming run will use, such as
        `lambda peak: olr.one_cycle_schedule(peak, horizon)`.
      finalists: how many full runs a scheduled search begins with, at least 1.
      num_steps: how many steps each lane of the quick search takes: 100, or 50 before finalists. Left out,
        batches that run out are gone through again.
      seeds: how many runs each rate has: 3, and 2 for finalists.
      key: where random starts and orders come from; `jax.random.key(0)` by default.
      min_learning_rate, max_learning_rate: the rates to search between.
      stop_factor: how far a lane's loss may rise before the lane is stopped; see `sweep`.
      progress: whether a bar shows, where there is a terminal.

    Returns:
      A `Suggestion`: `.learning_rate`, `.low`, `.high`, `.reason`, `.curve`, `.plot()`; printed, a table.

    Raises:
      ValueError: wrong input, in one sentence.
      RuntimeError: every lane diverged.

    >>> batches = jnp.linspace(-1, 1, 20).reshape(5, 4)
    >>> found = lr_find(lambda w, x: jnp.mean((w * x - 3 * x) ** 2), jnp.zeros(()), optax.sgd, batches,
    ...                 eval_batch=jnp.ones(1), num_steps=5, progress=False)
    >>> found.low <= found.learning_rate <= found.high
    True

    Source: after Smith 2017 (arXiv:1506.01186), whose ramp of one run is replaced by one run a rate.
    """
    low, high = _bounds(min_learning_rate, max_learning_rate)
    length = None if horizon is None else checks.size("horizon", horizon)
    checks.size("finalists", finalists)
    if schedule is not None and length is None:
        raise ValueError("schedule needs horizon: the number of steps of the run that it is for.")
    if length is not None and eval_batch is None:
        warnings.warn(
            "horizon without eval_batch: the training loss overestimates the rate where a model overfits.",
            stacklevel=2,
        )
    steps = checks.size("num_steps", num_steps or (QUICK_STEPS if schedule is None else COARSE_STEPS))
    problem = _problem(
        loss_fn,
        params,
        optimizer,
        batches,
        eval_batch=eval_batch,
        read=max(steps, length if schedule is not None and length else 0),
        needed=num_steps,
        seeds=checks.size("seeds", seeds or max(QUICK_SEEDS, FINALIST_SEEDS)),
        key=key,
        progress=progress,
    )
    evals = sorted({-(-steps // 4), -(-steps // 2), steps})
    engine = _engine(problem, steps, evals, stop_factor)
    curve = _search(problem, engine, low, high, seeds or QUICK_SEEDS)
    quick = suggest.lowest_loss(curve) if length is None else suggest.for_horizon(curve, length)
    quick = dataclasses.replace(quick, rules=suggest.classic(curve))
    if schedule is None or length is None:
        return quick
    ratios = FINALIST_RATIO ** (np.arange(finalists) - (finalists - 1) / 2)
    full = _engine(problem, length, [length], stop_factor, schedule)
    return _finals(problem, full, quick, ratios, seeds or FINALIST_SEEDS, (low / WIDEST, high * WIDEST))


def lr_sweep(
    loss_fn: Callable[[PyTree, PyTree], Array],
    params: PyTree | Callable[[Array], PyTree],
    optimizer: Callable[..., optax.GradientTransformation],
    batches: PyTree | Iterable[PyTree],
    *,
    learning_rates: Sequence[float] | np.ndarray,
    num_steps: int | None = None,
    eval_batch: PyTree = None,
    eval_every: int | None = None,
    schedule: Callable[[ScalarLike], Schedule] | None = None,
    seeds: int = 1,
    key: Array | None = None,
    stop_factor: ScalarLike = 3.0,
    progress: bool = True,
) -> LRCurve:
    """Train copies of a model at the given learning rates, and return their losses.

    Args:
      loss_fn, params, optimizer, batches, eval_batch, key, stop_factor, progress: as in `lr_find`.
      learning_rates: the rates, positive and increasing; [lanes].
      num_steps: how many steps each lane takes: as many as there are batches where they have an end, else 100.
      eval_every: after how many steps the validation loss is taken, again and again; None is at the end only.
      schedule: `peak -> Schedule`; each rate is then the peak of its lane's schedule.
      seeds: how many runs each rate has.

    Returns:
      An `LRCurve`: losses [seeds, lanes, steps], validation losses [seeds, lanes, evals], where each diverged.

    Raises:
      ValueError: wrong input, in one sentence.
      RuntimeError: every lane diverged.

    >>> curve = lr_sweep(lambda w, x: jnp.mean((w * x) ** 2), jnp.ones(()), optax.sgd, jnp.ones((20, 4)),
    ...                  learning_rates=[0.1, 0.5, 3.0], progress=False)
    >>> curve.losses.shape, curve.stable.tolist()
    ((1, 3, 20), [True, True, False])
    """
    rates = _rates(learning_rates)
    if num_steps is not None:
        checks.size("num_steps", num_steps)
    problem = _problem(
        loss_fn,
        params,
        optimizer,
        batches,
        eval_batch=eval_batch,
        read=num_steps or QUICK_STEPS,
        needed=num_steps,
        seeds=checks.size("seeds", seeds),
        key=key,
        progress=progress,
    )
    steps = num_steps or len(jax.tree.leaves(problem.batches)[0])
    every = steps if eval_every is None else checks.size("eval_every", eval_every)
    evals = sorted({*range(every, steps, every), steps})
    engine = _engine(problem, steps, evals, stop_factor, schedule)
    curve, _ = _run(problem, engine, rates, seeds, "sweep")
    _refuse_if_all_diverged(curve, problem, steps)
    return curve


def _search(problem: _Problem, engine: Engine, low: float, high: float, seeds: int) -> LRCurve:
    """Coarse lanes over the bounds, more beyond them while the best is at the edge, then fine lanes around it."""
    count = max(2, round(COARSE_LANES_PER_DECADE * np.log10(high / low)) + 1)
    coarse, _ = _run(problem, engine, np.geomspace(low, high, count), seeds, "coarse lanes")
    _refuse_if_all_diverged(coarse, problem, engine.num_steps)
    ratio = float(coarse.learning_rates[1] / coarse.learning_rates[0])
    curve = _widen(
        coarse,
        ratio,
        (low / WIDEST, high * WIDEST),
        lambda rates: _run(problem, engine, rates, seeds, "wider lanes")[0],
    )
    best = suggest.best_lane(curve)
    around = curve.learning_rates[max(0, best - 1) : best + 2]
    fine = np.geomspace(around[0], around[-1], FINE_LANES + 2)[1:-1]
    return curve.merge(_run(problem, engine, fine, seeds, "fine lanes")[0])


def _finals(
    problem: _Problem,
    engine: Engine,
    quick: Suggestion,
    ratios: np.ndarray,
    seeds: int,
    bounds: tuple[float, float],
) -> Suggestion:
    """The best of full runs around a quick suggestion, widened while the best of them is at an edge."""
    ends: dict[float, PyTree] = {}

    def run(rates: np.ndarray) -> LRCurve:
        curve, carries = _run(problem, engine, rates, seeds, "finalists", return_carries=True)
        ends.update({rate: jax.tree.map(lambda x, i=i: x[:, i], carries) for i, rate in enumerate(rates)})
        return curve

    curve = _widen(run(quick.learning_rate * ratios), FINALIST_RATIO, bounds, run)
    _refuse_if_all_diverged(curve, problem, engine.num_steps)
    final, best = suggest.lowest_loss(curve), suggest.best_lane(curve)
    seed = int(np.argmin(suggest.final_losses(curve)[:, best]))
    carry = jax.tree.map(lambda leaf: leaf[seed], ends[curve.learning_rates[best]])
    return dataclasses.replace(
        final,
        reason=f"{final.reason[:-1]}, in full runs under their own schedule at {len(ends)} peaks.",
        curve=quick.curve,
        rules=quick.rules,
        finalists=curve,
        params=problem.params(carry),
        lane_steps=quick.lane_steps + curve.lane_steps,
    )


def _widen(
    curve: LRCurve, ratio: float, bounds: tuple[float, float], run: Callable[[np.ndarray], LRCurve]
) -> LRCurve:
    """The curve with more rates at its edge while the best rate is there, within bounds."""
    while True:
        best, rates = suggest.best_lane(curve), curve.learning_rates
        lower, higher = rates[0] / ratio, rates[-1] * ratio
        if best == 0 and lower >= bounds[0]:
            curve = curve.merge(run(np.array([lower])))
        elif best == len(rates) - 1 and curve.stable[-1] and higher <= bounds[1]:
            curve = curve.merge(run(np.array([higher])))
        else:
            return curve


def _run(
    problem: _Problem,
    engine: Engine,
    rates: np.ndarray,
    seeds: int,
    description: str,
    *,
    return_carries: bool = False,
) -> tuple[LRCurve, PyTree]:
    """Train one lane a rate; the curve, and the final carries where asked."""
    result = engine.run(
        jax.tree.map(lambda leaf: leaf[:seeds], problem.starts),
        jnp.asarray(rates, jnp.float32),
        problem.batches,
        seeds=seeds,
        key=problem.key,
        carry_per_seed=True,
        eval_batch=problem.eval_batch,
        return_carries=return_carries,
        progress=problem.progress,
        description=description,
    )
    curve = LRCurve(
        learning_rates=np.asarray(rates, np.float64),
        losses=result.metrics["loss"],
        eval_losses=result.evals.get("loss"),
        eval_steps=np.array(engine.eval_steps if result.evals else [], np.int32),
        diverged_at=result.diverged_at,
        placement=result.placement,
    )
    return curve, result.carries


def _engine(
    problem: _Problem,
    num_steps: int,
    eval_steps: Sequence[int],
    stop_factor: ScalarLike,
    schedule: Callable[[ScalarLike], Schedule] | None = None,
) -> Engine:
    """The training step of a problem, compiled for runs of `num_steps`."""

    def transformation(rate: Array) -> optax.GradientTransformationExtraArgs:
        return _transformation(problem.optimizer, rate if schedule is None else schedule(rate))

    def init(carry: PyTree, rate: Array) -> PyTree:
        return {**carry, "optimizer": transformation(rate).init(carry["trained"])}

    def step(carry: PyTree, rate: Array, batch: PyTree, key: Array) -> tuple[PyTree, Metrics]:
        def loss_of(trained: PyTree) -> Array:
            return problem.loss_fn(problem.params({**carry, "trained": trained}), batch)

        loss, gradients = jax.value_and_grad(loss_of)(carry["trained"])
        updates, state = transformation(rate).update(
            gradients, carry["optimizer"], carry["trained"], value=loss
        )
        trained = optax.apply_updates(carry["trained"], updates)
        return {**carry, "trained": trained, "optimizer": state}, {"loss": loss}

    def evaluate(carry: PyTree, eval_batch: PyTree) -> Metrics:
        return {"loss": problem.loss_fn(problem.params(carry), eval_batch)}

    return Engine(
        step,
        num_steps=num_steps,
        init=init,
        evaluate=None if problem.eval_batch is None else evaluate,
        eval_steps=eval_steps,
        stop_factor=stop_factor,
    )


def _transformation(
    optimizer: Callable[..., optax.GradientTransformation], rate: ScalarLike | Schedule
) -> optax.GradientTransformationExtraArgs:
    """What the user's factory makes of a traced rate; errors say what to write instead."""
    try:
        made = optimizer(rate)
    except jax.errors.ConcretizationTypeError as error:
        raise ValueError(
            "optimizer must not branch on the value of the learning rate, which is traced: use jnp.where, or "
            "schedules whose numbers may be traced, as all of this package's may."
        ) from error
    if not (hasattr(made, "init") and hasattr(made, "update")):
        raise ValueError(f"optimizer must return an optax.GradientTransformation, got {made!r}.")
    return optax.with_extra_args_support(made)


def _problem(
    loss_fn: Callable[[PyTree, PyTree], Array],
    params: PyTree | Callable[[Array], PyTree],
    optimizer: Callable[..., optax.GradientTransformation],
    batches: PyTree | Iterable[PyTree],
    *,
    eval_batch: PyTree,
    read: int,
    needed: int | None,
    seeds: int,
    key: Array | None,
    progress: bool,
) -> _Problem:
    """Check and unpack the arguments that `lr_find` and `lr_sweep` share."""
    if not callable(optimizer):
        raise ValueError(
            "optimizer must be a function of the learning rate, such as optax.adam or "
            f"lambda rate: optax.chain(...), got a {type(optimizer).__name__}."
        )
    root = jax.random.key(0) if key is None else key
    leaves = jax.tree.leaves(params)
    drawn = len(leaves) == 1 and leaves[0] is params and callable(params)
    starts = [params(jax.random.fold_in(root, seed)) if drawn else params for seed in range(seeds)]
    parts = [_partition(start) for start in starts]
    trained, kept, static = parts[0]
    if not jax.tree.leaves(trained):
        raise ValueError("params must have a leaf that is an array of floats, got none.")
    data = read_batches(batches, read, needed)
    loss = jax.eval_shape(
        lambda trained, kept, batch: loss_fn(_combine(trained, _combine(kept, static)), batch),
        *(trained, kept, jax.tree.map(lambda leaf: leaf[0], data)),
    )
    if getattr(loss, "shape", None) != ():
        raise ValueError(f"loss_fn must return one scalar, got {shapes(loss)}.")
    return _Problem(
        loss_fn=loss_fn,
        optimizer=optimizer,
        starts={
            "trained": jax.tree.map(lambda *leaves: jnp.stack(leaves), *(trained for trained, _, _ in parts)),
            "kept": jax.tree.map(lambda *leaves: jnp.stack(leaves), *(kept for _, kept, _ in parts)),
        },
        static=static,
        batches=data,
        eval_batch=eval_batch,
        key=root,
        progress=progress,
    )


def _partition(params: PyTree) -> tuple[PyTree, PyTree, PyTree]:
    """Leaves that are trained, arrays that are carried along, and what is no array; None in each other's place."""

    def kind(leaf: Any) -> int:
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
            return 2
        return 0 if jnp.issubdtype(leaf.dtype, jnp.floating) else 1

    def part(wanted: int) -> PyTree:
        return jax.tree.map(lambda leaf: leaf if kind(leaf) == wanted else None, params)

    return part(0), part(1), part(2)


def _combine(tree: PyTree, other: PyTree) -> PyTree:
    """The leaves of both trees, each of which has None where the other has a leaf."""
    return jax.tree.map(
        lambda one, two: two if one is None else one, tree, other, is_leaf=lambda leaf: leaf is None
    )


def _refuse_if_all_diverged(curve: LRCurve, problem: _Problem, num_steps: int) -> None:
    """Say at which rates all lanes diverged, and name the batch where it is to blame."""
    if curve.stable.any():
        return
    low, high = curve.learning_rates[[0, -1]]
    sentence = f"Every lane diverged, at {len(curve.learning_rates)} rates from {low:.3g} to {high:.3g}"
    orders = batch_orders(
        len(jax.tree.leaves(problem.batches)[0]), num_steps, len(curve.diverged_at), problem.key
    )
    # The lane that got farthest; a rate that is too high may fail earlier.
    step = int(curve.diverged_at[0].max())
    batch = int(orders[0, step])
    start = jax.tree.map(lambda leaf: leaf[0], problem.starts)
    loss = problem.loss_fn(problem.params(start), jax.tree.map(lambda leaf: leaf[batch], problem.batches))
    if not jnp.isfinite(loss):
        raise RuntimeError(
            f"{sentence}, the last of them at step {step}; the loss of batch {batch} is {loss} before any "
            "training: look at its data."
        )
    raise RuntimeError(
        f"{sentence}; try a smaller min_learning_rate, and look at the loss of the first step."
    )


def _bounds(low: Any, high: Any) -> tuple[float, float]:
    lower = checks.concrete("min_learning_rate", low, above=0)
    upper = checks.concrete("max_learning_rate", high, above=0)
    if upper <= lower:
        raise ValueError(f"max_learning_rate must be above min_learning_rate={low!r}, got {high!r}.")
    return lower, upper


def _rates(learning_rates: Any) -> np.ndarray:
    rates = np.asarray(learning_rates, np.float64)
    if rates.ndim != 1 or not len(rates):
        raise ValueError(f"learning_rates must be a list of rates, got an array of shape {rates.shape}.")
    if not (np.isfinite(rates).all() and (rates > 0).all() and (np.diff(rates) > 0).all()):
        raise ValueError(f"learning_rates must be positive, finite and increasing, got {rates.tolist()}.")
    return rates
