"""The engine: many training runs that differ in their hyperparameters, from one compiled program.

A *lane* is one run at one set of hyperparameters, repeated for every seed. All lanes of a seed start from the
same carry and see the same batches and random keys in the same order, so they are compared pairwise. The
placement decides whether the compiled program holds one lane or a `vmap` of many, on one device or on a mesh.

On a CPU lanes run one after the other, shared out over host threads: copies of a model in one `vmap` leave the
cache, while the compiled call releases Python's lock. There a step with convolutions is dispatched one at a
time, since XLA's CPU backend runs a convolution inside a loop many times slower.
"""

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from .. import checks
from ..types import Array, Metrics, PyTree, ScalarLike
from .batches import batch_orders, is_stacked, read_batches, root_bits, seed_keys
from .checkpoints import Store, digest, digest_of_program, kept_chunk
from .jobs import Feed, Work, call_ends, run_jobs, take
from .lanes import MOST_STEPS, Form, Layout, Programs, StepFn, inspect, programs
from .placement import Place, bytes_needed, choose, is_key
from .progress import Bar
from .results import SweepResult


def sweep(
    step: StepFn,
    carry: PyTree,
    lanes: PyTree,
    batches: PyTree | Iterable[PyTree],
    *,
    num_steps: int,
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
      num_steps: how many steps each lane takes, in [1, 2^24].
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
      lanes_at_once: how many lanes ride in one `vmap` on each device. "auto": on an accelerator as many as its
        memory holds, in equal chunks; on one CPU device one lane a core, on host threads; on several one each.
      mesh: the devices that lanes are split over, whatever its axes; all of them by default, on all hosts, and
        every host gets the whole result. A carry that arrives sharded keeps its sharding: its lanes then go one
        after the other.
      checkpoint: a directory. A sweep that was killed and is called again ends with the bits of an undisturbed
        one. Needs orbax (`optax-lr[checkpoints]`).
      progress: whether a bar shows steps, lanes alive and the best loss, where there is a terminal.

    Returns:
      A `SweepResult`.

    Raises:
      ValueError: an argument out of range, an empty leading axis, a step that changes the carry's structure,
        shapes or dtypes, a metric that is not a scalar, a step without `metrics["loss"]`, or a checkpoint of
        another sweep.

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
        mesh=mesh,
        stop_factor=stop_factor,
    )
    data = batches if per_seed else read_batches(batches, engine.num_steps, None)
    return engine.run(
        carry,
        lanes,
        data,
        seeds=seeds,
        key=key,
        carry_per_seed=carry_per_seed,
        per_seed=per_seed,
        stream=not (per_seed or is_stacked(batches)),
        eval_batch=eval_batch,
        return_carries=return_carries,
        checkpoint=checkpoint,
        progress=progress,
    )


