"""Searches: what runs they add, how a squeezed schedule runs, and that a second one compiles nothing."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lowerings import count_lowerings

import optax_lr as olr
from optax_lr.finder import tables
from optax_lr.finder.quick import quick_lengths

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(40, 16, 3)).astype(np.float32)
TARGETS = INPUTS @ np.array([1.0, -2.0, 0.5], np.float32)
DATA = {"eval_batch": (INPUTS[-1], TARGETS[-1]), "progress": False}


def loss_fn(params, batch):
    return jnp.mean((batch[0] @ params - batch[1]) ** 2)


def find(optimizer=optax.adam, **options):
    return olr.lr_find(loss_fn, jnp.zeros(3), optimizer, (INPUTS, TARGETS), **DATA, **options)


@pytest.mark.parametrize(("horizon", "steps"), [(100, 7), (100, 100), (2**31 - 1, 50), (3, 1)])
def test_a_compressed_schedule_starts_and_ends_where_the_whole_one_does(horizon, steps):
    seen = []

    def schedule(peak):
        return lambda step: seen.append(step) or peak * (float(step) / horizon)

    found = tables.compressed(schedule, np.array([1.0]), steps, horizon)[0]
    last = max(steps - 1, 1)
    expected = [min(t, last) * (horizon - 1) // last / horizon for t in range(steps)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found[0] == 0 and (steps == 1 or seen[-1] == horizon - 1)


def test_a_lane_of_a_quick_search_is_a_run_under_one_cycle():
    found = find(horizon=500, num_steps=5)
    assert [part.losses.shape[-1] for part in (*found.shorter, found.curve)] == [2, 10, 20]
    rates = found.curve.learning_rates
    best = rates[olr.suggest.best_lane(found.curve)]
    assert all(np.isclose(rates, best * ratio, rtol=1e-4).any() for ratio in (0.5, 2.0))
    whole = olr.lr_sweep(
        loss_fn, jnp.zeros(3), optax.adam, (INPUTS, TARGETS), learning_rates=rates, num_steps=20, seeds=3,
        schedule=lambda peak: olr.one_cycle_schedule(peak, 20), **DATA,
    )  # fmt: skip
    np.testing.assert_allclose(found.curve.eval_losses[..., -1], whole.eval_losses[..., -1], rtol=2e-3)


@pytest.mark.parametrize(
    ("num_steps", "horizon", "lengths"),
    [
        (100, 1000, [25, 200, 400]),
        (100, 300, [25, 150, 300]),
        (100, 30, [8, 15, 30]),
        (1, 1, [1]),
        (7, 3, [1, 2, 3]),
    ],
)
def test_the_runs_of_a_quick_search_are_no_longer_than_the_horizon(num_steps, horizon, lengths):
    assert quick_lengths(num_steps, horizon) == lengths


@pytest.mark.parametrize("horizon", [1, 2])
def test_a_run_of_a_step_or_two_has_a_rate_too(horizon):
    found = find(horizon=horizon, seeds=1)
    assert 0 < found.low <= found.learning_rate <= found.high < np.inf


def test_an_optimizer_that_takes_only_numbers_can_be_searched_for_a_horizon():
    found = find(
        lambda rate: optax.chain(optax.scale_by_adam(), optax.scale(-rate)), horizon=500, num_steps=8
    )
    again = find(horizon=500, num_steps=8)
    assert np.isclose(found.learning_rate, again.learning_rate, rtol=1e-4)


def test_a_horizon_too_long_for_full_runs_is_squeezed_and_says_so():
    schedule = lambda peak: olr.one_cycle_schedule(peak, 100)  # noqa: E731
    found = find(horizon=100, schedule=schedule, max_full_horizon=99, num_steps=16)
    assert found.finalists.losses.shape[-1] == 50 and found.params is None
    assert "in fewer steps" in found.reason and "carried on to 100 steps" in found.reason
    assert found.low <= found.learning_rate <= found.high
    full = find(horizon=100, schedule=schedule, num_steps=16)
    assert full.finalists.losses.shape[-1] == 100 and full.params is not None
    assert 1 / 4 < found.learning_rate / full.learning_rate < 4


def test_a_finalist_that_diverges_long_before_its_end_is_left_out():
    # One direction is flat: it asks for the highest rate that the others bear.
    loss = lambda params, batch: loss_fn(params * jnp.array([1.0, 0.05, 1.0]), batch)  # noqa: E731
    schedule = lambda peak: olr.one_cycle_schedule(peak, 300)  # noqa: E731
    found = olr.lr_find(
        loss, jnp.zeros(3), optax.sgd, (INPUTS, TARGETS), horizon=300, schedule=schedule, num_steps=8, **DATA
    )
    lost = found.finalists.diverged_at
    assert ((lost >= 0) & (lost < 200)).any() and (lost[:, 0] < 0).all()
    assert np.isfinite(found.params).all() and found.learning_rate < found.finalists.learning_rates[-1]


def test_a_search_builds_two_programs_and_the_next_one_none():
    def own_loss(params, batch):
        return loss_fn(params, batch)

    def again(**options):
        return olr.lr_find(own_loss, jnp.zeros(3), optax.adam, (INPUTS, TARGETS), **DATA, **options)

    cycle = lambda peak: olr.one_cycle_schedule(peak, 60)  # noqa: E731
    with count_lowerings() as lowered:
        first = again(horizon=60, num_steps=8, schedule=cycle)
    assert sorted(name for name in lowered if "train" in name or "evaluate" in name) == [
        "jit(evaluate)", "jit(train)",
    ]  # fmt: skip
    with count_lowerings() as lowered:
        second = again(horizon=60, num_steps=8, schedule=cycle)
    assert lowered == [] and second.learning_rate == first.learning_rate
    with count_lowerings() as lowered:
        # Another length below the same power of two, another schedule, further seeds.
        again(horizon=63, num_steps=8, seeds=4, schedule=lambda peak: optax.cosine_decay_schedule(peak, 63))
    assert not {"jit(train)", "jit(evaluate)"} & set(lowered)


def test_another_optimizer_is_another_search():
    find(horizon=60, num_steps=8)
    with count_lowerings() as lowered:
        find(lambda rate: optax.adam(rate), horizon=60, num_steps=8)
    assert "train" in " ".join(lowered)


def test_a_search_beyond_its_bounds_says_so():
    found = find(max_learning_rate=1e-4, num_steps=5)
    assert "widened beyond max_learning_rate=0.0001" in found.reason


def test_a_batch_that_only_longer_runs_reach_is_named_where_it_ends_them_all():
    broken = INPUTS.copy()
    broken[8] = np.nan
    with pytest.raises(RuntimeError, match=r"Every lane diverged.*the loss of batch 8 is nan"):
        olr.lr_find(
            loss_fn, jnp.zeros(3), optax.adam, (broken, TARGETS), horizon=500, num_steps=5, seeds=1, **DATA
        )


def not_finite(params, batch):
    return {"loss": loss_fn(params, batch), "error": params.sum() / 0}


@pytest.mark.parametrize(
    ("validation", "words"),
    [
        ({"eval_batch": (INPUTS[-1], TARGETS[-1] * np.nan)}, "validation loss is nan"),
        ({"eval_fn": not_finite, "metric": "error"}, "validation error is nan"),
    ],
)
def test_validation_that_is_not_finite_before_training_is_named(validation, words):
    said = f"Every lane diverged.*{words} before any training: look at eval_batch and eval_fn"
    with pytest.raises(RuntimeError, match=said):
        olr.lr_find(
            loss_fn,
            jnp.zeros(3),
            optax.sgd,
            (INPUTS, TARGETS),
            num_steps=5,
            seeds=1,
            **{**DATA, **validation},
        )


def test_the_horizon_is_the_schedules_own_length():
    found = find(schedule=lambda peak: olr.one_cycle_schedule(peak, 20), num_steps=8, seeds=1)
    assert found.finalists.losses.shape[-1] == 20
    with pytest.raises(ValueError, match="schedule needs horizon: the number of steps"):
        find(schedule=lambda peak: optax.cosine_decay_schedule(peak, 20), num_steps=8)


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (
            lambda peak: olr.warmup_cosine_decay_schedule(0.0, peak, 3000, 30_000),
            r"reaches its peak near step \d+, beyond the horizon of 30 steps",
        ),
        (
            lambda peak: optax.warmup_cosine_decay_schedule(0.0, peak, 100, 1000),
            r"reaches its peak near step \d+, beyond the horizon of 30 steps",
        ),
        (
            lambda peak: olr.cosine_decay_schedule(peak, 300),
            "has not come down at the end of the horizon of 30 steps: it stands at 98% of its peak there, and "
            "falls to 0% at step 29",
        ),
    ],
)
def test_a_schedule_that_the_horizon_cuts_is_warned_of(schedule, words):
    with pytest.warns(UserWarning, match=words):
        find(horizon=30, schedule=schedule, num_steps=4, seeds=1)


def test_a_schedule_that_fits_is_not():
    for schedule in (
        lambda peak: olr.one_cycle_schedule(peak, 30),
        lambda peak: optax.warmup_cosine_decay_schedule(0.0, peak, 3, 30),
        lambda peak: lambda step: peak,
        lambda peak: olr.inverse_sqrt_schedule(peak, 5),
    ):
        find(horizon=30, schedule=schedule, num_steps=4, seeds=1)


@pytest.mark.parametrize("steps", [100, 400])
def test_gradient_descent_on_a_quadratic_is_answered_as_well_as_its_best_lane(steps):
    curvature = np.geomspace(1e-2, 1e2, 30)

    def lost(rate):
        with np.errstate(over="ignore"):
            return float(0.5 * np.sum(curvature * (1 - curvature * rate) ** (2 * steps)))

    found = olr.lr_find(
        lambda params, batch: 0.5 * jnp.sum(np.float32(curvature) * params**2), jnp.ones(30), optax.sgd,
        np.zeros((10, 1), np.float32), eval_batch=np.zeros(1, np.float32), num_steps=steps, progress=False,
    )  # fmt: skip
    lanes = [lost(rate) for rate in found.curve.learning_rates]
    assert lost(found.learning_rate) <= 1.001 * min(lanes)
    assert min(lanes) <= 1.05 * min(map(lost, np.geomspace(0.001, 0.02, 400)))
