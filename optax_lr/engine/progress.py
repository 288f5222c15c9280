"""Progress: one bar for a search, on the stream for errors. The only module that imports tqdm."""

import sys
import threading
from typing import Any

import numpy as np

# The best loss stands before the bar: a terminal of 80 columns cuts off what stands last.
FORMAT = "{desc} {percentage:.0f}%{postfix} |{bar}| {n_fmt}/{total_fmt} steps [{elapsed}<{remaining}]"


class Bar:
    """Steps made over steps asked for; runs alive, and the best average of a loss. Any thread may report."""

    def __init__(self, description: str, progress: bool):
        from tqdm.auto import tqdm

        class Shown(tqdm):
            # No thread that watches the bar: calls end often, and each draws it.
            monitor_interval = 0

        self._bar = Shown(desc=description, disable=None if progress else True, total=0, bar_format=FORMAT)
        self._progress, self._lock, self._best = progress, threading.Lock(), np.inf
        self._rows = self._stopped = 0

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    def write(self, words: str, *, always: bool = False) -> None:
        """A line above the bar; `always` means where there is no terminal, too."""
        if not self._bar.disable:
            self._bar.write(words, file=sys.stderr)
        elif always and self._progress:
            print(words, file=sys.stderr)

    def expect(self, description: str, rows: int, steps: int, made: int = 0) -> None:
        """A round of so many rows and steps begins, of which some were made before."""
        if self._bar.disable:
            return
        with self._lock:
            self._rows += rows
            self._bar.set_description_str(description, refresh=False)
            # `reset` tells a notebook's bar of the new total; what was made and the clock go on.
            before, start = self._bar.n + made, self._bar.start_t
            self._bar.reset(self._bar.total + steps)
            self._bar.start_t = start
            self._bar.update(before)

    def report(self, steps: int, lowest: float, stopped: int, skipped: int) -> None:
        """Count steps that were made, runs that stopped, and the steps that these will not make."""
        if self._bar.disable:
            return
        with self._lock:
            self._best = min(self._best, lowest)
            self._stopped += stopped
            alive = f"{self._rows - self._stopped}/{self._rows}"
            self._bar.set_postfix_str(f"best {self._best:.4g}, alive {alive}", refresh=False)
            self._bar.update(min(steps + skipped, self._bar.total - self._bar.n))
