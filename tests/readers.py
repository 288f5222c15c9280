"""What the public functions that read an optimizer's state say of it."""

from typing import Any

import optax_lr as olr

READERS = (
    "get_learning_rates",
    "learning_rates_in_force",
    "gain_statistics",
    "get_snapshots",
    "effective_rates",
)


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
