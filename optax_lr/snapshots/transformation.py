"""Snapshots during training: a transformation that keeps parameters at the ends of cycles, and its reader.

With the cycles that drive the schedule:

    cycles = Cycles(1000, growth=2)
    tx = optax.chain(optax.adam(sgdr_schedule(1e-3, 0.0, cycles)), snapshot_at_cycle_ends(cycles, 5))
    snapshots = get_snapshots(state)                            # after training
    outputs, spread = ensemble_predict(apply_fn, snapshots, inputs)
    params = average_snapshots(snapshots)                       # or one model: the average of the weights
"""

import operator
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import checks
from ..schedules.cycles import Cycles
from ..types import Array, ArrayLike, Bool, Int, PyTree, ScalarLike

_EMPTY = -1


class SnapshotAtCycleEndsState(NamedTuple):
    """The state of `snapshot_at_cycle_ends`; `get_snapshots` reads it.

    Attributes:
      count: updates so far; int32, stays at 2^31 - 1. The cycles are counted by it.
      num_snapshots: how many snapshots were taken, those that were overwritten included; int32. The next one
        goes into slot `num_snapshots % max_snapshots`.
      snapshot_steps: for each slot the step whose update its snapshot was taken after, -1 if it is empty; int32.
      snapshots: one tree for each slot, with the structure, shapes and shardings of the parameters. An empty
        slot holds the parameters of `init`.
    """

    count: Int[Array, "*lanes"]  # type: ignore[assignment]  # a tuple has a method of that name
    num_snapshots: Int[Array, "*lanes"]
    snapshot_steps: Int[Array, "*lanes slots"]
    snapshots: tuple[PyTree, ...]


class Snapshots(NamedTuple):
    """Parameters of several models of one architecture, the members of an ensemble.

    The final parameters of a sweep are an ensemble too: `Snapshots(params, steps)`, with the leading axes
    [seeds, lanes] of both.

    Attributes:
      params: the parameters, each with the leading axes of `steps`.
      steps: the step whose update each was taken after; int32. Its axes are those of the members.
    """

    params: PyTree
    steps: Int[ArrayLike, "*members"]


