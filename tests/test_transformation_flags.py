"""Every transformation under each of JAX's flags: the same values. One program for all of them, tiny trees."""

import contextlib
import gc

import jax
import numpy as np
import optax
import pytest
from test_transformation_laws import at, expected, given
from transformations import TRANSFORMATIONS

import optax_lr as olr
from optax_lr.engine.workers import enable_x64

STEPS = 3


@contextlib.contextmanager
def checking_leaks():
    """JAX collects garbage after each trace to see what leaked; what is there already need not be looked at."""
    gc.freeze()
    try:
        with jax.checking_leaks():
            yield
    finally:
        gc.unfreeze()


FLAGS = {
    "x64": lambda: enable_x64(True),
    "debug_nans": lambda: jax.debug_nans(True),
    "debug_infs": lambda: jax.debug_infs(True),
    "strict promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "tracer leaks": checking_leaks,
    "disable_jit": jax.disable_jit,
    "transfer guard": contextlib.nullcontext,
    "rbg": lambda: jax.default_prng_impl("rbg"),
    "legacy keys": lambda: jax.legacy_prng_key("error"),
}


def steps_of(cases):
    """One step of every case, and their states."""
    transformations = [case.make(olr) for case in cases]

    @jax.jit
    def step(given, states):
        results = [
            tx.update(grads, state, params, **extra)
            for tx, state, (grads, params, extra) in zip(transformations, states, given, strict=True)
        ]
        moved = [
            optax.apply_updates(each[1], updates) for each, (updates, _) in zip(given, results, strict=True)
        ]
        return [updates for updates, _ in results], moved, [state for _, state in results]

    return step, [tx.init(given(case)[0]) for tx, case in zip(transformations, cases, strict=True)]


def run(cases, guard):
    """The updates of all cases, step by step."""
    step, states = steps_of(cases)
    params, emitted = [given(case)[0] for case in cases], []
    for number in range(STEPS):
        arguments = [
            (at(given(case)[1], number), moved, at(given(case)[2], number))
            for case, moved in zip(cases, params, strict=True)
        ]
        if number == 0:
            updates, params, states = step(arguments, states)
        else:
            with guard():
                updates, params, states = step(arguments, states)
        emitted.append(updates)
    return emitted


def check(cases, flag):
    guard = (lambda: jax.transfer_guard("disallow")) if flag == "transfer guard" else contextlib.nullcontext
    with FLAGS[flag]():
        emitted = run(cases, guard)
    for number, all_updates in enumerate(emitted):
        for case, updates in zip(cases, all_updates, strict=True):
            wanted = at(expected(case)[0], number)
            for one, other in zip(jax.tree.leaves(updates), jax.tree.leaves(wanted), strict=True):
                assert one.dtype == other.dtype, case.id
                np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-7, err_msg=case.id)


@pytest.mark.parametrize("flag", FLAGS)
def test_values_are_those_without_the_flag(flag):
    try:
        check(TRANSFORMATIONS, flag)
    except Exception as failure:
        # The row that fails is worth the time of looking for it.
        broken = {}
        for case in TRANSFORMATIONS:
            try:
                check([case], flag)
            except Exception as error:
                broken[case.id] = str(error).strip().splitlines()[:1]
        raise AssertionError(f"under {flag}: {broken}") from failure
