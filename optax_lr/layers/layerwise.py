"""Labels and multipliers to a transformation: a rate for each layer, training only some, unfreezing one by
one.

What a label decides is placed after the optimizer: Adam divides any scale of its gradients out again.
"""

import math
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .. import checks
from ..learning_rate import filled
from ..types import Array, Bool, Int, Label, Labels, ScalarLike, Schedule
from .labels import Labeler, check_known, check_multipliers, label_tree

_OTHERS = "(others)"


class ScaleByLabelState(NamedTuple):
    """The state of `scale_by_label` with a schedule among its multipliers.

    Attributes:
      count: updates so far; int32, stays at 2^31 - 1.
    """

    count: Int[Array, "..."]  # type: ignore[assignment]  # a tuple has a method of that name


class ZeroUntilState(NamedTuple):
    """The state of `zero_until`; `set_unfreezing_steps` changes it.

    Attributes:
      count: updates so far; int32, stays at 2^31 - 1.
      starts: for each label, as a string, the first update that it sees; int32.
    """

    count: Int[Array, "..."]  # type: ignore[assignment]
    starts: dict[str, Int[Array, "..."]]


class UnfreezeAtState(NamedTuple):
    """The state of `unfreeze_at`.

    Attributes:
      clock: what is frozen now, and until when.
      groups: a state of the inner optimizer for each label with a start, and one for all others.
    """

    clock: ZeroUntilState
    groups: optax.PartitionState


def scale_by_label(
    multipliers: Mapping[Label, ScalarLike | Schedule], labels: Labeler | Labels
) -> optax.GradientTransformationExtraArgs:
    """Multiply the update of each parameter by the multiplier of its label. One multiply a leaf.

    updates = multiplier[label] * updates. It goes after the optimizer: before an adaptive one it does
    nothing. Weight decay that comes before it in the chain is scaled with it, weight decay after it is not.

    A multiplier of 0 gives zeros, for updates that are NaN or infinite too; otherwise what is non-finite in
    an update stays where it is. Products are taken in float32 or the updates' own precision, whichever is
    finer, and leave with the dtype they came with.

    Args:
      multipliers: for every label a finite number of at least 0, or a schedule of the count of updates.
      labels: a `Labeler` or a tree of labels.

    Returns:
      A transformation; its state is a step count if there is a schedule, else empty.

    Raises:
      ValueError: a concrete multiplier is negative or not finite; on init or update, the labels do not fit
        the parameters, a multiplier is for a label that does not exist, or a label has none.

    >>> labels = {"body": "old", "head": "new"}
    >>> tx = optax.chain(optax.sgd(1.0), scale_by_label({"old": 0.1, "new": 1.0}, labels))
    >>> params = {"body": jnp.ones(()), "head": jnp.ones(())}
    >>> updates, _ = tx.update(params, tx.init(params))
    >>> {name: round(float(update), 6) for name, update in updates.items()}
    {'body': -0.1, 'head': -1.0}

    Source: Caffe's `lr_mult`, a multiplier of the rate for each blob (caffe.proto, ParamSpec).
    """
    numbers = {
        label: value if callable(value) else checks.number(f"multipliers[{label!r}]", value, minimum=0)
        for label, value in multipliers.items()
    }
    scheduled = any(map(callable, numbers.values()))
    constant = [label for label, number in numbers.items() if isinstance(number, float) and number != 0]

    def init(params: optax.Params) -> ScaleByLabelState | optax.EmptyState:
        check_multipliers(numbers, *label_tree(labels, params))
        return ScaleByLabelState(jnp.zeros((), jnp.int32)) if scheduled else optax.EmptyState()

    def update(
        updates: optax.Updates,
        state: ScaleByLabelState | optax.EmptyState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByLabelState | optax.EmptyState]:
        del params, extra_args
        tree, known = label_tree(labels, updates)
        check_multipliers(numbers, tree, known)
        now = {label: value(state.count) if callable(value) else value for label, value in numbers.items()}
        # A constant in the kernel would have XLA compile one for each label; a value, one for each shape. (On a
        # CPU the barrier is gone before kernels are made: there it neither helps nor costs.)
        values = jax.lax.optimization_barrier([jnp.asarray(numbers[label], float) for label in constant])
        now.update(zip(constant, values, strict=True))
        scaled = jax.tree.map(
            lambda label, update: _scaled(now[label], update, may_be_zero=label not in constant),
            tree,
            updates,
        )
        return scaled, ScaleByLabelState(optax.safe_increment(state.count)) if scheduled else state

    return optax.GradientTransformationExtraArgs(init, update)


