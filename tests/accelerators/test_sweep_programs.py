"""Many lanes in one program for an H100 and a v5e: the arithmetic of single lanes, and no copy of the batches."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from targets import TARGETS, mesh

from optax_lr.engine.placement import bytes_needed, lanes_that_fit
from optax_lr.engine.sweep import Engine

MEMORY = {"h100": 84942979072, "v5e": 16 * 2**30}
BATCHES = jax.ShapeDtypeStruct((100, 16, 64), jnp.float32)
RATES = jax.ShapeDtypeStruct((32,), jnp.float32)


def engine():
    def step(carry, rate, batch, key):
        def loss_fn(params):
            hidden = jnp.tanh(batch @ params["in"])
            return jnp.mean((hidden @ params["out"]) ** 2)

        loss, gradients = jax.value_and_grad(loss_fn)(carry)
        return jax.tree.map(lambda p, g: p - rate * g, carry, gradients), {"loss": loss}

    return Engine(step, num_steps=50)


def start(width):
    shape = jax.ShapeDtypeStruct
    return {"in": shape((64, width), jnp.float32), "out": shape((width, width), jnp.float32)}


def lowered(target, lanes, width):
    train, arguments = engine().batched_program(start(width), RATES, BATCHES, width=lanes)
    on_device = NamedSharding(mesh(target), PartitionSpec())
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on_device), arguments
    )
    return train.lower(*shapes)


def test_a_lane_costs_what_it_costs_alone():
    flops = {}
    for lanes in (1, 32):
        train, arguments = engine().batched_program(start(128), RATES, BATCHES, width=lanes)
        flops[lanes] = train.lower(*arguments).cost_analysis()["flops"] / lanes
    assert flops[32] <= 1.05 * flops[1]


@pytest.mark.parametrize("target", TARGETS)
def test_no_batch_is_copied_per_lane(target):
    program = lowered(target, 32, 8).compile()
    (module,) = program.runtime_executable().hlo_modules()
    sizes = {
        math.prod(map(int, dimensions.split(",")))
        for dimensions in re.findall(r"[a-z]+\d+\[([\d,]+)\]", module.to_string())
    }
    stack, one_batch_per_lane = math.prod(BATCHES.shape), 32 * 16 * 64
    assert stack in sizes, "the batches are an argument"
    # Weights and hidden values of all lanes are smaller than a batch for each lane.
    assert max(sizes - {stack}) < one_batch_per_lane


@pytest.mark.parametrize("target", TARGETS)
def test_the_largest_chunk_that_fits(target, capsys):
    chunks = {}
    for width in (256, 1024, 2048):
        chunks[width] = lanes_that_fit(
            lambda lanes, width=width: bytes_needed(lowered(target, lanes, width)),
            int(0.9 * MEMORY[target]),
            4096,
        )
    with capsys.disabled():
        print(f"\n{target}: largest chunk by hidden width: {chunks}")
    parameters = {width: 4 * (64 * width + width**2) for width in chunks}
    assert chunks[256] >= chunks[1024] >= chunks[2048] >= 1
    for width, lanes in chunks.items():
        assert np.less(lanes * parameters[width], MEMORY[target])
    # A twentieth and more of the memory is parameters, where not all lanes fit.
    assert chunks[2048] * parameters[2048] > 0.05 * MEMORY[target]
