"""Every search on a device that says how much memory it has: lanes in one `vmap`, in chunks that fit."""

import functools

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from posing import posing_as_gpu

import optax_lr as olr
import optax_lr.nnx

GIB = 2**30
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(40, 8, 3)).astype(np.float32)
BATCHES = (INPUTS, np.tanh(INPUTS @ np.array([1.0, -2.0, 0.5], np.float32)))
VALIDATION = (INPUTS[-1], BATCHES[1][-1])
PARAMS = jnp.zeros(3)
RATES = np.geomspace(0.003, 0.1, 8)


def loss_fn(params, batch):
    return jnp.mean((jnp.tanh(batch[0] @ params) - batch[1]) ** 2)


def nnx_loss(model, batch):
    return jnp.mean((model(batch[0])[:, 0] - batch[1]) ** 2)


def engine_step(carry, rate, batch, key):
    return carry - rate * (carry - batch[1].mean()), {"loss": (carry - batch[1].mean()) ** 2}


def find(**options):
    return olr.lr_find(
        loss_fn, PARAMS, optax.sgd, BATCHES, eval_batch=VALIDATION, num_steps=8, progress=False, **options
    ).curve


def module():
    return nnx.Linear(3, 1, rngs=nnx.Rngs(0))


SEARCHES = {
    "sweep": lambda: olr.sweep(
        engine_step, jnp.float32(1), RATES.astype(np.float32), BATCHES, num_steps=20, progress=False
    ),
    "lr_sweep": lambda: olr.lr_sweep(
        loss_fn, PARAMS, optax.adam, BATCHES, learning_rates=RATES, eval_batch=VALIDATION, progress=False
    ),
    "constant": find,
    "quick": functools.partial(find, horizon=30),
    "scheduled": functools.partial(
        find, horizon=30, schedule=lambda peak: olr.one_cycle_schedule(peak, 30), seeds=2
    ),
    "lr_range_test": lambda: olr.lr_range_test(
        loss_fn, PARAMS, optax.sgd, BATCHES, num_steps=20, seeds=2, progress=False
    ),
    "lr_refind": lambda: (
        olr.lr_refind(
            loss_fn, PARAMS, optax.sgd, BATCHES, learning_rate=0.1, eval_batch=VALIDATION, num_steps=8
        ).curve
    ),
    "nnx.lr_sweep": lambda: olr.nnx.lr_sweep(
        nnx_loss, module(), optax.adam, BATCHES, learning_rates=RATES, progress=False
    ),
    "nnx.lr_find": lambda: (
        olr.nnx.lr_find(nnx_loss, module(), optax.adam, BATCHES, num_steps=8, progress=False).curve
    ),
    "nnx.lr_range_test": lambda: olr.nnx.lr_range_test(
        nnx_loss, module(), optax.adam, BATCHES, num_steps=20, progress=False
    ),
}


def losses(found):
    return found.metrics["loss"] if isinstance(found, olr.SweepResult) else found.losses


@pytest.mark.parametrize("name", SEARCHES)
def test_every_search_runs_and_equals_that_of_a_cpu(name):
    with posing_as_gpu(80 * GIB):
        found = SEARCHES[name]()
    assert "at once on 1 gpu device(s)" in found.placement
    alone = SEARCHES[name]()
    assert "host threads" in alone.placement
    here, there = losses(found), losses(alone)
    assert here.shape == there.shape
    stable = np.isfinite(here) & np.isfinite(there)
    # The rates of a later stage differ as the losses of an earlier one do.
    np.testing.assert_allclose(here[stable], there[stable], rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("name", ["sweep", "lr_sweep", "constant", "nnx.lr_sweep"])
def test_what_does_not_fit_goes_in_chunks(name):
    with posing_as_gpu(80 * GIB):
        whole = SEARCHES[name]()
    # The data alone take 5 KiB.
    with posing_as_gpu(6 * 1024):
        found = SEARCHES[name]()
    at_once = int(found.placement.split(", ")[1].split()[0])
    assert at_once < int(whole.placement.split(", ")[1].split()[0])
    np.testing.assert_allclose(losses(found), losses(whole), rtol=2e-4, atol=1e-6, equal_nan=True)
