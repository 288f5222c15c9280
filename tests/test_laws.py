"""The laws of the package, each held over every public factory in the table of `factories.py`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from factories import SCHEDULES
from test_rooms import functions_returning

import optax_lr as olr
from optax_lr.engine.workers import enable_x64

MAX_STEP = 2**31 - 1
FAR_STEPS = (1000, 10**6, 2**24 - 3, 2**24, 2**24 + 3, 10**8, MAX_STEP - 1, MAX_STEP)

each_schedule = pytest.mark.parametrize("case", SCHEDULES, ids=lambda case: case.id)


def near(case):
    """Step 0, 1, and those around every boundary."""
    around = {b + d for b in case.boundaries for d in (-1, 0, 1)}
    return np.array(sorted({0, 1} | {step for step in around if step >= 0}), np.int32)


def bound(expected):
    """Law 3: how far a value may be from the float64 formula."""
    expected = np.asarray(expected)
    return 1e-6 * np.ptp(expected) + 2.0**-22 * np.abs(expected).max()


@functools.cache
def traced_values(case):
    """Values of a schedule with all numbers traced: one compiled function for every law."""
    return jax.jit(lambda steps, arguments: jax.vmap(case.make(olr, **arguments))(steps))


def test_every_factory_has_a_row():
    assert functions_returning(olr.types.Schedule) == {case.factory for case in SCHEDULES}


@each_schedule
def test_eager_jit_vmap_and_scan_agree(case):
    schedule, steps = case.make(olr), near(case)
    eager = np.array([schedule(int(step)) for step in steps])
    ways = {
        "jit": np.array([jax.jit(schedule)(step) for step in steps]),
        "vmap": jax.vmap(schedule)(steps),
        "scan": jax.lax.scan(lambda carry, step: (carry, schedule(step)), None, steps)[1],
        "traced numbers": traced_values(case)(steps, case.values),
    }
    for way, values in ways.items():
        np.testing.assert_allclose(values, eager, rtol=0, atol=bound(eager), err_msg=way)


@each_schedule
def test_results_are_float32_and_never_weak(case):
    schedule = case.make(olr)
    for step in (3, np.int64(3), jnp.int32(3), 3.0, jnp.bfloat16(3), jnp.int8(3)):
        value = jnp.asarray(schedule(step))
        assert (value.dtype, value.weak_type, value.shape) == (jnp.float32, False, ())
    with enable_x64(True):
        assert schedule(3).dtype == jnp.float64


@each_schedule
def test_vmap_over_each_number_and_over_all(case):
    # One compiled call holds all trials: each number's two lanes alone, then all numbers' lanes together.
    steps, values = near(case), case.values
    lanes = {name: two for name, (_, two) in case.arguments.items()}
    trials = [
        {name: two[lane] for name, two in trial.items()}
        for trial in [*({name: two} for name, two in lanes.items()), lanes]
        for lane in (0, 1)
    ]
    expected = np.array([[case.expected(int(step), **trial) for step in steps] for trial in trials])
    for dtype in (None, np.float32):
        stacked = {name: np.array([{**values, **t}[name] for t in trials], dtype) for name in values}
        got = jax.jit(jax.vmap(traced_values(case), in_axes=(None, 0)))(steps, stacked)
        for trial, values_got, values_expected in zip(trials, got, expected, strict=True):
            np.testing.assert_allclose(
                values_got, values_expected, rtol=0, atol=bound(values_expected), err_msg=f"{trial} {dtype}"
            )


@pytest.mark.parametrize(
    ("case", "changes"),
    [pytest.param(case, {}, id=case.id) for case in SCHEDULES]
    + [pytest.param(case, case.large, id=f"{case.id}-large") for case in SCHEDULES if case.large],
)
def test_equals_the_float64_formula_up_to_the_last_step(case, changes):
    steps = np.unique(np.append(near(case), FAR_STEPS)).astype(np.int32)
    expected = [case.expected(int(step), **changes) for step in steps]
    constant = jax.jit(jax.vmap(case.make(olr, **changes)))(steps)
    traced = traced_values(case)(steps, {**case.values, **changes})
    np.testing.assert_allclose(constant, expected, rtol=0, atol=bound(expected))
    np.testing.assert_allclose(traced, expected, rtol=0, atol=bound(expected), err_msg="traced")


@each_schedule
def test_float_steps_are_epochs(case):
    steps = near(case)
    steps = steps[steps <= 2**24]  # from there a float32 skips steps
    np.testing.assert_allclose(
        jax.jit(jax.vmap(case.make(olr)))(steps.astype(np.float32)),
        [case.expected(int(step)) for step in steps],
        rtol=0,
        atol=bound([case.expected(int(step)) for step in steps]),
    )


@each_schedule
def test_holds_its_first_value_before_step_0(case):
    schedule = case.make(olr)
    assert schedule(-5) == schedule(0) == schedule(-0.5)


@each_schedule
def test_gradients_by_every_number_are_finite(case):
    steps = np.append(near(case), FAR_STEPS).astype(np.int32)
    values = {name: np.float32(value) for name, value in case.values.items()}
    # One step that is not finite makes the sum so.
    slopes = jax.jit(jax.grad(lambda values: traced_values(case)(steps, values).sum()))(values)
    for name, slope in slopes.items():
        assert np.isfinite(slope), name


@each_schedule
@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_nothing_is_promoted_silently(case, dtype):
    numbers = {
        name: jax.ShapeDtypeStruct((), dtype if isinstance(value, int) else np.float32)
        for name, value in case.values.items()
    }
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for step in (jax.ShapeDtypeStruct((), np.int32), jax.ShapeDtypeStruct((), np.float32)):
            for build in (
                lambda step, numbers: case.make(olr, **numbers)(step),
                lambda step, _: case.make(olr)(step),
            ):
                assert jax.eval_shape(build, step, numbers) == jax.ShapeDtypeStruct((), np.float32)


@each_schedule
def test_no_loop_in_the_compiled_form(case):
    text = jax.jit(case.make(olr)).lower(jnp.int32(0)).compile().as_text()
    assert " while(" not in text


@each_schedule
def test_bad_numbers_are_refused_by_name(case, unhooked):
    for name, values in case.bad.items():
        for value in values:
            changes = value if isinstance(value, dict) else {name: value}
            with pytest.raises(ValueError, match=name) as refusal:
                case.make(unhooked, **changes)
            message = str(refusal.value)
            assert message.endswith(".") and message.count("\n") == 0
            assert any(repr(bad) in message for bad in changes.values()), message
