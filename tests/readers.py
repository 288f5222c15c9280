"""What the public functions that read an optimizer's state say of it, and what those that set make of it."""

from typing import Any

import optax

import optax_lr as olr

READERS = (
    "get_learning_rates",
    "learning_rates_in_force",
    "gain_statistics",
    "get_snapshots",
    "effective_rates",
)

# What they say is text, or a part of what another says.
OTHER_READERS = ("get_learning_rate", "describe_learning_rates")
SETTERS = {
    "set_learning_rate": lambda state: olr.set_learning_rate(state, 0.3),
    "clear_learning_rate": lambda state: olr.clear_learning_rate(olr.set_learning_rate(state, 0.3)),
    "set_unfreezing_steps": lambda state: olr.set_unfreezing_steps(
        state,
        {label: 1 for _, starts in optax.tree.get_all_with_path(state, "starts") for label in starts}
        or {"none": 1},
    ),
}


def settings(state: Any) -> dict[str, Any]:
    """What each public setter makes of a state that has something to set."""
    made = {}
    for name, set_in in SETTERS.items():
        try:
            made[name] = set_in(state)
        except ValueError as error:
            if "opt_state" not in str(error):
                raise
    return made


def readings(state: Any, names: tuple[str, ...] = READERS) -> dict[str, Any]:
    """What each public reader says of a state that has something to read."""
    said = {}
    for name in names:
        try:
            said[name] = getattr(olr, name)(state)
        except ValueError as error:
            if "opt_state" not in str(error):
                raise
    return said
