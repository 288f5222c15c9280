"""Progress: what the jobs of a sweep report to a bar. The only room that imports tqdm."""

import threading
from typing import Any

import numpy as np

from .checkpoints import Store
from .lanes import Run
from .placement import Place


class Bar:
    """Progress over all lanes, written to from every thread; leaving it early stops the jobs."""

    def __init__(
        self, description: str, place: Place, store: Store, num_runs: int, num_steps: int, progress: bool
    ):
        from tqdm.auto import tqdm

        self._bar = tqdm(
            total=num_runs * num_steps, desc=description, unit="step", disable=None if progress else True
        )
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._alive, self._best = num_runs, np.inf
        if not self._bar.disable:
            self._bar.write(place.words)
            if store.skipped:
                self._bar.write(f"resumed: {store.skipped} steps skipped, {store.redone} done again")
        self._bar.update(min(store.skipped, num_runs * num_steps))

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()
        self._bar.close()

    def stop(self) -> None:
        """End every thread at its next report."""
        self._stopped.set()

    def report(self, seen: Run, steps: int, *, last: bool) -> None:
        """Count `steps` of the runs that report, and at their last those that diverged."""
        if self._stopped.is_set():
            raise RuntimeError("The sweep was stopped.")
        if self._bar.disable:
            return
        with self._lock:
            self._best = min(self._best, np.min(seen.track[..., -2]))
            self._alive -= int(np.sum(seen.diverged_at >= 0)) if last else 0
            self._bar.set_postfix(alive=max(0, self._alive), best=f"{self._best:.4g}", refresh=False)
            self._bar.update(min(steps * np.size(seen.diverged_at), self._bar.total - self._bar.n))
