"""Effective rates: how large the updates of any optimizer are beside the gradients and the weights.

tx = track_effective_rates(optax.rmsprop(1e-3), labels)
effective_rates(state).update_to_gradient["head"]     # of the last update, for the log
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from . import checks
from .layers.labels import Labeler, StackedLabel, is_masked, label_tree, labels_of, leaves_by_path, ordered
from .types import Array, Float, Int, Label, Labels, PyTree, ScalarLike

_ALL = "all"


class EffectiveRates(NamedTuple):
    """What `effective_rates` returns: for each label, as a string, a float32 number.

    Attributes:
      update_to_gradient: the norm of the update over that of the gradient: the rate that plain gradient descent
        would need for a step of this size.
      update_to_weight: the norm of the update over that of the weights; often near 1e-3 where training goes well.
      gradient_norm: the Euclidean norm of the gradient.
    """

    update_to_gradient: dict[str, Float[Array, "..."]]
    update_to_weight: dict[str, Float[Array, "..."]]
    gradient_norm: dict[str, Float[Array, "..."]]


class TrackEffectiveRatesState(NamedTuple):
    """The state of `track_effective_rates`; `effective_rates` reads it.

    Attributes:
      count: updates so far; int32, stays at 2^31 - 1.
      last_rates: those of the last update that was measured; 0 before the first.
      inner_state: the state of the inner optimizer.
    """

    count: Int[Array, "..."]  # type: ignore[assignment]  # a tuple has a method of that name
    last_rates: EffectiveRates
    inner_state: optax.OptState


def track_effective_rates(
    inner: optax.GradientTransformation, labels: Labeler | Labels | None = None, *, every: ScalarLike = 1
) -> optax.GradientTransformationExtraArgs:
    """Keep in the state, for each label, how large the updates of an optimizer are.

    |update| / |gradient|, |update| / |weight| and |gradient|, with Euclidean norms over all parameters of a label,
    in float32. A ratio is 0 where there is nothing to divide by: no gradient, no weight, or no `params` given.

    Updates are those of `inner`. Each measured update costs reductions: sums of squares over gradients, updates and
    weights. As compiled for an H100 and a v5e they are two passes over the parameters, where Adam's update makes
    seven. With `every` above 1 they are skipped in between, but not inside `jax.vmap`, where a condition computes
    both of its sides.

    A non-finite gradient, update or weight makes the numbers of its label non-finite; those of other labels and
    all updates are as without it.

    Args:
      inner: the whole optimizer: what goes in is the gradient, what comes out is the update.
      labels: a `Labeler` that knows its labels, as `label_by_path` does, or a tree of labels, as
        `labeler.resolve(params)` gives; by default all parameters are one label, "all".
      every: an update is measured after this many, the first one always; a whole number of at least 1.

    Returns:
      A transformation whose state is a `TrackEffectiveRatesState`.

    Raises:
      ValueError: a concrete `every` is out of range, `labels` has no label; on init or update, labels do not fit
        the parameters.

    >>> tx = track_effective_rates(optax.sgd(0.1), {"body": "old", "head": "new"})
    >>> params = {"body": jnp.full(4, 2.0), "head": jnp.full((), 2.0)}
    >>> _, state = tx.update({"body": jnp.full(4, 3.0), "head": jnp.zeros(())}, tx.init(params), params)
    >>> rates = effective_rates(state)
    >>> {label: round(float(rate), 4) for label, rate in rates.update_to_gradient.items()}
    {'new': 0.0, 'old': 0.1}
    >>> round(float(rates.update_to_weight["old"]), 4), float(rates.gradient_norm["old"])
    (0.15, 6.0)

    Source: the size of an update is what AdaGrad shrinks and RMSProp keeps (Duchi et al. 2011; Tieleman & Hinton
    2012); update over weight after You et al. 2017 (arXiv:1708.03888), section 4.
    """
    names = _names(labels)
    calls = checks.steps("every", every, whole=True, unit="updates")
    tx = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> TrackEffectiveRatesState:
        if labels is not None:
            label_tree(labels, params)
        zeros = [{name: jnp.zeros((), jnp.float32) for name in names} for _ in EffectiveRates._fields]
        return TrackEffectiveRatesState(jnp.zeros((), jnp.int32), EffectiveRates(*zeros), tx.init(params))

    def update(
        updates: optax.Updates,
        state: TrackEffectiveRatesState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, TrackEffectiveRatesState]:
        moved, inner_state = tx.update(updates, state.inner_state, params, **extra_args)
        labels_at = _labels_at(labels, updates)
        # Nothing is differentiated through a log: the slope of a norm at 0 is infinite.
        parts = jax.lax.stop_gradient([_numbers(tree, labels_at) for tree in (updates, moved, params)])

        def measured() -> EffectiveRates:
            gradient, change, weight = (_norms(part, labels_at, names) for part in parts)
            return EffectiveRates(_over(change, gradient), _over(change, weight), gradient)

        if isinstance(calls, int) and calls == 1:
            rates = measured()
        else:
            rates = jax.lax.cond(state.count % calls == 0, measured, lambda: state.last_rates)
        return moved, TrackEffectiveRatesState(optax.safe_increment(state.count), rates, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def effective_rates(opt_state: optax.OptState) -> EffectiveRates:
    """The effective rates in an optimizer's state: those of the last update that was measured.

    Args:
      opt_state: the state of an optimizer with one `track_effective_rates`, inside any nest of wrappers. It may be
        traced, or stacked by `jax.vmap` or `jax.lax.scan`: then each number is an array.

    Returns:
      An `EffectiveRates`.

    Raises:
      ValueError: the state holds no `track_effective_rates`, or several.

    >>> state = optax.chain(optax.identity(), track_effective_rates(optax.sgd(0.1))).init(jnp.ones(2))
    >>> float(effective_rates(state).gradient_norm["all"])
    0.0
    """

    def is_state(node: Any) -> bool:
        return isinstance(node, TrackEffectiveRatesState)

    found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_state) if is_state(node)]
    if len(found) != 1:
        raise ValueError(f"opt_state must hold one state of track_effective_rates, and holds {len(found)}.")
    return found[0].last_rates


def _names(labels: Labeler | Labels | None) -> list[str]:
    """All labels, before any parameters are seen: a state has one structure, whatever is masked out."""
    if labels is None:
        return [_ALL]
    known = ordered(labels.known if isinstance(labels, Labeler) else jax.tree.leaves(labels))
    if not known:
        raise ValueError(
            "labels must know every label before it sees parameters: pass labeler.resolve(params), a tree of them."
        )
    return sorted({str(label) for label in known})


def _labels_at(labels: Labeler | Labels | None, tree: PyTree) -> dict[str, Label | StackedLabel]:
    """The label of every path of a tree; of stacked layers, one for each layer."""
    if labels is None:
        return {path: _ALL for path, _ in leaves_by_path(tree)[0]}
    leaves = leaves_by_path(label_tree(labels, tree)[0])[0]
    return {path: label for path, label in leaves if not is_masked(label)}


def _numbers(tree: PyTree, labels_at: Mapping[str, Label | StackedLabel]) -> dict[str, Array]:
    """The leaves that hold floating-point numbers, by path; masked parts and integers have no norm."""
    return {
        path: jnp.asarray(leaf)
        for path, leaf in leaves_by_path(tree)[0]
        if path in labels_at and not is_masked(leaf) and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    }


def _norms(
    leaves: Mapping[str, Array], labels_at: Mapping[str, Label | StackedLabel], names: list[str]
) -> dict[str, Float[Array, ""]]:
    """The Euclidean norm over the leaves of each label."""
    squares: dict[str, list[Array]] = {name: [] for name in names}
    for path, leaf in leaves.items():
        size = jnp.abs(leaf).astype(jnp.float32)
        label = labels_at[path]
        kept = label.axis % leaf.ndim if isinstance(label, StackedLabel) else None
        sums = jnp.sum(size * size, axis=tuple(axis for axis in range(leaf.ndim) if axis != kept))
        for at, one in enumerate(labels_of(label)):
            squares[str(one)].append(sums if kept is None else sums[at])
    return {name: jnp.sqrt(sum(parts, jnp.zeros((), jnp.float32))) for name, parts in squares.items()}


def _over(
    above: Mapping[str, Float[Array, ""]], below: Mapping[str, Float[Array, ""]]
) -> dict[str, Float[Array, ""]]:
    """The ratio of two norms for each label; 0 where there is nothing to divide by."""
    return {
        name: jnp.where(below[name] == 0, 0.0, norm / jnp.where(below[name] == 0, 1.0, below[name]))
        for name, norm in above.items()
    }