def train_only(
    inner: optax.GradientTransformation, labels: Labeler | Labels, trainable: Label | Collection[Label]
) -> optax.GradientTransformationExtraArgs:
    """Train the parameters of some labels; the others get zero updates and no optimizer state.

    A jitted training step computes no gradient for the others, unless something reads it. So everything that
    reads gradients goes inside `inner`: clipping by the global norm, `apply_if_finite`, `MultiSteps` and a
    logged gradient norm outside of it bring back the cost of the whole network.

    A non-finite gradient of a parameter that is not trained has no effect; one of a trained parameter is
    `inner`'s.

    Args:
      inner: the optimizer of what is trained.
      labels: a `Labeler` or a tree of labels.
      trainable: the label or labels to train.

    Returns:
      A transformation; its state holds that of `inner`, with nothing for what is not trained.

    Raises:
      ValueError: `trainable` is empty; on init or update, the labels do not fit the parameters, or one of
        `trainable` does not exist.

    >>> params = {"body": jnp.ones(3), "head": jnp.ones(2)}
    >>> tx = train_only(optax.adam(0.5), {"body": "old", "head": "new"}, "new")
    >>> state = tx.init(params)
    >>> [leaf.shape for leaf in jax.tree.leaves(state)]
    [(), (2,), (2,)]
    >>> tx.update(params, state)[0]["body"].tolist()
    [0.0, 0.0, 0.0]

    Source: fastai's `freeze_to`; built on `optax.partition`.
    """
    chosen = [trainable] if isinstance(trainable, str | int) else list(trainable)
    if not chosen:
        raise ValueError(f"trainable must name at least one label, got {trainable!r}.")

    return _train_where(inner, labels, "trainable", chosen, named=True)


def zero_until(
    labels: Labeler | Labels, starts: Mapping[Label, ScalarLike]
) -> optax.GradientTransformationExtraArgs:
    """Zero the updates of each label until its start; pass the others through.

    updates = 0 where count < starts[label]. It is for what must see all trainable gradients at once: placed
    before clipping by the global norm, it keeps frozen gradients out of the norm. See `unfreeze_at` for
    optimizers.

    A non-finite update of a frozen parameter becomes 0; another passes through and stays where it is.

    Args:
      labels: a `Labeler` or a tree of labels.
      starts: from labels to the step of their first update, a count from 0 to 2^31 - 1; a fraction is
        rounded up. Labels that are left out pass from step 0 on. `set_unfreezing_steps` changes starts in
        the state.

    Returns:
      A transformation whose state is a `ZeroUntilState`.

    Raises:
      ValueError: `starts` is empty, has labels of the same name, or a concrete start is negative or not
        finite; on init or update, the labels do not fit the parameters, or a start is for a label that does
        not exist.

    >>> tx = optax.chain(zero_until({"body": 0, "head": 1}, {0: 1}), optax.clip_by_global_norm(1.0))
    >>> params = {"body": jnp.full((), jnp.nan), "head": jnp.full((), 2.0)}
    >>> updates, state = tx.update(params, tx.init(params))
    >>> {name: float(update) for name, update in updates.items()}
    {'body': 0.0, 'head': 1.0}

    Source: gradual unfreezing (Howard & Ruder 2018, arXiv:1801.06146, section 3.3).
    """
    first = _checked_starts(starts)

    def init(params: optax.Params) -> ZeroUntilState:
        check_known("starts", starts, label_tree(labels, params)[1])
        return ZeroUntilState(
            jnp.zeros((), jnp.int32), {name: jnp.asarray(start, jnp.int32) for name, start in first.items()}
        )

    def update(
        updates: optax.Updates,
        state: ZeroUntilState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ZeroUntilState]:
        del params, extra_args
        tree, known = label_tree(labels, updates)
        check_known("starts", starts, known)
        awake = _awake(state)
        passed = jax.tree.map(
            lambda label, update: (
                jnp.where(awake[str(label)], update, 0).astype(update.dtype)
                if str(label) in awake
                else update
            ),
            tree,
            updates,
        )
        return passed, ZeroUntilState(optax.safe_increment(state.count), state.starts)

    return optax.GradientTransformationExtraArgs(init, update)


