"""Flax NNX: a module to the finders, an optimizer and its rate. The only room that imports flax.

In a training loop:

    import optax_lr.nnx

    found = olr.nnx.lr_find(loss_fn, model, optax.adam, batches)  # the model stays as it is
    optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)
    olr.nnx.set_learning_rate(optimizer, 1e-4)  # in place; nothing is compiled again
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from . import learning_rate
from .finder import find as finder
from .finder import range_test
from .finder.curve import LRCurve
from .finder.problem import Loss, does_not_take
from .finder.suggestion import Suggestion
from .layers import layerwise
from .layers.labels import Labeler, check_known, leaves_by_path
from .types import Array, Label, Labels, Metrics, PyTree, ScalarLike

Model = nnx.Module | Callable[[Array], nnx.Module]


def lr_find(
    loss_fn: Callable[..., Any],
    model: Model,
    optimizer: Callable[..., optax.GradientTransformation],
    batches: PyTree | Iterable[PyTree],
    *,
    wrt: Any = nnx.Param,
    **options: Any,
) -> Suggestion:
    """Find a learning rate for an `nnx.Module` by training copies of it; see `optax_lr.lr_find`.

    The variables that `wrt` selects are trained. All others, batch statistics and the keys and counts of random
    streams among them, go along with each copy and are changed by it as in a loop of one's own; every seed
    starts with those of the module. The module itself is as it was, every variable and count.

    Validation sees a copy after `.eval()`: no dropout, running averages. Other modes are set inside `eval_fn`.

    Args:
      loss_fn: `(model, batch) -> loss`, a scalar; `(model, batch, key)` with `with_key=True`; `(loss, metrics)`,
        a dict of scalars, with `has_aux=True`. It may change the model it is given.
      model: the module; or a function `key -> module`, and then every seed draws its own start.
      optimizer, batches: as in `optax_lr.lr_find`; the optimizer sees the parameters as it does inside an
        `nnx.Optimizer`, so labels of `nnx.state(model, nnx.Param)` fit.
      wrt: a filter of variables, such as `nnx.Param`, `nnx.LoRAParam` or `trainable(...)`.
      options: the other arguments of `optax_lr.lr_find`, but for `model_state`. `eval_fn` is
        `(model, eval_batch)` to the loss or to a dict with "loss"; `opt_state` an `nnx.Optimizer` or its state.

    Returns:
      A `Suggestion`. After a scheduled search `nnx.update(model, found.params, found.model_state)` puts the best
      run into the model.

    Raises:
      ValueError: wrong input, in one sentence.
      RuntimeError: every lane diverged.

    >>> model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
    >>> batches = jnp.linspace(-1, 1, 20).reshape(5, 4, 1)
    >>> def loss_fn(model, x):
    ...     return jnp.mean((model(x) - 3 * x) ** 2)
    >>> found = lr_find(loss_fn, model, optax.sgd, batches, eval_batch=batches[0], num_steps=5, progress=False)
    >>> found.low <= found.learning_rate <= found.high
    True
    """
    found = finder.lr_find(optimizer=optimizer, batches=batches, **_unpacked(loss_fn, model, wrt, **options))
    # On the host a count is a number, which a variable cannot add to.
    ended = jax.tree.map(jnp.asarray, {"params": found.params, "model_state": found.model_state})
    return dataclasses.replace(found, **ended)


def lr_sweep(
    loss_fn: Callable[..., Any],
    model: Model,
    optimizer: Callable[..., optax.GradientTransformation],
    batches: PyTree | Iterable[PyTree],
    *,
    wrt: Any = nnx.Param,
    **options: Any,
) -> LRCurve:
    """Train copies of an `nnx.Module` at given rates, or lanes of more hyperparameters; see `optax_lr.lr_sweep`.

    Args:
      loss_fn, model, optimizer, batches, wrt: as in `lr_find` of this module.
      options: the other arguments of `optax_lr.lr_sweep`, as there.

    Returns:
      An `LRCurve`.

    Raises:
      ValueError: wrong input, in one sentence.
      RuntimeError: every lane diverged.

    >>> curve = lr_sweep(lambda model, x: jnp.mean(model(x) ** 2), nnx.Linear(4, 1, rngs=nnx.Rngs(0)), optax.sgd,
    ...                  jnp.ones((20, 2, 4)), learning_rates=[0.01, 0.1], progress=False)
    >>> curve.losses.shape
    (1, 2, 20)
    """
    return finder.lr_sweep(optimizer=optimizer, batches=batches, **_unpacked(loss_fn, model, wrt, **options))


def lr_range_test(
    loss_fn: Callable[..., Any],
    model: Model,
    optimizer: Callable[..., optax.GradientTransformation],
    batches: PyTree | Iterable[PyTree],
    *,
    wrt: Any = nnx.Param,
    **options: Any,
) -> LRCurve:
    """The classic range test of an `nnx.Module`, one run with a rising rate; see `optax_lr.lr_range_test`.

    Args:
      loss_fn, model, optimizer, batches, wrt: as in `lr_find` of this module.
      options: the other arguments of `optax_lr.lr_range_test`, as there.

    Returns:
      An `LRCurve` whose lanes are the points of the ramp.

    Raises:
      ValueError: wrong input, in one sentence.
      RuntimeError: the first loss is not finite.

    >>> curve = lr_range_test(lambda model, x: jnp.mean(model(x) ** 2), nnx.Linear(4, 1, rngs=nnx.Rngs(0)),
    ...                       optax.sgd, jnp.ones((20, 2, 4)), num_steps=9, progress=False)
    >>> curve.losses.shape
    (1, 9, 1)
    """
    return range_test.lr_range_test(
        optimizer=optimizer, batches=batches, **_unpacked(loss_fn, model, wrt, **options)
    )


def get_learning_rate(optimizer: nnx.Optimizer) -> Array | dict[str, Array]:
    """The learning rate in an `nnx.Optimizer`; see `optax_lr.get_learning_rate`.

    Args:
      optimizer: one with `scale_by_learning_rate` or an injected `learning_rate` in its transformation.

    Returns:
      The rate; where there are several, a dict from the path of each in `optimizer.opt_state` to the rate.

    Raises:
      ValueError: `optimizer` is none, or holds no visible rate.

    >>> from optax_lr import scale_by_learning_rate
    >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    >>> optimizer = nnx.Optimizer(model, scale_by_learning_rate(0.5), wrt=nnx.Param)
    >>> float(get_learning_rate(optimizer))
    0.5
    """
    return learning_rate.get_learning_rate(_state_of(optimizer))


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
    >>> optimizer = nnx.Optimizer(model, olr.zero_until(labels, {0: 100}), wrt=nnx.Param)
    >>> set_unfreezing_steps(optimizer, {0: 50})
    >>> int(optimizer.opt_state.starts["0"][...])
    50
    """
    _put(optimizer, layerwise.set_unfreezing_steps(_state_of(optimizer), starts))


