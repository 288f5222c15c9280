"""On eight devices: a state keeps its shardings through updates and sets, and nothing is compiled again."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from lowerings import count_lowerings
from readers import readings
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


@pytest.mark.parametrize("case", TRANSFORMATIONS, ids=lambda case: case.id)
def test_explicit_shardings_stay_and_are_read(case):
    tx, extra = case.make(olr), {name: jnp.asarray(stacked[0]) for name, stacked in case.extra.items()}
    params, grads = eight_rows(parameters()), jax.tree.map(lambda leaf: leaf[0], eight_rows(gradients()))
    alone, state_alone = tx.update(grads, tx.init(params), params, **extra)
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        params, grads = on(mesh, params), on(mesh, grads)
        first = jax.jit(tx.init)(params)
        updates, second = jax.jit(tx.update)(grads, first, params, **extra)
        for before, after in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
            assert after.sharding.is_equivalent_to(before.sharding, before.ndim)
        wanted = readings(state_alone)
        for one, other in zip(jax.tree.leaves(readings(second)), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-6)
    for one, other in zip(jax.tree.leaves(updates), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-7)


def test_a_state_is_carried_onto_another_mesh(mesh):
    tx, longer = (olr.visible(optax.adam)(optax.linear_schedule(1.0, 0.0, steps)) for steps in (10, 20))
    params, grads = eight_rows(parameters()), jax.tree.map(lambda leaf: leaf[0], eight_rows(gradients()))
    _, state = tx.update(grads, tx.init(params), params)
    wanted, _ = longer.update(grads, state, params)
    for devices in (jax.make_mesh((4,), ("devices",), devices=jax.devices()[:4]), mesh):
        placed = jax.tree.map(
            lambda leaf, devices=devices: jax.device_put(
                leaf, NamedSharding(devices, PartitionSpec("devices") if leaf.ndim == 2 else PartitionSpec())
            ),
            params,
        )
        state = olr.carry_state(state, longer, placed).state
        assert state.inner_state[0].mu["kernel"].sharding == placed["kernel"].sharding
        updates, _ = jax.jit(longer.update)(grads, state, placed)
        for one, other in zip(jax.tree.leaves(updates), jax.tree.leaves(wanted), strict=True):
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
    assert len(changed[1].written.sharding.device_set) == 8
    assert changed[1].written.committed and olr.get_learning_rate(changed) == 0.25


def test_new_starts_are_set_on_all_devices_and_compile_nothing(mesh):
    labels = {"bias": "first", "kernel": "second"}
    tx = olr.unfreeze_at(optax.chain(optax.trace(0.9), optax.scale(-1.0)), {"second": 9}, labels)
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
