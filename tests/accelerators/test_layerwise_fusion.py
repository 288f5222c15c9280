"""Layer-wise rates cost an H100 and a v5e no kernel that touches a parameter, and hardly a byte."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from targets import TARGETS, bytes_of, compile_for

import optax_lr as olr

LAYERS = 24
LABELS = olr.label_by_depth([r"(\d+)/.*"])
GROUPS = olr.label_by_path({rf"({'|'.join(map(str, range(i, LAYERS, 5)))})/.*": i for i in range(5)})

each_target = pytest.mark.parametrize("target", TARGETS)
each_dtype = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])


def shapes(dtype):
    """24 matrices and 24 biases."""
    layer = {"kernel": jax.ShapeDtypeStruct((1024, 512), dtype), "bias": jax.ShapeDtypeStruct((512,), dtype)}
    return {str(index): layer for index in range(LAYERS)}


def adamw(*middle):
    rate = olr.sgdr_schedule(1e-3, 0.0, olr.Cycles(100, 2))
    return optax.chain(
        optax.scale_by_adam(), optax.add_decayed_weights(1e-4), *middle, olr.scale_by_learning_rate(rate)
    )


@functools.cache
def compiled(target, dtype, name):
    """An update of parameters by one of the optimizers, compiled, and the bytes that it must move."""
    tx = {
        "bare": lambda: adamw(),
        "constants": lambda: adamw(olr.scale_by_label({i: 0.75**i for i in range(LAYERS)}, LABELS)),
        "schedules": lambda: adamw(
            olr.scale_by_label(
                {i: olr.sgdr_schedule(0.9**i, 0.0, olr.Cycles(50 + i)) for i in range(LAYERS)}, LABELS
            )
        ),
        "unfreezing": lambda: olr.unfreeze_at(adamw(), GROUPS, {i: 1000 - 100 * i for i in range(1, 5)}),
    }[name]()
    params = shapes(dtype)

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(tx.init, params)
    program = compile_for(target, step, (params, state, params), donate=(0, 1))
    return program, 2 * bytes_of(params, state) + bytes_of(params)


@each_target
@each_dtype
@pytest.mark.parametrize("name", ["constants", "schedules"])
def test_multipliers_add_no_kernel_that_touches_a_parameter(target, dtype, name):
    bare, _ = compiled(target, dtype, "bare")
    program, ideal = compiled(target, dtype, name)
    program.check(array_kernels=bare.array_kernels, ideal_bytes=ideal)
    added = program.scalar_kernels - bare.scalar_kernels
    assert added <= (LAYERS + 1 if name == "schedules" else 0)


@each_target
@each_dtype
def test_unfreezing_five_groups_of_adam_moves_hardly_a_byte_more(target, dtype):
    bare, _ = compiled(target, dtype, "bare")
    program, ideal = compiled(target, dtype, "unfreezing")
    program.check(array_kernels=bare.array_kernels, ideal_bytes=ideal, traffic=1.05)
