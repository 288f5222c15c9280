"""A sweep that saves often, slow enough to be killed in; it logs what it resumes, and a byte for each call.

python victim.py DIRECTORY LOG RESULT LANES_AT_ONCE

Ctrl-C ends it with status 130, after it logged the threads that it has left and the seconds that it took to stop.
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time

import jax.numpy as jnp
import numpy as np

import optax_lr as olr
from optax_lr.engine import checkpoints, jobs, workers

DIRECTORY, LOG, RESULT, LANES_AT_ONCE = sys.argv[1:]
BATCHES = np.random.default_rng(0).normal(size=(11, 4)).astype(np.float32)


def step(carry, rate, batch, key):
    """Chaotic enough that one lost or repeated step changes every later bit."""
    x, velocity = carry
    velocity = 0.9 * velocity - rate * jnp.sin(3 * x - batch.mean())
    return (x + velocity, velocity), {"loss": 1 + jnp.cos(x), "speed": jnp.abs(velocity).sum()}


def slowed(record, read):
    """Say at the start what is resumed, and take time, so that there are moments to be killed in."""

    def slow_record(*arguments):
        counted = record(*arguments)
        with open(f"{LOG}.calls", "a") as calls:
            calls.write(".")
        time.sleep(0.02 if LANES_AT_ONCE == "auto" else 0.02 * int(LANES_AT_ONCE))
        return counted

    def said_read(folder):
        saved = read(folder)
        with open(LOG, "a") as log:
            log.write(f"{folder.skipped} {folder.redone}\n")
        return saved

    return slow_record, said_read


def main():
    workers._record, checkpoints.Folder.read = slowed(workers._record, checkpoints.Folder.read)
    jobs.Pace.steps = lambda self, most: min(most, 40)
    checkpoints.SECONDS_BETWEEN_SAVES = 0.1
    found = olr.sweep(
        step,
        (jnp.float32(0.3), jnp.float32(0)),
        np.geomspace(0.01, 0.3, 6).astype(np.float32),
        BATCHES,
        num_steps=400,
        seeds=2,
        evaluate=lambda carry, batch: {"loss": 1 + jnp.cos(carry[0] - batch)},
        eval_batch=np.float32(0.1),
        eval_steps=[150, 400],
        return_carries=True,
        stop_factor=1e9,
        lanes_at_once="auto" if LANES_AT_ONCE == "auto" else int(LANES_AT_ONCE),
        checkpoint=None if DIRECTORY == "none" else DIRECTORY,
        progress=False,
    )
    # Killed while it writes, it must not leave half a result under the name that means "finished".
    np.savez(
        f"{RESULT}.part.npz",
        loss=found.metrics["loss"],
        speed=found.metrics["speed"],
        evals=found.evals["loss"],
        x=found.carries[0],
        v=found.carries[1],
        skipped=found.skipped_steps,
        redone=found.redone_steps,
    )
    os.replace(f"{RESULT}.part.npz", RESULT)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        # The second Ctrl-C may come when the search has ended, even while the interpreter does.
        with contextlib.suppress(KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        with open(f"{LOG}.stopped", "w") as log:
            json.dump({"threads": [each.name for each in threading.enumerate()], "at": time.time()}, log)
        sys.exit(130)
