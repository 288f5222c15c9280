"""The compiled step copies nothing: each array's kernel writes where the array stood."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_lr as olr

OPTIMIZERS = {
    "plain": olr.local_gains(0.1, momentum=None),
    "momentum": olr.local_gains(0.1),
    "nesterov": olr.local_gains(0.1, nesterov=True),
    "delta_bar_delta": optax.chain(olr.scale_by_delta_bar_delta(), olr.scale_by_learning_rate(0.1)),
    "iRprop-": olr.rprop(1.0),
    "Rprop-": olr.rprop(1.0, variant="Rprop-"),
}


def copies(tx):
    """Copies of arrays in a compiled step that gives up its parameters and state."""

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = {"kernel": jnp.ones((64, 32)), "bias": jnp.ones(32)}
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, tx.init(params), params).compile()
    return re.findall(r"= \w+\[\d[\d,]*\]\S* copy\(", compiled.as_text())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_is_copied(name):
    assert copies(OPTIMIZERS[name]) == []


def test_a_copy_is_found():
    assert len(copies(optax.rprop(0.1))) == 2
