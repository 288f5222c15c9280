"""The learning rates in force: for each label the number that its last update was multiplied by, and why."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import checks
from .adaptive.plateau import PlateauState
from .layers.freezing import ZeroUntilState
from .layers.labels import leaves_by_keys
from .layers.scaling import ScaleByLabelState
from .layers.unfreezing import UnfreezeAtState
from .learning_rate import ScaleByLearningRateState, is_holder, is_set
from .types import Array

_ALL, _OTHERS = "(all)", "(others)"
# The groups of `train_only` and `fine_tune`.
_TRAINABLE, _FROZEN = "trainable", "frozen"


class _Factor(NamedTuple):
    """What updates are multiplied by, whether a learning rate is in it, and the reasons, which read the numbers."""

    value: Any
    has_rate: bool
    reasons: tuple[Callable[[], str], ...]

    def times(self, other: "_Factor") -> "_Factor":
        axes = max(jnp.ndim(self.value), jnp.ndim(other.value))
        # Axes of lanes lead in both; those of stacked layers follow them.
        one, two = (
            jnp.reshape(each, jnp.shape(each) + (1,) * (axes - jnp.ndim(each)))
            for each in (self.value, other.value)
        )
        return _Factor(one * two, self.has_rate or other.has_rate, self.reasons + other.reasons)


# From labels to factors; None is for all parameters without a label of their own, and no label at all is no factor.
_Factors = dict[str | None, _Factor]
_ONE = _Factor(1.0, False, ())


def learning_rates_in_force(opt_state: optax.OptState) -> dict[str, Array]:
    """For each label, the number that its last update was multiplied by; for the log.

    rate x multiplier x plateau's scale x (1 if the label was awake, else 0). Before the first update it is what
    the next one will be multiplied by. A rate that is set by hand counts at once, for every label, whatever its
    clock; the other factors stay those of the last update. An optimizer's own scaling, such as Adam's or a local
    gain, is not in it, nor is what no state holds, such as the factor of `optax.scale`. A multiplier counts
    wherever it stands; but before an optimizer that divides updates by their size, as Adam does, it changes none:
    put it after.

    It is found inside any nest of wrappers, as by `get_learning_rate`. Inside `MultiSteps` or `apply_if_finite` the
    last update is the last optimizer step. Optax's own plateau keeps the scale of the next update alone.

    Args:
      opt_state: the state of an optimizer with a visible rate, or what holds one as `opt_state`: an
        `nnx.Optimizer`, a `TrainState`. It may be traced, stacked (`vmap`) or sharded.

    Returns:
      A dict from labels, as strings, to numbers: labels of `scale_by_label`, `zero_until`, `unfreeze_at`,
      `fine_tune` and groups of `optax.partition`. "frozen" is what `train_only` and `fine_tune` never train.
      Parameters without a label of their own are "(others)", or "(all)" if there is no label. A group without a
      visible rate is left out; one without parameters is not, since states do not tell. What `optax.masked` lets
      in is "(masked at PATH)", for its place in the state. A label with one multiplier for each stacked layer has
      an array `[layers]`.

    Raises:
      ValueError: the state holds no visible rate.

    >>> import optax_lr as olr
    >>> params = {"body": jnp.ones(2), "head": jnp.ones(2)}
    >>> labels = {"body": "old", "head": "new"}
    >>> tx = olr.fine_tune(olr.visible(optax.adam)(0.5), {"old": 0.25, "new": 1.0}, labels, starts={"old": 1})
    >>> state = tx.init(params)
    >>> for _ in range(2):
    ...     updates, state = tx.update(params, state, params)
    ...     print({label: float(rate) for label, rate in learning_rates_in_force(state).items()})
    {'new': 0.5, 'old': 0.0}
    {'new': 0.5, 'old': 0.125}
    """
    return {label: jnp.asarray(factor.value) for label, factor in _in_force(opt_state).items()}


def describe_learning_rates(opt_state: optax.OptState) -> str:
    """A table of `learning_rates_in_force`, with the reason for each number. Not inside `jit`.

    Args:
      opt_state: as in `learning_rates_in_force`.

    Returns:
      The table as text: for each label the number and its factors: the rate, by the number or schedule or set by
      hand; the label's multiplier; the plateau's scale; until which update the label is frozen.

    Raises:
      ValueError: the state holds no visible rate, or is traced.

    >>> import optax_lr as olr
    >>> params = {"body": jnp.ones(2), "head": jnp.ones(2)}
    >>> labels = {"body": "old", "head": "new"}
    >>> tx = olr.fine_tune(olr.visible(optax.adam)(0.5), {"old": 0.25, "new": 1.0}, labels, starts={"old": 500})
    >>> print(describe_learning_rates(olr.set_learning_rate(tx.init(params), 0.1)))
    label  rate  why
      new   0.1  0.1 set by hand, x 1 for the label
      old     0  0.1 set by hand, frozen until update 500, x 0.25 for the label
    """
    if any(map(checks.is_traced, jax.tree.leaves(opt_state))):
        raise ValueError("describe_learning_rates must be called outside jit: it reads the numbers.")
    rows = [("label", "rate", "why")] + [
        (label, _shown(factor.value), ", ".join(filter(None, (reason() for reason in factor.reasons))))
        for label, factor in _in_force(opt_state).items()
    ]
    label_width, rate_width = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(f"{label:>{label_width}}  {rate:>{rate_width}}  {why}" for label, rate, why in rows)


def _in_force(opt_state: optax.OptState) -> dict[str, _Factor]:
    factors = _factors(getattr(opt_state, "opt_state", opt_state))
    rest = _OTHERS if len(factors) > 1 else _ALL
    known = {rest if label is None else label: factor for label, factor in factors.items() if factor.has_rate}
    if not known:
        raise ValueError(
            "opt_state holds no visible learning rate: write optax_lr.visible(optax.adam)(rate) in place of "
            "optax.adam(rate)."
        )
    return dict(sorted(known.items(), key=lambda item: _order(item[0])))


def _order(label: str) -> tuple[int, int, str]:
    """Integers first and in order, then names, then all others."""
    return (0, int(label), "") if label.isdigit() else (1 + (label == _OTHERS), 0, label)


def _factors(node: Any, path: str = "", *, rates: bool = True) -> _Factors:
    """What a part of a state multiplies updates by, and for which labels; without `rates`, no learning rate."""
    inside = functools.partial(_factors, rates=rates)
    if is_holder(node):
        return _of_holder(node, path) if rates else inside(getattr(node, "inner_state", ()), path)
    if isinstance(node, ScaleByLabelState):
        return {label: _factor(value, "x {} for the label") for label, value in node.last_multipliers.items()}
    if isinstance(node, PlateauState):
        return {None: _factor(node.last_scale, "x {} by the plateau")}
    if isinstance(node, optax.contrib.ReduceLROnPlateauState):
        return {None: _factor(node.scale, "x {} by the plateau")}
    if isinstance(node, ZeroUntilState):
        return _of_clock(node)
    if isinstance(node, UnfreezeAtState):
        return _of_unfreezing(node, functools.partial(inside, path=f"{path}inner/"))
    if isinstance(node, optax.PartitionState):
        return _of_groups(node.inner_states, functools.partial(inside, path=path))
    if isinstance(node, optax.MaskedState):
        return _of_masked(inside(node.inner_state, path), path)
    return functools.reduce(
        _product, (inside(child, f"{path}{name}/") for name, child in _children(node).items()), {}
    )


def _children(node: Any) -> dict[Any, Any]:
    if isinstance(node, dict):
        return node
    if isinstance(node, tuple | list):
        return dict(zip(getattr(node, "_fields", range(len(node))), node, strict=True))
    return {}


def _product(one: _Factors, other: _Factors) -> _Factors:
    """Both factors, label by label; labels that do not name the same parts are crossed."""
    if not one or not other:
        return one or other
    labels = [label for label in {**one, **other} if label is not None]
    if all(label in each or None in each for label in labels for each in (one, other)):
        joined = {
            label: one.get(label, one.get(None)).times(other.get(label, other.get(None)))  # type: ignore[union-attr, arg-type]
            for label in labels
        }
        return joined | ({None: one[None].times(other[None])} if None in one and None in other else {})
    return {
        "/".join(label for label in (first, second) if label is not None): factor.times(other[second])
        for first, factor in one.items()
        for second in other
    }


def _of_holder(node: Any, path: str) -> _Factors:
    if isinstance(node, ScaleByLearningRateState):

        def why() -> str:
            if np.any(is_set(node)):
                return f"{_shown(node.learning_rate)} set by hand"
            return f"{_shown(node.learning_rate)} by the number or schedule"

        return {None: _Factor(_array(node.learning_rate), True, (why,))}
    rate = _factor(node.hyperparams["learning_rate"], "{} by inject_hyperparams")._replace(has_rate=True)
    return _product({None: rate}, _factors(node.inner_state, path, rates=False))


def _of_masked(factors: _Factors, path: str) -> _Factors:
    """Factors for what a mask lets in; the rest passes. The state does not say what that is, but where it is."""
    inner: _Factors = {
        label or f"(masked at {path.rstrip('/')})": factor for label, factor in factors.items()
    }
    return {**inner, None: _ONE} if inner else {}


def _of_clock(clock: ZeroUntilState) -> _Factors:
    """Zero for the labels that the last update did not train; before the first, those that it will not."""
    last = jnp.maximum(_array(clock.count) - 1, 0)

    def of(start: Any) -> _Factor:
        awake = last >= _array(start)

        def why() -> str:
            return "" if np.all(awake) else f"frozen until update {_shown(start)}"

        return _Factor(awake.astype(float), False, (why,))

    return {**{label: of(start) for label, start in clock.starts.items()}, None: _ONE}


def _of_unfreezing(node: UnfreezeAtState, inside: Callable[[Any], _Factors]) -> _Factors:
    """The inner factors, under each late label's own clock, and 0 before its start."""
    inner = inside(node.inner)
    own = {label: inside(_as_seen(node.inner, late)) for label, late in node.late.items()}
    late = {label: each.get(label, each.get(None)) for label, each in own.items()}
    return _product(inner | {label: each for label, each in late.items() if each}, _of_clock(node.clock))