def snapshot_at_cycle_ends(
    cycle_steps: Cycles | ScalarLike, max_snapshots: int, *, burn_in: ScalarLike = 0
) -> optax.GradientTransformationExtraArgs:
    """Keep the parameters as they are after the last update of each cycle. It goes last in a chain.

    After update t, if t is the last step of its cycle and the cycle is not among the first `burn_in`, a copy
    of `optax.apply_updates(params, updates)` is kept. Updates pass through unchanged. The newest
    `max_snapshots` stay; a further one replaces the oldest.

    *What is kept.* The parameters that these updates lead to. If a later transformation of the chain changes the
    updates, the copy is not what was trained; `get_snapshots` warns. If parameters are projected after
    `apply_updates`, project the snapshots too: `found._replace(params=jax.vmap(project)(found.params))`.
    What is non-finite is kept as it is, and reaches no other parameter and no other snapshot.

    *The clock* counts calls of `update` since `init`, skipped steps included. If `with_warmup` or
    `shift_schedule` moves the schedule, its cycles end elsewhere.

    *The cost.* A step that keeps nothing moves nothing of the snapshots, if update and `apply_updates` are
    compiled together and the state is donated or carried through a scan. `optax.apply_if_finite` and
    `optax.MultiSteps` copy their whole inner state at every step, so leave the snapshots outside. This order
    costs nothing: `optax.chain(optax.apply_if_finite(optax.adam(1e-3), 5), snapshot_at_cycle_ends(1000, 5))`.
    After `MultiSteps`, count the cycles in calls. Under `vmap`, all lanes pay if one of them keeps a snapshot.
    Each slot adds the arrays of the parameters to the state; a step called from Python pays some microseconds
    for each array.

    *Devices and derivatives.* Each slot is laid out over the devices as the parameters are. Updates
    differentiate as without snapshots; snapshots forwards only (`jax.jvp`): JAX refuses `jax.grad`.

    Args:
      cycle_steps: the `Cycles` of the schedule, or steps of each cycle, at least 1, without an end.
      max_snapshots: how many are kept, at least 1; each takes the memory of the parameters.
      burn_in: how many cycles at the start leave no snapshot, at least 0.

    Returns:
      A transformation whose state is a `SnapshotAtCycleEndsState`.

    Raises:
      ValueError: a concrete number is out of its range, or `max_snapshots` is traced. On update: `params` is
        missing.

    >>> tx = optax.chain(optax.sgd(1.0), snapshot_at_cycle_ends(Cycles(2, growth=2), 3))
    >>> params = jnp.zeros(())
    >>> state = tx.init(params)
    >>> for _ in range(8):
    ...     updates, state = tx.update(jnp.ones(()), state, params)
    ...     params = optax.apply_updates(params, updates)
    >>> found = get_snapshots(state)
    >>> found.steps.tolist(), found.params.tolist()
    ([1, 5], [-2.0, -6.0])

    Source: Huang et al. 2017 (arXiv:1704.00109), section 3.
    """
    cycles = Cycles.of("cycle_steps", cycle_steps)
    slots = checks.size("max_snapshots", max_snapshots, unit="snapshots")
    skipped = checks.steps("burn_in", burn_in, minimum=0, whole=True, unit="cycles")

    def init(params: optax.Params) -> SnapshotAtCycleEndsState:
        return SnapshotAtCycleEndsState(
            jnp.zeros((), jnp.int32),
            jnp.zeros((), jnp.int32),
            jnp.full(slots, _EMPTY, jnp.int32),
            tuple(jax.tree.map(_copy, params) for _ in range(slots)),
        )

    def update(
        updates: optax.Updates,
        state: SnapshotAtCycleEndsState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, SnapshotAtCycleEndsState]:
        del extra_args
        if params is None:
            raise ValueError(
                "params must be given to keep a snapshot of them: call update(updates, state, params)."
            )
        due = cycles.is_end(state.count) & (cycles.position(state.count).index >= skipped)
        now = optax.apply_updates(params, updates)
        slot = state.num_snapshots % slots

        def keep(kept: tuple[Array, tuple[PyTree, ...]]) -> tuple[Array, tuple[PyTree, ...]]:
            steps, trees = kept
            written = [
                _run_if(slot == index, lambda tree: _as(tree, now), tree) for index, tree in enumerate(trees)
            ]
            return steps.at[slot].set(state.count, mode="promise_in_bounds"), tuple(written)

        steps, trees = _run_if(due, keep, (state.snapshot_steps, state.snapshots))
        taken = jnp.where(due, optax.safe_increment(state.num_snapshots), state.num_snapshots)
        return updates, SnapshotAtCycleEndsState(optax.safe_increment(state.count), taken, steps, trees)

    return optax.GradientTransformationExtraArgs(init, update)


def get_snapshots(opt_state: optax.OptState) -> Snapshots:
    """The snapshots in an optimizer's state, stacked, the oldest first. Not inside `jit`.

    The state is found inside any nest of wrappers, as by `get_learning_rate`.

    Args:
      opt_state: the state of an optimizer with one `snapshot_at_cycle_ends`. It may have leading axes, those of
        a vmapped training; then the result has them too. Of an `nnx.Optimizer` pass
        `nnx.as_pure(optimizer.opt_state)`.

    Returns:
      A `Snapshots` with a last leading axis [min(taken, max_snapshots)]. Its parameters are copies, sharded as
      the parameters are.

    Warns:
      UserWarning: a transformation follows `snapshot_at_cycle_ends` in a chain. If it changes the updates, the
        snapshots are not the trained parameters. (`optax.named_chain` hides the order: not seen there.)

    Raises:
      ValueError: the state holds no `snapshot_at_cycle_ends`, or several; it is traced; or lanes of a vmapped
        training have taken different numbers of snapshots.

    >>> tx = snapshot_at_cycle_ends(1, 2)
    >>> state = tx.init(jnp.zeros(()))
    >>> for params in (5.0, 6.0, 7.0):
    ...     _, state = tx.update(jnp.zeros(()), state, jnp.float32(params))
    >>> get_snapshots(state).params.tolist()
    [6.0, 7.0]
    """
    state = _only_state(opt_state)
    if checks.is_traced(state.num_snapshots):
        raise ValueError(
            "get_snapshots must be called outside jit: the number of snapshots is a shape of its result."
        )
    steps, taken = np.asarray(state.snapshot_steps), np.asarray(state.num_snapshots)
    slots = steps.shape[-1]
    counts = np.minimum(taken, slots)
    if counts.min() != counts.max():
        raise ValueError(
            f"The lanes of opt_state hold from {counts.min()} to {counts.max()} snapshots: pass the state of "
            "one lane."
        )
    oldest_first = (taken[..., None] - counts.max() + np.arange(counts.max())) % slots

    def stacked(*leaves: Array) -> Array:
        return _rows(jnp.stack(leaves, axis=taken.ndim), oldest_first)

    return Snapshots(
        jax.tree.map(stacked, *state.snapshots),
        jnp.asarray(np.take_along_axis(steps, oldest_first, axis=-1)),
    )