def trainable(labels: Labeler | Labels, names: Label | Collection[Label], *, wrt: Any = nnx.Param) -> Any:
    """A filter of the variables that have some labels, so that no other gradient is ever taken.

    One and the same filter goes into `nnx.Optimizer(model, transformation, wrt=...)`, which then keeps a state
    for these variables alone, and into `nnx.grad(loss_fn, argnums=nnx.DiffState(0, ...))`.

    Args:
      labels: a tree of labels, as `labeler.resolve(nnx.state(model, nnx.Param))` gives; or the `Labeler` itself
        where it is `label_by_path`, which labels every parameter by its own path.
      names: the label or labels to train.
      wrt: the filter of the variables that have labels at all; the others do not match.

    Returns:
      A filter, as `nnx.All` gives.

    Raises:
      ValueError: `names` is empty or has a label that does not exist; `labels` is a `Labeler` that needs all
        parameters at once; when the filter is used, a variable has no label.

    >>> from optax_lr import label_by_path
    >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Linear(3, 1, rngs=nnx.Rngs(1)))
    >>> head = trainable(label_by_path({"layers/1/.*": "head", ".*": "body"}), "head")
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
    return nnx.as_pure(optimizer.opt_state)


def _put(optimizer: nnx.Optimizer, state: optax.OptState) -> None:
    nnx.update(optimizer.opt_state, nnx.state(state))


def _unpacked(
    loss_fn: Callable[..., Any],
    model: Model,
    wrt: Any,
    *,
    eval_fn: Callable[..., Any] | None = None,
    with_key: bool = False,
    has_aux: bool = False,
    opt_state: Any = None,
    **options: Any,
) -> dict[str, Any]:
    """The arguments of the finders for plain parameters, from those for a module."""
    if "model_state" in options:
        raise ValueError("model_state is what the module itself carries along: leave it out.")
    given = ("model", "batch", "key")[: 3 if with_key else 2]
    if why := does_not_take(loss_fn, *given):
        raise ValueError(f"loss_fn must take ({', '.join(given)}): {why}.")
    graphdef, params, rest = _split(_module_of(model, jax.random.key(0)), wrt)
    if not jax.tree.leaves(params):
        raise ValueError(f"wrt must select variables of the model to train, and {wrt!r} selects none.")
    drawn = functools.partial(_drawn_once, {}, model, wrt)
    user, eval_key = Loss(loss_fn, eval_fn, with_key, with_state=False, has_aux=has_aux), jax.random.key(0)

    def plain_loss(
        params: PyTree, rest: PyTree, batch: PyTree, key: Array = eval_key
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        # Copied, because a loss changes its module, and JAX may trace it more than once.
        module = nnx.merge(graphdef, params, rest, copy=True)
        loss, _, metrics = user(module, None, batch, key)
        return loss, (_split(module, wrt)[2], metrics)

    def plain_eval(params: PyTree, rest: PyTree, eval_batch: PyTree) -> Metrics:
        module = nnx.merge(graphdef, params, rest, copy=True)
        module.eval()
        return user.measure(module, None, eval_batch, eval_key)

    is_module = isinstance(model, nnx.Module)
    evaluated = eval_fn is not None or options.get("eval_batch") is not None
    return {
        "loss_fn": plain_loss,
        "params": params if is_module else lambda key: drawn(key)[1],
        "model_state": rest if is_module else lambda key: drawn(key)[2],
        "with_key": with_key,
        "has_aux": True,
        "eval_fn": plain_eval if evaluated else None,
        "opt_state": nnx.as_pure(opt_state.opt_state if isinstance(opt_state, nnx.Optimizer) else opt_state),
        **options,
    }


def _module_of(model: Model, key: Array) -> nnx.Module:
    """A module to take apart: a copy of the one given, or of one that is drawn."""
    if isinstance(model, nnx.Module):
        return nnx.clone(model)
    if not callable(model):
        raise ValueError(
            f"model must be an nnx.Module or a function from a random key to one, got a {type(model).__name__}."
        )
    module = model(key)
    if not isinstance(module, nnx.Module):
        raise ValueError(f"model must return an nnx.Module, got a {type(module).__name__}.")
    return nnx.clone(module)


def _drawn_once(
    kept: dict[bytes, tuple[Any, PyTree, PyTree]], model: Model, wrt: Any, key: Array
) -> tuple[Any, PyTree, PyTree]:
    """The parts of what a function draws; parameters and the rest are asked for one after the other."""
    which = np.asarray(jax.random.key_data(key)).tobytes()
    if which not in kept:
        kept[which] = _split(_module_of(model, key), wrt)
    return kept[which]


def _split(module: nnx.Module, wrt: Any) -> tuple[Any, PyTree, PyTree]:
    """The graph, the arrays that are trained and all others; what was sown is dropped, as it would pile up."""
    nnx.pop(module, nnx.Intermediate)
    graphdef, *states = nnx.split(module, wrt, ...)
    params, rest = map(nnx.as_pure, states)
    return graphdef, params, rest
