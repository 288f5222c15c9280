"""On eight devices: snapshots of sharded parameters are sharded as these are, in both modes of sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optax_lr as olr

TX = optax.chain(
    optax.trace(0.9), olr.scale_by_learning_rate(0.1), olr.snapshot_at_cycle_ends(olr.Cycles(2, 2), 3)
)
PARAMS = {"kernel": jnp.arange(32.0).reshape(16, 2) / 32, "bias": jnp.ones(2)}
SPECS = {"kernel": PartitionSpec("devices"), "bias": PartitionSpec()}


@jax.jit
def step(params, state):
    updates, state = TX.update(params, state, params)
    return optax.apply_updates(params, updates), state


def train(params, init):
    state = init(params)
    for _ in range(7):
        params, state = step(params, state)
    return olr.get_snapshots(state)


def apply(params, inputs):
    return inputs @ params["kernel"] + params["bias"]


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("jitted", [False, True], ids=["eager init", "jitted init"])
def test_snapshots_keep_the_sharding_of_the_parameters(axis_type, jitted):
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(axis_type,))
    placed = {name: jax.device_put(PARAMS[name], NamedSharding(mesh, spec)) for name, spec in SPECS.items()}
    found, alone = train(placed, jax.jit(TX.init) if jitted else TX.init), train(PARAMS, TX.init)
    assert found.steps.tolist() == alone.steps.tolist() == [1, 5]
    for name, rows in found.params.items():
        expected = NamedSharding(mesh, PartitionSpec(None, *SPECS[name]))
        assert rows.sharding.is_equivalent_to(expected, rows.ndim), rows.sharding
        np.testing.assert_allclose(rows, alone.params[name], rtol=1e-6)
    assert found.params["kernel"].addressable_shards[0].data.shape == (2, 2, 2)
    average = olr.average_snapshots(found)["kernel"]
    assert average.sharding.is_equivalent_to(placed["kernel"].sharding, 2)
    inputs = jnp.linspace(-1, 1, 48).reshape(3, 16)
    for one, other in zip(
        *(olr.ensemble_predict(apply, each, inputs) for each in (found, alone)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
