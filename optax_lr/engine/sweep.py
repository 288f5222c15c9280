"""`sweep`: any training step at many hyperparameters; the engine's public function."""

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from .. import checks
from ..types import Array, Metrics, PyTree, ScalarLike
from .batches import Data, host_arrays, is_stacked, read_batches, root_bits
from .checkpoints import digest
from .engine import Engine
from .lengths import Epochs, steps_of
from .opening import Opening
from .results import SweepResult
from .runs import Plan, product
from .session import Session
from .stops import MOST_STEPS
from .task import StepFn, Task


def sweep(
    step: StepFn,
    carry: PyTree,
    lanes: PyTree,
    batches: PyTree | Iterable[PyTree],
    *,
    num_steps: int | Epochs,
    seeds: int = 1,
    key: Array | None = None,
    carry_per_seed: bool = False,
    per_seed: bool = False,
    init: Callable[[PyTree, PyTree], PyTree] | None = None,
    evaluate: Callable[[PyTree, PyTree], Metrics] | None = None,
    eval_batch: PyTree = None,
    eval_steps: Sequence[int] = (),
    return_carries: bool = False,
    lanes_at_once: int | Literal["auto"] = "auto",
    mesh: Mesh | None = None,
    stop_factor: ScalarLike = 3.0,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = True,
) -> SweepResult:
    """Train many lanes of hyperparameters from one start, and return all that they reported.

    A lane stops at the first step whose loss is not finite, or when average - best > stop_factor * max(|first|,
    |best|), where `average` is the debiased exponential average of the losses (decay 0.9), `best` its lowest
    value and `first` the first loss. Its carry is frozen as it was before that step's update, later metrics are
    NaN, and its remaining steps cost nothing. No lane changes another.

    Args:
      step: the training step, `step(carry, lane, batch, key) -> (carry, metrics)`, pure; `metrics["loss"]` and
        all other metrics are scalars, taken before the update.
      carry: the start: parameters, optimizer state, or any pytree of arrays.
      lanes: hyperparameters, a pytree of arrays with leading axis [lanes].
      batches: a pytree of arrays with leading axis [batches], or a list or other iterable of batches, of which
        up to `num_steps` are read once and kept on the host. They are gone through again where they run out.
        Seed 0 keeps their order; every other seed has its own.
      num_steps: how many steps each lane takes, in [1, 2^24], or `Epochs`.
      seeds: how many runs each lane has, at least 1.
      key: where the orders and the step's keys come from; `jax.random.key(0)` by default. Step t of seed s gets
        `fold_in(k, t)`, where the bits of k are `SeedSequence(bits of key, spawn_key=(s,)).generate_state(...)` of
        NumPy.
      carry_per_seed: whether `carry` has a leading axis [seeds].
      per_seed: whether `batches` and `eval_batch` have a leading axis [seeds], before that of the batches (the
        folds of a cross-validation).
      init: `init(carry, lane) -> carry`, what a lane makes of its start (an optimizer state that depends on
        the rate, say).
      evaluate: `evaluate(carry, eval_batch) -> metrics`, called after each count of steps in `eval_steps`.
      eval_batch: handed to `evaluate`.
      eval_steps: after how many steps `evaluate` is called, increasing, in [1, num_steps].
      return_carries: whether the final carries are returned, with leading axes [seeds, lanes].
      stop_factor: how far the average may rise; above 0.
      lanes_at_once: how many lanes ride in one `vmap` on each device, or "auto"; see `Engine`.
      mesh: the devices that lanes are split over, all of them by default; a carry that arrives sharded keeps its
        sharding, as parameters do, see `Engine`.
      checkpoint: a directory, see `Engine`. A sweep that was killed and is called again ends with the bits of an
        undisturbed one.
      progress: whether a bar shows steps, lanes alive and the best loss, where there is a terminal.

    Returns:
      A `SweepResult`.

    Raises:
      ValueError: an argument out of range, an empty leading axis, a step that changes the carry's structure,
        shapes or dtypes, a metric that is not a scalar, a step without `metrics["loss"]`, or a checkpoint of
        another sweep.

    Non-finite values: a lane whose loss is not finite is stopped, marked and frozen; other metrics are recorded
    as they come.

    >>> import jax.numpy as jnp
    >>> def step(x, rate, batch, key):
    ...     return x - rate * 2 * (x - batch), {"loss": (x - batch) ** 2}
    >>> found = sweep(step, jnp.float32(1), jnp.array([0.1, 0.5, 3.0]), jnp.zeros(1), num_steps=4)
    >>> print(found.metrics["loss"][0].round(2))
    [[ 1.    0.64  0.41  0.26]
     [ 1.    0.    0.    0.  ]
     [ 1.   25.     nan   nan]]
    >>> found.diverged_at.tolist()
    [[-1, -1, 1]]
    """
    checks.not_traced("a search", carry, lanes, eval_batch, key)
    of_one = jax.tree.map(lambda leaf: leaf[0], batches) if per_seed else batches
    length = steps_of("num_steps", num_steps, of_one, maximum=MOST_STEPS)
    evals = _increasing(eval_steps, length)
    num_lanes, num_seeds = checks.leading_axis("lanes", lanes), checks.size("seeds", seeds, unit="seeds")
    factor = checks.concrete("stop_factor", stop_factor, above=0)
    leaves, structure = jax.tree.flatten(host_arrays("lanes", lanes))
    # Names that JAX sorts in the order of the leaves.
    named = {f"{at:04d}": leaf for at, leaf in enumerate(leaves)}
    task = _task(step, init, evaluate if evals else None, structure, list(named))
    data = _data(carry, batches, length, key, carry_per_seed, per_seed, eval_batch)
    opening = Opening(
        lane={name: leaf[0] for name, leaf in named.items()},
        lanes=num_lanes,
        seeds=num_seeds,
        longest=length,
        stop_factor=factor,
        keep="all" if return_carries else None,
        settings={
            "lanes": digest(lanes),
            "num_steps": length,
            "eval_steps": evals,
            "return_carries": return_carries,
        },
    )
    engine = Engine(lanes_at_once=lanes_at_once, mesh=mesh, checkpoint=checkpoint, progress=progress)
    rows, of_seeds = product(named, range(num_seeds))
    plan = Plan(rows, of_seeds, np.full(len(of_seeds), length, np.int32), tuple(evals) if evaluate else ())
    with engine.open(task, data, opening) as session:
        session.run(plan, "sweep") if not len(session.runs) else session.finish("sweep")
        if session.stopped:
            raise KeyboardInterrupt
        return _result(session, num_seeds, num_lanes, return_carries)


