"""Checkpoints: the table of a search and the rows under way, to one file and back.

A file is NumPy's `.npz`, whose entries carry checksums: a flipped bit is found when it is read. It is written aside
and renamed, and the one before is kept, so a kill leaves a whole file. The asked rows are saved before they run: a
resumed search finishes them and goes on. Only the first host writes; hosts read from one file system.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ..types import PyTree
from .leaves import on_host
from .runs import Runs

SECONDS_BETWEEN_SAVES = 10.0
# How many checkpoints are kept: one is read where the last one is torn.
KEPT = 2
# A digest reads an array in parts of so many bytes: one on disk is never whole in memory.
PART = 2**24


class UnderWay(NamedTuple):
    """Rows in the middle of their runs, as they left their last call.

    Attributes:
      rows: their indices.
      t: the step that they are at.
      made: how many steps they have made, each row up to its stop.
      leaves: the moving leaves of their carries, and the track of their stops.
    """

    rows: np.ndarray
    t: int
    made: int
    leaves: list[np.ndarray]


class Saved(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      settings: what its search depends on, by the name that an error says.
      runs: the table.
      under_way: the rows that had begun and not ended.
      kept: other arrays by name.
    """

    settings: Mapping[str, Any]
    runs: Runs
    under_way: Sequence[UnderWay]
    kept: Mapping[str, np.ndarray]

    @property
    def steps(self) -> int:
        """How many steps need not be made again."""
        return self.runs.price + sum(each.made for each in self.under_way)


class Folder:
    """The directory of one search: `checkpoint-N.npz`, a journal of executed steps, and a lock.

    Attributes:
      skipped, redone: how many steps the checkpoint held that was read, and how many more had been executed; these
        are executed again.
    """

    def __init__(self, directory: str | os.PathLike):
        self.path = Path(directory).resolve()
        self.skipped = self.redone = 0
        self.saved_at = time.monotonic()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of the directory.

        Raises:
          ValueError: another search is running in it, it is a file, or nothing can be written there.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                (self.path / "lock").touch()
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(
                f"checkpoint={str(self.path)!r} must be a directory, and a file is there."
            ) from error
        except OSError as error:
            raise ValueError(
                f"checkpoint={str(self.path)!r} must be a directory that can be written to: {error.strerror}."
            ) from error
        # Windows has no such lock.
        if jax.process_index() != 0 or importlib.util.find_spec("fcntl") is None:
            yield
            return
        import fcntl

        with open(self.path / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ValueError(
                    f"checkpoint={str(self.path)!r} is in use by another search: give each a directory of its own."
                ) from error
            yield

    def read(self) -> Saved | None:
        """The newest whole checkpoint; a torn one is passed over with a warning."""
        for _, path in reversed(self._files()):
            try:
                saved = _read(path)
            except Exception as error:
                warnings.warn(f"{path} is torn and passed over ({error}).", stacklevel=2)
                continue
            self.skipped = saved.steps
            self.redone = max(0, self._executed() - self.skipped)
            return saved
        return None

    def save(self, saved: Saved) -> None:
        """Write a checkpoint. A failure (a full disk) is a warning: the search goes on without it."""
        if jax.process_index() != 0:
            return
        arrays = {f"runs/{name}": values for name, values in saved.runs.arrays().items()}
        arrays |= {f"kept/{name}": _plain(values) for name, values in saved.kept.items()}
        for at, each in enumerate(saved.under_way):
            arrays |= {f"under_way/{at}/{name}": np.asarray(getattr(each, name)) for name in _NUMBERS}
            arrays |= {f"under_way/{at}/{i}": _plain(leaf) for i, leaf in enumerate(each.leaves)}
        number = max([number for number, _ in self._files()], default=-1) + 1
        partial = self.path / "checkpoint.partial"
        try:
            with open(partial, "wb") as file:
                np.savez(file, allow_pickle=False, settings=np.array(json.dumps(saved.settings)), **arrays)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path / f"checkpoint-{number}.npz")
            for _, path in self._files()[:-KEPT]:
                path.unlink()
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            warnings.warn(
                f"No checkpoint could be written to {self.path} ({error}); the search goes on without it.",
                stacklevel=2,
            )

    def note_executed(self, steps: int) -> None:
        """Note that so many steps were made, so that a resumed search can tell how many it makes again."""
        if jax.process_index() == 0:
            with contextlib.suppress(OSError), open(self.path / "executed", "ab") as journal:
                journal.write(np.int64(steps).tobytes())

    def _executed(self) -> int:
        """The steps that were noted; what a power cut left of a number is cut off."""
        path = self.path / "executed"
        if not path.exists():
            return 0
        whole = path.stat().st_size // 8 * 8
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):
                os.truncate(path, whole)
        return int(np.frombuffer(path.read_bytes()[:whole], np.int64).sum())

    def _files(self) -> list[tuple[int, Path]]:
        """The checkpoints by their numbers, the newest last."""
        found = [
            (re.fullmatch(r"checkpoint-(\d+)\.npz", path.name), path) for path in self.path.glob("*.npz")
        ]
        return sorted((int(match[1]), path) for match, path in found if match)


_NUMBERS = ("rows", "t", "made")


def _read(path: Path) -> Saved:
    # Opened here: NumPy leaves a torn file open.
    with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    under_way: list[UnderWay] = []
    while each := _below(arrays, f"under_way/{len(under_way)}/"):
        leaves = [each[str(i)] for i in range(len(each) - len(_NUMBERS))]
        under_way.append(UnderWay(each["rows"], int(each["t"]), int(each["made"]), leaves))
    runs, settings = Runs.from_arrays(_below(arrays, "runs/")), json.loads(str(arrays["settings"]))
    return Saved(settings, runs, under_way, _below(arrays, "kept/"))


def _below(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _plain(leaf: np.ndarray) -> np.ndarray:
    """An array that NumPy's files can hold: bfloat16 and its like as their bytes."""
    if leaf.dtype.isbuiltin == 1:
        return leaf
    return np.ascontiguousarray(leaf).reshape((*leaf.shape, 1)).view(np.uint8)


def as_saved(leaf: np.ndarray, like: jax.ShapeDtypeStruct) -> np.ndarray:
    """A leaf of a file in its own dtype."""
    if leaf.dtype == like.dtype:
        return leaf
    return np.ascontiguousarray(leaf).view(like.dtype).reshape(like.shape)


def digest(tree: PyTree) -> str:
    """A short name for the structure and the values of a tree."""
    found = hashlib.sha256(str(jax.tree.structure(tree)).encode())
    for leaf in jax.tree.leaves(tree):
        array = np.atleast_1d(on_host(leaf))
        found.update(f"{array.dtype}{array.shape}".encode())
        rows = max(1, PART // max(1, array[:1].nbytes))
        for first in range(0, len(array), rows):
            found.update(np.ascontiguousarray(array[first : first + rows]).view(np.uint8).data)
    return found.hexdigest()[:16]


def digest_of_program(program: str) -> str:
    """A short name for the text of a program, without the addresses that change from run to run."""
    return hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", program).encode()).hexdigest()[:16]
