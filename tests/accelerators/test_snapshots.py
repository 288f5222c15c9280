"""Keeping snapshots costs an H100 and a v5e nothing at the steps that keep none, alone and in a scan."""

import functools
import re

import jax
import jax.numpy as jnp
import optax
import pytest
from targets import COMPUTATION, TARGETS, bytes_of, compile_for, read

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


def adam():
    return optax.chain(
        optax.scale_by_adam(), olr.scale_by_learning_rate(olr.sgdr_schedule(1e-3, 0.0, CYCLES))
    )


def snapshots():
    return olr.snapshot_at_cycle_ends(CYCLES, SLOTS)


OPTIMIZERS = {
    "bare": adam,
    "kept": lambda: optax.chain(adam(), snapshots()),
    "finite": lambda: optax.apply_if_finite(adam(), 5),
    "finite, kept": lambda: optax.chain(optax.apply_if_finite(adam(), 5), snapshots()),
    "kept inside finite": lambda: optax.apply_if_finite(optax.chain(adam(), snapshots()), 5),
}


@functools.cache
def compiled(target, name, scan=False):
    """A step, or a scan of eight, of Adam under SGDR, with and without snapshots."""
    tx = OPTIMIZERS[name]()

    def step(carry, grads):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    run = functools.partial(jax.lax.scan, step) if scan else step
    lead = (8,) if scan else ()
    grads = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*lead, *leaf.shape), leaf.dtype), PARAMS)
    return compile_for(target, run, ((PARAMS, jax.eval_shape(tx.init, PARAMS)), grads), donate=(0,))


def slot_bodies(program):
    """The computations that copy each leaf of the parameters and do nothing else: a slot's loop, in its turn."""
    each = [read(computation[0]) for computation in COMPUTATION.finditer(program.text)]
    leaves = len(jax.tree.leaves(PARAMS))
    return [found for found in each if found["copies"] == leaves == sum(n > 1 for n in found["kernels"])]


def check_costs_nothing(bare, program):
    """At a step that keeps nothing: all that came is the bodies of loops that run once a cycle."""
    leaves = len(jax.tree.leaves(PARAMS))
    assert len(slot_bodies(program)) == SLOTS
    assert program.copies == bare.copies + SLOTS * leaves
    # The loop of the step, and in it one for each slot.
    assert program.whiles == bare.whiles + 1 + SLOTS
    # Beside the copies the step is written into the list of steps; v5e also hands that list over, once a scan.
    assert program.array_kernels - bare.array_kernels - SLOTS * leaves <= 3
    # Each body is counted once: it reads and writes the parameters.
    assert bare.bytes <= program.bytes - 2 * SLOTS * bytes_of(PARAMS) <= 1.02 * bare.bytes


@each_target
@each_way
def test_a_step_that_keeps_nothing_copies_and_moves_nothing(target, scan):
    bare = compiled(target, "bare", scan)
    assert bare.copies == 0
    check_costs_nothing(bare, compiled(target, "kept", scan))


@each_target
def test_beside_apply_if_finite_it_costs_nothing(target):
    check_costs_nothing(compiled(target, "finite"), compiled(target, "finite, kept"))


def test_inside_apply_if_finite_an_h100_copies_every_slot():
    bare, program = compiled("h100", "finite"), compiled("h100", "kept inside finite")
    assert program.copies - bare.copies >= 2 * SLOTS * len(jax.tree.leaves(PARAMS))


@each_target
def test_the_snapshots_are_given_up_and_not_allocated_again(target):
    program = compiled(target, "kept")
    aliased = re.search(r"input_output_alias=\{(.*?)\}, [a-z_]+=", program.text)
    rows = len(re.findall(r"\(\d+, \{\}", aliased[1]))
    # Parameters, two moments, snapshots; their steps and number, three counts, the rate and what was written.
    assert rows == (3 + SLOTS) * len(jax.tree.leaves(PARAMS)) + 7
