"""Training each label from its own step on, with moments that begin there.

The inner optimizer runs once, over the whole tree, so what looks at all gradients sees all. Only counters that
belong to moments, such as that of Adam's bias correction, are kept for each label.
"""

from collections.abc import Callable, Collection, Container, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import checks
from ..types import Array, Label, Labels, ScalarLike
from .freezing import ZeroUntilState, awake_labels, checked_starts, first_clock, keep, zeroed
from .labels import Labeler, check_known, is_integers, label_tree, labels_of, leaves_by_keys
from .optimizer_steps import has_stepped
from .per_label import PerLabel, evaluate, of

_OTHERS = "(others)"
# Counters of `MultiSteps`, which stand beside the gradients that it has accumulated.
_OF_STEPS = ("mini_step", "gradient_step")
_RECORD = "learning_rate"
_INJECTED = ("hyperparams_states", _RECORD)


class UnfreezeAtState(NamedTuple):
    """The state of `unfreeze_at`.

    Attributes:
      clock: what is frozen now, and until when; its `count` is of optimizer steps.
      inner: the state of the inner optimizer, over all parameters.
      late: for each label with a start, as a string, the counters that begin with it, by their path in `inner`;
        the counters in `inner` itself are those of the labels without a start.
    """

    clock: ZeroUntilState
    inner: optax.OptState
    late: dict[str, dict[str, Array]]


def unfreeze_at(
    inner: optax.GradientTransformation,
    starts: Mapping[Label, ScalarLike],
    labels: Labeler | Labels,
    *,
    clock: Literal["run", "label"] = "run",
) -> optax.GradientTransformationExtraArgs:
    """Train each label from its own start on, with moments that are fresh at that step.

    Before its start a label gets zero updates, its moments do not move, and `inner` sees zeros for its
    gradients. Its first update is that of a fresh optimizer: moments and the counters of their bias
    corrections begin there. (One shared count would make a late first update of Adam several times too
    large.) `inner` sees the whole tree, so a global norm in it is that of all labels that train.

    Starts count optimizer steps, whether `MultiSteps` or `apply_if_finite` stand inside `inner` or around.
    Schedules inside `inner` read the run's step; with `clock="label"` they begin with each label, and the
    rate that the state shows is then that of the labels without a start.

    A non-finite gradient has no effect before its label's start; after it, it is `inner`'s.

    Args:
      inner: the optimizer.
      starts: from labels to the step of their first update, a count from 0 to 2^31 - 1; a fraction is
        rounded up. `set_unfreezing_steps` changes starts in the state.
      labels: a `Labeler` or a tree of labels.
      clock: what schedules in `inner` count: "run", the steps of the run; "label", those since the label's
        start.

    Returns:
      A transformation whose state is an `UnfreezeAtState`.

    Raises:
      ValueError: as `zero_until`, or `clock` is another word.

    >>> tx = unfreeze_at(optax.adam(0.5), {0: 1}, {"body": 0, "head": 1})
    >>> params = {"body": jnp.ones(()), "head": jnp.ones(())}
    >>> state = tx.init(params)
    >>> for _ in range(2):
    ...     updates, state = tx.update(params, state)
    ...     print({name: round(float(update), 4) for name, update in updates.items()})
    {'body': 0.0, 'head': -0.5}
    {'body': -0.5, 'head': -0.5}

    Source: gradual unfreezing (Howard & Ruder 2018, arXiv:1801.06146, section 3.3): one group an epoch,
    from the head down, under one schedule for the whole run.
    """
    checks.choice("clock", clock, ("run", "label"))
    first = checked_starts(starts)
    whole = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> UnfreezeAtState:
        check_known("starts", starts, label_tree(labels, params)[1])
        held = whole.init(_as_tree(params))
        own = _own_counters(held, _as_tree(params), with_schedules=clock == "label")
        # An array for each label: the same one twice could not be donated.
        late = {name: {path: jnp.array(counter) for path, counter in own.items()} for name in first}
        return UnfreezeAtState(first_clock(first), held, late)

    def update(
        updates: optax.Updates,
        state: UnfreezeAtState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, UnfreezeAtState]:
        tree, known = label_tree(labels, updates)
        check_known("starts", starts, known)
        awake = awake_labels(state.clock)
        seen = zeroed(updates, tree, awake)

        def step(inner_state: optax.OptState) -> tuple[optax.Updates, optax.OptState]:
            return whole.update(_as_tree(seen), inner_state, _as_tree(params), **extra_args)

        moved, held, late = _step_per_label(step, state, _as_tree(tree))
        made = has_stepped(state.inner, held)
        count = optax.safe_increment(state.clock.count)
        ticked = count if made is True else jnp.where(made, count, state.clock.count)
        emitted = moved[0] if _is_bare(updates) else moved
        return zeroed(emitted, tree, awake), UnfreezeAtState(state.clock._replace(count=ticked), held, late)

    return optax.GradientTransformationExtraArgs(init, update)


