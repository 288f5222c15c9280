"""Checkpoints: the state of a sweep on the host, to a directory and back. The only room that imports orbax.

A sweep is cut into jobs, and a job into calls of its program. After each call the job hands its state to a
`Store`, whose arrays are the sweep's results and, where a directory is given, go to disk: the results of all
jobs, and the carries of those under way. A job goes on from its last saved state, so an interrupted sweep ends
with the bits of an undisturbed one.
"""

import hashlib
import json
import os
import re
import shutil
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..types import PyTree
from .placement import key_bits

SECONDS_BETWEEN_SAVES = 10.0
KEPT = 2


class Store:
    """What the jobs of a sweep have reported so far.

    Attributes:
      done: int64 [jobs], how many steps of each job are over.
      track: that of each run, [jobs, ..., 4].
      history: by metric, [jobs, ..., steps].
      evals: by metric, [jobs, ..., evals].
      carries: by job, the leaves of its carry; of a finished job only where carries are kept.
      skipped, redone: how many steps of single lanes were read from a checkpoint, and how many that had been
        executed after it must be executed again.
    """

    def __init__(
        self,
        num_jobs: int,
        shape: tuple[int, ...],
        names: Sequence[str],
        eval_names: Sequence[str],
        *,
        num_steps: int,
        history_steps: int,
        num_evals: int,
        keep_carries: bool,
        directory: str | os.PathLike | None = None,
        problem: Mapping[str, Any] | None = None,
    ):
        def full(value: float, dtype: type, *tail: int) -> np.ndarray:
            return np.full((num_jobs, *shape, *tail), value, dtype)

        self.done = np.zeros(num_jobs, np.int64)
        self.track = full(-1, np.float32, 4)
        self.history = {name: full(np.nan, np.float32, history_steps) for name in names}
        self.evals = {name: full(np.nan, np.float32, num_evals) for name in eval_names}
        self.carries: dict[int, list[np.ndarray]] = {}
        self.skipped = self.redone = 0
        self._runs_per_job = int(np.prod(shape))
        self._num_steps, self._keep_carries = num_steps, keep_carries
        self._lock, self._saving = threading.Lock(), threading.Lock()
        self._directory = None if directory is None else Path(directory).resolve()
        self._saved_at, self._number, self._executed = time.monotonic(), 0, 0
        if self._directory is not None:
            self._open(self._directory, dict(problem or {}))

    def put(self, job: int, end: int, run: Any, evals: Mapping[str, np.ndarray], at: int | None) -> None:
        """Take the state of a job after `end` steps; `run` and `evals` are on the host, `at` places the evals."""
        with self._lock:
            self.track[job] = run.track
            for name, values in self.history.items():
                values[job] = run.history[name]
            for name, value in evals.items():
                self.evals[name][job, ..., at] = value
            self.carries.pop(job, None)
            if self.wants_carry(end):
                self.carries[job] = jax.tree.leaves(run.carry)
            self._executed += int(end - self.done[job]) * self._runs_per_job
            self.done[job] = end
        if self._directory is not None:
            self._write_executed(self._directory)
            due = time.monotonic() - self._saved_at >= SECONDS_BETWEEN_SAVES or jax.process_count() > 1
            if due and self._saving.acquire(blocking=False):
                try:
                    self.save()
                finally:
                    self._saving.release()

    def wants_carry(self, end: int) -> bool:
        """Whether the carry of a job that stands at `end` is kept: to go on from, or as a result."""
        return self._keep_carries if end == self._num_steps else self._directory is not None

    def save(self) -> None:
        """Write a checkpoint. A failure (a full disk) is a warning: the sweep goes on without it."""
        if self._directory is None:
            return
        with self._lock:
            state = jax.tree.map(np.array, self._state())
        try:
            _checkpointer().save(self._directory / str(self._number), state)
            numbers = _numbers(self._directory)
            for old in numbers[:-KEPT] if jax.process_index() == 0 else []:
                shutil.rmtree(self._directory / str(old), ignore_errors=True)
        except Exception as error:
            warnings.warn(
                f"No checkpoint could be written to {self._directory} ({error}); the sweep goes on without it.",
                stacklevel=2,
            )
        self._number += 1
        self._saved_at = time.monotonic()

    def _state(self) -> dict[str, Any]:
        carries = {
            str(job): {str(i): np.asarray(leaf) for i, leaf in enumerate(leaves)}
            for job, leaves in self.carries.items()
        }
        return {
            "done": self.done,
            "track": self.track,
            **({"history": self.history} if self.history else {}),
            **({"evals": self.evals} if self.evals else {}),
            **({"carries": carries} if carries else {}),
        }

    def _open(self, directory: Path, problem: dict[str, Any]) -> None:
        """Make the directory this problem's, or go on from the newest whole checkpoint in it."""
        label = directory / "sweep.json"
        directory.mkdir(parents=True, exist_ok=True)
        if not label.exists():
            if jax.process_index() == 0:
                partial = label.with_suffix(".partial")
                partial.write_text(json.dumps(problem))
                partial.replace(label)
            return
        found = json.loads(label.read_text())
        if differs := [name for name in problem if found.get(name) != problem[name]]:
            raise ValueError(
                f"checkpoint={str(directory)!r} is of another sweep: it differs in {', '.join(differs)}."
            )
        numbers = _numbers(directory)
        self._number = max(numbers, default=-1) + 1
        for number in reversed(numbers):
            try:
                self._take(_checkpointer().restore(directory / str(number)))
                break
            except Exception as error:
                warnings.warn(
                    f"Checkpoint {number} in {directory} is torn and passed over ({error}).", stacklevel=2
                )
        self.skipped = int(self.done.sum()) * self._runs_per_job
        journal = directory / "executed"
        self.redone = max(0, int(journal.read_text()) - self.skipped) if journal.exists() else 0
        self._executed = self.skipped

    def _take(self, state: Mapping[str, Any]) -> None:
        mine, theirs = self._state(), {"history": {}, "evals": {}, **state}
        for part in ("history", "evals"):
            for name, values in mine.get(part, {}).items():
                values[...] = theirs[part][name]
        self.carries = {
            int(job): [leaves[str(i)] for i in range(len(leaves))]
            for job, leaves in state.get("carries", {}).items()
        }
        self.done[...], self.track[...] = state["done"], state["track"]

    def _write_executed(self, directory: Path) -> None:
        """Note how many steps were executed, so that a resumed sweep can tell how many it does again."""
        if jax.process_index() == 0:
            with self._lock:
                partial = directory / "executed.partial"
                partial.write_text(str(self._executed))
                partial.replace(directory / "executed")


def digest(tree: PyTree) -> str:
    """A short name for the structure and the values of a tree."""
    found = hashlib.sha256(str(jax.tree.structure(tree)).encode())
    for leaf in jax.tree.leaves(tree):
        array = np.asarray(key_bits(leaf))
        found.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return found.hexdigest()[:16]


def digest_of_program(program: str) -> str:
    """A short name for the text of a program, without the addresses that change from run to run."""
    return hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", program).encode()).hexdigest()[:16]


def kept_chunk(directory: str | os.PathLike | None) -> int | None:
    """How many lanes at once the sweep of a checkpoint has on each device: another number gives other bits."""
    label = None if directory is None else Path(directory) / "sweep.json"
    return json.loads(label.read_text())["lanes_at_once"] if label and label.exists() else None


def _numbers(directory: Path) -> list[int]:
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def _checkpointer() -> Any:
    try:
        import orbax.checkpoint
    except ImportError as error:
        raise ImportError("checkpoint= needs orbax: pip install 'optax-lr[checkpoints]'") from error
    return orbax.checkpoint.PyTreeCheckpointer()
