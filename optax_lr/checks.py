"""Checks of arguments: a wrong concrete one becomes one sentence, a traced one passes.

Concrete scalars come back as Python numbers, so that what is known when a schedule is built is computed in
float64; traced ones come back as arrays of the default float type or of int32.
"""

import difflib
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .types import Array, PyTree

MAX_STEP = 2**31 - 1

MUST_BE_CALLED = "_optax_lr_must_be_called"
"""The attribute of a factory of schedules or curves: what is wanted is what it returns."""


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


def steps(
    name: str,
    value: Any,
    *,
    minimum: int = 1,
    maximum: int = MAX_STEP,
    whole: bool = False,
    unit: str = "steps",
) -> int | float | Array:
    """A number of steps: an int where it is whole, else a float; a traced one is raised to `minimum`.

    With `whole`, a fraction is refused, and a traced float is rounded down to an int32. A value between 0 and 1
    is refused: it is a share of the run, given where a number of steps is asked for.

    Raises:
      ValueError: a concrete value is not a finite scalar, is below `minimum`, is above `maximum` (2^31 - 1), lies
        between 0 and 1, or has a fraction that it may not have.
    """
    most = "2^31 - 1" if maximum == MAX_STEP else maximum
    expected = f"a {'whole ' if whole else ''}number of {unit} from {minimum} to {most}"
    if is_traced(value):
        if value.ndim:
            raise _refusal(name, expected, f"an array of shape {value.shape}")
        if jnp.issubdtype(value.dtype, jnp.integer):
            return jnp.maximum(value.astype(jnp.int32), minimum)
        count = jnp.maximum(value.astype(float), minimum)
        # The largest float32 below 2^31 is the largest that an int32 can take.
        return jnp.minimum(count, 2.0**31 - 2.0**7).astype(jnp.int32) if whole else count
    known = _as_float(name, value, expected)
    if 0 < known < 1:
        raise _refusal(name, f"a number of {unit}, not a share", repr(value))
    if not (minimum <= known <= maximum and (known.is_integer() or not whole)):
        raise _refusal(name, expected, repr(value))
    return int(known) if known.is_integer() else known


def boundaries(name: str, values: Any, *, number: int | None = None) -> list[int | float | Array]:
    """Numbers of steps that do not decrease; where `number` is given, that many.

    Raises:
      ValueError: `values` is no sequence of numbers of steps of at least 0, decreases, or has another length.
    """
    try:
        checked = [steps(f"{name}[{i}]", value, minimum=0) for i, value in enumerate(values)]
    except TypeError as error:
        raise _refusal(name, "a sequence of numbers of steps", repr(values)) from error
    if number is not None and len(checked) != number:
        raise _refusal(name, f"one number for each schedule but the first, {number} in all", repr(values))
    known = [value for value in checked if not is_traced(value)]
    if known != sorted(known):
        raise _refusal(name, "in increasing order", repr(values))
    return checked


def function(name: str, value: Any) -> Any:
    """A function, such as a schedule.

    Raises:
      ValueError: `value` cannot be called, or is a factory that has not been called.
    """
    if not callable(value):
        raise _refusal(name, "a function", repr(value))
    if getattr(value, MUST_BE_CALLED, False):
        raise _refusal(name, "a function", f"{value.__name__}, which must be called to make one")
    return value


def curve(name: str, value: Any) -> Any:
    """A curve: from a progress in [0, 1] to a weight in [0, 1], rising.

    It is tried at 0 and at 1. Where its weights are traced, only their shape is checked.

    Raises:
      ValueError: `value` is no such function, or is the maker of a curve that has not been called.
    """
    expected = "a rising curve, such as curves.cosine or curves.tanh()"
    if getattr(value, MUST_BE_CALLED, False):
        raise _refusal(name, expected, f"{value.__name__}, which must be called to make one")
    own = getattr(value, "function", value)
    if getattr(own, "__module__", "") == f"{__package__}.schedules.curves":
        return value  # Known to rise, and a trial is a dozen small computations.
    try:
        with jax.ensure_compile_time_eval():
            weights = [jnp.asarray(value(jnp.asarray(progress, float))) for progress in (0.0, 1.0)]
    except (TypeError, ValueError, AttributeError) as error:
        raise _refusal(name, expected, repr(value)) from error
    if any(weight.ndim for weight in weights):
        raise _refusal(name, expected, f"one whose weights have shape {weights[0].shape}")
    if any(map(is_traced, weights)):
        return value
    first, last = map(float, weights)
    if not -0.01 <= first < last <= 1.01:
        raise _refusal(name, expected, f"one that goes from {first:g} to {last:g}")
    return value


