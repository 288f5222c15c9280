"""Keeping snapshots costs an H100 and a v5e nothing at the steps that keep none, alone and in a scan."""

import functools
import re

import jax
import jax.numpy as jnp
import optax
import pytest
from targets import TARGETS, bytes_of, compile_for

import optax_lr as olr

CYCLES = olr.Cycles(100, growth=2)
SLOTS = 5
LAYER = {
    "kernel": jax.ShapeDtypeStruct((1024, 512), jnp.float32),
    "bias": jax.ShapeDtypeStruct((512,), jnp.float32),
}
PARAMS = {"first": LAYER, "second": LAYER}

each_target = pytest.mark.parametrize("target", TARGETS)
each_way = pytest.mark.parametrize("scan", [False, True], ids=["alone", "scan"])


@functools.cache
def compiled(target, scan, kept):
    """A step, or a scan of eight, of Adam under SGDR, with and without snapshots."""
    rate = olr.scale_by_learning_rate(olr.sgdr_schedule(1e-3, 0.0, CYCLES))
    snapshots = [olr.snapshot_at_cycle_ends(CYCLES, SLOTS)] if kept else []
    tx = optax.chain(optax.scale_by_adam(), rate, *snapshots)

    def step(carry, grads):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    run = functools.partial(jax.lax.scan, step) if scan else step
    lead = (8,) if scan else ()
    grads = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*lead, *leaf.shape), leaf.dtype), PARAMS)
    return compile_for(target, run, ((PARAMS, jax.eval_shape(tx.init, PARAMS)), grads), donate=(0,))


@each_target
@each_way
def test_a_step_that_keeps_nothing_copies_and_moves_nothing(target, scan):
    bare, program = compiled(target, scan, False), compiled(target, scan, True)
    assert (program.copies, bare.copies) == (0, 0)
    assert program.whiles == bare.whiles + 1
    # The body of the loop writes each array into its slot, and the step into the list of steps.
    assert program.array_kernels - bare.array_kernels == len(jax.tree.leaves(PARAMS)) + 1
    # It is counted once and runs once a cycle: it reads and writes the parameters.
    assert bare.bytes <= program.bytes - 2 * bytes_of(PARAMS) <= 1.02 * bare.bytes


@each_target
def test_the_snapshots_are_given_up_and_not_allocated_again(target):
    program = compiled(target, False, True)
    aliased = re.search(r"input_output_alias=\{(.*?)\}, [a-z_]+=", program.text)
    rows = len(re.findall(r"\(\d+, \{\}", aliased[1]))
    # Parameters, two moments, snapshots, their steps, three counts, the rate's override. (The last rate is
    # not read, so it is no argument.)
    assert rows == 4 * len(jax.tree.leaves(PARAMS)) + 5
