"""A task: what the engine is told to run, as pure functions; and its form, which one trace of each tells.

Behind this door nobody knows a loss, an optimizer or a rate. The user's Python code runs here and nowhere else, in
the calling thread and its context; the compiled programs are made of the jaxprs.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ..types import Array, Metrics, PyTree
from .leaves import Leaves
from .traces import Traced, Traces, equations, mesh_named_by, reads
from .unchanged import reached, sources, unchanged

StepFn = Callable[[PyTree, PyTree, PyTree, Array], tuple[PyTree, Metrics]]


class Task(NamedTuple):
    """What a search trains; equal tasks share their programs.

    Attributes:
      step: `step(carry, lane, batch, key) -> (carry, metrics)`, with `metrics["loss"]` before the update.
      begin: `begin(start, lane, seed) -> carry`; None where the start is the carry.
      evaluate: `evaluate(carry, eval_batch) -> metrics`, or None.
      still: `still(before, after) -> carry`, what a step leaves behind where nothing is trained, of parts of the
        carry before it and of that after it; None where nobody asks what no training would give.
      functions: the user's own functions; programs are kept for as long as the first of them lives.
      static: what else tells two tasks of the same functions apart.
    """

    step: StepFn
    begin: Callable[[PyTree, PyTree, Any], PyTree] | None = None
    evaluate: Callable[[PyTree, PyTree], Metrics] | None = None
    still: Callable[[PyTree, PyTree], PyTree] | None = None
    functions: tuple[Callable | None, ...] = ()
    static: Hashable = None


class Form(NamedTuple):
    """What a task takes and returns.

    Attributes:
      start, lane, batch, eval_batch: the trees that its functions take.
      carry: what a step takes and returns.
      moving: for each leaf of the carry, whether it is a lane's own. The others are returned by every step as they
        came and depend on no lane: all lanes share them.
      sources: for each leaf of the carry, the leaf of the start that it begins as, or None.
      goes_on: for each leaf of the carry, whether a step without training moves it on, such as a model state.
      metrics, evals: the names of what is reported.
      convolves: whether there is a convolution in the step.
      draws: whether the step reads its random key.
      mesh: the user's mesh that the search runs on: arrays lie there, or a function names it. Else None.
    """

    start: Leaves
    lane: Leaves
    batch: Leaves
    eval_batch: Leaves
    carry: Leaves
    moving: tuple[bool, ...]
    sources: tuple[int | None, ...]
    goes_on: tuple[bool, ...]
    metrics: tuple[str, ...]
    evals: tuple[str, ...]
    convolves: bool
    draws: bool
    mesh: Mesh | None

    def merged(self, moving: Sequence[Any], fixed: Sequence[Any]) -> list[Any]:
        """All leaves of a carry, from those of a lane and those that lanes share."""
        own, shared = iter(moving), iter(fixed)
        return [next(own) if moves else next(shared) for moves in self.moving]

    def split(self, carry: Sequence[Any], *, moves: bool) -> list[Any]:
        """The leaves of a carry that are a lane's own, or those that are shared."""
        return [leaf for leaf, own in zip(carry, self.moving, strict=True) if own == moves]

    @property
    def repeats(self) -> bool:
        """Whether a batch gives the same, whenever it comes and on whichever seed, where nothing is trained."""
        return not self.draws and not any(
            on and own for on, own in zip(self.goes_on, self.moving, strict=True)
        )

    @property
    def own(self) -> Leaves:
        """The leaves that are a lane's own, as a list."""
        some = self.split(self.carry.shapes, moves=True)
        return Leaves(jax.tree.structure(some), tuple(some))


def look_at(
    task: Task, start: PyTree, lane: PyTree, batch: PyTree, eval_batch: PyTree, key_impl: str
) -> tuple[Form, Traces]:
    """Trace all functions of a task, each once; only shapes and dtypes of its arguments are looked at.

    Raises:
      ValueError: a step that changes the carry's structure, shapes or dtypes, a metric that is not a scalar, or a
        step without `metrics["loss"]`.
    """
    starts, lanes, batches, evaluated = (Leaves.of(tree) for tree in (start, lane, batch, eval_batch))
    key = Leaves.of(jax.eval_shape(lambda: jax.random.key(0, impl=key_impl)))

    def begun(start: PyTree, lane: PyTree, seed: Any) -> PyTree:
        return _strong(task.begin(start, lane, seed) if task.begin else start)

    def stepped(carry: PyTree, lane: PyTree, batch: PyTree, key: Array) -> tuple[PyTree, Metrics]:
        moved, metrics = task.step(carry, lane, batch, key)
        after = _strong(moved)
        if "loss" not in metrics:
            raise ValueError(f'step must return metrics["loss"], got metrics {sorted(metrics)}.')
        return after, _as_floats(metrics)

    begin = Traced.of(begun, starts, lanes, Leaves.of(np.int32(0)))
    carry, measure = begin.out, task.evaluate
    step = Traced.of(stepped, carry, lanes, batches, key)
    after, metrics = step.out.example()
    _refuse_another_carry(carry, Leaves.of(after))
    evaluate = measure and Traced.of(lambda *given: _as_floats(measure(*given)), carry, evaluated)
    traces = Traces(begin, step, evaluate)
    jaxpr, count = step.closed.jaxpr, len(starts.shapes)
    of_lane = reached(begin.closed, range(count, count + len(lanes.shapes) + 1))
    kept = unchanged(step.closed, len(carry.shapes))
    return Form(
        start=starts,
        lane=lanes,
        batch=batches,
        eval_batch=evaluated,
        carry=carry,
        moving=tuple(own or not same for own, same in zip(of_lane, kept, strict=True)),
        sources=tuple(at if at is not None and at < count else None for at in sources(begin.closed)),
        goes_on=_goes_on(task, carry),
        metrics=tuple(metrics),
        evals=tuple(evaluate.out.example()) if evaluate else (),
        convolves=any(each.primitive.name == "conv_general_dilated" for each in equations(jaxpr)),
        draws=reads(jaxpr, jaxpr.invars[-1]),
        mesh=mesh_named_by(traces),
    ), traces


def _goes_on(task: Task, carry: Leaves) -> tuple[bool, ...]:
    count = len(carry.shapes)
    if task.still is None:
        return (True,) * count
    before, after = (carry.tree([after] * count) for after in (False, True))
    return tuple(jax.tree.leaves(task.still(before, after)))


def _strong(tree: PyTree) -> PyTree:
    """A tree without weak types: they would change in a loop."""
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, jnp.asarray(leaf).dtype), tree)


def _as_floats(metrics: Metrics) -> dict[str, Array]:
    """Metrics in float32, in the order of their names."""
    for metric, value in metrics.items():
        if np.shape(value):
            raise ValueError(f"metric {metric!r} must be a scalar, got an array of shape {np.shape(value)}.")
    return {metric: jnp.asarray(metrics[metric]).astype(jnp.float32) for metric in sorted(metrics)}


def _refuse_another_carry(given: Leaves, returned: Leaves) -> None:
    if str(given.structure) != str(returned.structure):
        raise ValueError(
            f"step must return a carry of structure {given.structure}, got {returned.structure}."
        )
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(given.example())]
    for path, old, new in zip(paths, given.shapes, returned.shapes, strict=True):
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise ValueError(
                f"step must keep shapes and dtypes of its carry, got {new.dtype}{list(new.shape)} for "
                f"{old.dtype}{list(old.shape)} at carry{jax.tree_util.keystr(path)}."
            )
