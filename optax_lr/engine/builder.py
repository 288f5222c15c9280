"""The functions that are compiled: many steps of a grid of rows, and an evaluation of where they stand."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .layout import Layout
from .leaves import key_bits
from .stops import TRACK_OF_START, judged
from .task import Form
from .traces import Traces


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

    def widened(tree: Any, at: int) -> Any:
        return jax.tree.map(lambda leaf: jnp.expand_dims(leaf, at), tree)

    def single(*arguments: Any) -> Any:
        inner = [
            argument if axis is None else jax.tree.map(lambda leaf: leaf[0], argument)
            for argument, axis in zip(arguments, axes, strict=True)
        ]
        found = function(*inner)
        return tuple(map(widened, found, out)) if isinstance(out, tuple) else widened(found, out)

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

    def train(
        self, moving: list[Any], track: Any, start: list[Any], constants: list[list[Any]], lane: list[Any], t: Any,
        count: Any, end: Any, factor: Any, batches: list[Any], order: Any, ceiling: Any, key: Any, seed: Any,
    ) -> tuple[list[Any], Any, Any]:  # fmt: skip
        """See `program.Programs.train`."""
        layout = self.layout
        of_start, of_seed = (0 if differs else None for differs in (layout.starts, layout.seeds > 1))
        fixed = self.fixed(start, constants[0], lane)

        def begun() -> tuple[list[Any], Any]:
            def of_row(start: list[Any], lane: list[Any], seed: Any) -> list[Any]:
                own = self.form.split(self.begin(start, constants[0], lane, seed), moves=True)
                return [key_bits(leaf) for leaf in own]

            rows = spread(of_row, layout, (of_start, None, 0), (None, 0, None))(start, lane, seed)
            return rows, jnp.broadcast_to(TRACK_OF_START, track.shape)

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
        live, tracked = judged(track, at, said["loss"], factor, limit, end)
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
        self, moving: list[Any], start: list[Any], constants: list[list[Any]], lane: list[Any],
        eval_batch: list[Any],
    ) -> Any:  # fmt: skip
        """See `program.Programs.evaluate`."""
        form, layout = self.form, self.layout
        of_begin, of_evaluate = constants
        evaluated = self.traces.evaluate
        assert evaluated is not None

        def one(moving: list[Any], fixed: list[Any], eval_batch: list[Any]) -> Any:
            carry = form.merged(form.own.typed(moving), fixed)
            leaves = evaluated(of_evaluate, carry, form.eval_batch.typed(eval_batch))
            return jnp.stack(list(evaluated.out.tree(leaves).values()))

        of_seed = (0, 0 if layout.starts else None, 0 if layout.folds else None)
        return spread(one, layout, of_seed, (0, None, None), 1)(
            moving, self.fixed(start, of_begin, lane), eval_batch
        )
