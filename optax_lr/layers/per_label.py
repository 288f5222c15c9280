"""One traced function for all labels, where a few of its inputs (counters) differ from label to label.

Only what depends on such an input is computed once a label, and only for the labels whose outputs need it. So
a computation over the whole tree, such as a global norm, is made once, and each array once.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax


class PerLabel(dict[str, Any]):
    """A value for each label, where they differ."""


def of(value: Any, label: str) -> Any:
    """The value for one label."""
    return value[label] if isinstance(value, PerLabel) else value


def evaluate(
    jaxpr: Any, constants: Sequence[Any], inputs: Sequence[Any], wanted: Sequence[frozenset[str]]
) -> list[Any]:
    """The outputs of a traced function.

    Args:
      jaxpr: the function, without its constants.
      constants: those.
      inputs: for each, a value or a `PerLabel`.
      wanted: for each output, the labels that need it.

    Returns:
      For each output, a value or a `PerLabel` of the labels that need it; None if none does.
    """
    varies = {var for var, value in zip(jaxpr.invars, inputs, strict=True) if isinstance(value, PerLabel)}
    for eqn in jaxpr.eqns:
        if not varies.isdisjoint(_variables(eqn)):
            varies.update(eqn.outvars)
    needed = _needed(jaxpr, wanted)
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *inputs], strict=True))
    for eqn in jaxpr.eqns:
        labels = _labels(eqn, needed)
        if not labels and not eqn.effects:
            continue
        values = [_read(env, var) for var in eqn.invars]
        if varies.isdisjoint(eqn.outvars):
            results = _bind(eqn, values)
        else:
            results = _bind_per_label(eqn, values, [frozenset(needed[var]) for var in eqn.outvars])
        env.update(zip(eqn.outvars, results, strict=True))
    return [_read(env, var) for var in jaxpr.outvars]


def _needed(jaxpr: Any, wanted: Sequence[frozenset[str]]) -> dict[Any, set[str]]:
    """The labels that need each variable."""
    needed: dict[Any, set[str]] = defaultdict(set)
    for var, labels in zip(jaxpr.outvars, wanted, strict=True):
        if not _is_literal(var):
            needed[var] |= labels
    # An equation with an effect, such as a printout, runs for every label that there is.
    every = frozenset().union(*wanted)
    for eqn in reversed(jaxpr.eqns):
        for var in _variables(eqn):
            needed[var] |= every if eqn.effects else _labels(eqn, needed)
    return needed


def _labels(eqn: Any, needed: dict[Any, set[str]]) -> set[str]:
    return set().union(*(needed[var] for var in eqn.outvars))


def _bind_per_label(eqn: Any, values: list[Any], wanted: list[frozenset[str]]) -> list[Any]:
    """The results of an equation whose inputs differ from label to label."""
    if eqn.primitive.name == "jit":
        inner = eqn.params["jaxpr"]
        return evaluate(inner.jaxpr, inner.consts, values, wanted)
    if eqn.primitive.name == "cond":
        # Both branches and a selection: one conditional for each label would hold the whole tree each time.
        index, *operands = values
        branches = [
            evaluate(branch.jaxpr, branch.consts, operands, wanted) for branch in eqn.params["branches"]
        ]
        return [
            PerLabel(
                {
                    label: jax.lax.select_n(of(index, label), *(of(result, label) for result in results))
                    for label in sorted(labels)
                }
            )
            for labels, *results in zip(wanted, *branches, strict=True)
        ]
    every = sorted(frozenset().union(*wanted))
    each = {label: _bind(eqn, [of(value, label) for value in values]) for label in every}
    return [PerLabel({label: found[i] for label, found in each.items()}) for i in range(len(eqn.outvars))]


def _bind(eqn: Any, values: list[Any]) -> list[Any]:
    bound = eqn.primitive.get_bind_params(eqn.params)
    # JAX 0.7 has functions among the parameters apart from them.
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    with eqn.ctx.manager:
        results = eqn.primitive.bind(*functions, *values, **params)
    return list(results) if eqn.primitive.multiple_results else [results]


def _variables(eqn: Any) -> list[Any]:
    return [var for var in eqn.invars if not _is_literal(var)]


def _read(env: dict[Any, Any], var: Any) -> Any:
    return var.val if _is_literal(var) else env.get(var)


def _is_literal(var: Any) -> bool:
    return hasattr(var, "val")
