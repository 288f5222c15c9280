"""Traces: functions of trees as jaxprs from leaves to leaves, and what is read off them."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from .layout import mesh_of_user
from .leaves import Leaves, is_key, key_bits

# Captured arrays of more numbers than this are arguments of the programs; smaller ones are constants in them.
LARGEST_CONSTANT = 1024


class Traced(NamedTuple):
    """A function that was traced once: a jaxpr from lists of leaves to a list of leaves.

    Attributes:
      closed: the jaxpr with its constants, of which the `large` ones are handed over by each program.
      large: the places of those constants.
      out: the structure of what it returns.
    """

    closed: Any
    large: tuple[int, ...]
    out: Leaves

    @classmethod
    def of(cls, function: Callable, *arguments: Leaves) -> "Traced":
        """Trace a function of trees."""
        closed, out = jax.make_jaxpr(function, return_shape=True)(*(each.example() for each in arguments))
        large = tuple(at for at, value in enumerate(closed.consts) if np.size(value) > LARGEST_CONSTANT)
        return cls(closed, large, Leaves.of(out))

    @property
    def constants(self) -> list[Any]:
        """The constants that programs take as arguments."""
        return [key_bits(self.closed.consts[at]) for at in self.large]

    def __call__(self, constants: Sequence[Any], *arguments: Sequence[Any]) -> list[Any]:
        """The leaves that it returns for lists of leaves, inside a program."""
        consts = list(self.closed.consts)
        for at, value in zip(self.large, constants, strict=True):
            typed = is_key(consts[at])
            consts[at] = (
                jax.random.wrap_key_data(value, impl=jax.random.key_impl(consts[at])) if typed else value
            )
        flat = [leaf for leaves in arguments for leaf in leaves]
        return jax.core.eval_jaxpr(self.closed.jaxpr, consts, *flat)


class Traces(NamedTuple):
    """The functions of a task, traced; what compiles programs reads them, and nothing keeps them."""

    begin: Traced
    step: Traced
    evaluate: Traced | None

    def constants(self) -> dict[str, list[Any]]:
        """By function, the constants that programs take as arguments."""
        return {name: traced.constants if traced else [] for name, traced in self._asdict().items()}

    def text(self) -> str:
        """All of it in words: what tells two searches apart."""
        return "\n".join(str(traced.closed) for traced in self if traced)


def equations(jaxpr: Any) -> Iterator[Any]:
    """The equations of a jaxpr, and of those within them."""
    for each in jaxpr.eqns:
        yield each
        for part in jax.tree.leaves(each.params):
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def reads(jaxpr: Any, argument: Any) -> bool:
    """Whether an argument of a jaxpr goes into an equation or out again."""
    return any(each is argument for each in jaxpr.outvars) or any(
        any(each is argument for each in equation.invars) for equation in jaxpr.eqns
    )


def mesh_named_by(traces: Traces) -> Mesh | None:
    """A mesh of several devices that functions constrain or map over, or that arrays which they capture lie on."""
    closed = [traced.closed for traced in traces if traced]
    for each in itertools.chain(*(equations(one.jaxpr) for one in closed)):
        shardings = (each.params.get(name) for name in ("sharding", "dst_sharding"))
        for named in (each.params.get("mesh"), *(getattr(sharding, "mesh", None) for sharding in shardings)):
            if isinstance(named, Mesh) and named.size > 1:
                return named
    return mesh_of_user([value for one in closed for value in one.consts])