def _as_seen(inner: optax.OptState, late: dict[str, Any]) -> optax.OptState:
    """The inner state with a label's own counters, and the rates that they gave unless one is set."""
    keys = ["/".join(each) for each, _ in leaves_by_keys(inner)]
    leaves, treedef = jax.tree.flatten(inner)
    rates = [key for key in keys if key.endswith("learning_rate")]
    counted = jax.tree.unflatten(
        treedef,
        [leaf if key in rates else late.get(key, leaf) for key, leaf in zip(keys, leaves, strict=True)],
    )

    def put(path: tuple[Any, ...], node: Any) -> Any:
        place = jax.tree_util.keystr(path, simple=True, separator="/")
        if isinstance(node, ScaleByLearningRateState):
            own = late.get(f"{place}/learning_rate".lstrip("/"))
            if own is None:
                return node
            set_by_hand = is_set(node)
            return node._replace(
                learning_rate=jnp.where(set_by_hand, _array(node.learning_rate), own),
                written=jnp.where(set_by_hand, _array(node.written), own),
            )
        own = late.get(f"{place}/hyperparams/learning_rate".lstrip("/")) if is_holder(node) else None
        return node if own is None else node._replace(hyperparams={**node.hyperparams, "learning_rate": own})

    return jax.tree_util.tree_map_with_path(put, counted, is_leaf=is_holder)