def unfreeze_at(
    inner: optax.GradientTransformation, labels: Labeler | Labels, starts: Mapping[Label, ScalarLike]
) -> optax.GradientTransformationExtraArgs:
    """Train each label from its own start on, with an optimizer state that is fresh at that step.

    There is one state of `inner` for each label in `starts`, and one for all others, which train from step
    0. Before its start a label gets zero updates and its state does not move; its first update is that of a
    fresh optimizer. (One shared step count would make a late first update of Adam several times too large.)
    A schedule inside `inner` starts with its label; one on the run's clock goes outside, as does what must
    see all gradients at once.

    A non-finite gradient has no effect before its label's start; after it, it is `inner`'s.

    Args:
      inner: the optimizer; its norms are those of one group at a time.
      labels: a `Labeler` or a tree of labels.
      starts: from labels to the step of their first update, a count from 0 to 2^31 - 1; a fraction is
        rounded up. `set_unfreezing_steps` changes starts in the state.

    Returns:
      A transformation whose state is an `UnfreezeAtState`.

    Raises:
      ValueError: as `zero_until`.

    >>> tx = unfreeze_at(optax.adam(0.5), {"body": 0, "head": 1}, {0: 1})
    >>> params = {"body": jnp.ones(()), "head": jnp.ones(())}
    >>> state = tx.init(params)
    >>> for _ in range(2):
    ...     updates, state = tx.update(params, state)
    ...     print({name: round(float(update), 4) for name, update in updates.items()})
    {'body': 0.0, 'head': -0.5}
    {'body': -0.5, 'head': -0.5}

    Source: gradual unfreezing (Howard & Ruder 2018, arXiv:1801.06146, section 3.3): one group an epoch,
    from the head down.
    """
    clock = zero_until(labels, starts)
    names = {str(label) for label in starts}

    def parts(tree: optax.Params) -> Labels:
        found, _ = label_tree(labels, tree)
        return jax.tree.map(lambda label: str(label) if str(label) in names else _OTHERS, found)

    groups = optax.partition(dict.fromkeys([*sorted(names), _OTHERS], inner), parts)

    def init(params: optax.Params) -> UnfreezeAtState:
        return UnfreezeAtState(clock.init(params), groups.init(params))

    def update(
        updates: optax.Updates,
        state: UnfreezeAtState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, UnfreezeAtState]:
        moved, after = groups.update(updates, state.groups, params, **extra_args)
        awake = _awake(state.clock)
        held = {
            name: jax.tree.map(partial(jnp.where, awake[name]), new, state.groups.inner_states[name])
            if name in awake
            else new
            for name, new in after.inner_states.items()
        }
        emitted, ticked = clock.update(moved, state.clock)
        return emitted, UnfreezeAtState(ticked, optax.PartitionState(held))

    return optax.GradientTransformationExtraArgs(init, update)


def set_unfreezing_steps(opt_state: optax.OptState, starts: Mapping[Label, ScalarLike]) -> optax.OptState:
    """A new optimizer state with other starts for some labels. Nothing is compiled again.

    It changes every `unfreeze_at` and `zero_until` in the state, wherever it stands, that has such a label.
    A label that has begun and whose start is moved to later freezes again, and goes on with the state it had.

    Args:
      opt_state: the state of an optimizer with `unfreeze_at` or `zero_until`.
      starts: from labels to the step of their first update, as there.

    Returns:
      The new state; `opt_state` is unchanged.

    Raises:
      ValueError: a label has no start in the state, or a concrete start is negative or not finite.

    >>> tx = zero_until({"body": 0, "head": 1}, {0: 100})
    >>> state = set_unfreezing_steps(tx.init({"body": jnp.ones(2), "head": jnp.ones(2)}), {0: 50})
    >>> int(state.starts["0"])
    50
    """
    changed = _checked_starts(starts)
    nodes = jax.tree.leaves(opt_state, is_leaf=_is_clock)
    known = {name for node in nodes if _is_clock(node) for name in node.starts}
    if not known:
        raise ValueError("opt_state holds no starts: they come from unfreeze_at, zero_until or fine_tune.")
    check_known("starts", changed, sorted(known))

    def replace(node: Any) -> Any:
        if not _is_clock(node):
            return node
        return node._replace(
            starts={
                name: filled(old, changed[name]) if name in changed else old
                for name, old in node.starts.items()
            }
        )

    return jax.tree.map(replace, opt_state, is_leaf=_is_clock)


