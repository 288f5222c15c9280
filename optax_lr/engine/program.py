"""The compiled programs of a search: they train, evaluate and look at rows; the length of a run is in no shape.

`train` makes up to a window of steps of a grid of rows, from any step on; `evaluate` measures where rows stand.
All are traced, lowered and compiled in the calling thread and context.
What workers get are executables, which hold no function of the user's.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from .layout import ALL, LANES, ROWS, SEEDS, Layout
from .leaves import Leaves, key_bits
from .task import Form
from .traces import Traced, Traces

AVERAGE_DECAY = 0.9
# By step: over the decayed sum of ones, in float32 until it is 1.
DEBIASING = (1 / (1 - AVERAGE_DECAY ** np.arange(1.0, 200.0))).astype(np.float32)
# The step at which a run stopped is kept as a float32.
MOST_STEPS = 2**24
# What a run is stopped by: its first loss, the decayed sum of losses, the lowest of its debiased averages, the step
# at which it stopped or -1, and why (an index of `runs.WHY`). One array: one kernel.
TRACK = 5
# What the programs take, in order.
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


def track_of_start() -> np.ndarray:
    """The track of a run before its first step."""
    return np.array([0, 0, np.inf, -1, 0], np.float32)


def spread(function: Callable, layout: Layout, seeds: tuple, lanes: tuple, out: Any = 0) -> Callable:
    """A function of one row as one of the grid; `seeds` and `lanes` say which arguments have these axes.

    `out` is where the axis of lanes stands in its results; that of seeds then stands before it.
    """
    if layout.width:
        function = _over(function, layout.width // layout.devices, lanes, out)
    return _over(function, layout.seeds, seeds, out) if layout.seeds > 1 else function


def _over(function: Callable, size: int, axes: tuple, out: Any) -> Callable:
    """A `vmap`; not over a single lane, since an axis of one changes layouts, and layouts cost copies."""
    if size > 1:
        return jax.vmap(function, axes, out, axis_size=size)

    def single(*arguments: Any) -> Any:
        inner = [
            argument if axis is None else jax.tree.map(lambda leaf: leaf[0], argument)
            for argument, axis in zip(arguments, axes, strict=True)
        ]
        found = function(*inner)
        outs = out if isinstance(out, tuple) else jax.tree.map(lambda _: out, found)
        if not isinstance(out, tuple):
            return jax.tree.map(jnp.expand_dims, found, outs)
        return tuple(
            jax.tree.map(lambda leaf, at=at: jnp.expand_dims(leaf, at), part)
            for part, at in zip(found, outs, strict=True)
        )

    return single


class Builder(NamedTuple):
    """The functions that are compiled, for a form and a layout; without `trains`, a step learns nothing."""

    form: Form
    traces: Traces
    layout: Layout
    key_impl: str
    trains: bool = True

    def begin(
        self, start: Sequence[Any], constants: Sequence[Any], lane: Sequence[Any], seed: Any
    ) -> list[Any]:
        """All leaves of the carry of a row before its first step."""
        return self.traces.begin(constants, self.form.start.typed(start), self.form.lane.typed(lane), [seed])

    def fixed(self, start: Sequence[Any], constants: Sequence[Any], lane: Sequence[Any]) -> list[Any]:
        """The leaves of a carry that all lanes share."""
        first = [leaf[0] for leaf in lane] if self.layout.width else lane

        def of_seed(start: Sequence[Any]) -> list[Any]:
            return self.form.split(self.begin(start, constants, first, jnp.zeros((), jnp.int32)), moves=False)

        has_seeds = self.layout.seeds > 1 and self.layout.starts
        return jax.vmap(of_seed)(start) if has_seeds else of_seed(start)

    @property
    def seed_of_start(self) -> int | None:
        return 0 if self.layout.starts else None

    def train(
        self, moving: list[Any], track: Any, start: list[Any], constants: list[list[Any]], lane: list[Any], t: Any,
        count: Any, end: Any, factor: Any, batches: list[Any], order: Any, ceiling: Any, key: Any, seed: Any,
    ) -> tuple[list[Any], Any, Any]:  # fmt: skip
        """See `Programs.train`."""
        layout, of_start, of_seed = self.layout, self.seed_of_start, 0 if self.layout.seeds > 1 else None
        fixed = self.fixed(start, constants[0], lane)

        def begun() -> tuple[list[Any], Any]:
            def of_row(start: list[Any], lane: list[Any], seed: Any) -> list[Any]:
                own = self.form.split(self.begin(start, constants[0], lane, seed), moves=True)
                return [key_bits(leaf) for leaf in own]

            rows = spread(of_row, layout, (of_start, None, 0), (None, 0, None))(start, lane, seed)
            return rows, jnp.broadcast_to(track_of_start(), track.shape)

        # A loop of one round at most: it works in place, where a `cond` copies all that it passes on.
        _, *began = jax.lax.while_loop(
            lambda state: state[0], lambda _: (jnp.array(False), *begun()), (t == 0, moving, track)
        )

        def body(state: tuple[Any, list[Any], Any, Any]) -> tuple[Any, list[Any], Any, Any]:
            i, moving, track, reports = state
            step = spread(
                functools.partial(self.one_step, t + i, constants[1], factor),
                layout,
                (0, 0, of_start, None, of_seed, 0, 0, 0),
                (0, 0, None, 0, None, None, 0, 0),
                (0, 0, 1),
            )
            batch = self.batch(batches, order, i)
            moving, track, said = step(moving, track, fixed, lane, batch, key, end, ceiling)
            return i + 1, moving, track, jax.lax.dynamic_update_index_in_dim(reports, said, i, 0)

        reports = jnp.zeros((layout.window, len(self.form.metrics), *track.shape[:-1]), jnp.float32)
        state = (jnp.zeros((), jnp.int32), *began, reports)
        if layout.window == 1:
            return body(state)[1:]
        return jax.lax.while_loop(
            lambda state: (state[0] < count) & jnp.any((state[2][..., 3] < 0) & (t + state[0] < end)),
            body,
            state,
        )[1:]

    def look(self, *arguments: Any) -> tuple[list[Any], Any, Any]:
        """What `train` reports where no step learns anything."""
        return self._replace(trains=False).train(*arguments)

    def one_step(
        self, at: Any, constants: list[Any], factor: Any, moving: list[Any], track: Any, fixed: list[Any],
        lane: list[Any], batch: list[Any], key: Any, end: Any, ceiling: Any,
    ) -> tuple[list[Any], Any, Any]:  # fmt: skip
        """Step `at` of one row: its moving leaves and its track after it, and what it reports."""
        form = self.form
        typed = jax.random.wrap_key_data(key, impl=self.key_impl)
        drawn = jax.random.fold_in(typed, at) if form.draws else typed
        carry = form.merged(form.own.typed(moving), fixed)
        leaves = self.traces.step(constants, carry, form.lane.typed(lane), batch, [drawn])
        after, said = self.traces.step.out.tree(leaves)
        flat = jax.tree.leaves(after)
        if not self.trains:
            # Nothing reads the gradient then, and the compiler leaves out the backward pass.
            chosen = zip(form.goes_on, flat, carry, strict=True)
            flat = [now if goes_on else old for goes_on, now, old in chosen]
        limit = jax.lax.dynamic_index_in_dim(ceiling, at, keepdims=False)
        live, tracked = _judged(track, at, said["loss"], factor, limit, end)
        new = [key_bits(leaf) for leaf in form.split(flat, moves=True)]
        if self.layout.freeze:
            goes_on = live & (tracked[3] < 0)
            new = [jnp.where(goes_on, now, old) for now, old in zip(new, moving, strict=True)]
        return new, tracked, jnp.stack(list(said.values()))

    def batch(self, batches: list[Any], order: Any, i: Any) -> list[Any]:
        """The batch of step `i` of a window; of a grid that of each seed, for all of its lanes."""
        if self.layout.seeds > 1:
            return [leaf[order[:, i]] for leaf in batches]
        at = jax.lax.dynamic_index_in_dim(order, i, keepdims=False)
        if self.layout.placed:
            return [leaf[at] for leaf in batches]
        return [jax.lax.dynamic_index_in_dim(leaf, at, keepdims=False) for leaf in batches]

    def evaluate(
        self,
        moving: list[Any],
        start: list[Any],
        constants: list[list[Any]],
        lane: list[Any],
        eval_batch: list[Any],
    ) -> Any:
        """See `Programs.evaluate`."""
        form, layout = self.form, self.layout
        of_begin, of_evaluate = constants
        evaluated = self.traces.evaluate
        assert evaluated is not None

        def one(moving: list[Any], fixed: list[Any], eval_batch: list[Any]) -> Any:
            carry = form.merged(form.own.typed(moving), fixed)
            leaves = evaluated(of_evaluate, carry, form.eval_batch.typed(eval_batch))
            return jnp.stack(list(evaluated.out.tree(leaves).values()))

        of_seed = (0, self.seed_of_start, 0 if layout.folds else None)
        return spread(one, layout, of_seed, (0, None, None), 1)(
            moving, self.fixed(start, of_begin, lane), eval_batch
        )


def _judged(track: Any, at: Any, loss: Any, factor: Any, ceiling: Any, end: Any) -> tuple[Any, Any]:
    """Whether a row makes step `at`, and its track after it."""
    first, total, lowest, stopped, why = track
    first = jnp.where(at == 0, loss, first)
    total = AVERAGE_DECAY * total + (1 - AVERAGE_DECAY) * loss
    # To multiply costs less than to divide: XLA does it again wherever it is wanted, in place of once in a kernel.
    scale = jax.lax.dynamic_index_in_dim(
        jnp.asarray(DEBIASING), jnp.minimum(at, len(DEBIASING) - 1), keepdims=False
    )
    average = total * scale
    best = jnp.minimum(lowest, average)
    rises = average - best > factor * jnp.maximum(jnp.abs(first), jnp.abs(best))
    lost = ~jnp.isfinite(loss)
    live = (stopped < 0) & (at < end)
    stops = live & (lost | rises | (average > ceiling))
    cause = jnp.where(lost, 1.0, jnp.where(rises, 2.0, 3.0))
    now = jnp.stack(
        [first, total, best, jnp.where(stops, at.astype(jnp.float32), stopped), jnp.where(stops, cause, why)]
    )
    return live, jnp.where(live, now, track)


def compile_programs(
    builder: Builder, *, longest: int, batches: Leaves, shardings: Sequence[Any] | None, words: int
) -> Programs:
    """Compile the programs that train and evaluate; see `arguments`."""
    layout = builder.layout
    given = arguments(builder, longest=longest, batches=batches, shardings=shardings, words=words)
    train, evaluate = _compiled_steps(builder.train, layout, given), _compiled_evaluation(builder, given)
    # While one program runs, what only the other reads lies on the device, too.
    needed = bytes_needed(train, given["eval_batch"][0])
    if evaluate is not None:
        needed = max(needed, bytes_needed(evaluate, given["batches"][0]))
    return Programs(train, evaluate, given["moving"][0], needed)


def compile_looks(
    builder: Builder,
    evaluate: Any,
    *,
    longest: int,
    batches: Leaves,
    shardings: Sequence[Any] | None,
    words: int,
) -> Programs:
    """Compile what looks without training, and what evaluates where that is not compiled yet."""
    given = arguments(builder, longest=longest, batches=batches, shardings=shardings, words=words)
    look = _compiled_steps(builder.look, builder.layout, given)
    if evaluate is None:
        evaluate = _compiled_evaluation(builder, given)
    return Programs(look, evaluate, given["moving"][0], bytes_needed(look, given["eval_batch"][0]))


def _compiled_steps(function: Callable, layout: Layout, given: Mapping[str, tuple[Any, str]]) -> Any:
    """A function that makes steps, compiled."""
    return _compiled(function, layout, [given[name] for name in TRAIN], out=(0, 0, 2), donated=(0, 1))


def _compiled_evaluation(builder: Builder, given: Mapping[str, tuple[Any, str]]) -> Any:
    """What evaluates, compiled; None where nothing does."""
    if not builder.traces.evaluate:
        return None
    return _compiled(builder.evaluate, builder.layout, [given[name] for name in EVALUATE], out=1)


def arguments(
    builder: Builder, *, longest: int, batches: Leaves, shardings: Sequence[Any] | None, words: int
) -> dict[str, tuple[Any, str]]:
    """The shapes of what the programs take, and which axes each has; `TRAIN` and `EVALUATE` name theirs in order.

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
    function: Callable,
    layout: Layout,
    arguments: Sequence[tuple[Any, str]],
    *,
    out: Any,
    donated: tuple = (),
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
