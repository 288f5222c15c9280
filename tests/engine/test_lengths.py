"""Lengths in epochs, wherever a number of steps is asked for."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_lr as olr
from optax_lr.engine.lengths import steps_of

INPUTS = np.linspace(1, 2, 28, dtype=np.float32).reshape(7, 4)


def loss_fn(w, x):
    return jnp.mean((w * x - 3 * x) ** 2)


SEARCHES = {
    "lr_sweep": lambda batches: olr.lr_sweep(
        loss_fn, jnp.zeros(()), optax.sgd, batches, learning_rates=[0.1], num_steps=olr.Epochs(2)
    ).losses.shape[-1],
    "lr_find": lambda batches: olr.lr_find(
        loss_fn, jnp.zeros(()), optax.sgd, batches, num_steps=olr.Epochs(2)
    ).curve.losses.shape[-1],
    "lr_range_test": lambda batches: len(
        olr.lr_range_test(loss_fn, jnp.zeros(()), optax.sgd, batches, num_steps=olr.Epochs(2)).learning_rates
    ),
    "lr_refind": lambda batches: olr.lr_refind(
        loss_fn, jnp.zeros(()), optax.sgd, batches, learning_rate=0.1, num_steps=olr.Epochs(2)
    ).curve.losses.shape[-1],
    "sweep": lambda batches: (
        olr.sweep(
            lambda x, rate, batch, key: (x, {"loss": x}),
            jnp.ones(()),
            np.ones(2),
            batches,
            num_steps=olr.Epochs(2),
        )
        .metrics["loss"]
        .shape[-1]
    ),
}


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("form", [np.asarray, list], ids=["arrays", "list"])
def test_a_length_in_epochs_is_so_many_passes(name, form):
    assert SEARCHES[name](form(INPUTS)) == 14


def test_batches_without_an_end_have_no_epochs():
    with pytest.raises(ValueError, match="num_steps in epochs needs batches with a length"):
        steps_of("num_steps", olr.Epochs(1), iter(INPUTS))
    with pytest.raises(ValueError, match="num_steps, in epochs, must be a finite number above 0, got 0"):
        steps_of("num_steps", olr.Epochs(0), INPUTS)
