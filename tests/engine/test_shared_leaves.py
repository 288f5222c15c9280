"""Leaves that no lane changes are held once, however many lanes ride in one program."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_lr as olr
from optax_lr.engine import programs, task

WIDTH, RANK, LAYERS = 512, 4, 4
BACKBONE = LAYERS * WIDTH * WIDTH * 4
RATES = np.geomspace(1e-3, 1e-2, 8).tolist()


def start():
    """A backbone of `LAYERS` matrices, and its low-rank adapters."""
    draw = np.random.default_rng(0)

    def matrices(*shape):
        return [draw.normal(size=shape).astype(np.float32) / shape[0] ** 0.5 for _ in range(LAYERS)]

    return {
        "backbone": matrices(WIDTH, WIDTH),
        "down": matrices(WIDTH, RANK),
        "up": [np.zeros((RANK, WIDTH), np.float32)] * LAYERS,
    }


BATCHES = np.random.default_rng(1).normal(size=(4, 2, WIDTH)).astype(np.float32)


def loss_fn(params, x):
    for matrix, down, up in zip(params["backbone"], params["down"], params["up"], strict=True):
        x = jnp.tanh(x @ matrix + x @ down @ up)
    return jnp.mean((x - 0.1) ** 2)


def adapters(rate):
    labels = {"backbone": "frozen", "down": "trained", "up": "trained"}
    return optax.partition({"frozen": optax.set_to_zero(), "trained": optax.adam(rate)}, labels)


def train_only(rate):
    labels = olr.label_by_path({"backbone/.*": "body", ".*": "adapters"})
    return olr.train_only(optax.adam(rate), "adapters", labels)


def search(**options):
    given = {"optimizer": adapters, "rates": RATES, "params": start(), **options}
    optimizer, rates, params = (given.pop(name) for name in ("optimizer", "rates", "params"))
    # A loss of its own: programs are kept by loss.
    return olr.lr_sweep(
        lambda params, x: loss_fn(params, x),
        params,
        optimizer,
        BATCHES,
        learning_rates=rates,
        progress=False,
        **given,
    )


@pytest.fixture
def needed(monkeypatch):
    """How many bytes the compiled programs of a search need."""

    def of(**options):
        made = []

        def compile_programs(*args, **kwargs):
            made.append(compiled(*args, **kwargs))
            return made[-1]

        compiled = programs.compile_programs
        with monkeypatch.context() as patch:
            patch.setattr(programs, "compile_programs", compile_programs)
            search(**options)
        return made[-1].needed

    return of


@pytest.mark.parametrize("optimizer", [adapters, train_only])
def test_eight_lanes_take_little_more_than_one(needed, optimizer):
    one = needed(optimizer=optimizer, rates=RATES[:1], lanes_at_once=1, mesh=None)
    eight = needed(optimizer=optimizer, lanes_at_once=8)
    assert one >= BACKBONE and eight <= one + 1.5 * BACKBONE


def test_copies_would_be_found(needed, monkeypatch):
    one = needed(rates=RATES[:1], lanes_at_once=1)
    monkeypatch.setattr(task, "unchanged", lambda closed, count: [False] * count)
    assert needed(lanes_at_once=8) > one + 6 * BACKBONE


def test_losses_are_those_of_lanes_by_themselves():
    together, alone = search(lanes_at_once=8), search()
    assert "8 at once" in together.placement and "4.0 MiB shared by all" in together.placement
    assert "host threads" in alone.placement
    np.testing.assert_allclose(together.losses, alone.losses, rtol=2e-5)


PEAK = """
import resource, sys
sys.path.insert(0, sys.argv[1])
import test_shared_leaves as here
here.WIDTH, lanes = 1536, int(sys.argv[2])
here.BATCHES = here.BATCHES.repeat(3, -1)
here.search(rates=here.RATES[:lanes], lanes_at_once=lanes)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


def test_the_peak_of_a_process_shows_it():
    def peak(lanes):
        command = [sys.executable, "-c", PEAK, __file__.rpartition("/")[0], str(lanes)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])

    assert peak(8) <= peak(1) + 1.5 * LAYERS * 1536**2 * 4
