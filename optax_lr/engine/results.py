"""What a sweep returns."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ..types import Float, Int, PyTree


class SweepResult(NamedTuple):
    """Every number that the lanes of a sweep reported, on the host.

    Attributes:
      metrics: by name, float32 [seeds, lanes, steps]; NaN after the step at which a lane diverged.
      evals: by name, float32 [seeds, lanes, evals], taken after the steps in `eval_steps`.
      diverged_at: int32 [seeds, lanes], the step at which a lane was stopped, -1 where it was not.
      carries: the final carries as NumPy arrays with leading axes [seeds, lanes] (random keys as their bits), or
        None where they were not asked for.
      placement: how the lanes were laid out over the machine, in words.
      skipped_steps: of a resumed sweep, how many training steps its checkpoint held: over all lanes and seeds, each
        up to its stop.
      redone_steps: how many more the sweep had executed before it ended without saving them. They are executed
        again, to the same bits. 0 after Ctrl-C, which saves all.
    """

    metrics: Mapping[str, Float[np.ndarray, "seeds lanes steps"]]
    evals: Mapping[str, Float[np.ndarray, "seeds lanes evals"]]
    diverged_at: Int[np.ndarray, "seeds lanes"]
    carries: PyTree | None
    placement: str
    skipped_steps: int = 0
    redone_steps: int = 0
