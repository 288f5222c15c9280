"""The engine: many training runs that differ in their hyperparameters, from one compiled program.

A *lane* is one run at one set of hyperparameters, repeated for every seed. All lanes of a seed start from the
same carry and see the same batches and random keys in the same order, so they are compared pairwise. The
placement decides whether the compiled program holds one lane or a `vmap` of many.

On a CPU lanes run one after the other, shared out over host threads: copies of a model in one `vmap` leave the
cache, while the compiled call releases Python's lock. There a step with convolutions is dispatched one at a
time, since XLA's CPU backend runs a convolution inside a loop many times slower.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ScalarLike

from . import checks
from .batches import batch_orders, leading_axis
from .results import SweepResult
from .types import Metrics, PyTree

StepFn = Callable[[PyTree, PyTree, PyTree, Array], tuple[PyTree, Metrics]]

AVERAGE_DECAY = 0.9
# A run is cut into calls of the program of this many steps, or of a twentieth of it, so that progress shows.
STEPS_PER_CALL = 100


def sweep(
    step: StepFn,
    carry: PyTree,
    lanes: PyTree,
    batches: PyTree,
    *,
    num_steps: int,
    seeds: int = 1,
    key: Array | None = None,
    carry_per_seed: bool = False,
    init: Callable[[PyTree, PyTree], PyTree] | None = None,
    evaluate: Callable[[PyTree, PyTree], Metrics] | None = None,
    eval_batch: PyTree = None,
    eval_steps: Sequence[int] = (),
    return_carries: bool = False,
    lanes_at_once: int | Literal["auto"] = "auto",
    stop_factor: ScalarLike = 3.0,
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
      batches: a pytree of arrays with leading axis [batches]. They are gone through again where they run out.
        Seed 0 keeps their order; every other seed has its own.
      num_steps: how many steps each lane takes, at least 1.
      seeds: how many runs each lane has, at least 1.
      key: where the orders and the step's keys come from; `jax.random.key(0)` by default.
      carry_per_seed: whether `carry` has a leading axis [seeds].
      init: `init(carry, lane) -> carry`, what a lane makes of its start (an optimizer state that depends on
        the rate, say).
      evaluate: `evaluate(carry, eval_batch) -> metrics`, called after each count of steps in `eval_steps`.
      eval_batch: handed to `evaluate`.
      eval_steps: after how many steps `evaluate` is called, increasing, in [1, num_steps].
      return_carries: whether the final carries are returned, with leading axes [seeds, lanes].
      stop_factor: how far the average may rise; above 0.
      lanes_at_once: how many lanes ride in one `vmap`. "auto" is one lane a core, on host threads, on a CPU, and
        all lanes at once on an accelerator.
      progress: whether a bar shows steps, lanes alive and the best loss, where there is a terminal.

    Returns:
      A `SweepResult`.

    Raises:
      ValueError: an argument out of range, an empty leading axis, a step that changes the carry's structure,
        shapes or dtypes, a metric that is not a scalar, or a step without `metrics["loss"]`.

    Non-finite values: a lane whose loss is not finite is stopped, marked and frozen; other metrics are recorded
    as they come.

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
    engine = Engine(
        step,
        num_steps=num_steps,
        init=init,
        evaluate=evaluate,
        eval_steps=eval_steps,
        lanes_at_once=lanes_at_once,
        stop_factor=stop_factor,
    )
    return engine.run(
        carry,
        lanes,
        batches,
        seeds=seeds,
        key=key,
        carry_per_seed=carry_per_seed,
        eval_batch=eval_batch,
        return_carries=return_carries,
        progress=progress,
    )


class _Run(NamedTuple):
    """One lane of one seed in the middle of its run; batched, every leaf has leading axes [seeds, lanes]."""

    carry: PyTree
    first: Array
    average: Array
    best: Array
    diverged_at: Array
    history: dict[str, Array]


def _fresh(carry: PyTree, names: Sequence[str], num_steps: int) -> _Run:
    """A run before its first step. Weak types are dropped: they would change in the loop."""
    return _Run(
        carry=jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, jnp.asarray(leaf).dtype), carry),
        first=jnp.zeros((), jnp.float32),
        average=jnp.zeros((), jnp.float32),
        best=jnp.full((), jnp.inf, jnp.float32),
        diverged_at=jnp.full((), -1, jnp.int32),
        history={name: jnp.full(num_steps, jnp.nan, jnp.float32) for name in names},
    )


def _record(t: Array, run: _Run, carry: PyTree, metrics: Metrics, stop_factor: ScalarLike) -> _Run:
    """The run after step `t`, which led to `carry`: taken, or frozen where the lane diverges or has diverged."""
    loss = metrics["loss"].astype(jnp.float32)
    first = jnp.where(t == 0, loss, run.first)
    average = AVERAGE_DECAY * run.average + (1 - AVERAGE_DECAY) * loss
    smooth = average / (1 - AVERAGE_DECAY ** (t + 1).astype(jnp.float32))
    best = jnp.minimum(run.best, smooth)
    rise = smooth - best > stop_factor * jnp.maximum(jnp.abs(first), jnp.abs(best))
    live = run.diverged_at < 0
    goes_on = live & jnp.isfinite(loss) & ~rise
    return _Run(
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


class Engine:
    """The compiled programs of a sweep, fed with as many sets of lanes as come: a refinement compiles nothing.

    Arguments are those of `sweep`: here what the programs depend on, in `run` what they are fed.
    """

    def __init__(
        self,
        step: StepFn,
        *,
        num_steps: int,
        init: Callable[[PyTree, PyTree], PyTree] | None = None,
        evaluate: Callable[[PyTree, PyTree], Metrics] | None = None,
        eval_steps: Sequence[int] = (),
        lanes_at_once: int | Literal["auto"] = "auto",
        stop_factor: ScalarLike = 3.0,
    ):
        self.num_steps = checks.size("num_steps", num_steps)
        self.eval_steps = _increasing_steps("eval_steps", eval_steps, self.num_steps)
        self.chunk = None if lanes_at_once == "auto" else checks.size("lanes_at_once", lanes_at_once)
        self.on_threads = self.chunk is None and jax.default_backend() == "cpu"
        factor = checks.number("stop_factor", stop_factor, above=0)

        def spread(function: Callable, over_seeds: tuple, over_lanes: tuple) -> Callable:
            return function if self.on_threads else jax.vmap(jax.vmap(function, over_lanes), over_seeds)

        def start(carry: PyTree, lane: PyTree, names: tuple[str, ...]) -> _Run:
            def one_start(carry: PyTree, lane: PyTree) -> _Run:
                return _fresh(init(carry, lane) if init else carry, names, self.num_steps)

            return spread(one_start, (0, None), (None, 0))(carry, lane)

        def train_once(run: _Run, t: Array, lane: PyTree, batches: PyTree, order: Array, key: Array) -> _Run:
            def one_step(run: _Run, lane: PyTree, batch: PyTree, key: Array) -> _Run:
                carry, metrics = step(run.carry, lane, batch, jax.random.fold_in(key, t))
                return _record(t, run, carry, metrics, factor)

            # One gather for all lanes of a seed: no batch is copied per lane.
            batch = jax.tree.map(lambda leaf: leaf[order[..., t]], batches)
            return spread(one_step, (0, None, 0, 0), (0, 0, None, None))(run, lane, batch, key)

        def train(run: _Run, begin: Array, end: Array, *feed: Any) -> _Run:
            return jax.lax.while_loop(
                lambda state: (state[0] < end) & jnp.any(state[1].diverged_at < 0),
                lambda state: (state[0] + 1, train_once(state[1], state[0], *feed)),
                (begin, run),
            )[1]

        def measure(run: _Run, eval_batch: PyTree) -> Metrics:
            def one_measure(run: _Run, eval_batch: PyTree) -> Metrics:
                metrics = evaluate(run.carry, eval_batch) if evaluate else {}
                return {name: jnp.where(run.diverged_at < 0, x, jnp.nan) for name, x in metrics.items()}

            return spread(one_measure, (0, None), (0, None))(run, eval_batch)

        self._step, self._init = step, init
        self._start = jax.jit(start, static_argnums=2)
        self._train = jax.jit(train, donate_argnums=0)
        self._train_once = jax.jit(train_once, donate_argnums=0)
        self._measure = jax.jit(measure)

    def run(
        self,
        carry: PyTree,
        lanes: PyTree,
        batches: PyTree,
        *,
        seeds: int = 1,
        key: Array | None = None,
        carry_per_seed: bool = False,
        eval_batch: PyTree = None,
        return_carries: bool = False,
        progress: bool = True,
        description: str = "sweep",
    ) -> SweepResult:
        """Train the lanes; see `sweep`."""
        lanes, batches, carry = jax.tree.map(jnp.asarray, (lanes, batches, carry))
        num_lanes, num_seeds = leading_axis("lanes", lanes), checks.size("seeds", seeds)
        if not carry_per_seed:
            carry = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num_seeds, *leaf.shape)), carry)
        root = jax.random.key(0) if key is None else key
        orders = batch_orders(leading_axis("batches", batches), self.num_steps, num_seeds, root)
        keys = jax.random.split(root, num_seeds)
        names, convolves = self._inspect(_take(carry, 0), _take(lanes, 0), _take(batches, 0), keys[0])
        advance = self._step_by_step if convolves and self.on_threads else self._train
        parts = self._parts(num_seeds, num_lanes)
        bar = _Bar(description, num_seeds * num_lanes, self.num_steps, progress)

        def job(part: tuple[Any, Any]) -> tuple[PyTree, PyTree]:
            of_seed, of_lane = part
            lane, measured, begin = _take(lanes, of_lane), [], 0
            run = self._start(_take(carry, of_seed), lane, names)
            for end in self._ends():
                run = advance(run, begin, end, lane, batches, orders[of_seed], keys[of_seed])
                if end in self.eval_steps:
                    measured.append(self._measure(run, eval_batch))
                bar.report(end - begin, run.best, run.diverged_at, last=end == self.num_steps)
                begin = end
            final = run.carry if return_carries else None
            return final, jax.device_get((run.history, run.diverged_at, measured))

        with bar, ThreadPoolExecutor(_cores() if self.on_threads else 1) as pool:
            done = list(pool.map(job, parts))
        carries, (metrics, diverged_at, measured) = self._gather(done, num_seeds, num_lanes)
        return SweepResult(
            metrics=metrics,
            evals={name: np.stack([at[name] for at in measured], axis=-1) for name in measured[0]}
            if measured
            else {},
            diverged_at=diverged_at,
            carries=carries,
            placement=self._placement(num_seeds, num_lanes, advance),
        )

    def _ends(self) -> list[int]:
        """After which steps the program is left: where something is evaluated, and where progress is shown."""
        stride = max(STEPS_PER_CALL, -(-self.num_steps // 20))
        return sorted({*range(stride, self.num_steps, stride), *self.eval_steps, self.num_steps})

    def _parts(self, num_seeds: int, num_lanes: int) -> list[tuple[Any, Any]]:
        """What each job trains, as indices of seeds and lanes. Chunks are equal: the last repeats a lane."""
        if self.on_threads:
            return [(seed, lane) for seed in range(num_seeds) for lane in range(num_lanes)]
        width = min(self.chunk or num_lanes, num_lanes)
        starts = range(0, num_lanes, width)
        return [(slice(None), np.minimum(np.arange(a, a + width), num_lanes - 1)) for a in starts]

    def _gather(self, done: list[PyTree], num_seeds: int, num_lanes: int) -> PyTree:
        """The results of all jobs, with leading axes [seeds, lanes]."""

        def join(*leaves: Any) -> Any:
            xp = np if isinstance(leaves[0], np.ndarray | np.generic) else jnp
            if self.on_threads:
                return xp.stack(leaves).reshape((num_seeds, num_lanes, *leaves[0].shape))
            return xp.concatenate(leaves, axis=1)[:, :num_lanes]

        return jax.tree.map(join, *done)

    def _placement(self, num_seeds: int, num_lanes: int, advance: Callable) -> str:
        if self.on_threads:
            way = "step by step" if advance == self._step_by_step else "one program a lane"
            return f"{num_lanes} lanes x {num_seeds} seeds on {_cores()} host threads, {way}"
        width = min(self.chunk or num_lanes, num_lanes)
        return f"{num_lanes} lanes x {num_seeds} seeds, {width} lanes at once on {jax.default_backend()}"

    def _step_by_step(self, run: _Run, begin: int, end: int, *feed: Any) -> _Run:
        """What `_train` does, with one dispatch a step."""
        for t in range(begin, end):
            if run.diverged_at >= 0:
                break
            run = self._train_once(run, t, *feed)
        return run

    def _inspect(
        self, carry: PyTree, lane: PyTree, batch: PyTree, key: Array
    ) -> tuple[tuple[str, ...], bool]:
        """The names of the metrics, and whether the step convolves; a step of the wrong form is refused."""
        start = jax.eval_shape(
            lambda *a: _fresh(self._init(*a) if self._init else a[0], (), 1), carry, lane
        ).carry
        jaxpr, (after, metrics) = jax.make_jaxpr(self._step, return_shape=True)(start, lane, batch, key)
        if "loss" not in metrics:
            raise ValueError(f'step must return metrics["loss"], got metrics {sorted(metrics)}.')
        for name, value in metrics.items():
            if value.shape:
                raise ValueError(f"metric {name!r} must be a scalar, got an array of shape {value.shape}.")
        given, returned = str(jax.tree.structure(start)), str(jax.tree.structure(after))
        if given != returned:
            raise ValueError(f"step must return a carry of structure {given}, got {returned}.")
        pairs = zip(jax.tree.leaves_with_path(start), jax.tree.leaves(after), strict=True)
        for (path, old), new in pairs:
            if (old.shape, old.dtype) != (new.shape, new.dtype):
                raise ValueError(
                    f"step must keep shapes and dtypes of its carry, got {new.dtype}{list(new.shape)} for "
                    f"{old.dtype}{list(old.shape)} at carry{jax.tree_util.keystr(path)}."
                )
        return tuple(sorted(metrics)), "conv_general_dilated" in str(jaxpr)


class _Bar:
    """Progress over all lanes, written to from every thread; leaving it early stops the jobs."""

    def __init__(self, description: str, num_runs: int, num_steps: int, progress: bool):
        from tqdm.auto import tqdm

        self._bar = tqdm(
            total=num_runs * num_steps, desc=description, unit="step", disable=None if progress else True
        )
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._alive = num_runs
        self._best = np.inf

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self._stopped.set()
        self._bar.close()

    def report(self, steps: int, best: Array, diverged_at: Array, *, last: bool) -> None:
        """Count `steps` of the runs that report, and at their last those that diverged."""
        if self._stopped.is_set():
            raise RuntimeError("The sweep was stopped.")
        lows, stops = np.asarray(best), np.asarray(diverged_at)
        with self._lock:
            self._best = min(self._best, lows.min())
            self._alive -= int((stops >= 0).sum()) if last else 0
            self._bar.set_postfix(alive=self._alive, best=f"{self._best:.4g}", refresh=False)
            self._bar.update(steps * lows.size)


def _take(tree: PyTree, index: Any) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _increasing_steps(name: str, steps: Sequence[int], last: int) -> list[int]:
    counts = [int(step) for step in steps]
    if any(b <= a for a, b in zip([0, *counts], counts, strict=False)) or (counts and counts[-1] > last):
        raise ValueError(f"{name} must be increasing steps from 1 to {last}, got {counts}.")
    return counts


def _cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
