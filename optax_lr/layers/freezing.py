"""Training some labels only, and zero updates until a step."""

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .. import checks
from ..learning_rate import filled
from ..types import Array, Bool, Int, Label, Labels, ScalarLike
from .labels import (
    Labeler,
    StackedLabel,
    by_name,
    check_known,
    check_mapping,
    is_masked,
    label_tree,
    labels_of,
    leaves_by_path,
)


class ZeroUntilState(NamedTuple):
    """The state of `zero_until`, and the clock of `unfreeze_at`; `set_unfreezing_steps` changes it.

    A label trains in an update if `count >= starts[label]` before it; labels without a start always do. So a
    label took part in the last update if `count > starts[label]`.

    Attributes:
      count: updates so far; int32, stays at 2^31 - 1.
      starts: for each label, as a string, the number of the first update that it sees; int32.
    """

    count: Int[Array, "..."]  # type: ignore[assignment]  # a tuple has a method of that name
    starts: dict[str, Int[Array, "..."]]


def train_only(
    inner: optax.GradientTransformation, names: Label | Collection[Label], labels: Labeler | Labels
) -> optax.GradientTransformationExtraArgs:
    """Train the parameters of some labels; the others get zero updates and no optimizer state.

    A jitted training step computes no gradient for the others, unless something reads it. So everything that
    reads gradients goes inside `inner`: clipping by the global norm, `apply_if_finite`, `MultiSteps` and a
    logged gradient norm outside of it bring back the cost of the whole network.

    A non-finite gradient of a parameter that is not trained has no effect; one of a trained parameter is
    `inner`'s.

    Args:
      inner: the optimizer of what is trained.
      names: the label or labels to train.
      labels: a `Labeler` or a tree of labels.

    Returns:
      A transformation; its state holds that of `inner`, with nothing for what is not trained.

    Raises:
      ValueError: `names` is empty; on init or update, the labels do not fit the parameters, one of `names`
        does not exist, or one array holds stacked layers of which only some are trained.

    >>> params = {"body": jnp.ones(3), "head": jnp.ones(2)}
    >>> tx = train_only(optax.adam(0.5), "new", {"body": "old", "head": "new"})
    >>> state = tx.init(params)
    >>> [leaf.shape for leaf in jax.tree.leaves(state)]
    [(), (2,), (2,)]
    >>> tx.update(params, state)[0]["body"].tolist()
    [0.0, 0.0, 0.0]

    Source: fastai's `freeze_to`; built on `optax.partition`.
    """
    chosen = listed_names("names", names)

    def parts(tree: optax.Params) -> Labels:
        found, known = label_tree(labels, tree)
        return trained_or_frozen("names", chosen, found, known, named=True)

    return optax.partition({"trainable": inner, "frozen": optax.set_to_zero()}, parts)


