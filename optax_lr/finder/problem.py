"""A loss as a user writes it: one value that says which form it has, and calls it.

Here is the only place that knows whether a loss takes a key, carries a model state or reports metrics.
"""

import dataclasses
import inspect
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..types import Array, Metrics, PyTree

# What a loss returns, by whether it has a model state and whether it has metrics.
_FORMS = {
    (False, False): "one scalar",
    (False, True): "(loss, metrics), the loss one scalar",
    (True, False): "(loss, new_state), the loss one scalar",
    (True, True): "(loss, (new_state, metrics)), the loss one scalar",
}


class Outcome(NamedTuple):
    """What a loss says of a batch.

    Attributes:
      loss: one number.
      state: the new model state, or None.
      metrics: what else was reported.
      params: the parameters as the loss left them; None where it cannot change them.
    """

    loss: Array
    state: PyTree
    metrics: Metrics
    params: PyTree = None


@dataclasses.dataclass(frozen=True)
class Problem:
    """How a loss is written. Every finder takes it in place of a plain `loss_fn(params, batch) -> loss`.

    The forms go together in any combination; all of them are
    `loss_fn(params, model_state, batch, key) -> (loss, (new_state, metrics))`.

    Attributes:
      loss_fn: the loss of a batch, a scalar.
      with_key: whether it takes a random key as its last argument, for dropout. Lanes of one seed get the same
        keys.
      has_aux: whether it returns `(loss, metrics)`, a dict of scalars that are recorded, too.
      eval_fn: how validation data are judged: `(params, eval_batch)` to the loss or to a dict of scalars with
        "loss" and others. None is `loss_fn` itself, with one key for all evaluations.
      with_state: whether the loss carries a model state along, for batch norm:
        `loss_fn(params, model_state, batch) -> (loss, new_state)`; `eval_fn` then takes the state as its second
        argument. Finders set it where they are given a `model_state`.

    Raises:
      ValueError: `loss_fn` or `eval_fn` cannot be called.

    >>> problem = Problem(lambda params, batch: (params * batch, {"size": batch}), has_aux=True)
    >>> found = problem(2.0, None, 3.0, None)
    >>> float(found.loss), float(found.metrics["size"])
    (6.0, 3.0)
    """

    loss_fn: Callable[..., Any]
    with_key: bool = False
    has_aux: bool = False
    eval_fn: Callable[..., Any] | None = None
    with_state: bool = False

    def __post_init__(self) -> None:
        checks.function("loss_fn", self.loss_fn)
        if self.eval_fn is not None:
            checks.function("eval_fn", self.eval_fn)

    @property
    def functions(self) -> tuple[Callable | None, ...]:
        """The user's own functions, the loss first."""
        return self.loss_fn, self.eval_fn

    @property
    def static(self) -> Hashable:
        """What else tells two problems apart."""
        return self.with_key, self.has_aux, self.with_state

    def arguments(
        self, params: PyTree, model_state: PyTree, batch: PyTree, key: Array | None
    ) -> dict[str, Any]:
        """What `loss_fn` takes, by the name that the documentation uses, in order."""
        state = {"model_state": model_state} if self.with_state else {}
        return {"params": params, **state, "batch": batch, **({"key": key} if self.with_key else {})}

    def begun(self, model_state: PyTree, seed: Any) -> PyTree:
        """The model state that a run on a seed begins with."""
        return model_state

    def __call__(self, params: PyTree, model_state: PyTree, batch: PyTree, key: Array | None) -> Outcome:
        """The loss, the new model state and the metrics, whatever the form."""
        found = self.loss_fn(*self.arguments(params, model_state, batch, key).values())
        match bool(self.with_state), bool(self.has_aux), found:
            case False, False, loss if is_scalar(loss):
                return Outcome(jnp.asarray(loss), None, {})
            case False, True, (loss, metrics) if is_scalar(loss):
                return Outcome(jnp.asarray(loss), None, _scalars("loss_fn", metrics, without="loss"))
            case True, False, (loss, state) if is_scalar(loss):
                return Outcome(jnp.asarray(loss), state, {})
            case True, True, (loss, (state, metrics)) if is_scalar(loss):
                return Outcome(jnp.asarray(loss), state, _scalars("loss_fn", metrics, without="loss"))
        form = bool(self.with_state), bool(self.has_aux)
        hint = "; what is beside it needs has_aux or model_state" if form == (False, False) else ""
        beside = hint if isinstance(found, tuple) else ""
        raise ValueError(f"loss_fn must return {_FORMS[form]}, got {checks.shapes(found)}{beside}.")

    def measure(self, params: PyTree, model_state: PyTree, eval_batch: PyTree, key: Array) -> Metrics:
        """What is reported of validation data, "loss" among it."""
        if self.eval_fn is None:
            found = self(params, model_state, eval_batch, key)
            return {"loss": found.loss, **found.metrics}
        found = self.eval_fn(params, *((model_state,) if self.with_state else ()), eval_batch)
        measured = _scalars("eval_fn", found if isinstance(found, Mapping) else {"loss": found})
        if "loss" not in measured:
            raise ValueError(f'eval_fn must return a loss or a dict with "loss", got {sorted(measured)}.')
        return measured

    def refuse_if_it_does_not_take(self, params: PyTree, model_state: PyTree, batch: PyTree) -> None:
        """Refuse a loss that cannot be called as its form says."""
        given = self.arguments(params, model_state, batch, None)
        if why := does_not_take(self.loss_fn, *given.values()):
            raise ValueError(f"loss_fn must take ({', '.join(given)}): {why}.")


def problem_of(
    loss_fn: Callable[..., Any] | Problem, with_state: bool, options: Mapping[str, Any]
) -> Problem:
    """The problem that a finder was given: a `Problem`, or a loss and its options."""
    if not isinstance(loss_fn, Problem):
        return Problem(loss_fn, with_state=with_state, **options)
    if options:
        raise ValueError(f"a Problem holds the form of its loss: leave out {', '.join(sorted(options))}.")
    return dataclasses.replace(loss_fn, with_state=with_state)


def does_not_take(function: Callable, *args: Any, **kwargs: Any) -> str:
    """Why a function cannot be called with these arguments, in words; empty where it can, or tells nothing."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return ""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        return str(error)
    return ""


def _scalars(name: str, metrics: Any, *, without: str | None = None) -> dict[str, Array]:
    """Metrics as arrays, each a scalar."""
    if not isinstance(metrics, Mapping):
        raise ValueError(
            f"{name} must return its metrics as a dict of scalars, got {checks.shapes(metrics)}."
        )
    for metric, value in metrics.items():
        if not is_scalar(value):
            several = ", or several as a dict of scalars" if name == "eval_fn" else ""
            raise ValueError(
                f"{name} must return a scalar as metric {metric!r}{several}, got {checks.shapes(value)}."
            )
        if metric == without:
            raise ValueError(f"{name} must not report {metric!r} among its metrics: it returns it already.")
    return {metric: jnp.asarray(value) for metric, value in metrics.items()}


def is_scalar(value: Any) -> bool:
    """Whether a value is one number."""
    return is_number(value) and np.shape(value) == ()


def is_number(leaf: Any) -> bool:
    """Whether a leaf is an array or a Python number."""
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float | complex)
