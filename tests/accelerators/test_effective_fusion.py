"""Effective rates cost an H100 and a v5e two passes over the parameters, beside the seven of Adam's update,
and no more under a conditional that skips steps.

On a v5e two arrays are read again. On an H100 all norms are fused with the update, but one donated array is copied.
"""

import jax
import jax.numpy as jnp
import optax
import pytest
from targets import TARGETS, bytes_of, compile_for

import optax_lr as olr

GUARDS = {"alone": lambda tx: tx, "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3)}


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize("target", TARGETS)
def test_a_measured_update_costs_two_passes(target, guard):
    params = {name: jax.ShapeDtypeStruct((1024, 1024), jnp.float32) for name in "abc"}

    def program(bare):
        tx = GUARDS[guard](bare)

        def step(params, state, gradients):
            updates, state = tx.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        state = jax.eval_shape(tx.init, params)
        return compile_for(target, step, (params, state, params), donate=(0, 1))

    bare, tracked = program(optax.adam(1e-3)), program(olr.track_effective_rates(optax.adam(1e-3)))
    bytes_more = tracked.bytes - bare.bytes
    assert tracked.whiles == 0 and 0 < bytes_more <= 2.02 * bytes_of(params)