def _only_state(opt_state: optax.OptState) -> SnapshotAtCycleEndsState:
    """The one state of `snapshot_at_cycle_ends` in an optimizer's state, with a warning if it is not last."""
    nodes = jax.tree_util.tree_leaves_with_path(opt_state, is_leaf=_is_snapshots_state)
    found = [(path, node) for path, node in nodes if _is_snapshots_state(node)]
    if len(found) != 1:
        places = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in found]
        where = f", at {checks.listed(places)}: pass one of them" if found else ""
        raise ValueError(
            f"opt_state must hold one state of snapshot_at_cycle_ends, and holds {len(found)}{where}."
        )
    ((path, state),) = found
    if followers := _followers(opt_state, path):
        warnings.warn(
            f"snapshot_at_cycle_ends is followed by {followers} more in its chain. If one of them changes the "
            "updates, the snapshots are not the trained parameters: put snapshot_at_cycle_ends last.",
            stacklevel=3,
        )
    return state


def _followers(opt_state: optax.OptState, path: tuple[Any, ...]) -> int:
    """How many transformations of the chains along a path come after it. A chain's state is a plain tuple."""
    node, count = opt_state, 0
    for key in path:
        if isinstance(key, jax.tree_util.SequenceKey):
            # A tuple that also holds parameters, a training loop's carry, is no chain.
            if type(node) is tuple and all(isinstance(part, tuple) for part in node):
                count += len(node) - 1 - key.idx
            node = node[key.idx]
        elif isinstance(key, jax.tree_util.GetAttrKey):
            node = getattr(node, key.name)
        elif isinstance(key, jax.tree_util.DictKey):
            node = node[key.key]
        else:
            break
    return count


def _is_snapshots_state(node: Any) -> bool:
    return isinstance(node, SnapshotAtCycleEndsState)


def _copy(leaf: Any) -> Array:
    """A strongly typed copy. Copies and not zeros: under `jit` too they keep the layout of the parameters."""
    copied = jnp.zeros_like(leaf) if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.copy(leaf)
    return jax.lax.convert_element_type(copied, copied.dtype)


def _as(old: PyTree, new: PyTree) -> PyTree:
    """The values of `new` with the dtypes of `old`."""
    return jax.tree.map(lambda one, other: jax.lax.convert_element_type(other, one.dtype), old, new)


def _run_if(condition: Bool[Array, ""], function: Callable[[PyTree], PyTree], tree: PyTree) -> PyTree:
    """`function(tree)` if the condition holds, else `tree`. A GPU copies nothing where it does not hold.

    A loop that runs at most once: it updates its carry in place. A `cond` copies what it returns.
    """

    def once(carry: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
        return jnp.zeros_like(carry[0]), function(carry[1])

    return jax.lax.while_loop(lambda carry: carry[0], once, (condition, tree))[1]


def _rows(rows: Array, order: Int[np.ndarray, "*lanes members"]) -> Array:
    """Some rows of each lane, in the order of their indices."""
    select: Callable[[Array, Any], Array] = operator.getitem
    for _ in range(order.ndim - 1):
        select = jax.vmap(select)
    return select(rows, order)
