"""Stops: when a run ends before its last step, and the track of its losses that decides it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

AVERAGE_DECAY = 0.9
# By step: over the decayed sum of ones, in float32 until it is 1.
DEBIASING = (1 / (1 - AVERAGE_DECAY ** np.arange(1.0, 200.0))).astype(np.float32)
# The step at which a run stopped is kept as a float32.
MOST_STEPS = 2**24
# What a run is stopped by: its first loss, the decayed sum of losses, the lowest of its debiased averages, the step
# at which it stopped or -1, and why (an index of `runs.WHY`). One array: one kernel.
TRACK_OF_START = np.array([0, 0, np.inf, -1, 0], np.float32)
TRACK = len(TRACK_OF_START)


def judged(track: Any, at: Any, loss: Any, factor: Any, ceiling: Any, end: Any) -> tuple[Any, Any]:
    """Whether a row makes step `at`, and its track after it."""
    first, total, lowest, stopped, why = track
    first = jnp.where(at == 0, loss, first)
    total = AVERAGE_DECAY * total + (1 - AVERAGE_DECAY) * loss
    # To multiply costs less than to divide: XLA does it again wherever it is wanted, in place of once in a kernel.
    scale = jax.lax.dynamic_index_in_dim(
        jnp.asarray(DEBIASING), jnp.minimum(at, len(DEBIASING) - 1), keepdims=False
    )
    average = total * scale
    best = jnp.minimum(lowest, average)
    rises = average - best > factor * jnp.maximum(jnp.abs(first), jnp.abs(best))
    lost = ~jnp.isfinite(loss)
    live = (stopped < 0) & (at < end)
    stops = live & (lost | rises | (average > ceiling))
    cause = jnp.where(lost, 1.0, jnp.where(rises, 2.0, 3.0))
    now = jnp.stack(
        [first, total, best, jnp.where(stops, at.astype(jnp.float32), stopped), jnp.where(stops, cause, why)]
    )
    return live, jnp.where(live, now, track)
