"""Results in `.npz` files: written beside the old file and renamed, read without unpickling."""

import io
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def npz_path(path: str | Path) -> Path:
    """NumPy adds the ending when it writes, not when it reads."""
    return Path(path) if Path(path).suffix == ".npz" else Path(f"{path}.npz")


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the arrays to one file. A write that fails, on a full disk for one, leaves the old file as it was."""
    target = Path(os.path.realpath(npz_path(path)))
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def read_arrays(path: str | Path, what: str, writer: str) -> dict[str, np.ndarray]:
    """All arrays of a file that `writer` wrote: read at once, so that a damaged file fails here.

    Raises:
      OSError: there is no file, or it cannot be read.
      ValueError: the file is no `.npz` file, is cut short, or holds Python objects.
    """
    source = Path(path) if Path(path).is_file() else npz_path(path)
    content = io.BytesIO(source.read_bytes())
    try:
        with np.load(content, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # NumPy, zipfile and zlib have a dozen errors for a damaged file
        raise ValueError(
            f"{source} holds no {what}: it must be a whole .npz file that {writer} wrote."
        ) from error


def below(file: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """What a file holds under a prefix, by the rest of its name."""
    return {name.removeprefix(prefix): file[name] for name in file if name.startswith(prefix)}
