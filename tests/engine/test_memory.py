"""What a search holds, and for how long: peaks are measured in a process of their own."""

import gc
import subprocess
import sys
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_lr as olr
from optax_lr.engine.engine import Engine
from optax_lr.engine.opening import Opening

PEAK = """
import gc, sys, threading, time
import numpy as np, jax.numpy as jnp, optax, optax_lr as olr

def anonymous():
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("RssAnon")).split()[1]) / 1024

def peak_of(run):
    # Once before: programs are compiled, allocators have what they keep.
    run()
    gc.collect()
    seen, ended = [], threading.Event()
    def watch():
        while not ended.is_set():
            seen.append(anonymous())
            time.sleep(0.001)
    watcher = threading.Thread(target=watch)
    before = anonymous()
    watcher.start()
    run()
    ended.set()
    watcher.join()
    return max(seen) - before
"""
DATA = """
shape = (64, 256, 1024)                                        # 64 MiB
def step(x, rate, batch, key):
    return x - rate * batch[0, :4].mean(), {"loss": (x - batch.mean()) ** 2}
def swept(batches, **options):
    rates = np.array([0.1, 0.2], np.float32)
    olr.sweep(step, jnp.float32(1), rates, batches, num_steps=64, progress=False, **options)
def loader():
    buffer = np.ones(shape[1:], np.float32)
    for i in range(shape[0]):
        buffer[0, 0] = i
        yield buffer
"""
SOURCES = {
    # In place, if they begin where XLA's backend for CPUs wants it; else copied once.
    "stacked": (1.2, "data = np.ones(shape, np.float32); print(peak_of(lambda: swept(data)))"),
    "list": (1.3, "data = list(np.ones(shape, np.float32)); print(peak_of(lambda: swept(data)))"),
    "generator": (1.3, "print(peak_of(lambda: swept(loader())))"),
    "generator, a grid of seeds": (1.5, "print(peak_of(lambda: swept(loader(), seeds=3, lanes_at_once=2)))"),
    "stacked, a grid of seeds": (
        1.2,
        "data = np.ones(shape, np.float32); print(peak_of(lambda: swept(data, seeds=3, lanes_at_once=2)))",
    ),
    "memory-mapped, with a checkpoint": (
        0.5,
        "import tempfile\n"
        "data = np.lib.format.open_memmap(sys.argv[1] + '/data.npy', 'w+', np.float32, shape)\n"
        "data[:] = 1\n"
        "data = np.load(sys.argv[1] + '/data.npy', mmap_mode='r')\n"
        "print(peak_of(lambda: swept(data, checkpoint=tempfile.mkdtemp(dir=sys.argv[1]))))",
    ),
}