def fine_tune(
    inner: optax.GradientTransformation,
    labels: Labeler | Labels,
    multipliers: Mapping[Label, ScalarLike | Schedule],
    *,
    frozen: Label | Collection[Label] = (),
    starts: Mapping[Label, ScalarLike] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer with a multiplier for each label, some labels frozen for good, some until a step.

    `train_only` the labels that are not frozen, with `inner` (`unfreeze_at` its starts) and then
    `scale_by_label`. Weight decay in `inner` is scaled by the multipliers; to leave it unscaled, chain the
    parts by hand.

    A non-finite gradient has no effect where it is frozen or the multiplier is 0; elsewhere it is `inner`'s.

    Args:
      inner: the whole optimizer, its learning rate included.
      labels: a `Labeler` or a tree of labels.
      multipliers: for every label but the frozen ones, a finite number of at least 0 or a schedule of the
        run's updates; see `layer_decay` and `geometric_multipliers`.
      frozen: the label or labels that are never trained.
      starts: from labels to the step of their first update; see `unfreeze_at`.

    Returns:
      A transformation. `get_learning_rate` and `set_unfreezing_steps` find their parts of its state.

    Raises:
      ValueError: as the parts; or a label is frozen and has a start.

    >>> params = {"embed": jnp.ones(()), "block": jnp.ones(()), "head": jnp.ones(())}
    >>> from optax_lr import label_by_depth, layer_decay
    >>> labels = label_by_depth(["embed", "block", "head"]).resolve(params)
    >>> tx = fine_tune(optax.sgd(1.0), labels, layer_decay(labels, 0.5), frozen=0, starts={1: 1})
    >>> state = tx.init(params)
    >>> for _ in range(2):
    ...     updates, state = tx.update(params, state)
    ...     print({name: float(update) for name, update in updates.items()})
    {'block': 0.0, 'embed': 0.0, 'head': -1.0}
    {'block': -0.5, 'embed': 0.0, 'head': -1.0}

    Source: ULMFiT's fine-tuning (Howard & Ruder 2018, arXiv:1801.06146, sections 3.2 and 3.3).
    """
    never = [frozen] if isinstance(frozen, str | int) else list(frozen)
    for label in starts or ():
        if label in never:
            raise ValueError(f"starts has {label!r}, which frozen has too: take it out of one of them.")
    trained = unfreeze_at(inner, labels, starts) if starts else inner
    scaled = optax.chain(trained, scale_by_label(multipliers, labels))
    if not never:
        return scaled

    return _train_where(scaled, labels, "frozen", never, named=False)


def _train_where(
    inner: optax.GradientTransformation,
    labels: Labeler | Labels,
    argument: str,
    chosen: Collection[Label],
    *,
    named: bool,
) -> optax.GradientTransformationExtraArgs:
    """Train the labels that are among the chosen ones (`named`), or those that are not."""

    def parts(tree: optax.Params) -> Labels:
        found, known = label_tree(labels, tree)
        check_known(argument, chosen, known)
        return jax.tree.map(lambda label: "trainable" if (label in chosen) == named else "frozen", found)

    return optax.partition({"trainable": inner, "frozen": optax.set_to_zero()}, parts)


def _scaled(multiplier: Any, update: Array, *, may_be_zero: bool) -> Array:
    """The product; where the multiplier is 0, that is 0 for what is not finite too."""
    if isinstance(multiplier, float) and multiplier == 0:
        return jnp.zeros_like(update)
    factor = jnp.asarray(multiplier, float)
    # Zeros go into the product, not in its place: that keeps the derivative by a multiplier of 0.
    finite = jnp.where((factor != 0) | jnp.isfinite(update), update, 0) if may_be_zero else update
    return (factor * finite).astype(update.dtype)


def _checked_starts(starts: Mapping[Label, ScalarLike]) -> dict[str, Any]:
    """The starts by name, whole numbers of steps."""
    names = [_OTHERS, *map(str, starts)]
    if not starts or len(set(names)) < len(names):
        raise ValueError(f"starts must have at least one label, and each under another name, got {starts!r}.")
    return {
        str(label): _rounded_up(checks.steps(f"starts[{label!r}]", start, minimum=0))
        for label, start in starts.items()
    }


def _rounded_up(step: Any) -> ScalarLike:
    if not checks.is_traced(step):
        return math.ceil(step)
    # An integer goes through no float, which above 2^24 would be another number.
    return step if jnp.issubdtype(step.dtype, jnp.integer) else jnp.ceil(step).astype(jnp.int32)


def _awake(state: ZeroUntilState) -> dict[str, Bool[Array, "..."]]:
    return {name: state.count >= start for name, start in state.starts.items()}


def _is_clock(node: Any) -> bool:
    return isinstance(node, ZeroUntilState)
