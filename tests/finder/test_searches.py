"""Searches: what runs they add, how a squeezed schedule runs, and that a second one compiles nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lowerings import count_lowerings

import optax_lr as olr
from optax_lr.engine.sweep import Engine
from optax_lr.finder.searches import quick_lengths, squeezed

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(40, 16, 3)).astype(np.float32)
TARGETS = INPUTS @ np.array([1.0, -2.0, 0.5], np.float32)
DATA = {"eval_batch": (INPUTS[-1], TARGETS[-1]), "progress": False}


def loss_fn(params, batch):
    return jnp.mean((batch[0] @ params - batch[1]) ** 2)


def find(optimizer=optax.adam, **options):
    return olr.lr_find(loss_fn, jnp.zeros(3), optimizer, (INPUTS, TARGETS), **DATA, **options)


@pytest.mark.parametrize(("horizon", "steps"), [(100, 7), (100, 100), (2**31 - 1, 50), (3, 1)])
def test_a_squeezed_schedule_starts_and_ends_where_the_whole_one_does(horizon, steps):
    schedule = lambda peak: lambda step: peak * jnp.asarray(step, jnp.int32)  # noqa: E731
    lane = {"learning_rate": 1, "run_steps": jnp.int32(steps)}
    found = jax.vmap(lambda step: squeezed(lane, step, schedule, horizon))(
        jnp.arange(steps + 1, dtype=jnp.int32)
    )
    last = max(steps - 1, 1)
    expected = [min(t, last) * (horizon - 1) // last for t in range(steps + 1)]
    np.testing.assert_array_less(np.abs(np.asarray(found, np.int64) - expected), 2)
    assert found[0] == 0 and found[last] == horizon - 1


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


def test_a_second_search_compiles_nothing():
    first = find(horizon=60, num_steps=8)
    with count_lowerings() as lowered:
        second = find(horizon=60, num_steps=8)
    assert "train" not in " ".join(lowered) and second.learning_rate == first.learning_rate
    with count_lowerings() as lowered:
        find(lambda rate: optax.adam(rate), horizon=60, num_steps=8)
    assert "train" in " ".join(lowered)


def test_a_search_beyond_its_bounds_says_so():
    found = find(max_learning_rate=1e-4, num_steps=5)
    assert "widened beyond max_learning_rate=0.0001" in found.reason


def test_a_shorter_run_of_an_engine_is_the_beginning_of_a_longer_one():
    def step(x, rate, batch, key):
        return x - rate * (x - batch), {"loss": (x - batch) ** 2}

    engine = Engine(step, num_steps=9, evaluate=lambda x, batch: {"x": x}, eval_steps=[3, 6, 9])
    arguments = (jnp.float32(1), jnp.array([0.1, 0.5]), jnp.linspace(0, 1, 9))
    options = {"seeds": 2, "eval_batch": 0.0, "progress": False, "return_carries": True}
    whole, short = engine.run(*arguments, **options), engine.run(*arguments, num_steps=6, **options)
    np.testing.assert_array_equal(short.metrics["loss"], whole.metrics["loss"][..., :6])
    np.testing.assert_array_equal(short.evals["x"], whole.evals["x"][..., :2])
    np.testing.assert_array_equal(short.carries, whole.evals["x"][..., 1])


def test_a_batch_that_only_longer_runs_reach_is_named_where_it_ends_them_all():
    broken = INPUTS.copy()
    broken[8] = np.nan
    with pytest.raises(RuntimeError, match=r"Every lane diverged.*the loss of batch 8 is nan"):
        olr.lr_find(
            loss_fn, jnp.zeros(3), optax.adam, (broken, TARGETS), horizon=500, num_steps=5, seeds=1, **DATA
        )
