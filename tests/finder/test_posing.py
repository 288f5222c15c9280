"""Every search on a device that says how much memory it has: lanes in one `vmap`, in chunks that fit."""

import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from lowerings import count_lowerings
from posing import posing_as_gpu

import optax_lr as olr
import optax_lr.nnx
from optax_lr.engine import programs as compiling

GIB = 2**30
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(40, 8, 3)).astype(np.float32)
BATCHES = (INPUTS, np.tanh(INPUTS @ np.array([1.0, -2.0, 0.5], np.float32)))
VALIDATION = (INPUTS[-1], BATCHES[1][-1])
PARAMS = jnp.zeros(3)
RATES = np.geomspace(0.003, 0.1, 8)


def loss_fn(params, batch):
    return jnp.mean((jnp.tanh(batch[0] @ params) - batch[1]) ** 2)


def nnx_loss(model, batch):
    return jnp.mean((model(batch[0])[:, 0] - batch[1]) ** 2)


def engine_step(carry, rate, batch, key):
    return carry - rate * (carry - batch[1].mean()), {"loss": (carry - batch[1].mean()) ** 2}


def find(**options):
    """The curve of the first runs: the rates of later ones differ as the losses of these do."""
    found = olr.lr_find(
        loss_fn, PARAMS, optax.sgd, BATCHES, eval_batch=VALIDATION, num_steps=8, progress=False, **options
    )
    first = (*found.shorter, found.curve)[0]
    return dataclasses.replace(first, placement=found.curve.placement)


def module():
    return nnx.Linear(3, 1, rngs=nnx.Rngs(0))


SEARCHES = {
    "sweep": lambda: olr.sweep(
        engine_step, jnp.float32(1), RATES.astype(np.float32), BATCHES, num_steps=20, progress=False
    ),
    "lr_sweep": lambda: olr.lr_sweep(
        loss_fn, PARAMS, optax.adam, BATCHES, learning_rates=RATES, eval_batch=VALIDATION, progress=False
    ),
    "constant": find,
    "quick": functools.partial(find, horizon=30),
    "scheduled": functools.partial(
        find, horizon=30, schedule=lambda peak: olr.one_cycle_schedule(peak, 30), seeds=2
    ),
    "lr_range_test": lambda: olr.lr_range_test(
        loss_fn, PARAMS, optax.sgd, BATCHES, num_steps=20, seeds=2, progress=False
    ),
    "lr_refind": lambda: (
        olr.lr_refind(
            loss_fn, PARAMS, optax.sgd, BATCHES, learning_rate=0.1, eval_batch=VALIDATION, num_steps=8
        ).curve
    ),
    "nnx.lr_sweep": lambda: olr.nnx.lr_sweep(
        nnx_loss, module(), optax.adam, BATCHES, learning_rates=RATES, progress=False
    ),
    "nnx.lr_find": lambda: (
        olr.nnx.lr_find(nnx_loss, module(), optax.adam, BATCHES, num_steps=8, progress=False).curve
    ),
    "nnx.lr_range_test": lambda: olr.nnx.lr_range_test(
        nnx_loss, module(), optax.adam, BATCHES, num_steps=20, progress=False
    ),
}


def losses(found):
    return found.metrics["loss"] if isinstance(found, olr.SweepResult) else found.losses