class Engine:
    """The programs of a sweep, fed with as many sets of lanes as come: a refinement compiles nothing.

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
        mesh: Mesh | None = None,
        stop_factor: ScalarLike = 3.0,
    ):
        self.num_steps = checks.size("num_steps", num_steps, maximum=MOST_STEPS)
        self.eval_steps = _increasing_steps("eval_steps", eval_steps, self.num_steps)
        self._chunk = None if lanes_at_once == "auto" else checks.size("lanes_at_once", lanes_at_once)
        self._stop_factor = checks.concrete("stop_factor", stop_factor, above=0)
        self._mesh = mesh
        self._step, self._init, self._evaluate = step, init, evaluate if self.eval_steps else None
        self._forms: dict[Any, Form] = {}
        self._made: dict[tuple[Any, Layout], Programs] = {}

    def run(
        self,
        carry: PyTree,
        lanes: PyTree,
        batches: PyTree,
        *,
        num_steps: int | None = None,
        seeds: int = 1,
        first_seed: int = 0,
        key: Array | None = None,
        carry_per_seed: bool = False,
        per_seed: bool = False,
        stream: bool = False,
        eval_batch: PyTree = None,
        return_carries: bool = False,
        checkpoint: str | os.PathLike | None = None,
        progress: bool = True,
        description: str = "sweep",
    ) -> SweepResult:
        """Train the lanes; see `sweep`.

        `num_steps` may be less than the engine's: a shorter run of the same program. `first_seed` numbers the first
        of the seeds: those of two calls differ. `stream`: batches stay on the host and are sent when needed.
        """
        steps = self.num_steps if num_steps is None else num_steps
        num_lanes, num_seeds = checks.leading_axis("lanes", lanes), checks.size("seeds", seeds)
        bits, key_impl = root_bits(key)
        one_seed = take(batches, 0) if per_seed else batches
        last_seed, num_batches = first_seed + num_seeds, checks.leading_axis("batches", one_seed)
        feed = Feed(
            carry=carry,
            lanes=jax.tree.map(np.asarray, lanes),
            batches=batches,
            eval_batch=eval_batch,
            orders=batch_orders(num_batches, self.num_steps, last_seed, bits)[first_seed:],
            keys=seed_keys(last_seed, bits)[first_seed:],
        )
        start = take(carry, 0) if carry_per_seed else carry
        which, form = self._form(
            (
                start,
                take(feed.lanes, 0),
                take(one_seed, 0),
                take(eval_batch, 0) if per_seed else eval_batch,
            ),
            key_impl,
        )

        def bytes_of(width: int) -> int:
            train, arguments = self.batched_program(
                start, feed.lanes, batches, width=width, seeds=num_seeds, per_seed=per_seed
            )
            return bytes_needed(train.lower(*arguments))

        place = choose(
            start,
            num_lanes=num_lanes,
            num_seeds=num_seeds,
            chunk=self._chunk or kept_chunk(checkpoint),
            mesh=self._mesh,
            per_seed=per_seed,
            convolves=form.convolves,
            freeze=return_carries,
            bytes_of=bytes_of,
        )
        if carry_per_seed and not place.layout.batched and place.devices == 1:
            feed = feed._replace(carry=jax.tree.map(_on_host, carry))
        elif place.alone:
            feed = feed._replace(carry=jax.device_put(carry))
        if not carry_per_seed and place.layout.batched:
            feed = feed._replace(
                carry=jax.tree.map(lambda x: jnp.broadcast_to(x, (num_seeds, *x.shape)), carry)
            )
        store = Store(
            len(place.jobs(num_seeds, num_lanes)),
            place.shape(num_seeds),
            form.metrics,
            form.evals,
            num_steps=steps,
            history_steps=self.num_steps,
            num_evals=len(self.eval_steps),
            keep_carries=return_carries,
            directory=checkpoint,
            problem=None
            if checkpoint is None
            else self._identity(form, carry, feed, place, steps, return_carries),
        )
        run_jobs(
            Work(
                jobs=place.jobs(num_seeds, num_lanes),
                place=place,
                made=self._programs(which, place.layout),
                form=form,
                feed=feed,
                data=None if stream and place.layout.batched else place.put(jax.device_put(batches)),
                eval_data=place.put(jax.device_put(eval_batch)),
                carry_per_seed=carry_per_seed or place.layout.batched,
                num_steps=steps,
                history_steps=self.num_steps,
                eval_steps=self.eval_steps if self._evaluate else [],
                at_once=place.alone
                and not (self._evaluate or return_carries or checkpoint)
                and call_ends(steps, []) == [steps],
                store=store,
                bar=Bar(description, place, store, num_seeds * num_lanes, steps, progress),
                spares=[],
            )
        )
        store.save()

        def join(tree: PyTree) -> PyTree:
            return jax.tree.map(lambda values: place.join(values, num_seeds, num_lanes), tree)

        carries = None
        if return_carries:
            leaves = [
                np.stack(each)
                for each in zip(*(store.carries[job] for job in range(len(store.done))), strict=True)
            ]
            carries = join(jax.tree.unflatten(jax.tree.structure(form.carry), leaves))
        evals = sum(step <= steps for step in self.eval_steps)
        stops = join(store.track)[..., -1].astype(np.int32)
        # After its last step a lane may hold what another left in the memory that they shared.
        over = (stops >= 0)[..., None] & (np.arange(steps) > stops[..., None])
        return SweepResult(
            metrics={
                name: np.where(over, np.nan, values[..., :steps])
                for name, values in join(store.history).items()
            },
            evals={name: values[..., :evals] for name, values in join(store.evals).items()},
            diverged_at=stops,
            carries=carries,
            placement=place.words,
            skipped_steps=store.skipped,
            redone_steps=store.redone,
        )

    def _form(self, examples: tuple[PyTree, ...], key_impl: str) -> tuple[Any, Form]:
        """What the step takes and returns, looked at once for arguments of the same shapes and dtypes."""
        shapes = tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(examples))
        which = (jax.tree.structure(examples), shapes, key_impl)
        if which not in self._forms:
            start, lane, batch, eval_batch = examples
            self._forms[which] = inspect(
                self._step, self._init, self._evaluate, start, lane, batch, eval_batch, key_impl
            )
        return which, self._forms[which]

    def _programs(self, which: Any, layout: Layout) -> Programs:
        """The programs of a form in a layout, made once."""
        if (which, layout) not in self._made:
            self._made[which, layout] = programs(
                self._forms[which],
                num_steps=self.num_steps,
                stop_factor=self._stop_factor,
                layout=layout,
            )
        return self._made[which, layout]

    def batched_program(
        self,
        start: PyTree,
        lanes: PyTree,
        batches: PyTree,
        *,
        width: int,
        seeds: int = 1,
        per_seed: bool = False,
    ) -> tuple[Any, tuple]:
        """The training program of `width` lanes in one `vmap`, and the shapes of its arguments, for `.lower`.

        `lanes` and `batches` are as in `run`; only shapes and dtypes are looked at.
        """

        def shaped(tree: PyTree, *lead: int, drop: int = 0) -> PyTree:
            return jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct((*lead, *leaf.shape[drop:]), leaf.dtype), tree
            )

        key = jax.random.key_data(jax.random.key(0))
        one_batch, lane_shape = shaped(batches, drop=2 if per_seed else 1), shaped(lanes, drop=1)
        form = inspect(
            self._step, self._init, None, shaped(start), lane_shape, one_batch, None, "threefry2x32"
        )
        made = programs(
            form,
            num_steps=self.num_steps,
            stop_factor=self._stop_factor,
            layout=Layout(batched=True, per_seed=per_seed),
        )
        lane, step = shaped(lanes, width, drop=1), jax.ShapeDtypeStruct((), jnp.int32)
        run = jax.eval_shape(made.start, shaped(start, seeds), lane)
        order = jax.ShapeDtypeStruct((seeds, self.num_steps), jnp.int32)
        return made.train, (run, step, step, lane, shaped(batches), order, shaped(key, seeds))

    def _identity(
        self, form: Form, carry: PyTree, feed: Feed, place: Place, num_steps: int, return_carries: bool
    ) -> dict[str, Any]:
        """What makes a checkpoint this sweep's: everything that its bits depend on."""
        return {
            "lanes": digest(feed.lanes),
            "start": digest(carry),
            "batches": digest(feed.batches),
            "eval_batch": digest(feed.eval_batch),
            "key": digest(feed.keys),
            "step": digest_of_program(str(form.program)) + digest(form.program.consts),
            "num_steps": num_steps,
            "eval_steps": self.eval_steps,
            "history_steps": self.num_steps,
            "stop_factor": self._stop_factor,
            "lanes_at_once": place.width // place.devices if place.layout.batched else None,
            "devices": place.devices,
            "return_carries": return_carries,
        }


def _on_host(leaf: Any) -> Any:
    """An array that is cheap to slice; random keys and what is sharded stay where they are."""
    return leaf if is_key(leaf) or len(getattr(leaf, "devices", list)()) > 1 else np.asarray(leaf)


def _increasing_steps(name: str, steps: Sequence[int], last: int) -> list[int]:
    counts = [int(step) for step in steps]
    if any(b <= a for a, b in itertools.pairwise([0, *counts])) or (counts and counts[-1] > last):
        raise ValueError(f"{name} must be increasing steps from 1 to {last}, got {counts}.")
    return counts