def choice(name: str, value: Any, options: tuple[str, ...]) -> str:
    """One of a few words.

    Raises:
      ValueError: `value` is none of them.
    """
    if value not in options:
        raise _refusal(name, "one of " + ", ".join(map(repr, options)), repr(value))
    return value


def size(name: str, value: Any, *, maximum: int = MAX_STEP, unit: str = "steps") -> int:
    """A concrete whole number of at least 1, for what sizes an array.

    Raises:
      ValueError: the value is traced, not whole, below 1, or above `maximum`.
    """
    if is_traced(value):
        raise _refusal(name, "a concrete number, since it sizes an array", "a traced one")
    return int(steps(name, value, maximum=maximum, whole=True, unit=unit))


def not_below(name: str, value: Any, floor_name: str, floor: Any) -> None:
    """Refuse a concrete `value` that lies below a concrete `floor`, naming both.

    Raises:
      ValueError: both are concrete and `value < floor`.
    """
    if not (is_traced(value) or is_traced(floor)) and value < floor:
        raise _refusal(name, f"at least {floor_name}={floor!r}", repr(value))


# What JAX raises where Python needs the value of a traced number.
TRACER_ERRORS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def value_at(name: str, schedule: Callable[[Any], Any], step: Any) -> Any:
    """The value of a schedule at a step, which may be traced.

    Raises:
      ValueError: the schedule needs the number of the step, and has a traced one.
    """
    try:
        return schedule(step)
    except TRACER_ERRORS as error:
        raise ValueError(
            f"{name} must be a schedule that JAX can trace, and {schedule!r} branches on the step or takes it out "
            "of JAX: use jnp.where or optax.join_schedules."
        ) from error


def shapes(tree: PyTree) -> str:
    """The shapes of a tree's leaves, in words; a leaf without one stands for itself."""
    return str(jax.tree.map(lambda leaf: getattr(leaf, "shape", leaf), tree))


def leading_axis(name: str, tree: PyTree) -> int:
    """The length of the axis that all leaves lead with."""
    lengths = {leaf.shape[0] if leaf.ndim else 0 for leaf in jax.tree.leaves(tree)}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"{name} must be arrays with one leading axis, at least 1 long, got {shapes(tree)}.")
    return lengths.pop()


def listed(items: Iterable[Any], *, most: int = 10) -> str:
    """The first few items, and how many more there are."""
    every = [repr(item) for item in items]
    rest = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + rest


def close_match(item: Any, known: Iterable[Any]) -> str:
    """What was probably meant by an item that is not among the known ones, else what there is."""
    by_name = {str(other): other for other in known}
    if not by_name:
        return "there is none."
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


def _is_tracing() -> bool:
    """Whether JAX traces here: inside `vmap` and `grad` no constant tells, but no mesh may be asked for."""
    if not hasattr(jax.sharding, "get_mesh"):
        from jax._src.core import trace_state_clean  # JAX 0.7 has no public name for it

        return not trace_state_clean()
    try:
        jax.sharding.get_mesh()
    except ValueError:
        return True
    return False


def not_traced(name: str, *trees: PyTree) -> None:
    """Refuse traced arrays, and a call while JAX traces: a search reads the numbers of its arguments.

    Raises:
      ValueError: a leaf is traced, or the call stands inside `jit`, `scan`, `vmap` or `grad`.
    """
    if _is_tracing() or any(map(is_traced, jax.tree.leaves(trees))):
        raise ValueError(
            f"{name} cannot be called inside jit, vmap or grad: it compiles programs of its own."
        )


def no_module(name: str, value: Any) -> None:
    """Refuse a module of Flax NNX where parameters are asked for.

    Raises:
      ValueError: `value` is one.
    """
    bases = {(base.__module__.partition(".")[0], base.__qualname__) for base in type(value).__mro__}
    if ("flax", "Module") in bases and hasattr(value, "eval"):
        raise ValueError(
            f"{name} must be a pytree of arrays, got the module {type(value).__name__}: optax_lr.nnx has the same "
            "functions for modules."
        )