def _task(
    step: StepFn, init: Callable | None, evaluate: Callable | None, structure: Any, names: Sequence[str]
) -> Task:
    """The user's functions as a task whose lanes are named numbers."""

    def lane_of(lane: dict[str, Any]) -> PyTree:
        return jax.tree.unflatten(structure, [lane[name] for name in names])

    return Task(
        step=lambda carry, lane, batch, key: step(carry, lane_of(lane), batch, key),
        begin=(lambda carry, lane, seed: init(carry, lane_of(lane))) if init else None,
        evaluate=evaluate,
        functions=(step, init, evaluate),
        static=structure,
    )


def _data(
    carry: PyTree,
    batches: PyTree | Iterable[PyTree],
    num_steps: int,
    key: Array | None,
    carry_per_seed: bool,
    per_seed: bool,
    eval_batch: PyTree,
) -> Data:
    bits, impl = root_bits(key)
    if per_seed:
        one, many = jax.tree.map(lambda leaf: leaf[0], batches), checks.leading_axis("batches", batches)
        count = checks.leading_axis("batches", one)
        folds = np.arange(many * count, dtype=np.int32).reshape(many, count)
        stacked: PyTree = jax.tree.map(
            lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), host_arrays("batches", batches)
        )
    else:
        folds, (stacked, count) = None, read_batches(batches, num_steps)
    return Data(
        start=carry,
        batches=stacked,
        num_batches=count,
        bits=bits,
        key_impl=impl,
        start_per_seed=carry_per_seed,
        folds=folds,
        eval_batch=host_arrays("eval_batch", eval_batch),
        streamed=not (per_seed or is_stacked(batches)),
    )


def _result(session: Session, seeds: int, lanes: int, return_carries: bool) -> SweepResult:
    runs = session.runs
    carries = None
    if return_carries:
        each = [session.carry(row) for row in range(len(runs))]
        carries = jax.tree.map(
            lambda *leaves: np.stack(leaves).reshape(seeds, lanes, *leaves[0].shape), *each
        )
    return SweepResult(
        metrics={name: values.reshape(seeds, lanes, -1) for name, values in runs.metrics.items()},
        evals={name: values.reshape(seeds, lanes, -1) for name, values in runs.evals.items()},
        diverged_at=runs.columns["stopped_at"].reshape(seeds, lanes).astype(np.int32),
        carries=carries,
        placement=session.words,
        skipped_steps=session.skipped,
        redone_steps=session.redone,
    )


def _increasing(eval_steps: Sequence[int], last: int) -> list[int]:
    counts = [int(step) for step in eval_steps]
    if any(b <= a for a, b in itertools.pairwise([0, *counts])) or (counts and counts[-1] > last):
        raise ValueError(f"eval_steps must be increasing steps from 1 to {last}, got {counts}.")
    return counts
