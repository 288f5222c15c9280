"""A sweep over eight devices, and of parameters that are sharded themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import optax_lr as olr
from optax_lr.engine.batches import Data
from optax_lr.engine.layout import Layout, mesh_of_lanes
from optax_lr.engine.programs import ProgramsOf
from optax_lr.engine.task import Task

BATCHES = np.random.default_rng(0).normal(size=(6, 4, 16)).astype(np.float32)
LANES = np.geomspace(0.001, 0.05, 11).astype(np.float32)


def step(carry, rate, batch, key):
    def loss_fn(w):
        return jnp.mean((jnp.tanh(batch @ w) - 0.5) ** 2) + 1e-3 * jax.random.normal(key)

    loss, gradient = jax.value_and_grad(loss_fn)(carry["w"])
    return {"w": carry["w"] - rate * gradient}, {"loss": loss}


def run(**options):
    start = {"w": jnp.linspace(-1, 1, 128).reshape(16, 8)}
    return olr.sweep(
        step,
        start,
        LANES,
        BATCHES,
        num_steps=8,
        seeds=2,
        evaluate=lambda carry, batch: {"norm": jnp.sum(carry["w"] ** 2) + batch},
        eval_batch=np.float32(1),
        eval_steps=[3, 8],
        return_carries=True,
        progress=False,
        **options,
    )


@pytest.fixture(scope="module")
def one_device():
    return run(mesh=Mesh(np.array(jax.devices()[:1]), ("x",)))


def equal(one, other):
    for name in ("metrics", "evals", "diverged_at", "carries"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
            getattr(one, name),
            getattr(other, name),
        )


MESHES = {
    "all": lambda: None,
    "two": lambda: Mesh(np.array(jax.devices()[:2]), ("data",)),
    "two axes": lambda: Mesh(np.array(jax.devices()).reshape(4, 2), ("rows", "columns")),
    "explicit": lambda: jax.make_mesh((8,), ("lanes",), axis_types=(AxisType.Explicit,)),
}


@pytest.mark.parametrize("name", MESHES)
@pytest.mark.parametrize("lanes_at_once", ["auto", 2])
def test_lanes_are_split_over_any_mesh(one_device, name, lanes_at_once):
    mesh = MESHES[name]()
    found = run(mesh=mesh, lanes_at_once=lanes_at_once)
    devices = 8 if mesh is None else mesh.size
    each = 1 if lanes_at_once == "auto" else min(2, -(-11 // devices))
    assert f"{each} at once on each of {devices} cpu device(s)" in found.placement
    assert "host threads" in one_device.placement
    equal(one_device, found)


def test_no_message_passes_between_devices():
    layout = Layout(width=8, seeds=2, mesh=mesh_of_lanes(jax.devices()), window=4)
    start = {"w": np.zeros((16, 8), np.float32)}
    programs = programs_of(start).of(layout, len(BATCHES))
    assert [leaf.sharding.shard_shape(leaf.shape) for leaf in programs.moving] == [(2, 1, 16, 8)]
    text = programs.train.as_text()
    assert not any(word in text for word in ("all-reduce", "all-gather", "collective-permute", "all-to-all"))


def programs_of(start):
    data = Data(
        start=start, batches=BATCHES, num_batches=6, bits=np.zeros(2, np.uint32), key_impl="threefry2x32"
    )
    return ProgramsOf(Task(step=step, functions=(step,)), data, np.float32(0.1), 8)


def test_sharded_parameters_keep_their_sharding(one_device):
    mesh = Mesh(np.array(jax.devices()), ("model",))
    sharded = jax.device_put(
        {"w": jnp.linspace(-1, 1, 128).reshape(16, 8)}, NamedSharding(mesh, PartitionSpec("model"))
    )
    seen = []

    def watched(carry, rate, batch, key):
        jax.debug.inspect_array_sharding(carry["w"], callback=seen.append)
        return step(carry, rate, batch, key)

    found = olr.sweep(watched, sharded, LANES, BATCHES, num_steps=8, seeds=2, progress=False)
    assert "one after the other, sharded as their start" in found.placement
    assert seen and all(sharding.num_devices == 8 and not sharding.is_fully_replicated for sharding in seen)
    np.testing.assert_allclose(found.metrics["loss"], one_device.metrics["loss"], rtol=2e-5, atol=1e-6)
    assert sharded["w"].sharding.spec == PartitionSpec("model")


def test_a_sweep_on_devices_resumes(tmp_path, one_device):
    found = run(checkpoint=tmp_path)
    again = run(checkpoint=tmp_path)
    jax.tree.map(np.testing.assert_array_equal, found[:4], again[:4])
    assert again.skipped_steps > 0 and again.redone_steps == 0
    with pytest.raises(ValueError, match="it differs in devices"):
        run(checkpoint=tmp_path, mesh=Mesh(np.array(jax.devices()[:2]), ("x",)), lanes_at_once=1)
