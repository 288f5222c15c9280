"""The machine of a search: a layout, the programs that fit there, and the arrays that they read."""

import warnings
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from .arrays import placed
from .batches import Data
from .choose import choose, fitted, ran_out_of_memory
from .jobs import streamed_batches
from .layout import Layout
from .opening import Opening
from .program import Programs
from .programs import ProgramsOf
from .runs import Runs, edged


class Machine:
    """Where the rows of a search run; it becomes narrower where memory runs out.

    Attributes:
      form: what the task takes and returns.
      room: the steps that a table has room for, a power of two.
      programs: those that train and evaluate.
      arrays: what all calls read.
      words: how lanes are laid out.
    """

    def __init__(
        self,
        of_task: ProgramsOf,
        data: Data,
        opening: Opening,
        *,
        freeze: bool,
        lanes_at_once: int | Literal["auto"],
        mesh: Mesh | None,
    ):
        self.form, self.room = of_task.form, of_task.room
        self._of_task, self._data = of_task, data
        self._lanes, self._names = opening.lanes, sorted(opening.lane)
        self._choice = choose(
            self.form,
            data,
            lanes=opening.lanes,
            seeds=opening.seeds,
            longest=self.room,
            freeze=freeze,
            lanes_at_once=lanes_at_once,
            mesh=mesh,
        )
        self._fit()
        self.arrays = placed(self.layout, data, of_task.constants, self._choice.resident)
        self.words = self._choice.words(opening.lanes, opening.seeds, self.form)

    @property
    def layout(self) -> Layout:
        """How the rows of a call are laid out."""
        return self._choice.layout

    def looks(self) -> tuple[Layout, Programs]:
        """A layout of one lane a device, and the programs that report there what runs would without training."""
        layout = self.layout._replace(width=self.layout.devices if self.layout.width else 0)
        return layout, self._of_task.looks(layout, self._rows_read(layout))

    def lane_leaves(self, runs: Runs, rows: Any) -> list[np.ndarray]:
        """The lanes of some rows, as the programs take them."""
        tables = {name: edged(values[rows], self.room) for name, values in runs.tables.items()}
        named = {**{name: values[rows] for name, values in runs.lanes.items()}, **tables}
        leaves = [named[name] for name in self._names]
        return [
            np.asarray(leaf, like.dtype) for leaf, like in zip(leaves, self.form.lane.shapes, strict=True)
        ]

    def fits(self, attempt: Callable[[], None]) -> bool:
        """Run some rows; whether the device had memory for it."""
        try:
            attempt()
        except jax.errors.JaxRuntimeError as error:
            if not ran_out_of_memory(error) or self.layout.width <= self.layout.devices:
                raise
            return False
        return True

    def halve(self) -> None:
        """Go on with half the lanes at once."""
        layout = self.layout
        each = layout.width // layout.devices // 2
        warnings.warn(f"The device ran out of memory: {each} lanes at once from here on.", stacklevel=2)
        self._choice = self._choice._replace(layout=layout._replace(width=each * layout.devices))
        self._fit()

    def _fit(self) -> None:
        """Compile the programs of the widest layout that fits."""

        def compiled(layout: Layout) -> Programs:
            return self._of_task.of(layout, self._rows_read(layout))

        each = self._data.nbytes // self._data.rows
        extra = 0 if self._choice.resident else each * self._rows_read(self.layout)
        self._choice, self.programs = fitted(self._choice, self._lanes, compiled, extra)

    def _rows_read(self, layout: Layout) -> int:
        """How many batches a call reads from."""
        return self._data.rows if self._choice.resident else streamed_batches(self._data, layout)
