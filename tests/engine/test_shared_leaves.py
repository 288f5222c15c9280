"""Leaves that no lane changes are held once, however many lanes ride in one program."""

import functools
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from backbone import BACKBONE, LAYERS, RATES, adapters, bytes_needed, search, train_only

from optax_lr.engine import task


@pytest.fixture
def needed(monkeypatch):
    """How many bytes the compiled programs of a search need."""
    return functools.partial(bytes_needed, monkeypatch)


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
import backbone as here
here.WIDTH, lanes = 1536, int(sys.argv[2])
here.BATCHES = here.BATCHES.repeat(3, -1)
here.search(rates=here.RATES[:lanes], lanes_at_once=lanes)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


def test_the_peak_of_a_process_shows_it():
    def peak(lanes):
        command = [sys.executable, "-c", PEAK, str(pathlib.Path(__file__).parents[1]), str(lanes)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])

    assert peak(8) <= peak(1) + 1.5 * LAYERS * 1536**2 * 4
