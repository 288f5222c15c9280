"""The carries that a search keeps: those of all its runs, or that of the best one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from .checkpoints import as_saved
from .runs import Runs


class Kept(dict[int, list[np.ndarray]]):
    """Carries by row, as flat lists of their moving leaves on the host; `keep` is that of an `Opening`."""

    def __init__(self, keep: Literal["all"] | Callable[[Runs, int], float] | None):
        super().__init__()
        self._keep, self._best = keep, (np.inf, -1)

    def offer(self, runs: Runs, row: int, leaves: Callable[[], list[np.ndarray]]) -> None:
        """Keep the carry of a row that has ended, or not."""
        if self._keep == "all":
            self[row] = leaves()
        elif self._keep is not None:
            # Of equal ones the first row: which ended first depends on a clock.
            scored = (self._keep(runs, row), row)
            if scored < self._best:
                fetched = [np.array(leaf) for leaf in leaves()]
                self._best = scored
                self.clear()
                self[row] = fetched

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it as named arrays, for a file; `restore` reads them."""
        kept = {f"{row}/{i}": leaf for row, leaves in self.items() for i, leaf in enumerate(leaves)}
        return {**kept, "best": np.array(self._best)}

    def restore(self, arrays: Mapping[str, np.ndarray], shapes: Sequence[Any]) -> None:
        """Take what `arrays` took apart; `shapes` are those of the moving leaves."""
        score, of_row = arrays["best"].tolist()
        self._best = (score, int(of_row))
        places = sorted(tuple(map(int, name.split("/"))) for name in arrays if name != "best")
        for row, at in places:
            self.setdefault(row, []).append(as_saved(arrays[f"{row}/{at}"], shapes[at]))
