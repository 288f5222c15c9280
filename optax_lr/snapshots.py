"""Snapshots: the parameters at the ends of cycles to an ensemble. One training run, many models.

With the cycles that drive the schedule:

    cycles = Cycles(1000, growth=2)
    tx = optax.chain(optax.adam(sgdr_schedule(1e-3, 0.0, cycles)), snapshot_at_cycle_ends(cycles, 5))
    snapshots = get_snapshots(state)                            # after training
    outputs, spread = ensemble_predict(apply_fn, snapshots, inputs)
    params = average_snapshots(snapshots)                       # or one model: the average of the weights
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import checks
from .schedules.cycles import Cycles
from .types import Array, ArrayLike, Float, Int, PyTree, ScalarLike, Shaped

Combine = Literal["probabilities", "logits", "none"]

_EMPTY = -1


class SnapshotAtCycleEndsState(NamedTuple):
    """The state of `snapshot_at_cycle_ends`; `get_snapshots` reads it.

    Attributes:
      count: updates so far; int32, stays at 2^31 - 1.
      steps: for each slot the step whose update its snapshot was taken after, -1 while it is empty; int32.
      params: the snapshots, with a leading axis [slots]; an empty slot holds the parameters of init.
    """

    count: Int[Array, "..."]  # type: ignore[assignment]  # a tuple has a method of that name
    steps: Int[Array, "*lanes slots"]
    params: PyTree


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


class EnsemblePrediction(NamedTuple):
    """What an ensemble says, and how far its members are apart.

    Attributes:
      outputs: the members' outputs combined, or all of them with the leading axes of the members.
      spread: their standard deviation over the members, each with its weight.
    """

    outputs: PyTree
    spread: PyTree


def snapshot_at_cycle_ends(
    cycles: Cycles | ScalarLike, max_snapshots: int, *, burn_in: ScalarLike = 0
) -> optax.GradientTransformationExtraArgs:
    """Keep the parameters as they are after the last update of each cycle. It goes last in a chain.

    After update t, where t is the last step of its cycle and that is not among the first `burn_in`, a copy of
    `optax.apply_updates(params, updates)` is kept; updates pass through unchanged. The newest `max_snapshots`
    stay: a further one takes the place of the oldest.

    A step that keeps nothing moves nothing of the snapshots, as long as update and `apply_updates` are
    compiled together and the state is donated or carried through a scan. `optax.MultiSteps` copies all of its
    inner state at every step: there, chain it after the `MultiSteps`, with cycles that count its every step.
    Under a `vmap` all lanes are visited where one of them is due.

    The count is that of the updates from init on: a schedule that `with_warmup` or `shift_schedule` moves has
    its cycles elsewhere. Derivatives pass the updates as if there were no snapshots; by way of a snapshot they
    go forwards (`jax.jvp`), while backwards (`jax.grad`) JAX refuses.

    What is non-finite is kept as it is, and reaches no other parameter and no other snapshot.

    Args:
      cycles: the `Cycles` of the schedule, or a number of steps for cycles of equal length without an end.
      max_snapshots: how many are kept, at least 1; each takes the memory of the parameters.
      burn_in: how many cycles at the start leave no snapshot, at least 0.

    Returns:
      A transformation whose state is a `SnapshotAtCycleEndsState`.

    Raises:
      ValueError: a concrete number is out of its range, or `max_snapshots` is traced; on update, there are no
        parameters.

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
    rounds = Cycles.of("cycles", cycles)
    slots = checks.size("max_snapshots", max_snapshots)
    skipped = checks.steps("burn_in", burn_in, minimum=0, whole=True)

    def init(params: optax.Params) -> SnapshotAtCycleEndsState:
        # Copies and not zeros: they take over how the parameters are laid out over devices.
        return SnapshotAtCycleEndsState(
            jnp.zeros((), jnp.int32),
            jnp.full(slots, _EMPTY, jnp.int32),
            jax.tree.map(lambda leaf: _unweak(jnp.broadcast_to(leaf, (slots, *jnp.shape(leaf)))), params),
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
        due = rounds.is_end(state.count) & (rounds.position(state.count).index >= skipped)
        now = optax.apply_updates(params, updates)

        def keep(carry: tuple[Array, Array, PyTree]) -> tuple[Array, Array, PyTree]:
            pending, steps, kept = carry
            slot = jnp.argmin(steps)  # an empty one, else the oldest
            return (
                jnp.zeros_like(pending),
                _put(steps, slot, state.count),
                jax.tree.map(lambda rows, leaf: _put(rows, slot, leaf), kept, now),
            )

        # A loop that runs at most once: a `cond` would copy every snapshot at every step on a GPU.
        _, steps, kept = jax.lax.while_loop(lambda carry: carry[0], keep, (due, state.steps, state.params))
        return updates, SnapshotAtCycleEndsState(optax.safe_increment(state.count), steps, kept)

    return optax.GradientTransformationExtraArgs(init, update)


def get_snapshots(opt_state: optax.OptState) -> Snapshots:
    """The snapshots in an optimizer's state, stacked, the oldest first. Not inside `jit`.

    The state is found inside any nest of wrappers, as by `get_learning_rate`.

    Args:
      opt_state: the state of an optimizer with one `snapshot_at_cycle_ends`; it may have leading axes, those
        of a vmapped training, and then so has the result. Of an `nnx.Optimizer` pass
        `nnx.as_pure(optimizer.opt_state)`.

    Returns:
      A `Snapshots` with a last leading axis of as many as have been taken, none or `max_snapshots` at most.

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
    nodes = jax.tree_util.tree_leaves_with_path(opt_state, is_leaf=_is_snapshots_state)
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): node
        for path, node in nodes
        if _is_snapshots_state(node)
    }
    if len(found) != 1:
        where = f", at {checks.listed(found)}: pass one of them" if found else ""
        raise ValueError(
            f"opt_state must hold one state of snapshot_at_cycle_ends, and holds {len(found)}{where}."
        )
    (state,) = found.values()
    if checks.is_traced(state.steps):
        raise ValueError(
            "get_snapshots must be called outside jit, for how many snapshots there are sizes its result."
        )
    steps = np.asarray(state.steps)
    counts = (steps != _EMPTY).sum(-1)
    if counts.min() != counts.max():
        raise ValueError(
            f"The lanes of opt_state hold from {counts.min()} to {counts.max()} snapshots: pass the state of "
            "one lane."
        )
    oldest_first = np.argsort(steps, axis=-1, kind="stable")[..., steps.shape[-1] - counts.max() :]
    return Snapshots(
        jax.tree.map(lambda rows: _rows(rows, oldest_first), state.params),
        jnp.asarray(np.take_along_axis(steps, oldest_first, axis=-1)),
    )


def ensemble_predict(
    apply_fn: Callable[[PyTree, PyTree], PyTree],
    snapshots: Snapshots,
    inputs: PyTree,
    *,
    combine: Combine = "probabilities",
    weights: Shaped[ArrayLike, "*members"] | None = None,
) -> EnsemblePrediction:
    """What all snapshots together predict, and how far they are apart. The members run in one `vmap`.

    With w the weights over their sum and z_i = apply_fn(params_i, inputs), the outputs are

    1. "probabilities": sum_i w_i softmax(z_i)
    2. "logits": sum_i w_i z_i, which is for regression too
    3. "none": z_i, one for each member

    and spread = sqrt(sum_i w_i (y_i - sum_j w_j y_j)^2), y being softmax(z) in the first case and else z.

    A member whose outputs are non-finite makes those of the ensemble so; one of weight 0 has no part in it,
    whatever it says.

    Args:
      apply_fn: from the parameters of one member and the inputs to its outputs: an array, or a pytree of
        arrays, with classes on the last axis for "probabilities".
      snapshots: the members, a `Snapshots`.
      inputs: what every member is given.
      combine: what becomes of the members' outputs.
      weights: one number of at least 0 for each member, with the shape of `snapshots.steps`; all alike by
        default. The softmax of minus the validation losses, say.

    Returns:
      An `EnsemblePrediction`, in float32 or the outputs' own precision, whichever is finer.

    Raises:
      ValueError: there are no members, `params` has other leading axes than `steps`, `weights` has another
        shape, a concrete weight is negative or not finite or all are 0, or there are no classes to take
        probabilities of.

    >>> members = Snapshots(jnp.array([1.0, 3.0]), jnp.array([9, 19]))
    >>> outputs, spread = ensemble_predict(lambda w, x: w * x, members, jnp.array([1.0, 2.0]), combine="logits")
    >>> outputs.tolist(), spread.tolist()
    ([2.0, 4.0], [1.0, 2.0])

    Source: Huang et al. 2017 (arXiv:1704.00109), section 3: the average of the members' softmax outputs.
    """
    checks.function("apply_fn", apply_fn)
    checks.choice("combine", combine, ("probabilities", "logits", "none"))
    shares = _shares(snapshots, weights)
    members = apply_fn
    for _ in range(shares.ndim):
        members = jax.vmap(members, in_axes=(0, None))
    given = jax.tree.map(_float, members(snapshots.params, inputs))
    if combine == "probabilities":
        for leaf in jax.tree.leaves(given):
            if leaf.ndim == shares.ndim or leaf.shape[-1] < 2:
                raise ValueError(
                    "combine='probabilities' needs outputs with two classes or more on the last axis, got the "
                    f"shape {leaf.shape[shares.ndim :]} of a member; combine='logits' averages outputs as they are."
                )
    said = jax.tree.map(jax.nn.softmax, given) if combine == "probabilities" else given
    mean = jax.tree.map(lambda leaf: _weighted(leaf, shares), said)
    variance = jax.tree.map(lambda leaf, center: _weighted((leaf - center) ** 2, shares), said, mean)
    return EnsemblePrediction(said if combine == "none" else mean, jax.tree.map(_root, variance))


def average_snapshots(
    snapshots: Snapshots,
    weights: Shaped[ArrayLike, "*members"] | None = None,
) -> PyTree:
    """One model: the average of the snapshots' weights. It predicts at the price of one member.

    params = sum_i w_i params_i, w being the weights over their sum. Running statistics that the parameters do
    not hold, those of batch normalization, fit none of the members and no longer fit: see
    `refresh_batch_stats`.

    A member that is not finite makes the average so where it is not; one of weight 0 has no part in it.

    Args:
      snapshots: the members, a `Snapshots`.
      weights: one number of at least 0 for each member, with the shape of `snapshots.steps`; all alike by
        default.

    Returns:
      Parameters of one member's shapes and dtypes, summed in float32 or finer. What is no floating-point
      number, a counter or a key, is the last member's.

    Raises:
      ValueError: as `ensemble_predict`, of members and weights.

    >>> average_snapshots(Snapshots({"w": jnp.array([1.0, 2.0, 6.0])}, jnp.array([9, 19, 29])))["w"].tolist()
    3.0

    Source: Izmailov et al. 2018 (arXiv:1803.05407), algorithm 1.
    """
    shares = _shares(snapshots, weights)

    def average(leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf[(-1,) * shares.ndim]
        return _weighted(_float(leaf), shares).astype(leaf.dtype)

    return jax.tree.map(average, snapshots.params)


def refresh_batch_stats(
    apply_fn: Callable[[PyTree, PyTree], PyTree], params: PyTree, batches: PyTree
) -> PyTree:
    """Statistics of batch normalization for parameters that were not trained with any: an average.

    stats = 1/B sum_b apply_fn(params, batch_b), the mean over B batches of what each of them gives alone, in
    float32 or finer. Running averages that a training step would update with a momentum depend on where they
    start; these do not. In Flax, `BatchNorm(momentum=0.0)` gives the statistics of the batch alone:

        apply_fn = lambda params, batch: model.apply({"params": params}, batch, mutable=["batch_stats"])[1]

    Non-finite statistics of one batch make the mean non-finite where they are.

    Args:
      apply_fn: from parameters and a batch to the statistics of that batch, a pytree of arrays; pure. It is
        compiled once for each function, so pass the same one again.
      params: the parameters, of `average_snapshots`, say.
      batches: a pytree of arrays with leading axis [batches]; batches of the size of the training's.

    Returns:
      The statistics, with the structure, shapes and dtypes of `apply_fn`'s.

    Raises:
      ValueError: `batches` has no leading axis in common, or none at all.

    >>> stats = lambda params, batch: {"mean": (params * batch).mean(), "var": (params * batch).var()}
    >>> batches = jnp.array([[0.0, 2.0], [4.0, 8.0]])
    >>> {name: float(stat) for name, stat in refresh_batch_stats(stats, jnp.float32(1), batches).items()}
    {'mean': 3.5, 'var': 2.5}

    Source: Izmailov et al. 2018 (arXiv:1803.05407), section 3.2; the mean over batches is that of PyTorch's
    `torch.optim.swa_utils.update_bn`.
    """
    checks.function("apply_fn", apply_fn)
    count = checks.leading_axis("batches", batches)
    like = jax.eval_shape(apply_fn, params, _at(batches, 0))
    total = jax.tree.map(lambda leaf: _float(jnp.zeros(leaf.shape, leaf.dtype)), like)
    # One dispatch a batch: XLA's CPU backend runs a convolution inside a loop many times slower.
    for index in range(count):
        total = _add_stats(apply_fn, total, params, _at(batches, index))
    return jax.tree.map(lambda leaf, stat: (leaf / count).astype(stat.dtype), total, like)


@functools.partial(jax.jit, static_argnums=0)
def _add_stats(apply_fn: Callable, total: PyTree, params: PyTree, batch: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, total, apply_fn(params, batch))


def _at(batches: PyTree, index: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[index], batches)


def _is_snapshots_state(node: Any) -> bool:
    return isinstance(node, SnapshotAtCycleEndsState)


def _unweak(leaf: Array) -> Array:
    return jax.lax.convert_element_type(leaf, leaf.dtype)


def _put(rows: Array, slot: Array, leaf: Array) -> Array:
    return jax.lax.dynamic_update_index_in_dim(rows, leaf, slot, 0, allow_negative_indices=False)


def _rows(rows: Array, order: Int[np.ndarray, "*lanes members"]) -> Array:
    """Some rows of each lane, in the order of their indices."""
    select: Callable[[Array, Any], Array] = operator.getitem
    for _ in range(order.ndim - 1):
        select = jax.vmap(select)
    return select(rows, order)


def _shares(snapshots: Snapshots, weights: Any) -> Float[Array, "*members"]:
    """The weights of the members over their sum."""
    lead = jnp.shape(snapshots.steps)
    wrong = [leaf for leaf in jax.tree.leaves(snapshots.params) if jnp.shape(leaf)[: len(lead)] != lead]
    if not lead or 0 in lead or wrong:
        raise ValueError(
            "snapshots must have at least one member, and params the leading axes of steps, got params of "
            f"shapes {checks.shapes(snapshots.params)} and steps of shape {lead}."
        )
    if weights is None:
        return jnp.full(lead, 1 / np.prod(lead), float)
    expected = f"weights must be finite numbers of at least 0 of shape {lead}, and not all 0"
    if jnp.shape(weights) != lead:
        raise ValueError(f"{expected}, got the shape {jnp.shape(weights)}.")
    if not checks.is_traced(weights):
        known = np.asarray(weights, np.float64)
        if not (np.isfinite(known).all() and (known >= 0).all() and known.any()):
            raise ValueError(f"{expected}, got {known.tolist()!r}.")
    given = jnp.asarray(weights, float)
    return given / given.sum()


def _weighted(leaf: Array, shares: Float[Array, "*members"]) -> Array:
    """The weighted sum over the members. A sum of products, which no matrix unit rounds."""
    share = jnp.expand_dims(shares, range(shares.ndim, leaf.ndim))
    # Zeros go into the product, not in its place: that keeps the derivative by a weight of 0.
    return jnp.sum(share * jnp.where((share != 0) | jnp.isfinite(leaf), leaf, 0), range(shares.ndim))


def _float(leaf: Array) -> Array:
    """In float32, or its own precision where that is finer."""
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))


def _root(variance: Array) -> Array:
    """The square root, with a derivative of 0 at 0."""
    positive = variance > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1)), 0)