def _step_per_label(
    step: Callable[[optax.OptState], tuple[optax.Updates, optax.OptState]],
    state: UnfreezeAtState,
    tree: Labels,
) -> tuple[optax.Updates, optax.OptState, dict[str, dict[str, Array]]]:
    """One step of the inner optimizer, each array by its label's counters; sleeping labels keep their state."""
    awake = awake_labels(state.clock)
    labels = jax.tree.leaves(tree)
    label_at = dict(leaves_by_keys(tree))
    before = _located(state.inner, label_at)
    paths = {"/".join(keys): index for index, (keys, *_) in enumerate(before)}
    own = {paths[path]: path for path in next(iter(state.late.values()))}
    # A number that is kept by label, such as a norm, is made by the counters of that label.
    of_leaf = [
        label_at[parameter]
        if parameter is not None
        else keys[-1]
        if by_label and keys[-1] in state.late
        else None
        for keys, _, parameter, by_label in before
    ]
    if own:
        moved, after, counters = _evaluated(step, state, labels, of_leaf, own)
    else:
        moved, new = step(state.inner)
        after, counters = jax.tree.leaves(new), {name: {} for name in state.late}
    held = [
        new if parameter is None else keep(label, awake, new, old)
        for label, new, (_, old, parameter, _) in zip(of_leaf, after, before, strict=True)
    ]
    late = {
        name: {path: jax.lax.select(awake[name], counters[name][path], old) for path, old in each.items()}
        for name, each in state.late.items()
    }
    return moved, jax.tree.unflatten(jax.tree.structure(state.inner), held), late


def _evaluated(
    step: Callable[[optax.OptState], tuple[optax.Updates, optax.OptState]],
    state: UnfreezeAtState,
    labels: list[Any],
    of_leaf: list[Any],
    own: dict[int, str],
) -> tuple[optax.Updates, list[Any], dict[str, dict[str, Array]]]:
    """One step where the counters at some leaves of the state differ from label to label."""
    leaves, treedef = jax.tree.flatten(state.inner)
    # A label's rate is a record: a rate that is set by hand is set in `inner`, for all labels.
    read = [i for i, path in own.items() if not path.endswith(_RECORD)]

    def with_counters(counters: list[Array]) -> tuple[optax.Updates, optax.OptState]:
        given = dict(zip(read, counters, strict=True))
        return step(jax.tree.unflatten(treedef, [given.get(i, leaf) for i, leaf in enumerate(leaves)]))

    traced, shapes = jax.make_jaxpr(with_counters, return_shape=True)([leaves[i] for i in read])
    inputs = [
        PerLabel({_OTHERS: leaves[i], **{name: each[own[i]] for name, each in state.late.items()}})
        for i in read
    ]
    everyone = frozenset({_OTHERS, *state.late})
    wanted = [frozenset(_groups(label, state.late)) for label in labels] + [
        everyone if i in own else frozenset(_groups(label, state.late)) for i, label in enumerate(of_leaf)
    ]
    values = evaluate(traced.jaxpr, traced.consts, inputs, wanted, everyone)
    arrays = [
        _merged(value, label, state.late) for value, label in zip(values, [*labels, *of_leaf], strict=True)
    ]
    moved = jax.tree.unflatten(jax.tree.structure(shapes[0]), arrays[: len(labels)])
    counters = {
        name: {path: of(values[len(labels) + i], name) for i, path in own.items()} for name in state.late
    }
    return moved, arrays[len(labels) :], counters


