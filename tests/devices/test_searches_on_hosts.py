"""Every search on two hosts whose clocks differ: the rows, stops and losses of one device."""

import pathlib
import socket
import subprocess
import sys

import backbone
import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from searches import DRAWING, SEARCHES, numbers

# The second host's clocks run fast and unevenly: it would cut its calls, save and stop at other moments.
HOST = """
import itertools, pathlib, sys, time
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(coordinator_address=sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
sys.path[:0] = sys.argv[3].split(":")
if sys.argv[2] == "1":
    gained = itertools.accumulate(itertools.cycle([0.0, 0.03, 0.4, 0.0, 7.0]))
    for name in ("monotonic", "perf_counter"):
        setattr(time, name, lambda true=getattr(time, name): true() + next(gained))
import numpy as np
from jax.sharding import PartitionSpec as P
import test_searches_on_meshes as meshes
import backbone
from searches import BATCHES, DRAWING, SEARCHES, numbers
found = {name: search() for name, search in (SEARCHES | DRAWING).items()}
found["shared backbone"] = backbone.search()
found["sharded backbone"] = backbone.search(params=backbone.sharded_start(4))
assert "8 at once, sharded as their start, 4.0 MiB shared" in found["sharded backbone"].placement
mesh = meshes.jax.make_mesh((4,), ("data",), axis_types=(meshes.AXES["Auto"],))
folder = pathlib.Path(sys.argv[4])
params, split = meshes.placed(mesh, P(None, "data")), meshes.split(mesh)
given = [split[at] for at in range(len(BATCHES))]
found["lr_sweep, placed"] = SEARCHES["lr_sweep"](params=params, batches=given)
for name in ("lr_find scheduled", "sweep"):
    for time_ in ("first", "again"):
        found[f"{name}, saved {time_}"] = SEARCHES[name](checkpoint=folder / name)
placed = SEARCHES["lr_find scheduled"](params=params, checkpoint=folder / "placed")
found["lr_find scheduled, saved, placed"] = placed
flat = {f"{name}/{key}": value for name, each in found.items() for key, value in numbers(each).items()}
np.savez(folder / f"host{sys.argv[2]}.npz", **flat)
"""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """What each of two hosts found, by search and name."""
    folder = tmp_path_factory.mktemp("hosts")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    here = pathlib.Path(__file__).parent
    logs = [folder / f"host{host}.log" for host in range(2)]
    processes = []
    for host, log in enumerate(logs):
        command = [sys.executable, "-c", HOST, address, str(host), f"{here}:{here.parent}", str(folder)]
        with log.open("w") as errors:
            processes.append(subprocess.Popen(command, stderr=errors))
    try:
        codes = [process.wait(timeout=400) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)
    return [dict(np.load(folder / f"host{host}.npz")) for host in range(2)]


@pytest.mark.parametrize("name", SEARCHES | DRAWING)
def test_two_hosts_find_what_one_device_finds(hosts, name):
    expected = numbers((SEARCHES | DRAWING)[name](mesh=Mesh(np.array(jax.devices()[:1]), ("x",))))
    for host in hosts:
        found = [each for each in host if each.split("/")[0].split(",")[0] == name]
        assert len(found) >= len(expected)
        for each in found:
            np.testing.assert_allclose(
                host[each], expected[each.split("/")[1]], rtol=2e-5, atol=1e-6, err_msg=each
            )


def test_both_hosts_have_the_whole_answer(hosts):
    one, other = hosts
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("backbone_lies", ["shared", "sharded"])
def test_two_hosts_share_a_backbone_and_find_the_curves_of_one_device(hosts, backbone_lies):
    expected = numbers(backbone.search(mesh=Mesh(np.array(jax.devices()[:1]), ("x",))))
    for host in hosts:
        for name, values in expected.items():
            found = host[f"{backbone_lies} backbone/{name}"]
            np.testing.assert_allclose(found, values, rtol=2e-5, atol=1e-6)
