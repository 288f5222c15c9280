"""The finders for a Flax NNX module."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ..finder import find, range_test, refind
from ..finder import sweep as rates
from ..finder.curve import LRCurve
from ..finder.problem import Problem
from ..finder.suggestion import Suggestion
from ..types import PyTree, ScalarLike
from .modules import Model, unpacked


def lr_find(
    loss_fn: Callable[..., Any] | Problem,
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
    All lanes of a seed see the same dropout, and what they differ by is the rate; another seed sees another.

    A frozen body, by `wrt` or by label, is still in training mode: it drops out, and its running statistics move,
    since they are no parameters. `model.body.eval()` before the search holds both, as it does in training. A
    variable that the module holds in two places (a tied table) is one parameter, which stays tied.

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
    found = find.lr_find(optimizer=optimizer, batches=batches, **unpacked(loss_fn, model, wrt, **options))
    # On the host a count is a number, which a variable cannot add to.
    ended = jax.tree.map(jnp.asarray, {"params": found.params, "model_state": found.model_state})
    return dataclasses.replace(found, **ended)


def lr_sweep(
    loss_fn: Callable[..., Any] | Problem,
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
    return rates.lr_sweep(optimizer=optimizer, batches=batches, **unpacked(loss_fn, model, wrt, **options))


def lr_range_test(
    loss_fn: Callable[..., Any] | Problem,
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
        optimizer=optimizer, batches=batches, **unpacked(loss_fn, model, wrt, **options)
    )


def lr_refind(
    loss_fn: Callable[..., Any] | Problem,
    model: nnx.Module,
    optimizer: Callable[..., optax.GradientTransformation],
    batches: PyTree | Iterable[PyTree],
    *,
    learning_rate: ScalarLike,
    wrt: Any = nnx.Param,
    **options: Any,
) -> Suggestion:
    """Find the rate to go on with, from the present state of a module's run; see `optax_lr.lr_refind`.

    Args:
      loss_fn, model, optimizer, batches, wrt: as in `lr_find` of this module; the model is as it is now.
      learning_rate: the present rate, above 0.
      options: the other arguments of `optax_lr.lr_refind`, as there; `opt_state` is an `nnx.Optimizer` or its
        state.

    Returns:
      A `Suggestion`. Model and optimizer are as they were.

    Raises:
      ValueError: wrong input, in one sentence.
      RuntimeError: every lane diverged.

    >>> model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
    >>> optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    >>> batches = jnp.linspace(-1, 1, 20).reshape(5, 4, 1)
    >>> found = lr_refind(lambda model, x: jnp.mean((model(x) - 3 * x) ** 2), model, optax.sgd, batches,
    ...                   learning_rate=0.1, opt_state=optimizer, eval_batch=batches[0], num_steps=5)
    >>> found.learning_rate > 0.1
    True
    """
    given = unpacked(loss_fn, model, wrt, **options)
    return refind.lr_refind(optimizer=optimizer, batches=batches, learning_rate=learning_rate, **given)