def _groups(label: Any, late: Collection[str]) -> list[str]:
    """For each layer of an array (one, if none are stacked), whose counters it goes by."""
    if label is None:
        return [_OTHERS]
    return [str(one) if str(one) in late else _OTHERS for one in labels_of(label)] or [_OTHERS]


def _merged(value: Any, label: Any, late: Collection[str]) -> Any:
    """The array for a label; where layers are stacked, each layer's part of what its label gives."""
    groups = _groups(label, late)
    once = sorted(set(groups))
    each = [jnp.asarray(of(value, name)) for name in once]
    if len(each) == 1:
        return of(value, once[0])
    which = label.along([once.index(name) for name in groups], each[0].shape).astype(np.int32)
    # A sum, so that it is sharded as the array is.
    return jax.lax.select_n(jnp.zeros_like(each[0], jnp.int32) + which, *each)


def _own_counters(state: optax.OptState, params: optax.Params, *, with_schedules: bool) -> dict[str, Array]:
    """The counters that begin with a label: those beside moments, and with `with_schedules` those of schedules.

    A schedule's counter stands alone, or beside other numbers; a counter of moments stands beside a tree like
    the parameters, as in `ScaleByAdamState`.
    """
    leaves = _located(
        state,
        {keys for keys, _ in leaves_by_keys(params)},
        is_leaf=lambda node: type(node) is type(params) and not jax.tree.leaves((node, params)),
    )
    holders = {
        keys[: len(keys) - len(parameter) - 1] for keys, _, parameter, _ in leaves if parameter is not None
    } | {keys[:-1] for keys, leaf, *_ in leaves if not jax.tree.leaves(leaf)}
    scheduled = {keys[:-1] for keys, *_ in leaves if keys[-1:] == ("count",)} if with_schedules else set()
    # A rate that a schedule injects stands apart from its count.
    injected = {(*keys[:-2], "hyperparams", _RECORD) for keys in scheduled if keys[-2:] == _INJECTED}
    own = {}
    for keys, leaf, parameter, _ in leaves:
        beside = keys[:-1] in holders and keys[-1] not in _OF_STEPS
        of_schedule = (keys[:-1] in scheduled and keys[-1] in ("count", _RECORD)) or keys in injected
        if parameter is None and jax.tree.leaves(leaf) and (beside or of_schedule):
            own["/".join(keys)] = leaf
    return own


def _located(
    state: optax.OptState,
    parameters: Container[tuple[str, ...]],
    is_leaf: Callable[[Any], bool] = lambda node: False,
) -> list[tuple[tuple[str, ...], Any, tuple[str, ...] | None, bool]]:
    """Every leaf of a state: its keys, itself, the keys of the parameter that it belongs to, if to any, and whether
    it is a number that is kept by label. Labels may have the names of parameters."""
    nodes = jax.tree.leaves(state, is_leaf=lambda node: is_leaf(node) or _is_by_label(node))
    by_label = [
        _is_by_label(node)
        for node in nodes
        for _ in (jax.tree.leaves(node, is_leaf=is_leaf) if _is_by_label(node) else [node])
    ]
    return [
        (keys, leaf, None if apart else _parameter_of(keys, leaf, parameters), apart)
        for (keys, leaf), apart in zip(leaves_by_keys(state, is_leaf), by_label, strict=True)
    ]


def _is_by_label(node: Any) -> bool:
    return type(node).__name__ in ("ScaleByLabelState", "EffectiveRates")


def _parameter_of(
    keys: tuple[str, ...], leaf: Any, parameters: Container[tuple[str, ...]]
) -> tuple[str, ...] | None:
    """The keys of the parameter that a leaf of the state belongs to: the longest end of its own."""
    if is_integers(leaf) and not jnp.ndim(leaf):  # a counter, also if a parameter is called "count"
        return None
    ends = (keys[start:] for start in range(1, len(keys)))
    return next((end for end in ends if end in parameters), None)


def _is_bare(tree: Any) -> bool:
    return jax.tree_util.all_leaves([tree])


def _as_tree(tree: Any) -> Any:
    """A bare array in a list, so that it has a key by which its moments are found in the state."""
    return [tree] if _is_bare(tree) else tree
