"""Lanes: a training step to the compiled programs that start, train and measure many runs of it.

A program holds one lane, or a `vmap` over seeds and lanes of which a mesh may give each device a share. Devices
never wait for each other: their shares are loops of their own (`shard_map`), and nothing crosses between them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, ScalarLike

from .types import Metrics, PyTree

StepFn = Callable[[PyTree, PyTree, PyTree, Array], tuple[PyTree, Metrics]]

AVERAGE_DECAY = 0.9


class Run(NamedTuple):
    """One lane of one seed in the middle of its run; in a batch, every leaf has leading axes [seeds, lanes]."""

    carry: PyTree
    first: Array
    average: Array
    best: Array
    diverged_at: Array
    history: dict[str, Array]


class Layout(NamedTuple):
    """How a program holds lanes: one (`batched` False), or [seeds, lanes], split over a mesh where there is one.

    `per_seed` says that batches and validation batches have a leading axis [seeds].
    """

    batched: bool
    mesh: Mesh | None = None
    per_seed: bool = False


class Programs(NamedTuple):
    """Jitted: `start(carry, lane)`, `train(run, begin, end, *feed)`, `train_once(run, t, *feed)`,
    `measure(run, eval_batch)`, where `feed` is (lane, batches, order, key)."""

    start: Any
    train: Any
    train_once: Any
    measure: Any


class Form(NamedTuple):
    """What a step takes and returns: names of metrics, the carry's structure, the program and its constants."""

    metrics: tuple[str, ...]
    evals: tuple[str, ...]
    carry: Any
    program: str
    consts: list[Any]
    key_impl: str


def fresh(carry: PyTree, names: Sequence[str], num_steps: int) -> Run:
    """A run before its first step. Weak types are dropped: they would change in the loop."""
    return Run(
        carry=jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, jnp.asarray(leaf).dtype), carry),
        first=jnp.zeros((), jnp.float32),
        average=jnp.zeros((), jnp.float32),
        best=jnp.full((), jnp.inf, jnp.float32),
        diverged_at=jnp.full((), -1, jnp.int32),
        history={name: jnp.full(num_steps, jnp.nan, jnp.float32) for name in names},
    )


def record(t: Array, run: Run, carry: PyTree, metrics: Metrics, stop_factor: ScalarLike) -> Run:
    """The run after step `t`, which led to `carry`: taken, or frozen where the lane diverges or has diverged."""
    loss = metrics["loss"].astype(jnp.float32)
    first = jnp.where(t == 0, loss, run.first)
    average = AVERAGE_DECAY * run.average + (1 - AVERAGE_DECAY) * loss
    smooth = average / (1 - AVERAGE_DECAY ** (t + 1).astype(jnp.float32))
    best = jnp.minimum(run.best, smooth)
    rise = smooth - best > stop_factor * jnp.maximum(jnp.abs(first), jnp.abs(best))
    live = run.diverged_at < 0
    goes_on = live & jnp.isfinite(loss) & ~rise
    return Run(
        carry=jax.tree.map(lambda new, old: jnp.where(goes_on, new, old), carry, run.carry),
        first=first,
        average=average,
        best=best,
        diverged_at=jnp.where(live & ~goes_on, t, run.diverged_at),
        history={
            name: values.at[t].set(jnp.where(live, metrics[name].astype(jnp.float32), jnp.nan))
            for name, values in run.history.items()
        },
    )


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

    def prepared(carry: PyTree, lane: PyTree) -> PyTree:
        return fresh(init(carry, lane) if init else carry, (), 1).carry

    carry = jax.eval_shape(prepared, start, lane)
    key = jax.eval_shape(lambda: jax.random.key(0, impl=key_impl))
    jaxpr, (after, metrics) = jax.make_jaxpr(step, return_shape=True)(carry, lane, batch, key)
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
    evals = {}
    if evaluate:
        evals = jax.eval_shape(evaluate, carry, eval_batch)
    return Form(
        metrics=tuple(sorted(metrics)),
        evals=tuple(sorted(evals)),
        carry=jax.tree.structure(carry),
        program=str(jaxpr),
        consts=jaxpr.consts,
        key_impl=key_impl,
    )


def programs(
    step: StepFn,
    init: Callable[[PyTree, PyTree], PyTree] | None,
    evaluate: Callable[[PyTree, PyTree], Metrics] | None,
    *,
    names: Sequence[str],
    num_steps: int,
    stop_factor: ScalarLike,
    key_impl: str,
    layout: Layout,
) -> Programs:
    """Build the programs of a training step; nothing is compiled before they are called."""

    def spread(function: Callable, over_seeds: tuple, over_lanes: tuple) -> Callable:
        return jax.vmap(jax.vmap(function, over_lanes), over_seeds) if layout.batched else function

    def start(carry: PyTree, lane: PyTree) -> Run:
        def one_start(carry: PyTree, lane: PyTree) -> Run:
            return fresh(init(carry, lane) if init else carry, names, num_steps)

        return spread(one_start, (0, None), (None, 0))(carry, lane)

    def train_once(run: Run, t: Array, lane: PyTree, batches: PyTree, order: Array, key: Array) -> Run:
        def one_step(run: Run, lane: PyTree, batch: PyTree, key: Array) -> Run:
            here = jax.random.fold_in(jax.random.wrap_key_data(key, impl=key_impl), t)
            carry, metrics = step(run.carry, lane, batch, here)
            return record(t, run, carry, metrics, stop_factor)

        # One gather for all lanes of a seed: no batch is copied per lane.
        own = layout.batched and layout.per_seed
        index = (jnp.arange(len(order)), order[:, t]) if own else order[..., t]
        batch = jax.tree.map(lambda leaf: leaf[index], batches)
        return spread(one_step, (0, None, 0, 0), (0, 0, None, None))(run, lane, batch, key)

    def train(run: Run, begin: Array, end: Array, *feed: Any) -> Run:
        return jax.lax.while_loop(
            lambda state: (state[0] < end) & jnp.any(state[1].diverged_at < 0),
            lambda state: (state[0] + 1, train_once(state[1], state[0], *feed)),
            (begin, run),
        )[1]

    def measure(run: Run, eval_batch: PyTree) -> Metrics:
        def one_measure(run: Run, eval_batch: PyTree) -> Metrics:
            metrics = evaluate(run.carry, eval_batch) if evaluate else {}
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
        train_once=jit(train_once, (runs, all_of, *feed), donate_argnums=0),
        measure=jit(measure, (runs, all_of)),
    )
