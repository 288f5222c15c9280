"""A sweep over eight devices, over two hosts, and of parameters that are sharded themselves."""

import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import optax_lr as olr

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
    from optax_lr.engine.lanes import Layout, inspect, programs

    mesh = Mesh(np.array(jax.devices()), ("lanes",))
    start, lanes = {"w": jnp.zeros((2, 16, 8))}, jnp.ones(8)
    form = inspect(step, None, None, {"w": jnp.zeros((16, 8))}, lanes[0], BATCHES[0], None, "threefry2x32")
    layout = Layout(batched=True, mesh=mesh)
    made = programs(form, num_steps=8, stop_factor=3.0, layout=layout)
    run_ = made.start(start, lanes)
    assert run_.carry["w"].addressable_shards[0].data.shape == (2, 1, 16, 8)
    feed = (lanes, BATCHES, np.zeros((2, 8), np.int32), np.zeros((2, 2), np.uint32))
    text = made.train.lower(run_, np.int32(0), np.int32(8), *feed).compile().as_text()
    assert not any(word in text for word in ("all-reduce", "all-gather", "collective-permute", "all-to-all"))


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


HOST = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(coordinator_address=sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
sys.path.insert(0, sys.argv[3])
import numpy as np
import test_sweep_on_devices as here
found = here.run()
assert "on each of 4 cpu device(s)" in found.placement, found.placement
np.savez(sys.argv[4], loss=found.metrics["loss"], norm=found.evals["norm"], w=found.carries["w"])
"""


def test_two_hosts_give_the_curves_of_one(tmp_path, one_device):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    here = str(pathlib.Path(__file__).parent)
    logs = [tmp_path / f"host{host}.log" for host in range(2)]
    hosts = []
    for host, log in enumerate(logs):
        command = [sys.executable, "-c", HOST, address, str(host), here, str(tmp_path / f"host{host}.npz")]
        with log.open("w") as errors:
            hosts.append(subprocess.Popen(command, stderr=errors))
    codes = [host.wait(timeout=300) for host in hosts]
    assert codes == [0, 0], "\n".join(log.read_text()[-2000:] for log in logs)
    for host in range(2):
        found = np.load(tmp_path / f"host{host}.npz")
        np.testing.assert_allclose(found["loss"], one_device.metrics["loss"], rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(found["norm"], one_device.evals["norm"], rtol=2e-5)
        np.testing.assert_allclose(found["w"], one_device.carries["w"], rtol=2e-5, atol=1e-6)
