"""A CPU that poses as a GPU of so much memory: lanes then ride in one `vmap`, in chunks that fit."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import jax


class PosingDevice:
    """What the package asks of a device before it lays out lanes."""

    platform = "gpu"

    def __init__(self, memory: int):
        self._memory = memory

    def memory_stats(self) -> dict[str, int]:
        return {"bytes_limit": self._memory}


@contextmanager
def posing_as_gpu(memory: int) -> Iterator[None]:
    """All devices of JAX are one GPU of `memory` bytes."""
    with mock.patch.object(jax, "devices", return_value=[PosingDevice(memory)]):
        yield
