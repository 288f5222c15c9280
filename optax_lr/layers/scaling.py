"""A multiplier of the learning rate for each label, constant or on a schedule.

It is placed after the optimizer: Adam divides any scale of its gradients out again.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import checks
from ..types import Array, Float, Int, Label, Labels
from .labels import (
    INTEGERS,
    Labeler,
    StackedLabel,
    by_name,
    check_mapping,
    is_masked,
    label_tree,
    labels_of,
    leaves_by_path,
)
from .multipliers import MultiplierRule, Multipliers, multiplier_table


class ScaleByLabelState(NamedTuple):
    """The state of `scale_by_label`.

    Attributes:
      count: updates so far; int32, stays at 2^31 - 1. It is what schedules read.
      last_multipliers: a record: for each label, as a string, what the last update was multiplied by; before
        the first, what that will be. A scalar, or one number a layer where the multiplier is an array.
    """

    count: Int[Array, "..."]  # type: ignore[assignment]  # a tuple has a method of that name
    last_multipliers: dict[str, Float[Array, "..."]]


def scale_by_label(
    multipliers: Multipliers, labels: Labeler | Labels
) -> optax.GradientTransformationExtraArgs:
    """Multiply the update of each parameter by the multiplier of its label. One multiply a leaf.

    updates = multiplier[label] * updates. It goes after the optimizer: before an adaptive one it does
    nothing. Weight decay that comes before it in the chain is scaled with it, weight decay after it is not.
    Schedules read the count of its own updates. So inside `MultiSteps` or `apply_if_finite` they count
    optimizer steps, and in a chain beside them every call.

    No label adds a kernel that touches a parameter, nor a byte, also under `apply_if_finite` or `jax.lax.cond`.
    For an H100, XLA compiles each multiplier into a kernel of its own: AdamW over 48 arrays with 24 labels
    compiles in 9 seconds on two CPU cores where one label takes 2.4. For a TPU it makes no difference.

    A multiplier of 0 gives zeros, for updates that are NaN or infinite too; otherwise what is non-finite in
    an update stays where it is. `apply_updates` still reads and writes such a parameter: to freeze many,
    `train_only` costs nothing. Products are taken in float32 or the updates' own precision, whichever is
    finer, and leave with the dtype they came with. Integers pass as they are.

    Args:
      multipliers: for every label a finite number of at least 0, or a schedule of the count of updates; or a
        rule such as `layer_decay(0.75)`. An array `[layers]` holds one number for each layer that is stacked
        along the first axis of every parameter with that label.
      labels: a `Labeler` or a tree of labels.

    Returns:
      A transformation whose state is a `ScaleByLabelState`.

    Raises:
      ValueError: a concrete multiplier is negative or not finite; on init or update, the labels do not fit
        the parameters, a multiplier is for a label that does not exist, a label has none, or an array does
        not fit a parameter.

    >>> labels = {"body": "old", "head": "new"}
    >>> tx = optax.chain(optax.sgd(1.0), scale_by_label({"old": 0.1, "new": 1.0}, labels))
    >>> params = {"body": jnp.ones(()), "head": jnp.ones(())}
    >>> updates, _ = tx.update(params, tx.init(params))
    >>> {name: round(float(update), 6) for name, update in updates.items()}
    {'body': -0.1, 'head': -1.0}

    Source: Caffe's `lr_mult`, a multiplier of the rate for each blob (caffe.proto, ParamSpec).
    """
    if not isinstance(multipliers, MultiplierRule):
        check_mapping("multipliers", multipliers, or_else=" or a rule such as layer_decay()")
    given = (
        multipliers
        if isinstance(multipliers, MultiplierRule)
        else {label: _checked(f"multipliers[{label!r}]", value) for label, value in multipliers.items()}
    )

    def now(tree: Labels, known: list[Label] | None, count: Any) -> dict[Label, Any]:
        table = multiplier_table(given, tree, known)
        # Only labels that parameters here have: those that `partition` or `masked` took out are not in force.
        # Where there is no parameter at all Optax asks what a state looks like.
        here = {one for label in jax.tree.leaves(tree) for one in labels_of(label)} or set(table)
        return {
            label: checks.value_at(f"multipliers[{label!r}]", value, count) if callable(value) else value
            for label, value in table.items()
            if label in here
        }

    def init(params: optax.Params) -> ScaleByLabelState:
        count = jnp.zeros((), jnp.int32)
        return ScaleByLabelState(count, _record(now(*label_tree(labels, params), count)))

    def update(
        updates: optax.Updates,
        state: ScaleByLabelState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByLabelState]:
        del params, extra_args
        tree, known = label_tree(labels, updates)
        table = now(tree, known, state.count)
        leaves, treedef = leaves_by_path(updates)
        scaled = [
            _scaled(table, label, update, path)
            for (path, update), label in zip(leaves, treedef.flatten_up_to(tree), strict=True)
        ]
        after = ScaleByLabelState(optax.safe_increment(state.count), _record(table))
        return jax.tree.unflatten(treedef, scaled), after

    return optax.GradientTransformationExtraArgs(init, update)


def _checked(name: str, multiplier: Any) -> Any:
    """A schedule, a number, or an array with a number for each stacked layer."""
    if callable(multiplier):
        return multiplier
    if np.ndim(multiplier) != 1 or isinstance(multiplier, str):
        return checks.number(name, multiplier, minimum=0)
    if checks.is_traced(multiplier):
        return multiplier.astype(float)
    return np.array([checks.number(f"{name}[{i}]", one, minimum=0) for i, one in enumerate(multiplier)])


def _record(table: dict[Label, Any]) -> dict[str, Array]:
    return {name: jnp.asarray(value, float) for name, value in by_name("multipliers", table).items()}


def _scaled(table: dict[Label, Any], label: Any, update: Any, path: str) -> Any:
    """The product; where the multiplier is 0, that is 0 for what is not finite too."""
    if is_masked(label) or label == INTEGERS or not jnp.issubdtype(jnp.result_type(update), jnp.inexact):
        return update
    array = jnp.asarray(update)
    factor = _factor(table, label, array.shape, path)
    known = not isinstance(factor, jax.Array)
    if known and not np.any(factor):
        return jnp.zeros_like(array)
    wide = array.astype(jnp.float32) if jnp.finfo(array.dtype).bits < 32 else array
    multiplier = jnp.asarray(factor, jnp.finfo(wide.dtype).dtype)
    if not (known and np.all(factor)):
        # Zeros go into the product, not in its place: that keeps the derivative by a multiplier of 0.
        wide = jnp.where((multiplier != 0) | jnp.isfinite(wide), wide, jnp.zeros_like(wide))
    return (multiplier * wide).astype(array.dtype)


def _factor(table: dict[Label, Any], label: Any, shape: tuple[int, ...], path: str) -> Any:
    """What multiplies an update of some shape: a NumPy value if it is known now, else an array of JAX."""
    if isinstance(label, StackedLabel):
        each = [table[one] for one in label.labels]
        if any(np.ndim(one) for one in each):
            raise ValueError(
                f"multipliers has an array for a label of {path!r}, whose layers have a label each: give each a "
                "number."
            )
        known = not any(isinstance(one, jax.Array) for one in each)
        return label.along(each if known else jnp.stack([jnp.asarray(one, float) for one in each]), shape)
    value = table[label]
    if np.ndim(value) == 0:
        return value
    if not shape or shape[0] != len(value):
        raise ValueError(
            f"multipliers[{label!r}] must have one number for each layer of {path!r}, which has the shape "
            f"{shape}, got an array of {len(value)}."
        )
    return value.reshape(-1, *[1] * (len(shape) - 1))
