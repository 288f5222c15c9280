"""Whether an update was an optimizer step: not if gradients were only accumulated, or refused as not finite."""

from typing import Any

import jax
import optax

from ..types import Array

_WRAPPERS = (optax.MultiStepsState, optax.ApplyIfFiniteState)


def has_stepped(before: optax.OptState, after: optax.OptState) -> Array | bool:
    """Whether an optimizer made a step between two of its states; True if no wrapper in it can withhold one.

    `MultiSteps` makes a step when it has accumulated all of its gradients, also where it skips some.
    `apply_if_finite` makes none where it refuses what is not finite.
    """
    made: Array | bool = True
    for old, new in zip(_wrappers(before), _wrappers(after), strict=True):
        if isinstance(old, optax.MultiStepsState):
            made = made & (new.gradient_step != old.gradient_step)
        else:
            made = made & (new.total_notfinite == old.total_notfinite)
    return made


def _wrappers(state: Any) -> list[Any]:
    """Every wrapper in a state, those inside others too."""
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, _WRAPPERS))
    found = [node for node in nodes if isinstance(node, _WRAPPERS)]
    inside = [
        node.inner_opt_state if isinstance(node, optax.MultiStepsState) else node.inner_state
        for node in found
    ]
    return [*found, *(wrapper for state in inside for wrapper in _wrappers(state))]
