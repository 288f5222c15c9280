"""One traced function for all labels, where a few of its inputs (counters) differ from label to label.

Only what depends on such an input is computed once a label, and only for the labels whose outputs need it. So
a computation over the whole tree, such as a global norm, is made once, and each array once.
"""

from collections.abc import Sequence
from typing import Any

import jax

_NONE: frozenset[str] = frozenset()


class PerLabel(dict[str, Any]):
    """A value for each label, where they differ."""


def of(value: Any, label: str) -> Any:
    """The value for one label."""
    return value[label] if isinstance(value, PerLabel) else value


def evaluate(
    jaxpr: Any,
    constants: Sequence[Any],
    inputs: Sequence[Any],
    wanted: Sequence[frozenset[str]],
    every: frozenset[str],
) -> list[Any]:
    """The outputs of a traced function.

    Args:
      jaxpr: the function, without its constants.
      constants: those.
      inputs: for each, a value or a `PerLabel`.
      wanted: for each output, the labels that need it.
      every: the labels for which an effect, such as a printout, happens.

    Returns:
      For each output, a value or a `PerLabel` of the labels that need it; None if none does.
    """
    needed = _needed(jaxpr, wanted, every)
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *inputs], strict=True))
    for eqn in jaxpr.eqns:
        labels = every if eqn.effects else _labels(eqn, needed)
        if not labels:
            continue
        values = [var.val if _is_literal(var) else env.get(var) for var in eqn.invars]
        if not any(isinstance(value, PerLabel) for value in values):
            results = _bind(eqn, values)
        elif len(labels) == 1:  # most of all: what is computed for one parameter
            (label,) = labels
            results = _bind(eqn, [of(value, label) for value in values])
        else:
            results = _bind_per_label(eqn, values, labels, [needed.get(var, _NONE) for var in eqn.outvars])
        env.update(zip(eqn.outvars, results, strict=True))
    return [var.val if _is_literal(var) else env.get(var) for var in jaxpr.outvars]


def _needed(jaxpr: Any, wanted: Sequence[frozenset[str]], every: frozenset[str]) -> dict[Any, frozenset[str]]:
    """The labels that need each variable."""
    needed: dict[Any, frozenset[str]] = {}

    def need(var: Any, labels: frozenset[str]) -> None:
        had = needed.get(var, _NONE)
        if had is not labels and not labels <= had:
            needed[var] = had | labels

    for var, labels in zip(jaxpr.outvars, wanted, strict=True):
        if not _is_literal(var):
            need(var, labels)
    for eqn in reversed(jaxpr.eqns):
        labels = every if eqn.effects else _labels(eqn, needed)
        for var in eqn.invars:
            if not _is_literal(var):
                need(var, labels)
    return needed


def _labels(eqn: Any, needed: dict[Any, frozenset[str]]) -> frozenset[str]:
    if len(eqn.outvars) == 1:
        return needed.get(eqn.outvars[0], _NONE)
    return _NONE.union(*(needed.get(var, _NONE) for var in eqn.outvars))


def _bind_per_label(
    eqn: Any, values: list[Any], labels: frozenset[str], wanted: list[frozenset[str]]
) -> list[Any]:
    """The results of an equation whose inputs differ from label to label, and which several labels need."""
    if eqn.primitive.name == "jit":
        inner = eqn.params["jaxpr"]
        return evaluate(inner.jaxpr, inner.consts, values, wanted, labels)
    if eqn.primitive.name == "cond" and not eqn.effects:
        # Both branches and a selection: one conditional for each label would hold the whole tree each time.
        index, *operands = values
        branches = [
            evaluate(branch.jaxpr, branch.consts, operands, wanted, labels)
            for branch in eqn.params["branches"]
        ]
        return [
            PerLabel(
                {
                    label: jax.lax.select_n(of(index, label), *(of(result, label) for result in results))
                    for label in sorted(those)
                }
            )
            for those, *results in zip(wanted, *branches, strict=True)
        ]
    each = {label: _bind(eqn, [of(value, label) for value in values]) for label in sorted(labels)}
    return [PerLabel({label: found[i] for label, found in each.items()}) for i in range(len(eqn.outvars))]


def _bind(eqn: Any, values: list[Any]) -> list[Any]:
    bound = eqn.primitive.get_bind_params(eqn.params)
    # JAX 0.7 has functions among the parameters apart from them.
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    with eqn.ctx.manager:
        results = eqn.primitive.bind(*functions, *values, **params)
    return list(results) if eqn.primitive.multiple_results else [results]


def _is_literal(var: Any) -> bool:
    return hasattr(var, "val")
