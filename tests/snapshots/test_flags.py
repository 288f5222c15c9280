"""Snapshots and ensembles under JAX's own flags, to the values without them."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_lr as olr
from optax_lr.engine.workers import enable_x64

FLAGS = {
    "none": contextlib.nullcontext,
    "x64": lambda: enable_x64(True),
    "strict dtypes": lambda: jax.numpy_dtype_promotion("strict"),
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "debug_nans": lambda: jax.debug_nans(True),
    "debug_infs": lambda: jax.debug_infs(True),
    "tracer leaks": jax.checking_leaks,
    "no jit": jax.disable_jit,
    "legacy keys": lambda: jax.default_prng_impl("rbg"),
}


def apply(params, inputs):
    return inputs @ params["w"]


def results():
    """All that the room computes, of a run with updates made on the device."""
    params = {"w": jnp.full((3, 2), 0.5, jnp.float32), "half": jnp.ones(2, jnp.bfloat16)}
    tx = optax.chain(optax.trace(0.9), olr.snapshot_at_cycle_ends(olr.Cycles(2, 1.5), 3, burn_in=1))
    grads = {
        "w": jnp.asarray(np.linspace(-0.2, 0.1, 6).reshape(3, 2), jnp.float32),
        "half": jnp.zeros(2, jnp.bfloat16),
    }
    state, step = tx.init(params), jax.jit(tx.update)
    for _ in range(17):
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
    found = olr.get_snapshots(state)
    inputs = jnp.asarray(np.linspace(-1, 1, 15).reshape(5, 3), jnp.float32)
    average = olr.average_snapshots(found, np.array([1.0, 2.0, 3.0]))
    stats = olr.refresh_batch_stats(
        lambda params, batch: apply(params, batch).mean(0), average, [inputs, inputs[:2]]
    )
    return found, olr.ensemble_predict(apply, found, inputs), average, stats


@pytest.mark.parametrize("flag", FLAGS)
def test_equal_under_every_flag(flag):
    with FLAGS[flag]():
        got = results()
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(results()), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(
            np.asarray(one, np.float32), np.asarray(other, np.float32), rtol=1e-5, atol=1e-6
        )


def test_a_step_moves_nothing_to_or_from_the_host():
    tx = olr.snapshot_at_cycle_ends(2, 3)
    params = jnp.ones(3)
    state, step = tx.init(params), jax.jit(tx.update)
    step(params, state, params)
    with jax.transfer_guard("disallow"):
        for _ in range(4):
            _, state = step(params, state, params)
    assert olr.get_snapshots(state).steps.tolist() == [1, 3]
