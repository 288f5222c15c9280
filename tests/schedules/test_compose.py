"""Composition: what the laws over all schedules do not say."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_lr as olr


def seen_steps(compose):
    """The dtypes of the steps that a part of a composition is asked for, by an integer and a float step."""
    seen = []

    def part(step):
        seen.append(jnp.asarray(step).dtype.kind)
        return 1.0

    schedule = compose(part)
    return [(schedule(step), seen.copy(), seen.clear())[1] for step in (5, 5.0)]


@pytest.mark.parametrize(
    "compose",
    [
        lambda part: olr.with_warmup(part, 3),
        lambda part: olr.shift_schedule(part, 3),
        lambda part: olr.join_schedules([lambda step: 0.1, part], [3]),
        lambda part: olr.scale_schedule(part, 2.0),
        lambda part: olr.multiply_schedules(part),
        lambda part: olr.add_schedules(part),
        lambda part: olr.clip_schedule(part, 0.0, 1.0),
    ],
)
def test_a_part_sees_the_kind_of_step_that_came(compose):
    assert seen_steps(compose) == [["i"], ["f"]]


def test_a_fraction_shifts_the_clock_by_it():
    line = olr.anneal_schedule(0.0, 1.0, 10, curve=olr.curves.linear)
    assert olr.with_warmup(line, 2.5)(5) == 0.25
    assert jax.jit(lambda n: olr.with_warmup(line, n)(5))(2.5) == 0.25
    assert jax.jit(lambda n: olr.shift_schedule(line, n)(5))(2.5) == 0.75
    np.testing.assert_allclose(olr.with_warmup(line, 1.5)(2.0), 0.05)


def test_a_whole_count_is_exact_in_any_type():
    """Step 2^24 + 1 of a part is not a float32."""
    far = olr.knot_schedule({2**24: 0.0, 2**24 + 1: 1.0})
    for count in (8, np.int64(8), 8.0, jnp.float32(8)):
        for compose in (olr.with_warmup, lambda part, n: olr.join_schedules([part, part], [n])):
            build = jax.jit(lambda n, t, compose=compose: compose(far, n)(t))
            assert build(count, 2**24 + 8) == 0 and build(count, 2**24 + 9) == 1
    assert jax.jit(lambda n: olr.shift_schedule(far, n)(2**24))(1.0) == 1


def test_schedules_of_optax_and_plain_functions_compose():
    joined = olr.join_schedules(
        [optax.constant_schedule(0.1), optax.exponential_decay(1.0, 10, 0.5), lambda step: step], [5, 20]
    )
    np.testing.assert_allclose([joined(t) for t in (4, 5, 15, 20, 23)], [0.1, 1.0, 0.5, 0.0, 3.0], rtol=1e-6)
    assert joined(20).dtype == jnp.float32


def test_gradients_of_a_join_are_finite_where_optaxs_are_not():
    def value(peak, join):
        falling = olr.inverse_sqrt_schedule(peak, 0, timescale=1.0)
        return join([olr.anneal_schedule(0.0, peak, 10), lambda step: falling(step) ** 0.5], [10])(3)

    assert np.isfinite(jax.grad(value)(0.1, olr.join_schedules))


def test_one_schedule_needs_no_boundary():
    assert olr.join_schedules([lambda step: 0.5], [])(3) == 0.5
    with pytest.raises(
        ValueError,
        match=r"^boundaries must be one number for each schedule but the first, 1 in all, got \[\]\.$",
    ):
        olr.join_schedules([lambda step: 0.5] * 2, [])
    with pytest.raises(ValueError, match=r"2 in all, got \[10\]\.$"):
        olr.join_schedules([lambda step: 0.5] * 3, [10])


def test_an_equal_boundary_leaves_the_part_between_out():
    joined = olr.join_schedules([lambda step: 0.0, lambda step: 1.0, lambda step: 2.0], [4, 4])
    assert [float(joined(t)) for t in (3, 4)] == [0.0, 2.0]


def test_epochs_may_have_a_fraction():
    schedule = olr.in_epochs(lambda epoch: epoch, 2.5)
    np.testing.assert_allclose([schedule(t) for t in (0, 1, 5, 6)], [0.0, 0.4, 2.0, 2.4], rtol=1e-6)


def test_sample_schedule_is_the_schedule_at_every_step():
    schedule = olr.one_cycle_schedule(1.0, 50)
    values = olr.sample_schedule(schedule, 60)
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(values, [schedule(t) for t in range(60)], atol=1e-7)
    assert olr.sample_schedule(lambda step: 0.5, 3).tolist() == [0.5] * 3


def test_rescale_for_batch():
    assert olr.rescale_for_batch(0.1, 256, 64) == 0.025
    assert olr.rescale_for_batch(0.1, 256, 64, rule="sqrt") == 0.05
    lanes = jax.vmap(lambda size: olr.rescale_for_batch(0.1, 64, size, rule="sqrt"))(jnp.array([64, 256]))
    np.testing.assert_allclose(lanes, [0.1, 0.2], rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda olr: olr.with_warmup(0.1, 10), "schedule must be a function, got 0.1."),
        (lambda olr: olr.multiply_schedules(), "schedules must hold at least one schedule, got ()."),
        (lambda olr: olr.join_schedules([], []), "schedules must hold at least one schedule, got []."),
        (lambda olr: olr.join_schedules([0.1], []), "schedules[0] must be a function, got 0.1."),
        (
            lambda olr: olr.clip_schedule(lambda step: 0.1, 0.5, 0.2),
            "max_value must be at least min_value=0.5, got 0.2.",
        ),
        (
            lambda olr: olr.sample_schedule(lambda step: 0.1, 0),
            "num_steps must be a whole number of steps from 1 to 2^31 - 1, got 0.",
        ),
        (
            lambda olr: olr.rescale_for_batch(0.1, 0, 8),
            "from_batch_size must be a finite number of at least 1, got 0.",
        ),
        (
            lambda olr: olr.rescale_for_batch(0.1, 8, 8, rule="cube"),
            "rule must be one of 'linear', 'sqrt', got 'cube'.",
        ),
    ],
)
def test_refusals_read_well(unhooked, build, sentence):
    with pytest.raises(ValueError, match=r".") as refusal:
        build(unhooked)
    assert str(refusal.value) == sentence