def zero_until(
    starts: Mapping[Label, ScalarLike], labels: Labeler | Labels
) -> optax.GradientTransformationExtraArgs:
    """Zero the updates of each label until its start; pass the others through.

    updates = 0 where count < starts[label]. It is for what must see all trainable gradients at once: placed
    before clipping by the global norm, it keeps frozen gradients out of the norm. See `unfreeze_at` for
    optimizers. The count is of its own updates: inside `MultiSteps` or `apply_if_finite` it is of optimizer
    steps, and in a chain beside them of every call.

    A non-finite update of a frozen parameter becomes 0; another passes through and stays where it is.

    Args:
      starts: from labels to the step of their first update, a count from 0 to 2^31 - 1; a fraction is
        rounded up. Labels that are left out pass from step 0 on. `set_unfreezing_steps` changes starts in
        the state.
      labels: a `Labeler` or a tree of labels.

    Returns:
      A transformation whose state is a `ZeroUntilState`.

    Raises:
      ValueError: `starts` is empty, has labels of the same name, or a concrete start is negative or not
        finite; on init or update, the labels do not fit the parameters, or a start is for a label that does
        not exist.

    >>> tx = optax.chain(zero_until({0: 1}, {"body": 0, "head": 1}), optax.clip_by_global_norm(1.0))
    >>> params = {"body": jnp.full((), jnp.nan), "head": jnp.full((), 2.0)}
    >>> updates, state = tx.update(params, tx.init(params))
    >>> {name: float(update) for name, update in updates.items()}
    {'body': 0.0, 'head': 1.0}

    Source: gradual unfreezing (Howard & Ruder 2018, arXiv:1801.06146, section 3.3).
    """
    first = checked_starts(starts)

    def init(params: optax.Params) -> ZeroUntilState:
        check_known("starts", starts, label_tree(labels, params)[1])
        return first_clock(first)

    def update(
        updates: optax.Updates,
        state: ZeroUntilState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ZeroUntilState]:
        del params, extra_args
        tree, known = label_tree(labels, updates)
        check_known("starts", starts, known)
        passed = zeroed(updates, tree, awake_labels(state))
        return passed, ZeroUntilState(optax.safe_increment(state.count), state.starts)

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

    >>> tx = zero_until({0: 100}, {"body": 0, "head": 1})
    >>> state = set_unfreezing_steps(tx.init({"body": jnp.ones(2), "head": jnp.ones(2)}), {0: 50})
    >>> int(state.starts["0"])
    50
    """
    changed = checked_starts(starts)
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


def listed_names(argument: str, names: Label | Collection[Label]) -> list[Label]:
    """One label or several as a list.

    Raises:
      ValueError: there is none, or `names` is a rule that labels parameters.
    """
    if isinstance(names, Labeler):
        raise ValueError(f"{argument} must be labels, got {names!r}; labels of parameters come after them.")
    chosen = [names] if isinstance(names, str | int) else list(names)
    if not chosen:
        raise ValueError(f"{argument} must name at least one label, got {names!r}.")
    return chosen


def trained_or_frozen(
    argument: str, chosen: list[Label], tree: Labels, known: list[Label] | None, *, named: bool
) -> Labels:
    """A tree of "trainable" and "frozen": the chosen labels are trained if `named`, else the others are.

    Raises:
      ValueError: a chosen label does not exist, or one array holds layers of both kinds.
    """
    check_known(argument, chosen, known)

    def part(path: str, label: Any) -> Any:
        if is_masked(label):
            return label
        among = {one in chosen for one in labels_of(label)}
        if len(among) > 1:
            raise ValueError(
                f"{argument} has only some of the layers that are stacked in {path!r}: name all of them, or give "
                "the others a multiplier of 0 in scale_by_label."
            )
        return "trainable" if among == {named} else "frozen"

    leaves, treedef = leaves_by_path(tree)
    return jax.tree.unflatten(treedef, [part(path, label) for path, label in leaves])


def checked_starts(starts: Mapping[Label, ScalarLike]) -> dict[str, Any]:
    """The starts by name, whole numbers of steps.

    Raises:
      ValueError: there is none, two have one name, or a concrete one is no count of steps.
    """
    check_mapping("starts", starts)
    if not starts:
        raise ValueError(f"starts must have at least one label, got {starts!r}.")
    return {
        name: _rounded_up(checks.steps(f"starts[{label!r}]", start, minimum=0))
        for label, (name, start) in zip(starts, by_name("starts", dict(starts)).items(), strict=True)
    }


def first_clock(starts: dict[str, Any]) -> ZeroUntilState:
    """The clock before the first step."""
    return ZeroUntilState(
        jnp.zeros((), jnp.int32), {name: jnp.asarray(start, jnp.int32) for name, start in starts.items()}
    )


def awake_labels(clock: ZeroUntilState) -> dict[str, Bool[Array, ""]]:
    """Whether each label with a start trains in the coming update."""
    return {name: clock.count >= start for name, start in clock.starts.items()}


def zeroed(updates: optax.Updates, tree: Labels, awake: dict[str, Any]) -> optax.Updates:
    """Updates with zeros where the label is not awake."""
    leaves, treedef = jax.tree.flatten(updates)
    labels = jax.tree.leaves(tree)
    # One array of zeros for all leaves of one type: a large model traces faster.
    zeros: dict[Any, Any] = {}
    for leaf in leaves:
        if jax.typeof(leaf) not in zeros:
            zeros[jax.typeof(leaf)] = jnp.zeros_like(leaf)
    kept = [
        keep(label, awake, leaf, zeros[jax.typeof(leaf)]) for label, leaf in zip(labels, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, kept)


def keep(label: Any, awake: dict[str, Any], new: Any, old: Any) -> Any:
    """`new` where the label is awake, else `old`; along the axis of stacked layers."""
    if not any(str(one) in awake for one in labels_of(label)):
        return new
    if not isinstance(label, StackedLabel):
        now = new if isinstance(new, jax.Array) else jnp.asarray(new)
        before = old if isinstance(old, jax.Array) and old.dtype == now.dtype else jnp.asarray(old, now.dtype)
        return jax.lax.select(awake[str(label)], now, before)
    each = jnp.stack([jnp.asarray(awake.get(str(one), True)) for one in label.labels])
    return jnp.where(label.along(each, jnp.shape(new)), new, old)


def _rounded_up(step: Any) -> ScalarLike:
    if not checks.is_traced(step):
        return math.ceil(step)
    # An integer goes through no float, which above 2^24 would be another number.
    return step if jnp.issubdtype(step.dtype, jnp.integer) else jnp.ceil(step).astype(jnp.int32)


def _is_clock(node: Any) -> bool:
    return isinstance(node, ZeroUntilState)
