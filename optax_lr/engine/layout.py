"""Layouts: how the rows of a search are laid out over devices and threads, and arrays moved there and back.

A layout holds one lane a call, on host threads (a CPU) or on the devices that the user placed the start on; or a
grid of seeds and lanes in one `vmap`, of which a mesh may give each device an equal share. On the user's mesh all
devices work on all lanes of a call.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import (
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)

# Which leading axes an argument of a program has in a grid: those of its rows, of its lanes, of its seeds, or none.
ROWS, LANES, SEEDS, ALL = "rows", "lanes", "seeds", "all"


class Layout(NamedTuple):
    """How one call of a program holds rows; programs depend on it.

    Attributes:
      width: how many lanes one call holds, over all devices; 0 where it holds a single row.
      seeds: how many seeds one call holds; there is an axis of seeds where it is above 1.
      mesh: the devices that share a call, or the mesh that the user placed the start on; None for a single device.
      device: the single device, where the user named one; None is JAX's default.
      placed: whether the mesh is the user's.
      starts, folds: whether starts, and batches and validation data, differ from seed to seed.
      freeze: whether a run that stops keeps the carry that it had; a lone lane whose carry nobody wants is cheaper.
      window: how many steps one call makes at most.
      workers: how many host threads make calls.
    """

    width: int = 0
    seeds: int = 1
    mesh: Mesh | None = None
    device: jax.Device | None = None
    placed: bool = False
    starts: bool = False
    folds: bool = False
    freeze: bool = True
    window: int = 1
    workers: int = 1

    @property
    def devices(self) -> int:
        """Over how many devices the lanes of a call are split."""
        return self.mesh.size if self.mesh is not None and not self.placed else 1

    @property
    def rows(self) -> tuple[int, ...]:
        """The leading axes of what differs from row to row."""
        return (*self.axes(SEEDS), *self.axes(LANES))

    def axes(self, kind: str) -> tuple[int, ...]:
        """The leading axes of an argument of a kind."""
        lanes = (self.width,) if self.width else ()
        seeds = (self.seeds,) if self.seeds > 1 else ()
        return {ALL: (), LANES: lanes, SEEDS: seeds, ROWS: (*seeds, *lanes)}[kind]

    def spec(self, kind: str) -> PartitionSpec:
        """How an argument of a kind is split over the mesh of lanes."""
        if kind in (ALL, SEEDS) or not self.width or self.mesh is None or self.placed:
            return PartitionSpec()
        return PartitionSpec(*[None] * (kind == ROWS and self.seeds > 1), self.mesh.axis_names)

    def sharding(self, kind: str) -> Sharding | None:
        """Where an argument of a kind lies; None for the default device."""
        if self.mesh is None:
            return None if self.device is None else SingleDeviceSharding(self.device)
        return NamedSharding(self.mesh, self.spec(kind))

    def put(self, values: Sequence[Any], kind: str) -> list[Any]:
        """Host arrays where a program reads them. A CPU's programs read them where they are."""
        if self.mesh is None and not self.width:
            return list(values)
        sharding = self.sharding(kind)
        return [
            value if _is_spread(value) else jax.device_put(_of_any_host(value), sharding) for value in values
        ]

    def get(self, values: Any) -> Any:
        """Arrays as NumPy's, whole on every host."""
        if self.spans_hosts:
            from jax.experimental import multihost_utils

            return multihost_utils.process_allgather(values, tiled=True)
        return jax.device_get(values)

    @property
    def spans_hosts(self) -> bool:
        """Whether the devices of a call belong to several processes."""
        return self.mesh is not None and len({device.process_index for device in self.mesh.devices.flat}) > 1

    def agree(self, number: int) -> int:
        """The number that process 0 has: what depends on a clock or a signal must be one on all hosts."""
        if not self.spans_hosts:
            return number
        from jax.experimental import multihost_utils

        return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


@contextlib.contextmanager
def context(mesh: Mesh | None) -> Iterator[None]:
    """The context that programs are traced, compiled and called in: that of a mesh, or of none at all.

    It hides the mesh that the user has set. Values under `disable_jit` would be numbers of one lane: it is off.
    """
    own = jax.sharding.use_abstract_mesh(AbstractMesh((), ())) if mesh is None else jax.set_mesh(mesh)
    with own, jax.disable_jit(False):
        yield


def mesh_in_force() -> Any:
    """The mesh that the user has set with `jax.set_mesh`; an empty one if none is."""
    if hasattr(jax.sharding, "get_mesh"):
        return jax.sharding.get_mesh()
    from jax._src.mesh import get_concrete_mesh  # JAX 0.7 has no public name for it

    return get_concrete_mesh()


def devices_of(mesh: Mesh | None) -> tuple[list[Any], jax.Device | None]:
    """The devices to search on, and the only one if it is not JAX's usual one."""
    default: Any = jax.config.jax_default_device  # type: ignore[attr-defined]
    if mesh is None and default is None:
        return list(jax.devices()), None
    named = list(mesh.devices.flat) if mesh is not None else None
    devices = named or [jax.local_devices(backend=default)[0] if isinstance(default, str) else default]
    return devices, devices[0] if len(devices) == 1 else None


def mesh_of_lanes(devices: Sequence[Any]) -> Mesh | None:
    """Some devices as a mesh that lanes are split over; None for a single one."""
    return Mesh(np.array(devices), ("lanes",), axis_types=(AxisType.Auto,)) if len(devices) > 1 else None


def mesh_of_user(leaves: Sequence[Any]) -> Mesh | None:
    """The mesh of several devices that the user placed some arrays on, or None."""
    for leaf in leaves:
        if _is_spread(leaf):
            if not isinstance(leaf.sharding, NamedSharding):
                raise ValueError(
                    f"params must be placed by a NamedSharding, got {type(leaf.sharding).__name__}: "
                    "jax.device_put(params, NamedSharding(mesh, PartitionSpec(...)))."
                )
            mesh: Any = leaf.sharding.mesh
            return mesh
    return None


def part(leaf: Any, index: int) -> Any:
    """One of what an array leads with, sliced where it lies: the mesh in force may have none of its devices."""
    if not isinstance(leaf, jax.Array):
        return leaf[index]
    with context(mesh_of_user([leaf]) or Mesh(np.array(list(leaf.sharding.device_set)), ("one",))):
        return leaf[index]


def is_explicit(mesh: Any) -> bool:
    """Whether a mesh has axes that are part of the types of arrays."""
    return AxisType.Explicit in mesh.axis_types


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _of_any_host(value: Any) -> Any:
    """A value that may go to devices of other hosts: an array of JAX on one device may not."""
    alone = isinstance(value, jax.Array) and jax.process_count() > 1
    return np.asarray(jax.device_get(value)) if alone else value


def _is_spread(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1