def _of_groups(groups: dict[Any, Any], inside: Callable[[Any], _Factors]) -> _Factors:
    found = {
        group: inside(getattr(state, "inner_state", state)) for group, state in groups.items()
    }  # of its mask
    if set(groups) == {_TRAINABLE, _FROZEN}:
        # As many lanes as the trained ones have; a rate of stacked layers has an axis more.
        like = min((each.value for each in found[_TRAINABLE].values()), key=jnp.ndim, default=0.0)
        found[_FROZEN] = {None: _Factor(jnp.zeros_like(like, float), True, (lambda: "never trained",))}
    factors: _Factors = {}
    for group, inner in found.items():
        for label, factor in (inner or {None: _ONE}).items():
            name = str(group) if label is None else label
            factors[f"{group}/{name}" if name in factors else name] = factor
    return factors if any(found.values()) else {}


def _factor(value: Any, reason: str) -> _Factor:
    return _Factor(_array(value), False, (lambda: reason.format(_shown(value)),))


def _array(value: Any) -> Array:
    """An array, of what may be a variable of Flax."""
    return jnp.asarray(jax.tree.leaves(value)[0])


def _shown(value: Any) -> str:
    number = np.asarray(jax.tree.leaves(value)[0])
    return (
        f"{number.item():.4g}" if number.ndim == 0 else str([float(f"{one:.4g}") for one in number.ravel()])
    )