@pytest.mark.parametrize("name", SEARCHES)
def test_every_search_runs_and_equals_that_of_a_cpu(name):
    with posing_as_gpu(80 * GIB):
        found = SEARCHES[name]()
    assert "at once on 1 gpu device(s)" in found.placement
    alone = SEARCHES[name]()
    assert "host threads" in alone.placement
    here, there = losses(found), losses(alone)
    assert here.shape == there.shape
    stable = np.isfinite(here) & np.isfinite(there)
    np.testing.assert_allclose(here[stable], there[stable], rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("name", ["sweep", "lr_sweep", "constant", "nnx.lr_sweep"])
def test_what_does_not_fit_goes_in_chunks(name):
    with posing_as_gpu(80 * GIB):
        whole = SEARCHES[name]()
    # The data alone take 5 KiB.
    with posing_as_gpu(6 * 1024):
        found = SEARCHES[name]()
    at_once = int(found.placement.split(", ")[1].split()[0])
    assert at_once < int(whole.placement.split(", ")[1].split()[0])
    np.testing.assert_allclose(losses(found), losses(whole), rtol=2e-4, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("name", SEARCHES)
def test_a_second_search_compiles_nothing(name):
    with posing_as_gpu(80 * GIB):
        SEARCHES[name]()
        with count_lowerings() as lowered:
            SEARCHES[name]()
    assert not lowered


def fresh(**options):
    """A search whose loss no other search has seen."""
    return olr.lr_sweep(
        lambda params, batch: loss_fn(params, batch),
        PARAMS, optax.adam, BATCHES, learning_rates=RATES, eval_batch=VALIDATION, progress=False, **options,
    )  # fmt: skip


def made(search):
    """What a search compiled: for each layout the programs, with their own account of their memory."""
    programs = []

    def compiled(*arguments, **options):
        programs.append(engine_compiles(*arguments, **options))
        return programs[-1]

    engine_compiles = compiling.compile_programs
    with mock.patch.object(compiling, "compile_programs", compiled):
        return search(), programs


def test_each_program_is_compiled_once_where_all_lanes_fit_and_thrice_at_most_where_not():
    with posing_as_gpu(80 * GIB), count_lowerings() as lowered:
        fresh()
    assert lowered.count("jit(train)") == lowered.count("jit(evaluate)") == 1
    for memory in (6, 8):
        with posing_as_gpu(memory * 1024), count_lowerings() as lowered:
            fresh()
        assert 1 <= lowered.count("jit(train)") == lowered.count("jit(evaluate)") <= 3


def wide(num_batches, *, rows=16, validation=16, listed=False):
    """A search of eight lanes of 16 KiB each, Adam, on batches of `rows` x 256 B."""
    inputs = RNG.normal(size=(num_batches, rows, 64)).astype(np.float32)
    return olr.lr_sweep(
        lambda params, batch: jnp.mean((jnp.tanh(batch @ params) @ params) ** 2),
        np.ones((64, 64), np.float32),
        optax.adam,
        list(inputs) if listed else inputs,
        learning_rates=np.geomspace(1e-6, 1e-5, 8),
        eval_batch=np.ones((validation, 64), np.float32),
        num_steps=num_batches,
        progress=False,
    )


def own_bytes(compiled):
    memory = compiled.memory_analysis()
    given, made = memory.argument_size_in_bytes, memory.output_size_in_bytes
    return memory.temp_size_in_bytes + given + made - memory.alias_size_in_bytes


@pytest.mark.parametrize("validation", [16, 256])
def test_the_estimate_is_what_the_compiled_programs_say(validation):
    with posing_as_gpu(80 * GIB):
        _, (programs,) = made(lambda: wide(20, validation=validation))
    largest = max(own_bytes(programs.train), own_bytes(programs.evaluate))
    assert largest <= programs.needed <= 1.2 * largest


def test_a_large_validation_batch_takes_room_from_lanes():
    with posing_as_gpu(80 * GIB):
        _, (small,) = made(lambda: wide(20))
        _, (large,) = made(lambda: wide(20, validation=16 * 64))
    assert own_bytes(large.evaluate) > own_bytes(large.train)
    memory = (small.needed + large.needed) // 2
    with posing_as_gpu(memory * 10 // 9):
        assert "8 at once" in wide(20).placement
        _, (*_, chunk) = made(lambda: wide(20, validation=16 * 64))
    assert max(own_bytes(chunk.train), own_bytes(chunk.evaluate)) <= memory


@pytest.mark.parametrize("num_batches", [100, 2000])
def test_a_stream_of_any_length_keeps_its_width(num_batches):
    # A batch takes 16 KiB: 2000 of them do not fit, those of two calls do.
    with posing_as_gpu(25 * 2**20):
        found = wide(num_batches, rows=64, listed=True)
    assert "8 at once" in found.placement


def test_a_device_that_runs_out_all_the_same_goes_on_with_half_the_lanes():
    failures = ["RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 byte."]
    engine_compiles = compiling.compile_programs

    def failing_once(*arguments, **options):
        programs = engine_compiles(*arguments, **options)

        def train(*given):
            if failures:
                raise jax.errors.JaxRuntimeError(failures.pop())
            return programs.train(*given)

        return programs._replace(train=train)

    with posing_as_gpu(80 * GIB):
        whole = fresh()
        said = pytest.warns(UserWarning, match="ran out of memory: 4 lanes at once")
        with mock.patch.object(compiling, "compile_programs", failing_once), said:
            halved = fresh()
    np.testing.assert_allclose(halved.losses, whole.losses, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(halved.eval_losses, whole.eval_losses, rtol=1e-4, atol=1e-6)


def test_an_error_that_is_none_of_memory_is_not_caught():
    def failing(*arguments, **options):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    raised = pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL")
    with posing_as_gpu(80 * GIB), mock.patch.object(compiling, "compile_programs", failing), raised:
        fresh()
