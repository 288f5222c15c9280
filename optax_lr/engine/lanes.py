"""Lanes: a training step to the compiled programs that start, train and measure many runs of it.

A program holds one lane, or a `vmap` over seeds and lanes of which a mesh may give each device a share. Devices
never wait for each other: their shares are loops of their own (`shard_map`), and nothing crosses between them.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from ..schedules.cycles import row
from ..types import Array, Metrics, PyTree, ScalarLike

StepFn = Callable[[PyTree, PyTree, PyTree, Array], tuple[PyTree, Metrics]]

AVERAGE_DECAY = 0.9
# By step: over the decayed sum of ones, in float32 until it is 1.
DEBIASING = (1 / (1 - AVERAGE_DECAY ** np.arange(1.0, 200.0))).astype(np.float32)
# How many lone lanes the program that trains them has room for: it is compiled once, for any number of lanes.
LANES_PER_CALL = 16
# The step at which a lane stopped is kept as a float32.
MOST_STEPS = 2**24


class Run(NamedTuple):
    """One lane of one seed in the middle of its run; in a batch, every leaf has leading axes [seeds, lanes].

    Attributes:
      carry: what the step takes and returns.
      track: what divergence is judged by, float32 [4]: the first loss, the decayed sum of losses, the lowest of its
        debiased averages, and the step at which the lane stopped, or -1. One array: one kernel.
      history: every metric, [steps].
    """

    carry: PyTree
    track: Array
    history: dict[str, Array]

    @property
    def diverged_at(self) -> Any:
        """The step at which the lane stopped, or -1, as a float."""
        return self.track[..., -1]


class Layout(NamedTuple):
    """How a program holds lanes: one (`batched` False), or [seeds, lanes], split over a mesh where there is one.

    Attributes:
      per_seed: whether batches and validation batches have a leading axis [seeds].
      freeze: whether a lane that stops keeps the carry that it had. Where nobody asks for that of a lone lane,
        whose loop ends there, its step is cheaper to run and to compile.
    """

    batched: bool
    mesh: Mesh | None = None
    per_seed: bool = False
    freeze: bool = True


class Programs(NamedTuple):
    """The programs of a sweep, jitted; `feed` is (lane, batches, order, key).

    Attributes:
      start: `start(carry, lane) -> run`.
      train: `train(run, begin, end, *feed) -> run`, for steps from `begin` to `end`.
      train_alone: `train_alone(run, carry, begin, end, *feed) -> run`, the same of a lone lane, which starts by
        itself where `begin` is 0 (`run` is then mere memory): one program to compile in place of two.
      train_lanes: `train_lanes(reports, carry, count, end, *feed) -> reports`, whole runs of lone lanes, the first
        `count` of `feed`'s, one after the other. `reports` are runs without their carries, [LANES_PER_CALL]; what
        stood in them after a lane's last step stays.
      train_once: `train_once(run, t, *feed) -> run`, for one step.
      measure: `measure(run, eval_batch) -> metrics`.
    """

    start: Any
    train: Any
    train_alone: Any
    train_lanes: Any
    train_once: Any
    measure: Any


class Form(NamedTuple):
    """What a step takes and returns.

    Attributes:
      metrics, evals: the names of what it reports.
      carry: shapes and dtypes of its carry.
      step, init, evaluate: the functions, or None. The user's code runs once: what was traced of it is copied into
        the programs that call it.
      program: the step as a closed jaxpr.
      convolves: whether there is a convolution in it.
      draws: whether it reads its random key.
      key_impl: the kind of its random keys.
    """

    metrics: tuple[str, ...]
    evals: tuple[str, ...]
    carry: PyTree
    step: StepFn
    init: Callable[[PyTree, PyTree], PyTree] | None
    evaluate: Callable[[PyTree, PyTree], Metrics] | None
    program: Any
    convolves: bool
    draws: bool
    key_impl: str


def _strong(carry: PyTree) -> PyTree:
    """A carry without weak types: they would change in the loop."""
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, jnp.asarray(leaf).dtype), carry)


def entry(tree: PyTree, index: Array) -> PyTree:
    """The entry of every leaf along its leading axis, at an index within it."""
    return jax.tree.map(lambda leaf: row(leaf, index), tree)


def written(values: Array, value: Array, *index: Array) -> Array:
    """`values` with `value` at an index within its leading axes."""
    begin: tuple[ScalarLike, ...] = (*index, *[0] * value.ndim)
    update = value.reshape(*[1] * len(index), *value.shape)
    return jax.lax.dynamic_update_slice(values, update, begin, allow_negative_indices=False)


def fresh(carry: PyTree, names: Sequence[str], num_steps: int) -> Run:
    """A run before its first step."""
    return Run(
        carry=_strong(carry),
        track=jnp.array([0, 0, jnp.inf, -1], jnp.float32),
        history={name: jnp.full(num_steps, jnp.nan, jnp.float32) for name in names},
    )


def blank(form: Form, num_steps: int, *, reports: bool) -> Run:
    """Memory for a lone run, or for the reports of many, on the host where it can be: only random keys cannot."""

    def room(leaf: jax.ShapeDtypeStruct) -> Any:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return (jax.lax.full if is_key else np.full)(leaf.shape, 0, leaf.dtype)

    lead = (LANES_PER_CALL,) if reports else ()
    beside: dict[str, Any] = {
        "track": np.zeros((*lead, 4), np.float32),
        "history": {name: np.zeros((*lead, num_steps), np.float32) for name in form.metrics},
    }
    return Run(carry=None if reports else jax.tree.map(room, form.carry), **beside)


def record(
    t: Array,
    run: Run,
    carry: PyTree,
    metrics: Metrics,
    stop_factor: ScalarLike,
    *,
    freeze: bool,
    within: tuple[Array, ...] = (),
) -> Run:
    """The run after step `t`, which led to `carry`; a lane that stops here keeps, to `freeze`, the carry it had.

    The history may be that of many runs: `within` says which of them this one is.
    """
    loss = metrics["loss"].astype(jnp.float32)
    first, total, lowest, stopped = run.track
    first = jnp.where(t == 0, loss, first)
    total = AVERAGE_DECAY * total + (1 - AVERAGE_DECAY) * loss
    # To multiply costs less than to divide: XLA does it again wherever it is wanted, in place of once in a kernel.
    average = total * row(jnp.asarray(DEBIASING), jnp.minimum(t, len(DEBIASING) - 1))
    best = jnp.minimum(lowest, average)
    rise = average - best > stop_factor * jnp.maximum(jnp.abs(first), jnp.abs(best))
    live = stopped < 0
    goes_on = live & jnp.isfinite(loss) & ~rise
    return Run(
        carry=jax.tree.map(lambda new, old: jnp.where(goes_on, new, old), carry, run.carry)
        if freeze
        else _strong(carry),
        track=jnp.stack([first, total, best, jnp.where(live & ~goes_on, t.astype(jnp.float32), stopped)]),
        history={
            name: written(values, jnp.where(live, metrics[name].astype(jnp.float32), jnp.nan), *within, t)
            for name, values in run.history.items()
        },
    )


def _convolves(jaxpr: Any) -> bool:
    """Whether there is a convolution among the equations of a jaxpr, or of those within them."""
    inner = (getattr(part, "jaxpr", part) for each in jaxpr.eqns for part in jax.tree.leaves(each.params))
    return any(each.primitive.name == "conv_general_dilated" for each in jaxpr.eqns) or any(
        _convolves(part) for part in inner if hasattr(part, "eqns")
    )


def _reads(jaxpr: Any, argument: Any) -> bool:
    """Whether an argument of a jaxpr goes into an equation or out again."""
    read = itertools.chain(jaxpr.outvars, *(each.invars for each in jaxpr.eqns))
    return any(each is argument for each in read)


def inspect(
    step: StepFn,
    init: Callable[[PyTree, PyTree], PyTree] | None,
    evaluate: Callable[[PyTree, PyTree], Metrics] | None,
    start: PyTree,
    lane: PyTree,
    batch: PyTree,
    eval_batch: PyTree,
    key_impl: str,
) -> Form:
    """What the step takes and returns; one of the wrong form is refused."""
    once: Any = functools.partial(jax.jit, inline=True)
    step, init, evaluate = once(step), init and once(init), evaluate and once(evaluate)

    def prepared(carry: PyTree, lane: PyTree) -> PyTree:
        return fresh(init(carry, lane) if init else carry, (), 1).carry

    carry = jax.eval_shape(prepared, start, lane)
    key = jax.eval_shape(lambda: jax.random.key(0, impl=key_impl))
    program, (after, metrics) = jax.make_jaxpr(step, return_shape=True)(carry, lane, batch, key)
    if "loss" not in metrics:
        raise ValueError(f'step must return metrics["loss"], got metrics {sorted(metrics)}.')
    for name, value in metrics.items():
        if value.shape:
            raise ValueError(f"metric {name!r} must be a scalar, got an array of shape {value.shape}.")
    given, returned = str(jax.tree.structure(carry)), str(jax.tree.structure(after))
    if given != returned:
        raise ValueError(f"step must return a carry of structure {given}, got {returned}.")
    for (path, old), new in zip(jax.tree.leaves_with_path(carry), jax.tree.leaves(after), strict=True):
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise ValueError(
                f"step must keep shapes and dtypes of its carry, got {new.dtype}{list(new.shape)} for "
                f"{old.dtype}{list(old.shape)} at carry{jax.tree_util.keystr(path)}."
            )
    return Form(
        metrics=tuple(sorted(metrics)),
        evals=tuple(sorted(jax.eval_shape(evaluate, carry, eval_batch) if evaluate else ())),
        carry=carry,
        step=step,
        init=init,
        evaluate=evaluate,
        program=program,
        convolves=_convolves(program.jaxpr),
        draws=_reads(program.jaxpr, program.jaxpr.invars[-1]),
        key_impl=key_impl,
    )


def programs(form: Form, *, num_steps: int, stop_factor: ScalarLike, layout: Layout) -> Programs:
    """Build the programs of a training step; nothing is compiled before they are called."""

    def spread(function: Callable, over_seeds: tuple, over_lanes: tuple) -> Callable:
        return jax.vmap(jax.vmap(function, over_lanes), over_seeds) if layout.batched else function

    def start(carry: PyTree, lane: PyTree) -> Run:
        def one_start(carry: PyTree, lane: PyTree) -> Run:
            return fresh(form.init(carry, lane) if form.init else carry, form.metrics, num_steps)

        return spread(one_start, (0, None), (None, 0))(carry, lane)

    def batch_of(t: Array, batches: PyTree, order: Array) -> PyTree:
        if not layout.batched:
            return entry(batches, entry(order, t))
        # One gather for all lanes of a seed: no batch is copied per lane.
        index = (jnp.arange(len(order)), order[:, t]) if layout.per_seed else order[:, t]
        return jax.tree.map(lambda leaf: leaf[index], batches)

    def train_once(
        run: Run,
        t: Array,
        lane: PyTree,
        batches: PyTree,
        order: Array,
        key: Array,
        *,
        within: tuple[Array, ...] = (),
    ) -> Run:
        def one_step(run: Run, lane: PyTree, batch: PyTree, key: Array) -> Run:
            of_seed = jax.random.wrap_key_data(key, impl=form.key_impl)
            carry, metrics = form.step(
                run.carry, lane, batch, jax.random.fold_in(of_seed, t) if form.draws else of_seed
            )
            return record(t, run, carry, metrics, stop_factor, freeze=layout.freeze, within=within)

        batch = batch_of(t, batches, order)
        return spread(one_step, (0, None, 0, 0), (0, 0, None, None))(run, lane, batch, key)

    def train(run: Run, begin: Array, end: Array, *feed: Any, within: tuple[Array, ...] = ()) -> Run:
        return jax.lax.while_loop(
            lambda state: (state[0] < end) & jnp.any(state[1].diverged_at < 0),
            lambda state: (state[0] + 1, train_once(state[1], state[0], *feed, within=within)),
            (begin, run),
        )[1]

    def train_alone(run: Run, carry: PyTree, begin: Array, end: Array, lane: PyTree, *feed: Any) -> Run:
        begun = jax.lax.cond(begin == 0, lambda: start(carry, lane), lambda: run)
        return train(begun, begin, end, lane, *feed)

    def train_lanes(reports: Run, carry: PyTree, count: Array, end: Array, lanes: PyTree, *feed: Any) -> Run:
        def next_lane(state: tuple[Array, Run]) -> tuple[Array, Run]:
            i, reports = state
            lane = entry(lanes, i)
            begun = start(carry, lane)._replace(history=reports.history)
            zero = jnp.zeros((), jnp.int32)
            ended = train(begun, zero, end, lane, *feed, within=(i,))
            return i + 1, Run(None, written(reports.track, ended.track, i), ended.history)

        return jax.lax.while_loop(
            lambda state: state[0] < count, next_lane, (jnp.zeros((), jnp.int32), reports)
        )[1]

    def measure(run: Run, eval_batch: PyTree) -> Metrics:
        def one_measure(run: Run, eval_batch: PyTree) -> Metrics:
            metrics = form.evaluate(run.carry, eval_batch) if form.evaluate else {}
            return {
                name: jnp.where(run.diverged_at < 0, value.astype(jnp.float32), jnp.nan)
                for name, value in metrics.items()
            }

        return spread(one_measure, (0, 0 if layout.per_seed else None), (0, None))(run, eval_batch)

    runs, all_of = PartitionSpec(None, layout.mesh and layout.mesh.axis_names), PartitionSpec()
    feed = (PartitionSpec(layout.mesh and layout.mesh.axis_names), all_of, all_of, all_of)

    def jit(function: Callable, specs: tuple, **options: Any) -> Callable:
        if layout.mesh is None:
            return jax.jit(function, **options)
        split = jax.shard_map(function, mesh=layout.mesh, in_specs=specs, out_specs=runs, check_vma=False)
        return jax.jit(split, **options)

    return Programs(
        start=jit(start, (all_of, feed[0])),
        train=jit(train, (runs, all_of, all_of, *feed), donate_argnums=0),
        train_alone=jax.jit(train_alone, donate_argnums=0),
        train_lanes=jax.jit(train_lanes, donate_argnums=0),
        train_once=jit(train_once, (runs, all_of, *feed), donate_argnums=0),
        measure=jit(measure, (runs, all_of)),
    )
