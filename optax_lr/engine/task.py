"""A task: what the engine is told to run, as pure functions; and what was traced of it, once.

Behind this door nobody knows a loss, an optimizer or a rate. The user's Python code runs here and nowhere else, in
the calling thread and its context; the compiled programs are made of the jaxprs.
"""

import functools
import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from ..types import Array, Metrics, PyTree
from .layout import mesh_of_user
from .unchanged import reached, sources, unchanged

StepFn = Callable[[PyTree, PyTree, PyTree, Array], tuple[PyTree, Metrics]]
# Captured arrays of more numbers than this are arguments of the programs; smaller ones are constants in them.
LARGEST_CONSTANT = 1024


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


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of typed random keys."""
    return jax.dtypes.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key)


def key_bits(leaf: Any) -> Any:
    """The bits of a random key; any other leaf as it is."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def on_host(leaf: Any) -> np.ndarray:
    """An array as NumPy's, whole on every host; random keys as their bits."""
    bits = key_bits(leaf)
    if isinstance(bits, jax.Array) and not bits.is_fully_addressable:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(bits, tiled=True))
    return np.asarray(jax.device_get(bits))


class Leaves(NamedTuple):
    """The structure of a tree, and the shape, dtype and sharding of every leaf; programs see its leaves as a list.

    Typed random keys cross the boundary of a program as their bits, which every host and thread can hold.
    """

    structure: Any
    shapes: tuple[jax.ShapeDtypeStruct, ...]

    @classmethod
    def of(cls, tree: PyTree) -> "Leaves":
        """What there is to know of a tree of arrays before its numbers."""
        leaves, structure = jax.tree.flatten(tree)
        return cls(structure, tuple(_shape_of(leaf) for leaf in leaves))

    def example(self) -> PyTree:
        """The tree with a shape in place of each leaf."""
        return jax.tree.unflatten(self.structure, self.shapes)

    def bits(self) -> list[jax.ShapeDtypeStruct]:
        """The shapes of the leaves as programs take them."""
        return [jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf for leaf in self.shapes]

    def typed(self, flat: Sequence[Any]) -> list[Any]:
        """Leaves inside a program, random keys made of their bits."""
        return [
            jax.random.wrap_key_data(leaf, impl=_impl_of(like)) if is_key(like) else leaf
            for like, leaf in zip(self.shapes, flat, strict=True)
        ]

    def tree(self, flat: Sequence[Any]) -> PyTree:
        """The tree of some leaves."""
        return jax.tree.unflatten(self.structure, list(flat))


@functools.cache
def _impls() -> dict[str, str]:
    """The kinds of random keys by the names of their dtypes."""
    kinds = ("threefry2x32", "rbg", "unsafe_rbg")
    return {
        str(jax.eval_shape(functools.partial(jax.random.key, 0, impl=kind)).dtype): kind for kind in kinds
    }


def _impl_of(like: Any) -> str:
    """The kind of the random keys of a shape."""
    return _impls()[str(like.dtype)]


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    # What is traced under axes that are Explicit has its sharding in its type.
    spread = mesh.size > 1 if isinstance(mesh, Mesh) else mesh is not None and is_explicit(mesh)
    dtype = leaf.dtype if is_key(leaf) else jax.dtypes.canonicalize_dtype(jnp.result_type(leaf))
    return jax.ShapeDtypeStruct(np.shape(leaf), dtype, sharding=sharding if spread else None)


def is_explicit(mesh: Any) -> bool:
    """Whether a mesh has axes that are part of the types of arrays."""
    return AxisType.Explicit in mesh.axis_types


