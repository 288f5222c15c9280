"""Fine-tuning in one line: multipliers, frozen labels and late starts around a whole optimizer."""

from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import optax

from ..types import Label, Labels, ScalarLike
from .freezing import trained_or_frozen
from .labels import Labeler, label_tree, leaves_by_path
from .multipliers import Multipliers
from .optimizer_steps import has_stepped
from .scaling import ScaleByLabelState, scale_by_label
from .unfreezing import unfreeze_at


class FineTuneState(NamedTuple):
    """The state of `fine_tune`, inside that of `optax.partition` if labels are frozen.

    Attributes:
      inner: the state of the inner optimizer; an `UnfreezeAtState` if labels have starts.
      scale: the state of the multipliers; its `count` is of optimizer steps.
    """

    inner: optax.OptState
    scale: ScaleByLabelState


def fine_tune(
    inner: optax.GradientTransformation,
    multipliers: Multipliers,
    labels: Labeler | Labels,
    *,
    frozen: Label | Collection[Label] = (),
    starts: Mapping[Label, ScalarLike] | None = None,
    clock: Literal["run", "label"] = "run",
) -> optax.GradientTransformationExtraArgs:
    """An optimizer with a multiplier for each label, some labels frozen for good, some until a step.

    `train_only` the labels that are not frozen, with `inner` (`unfreeze_at` its starts) and then
    `scale_by_label`. Weight decay in `inner` is scaled by the multipliers; to leave it unscaled, chain the
    parts by hand.

    Starts and schedules of multipliers count optimizer steps, whether `MultiSteps` or `apply_if_finite` stand
    inside `inner` or around. Schedules inside `inner` read the run's step unless `clock="label"`.

    A non-finite gradient has no effect where it is frozen; elsewhere it is `inner`'s. Where the multiplier is
    0 the update is 0 whatever `inner` gives.

    Args:
      inner: the whole optimizer, its learning rate included. It sees all labels that are not frozen for good
        at once, those that sleep with zeros for gradients.
      multipliers: for every label but the frozen ones, a finite number of at least 0 or a schedule; or a rule
        such as `layer_decay(0.75)`. See `scale_by_label`.
      labels: a `Labeler` or a tree of labels.
      frozen: the label or labels that are never trained.
      starts: from labels to the step of their first update; see `unfreeze_at`.
      clock: what schedules in `inner` count: "run", the steps of the run; "label", those since the label's
        start.

    Returns:
      A transformation. `get_learning_rate` and `set_unfreezing_steps` find their parts of its state.

    Raises:
      ValueError: as the parts; or a label is frozen and has a start.

    >>> params = {"embed": jnp.ones(()), "block": jnp.ones(()), "head": jnp.ones(())}
    >>> from optax_lr import label_by_depth, layer_decay
    >>> labels = label_by_depth(["embed", "block", "head"])
    >>> tx = fine_tune(optax.sgd(1.0), layer_decay(0.5), labels, frozen=0, starts={1: 1})
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

    def built(labels: Labeler | Labels) -> optax.GradientTransformationExtraArgs:
        trained = unfreeze_at(inner, starts, labels, clock=clock) if starts else inner
        scaled = _then_scale(trained, scale_by_label(multipliers, labels))
        if not never:
            return scaled

        def parts(tree: optax.Params) -> Labels:
            return trained_or_frozen("frozen", never, *label_tree(labels, tree), named=False)

        return optax.partition({"trainable": scaled, "frozen": optax.set_to_zero()}, parts)

    built(labels)  # so that bad numbers are refused now

    # Labels are resolved on all parameters, before `partition` masks those that are frozen.
    def init(params: optax.Params) -> optax.OptState:
        return built(_resolved(labels, params)).init(params)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        return built(_resolved(labels, updates)).update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(init, update)


def _then_scale(
    trained: optax.GradientTransformation, scale: optax.GradientTransformationExtraArgs
) -> optax.GradientTransformationExtraArgs:
    """An optimizer and then multipliers, whose schedules count the optimizer's steps."""
    optimizer = optax.with_extra_args_support(trained)

    def init(params: optax.Params) -> FineTuneState:
        return FineTuneState(optimizer.init(params), scale.init(params))

    def update(
        updates: optax.Updates,
        state: FineTuneState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, FineTuneState]:
        moved, held = optimizer.update(updates, state.inner, params, **extra_args)
        scaled, ticked = scale.update(moved, state.scale)
        made = has_stepped(state.inner, held)
        count = ticked.count if made is True else jnp.where(made, ticked.count, state.scale.count)
        return scaled, FineTuneState(held, ticked._replace(count=count))

    return optax.GradientTransformationExtraArgs(init, update)


def _resolved(labels: Labeler | Labels, tree: optax.Params) -> Labeler | Labels:
    """A rule that need not look at all parameters again: it knows the label of each path."""
    leaves, _ = leaves_by_path(tree)
    if not isinstance(labels, Labeler) or not leaves:
        return labels
    label_at = dict(zip([path for path, _ in leaves], labels.label_leaves(leaves), strict=True))
    return Labeler(lambda those: [label_at[path] for path, _ in those], repr(labels))
