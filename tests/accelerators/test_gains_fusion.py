"""Gains and Rprop are one kernel for each leaf on an H100 and a v5e, and move what must move."""

import jax
import jax.numpy as jnp
import optax
import pytest
from targets import TARGETS, bytes_of, compile_for

import optax_lr as olr

OPTIMIZERS = {
    "plain": lambda: olr.local_gains(0.1, momentum=None),
    "momentum": lambda: olr.local_gains(0.1, momentum=0.9),
    "nesterov": lambda: olr.local_gains(0.1, momentum=0.9, nesterov=True),
    "delta_bar_delta": lambda: optax.chain(olr.scale_by_delta_bar_delta(), olr.scale_by_learning_rate(0.1)),
    "iRprop-": lambda: olr.rprop(1.0),
    "Rprop-": lambda: olr.rprop(1.0, variant="Rprop-"),
    "Rprop+": lambda: olr.rprop(1.0, variant="Rprop+"),
    "iRprop+": lambda: olr.rprop(1.0, variant="iRprop+"),
}
LEAVES = 12


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_kernel_a_leaf(target, dtype, name):
    params = [jax.ShapeDtypeStruct((512, 512), dtype)] * 6 + [jax.ShapeDtypeStruct((512,), dtype)] * 6
    tx = OPTIMIZERS[name]()

    def step(params, state, grads, loss):
        updates, state = tx.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(tx.init, params)
    loss = jax.ShapeDtypeStruct((), jnp.float32)
    program = compile_for(target, step, (params, state, params, loss), donate=(0, 1))
    ideal = 2 * bytes_of(params, state) + bytes_of(params)
    program.check(array_kernels=LEAVES, ideal_bytes=ideal, traffic=1.02)
    with pytest.raises(AssertionError, match="12 kernels, not 11"):
        program.check(array_kernels=LEAVES - 1, ideal_bytes=ideal, traffic=1.02)