class Traced(NamedTuple):
    """A function that was traced once: a jaxpr from lists of leaves to a list of leaves.

    Attributes:
      closed: the jaxpr with its constants, of which the `large` ones are handed over by each program.
      large: the places of those constants.
      out: the structure of what it returns.
    """

    closed: Any
    large: tuple[int, ...]
    out: Leaves

    @classmethod
    def of(cls, function: Callable, *arguments: Leaves) -> "Traced":
        """Trace a function of trees."""
        closed, out = jax.make_jaxpr(function, return_shape=True)(*(each.example() for each in arguments))
        large = tuple(at for at, value in enumerate(closed.consts) if np.size(value) > LARGEST_CONSTANT)
        return cls(closed, large, Leaves.of(out))

    @property
    def constants(self) -> list[Any]:
        """The constants that programs take as arguments."""
        return [key_bits(self.closed.consts[at]) for at in self.large]

    def __call__(self, constants: Sequence[Any], *arguments: Sequence[Any]) -> list[Any]:
        """The leaves that it returns for lists of leaves, inside a program."""
        consts = list(self.closed.consts)
        for at, value in zip(self.large, constants, strict=True):
            typed = is_key(consts[at])
            consts[at] = (
                jax.random.wrap_key_data(value, impl=jax.random.key_impl(consts[at])) if typed else value
            )
        flat = [leaf for leaves in arguments for leaf in leaves]
        return jax.core.eval_jaxpr(self.closed.jaxpr, consts, *flat)


class Traces(NamedTuple):
    """The functions of a task, traced; what compiles programs reads them, and nothing keeps them."""

    begin: Traced
    step: Traced
    evaluate: Traced | None

    def constants(self) -> dict[str, list[Any]]:
        """By function, the constants that programs take as arguments."""
        return {name: traced.constants if traced else [] for name, traced in self._asdict().items()}

    def text(self) -> str:
        """All of it in words: what tells two searches apart."""
        return "\n".join(str(traced.closed) for traced in self if traced)


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
        after, metrics = task.step(carry, lane, batch, key)
        return _strong(after), _as_floats("step", metrics, needs="loss")

    begin = Traced.of(begun, starts, lanes, Leaves.of(np.int32(0)))
    carry = begin.out
    step = Traced.of(stepped, carry, lanes, batches, key)
    after, metrics = step.out.example()
    _refuse_another_carry(carry, Leaves.of(after))
    traces = Traces(
        begin,
        step,
        _traced_metrics("evaluate", task.evaluate, carry, evaluated),
    )
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
        evals=tuple(traces.evaluate.out.example()) if traces.evaluate else (),
        convolves=any(each.primitive.name == "conv_general_dilated" for each in equations(jaxpr)),
        draws=_reads(jaxpr, jaxpr.invars[-1]),
        mesh=_mesh_named_by(traces),
    ), traces


def _goes_on(task: Task, carry: Leaves) -> tuple[bool, ...]:
    count = len(carry.shapes)
    if task.still is None:
        return (True,) * count
    before, after = (carry.tree([after] * count) for after in (False, True))
    return tuple(jax.tree.leaves(task.still(before, after)))


def _traced_metrics(name: str, function: Callable | None, *arguments: Leaves) -> Traced | None:
    return function and Traced.of(lambda *given: _as_floats(name, function(*given)), *arguments)


def _strong(tree: PyTree) -> PyTree:
    """A tree without weak types: they would change in a loop."""
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, jnp.asarray(leaf).dtype), tree)


def _as_floats(name: str, metrics: Metrics, *, needs: str | None = None) -> dict[str, Array]:
    """Metrics in float32, in the order of their names."""
    if needs is not None and needs not in metrics:
        raise ValueError(f'{name} must return metrics["{needs}"], got metrics {sorted(metrics)}.')
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


def equations(jaxpr: Any) -> Iterator[Any]:
    """The equations of a jaxpr, and of those within them."""
    for each in jaxpr.eqns:
        yield each
        for part in jax.tree.leaves(each.params):
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def _reads(jaxpr: Any, argument: Any) -> bool:
    """Whether an argument of a jaxpr goes into an equation or out again."""
    return any(each is argument for each in jaxpr.outvars) or any(
        any(each is argument for each in equation.invars) for equation in jaxpr.eqns
    )


def _mesh_named_by(traces: Traces) -> Mesh | None:
    """A mesh of several devices that functions constrain or map over, or that arrays which they capture lie on."""
    closed = [traced.closed for traced in traces if traced]
    for each in itertools.chain(*(equations(one.jaxpr) for one in closed)):
        shardings = (each.params.get(name) for name in ("sharding", "dst_sharding"))
        for named in (each.params.get("mesh"), *(getattr(sharding, "mesh", None) for sharding in shardings)):
            if isinstance(named, Mesh) and named.size > 1:
                return named
    return mesh_of_user([value for one in closed for value in one.consts])
