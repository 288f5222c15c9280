"""Checks of arguments: a wrong concrete one becomes one sentence, a traced one passes.

Concrete scalars come back as Python numbers, so that what is known when a schedule is built is computed in
float64; traced ones come back as arrays of the default float type or of int32.
"""

import math
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


def concrete(name: str, value: Any, **bounds: float | None) -> float:
    """A finite scalar within bounds, as `number`, that must be known now.

    Raises:
      ValueError: the value is traced, or what `number` refuses.
    """
    if is_traced(value):
        raise _refusal(name, "a concrete number", "a traced one")
    return float(number(name, value, **bounds))


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


def whole(name: str, value: Any, *, minimum: int = 1) -> int:
    """A concrete whole number, for what sizes an array.

    Raises:
      ValueError: the value is traced, not whole, or below `minimum`.
    """
    if is_traced(value):
        raise _refusal(name, "a concrete number, since it sizes an array", "a traced one")
    count = steps(name, value, minimum=minimum)
    if not isinstance(count, int):
        raise _refusal(name, f"a whole number of at least {minimum}", repr(value))
    return count


def not_below(name: str, value: Any, floor_name: str, floor: Any) -> None:
    """Refuse a concrete `value` that lies below a concrete `floor`, naming both.

    Raises:
      ValueError: both are concrete and `value < floor`.
    """
    if not (is_traced(value) or is_traced(floor)) and value < floor:
        raise _refusal(name, f"at least {floor_name}={floor!r}", repr(value))


def _as_float(name: str, value: Any, expected: str) -> float:
    if isinstance(value, str) or np.ndim(value) != 0:
        raise _refusal(name, expected, repr(value))
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise _refusal(name, expected, repr(value)) from error


def _refusal(name: str, expected: str, got: str) -> ValueError:
    return ValueError(f"{name} must be {expected}, got {got}.")
