"""A backbone of some matrices and its low-rank adapters: a search whose lanes change little of what they hold."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optax_lr as olr
from optax_lr.engine import programs

WIDTH, RANK, LAYERS = 512, 4, 4
BACKBONE = LAYERS * WIDTH * WIDTH * 4
RATES = np.geomspace(1e-3, 1e-2, 8).tolist()


def start():
    """A backbone of `LAYERS` matrices, and its low-rank adapters."""
    draw = np.random.default_rng(0)

    def matrices(*shape):
        return [draw.normal(size=shape).astype(np.float32) / shape[0] ** 0.5 for _ in range(LAYERS)]

    return {
        "backbone": matrices(WIDTH, WIDTH),
        "down": matrices(WIDTH, RANK),
        "up": [np.zeros((RANK, WIDTH), np.float32)] * LAYERS,
    }


def sharded_start(devices):
    """The start, each matrix of the backbone split over so many devices; the adapters lie on each."""
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    lying = {"backbone": split, "down": whole, "up": whole}
    return {name: jax.device_put(each, lying[name]) for name, each in start().items()}


BATCHES = np.random.default_rng(1).normal(size=(4, 2, WIDTH)).astype(np.float32)


def loss_fn(params, x):
    for matrix, down, up in zip(params["backbone"], params["down"], params["up"], strict=True):
        x = jnp.tanh(x @ matrix + x @ down @ up)
    return jnp.mean((x - 0.1) ** 2)


def adapters(rate):
    labels = {"backbone": "frozen", "down": "trained", "up": "trained"}
    return optax.partition({"frozen": optax.set_to_zero(), "trained": optax.adam(rate)}, labels)


def train_only(rate):
    labels = olr.label_by_path({"backbone/.*": "body", ".*": "adapters"})
    return olr.train_only(optax.adam(rate), "adapters", labels)


def search(**options):
    given = {"optimizer": adapters, "rates": RATES, "params": start(), **options}
    optimizer, rates, params = (given.pop(name) for name in ("optimizer", "rates", "params"))
    # A loss of its own: programs are kept by loss.
    return olr.lr_sweep(
        lambda params, x: loss_fn(params, x),
        params,
        optimizer,
        BATCHES,
        learning_rates=rates,
        progress=False,
        **given,
    )


def bytes_needed(monkeypatch, **options):
    """How many bytes the compiled programs of a search need, on each device."""
    made = []

    def compile_programs(*args, **kwargs):
        made.append(compiled(*args, **kwargs))
        return made[-1]

    compiled = programs.compile_programs
    with monkeypatch.context() as patch:
        patch.setattr(programs, "compile_programs", compile_programs)
        search(**options)
    return made[-1].needed
