"""The compiled programs of a search: they train, evaluate and look at rows; the length of a run is in no shape.

`train` makes up to a window of steps of a grid of rows, from any step on; `evaluate` measures where rows stand.
All are traced, lowered and compiled in the calling thread and context.
What workers get are executables, which hold no function of the user's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from .builder import Builder
from .layout import ALL, LANES, ROWS, SEEDS, Layout
from .leaves import Leaves
from .stops import TRACK
from .traces import Traced

# The shapes of what the programs take, and which axes each has; `TRAIN` and `EVALUATE` name theirs in order.
Arguments = Mapping[str, tuple[Any, str]]
TRAIN = "moving track start of_train lane t count end factor batches order ceiling key seed".split()
EVALUATE = "moving start of_evaluate lane eval_batch".split()


class Programs(NamedTuple):
    """The executables of a layout.

    Attributes:
      train: `(moving, track, start, constants, lane, t, count, end, factor, batches, order, ceiling, key, seed)` to
        `(moving, track, reports)`. Steps `t` to `t + count` of each row, up to its `end`; at `t == 0` rows begin.
        `moving` and `track` are donated. `reports` are [window, metrics, *rows]; what stands in them for a row that
        has ended means nothing.
      evaluate: `(moving, start, constants, lane, eval_batch)` to [metrics, *rows], or None.
      moving: the shapes of `moving`.
      needed: how many bytes of a device's memory they need, the larger of all.
    """

    train: Any
    evaluate: Any
    moving: list[jax.ShapeDtypeStruct]
    needed: int


def compile_programs(builder: Builder, given: Arguments) -> Programs:
    """Compile the programs that train and evaluate."""
    train = _compiled_steps(builder.train, builder.layout, given)
    evaluate = _compiled_evaluation(builder, given)
    # While one program runs, what only the other reads lies on the device, too.
    needed = bytes_needed(train, given["eval_batch"][0])
    if evaluate is not None:
        needed = max(needed, bytes_needed(evaluate, given["batches"][0]))
    return Programs(train, evaluate, given["moving"][0], needed)


def compile_looks(builder: Builder, given: Arguments, evaluate: Any) -> Programs:
    """Compile what looks without training, and what evaluates where that is not compiled yet."""
    look = _compiled_steps(builder.look, builder.layout, given)
    if evaluate is None:
        evaluate = _compiled_evaluation(builder, given)
    return Programs(look, evaluate, given["moving"][0], bytes_needed(look, given["eval_batch"][0]))


def _compiled_steps(function: Callable, layout: Layout, given: Arguments) -> Any:
    """A function that makes steps, compiled."""
    return _compiled(function, layout, [given[name] for name in TRAIN], out=(0, 0, 2), donated=(0, 1))


def _compiled_evaluation(builder: Builder, given: Arguments) -> Any:
    """What evaluates, compiled; None where nothing does."""
    if not builder.traces.evaluate:
        return None
    return _compiled(builder.evaluate, builder.layout, [given[name] for name in EVALUATE], out=1)


def arguments(
    builder: Builder, *, longest: int, batches: Leaves, shardings: Sequence[Any] | None, words: int
) -> Arguments:
    """What the programs of a layout take.

    Args:
      longest: the room for tables and ceilings, a power of two.
      batches: the shapes of all batches that a call reads, with their leading axis.
      shardings: where each moving leaf lies, on a mesh of the user's; else None.
      words: how many words the bits of a key have.
    """
    form, traces, layout = builder.form, builder.traces, builder.layout

    def given(leaves: Sequence[jax.ShapeDtypeStruct], kind: str) -> list[Any]:
        sharding, lead = layout.sharding(kind), layout.axes(kind)
        return [
            jax.ShapeDtypeStruct((*lead, *leaf.shape), leaf.dtype, sharding=leaf.sharding or sharding)
            for leaf in leaves
        ]

    def one(shape: tuple[int, ...], dtype: Any, kind: str) -> tuple[Any, str]:
        return given([jax.ShapeDtypeStruct(shape, dtype)], kind)[0], kind

    def constants(*functions: Traced | None) -> tuple[list[list[Any]], str]:
        return [given(Leaves.of(each.constants).shapes, ALL) for each in functions if each], ALL

    of_start, of_fold = (SEEDS if each else ALL for each in (layout.starts, layout.folds))
    own, lead = form.own.bits(), layout.axes(ROWS)
    moving = [
        jax.ShapeDtypeStruct((*lead, *leaf.shape), leaf.dtype, sharding=where)
        for leaf, where in zip(own, shardings or [layout.sharding(ROWS)] * len(own), strict=True)
    ]
    step = one((), jnp.int32, ALL)
    return {
        "moving": (moving, ROWS),
        "track": one((TRACK,), jnp.float32, ROWS),
        "start": (given(form.start.bits(), of_start), of_start),
        "of_train": constants(traces.begin, traces.step),
        "of_evaluate": constants(traces.begin, traces.evaluate),
        "lane": (given(form.lane.bits(), LANES), LANES),
        "t": step,
        "count": step,
        "end": one((), jnp.int32, ROWS),
        "factor": one((), jnp.float32, ALL),
        "batches": (given(batches.bits(), ALL), ALL),
        "order": one((layout.window,), jnp.int32, SEEDS),
        "ceiling": one((longest,), jnp.float32, ROWS),
        "key": one((words,), jnp.uint32, SEEDS),
        "seed": one((), jnp.int32, SEEDS),
        "eval_batch": (given(form.eval_batch.bits(), of_fold), of_fold),
    }


def _compiled(
    function: Callable, layout: Layout, arguments: Sequence[tuple[Any, str]], *, out: Any, donated: tuple = ()
) -> Any:
    """The executable of a function; on a mesh of lanes every device has a loop of its own.

    `out` says for each result how many axes stand before those of its rows.
    """
    values, kinds = zip(*arguments, strict=True)
    if layout.mesh is not None and not layout.placed:

        def of_rows(before: int) -> Any:
            return PartitionSpec(*[None] * before, *layout.spec(ROWS))

        function = jax.shard_map(
            function,
            mesh=layout.mesh,
            in_specs=tuple(layout.spec(kind) for kind in kinds),
            out_specs=jax.tree.map(of_rows, out),
            check_vma=False,
        )
    # What `evaluate` does not read (the moments) lies on the device all the same, and is counted.
    options: dict[str, Any] = {"keep_unused": True}
    if layout.placed and donated:
        # A moment lies where its parameter lies; left to itself XLA replicates it.
        options["out_shardings"] = (
            *jax.tree.map(lambda leaf: leaf.sharding, values[:2]),
            layout.sharding(ALL),
        )
    return jax.jit(function, donate_argnums=donated, **options).lower(*values).compile()


def bytes_needed(compiled: Any, beside: Sequence[Any]) -> int:
    """How many bytes of a device's memory a compiled program needs, and some arrays that lie beside it."""
    memory = compiled.memory_analysis()
    sizes = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    others = sum(leaf.size * leaf.dtype.itemsize for leaf in beside)
    return int(sizes - memory.alias_size_in_bytes + others)
