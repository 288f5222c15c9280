"""The rate of an `nnx.Optimizer`, in place; and a filter of variables by their label."""

from collections.abc import Collection, Mapping
from typing import Any

import optax
from flax import nnx

from .. import learning_rate
from ..layers import freezing
from ..layers.labels import Labeler, check_known, leaves_by_path
from ..types import Array, Label, Labels, ScalarLike
from .modules import pure


def get_learning_rate(optimizer: nnx.Optimizer) -> Array:
    """The learning rate in an `nnx.Optimizer`; see `optax_lr.get_learning_rate`.

    Args:
      optimizer: one with `scale_by_learning_rate` or an injected `learning_rate` in its transformation.

    Returns:
      The rate, a scalar.

    Raises:
      ValueError: `optimizer` is none, or holds no visible rate or several.

    >>> from optax_lr import scale_by_learning_rate
    >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    >>> optimizer = nnx.Optimizer(model, scale_by_learning_rate(0.5), wrt=nnx.Param)
    >>> float(get_learning_rate(optimizer))
    0.5
    """
    return learning_rate.get_learning_rate(_state_of(optimizer))


def get_learning_rates(optimizer: nnx.Optimizer) -> dict[str, Array]:
    """Every learning rate in an `nnx.Optimizer`, by path; see `optax_lr.get_learning_rates`.

    Args:
      optimizer: as in `get_learning_rate`.

    Returns:
      A dict from the path of each rate in `optimizer.opt_state` to the rate. `set_learning_rate` takes it.

    Raises:
      ValueError: `optimizer` is none, or holds no visible rate.

    >>> from optax_lr import scale_by_learning_rate
    >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    >>> tx = optax.chain(optax.scale_by_adam(), scale_by_learning_rate(0.5))
    >>> {path: float(rate) for path, rate in get_learning_rates(nnx.Optimizer(model, tx, wrt=nnx.Param)).items()}
    {'1': 0.5}
    """
    return learning_rate.get_learning_rates(_state_of(optimizer))


def set_learning_rate(optimizer: nnx.Optimizer, value: ScalarLike | Mapping[str, ScalarLike]) -> None:
    """Put another rate in force in an `nnx.Optimizer`, in place; see `optax_lr.set_learning_rate`.

    Nothing is compiled again. The value goes before a schedule until `clear_learning_rate`.

    Args:
      optimizer: as in `get_learning_rate`.
      value: a finite number of at least 0, or a dict from paths to such numbers.

    Raises:
      ValueError: what `optax_lr.set_learning_rate` refuses, or `optimizer` is none.

    >>> from optax_lr import scale_by_learning_rate
    >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    >>> optimizer = nnx.Optimizer(model, scale_by_learning_rate(0.5), wrt=nnx.Param)
    >>> set_learning_rate(optimizer, 0.25)
    >>> float(get_learning_rate(optimizer))
    0.25
    """
    _put(optimizer, learning_rate.set_learning_rate(_state_of(optimizer), value))


def clear_learning_rate(optimizer: nnx.Optimizer) -> None:
    """Take a set rate out of force in an `nnx.Optimizer`, in place; see `optax_lr.clear_learning_rate`.

    Args:
      optimizer: as in `get_learning_rate`.

    Raises:
      ValueError: what `optax_lr.clear_learning_rate` refuses, or `optimizer` is none.

    >>> from optax_lr import scale_by_learning_rate
    >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    >>> optimizer = nnx.Optimizer(model, scale_by_learning_rate(0.5), wrt=nnx.Param)
    >>> set_learning_rate(optimizer, 0.25)
    >>> clear_learning_rate(optimizer)
    >>> updates = optimizer.update(model, nnx.state(model, nnx.Param))
    >>> float(get_learning_rate(optimizer))
    0.5
    """
    _put(optimizer, learning_rate.clear_learning_rate(_state_of(optimizer)))


