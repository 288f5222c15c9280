"""Schedules against values that other libraries computed."""

import json
import pathlib

import jax
import numpy as np
import pytest

import optax_lr as olr

ORACLES = json.loads((pathlib.Path(__file__).parent / "oracles.json").read_text())


def check_oracle(schedule, expected):
    """Law 3's bound, under jit."""
    expected = np.asarray(expected)
    values = jax.jit(jax.vmap(schedule))(np.arange(len(expected), dtype=np.int32))
    np.testing.assert_allclose(
        values, expected, rtol=0, atol=1e-6 * np.ptp(expected) + 2.0**-22 * expected.max()
    )


def test_one_cycle_is_pytorchs():
    oracle = ORACLES["torch.OneCycleLR.cos.2ph"]
    check_oracle(olr.one_cycle_schedule(0.5, 50), oracle["lr"])


def test_an_oracle_can_fail():
    oracle = ORACLES["torch.OneCycleLR.cos.2ph"]
    with pytest.raises(AssertionError):
        check_oracle(olr.one_cycle_schedule(0.5, 51), oracle["lr"])
