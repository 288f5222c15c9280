"""Plateau: an observed metric to a transformation that scales updates, down where it stalls, and up again."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import optax

from .. import checks
from ..types import Array, ArrayLike, Float, Int, PyTree, ScalarLike

Mode: TypeAlias = Literal["min", "max"]
ThresholdMode: TypeAlias = Literal["rel", "abs"]
NonFinite: TypeAlias = Literal["wait", "reduce"]


class PlateauState(NamedTuple):
    """State of `reduce_on_plateau`; `scale` is what the next updates are multiplied by."""

    scale: Float[Array, ""]
    best: Float[Array, ""]
    bad_checks: Int[Array, ""]
    good_checks: Int[Array, ""]
    stalled_checks: Int[Array, ""]
    cooldown_left: Int[Array, ""]
    window_mean: Float[Array, ""]
    window_count: Int[Array, ""]


class _Rule(NamedTuple):
    """What a check does to the state; the arguments of `reduce_on_plateau`, checked."""

    factor: ScalarLike
    patience: ScalarLike
    improves: Callable[[Array, Array], Array]
    cooldown: Array
    min_scale: ScalarLike
    raises: Callable[[PlateauState], Array]
    raise_factor: ScalarLike
    max_scale: ScalarLike

    def cut(self, state: PlateauState) -> PlateauState:
        scale = jnp.maximum(state.scale * self.factor, self.min_scale)
        return _new_counts(state)._replace(scale=scale, cooldown_left=self.cooldown)

    def check(self, metric: Array, state: PlateauState) -> PlateauState:
        better = self.improves(metric, state.best)
        # A check in the cooldown leaves no bad checks behind, not even those before it.
        forgiven = better | (state.cooldown_left > 0)
        counted = state._replace(
            best=jnp.where(better, metric, state.best),
            bad_checks=jnp.where(forgiven, 0, optax.safe_increment(state.bad_checks)),
            good_checks=jnp.where(better, optax.safe_increment(state.good_checks), 0),
            stalled_checks=jnp.where(better, 0, optax.safe_increment(state.stalled_checks)),
            cooldown_left=jnp.maximum(state.cooldown_left - 1, 0),
        )
        scale = jnp.minimum(counted.scale * self.raise_factor, self.max_scale)
        kept_or_cut = _either(counted.bad_checks > self.patience, self.cut(counted), counted)
        return _either(self.raises(counted), _new_counts(counted)._replace(scale=scale), kept_or_cut)


def reduce_on_plateau(
    *,
    factor: ScalarLike = 0.1,
    patience: ScalarLike = 10,
    mode: Mode = "min",
    threshold: ScalarLike = 1e-4,
    threshold_mode: ThresholdMode = "rel",
    cooldown: ScalarLike = 0,
    min_scale: ScalarLike = 0.0,
    window: ScalarLike = 1,
    raise_factor: ScalarLike | None = None,
    raise_patience: ScalarLike | None = None,
    raise_after_progress: ScalarLike | None = None,
    max_scale: ScalarLike = 1.0,
    non_finite: NonFinite = "wait",
) -> optax.GradientTransformationExtraArgs:
    """The updates times a scale that falls where a metric stops improving, as PyTorch's `ReduceLROnPlateau`.

    `update(updates, state, params, value=metric)` multiplies by the scale that stood before this metric, and
    then looks at the metric: an improvement is a value below best - threshold * |best| ("max": above best +
    ...), or with "abs" below best - threshold; the first value always is one. After more than `patience`
    checks in a row without improvement

        scale <- max(scale * factor, min_scale)

    and the next `cooldown` checks are not counted against it, while they may improve the best value.

    Ten calls with patience=2, factor=0.5; a column is a call, and the scale is the one that its updates got:

        value                      9  8  8  8  8  8  8  8  7  7
        scale                      1  1  1  1  1  ½  ½  ½  ¼  ¼
        with cooldown=1            1  1  1  1  1  ½  ½  ½  ½  ½
        with raise_patience=4      1  1  1  1  1  ½  1  1  1  1
        raise_after_progress=1     1  1  1  1  1  ½  ½  ½  ¼  ½

    Two ways up again, for those who ask: with `raise_patience`, when that many checks in a row have not
    improved, cuts or none, the scale is multiplied by `raise_factor`, once until the metric improves: a long
    stride to leave a flat place. With `raise_after_progress`, that many improving checks in a row multiply it
    by `raise_factor` (GreedyLR). Either starts the counts of good and of bad checks anew, and wins over a cut
    at the same check.

    For calls at every step rather than every epoch, `window` averages that many values into one check. Inside
    `optax.MultiSteps` only the value of the last micro-step arrives: average the micro-steps' values yourself
    and pass that average with the last one, or put this transformation around `MultiSteps`, with a window of
    as many values.

    A value that is not finite is no check ("wait"), or cuts at once, cooldown or not ("reduce"). Updates that
    are not finite pass. Two departures from PyTorch: there NaN counts as a check without improvement; and
    there a cut by less than 1e-8 is left out. (Also, relative thresholds mean the same for negative metrics
    here.)

    Args:
      factor: what a cut multiplies by, in (0, 1).
      patience: how many checks without improvement are borne, at least 0.
      mode: "min" if the metric should fall, "max" if it should rise.
      threshold: the least improvement, at least 0: a share of the best value, or with "abs" in the metric's
        unit.
      threshold_mode: "rel" or "abs".
      cooldown: how many checks after a cut are not counted, at least 0.
      min_scale: the smallest scale, in [0, 1].
      window: how many values make one check, at least 1.
      raise_factor: what a raise multiplies by, above 1; None is 1 / `factor`.
      raise_patience: how many checks without improvement raise the scale, more than `patience`; None is
        never.
      raise_after_progress: how many improving checks in a row raise the scale, at least 1; None is never.
      max_scale: the largest scale, at least 1.
      non_finite: "wait" or "reduce".

    Returns:
      A transformation whose state is eight scalars; `optax.tree.get(state, "scale")` reads the scale.

    Raises:
      ValueError: a concrete number is out of its range, a mode is unknown, or `raise_factor` is given and
        nothing
        that raises is; in `update`, `value` is not one number.

    >>> transformation = reduce_on_plateau(patience=2, factor=0.5)
    >>> state, scales = transformation.init(jnp.zeros(3)), []
    >>> for value in (9, 8, 8, 8, 8, 8, 8, 8, 7, 7):
    ...     updates, state = transformation.update(jnp.ones(3), state, value=value)
    ...     scales.append(float(updates[0]))
    >>> scales
    [1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25]

    Source: `torch.optim.lr_scheduler.ReduceLROnPlateau`; raising on progress: Subramanian, Krishnamoorthy &
    Murthy 2025, Dynamic learning rate scheduling based on loss changes leads to faster convergence
    (arXiv:2512.14527).
    """
    checks.choice("mode", mode, get_args(Mode))
    checks.choice("threshold_mode", threshold_mode, get_args(ThresholdMode))
    checks.choice("non_finite", non_finite, get_args(NonFinite))
    cut_factor = checks.number("factor", factor, above=0, below=1)
    borne = checks.steps("patience", patience, minimum=0)
    rule = _Rule(
        factor=cut_factor,
        patience=borne,
        improves=_improves(mode, checks.number("threshold", threshold, minimum=0), threshold_mode),
        cooldown=jnp.asarray(checks.steps("cooldown", cooldown, minimum=0), jnp.int32),
        min_scale=checks.number("min_scale", min_scale, minimum=0, maximum=1),
        raises=_raises(raise_patience, raise_after_progress, borne),
        raise_factor=_raise_factor(raise_factor, cut_factor, raise_patience, raise_after_progress),
        max_scale=checks.number("max_scale", max_scale, minimum=1),
    )
    values_per_check = checks.steps("window", window)

    def observe(value: Array, state: PlateauState) -> PlateauState:
        count = optax.safe_increment(state.window_count)
        mean = state.window_mean + (value - state.window_mean) / count
        seen = _either(
            count >= values_per_check,
            _new_window(rule.check(mean, state)),
            state._replace(window_mean=mean, window_count=count),
        )
        missed = state if non_finite == "wait" else _new_window(rule.cut(state))
        # The mean is not finite where the value is not, or where their difference overflows.
        return _either(jnp.isfinite(mean), seen, missed)

    def init(params: PyTree) -> PlateauState:
        del params
        worst = jnp.inf if mode == "min" else -jnp.inf
        return _state(1, worst, 0, 0, 0, 0, 0, 0)

    def update(
        updates: PyTree,
        state: PlateauState,
        params: PyTree | None = None,
        *,
        value: ArrayLike,
        **extra_args: Any,
    ) -> tuple[PyTree, PlateauState]:
        del params, extra_args
        if jnp.shape(value):
            raise ValueError(f"value must be one number, got an array of shape {jnp.shape(value)}.")
        scaled = jax.tree.map(functools.partial(_scaled, state.scale), updates)
        return scaled, _state(*observe(jnp.asarray(value, jnp.float32), state))

    return optax.GradientTransformationExtraArgs(init, update)


def _scaled(scale: Array, update: ArrayLike) -> ArrayLike:
    """The update times the scale, of its own type; what is not made of floats (JAX's float0 too) passes."""
    if not jnp.issubdtype(jnp.result_type(update), jnp.inexact):
        return update
    return (update * scale).astype(jnp.result_type(update))


def _improves(
    mode: Mode, margin: ScalarLike, threshold_mode: ThresholdMode
) -> Callable[[Array, Array], Array]:
    """Whether a finite metric is better than the best by more than the margin; than no best yet, always."""

    def improves(metric: Array, best: Array) -> Array:
        needed = margin * jnp.abs(best) if threshold_mode == "rel" else margin
        better = metric < best - needed if mode == "min" else metric > best + needed
        return jnp.isinf(best) | better

    return improves


def _raise_factor(
    raise_factor: ScalarLike | None, factor: ScalarLike, *raised_by: ScalarLike | None
) -> ScalarLike:
    """The factor of a raise, 1 / `factor` where none is given; refused where nothing raises."""
    if raise_factor is None:
        return 1 / factor
    if all(count is None for count in raised_by):
        raise ValueError(
            f"raise_factor={raise_factor!r} needs raise_patience or raise_after_progress, got neither."
        )
    return checks.number("raise_factor", raise_factor, above=1)


def _raises(
    raise_patience: ScalarLike | None, raise_after_progress: ScalarLike | None, patience: Any
) -> Callable[[PlateauState], Array]:
    """Whether a check that is counted raises the scale."""
    least = 1 if checks.is_traced(patience) else math.floor(patience) + 1
    stall = None if raise_patience is None else checks.steps("raise_patience", raise_patience, minimum=least)
    streak = (
        None if raise_after_progress is None else checks.steps("raise_after_progress", raise_after_progress)
    )

    def raises(state: PlateauState) -> Array:
        raised = jnp.asarray(False)
        if stall is not None:
            wait = jnp.maximum(stall, patience + 1)
            raised |= (state.stalled_checks >= wait) & (state.stalled_checks - 1 < wait)
        if streak is not None:
            raised |= state.good_checks >= streak
        return raised

    return raises


def _new_counts(state: PlateauState) -> PlateauState:
    return state._replace(bad_checks=jnp.int32(0), good_checks=jnp.int32(0))


def _new_window(state: PlateauState) -> PlateauState:
    return state._replace(window_mean=jnp.float32(0), window_count=jnp.int32(0))


def _either(condition: Array, yes: PlateauState, no: PlateauState) -> PlateauState:
    return PlateauState(*(jnp.where(condition, *pair) for pair in zip(yes, no, strict=True)))


def _state(*values: ScalarLike) -> PlateauState:
    """A state of these values, each in its own array of its own type."""
    dtypes = {"scale": jnp.float32, "best": jnp.float32, "window_mean": jnp.float32}
    fields = zip(PlateauState._fields, values, strict=True)
    return PlateauState(**{name: jnp.array(value, dtypes.get(name, jnp.int32)) for name, value in fields})
