"""Gains and Rprop are one kernel for each leaf on an H100 and a v5e, and move what must move.

Where a step may be skipped, they and the plateau cost the kernels, copies and bytes that Adam costs there.
"""

import functools

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


def stepping(tx):
    def step(params, state, grads, loss):
        updates, state = tx.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    return step


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_kernel_a_leaf(target, dtype, name):
    params = [jax.ShapeDtypeStruct((512, 512), dtype)] * 6 + [jax.ShapeDtypeStruct((512,), dtype)] * 6
    tx = OPTIMIZERS[name]()

    step = stepping(tx)
    state = jax.eval_shape(tx.init, params)
    loss = jax.ShapeDtypeStruct((), jnp.float32)
    program = compile_for(target, step, (params, state, params, loss), donate=(0, 1))
    ideal = 2 * bytes_of(params, state) + bytes_of(params)
    program.check(array_kernels=LEAVES, ideal_bytes=ideal, traffic=1.02)
    with pytest.raises(AssertionError, match="12 kernels, not 11"):
        program.check(array_kernels=LEAVES - 1, ideal_bytes=ideal, traffic=1.02)


def skipped_by_optax(tx):
    return stepping(optax.apply_if_finite(tx, 5)), optax.apply_if_finite(tx, 5).init


def skipped_by_hand(tx):
    def step(params, state, grads, loss):
        taken = functools.partial(stepping(tx), grads=grads, loss=loss)
        return jax.lax.cond(loss < 1e3, taken, lambda params, state: (params, state), params, state)

    return step, tx.init


PLATEAUS = {
    "plateau": lambda: optax.chain(optax.adam(0.1), olr.reduce_on_plateau()),
    "plateau of epochs": lambda: optax.chain(
        optax.adam(0.1), olr.reduce_on_plateau(every=9, raise_patience=20)
    ),
}


@functools.cache
def skipping(target, skipped, make):
    step, init = skipped(make())
    params = [jax.ShapeDtypeStruct((512, 512), jnp.float32)] * 3 + [
        jax.ShapeDtypeStruct((512,), jnp.float32)
    ] * 3
    given = (params, jax.eval_shape(init, params), params, jax.ShapeDtypeStruct((), jnp.float32))
    return compile_for(target, step, given, donate=(0, 1))


def adam():
    return optax.adam(0.1)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("skipped", [skipped_by_optax, skipped_by_hand])
@pytest.mark.parametrize("name", OPTIMIZERS | PLATEAUS)
def test_a_step_that_may_be_skipped_costs_what_adams_does(target, skipped, name):
    wanted = skipping(target, skipped, adam)
    program = skipping(target, skipped, (OPTIMIZERS | PLATEAUS)[name])
    assert program.array_kernels <= wanted.array_kernels
    assert (program.copies, program.whiles) == (wanted.copies, wanted.whiles)
    # A plateau's scalars have a few bytes.
    assert program.bytes <= 1.01 * wanted.bytes
