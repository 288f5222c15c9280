"""Layer-wise rates cost an H100 and a v5e no kernel that touches a parameter, and hardly a byte; nor under a
conditional that skips a step, as in `apply_if_finite`."""

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

BLOCKS = 7
FEW = olr.label_by_depth([r"(\d+)/.*"])

# A base model a quarter as wide.
NARROW = {
    "kernel": jax.ShapeDtypeStruct((256, 128), jnp.float32),
    "bias": jax.ShapeDtypeStruct((128,), jnp.float32),
}
WIDTHS = olr.label_by_width({str(index): NARROW for index in range(LAYERS)})

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
        "width": lambda: adamw(olr.scale_by_label(olr.width_multipliers("adam"), WIDTHS)),
        "width, SGD": lambda: adamw(olr.scale_by_label(olr.width_multipliers("sgd"), WIDTHS)),
        "unfreezing": lambda: olr.unfreeze_at(adamw(), {i: 1000 - 100 * i for i in range(1, 5)}, GROUPS),
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
@pytest.mark.parametrize("name", ["constants", "schedules", "width", "width, SGD"])
def test_multipliers_add_no_kernel_that_touches_a_parameter(target, dtype, name):
    bare, _ = compiled(target, dtype, "bare")
    program, ideal = compiled(target, dtype, name)
    program.check(array_kernels=bare.array_kernels, ideal_bytes=ideal)
    added = program.scalar_kernels - bare.scalar_kernels
    assert added <= (LAYERS + 1 if name == "schedules" else 1)  # a count of updates, and a schedule each


@each_target
@each_dtype
def test_unfreezing_five_groups_of_adam_moves_hardly_a_byte_more(target, dtype):
    bare, _ = compiled(target, dtype, "bare")
    program, ideal = compiled(target, dtype, "unfreezing")
    program.check(array_kernels=bare.array_kernels, ideal_bytes=ideal, traffic=1.05)


def adam(*middle):
    return optax.chain(optax.scale_by_adam(), *middle, olr.scale_by_learning_rate(1e-3))


def clipped():
    return optax.chain(optax.clip_by_global_norm(1.0), adam())


DECAY, STARTS = olr.layer_decay(0.75), {0: 9, 1: 5, 2: 3}
TRANSFORMATIONS = {
    "constants": lambda: adam(olr.scale_by_label(DECAY, FEW)),
    "schedules": lambda: adam(
        olr.scale_by_label(
            {i: olr.sgdr_schedule(0.9**i, 0.0, olr.Cycles(50 + i)) for i in range(BLOCKS)}, FEW
        )
    ),
    "zero_until": lambda: optax.chain(olr.zero_until(STARTS, FEW), adam()),
    "unfreeze_at": lambda: olr.unfreeze_at(adam(), STARTS, FEW),
    "fine_tune": lambda: olr.fine_tune(adam(), DECAY, FEW, starts=STARTS),
    "train_only": lambda: olr.train_only(adam(), list(range(BLOCKS)), FEW),
    "clipped inside": lambda: olr.fine_tune(clipped(), DECAY, FEW, starts=STARTS),
    "skipping inside": lambda: olr.fine_tune(optax.apply_if_finite(adam(), 3), DECAY, FEW, starts=STARTS),
}


def skipping(tx):
    """A step that the user's own conditional skips."""

    def update(updates, state, params=None):
        return jax.lax.cond(
            jnp.isfinite(optax.tree.norm(updates)),
            lambda: tx.update(updates, state, params),
            lambda: (optax.tree.zeros_like(updates), state),
        )

    return optax.GradientTransformation(tx.init, update)


CONDITIONALS = {
    "alone": lambda tx: tx,
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "cond": skipping,
}


@functools.cache
def under(target, wrapper, build):
    """An update under a conditional, compiled, and its bytes over those of arrays that it must move."""
    tx = CONDITIONALS[wrapper](build())
    params = {name: layer for name, layer in shapes(jnp.float32).items() if int(name) < BLOCKS}
    state = jax.eval_shape(tx.init, params)

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    program = compile_for(target, step, (params, state, params), donate=(0, 1))
    return program, program.bytes / (2 * bytes_of(params, state) + bytes_of(params))


@each_target
@pytest.mark.parametrize("wrapper", CONDITIONALS)
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_under_a_conditional_it_costs_what_adam_costs_there(target, wrapper, name):
    bare = {"clipped inside": clipped, "skipping inside": lambda: optax.apply_if_finite(adam(), 3)}
    program, share = under(target, wrapper, TRANSFORMATIONS[name])
    base, base_share = under(target, wrapper, bare.get(name, adam))
    assert program.array_kernels <= base.array_kernels
    assert (program.copies, program.whiles) == (base.copies, base.whiles) == (0, 0)
    assert share <= 1.005 * base_share
