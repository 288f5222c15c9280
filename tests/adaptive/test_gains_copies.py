"""What a step is compiled from, and to: few equations a leaf, and no copy, since each array is written in place."""

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
    "rows": olr.local_gains(0.1, momentum=None, keep_sign=True),
}
SLOWER = {
    "Rprop+": olr.rprop(1.0, variant="Rprop+"),
    "iRprop+": olr.rprop(1.0, variant="iRprop+"),
    "rows of Rprop": olr.rprop(1.0, keep_sign=True),
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


def equations(jaxpr):
    """The equations of a program, those inside its equations included."""
    inner = (
        part for eqn in jaxpr.eqns for part in jax.tree.leaves(tuple(eqn.params.values()), is_leaf=is_program)
    )
    return len(jaxpr.eqns) + sum(
        equations(getattr(part, "jaxpr", part)) for part in inner if is_program(part)
    )


def is_program(node):
    return hasattr(node, "eqns")


def equations_of(tx):
    """Those of an update of 148 leaves, as many as a transformer of twelve layers has."""
    params = [jnp.ones((8, 4))] * 74 + [jnp.ones(4)] * 74
    return equations(jax.make_jaxpr(tx.update)(params, tx.init(params), params, value=1.0).jaxpr)


@pytest.mark.parametrize("name", OPTIMIZERS | SLOWER)
def test_a_step_has_at_most_twice_the_equations_of_adamw(name):
    assert equations_of((OPTIMIZERS | SLOWER)[name]) <= 2 * equations_of(
        optax.with_extra_args_support(optax.adamw(0.1))
    )
