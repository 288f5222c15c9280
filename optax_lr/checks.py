"""Checks of arguments: a wrong concrete one becomes one sentence, a traced one passes.

Concrete scalars come back as Python numbers, so that what is known when a schedule is built is computed in
float64; traced ones come back as arrays of the default float type or of int32.
"""

import difflib
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

MAX_STEP = 2**31 - 1


def is_traced(value: Any) -> bool:
    """Whether `value` is known only when the compiled program runs."""
    return isinstance(value, jax.core.Tracer)


def number(
    name: str,
    value: Any,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
) -> float | Array:
    """A finite scalar within bounds: `minimum` and `maximum` are allowed values, `above` and `below` are not.

    Raises:
      ValueError: a concrete value is not a finite scalar or is out of bounds, or a traced one has a shape.
    """
    bounds = {"of at least": minimum, "above": above, "of at most": maximum, "below": below}
    stated = " and ".join(f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None)
    expected = f"a finite number {stated}".rstrip()
    if is_traced(value):
        if value.ndim:
            raise _refusal(name, expected, f"an array of shape {value.shape}")
        return value.astype(float)
    scalar = _as_float(name, value, expected)
    inside = (
        math.isfinite(scalar)
        and (minimum is None or scalar >= minimum)
        and (above is None or scalar > above)
        and (maximum is None or scalar <= maximum)
        and (below is None or scalar < below)
    )
    if not inside:
        raise _refusal(name, expected, repr(value))
    return scalar


def steps(name: str, value: Any, *, minimum: int = 1) -> int | float | Array:
    """A number of steps: an int where it is whole, else a float; a traced one is raised to `minimum`.

    Raises:
      ValueError: a concrete value is not a finite scalar, is below `minimum`, or is above 2^31 - 1.
    """
    if is_traced(value):
        if value.ndim:
            raise _refusal(name, "one number of steps", f"an array of shape {value.shape}")
        dtype = jnp.int32 if jnp.issubdtype(value.dtype, jnp.integer) else float
        return jnp.maximum(value.astype(dtype), minimum)
    count = number(name, value, minimum=minimum, maximum=MAX_STEP)
    return int(count) if count == int(count) else count


def not_below(name: str, value: Any, floor_name: str, floor: Any) -> None:
    """Refuse a concrete `value` that lies below a concrete `floor`, naming both.

    Raises:
      ValueError: both are concrete and `value < floor`.
    """
    if not (is_traced(value) or is_traced(floor)) and value < floor:
        raise _refusal(name, f"at least {floor_name}={floor!r}", repr(value))


def listed(items: Iterable[Any], *, most: int = 10) -> str:
    """The first few items, and how many more there are."""
    every = [repr(item) for item in items]
    rest = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + rest


def close_match(item: Any, known: Iterable[Any]) -> str:
    """What was probably meant by an item that is not among the known ones, else what there is."""
    by_name = {str(other): other for other in known}
    close = difflib.get_close_matches(str(item), by_name, n=1)
    return f"did you mean {by_name[close[0]]!r}?" if close else f"there is {listed(by_name.values())}."


def _as_float(name: str, value: Any, expected: str) -> float:
    if isinstance(value, str) or np.ndim(value) != 0:
        raise _refusal(name, expected, repr(value))
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise _refusal(name, expected, repr(value)) from error


def _refusal(name: str, expected: str, got: str) -> ValueError:
    return ValueError(f"{name} must be {expected}, got {got}.")
