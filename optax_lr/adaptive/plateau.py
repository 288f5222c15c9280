"""Plateau: an observed metric to a transformation that scales updates, down where it stalls, and up again."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import optax

from .. import checks
from ..types import Array, ArrayLike, Float, Int, PyTree, ScalarLike
from .signs import LARGEST, Scalar, at_least_float32, float32

Mode: TypeAlias = Literal["min", "max"]
NonFinite: TypeAlias = Literal["wait", "reduce"]


class PlateauState(NamedTuple):
    """State of `reduce_on_plateau`, scalars in float32 and int32.

    Attributes:
      scale: what the next updates are multiplied by; with `every`, what the last were.
      best_value: the best value of a check; the largest float32 (or the lowest) before the first.
      plateau_count: checks in a row without improvement, outside cooldowns, since the scale changed.
      progress_count: improving checks in a row since the scale changed.
      stalled_count: checks in a row without improvement since the scale was raised, those of cooldowns included.
      cooldown_count: checks left that change nothing.
      avg_value: the mean of the values gathered for the next check.
      count: how many these are.
      every_count: calls since `value` was last read, with `every`.
      last_scale: what the last updates were multiplied by: a record, for `learning_rates_in_force`.
    """

    scale: Float[Array, "..."]
    best_value: Float[Array, "..."]
    plateau_count: Int[Array, "..."]
    progress_count: Int[Array, "..."]
    stalled_count: Int[Array, "..."]
    cooldown_count: Int[Array, "..."]
    avg_value: Float[Array, "..."]
    count: Int[Array, "..."]  # type: ignore[assignment]  # a tuple has a method of that name
    every_count: Int[Array, "..."]
    last_scale: Float[Array, "..."]


def reduce_on_plateau(
    *,
    factor: ScalarLike | None = 0.1,
    patience: ScalarLike = 10,
    rtol: ScalarLike = 1e-4,
    atol: ScalarLike = 0.0,
    cooldown: ScalarLike = 0,
    accumulation_size: ScalarLike = 1,
    min_scale: ScalarLike = 0.0,
    every: ScalarLike | None = None,
    mode: Mode = "min",
    raise_factor: ScalarLike | None = None,
    raise_patience: ScalarLike | None = None,
    raise_after_progress: ScalarLike | None = None,
    max_scale: ScalarLike = 1.0,
    non_finite: NonFinite = "wait",
) -> optax.GradientTransformationExtraArgs:
    """The updates times a scale that falls where a metric stops improving, as PyTorch's `ReduceLROnPlateau`.

    Once an epoch: the validation loss is passed at every step, and read at the first step after each epoch.

        tx = optax.chain(optax.sgd(0.1), reduce_on_plateau(factor=0.5, patience=3, every=steps_per_epoch))
        validation_loss = jnp.inf                          # not known yet, so no check
        for epoch in range(epochs):
            for batch in batches:
                updates, state = tx.update(grad(params, batch), state, params, value=validation_loss)
                ...
            validation_loss = evaluate(params)

    The scale that follows holds from that same step on, as after PyTorch's `scheduler.step(loss)` at the end of
    an epoch. Without `every`, each call is a check of this step's own loss, and its scale holds from the next
    call on. It stands after the optimizer: Adam undoes what scales its gradients.

    A check improves if it is below best - (rtol * |best| + atol) ("max": above best + ...); the first always
    does. After more than `patience` checks in a row without improvement

        scale <- max(scale * factor, min_scale)

    and the next `cooldown` checks change nothing, while they may improve the best value. Ten checks with
    patience=2, factor=0.5; a column is a call without `every`, and the scale is the one its updates got:

        value                      9  8  8  8  8  8  8  8  7  7
        scale                      1  1  1  1  1  ½  ½  ½  ¼  ¼
        with cooldown=1            1  1  1  1  1  ½  ½  ½  ½  ½
        with raise_patience=4      1  1  1  1  1  ½  1  1  1  1
        raise_after_progress=1     1  1  1  1  1  ½  ½  ½  ¼  ½

    Two ways up, by `raise_factor` and to `max_scale` at most. With `raise_patience`, that many checks in a row
    without improvement raise the scale, cuts or none, and then as many again: rates are lowered and raised in
    turn, and with factor=None only raised, to cross a flat place. With `raise_after_progress`, that many
    improving checks in a row raise it (GreedyLR). A raise wins over a cut, and starts the cooldown too.

    For the losses of mini-batches, `accumulation_size` averages that many values into one check. A warm-up
    comes from a schedule (`with_warmup`); pass NaN while it lasts, which is no check. The clock counts the
    calls of this transformation. Inside `optax.MultiSteps` these are optimizer steps, of which only the last
    micro-step's value arrives: average these yourself, or put this transformation around it. A step that
    `optax.apply_if_finite` skips around it is not counted.

    A value that is not finite is no check ("wait"), or cuts at once, cooldown or not ("reduce"). Updates that
    are not finite pass. Departures from PyTorch: there NaN counts as a check without improvement, a cut by
    less than 1e-8 is left out, and a relative threshold is wrong for negative metrics. From Optax: there a
    cut comes one check sooner, and holds for the call that brings it.

    Args:
      factor: what a cut multiplies by, in (0, 1); None never cuts.
      patience: how many checks without improvement are borne, at least 0.
      rtol: the least improvement as a share of the best value, at least 0. Near a value of 0 that is nothing:
        a metric that creeps there never stalls without `atol`.
      atol: the least improvement in the metric's unit, at least 0; added to that of `rtol`. PyTorch's absolute
        threshold is rtol=0, atol=threshold.
      cooldown: how many checks after a cut or a raise change nothing, at least 0.
      accumulation_size: how many values make one check, at least 1.
      min_scale: the smallest scale, in [0, 1].
      every: how many calls an epoch has, at least 1; None reads the value of each call.
      mode: "min" if the metric should fall, "max" if it should rise.
      raise_factor: what a raise multiplies by, above 1; None is 1 / `factor`, or 10 without one.
      raise_patience: how many checks without improvement raise the scale, more than `patience` where there
        are cuts; None is never.
      raise_after_progress: how many improving checks in a row raise the scale, at least 1; None is never.
      max_scale: the largest scale, at least 1; above 1 without a `factor`.
      non_finite: "wait" or "reduce".

    Returns:
      A transformation whose state is ten scalars; `optax.tree.get(state, "scale")` reads the scale.

    Raises:
      ValueError: a concrete number is out of its range, a mode is unknown, `raise_factor` is given and nothing
        raises, or neither cuts nor raises are possible; in `update`, `value` is missing or not one number.

    >>> transformation = reduce_on_plateau(patience=0, factor=0.5, every=2)
    >>> state, scales = transformation.init(jnp.zeros(3)), []
    >>> for validation_loss in (jnp.inf, 9, 8, 8, 8):
    ...     for step in range(2):
    ...         updates, state = transformation.update(jnp.ones(3), state, value=validation_loss)
    ...         scales.append(float(updates[0]))
    >>> scales
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25]

    Source: `torch.optim.lr_scheduler.ReduceLROnPlateau`; names: `optax.contrib.reduce_on_plateau`; raising on
    progress: Subramanian, Krishnamoorthy & Murthy 2025, Dynamic learning rate scheduling based on loss changes
    leads to faster convergence (arXiv:2512.14527).
    """
    checks.choice("mode", mode, get_args(Mode))
    checks.choice("non_finite", non_finite, get_args(NonFinite))
    raising = _checked_raise(factor, patience, raise_factor, raise_patience, raise_after_progress, max_scale)
    if factor is None and non_finite == "reduce":
        raise ValueError("non_finite must be 'wait' where factor is None, got 'reduce'.")
    check, cut = _rules(
        factor=None if factor is None else float32(checks.number("factor", factor, above=0, below=1)),
        patience=_whole("patience", patience, 0),
        improves=_improves(mode, rtol, atol),
        cooldown=jnp.asarray(_whole("cooldown", cooldown, 0), jnp.int32),
        min_scale=float32(checks.number("min_scale", min_scale, minimum=0, maximum=1)),
        raising=raising,
    )
    values_per_check = _whole("accumulation_size", accumulation_size, 1, "values")
    calls = None if every is None else _whole("every", every, 1, "calls")

    observe = _observer(check, cut, values_per_check, non_finite)

    def init(params: PyTree) -> PlateauState:
        del params
        return _state(1, LARGEST if mode == "min" else -LARGEST, 0, 0, 0, 0, 0, 0, 0, 1)

    def update(
        updates: PyTree,
        state: PlateauState,
        params: PyTree | None = None,
        *,
        value: ArrayLike | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, PlateauState]:
        del params, extra_args
        held = _state(*state)
        after = observe(_metric(value), held)
        if calls is None:
            return jax.tree.map(functools.partial(_scaled, held.scale), updates), _state(
                *after._replace(last_scale=held.scale)
            )
        read = _either(held.every_count == 0, after, held)
        passed = optax.safe_increment(held.every_count)
        counted = read._replace(every_count=jnp.where(passed >= calls, 0, passed), last_scale=read.scale)
        return jax.tree.map(functools.partial(_scaled, read.scale), updates), _state(*counted)

    return optax.GradientTransformationExtraArgs(init, update)


class _Raising(NamedTuple):
    """When a scale is raised, and by how much; a count that is None never raises."""

    factor: Scalar
    patience: Any
    after_progress: Any
    max_scale: Scalar


Change: TypeAlias = Callable[[PlateauState], PlateauState]


def _observer(
    check: Callable[[Array, PlateauState], PlateauState],
    cut: Change,
    values_per_check: Any,
    non_finite: NonFinite,
) -> Callable[[Array, PlateauState], PlateauState]:
    """What one value of the metric does to a state: enough of them make a check."""

    def observe(value: Array, state: PlateauState) -> PlateauState:
        finite = jnp.isfinite(value)
        count = optax.safe_increment(state.count)
        seen = jnp.where(finite, value, state.avg_value)
        mean = state.avg_value + (seen - state.avg_value) / count.astype(jnp.float32)
        gathered = state._replace(avg_value=mean, count=count)
        checked = _either(count >= values_per_check, _emptied(check(mean, state)), gathered)
        missed = state if non_finite == "wait" else _emptied(cut(state))
        # The difference of two finite values can overflow.
        return _either(finite & jnp.isfinite(mean), checked, missed)

    return observe


def _rules(
    *,
    factor: Scalar | None,
    patience: Any,
    improves: Callable[[Array, Array], Array],
    cooldown: Array,
    min_scale: Scalar,
    raising: _Raising,
) -> tuple[Callable[[Array, PlateauState], PlateauState], Change]:
    """What a check does to the state, and what a cut does."""
    zero = jnp.int32(0)

    def changed(state: PlateauState, scale: Array) -> PlateauState:
        return state._replace(scale=scale, plateau_count=zero, progress_count=zero, cooldown_count=cooldown)

    def cut(state: PlateauState) -> PlateauState:
        return state if factor is None else changed(state, jnp.maximum(state.scale * factor, min_scale))

    def check(metric: Array, state: PlateauState) -> PlateauState:
        better, waits = improves(metric, state.best_value), state.cooldown_count > 0
        counted = state._replace(
            best_value=jnp.where(better, metric, state.best_value),
            # A check in the cooldown leaves no count behind, not even of those before it.
            plateau_count=jnp.where(better | waits, 0, optax.safe_increment(state.plateau_count)),
            progress_count=jnp.where(better, optax.safe_increment(state.progress_count), 0),
            stalled_count=jnp.where(better, 0, optax.safe_increment(state.stalled_count)),
            cooldown_count=jnp.maximum(state.cooldown_count - 1, 0),
        )
        due = jnp.asarray(False)
        if raising.patience is not None:
            due |= counted.stalled_count >= raising.patience
        if raising.after_progress is not None:
            due |= counted.progress_count >= raising.after_progress
        scale = jnp.minimum(counted.scale * raising.factor, raising.max_scale)
        raised = changed(counted._replace(stalled_count=zero), scale)
        kept_or_cut = _either(counted.plateau_count > patience, cut(counted), counted)
        return _either(due & ~waits & (scale > counted.scale), raised, kept_or_cut)

    return check, cut


def _improves(mode: Mode, rtol: ScalarLike, atol: ScalarLike) -> Callable[[Array, Array], Array]:
    """Whether a finite metric is better than the best by more than the margin; than no best yet, always."""
    share = float32(checks.number("rtol", rtol, minimum=0))
    least = float32(checks.number("atol", atol, minimum=0))

    def improves(metric: Array, best: Array) -> Array:
        # "No value yet" is no infinity, which would stop a run under `jax_debug_infs`.
        first = jnp.abs(best) >= LARGEST
        known = jnp.where(first, metric, best)
        margin = share * jnp.abs(known) + least
        return first | (metric < known - margin if mode == "min" else metric > known + margin)

    return improves


def _checked_raise(
    factor: ScalarLike | None,
    patience: ScalarLike,
    raise_factor: ScalarLike | None,
    raise_patience: ScalarLike | None,
    raise_after_progress: ScalarLike | None,
    max_scale: ScalarLike,
) -> _Raising:
    """The ways up; refused where they, and cuts, can change nothing."""
    highest = checks.number("max_scale", max_scale, minimum=1)
    raises = not (raise_patience is None and raise_after_progress is None)
    if not raises and (factor is None or raise_factor is not None):
        given = "factor=None" if factor is None else f"raise_factor={raise_factor!r}"
        raise ValueError(f"{given} needs raise_patience or raise_after_progress, got neither.")
    if factor is None and not checks.is_traced(highest) and highest <= 1:
        raise ValueError(f"max_scale must be above 1 where factor is None, got {max_scale!r}.")
    if raise_factor is None:
        by = 10.0 if factor is None else 1 / checks.number("factor", factor, above=0, below=1)
    else:
        by = checks.number("raise_factor", raise_factor, above=1)
    borne = 0 if factor is None else _whole("patience", patience, 0)
    stalled = raise_patience
    if stalled is not None:
        least = 1 if checks.is_traced(borne) else borne + 1
        stalled = jnp.maximum(_whole("raise_patience", stalled, least), borne + 1)
    streak = raise_after_progress
    return _Raising(
        float32(by),
        stalled,
        None if streak is None else _whole("raise_after_progress", streak, 1),
        float32(highest),
    )


def _whole(name: str, value: ScalarLike, minimum: int, unit: str = "checks") -> Any:
    return checks.steps(name, value, minimum=minimum, whole=True, unit=unit)


def _metric(value: ArrayLike | None) -> Array:
    if value is None:
        raise ValueError(
            "value must be the metric to watch, as in update(..., value=validation_loss), got None."
        )
    if jnp.shape(value):
        raise ValueError(f"value must be one number, got an array of shape {jnp.shape(value)}.")
    return jnp.asarray(value, jnp.float32)


def _scaled(scale: Array, update: ArrayLike) -> ArrayLike:
    """The update times the scale, of its own type; what is not made of floats (JAX's float0 too) passes."""
    dtype = jnp.result_type(update)
    if not jnp.issubdtype(dtype, jnp.inexact):
        return update
    finer = at_least_float32(dtype)
    return (jnp.asarray(update, finer) * scale.astype(finer)).astype(dtype)


def _emptied(state: PlateauState) -> PlateauState:
    return state._replace(avg_value=jnp.float32(0), count=jnp.int32(0))


def _either(condition: Array, yes: PlateauState, no: PlateauState) -> PlateauState:
    return PlateauState(*(jnp.where(condition, *pair) for pair in zip(yes, no, strict=True)))


def _state(*values: ScalarLike) -> PlateauState:
    """A state of these values, each in its own array of its own type."""
    floats = ("scale", "best_value", "avg_value", "last_scale")
    fields = zip(PlateauState._fields, values, strict=True)
    return PlateauState(
        **{name: jnp.array(value, jnp.float32 if name in floats else jnp.int32) for name, value in fields}
    )