def set_unfreezing_steps(optimizer: nnx.Optimizer, starts: Mapping[Label, ScalarLike]) -> None:
    """Give some labels other starts in an `nnx.Optimizer`, in place; see `optax_lr.set_unfreezing_steps`.

    Args:
      optimizer: one with `unfreeze_at`, `zero_until` or `fine_tune` in its transformation.
      starts: from labels to the step of their first update.

    Raises:
      ValueError: what `optax_lr.set_unfreezing_steps` refuses, or `optimizer` is none.

    >>> import optax_lr as olr
    >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    >>> labels = olr.label_by_path({"bias": 0, "kernel": 1})
    >>> optimizer = nnx.Optimizer(model, olr.zero_until({0: 100}, labels), wrt=nnx.Param)
    >>> set_unfreezing_steps(optimizer, {0: 50})
    >>> int(optimizer.opt_state.starts["0"][...])
    50
    """
    _put(optimizer, freezing.set_unfreezing_steps(_state_of(optimizer), starts))


def trainable(labels: Labeler | Labels, names: Label | Collection[Label], *, wrt: Any = nnx.Param) -> Any:
    """A filter of the variables that have some labels, so that no other gradient is ever taken.

    Scales and biases of a frozen batch norm are parameters and stay; its running statistics are none, and move
    until that part of the model is set to `.eval()`. Filters go together in a tuple, `wrt=(nnx.LoRAParam, head)`:
    what either of them selects. Optimizers whose filters select different variables train side by side, each with a
    rate of its own; `nnx.filter_state(gradients, wrt)` gives each its gradients. `nnx.LoRA` around a loaded layer
    keeps its weights under `base_module`, where `nnx.LoRAParam` does not select them.

    One and the same filter goes into `nnx.Optimizer(model, transformation, wrt=...)`, which then keeps a state
    for these variables alone, and into `nnx.grad(loss_fn, argnums=nnx.DiffState(0, ...))`.

    Args:
      labels: a tree of labels, as `labeler.resolve(nnx.state(model, nnx.Param))` gives, which refuses a pattern
        that matches nothing; or the `Labeler` itself where it is `label_by_path`. A filter sees one variable after
        the other, so a pattern of that which matches none, by a slip or as a tied head has the path of its table,
        selects nothing, and is an error in a search alone.
      names: the label or labels to train.
      wrt: the filter of the variables that have labels at all; the others do not match.

    Returns:
      A filter, as `nnx.All` gives.

    Raises:
      ValueError: `names` is empty or has a label that does not exist; `labels` is a `Labeler` that needs all
        parameters at once; when the filter is used, a variable has no label.

    >>> from optax_lr import label_by_path
    >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Linear(3, 1, rngs=nnx.Rngs(1)))
    >>> labels = label_by_path({"layers/1/.*": "head", ".*": "body"}).resolve(nnx.state(model, nnx.Param))
    >>> head = trainable(labels, "head")
    >>> import jax, jax.numpy as jnp
    >>> jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(model, head)))
    {'layers': {1: {'bias': (1,), 'kernel': (3, 1)}}}
    >>> gradients = nnx.grad(lambda model: model(jnp.ones(2)).sum(), argnums=nnx.DiffState(0, head))(model)
    >>> sorted(gradients["layers"])
    [1]
    """
    chosen = [names] if isinstance(names, str | int) else list(names)
    if not chosen:
        raise ValueError(f"names must have at least one label, got {names!r}.")
    if isinstance(labels, Labeler):
        label_at, known = labels.label_path, labels.known
    else:
        ready = dict(leaves_by_path(labels)[0])
        label_at, known = lambda path: ready.get(path), tuple(dict.fromkeys(ready.values()))
    if label_at is None:
        raise ValueError(
            "labels must be a tree where they come from all parameters at once: pass "
            "labels.resolve(nnx.state(model, nnx.Param))."
        )
    check_known("names", chosen, list(known))

    def is_trained(path: tuple[Any, ...], variable: Any) -> bool:
        place = "/".join(map(str, path))
        label = label_at(place)
        if label is None:
            raise ValueError(f"labels has nothing for {place!r}.")
        return label in chosen

    return nnx.All(wrt, is_trained)


def _state_of(optimizer: nnx.Optimizer) -> optax.OptState:
    """An optimizer's state as Optax made it, without the variables around its arrays."""
    if not isinstance(optimizer, nnx.Optimizer):
        raise ValueError(
            f"optimizer must be an nnx.Optimizer, got a {type(optimizer).__name__}; for a state of Optax "
            "there are functions of the same name in optax_lr."
        )
    return pure(optimizer.opt_state)


def _put(optimizer: nnx.Optimizer, state: optax.OptState) -> None:
    nnx.update(optimizer.opt_state, nnx.state(state))
