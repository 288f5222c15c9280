"""The form and the programs of a task, made once: traced in a context of the search's own, or the user's mesh's."""

import functools
import itertools
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..types import PyTree
from .batches import Data
from .builder import Builder
from .layout import ROWS, Layout, context, is_explicit, mesh_in_force, mesh_of_user
from .leaves import Leaves
from .program import Arguments, Programs, arguments, compile_looks, compile_programs
from .task import Form, Task, look_at
from .traces import Traces

# How many searches of one function keep their programs.
KEPT_SEARCHES = 8


class ProgramsOf:
    """The form and the programs of a task, made once for as long as the user's function lives."""

    def __init__(self, task: Task, data: Data, lane: PyTree, room: int):
        self.room, self._task, self._data = room, task, data
        self._mesh = mesh_of_user(jax.tree.leaves((data.start, data.batches, data.eval_batch)))
        with context(self._mesh):
            first = jax.tree.map(lambda leaf: leaf[0], data.batches)
            self._examples = (data.start_of(0), lane, first, data.eval_batch_of(0))
        key = (_context(), task.static, _alive(task), *map(Leaves.of, self._examples), data.key_impl, room)
        shelf = _shelf(task)
        if key in shelf:
            shelf.move_to_end(key)
            self.form, self.constants, self._made = shelf[key]
            return
        self.form, traces = self._looked
        self.constants, self._made = traces.constants(), dict[Any, Programs]()
        shelf[key] = self.form, self.constants, self._made
        while len(shelf) > KEPT_SEARCHES:
            shelf.popitem(last=False)

    def of(self, layout: Layout, rows: int) -> Programs:
        """The programs of a layout, of which a call reads so many batches."""
        return self._compiled("train", layout, rows, compile_programs)

    def looks(self, layout: Layout, rows: int) -> Programs:
        """The programs that report what runs would without training."""
        alike = self._made.get(("train", layout, rows))
        evaluate = alike and alike.evaluate
        return self._compiled("look", layout, rows, functools.partial(compile_looks, evaluate=evaluate))

    def _compiled(
        self, name: str, layout: Layout, rows: int, compiled: Callable[[Builder, Arguments], Programs]
    ) -> Programs:
        which = (name, layout, rows)
        if which not in self._made:
            with context(layout.mesh):
                builder = Builder(self.form, self._looked[1], layout, self._data.key_impl)
                given = arguments(
                    builder,
                    longest=self.room,
                    batches=Leaves.of(jax.tree.map(lambda leaf: _rows_of(leaf, rows), self._data.batches)),
                    shardings=self._shardings(layout),
                    words=self._data.bits.size,
                )
                self._made[which] = compiled(builder, given)
        return self._made[which]

    def text(self) -> str:
        """The traced functions in words."""
        return self._looked[1].text()

    @functools.cached_property
    def _looked(self) -> tuple[Form, Traces]:
        """The form and the traces. Programs that were kept have none: what compiles one more traces again."""

        def looked(mesh: Mesh | None) -> tuple[Form, Traces]:
            with context(mesh):
                form, traces = look_at(self._task, *self._examples, self._data.key_impl)
            return form._replace(mesh=mesh or form.mesh), traces

        around = mesh_in_force()
        try:
            return looked(self._mesh)
        except Exception:
            if not isinstance(around, Mesh) or around.empty or around == self._mesh:
                raise
        # The loss names axes of the mesh that the user has set.
        return looked(around)

    def _shardings(self, layout: Layout) -> list[Any] | None:
        """Where each moving leaf lies on the user's mesh: a moment as its parameter, or on all devices alike.

        An axis of lanes is split over no device.
        """
        if not layout.placed or layout.mesh is None:
            return None
        mesh, form = layout.mesh, self.form
        if is_explicit(mesh):
            where = [
                NamedSharding(mesh, each.sharding.spec) if each.sharding else None
                for each in form.carry.shapes
            ]
        else:
            where = _as_parameters(form)
        lead = [None] * len(layout.axes(ROWS))
        spread = [NamedSharding(mesh, PartitionSpec(*lead, *(each.spec if each else ()))) for each in where]
        return form.split(spread, moves=True)


def _as_parameters(form: Form) -> list[Any]:
    """Where each leaf of a carry lies: as the leaf of the start that it begins as, or as its parameter.

    The path of a moment ends like that of its parameter, and has its shape.
    """
    start, carry = (jax.tree_util.tree_leaves_with_path(each.example()) for each in (form.start, form.carry))

    def of(path: Any, leaf: Any, source: int | None) -> Any:
        if source is not None:
            return form.start.shapes[source].sharding
        alike = [(other, like) for other, like in start if like.shape == leaf.shape]
        return max(alike, key=lambda each: _common_end(path, each[0]))[1].sharding if alike else None

    return [of(path, leaf, source) for (path, leaf), source in zip(carry, form.sources, strict=True)]


def _common_end(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many entries two paths have in common at their ends."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))


_SHELVES: "weakref.WeakKeyDictionary[Any, OrderedDict]" = weakref.WeakKeyDictionary()


def _shelf(task: Task) -> OrderedDict:
    """Where the programs of a user's function stand; they go when it does."""
    function = task.functions[0] if task.functions else None
    anchor: Any = getattr(function, "__self__", function)
    try:
        return _SHELVES.setdefault(anchor, OrderedDict())
    except TypeError:
        # What cannot be weakly referred to, or compared, cannot be recognized again.
        return OrderedDict()


def _alive(task: Task) -> tuple[Any, ...]:
    """The user's functions, as keys that keep none of them alive."""

    def key(function: Any) -> Any:
        if hasattr(function, "__func__"):
            return weakref.ref(function.__self__), function.__func__.__qualname__
        try:
            return function and weakref.ref(function)
        except TypeError:
            return id(function)

    return tuple(map(key, task.functions))


_CONTEXT = """jax_enable_x64 jax_default_matmul_precision jax_threefry_partitionable jax_default_prng_impl
    jax_numpy_rank_promotion jax_numpy_dtype_promotion jax_default_device jax_debug_nans jax_debug_infs
    jax_disable_jit jax_enable_custom_prng jax_softmax_custom_jvp jax_debug_key_reuse""".split()


def _context() -> tuple[Any, ...]:
    """What of JAX's settings a trace depends on."""
    settings = tuple(str(getattr(jax.config, name, None)) for name in _CONTEXT)
    return (*settings, jax.sharding.get_abstract_mesh(), mesh_in_force())


def _rows_of(leaf: Any, rows: int) -> Any:
    sharding = getattr(leaf, "sharding", None)
    return jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype, sharding=sharding)
