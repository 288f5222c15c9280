"""The harness passes a program that is fused and fails one that is not."""

import jax
import jax.numpy as jnp
import optax
import pytest
from targets import TARGETS, bytes_of, compile_for

each_target = pytest.mark.parametrize("target", TARGETS)

PARAMS = [jax.ShapeDtypeStruct((512, 512), jnp.float32)] * 4
STATE = jax.eval_shape(optax.scale_by_adam().init, PARAMS)
IDEAL = 2 * bytes_of(PARAMS, STATE) + bytes_of(PARAMS)


def adam_step(between=lambda updates: updates):
    """A step of Adam, with something done to its updates before they are applied."""
    tx = optax.scale_by_adam()

    def step(params, state, grads):
        updates, state = tx.update(grads, state)
        return optax.apply_updates(params, between(updates)), state

    return step


@each_target
def test_adam_is_one_kernel_a_leaf(target):
    program = compile_for(target, adam_step(), (PARAMS, STATE, PARAMS), donate=(0, 1))
    program.check(array_kernels=4, ideal_bytes=IDEAL)
    with pytest.raises(AssertionError, match="4 kernels, not 3"):
        program.check(array_kernels=3, ideal_bytes=IDEAL)
    with pytest.raises(AssertionError, match=r"1\.00\d of the bytes"):
        program.check(array_kernels=4, ideal_bytes=IDEAL, traffic=0.99)


@each_target
def test_an_update_in_two_kernels_is_found_out(target):
    split = adam_step(jax.lax.optimization_barrier)
    program = compile_for(target, split, (PARAMS, STATE, PARAMS), donate=(0, 1))
    with pytest.raises(AssertionError, match="8 kernels, not 4"):
        program.check(array_kernels=4, ideal_bytes=IDEAL)
    with pytest.raises(AssertionError, match="of the bytes that must move"):
        program.check(array_kernels=8, ideal_bytes=IDEAL)


def ring_step(ring, row, step):
    """Keep a row in a ring at every hundredth step, through a branch."""
    at = (step // 100) % ring.shape[0]
    return jax.lax.cond(step % 100 == 0, lambda: ring.at[at].set(row), lambda: ring), row + 1.0


@each_target
def test_a_ring_that_is_copied_at_every_step_is_found_out(target):
    ring, row = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((8, 512, 512), (512, 512)))
    step = jax.ShapeDtypeStruct((), jnp.int32)
    program = compile_for(target, ring_step, (ring, row, step))
    with pytest.raises(AssertionError):
        program.check(array_kernels=100, ideal_bytes=4 * bytes_of(row))
    assert program.copies > 0


@each_target
def test_a_loop_is_found_out(target):
    table = jax.ShapeDtypeStruct((64,), jnp.float32)
    at = jax.ShapeDtypeStruct((), jnp.float32)
    assert compile_for(target, lambda table, at: jnp.searchsorted(table, at), (table, at)).whiles == 1
