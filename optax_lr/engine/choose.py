"""Which layout a search gets: from its devices, its start and its data; and the programs that fit there.

On a CPU lanes run one after the other, shared out over host threads: copies of a model in one `vmap` leave the
cache, while a compiled call releases Python's lock. There a step with convolutions is dispatched one at a time,
since XLA's CPU backend runs a convolution inside a loop many times slower. On accelerators as many lanes ride in
one `vmap` as the memory holds. A start that the user placed on a mesh stays there, and its lanes go one by one; in
one `vmap` if what they share is larger than what they have of their own, such as adapters of a backbone.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
from jax.sharding import Mesh

from .batches import Data
from .layout import Layout, cores, devices_of, mesh_of_lanes
from .program import Programs
from .task import Form

# The share of a device's memory that a search may fill, and that of batches that stay there.
MEMORY_SHARE, RESIDENT_SHARE = 0.9, 0.25
# Steps of one call at most, on host threads and in a grid.
THREAD_WINDOW, GRID_WINDOW = 512, 256


class Choice(NamedTuple):
    """A layout, in words too.

    Attributes:
      resident: whether the programs read all batches where they lie; else windows of them are sent.
      memory: how many bytes of each device may be filled, or None.
      platform: of the devices.
    """

    layout: Layout
    resident: bool
    memory: int | None
    platform: str

    def words(self, lanes: int, seeds: int, form: Form) -> str:
        """How the lanes are laid out, in a phrase."""
        layout = self.layout
        work = f"{lanes} lanes x {seeds} seeds"
        if layout.placed and not layout.width:
            return f"{work}, one after the other, sharded as their start"
        if not layout.width:
            way = "step by step" if layout.window == 1 else "one program a lane"
            return f"{work} on {layout.workers} host threads, {way}"
        each, many = layout.width // layout.devices, "each of " if layout.devices > 1 else ""
        words = f"{work}, {each} at once on {many}{layout.devices} {self.platform} device(s)"
        if layout.placed:
            words = f"{work}, {layout.width} at once, sharded as their start"
        shared = _size(form, moves=False)
        return f"{words}, {shared / 2**20:.1f} MiB shared by all" if shared >= 2**20 else words


def choose(
    form: Form,
    data: Data,
    *,
    lanes: int,
    seeds: int,
    longest: int,
    freeze: bool,
    lanes_at_once: int | Literal["auto"],
    mesh: Mesh | None,
) -> Choice:
    """The layout of a search of about so many lanes and seeds, before its memory is known."""
    common: dict[str, Any] = {"starts": data.start_per_seed, "folds": data.folds is not None}
    if form.mesh is not None:
        window, width = min(longest, GRID_WINDOW), _together(form, lanes, lanes_at_once)
        layout = Layout(
            width=width, mesh=form.mesh, placed=True, freeze=freeze or width > 0, window=window, **common
        )
        memory = _memory(form.mesh.local_devices[0]) if width and lanes_at_once == "auto" else None
        return Choice(layout, True, memory, "placed")
    devices, common["device"] = devices_of(mesh)
    platform = devices[0].platform
    if platform == "cpu" and len(devices) == 1 and lanes_at_once == "auto":
        window = 1 if form.convolves else min(longest, THREAD_WINDOW)
        return Choice(Layout(freeze=freeze, window=window, workers=cores(), **common), True, None, platform)
    most = math.ceil(lanes / len(devices))
    each = (1 if platform == "cpu" else most) if lanes_at_once == "auto" else min(lanes_at_once, most)
    memory = _memory(devices[0])
    resident = not data.streamed or memory is None or data.nbytes <= memory * RESIDENT_SHARE
    window = min(longest, GRID_WINDOW)
    if not resident and memory is not None:
        # Two windows are in flight, a quarter of what resident batches might take.
        fit = memory * RESIDENT_SHARE / 4 / (data.nbytes / data.rows * seeds)
        window = max(1, min(window, 2 ** int(math.log2(max(1, fit)))))
    layout = Layout(
        width=each * len(devices), seeds=seeds, mesh=mesh_of_lanes(devices), window=window, **common
    )
    return Choice(layout, resident, memory if lanes_at_once == "auto" else None, platform)


def _size(form: Form, *, moves: bool) -> int:
    """Bytes of what a lane has of its own, or of what all lanes share."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in form.split(form.carry.shapes, moves=moves))


def _together(form: Form, lanes: int, lanes_at_once: int | Literal["auto"]) -> int:
    """How many lanes of a placed start ride in one `vmap`; 0 where they go one after the other.

    As many as asked for, or so many, in equal chunks, that their own leaves take no more than what they share.
    """
    if lanes_at_once == "auto":
        most = _size(form, moves=False) // max(1, _size(form, moves=True))
        width = math.ceil(lanes / math.ceil(lanes / most)) if most else 0
    else:
        width = min(lanes_at_once, lanes)
    return width if width > 1 else 0


def _memory(device: Any) -> int | None:
    """How many bytes of a device a search may fill; None where that is not known."""
    limit = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
    return None if limit is None else int(limit * MEMORY_SHARE)


def fitted(
    choice: Choice, lanes: int, compiled: Callable[[Layout], Programs], extra: int
) -> tuple[Choice, Programs]:
    """The widest layout whose programs fit into memory, and these programs.

    The programs of the whole width are compiled first: where they fit nothing else is compiled. `extra` are the
    bytes of a device that no program sees, such as the window that is sent ahead.

    One lane is tried even where it seems not to fit.

    Raises:
      RuntimeError: the compiler finds no room for one lane.
    """
    layout = choice.layout
    if choice.memory is None or not layout.width:
        return choice, compiled(layout)
    room, needs = choice.memory - extra, dict[int, int]()
    width = layout.width // layout.devices
    while True:
        tried = layout._replace(width=width * layout.devices)
        programs = _or_none(compiled, tried)
        needs[width] = programs.needed if programs else 2 * max(room, 1) * width
        if programs and (needs[width] <= room or width == 1):
            return choice._replace(layout=tried), programs
        if width == 1:
            raise RuntimeError("Not even one lane fits into the memory of a device.")
        width = _narrower(needs, room, width, lanes // layout.devices)


def _narrower(needs: dict[int, int], room: int, width: int, lanes: int) -> int:
    """The next width to try: bytes grow about linearly with it; equal chunks, so that the last is no small one."""
    others = [other for other in needs if other > width]
    slope = needs[width] / width
    base = 0.0
    if others:
        other = min(others)
        slope = max(1.0, (needs[other] - needs[width]) / (other - width))
        base = max(0.0, needs[width] - slope * width)
    fits = max(1, min(width - 1, int((room - base) / slope)))
    return min(fits, math.ceil(lanes / math.ceil(max(lanes, 1) / fits))) if lanes else fits


def _or_none(compiled: Callable[[Layout], Programs], layout: Layout) -> Programs | None:
    """The programs of a layout, or None where the compiler says that no device holds them."""
    try:
        return compiled(layout)
    except jax.errors.JaxRuntimeError as error:
        if not ran_out_of_memory(error):
            raise
        return None


def ran_out_of_memory(error: jax.errors.JaxRuntimeError) -> bool:
    """Whether a device had too little memory, to compile a program for it or to run one."""
    return "RESOURCE_EXHAUSTED" in str(error)
