"""Counting what JAX lowers: law 8 is a number."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

unregister = getattr(jax.monitoring, "unregister_event_duration_listener", None) or getattr(
    jax._src.monitoring, "_unregister_event_duration_listener_by_callback", None
)  # JAX 0.7 has it under the second name alone
_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"


@contextmanager
def count_lowerings() -> Iterator[list[str]]:
    """A list that grows by one for each program lowered in the block, those of eager operations too."""
    lowered: list[str] = []

    def listen(event: str, duration: float, **details: Any) -> None:
        if event == _LOWERED:
            lowered.append(str(details.get("fun_name", "")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield lowered
    finally:
        unregister(listen)
