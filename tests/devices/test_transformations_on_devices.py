"""On eight devices: a state keeps its shardings through updates and sets, and nothing is compiled again."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from lowerings import count_lowerings
from transformations import TRANSFORMATIONS, gradients, parameters

import optax_lr as olr


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((8,), ("devices",))


def on(mesh, tree):
    """Everything on all eight devices, matrices split by their first dimension; what is there stays as it is."""

    def put(leaf):
        if len(leaf.sharding.device_set) == 8:
            return leaf
        return jax.device_put(
            leaf, NamedSharding(mesh, PartitionSpec("devices") if leaf.ndim == 2 else PartitionSpec())
        )

    return jax.tree.map(put, tree)


def eight_rows(tree):
    return {**tree, "kernel": jnp.concatenate([tree["kernel"]] * 3, axis=-2)[..., :8, :]}


@pytest.mark.parametrize("case", TRANSFORMATIONS, ids=lambda case: case.id)
def test_shardings_stay(case, mesh):
    tx = case.make(olr)
    params, grads = eight_rows(parameters()), jax.tree.map(lambda leaf: leaf[0], eight_rows(gradients()))
    extra = {name: jnp.asarray(stacked[0]) for name, stacked in case.extra.items()}
    alone, _ = tx.update(grads, tx.init(params), params, **extra)
    params, grads = on(mesh, params), on(mesh, grads)
    first = on(mesh, tx.init(params))
    step = jax.jit(tx.update)
    updates, second = step(grads, first, params, **extra)
    for before, after in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert after.sharding.is_equivalent_to(before.sharding, before.ndim)
    with count_lowerings() as lowered:
        step(grads, second, params, **extra)
    assert lowered == []
    for one, other in zip(jax.tree.leaves(updates), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-6)


def test_a_rate_is_set_on_all_devices_and_compiles_nothing(mesh):
    tx = optax.chain(optax.trace(0.9), olr.scale_by_learning_rate(0.5))
    params = on(mesh, eight_rows(parameters()))
    state = on(mesh, tx.init(params))
    step = jax.jit(tx.update)
    _, state = step(params, state)
    with count_lowerings() as lowered:
        changed = olr.set_learning_rate(state, 0.25)
        step(params, changed)
    assert lowered == []
    assert len(changed[1].override.sharding.device_set) == 8
    assert changed[1].override.committed and olr.get_learning_rate(changed) == 0.25


def test_new_starts_are_set_on_all_devices_and_compile_nothing(mesh):
    labels = {"bias": "first", "kernel": "second"}
    tx = olr.unfreeze_at(optax.chain(optax.trace(0.9), optax.scale(-1.0)), labels, {"second": 9})
    params = on(mesh, eight_rows(parameters()))
    state = on(mesh, tx.init(params))
    step = jax.jit(tx.update)
    updates, state = step(params, state, params)
    assert not updates["kernel"].any()
    with count_lowerings() as lowered:
        changed = olr.set_unfreezing_steps(state, {"second": 1})
        updates, _ = step(params, changed, params)
    assert lowered == []
    assert updates["kernel"].all()
    assert len(changed.clock.starts["second"].sharding.device_set) == 8
