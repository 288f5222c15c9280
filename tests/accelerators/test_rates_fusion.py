"""A visible rate costs an H100 and a v5e no kernel that touches a parameter, and no byte."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from targets import TARGETS, bytes_of, compile_for

import optax_lr as olr

SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 1e-3, 100, 1000)
LAYERS = 6


def factory(name):
    return functools.partial(getattr(optax, name), momentum=0.9) if name == "sgd" else getattr(optax, name)


@functools.cache
def compiled(target, name, *, visible, guarded):
    """An update of parameters, compiled, and the bytes that it must move."""
    make = olr.visible(factory(name)) if visible else factory(name)
    tx = optax.apply_if_finite(make(SCHEDULE), 3) if guarded else make(SCHEDULE)
    layer = {
        "kernel": jax.ShapeDtypeStruct((1024, 512), jnp.float32),
        "bias": jax.ShapeDtypeStruct((512,), jnp.float32),
    }
    params = {str(index): layer for index in range(LAYERS)}

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(tx.init, params)
    program = compile_for(target, step, (params, state, params), donate=(0, 1))
    return program, 2 * bytes_of(params, state) + bytes_of(params)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("guarded", [False, True], ids=["alone", "apply_if_finite"])
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_a_visible_rate_adds_no_kernel_that_touches_a_parameter(target, name, guarded):
    plain, _ = compiled(target, name, visible=False, guarded=guarded)
    program, ideal = compiled(target, name, visible=True, guarded=guarded)
    if not guarded:
        program.check(array_kernels=plain.array_kernels, ideal_bytes=ideal)
    assert program.array_kernels == plain.array_kernels
    assert program.copies == plain.copies
    # The rate and what was written are outputs: an H100 makes a kernel of one thread for each, a TPU none.
    assert program.scalar_kernels <= plain.scalar_kernels + (3 if target == "h100" else 0)
