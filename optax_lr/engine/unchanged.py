"""Which leaves of a carry does a step return as they came? A forward walk through its jaxpr; nothing is computed.

Every value is one of: the number of an input that it equals, `ZERO` or `ONE` (a constant of that number in every
place), `Widened` (an input in a wider dtype), or None for what is not known. The answer may miss a leaf that is
unchanged, which then costs memory; it never takes a changed leaf for an unchanged one.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ZERO, ONE = "zero", "one"


class Widened(NamedTuple):
    """An input converted to a dtype that holds every value of its own."""

    value: int
    dtype: Any


# An output for each input, each equal to it.
PASSED_ON = set(
    "copy copy_p optimization_barrier sharding_constraint reshard pvary pbroadcast stop_gradient name".split()
)
# One input to one output with the same numbers, in other places.
MOVED = set("broadcast_in_dim reshape squeeze expand_dims transpose".split())
INNER_JAXPRS = ("jaxpr", "call_jaxpr", "fun_jaxpr")


def sources(closed: Any) -> list[int | None]:
    """For each output of a closed jaxpr, the input that it equals, or None."""
    outputs = _outputs(closed.jaxpr, closed.consts, list(range(len(closed.jaxpr.invars))))
    return [output if isinstance(output, int) else None for output in outputs]


def unchanged(closed: Any, count: int) -> list[bool]:
    """For each of the first `count` inputs of a closed jaxpr, whether the output at its place equals it."""
    return [source == at for at, source in enumerate(sources(closed)[:count])]


def reached(closed: Any, inputs: Sequence[int]) -> list[bool]:
    """For each output of a closed jaxpr, whether it may depend on any of some inputs."""
    seen = {closed.jaxpr.invars[at] for at in inputs}
    for equation in closed.jaxpr.eqns:
        if any(_is_variable(read) and read in seen for read in equation.invars):
            seen |= set(equation.outvars)
    return [_is_variable(out) and out in seen for out in closed.jaxpr.outvars]


def _is_variable(atom: Any) -> bool:
    return not hasattr(atom, "val")


def _constant(value: Any) -> str | None:
    """`ZERO` or `ONE` where a known array is filled with that number."""
    if isinstance(value, jax.core.Tracer) or jax.dtypes.issubdtype(
        jnp.result_type(value), jax.dtypes.extended
    ):
        return None
    numbers = np.asarray(value).reshape(-1)
    if not numbers.size or (numbers != numbers[0]).any():
        return None
    return ZERO if numbers[0] == 0 else ONE if numbers[0] == 1 else None


def _outputs(jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    """What is known of a jaxpr's outputs, from what is known of its inputs."""
    known = dict(zip(jaxpr.constvars, map(_constant, consts), strict=True))
    known |= dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Any:
        return known.get(atom) if _is_variable(atom) else _constant(atom.val)

    for equation in jaxpr.eqns:
        found = _of_equation(equation, [read(atom) for atom in equation.invars])
        known.update(zip(equation.outvars, found or [None] * len(equation.outvars), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _of_equation(equation: Any, values: list[Any]) -> list[Any] | None:
    """What is known of the outputs of one equation; None where nothing is."""
    name = equation.primitive.name
    if name in PASSED_ON:
        return values
    if name in _RULES:
        return _RULES[name](equation, values)
    if name in MOVED:
        same = isinstance(values[0], str) or (name != "transpose" and _alike(equation, 0))
        return [values[0] if same else None]
    closed = next((equation.params[key] for key in INNER_JAXPRS if key in equation.params), None)
    return None if closed is None else _call(closed, values)


def _alike(equation: Any, at: int) -> bool:
    """Whether an input of an equation has the shape and dtype of its first output."""
    given, made = equation.invars[at].aval, equation.outvars[0].aval
    return (given.shape, given.dtype) == (made.shape, made.dtype)


def _call(closed: Any, values: list[Any]) -> list[Any] | None:
    jaxpr, consts = getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())
    return _outputs(jaxpr, consts, values) if len(jaxpr.invars) == len(values) else None


def _convert(equation: Any, values: list[Any]) -> list[Any]:
    """A value in another dtype; one that was widened comes back as it was."""
    (value,), old, new = values, equation.invars[0].aval.dtype, equation.outvars[0].aval.dtype
    if value is None or isinstance(value, str) or old == new:
        return [value]
    if isinstance(value, Widened):
        back = value.value if value.dtype == new else None
        return [value if back is None and _widens(value.dtype, new) else back]
    return [Widened(value, old) if _widens(old, new) else None]


def _widens(old: Any, new: Any) -> bool:
    floating = jnp.issubdtype(old, jnp.floating) and jnp.issubdtype(new, jnp.floating)
    return floating and jnp.promote_types(old, new) == new


def _add(equation: Any, values: list[Any]) -> list[Any]:
    if values[1] == ZERO and _alike(equation, 0):
        return [values[0]]
    return [values[1] if values[0] == ZERO and _alike(equation, 1) else None]


def _subtract(equation: Any, values: list[Any]) -> list[Any]:
    return [values[0] if values[1] == ZERO and _alike(equation, 0) else None]


def _multiply(equation: Any, values: list[Any]) -> list[Any]:
    if values[1] == ONE and _alike(equation, 0):
        return [values[0]]
    if values[0] == ONE and _alike(equation, 1):
        return [values[1]]
    return [ZERO if values == [ZERO, ZERO] else None]


def _select(equation: Any, values: list[Any]) -> list[Any]:
    which, *branches = values
    if all(branch == branches[0] for branch in branches):
        return branches[:1]
    return [branches[which == ONE] if which in (ZERO, ONE) else None]


def _cond(equation: Any, values: list[Any]) -> list[Any]:
    branches = [_call(branch, values[1:]) for branch in equation.params["branches"]]
    if any(found is None for found in branches):
        return [None] * len(equation.outvars)
    return [
        each[0] if all(value == each[0] for value in each) else None for each in zip(*branches, strict=True)
    ]


def _scan(equation: Any, values: list[Any]) -> list[Any]:
    params = equation.params
    first, last = params["num_consts"], params["num_consts"] + params["num_carry"]
    rest = [None] * (len(values) - last)
    kept = _loop(params["jaxpr"], values[:first], values[first:last], rest)
    return kept + [None] * (len(equation.outvars) - len(kept))


def _while(equation: Any, values: list[Any]) -> list[Any]:
    params = equation.params
    first, last = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    return _loop(params["body_jaxpr"], values[first:last], values[last:], [])


def _loop(body: Any, consts: list[Any], carry: list[Any], rest: list[Any]) -> list[Any]:
    """What is known of a loop's carry after any number of turns: entries that its body hands on."""
    # Assume that all entries are kept, and drop those that are not until nothing changes.
    assumed: list[Any] = [("carry", at) for at in range(len(carry))]
    while True:
        found = _call(body, [*consts, *assumed, *rest]) or [None] * len(assumed)
        held = [
            tag if tag is not None and tag == new else None for tag, new in zip(assumed, found, strict=False)
        ]
        if held == assumed:
            return [value if tag else None for value, tag in zip(carry, held, strict=True)]
        assumed = held


def _shard_map(equation: Any, values: list[Any]) -> list[Any]:
    """An input that comes out of a mapped function as it went in, split in the same way."""
    found = _outputs(equation.params["jaxpr"], [], list(range(len(values))))
    specs = equation.params["in_specs"]
    return [
        values[at] if isinstance(at, int) and specs[at] == spec else None
        for at, spec in zip(found, equation.params["out_specs"], strict=True)
    ]


_RULES: dict[str, Callable[[Any, list[Any]], list[Any]]] = {
    "convert_element_type": _convert,
    "add": _add,
    "add_any": _add,
    "sub": _subtract,
    "mul": _multiply,
    "select_n": _select,
    "cond": _cond,
    "scan": _scan,
    "while": _while,
    "shard_map": _shard_map,
}
