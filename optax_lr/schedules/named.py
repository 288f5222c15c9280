"""Schedules and curves that print as the call that made them."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, TypeVar, cast

import jax
import numpy as np

from .. import checks

P = ParamSpec("P")
R = TypeVar("R", bound=Callable)


@dataclass(frozen=True, eq=False, repr=False)
class Named:
    """A schedule or a curve: a plain function that prints as the call that made it.

    Attributes:
      function: the function of the step, or of the progress.
      transition_steps: the length of a schedule: from this step on its value stays. None where it has no end, or
        where the length is traced.
      call: the name of the factory and its arguments.
    """

    function: Callable[[Any], Any]
    transition_steps: int | float | None = None
    call: tuple[str, inspect.BoundArguments | None] = ("", None)

    def __call__(self, at: Any) -> Any:
        return self.function(at)

    def _is_no_number(self, *_: Any) -> Any:
        """Arithmetic, as of `optax.sgd(momentum=schedule)`: it says how an optimizer reads a schedule."""
        raise TypeError(
            f"{self!r} is a function, not a number. For an argument that takes no schedule: "
            "optax.inject_hyperparams(optax.sgd, hyperparam_dtype=float)(learning_rate=0.1, momentum=schedule). "
            "Schedules are multiplied by scale_schedule and added by add_schedules."
        )

    __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __pow__ = __rpow__ = __neg__ = _is_no_number
    __add__ = __radd__ = __sub__ = __rsub__ = _is_no_number

    def __repr__(self) -> str:
        name, given = self.call
        return f"{name}({_arguments(given)})" if given else name or repr(self.function)


def named(factory: Callable[P, R]) -> Callable[P, R]:
    """A factory of schedules or curves whose products print as the call that made them.

    >>> from optax_lr import cosine_decay_schedule, curves
    >>> cosine_decay_schedule(0.1, decay_steps=100), curves.tanh(-4.0)
    (cosine_decay_schedule(init_value=0.1, decay_steps=100), curves.tanh(lower=-4.0))
    """
    signature = inspect.signature(factory)

    @functools.wraps(factory)
    def build(*args: P.args, **kwargs: P.kwargs) -> R:
        made: Any = factory(*args, **kwargs)
        product = made if isinstance(made, Named) else Named(made)
        return cast(R, replace(product, call=(_name(factory), signature.bind(*args, **kwargs))))

    setattr(build, checks.MUST_BE_CALLED, True)
    return build


def length_of(schedule: Any) -> int | float | None:
    """The length of a schedule, where it says so."""
    return getattr(schedule, "transition_steps", None)


def known_sum(*counts: Any) -> int | float | None:
    """The sum of numbers of steps, None where one is traced or None."""
    if any(count is None or checks.is_traced(count) for count in counts):
        return None
    return sum(counts)


def known_maximum(counts: list[Any]) -> int | float | None:
    """The largest number of steps, None where one is traced or None."""
    return None if known_sum(*counts) is None else max(counts)


def _name(function: Any) -> str:
    of_curves = function.__module__.endswith(".schedules.curves")
    return f"curves.{function.__name__}" if of_curves else function.__qualname__


def _arguments(given: inspect.BoundArguments) -> str:
    parts: list[str] = []
    for name, value in given.arguments.items():
        if given.signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
            parts += map(_text, value)
        else:
            parts.append(f"{name}={_text(value)}")
    return ", ".join(parts)


def _text(value: Any) -> str:
    if checks.is_traced(value):
        return "<traced>"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_text(key)}: {_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_text, value)) + "]"
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return str(value) if value.ndim == 0 else f"{value.dtype}{list(value.shape)}"
    return _name(value) if inspect.isfunction(value) else repr(value)