def measured(script, *arguments):
    command = [sys.executable, "-c", PEAK + script, *arguments]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return float(run.stdout.split()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("source", SOURCES)
def test_data_are_held_once(tmp_path, source):
    most, script = SOURCES[source]
    assert measured(DATA + script, str(tmp_path)) <= most * 64


@pytest.mark.parametrize("search", ["sweep", "lr_sweep"])
@pytest.mark.parametrize("kind", [jnp.asarray, np.asarray])
def test_what_a_function_closes_over_goes_with_it(search, kind):
    def searched():
        data = kind(np.ones((20, 50, 64), np.float32))

        def step(x, rate, i, key):
            return x - rate * jnp.asarray(data)[i].mean(), {"loss": x**2}

        def loss_fn(params, i):
            return jnp.mean((jnp.asarray(data)[i] @ params - 1) ** 2)

        index, options = np.arange(20), {"num_steps": 20, "progress": False}
        for _ in range(2):
            if search == "sweep":
                olr.sweep(step, jnp.float32(1), np.array([0.1, 0.2], np.float32), index, **options)
            else:
                olr.lr_sweep(loss_fn, jnp.zeros(64), optax.sgd, index, learning_rates=[1e-3, 1e-2], **options)
        # While it lives: the user's own array and no copy of it.
        gc.collect()
        held = sum(array.nbytes for array in jax.live_arrays() if array.shape == data.shape)
        assert held <= data.nbytes
        return [weakref.ref(each) for each in (data, step, loss_fn)]

    references = searched()
    gc.collect()
    assert [reference() for reference in references] == [None] * 3


def test_a_method_is_forgotten_with_its_object():
    class Model:
        def __init__(self):
            self.data = jnp.ones((20, 100))

        def step(self, x, rate, i, key):
            return x - rate * self.data[i].mean(), {"loss": x**2}

    def searched():
        model = Model()
        olr.sweep(
            model.step,
            jnp.float32(1),
            np.array([0.1], np.float32),
            np.arange(20),
            num_steps=3,
            progress=False,
        )
        return weakref.ref(model), weakref.ref(model.data)

    references = searched()
    gc.collect()
    assert [reference() for reference in references] == [None] * 2


def memory_of(array):
    """How many bytes an array keeps alive."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array.nbytes


def test_a_scheduled_search_keeps_one_set_of_parameters():
    params = {"big": jnp.zeros((1000, 8)), "w": jnp.ones(8)}

    def loss_fn(params, batch):
        return jnp.mean((batch @ params["w"] + jnp.mean(params["big"] @ batch[0]) - 1) ** 2)

    batches, kept, keep = np.ones((20, 4, 8), np.float32), [], Engine.open

    class Watched(Engine):
        def open(self, task, data, opening: Opening):
            return Noted(keep(self, task, data, opening))

    class Noted:
        def __init__(self, manager):
            self.manager = manager

        def __enter__(self):
            self.session = self.manager.__enter__()
            return self.session

        def __exit__(self, *error):
            kept.append({row: [leaf.nbytes for leaf in leaves] for row, leaves in self.session.kept.items()})
            return self.manager.__exit__(*error)

    found = olr.lr_find(
        loss_fn, params, optax.adam, batches, eval_batch=batches[0], horizon=20, num_steps=20,
        schedule=lambda peak: olr.one_cycle_schedule(peak, 20), engine=Watched(progress=False),
    )  # fmt: skip
    # The engine keeps the moving leaves of one row; what is found, the parameters alone.
    assert [len(rows) for rows in kept] == [1]
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    leaves = jax.tree.leaves(found.params)
    assert jax.tree.structure(found.params) == jax.tree.structure(params)
    assert sum(memory_of(np.asarray(leaf)) for leaf in leaves) <= size
    rest = [
        leaf
        for name, value in vars(found).items()
        if name != "params"
        for leaf in jax.tree.leaves(value if not hasattr(value, "__dict__") else vars(value))
        if hasattr(leaf, "nbytes") and not isinstance(leaf, np.generic)
    ]
    assert max((leaf.nbytes for leaf in rest), default=0) < params["big"].nbytes


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_scheduled_search_takes_no_memory_by_finalist():
    """Parameters of 8 MiB with Adam.

    A worker has a carry of three times that, as much while it steps, and a gradient. The carry of the best row is
    kept, and there are two while a better one takes its place.
    """
    script = """
params = {"big": jnp.zeros((2**18, 8)), "w": jnp.ones(8)}
batches = np.ones((20, 4, 8), np.float32)
def loss_fn(params, batch):
    return jnp.mean((batch @ params["w"] + jnp.mean(params["big"] @ batch[0]) - 1) ** 2)
def schedule(peak): return olr.one_cycle_schedule(peak, 20)
def search():
    olr.lr_find(
        loss_fn, params, optax.adam, batches, eval_batch=batches[0], horizon=20, num_steps=20,
        schedule=schedule, progress=False,
    )
from optax_lr.engine.layout import cores
# What allocators keep on top differs from run to run.
print(min(peak_of(search) for _ in range(3)) / 8 / cores())
"""
    assert measured(script) <= 3 + 3 + 2 + 2 * 3
