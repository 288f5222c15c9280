"""`lr_find(folds=)`: each seed trains without one part of the data and is judged on it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_lr as olr
import optax_lr.nnx

RNG = np.random.default_rng(2)
X = RNG.normal(size=(6, 5, 3)).astype(np.float32)
Y = (X @ np.array([1.0, -2.0, 0.5], np.float32) + RNG.normal(size=(6, 5))).astype(np.float32)
OPTIONS = {"num_steps": 12, "min_learning_rate": 1e-3, "max_learning_rate": 1.0, "progress": False}


def loss_fn(params, batch):
    return jnp.mean((batch[0] @ params - batch[1]) ** 2)


def find(batches=(X, Y), optimizer=optax.sgd, params=None, **options):
    start = jnp.zeros(3) if params is None else params
    return olr.lr_find(loss_fn, start, optimizer, batches, **{**OPTIONS, **options})


def names_of_batches(params, batch):
    """A loss that tells which batches it was given: its value is their mean number."""
    return jnp.mean(batch) + 0 * params


@pytest.mark.parametrize(("count", "folds"), [(6, 2), (6, 3), (7, 3), (5, 5), (9, 2)])
def test_each_seed_trains_on_all_parts_but_its_own(count, folds):
    size = count // folds
    numbers = np.repeat(np.arange(count, dtype=np.float32)[:, None], 4, axis=1)
    with pytest.warns(UserWarning, match="does not depend"):
        found = olr.lr_find(
            names_of_batches,
            jnp.zeros(()),
            optax.sgd,
            numbers,
            folds=folds,
            num_steps=2 * count,
            progress=False,
        )
    assert found.curve.losses.shape[0] == folds == found.curve.folds
    for fold in range(folds):
        left_out = np.arange(fold * size, (fold + 1) * size)
        trained = set(found.curve.losses[fold].ravel().astype(int).tolist())
        assert trained == set(range(count)) - set(left_out.tolist())
        assert (found.curve.eval_losses[fold] == np.float32(left_out.mean())).all()
        assert (found.curve.reference[fold] == np.float32(left_out.mean())).all()


def test_two_batches_in_plain_optax():
    found = find((X[:2], Y[:2]), folds=2, optimizer=optax.adam)
    for fold in range(2):
        batch, validation = ((X[at], Y[at]) for at in (1 - fold, fold))
        for lane, rate in enumerate(found.curve.learning_rates):
            optimizer, params = optax.adam(rate), jnp.zeros(3)
            state = optimizer.init(params)
            for _ in range(12):
                updates, state = optimizer.update(jax.grad(loss_fn)(params, batch), state, params)
                params = optax.apply_updates(params, updates)
            np.testing.assert_allclose(
                found.curve.eval_losses[fold, lane, -1], loss_fn(params, validation), rtol=1e-4
            )


def test_further_seeds_go_round_the_folds():
    found = find(folds=2, seeds=5)
    evaluated = found.curve.reference
    np.testing.assert_array_equal(evaluated[:2], evaluated[2:4])
    assert len(found.curve.losses) == 5 and not np.array_equal(evaluated[0], evaluated[1])


def scored(params, batch):
    return {"loss": 0.0, "score": -loss_fn(params, batch)}


WAYS = {
    "quick": {"horizon": 30},
    "scheduled": {"horizon": 30, "schedule": lambda peak: olr.one_cycle_schedule(peak, 30)},
    "a list": {"batches": list(zip(X, Y, strict=True))},
    "lanes side by side": {"lanes_at_once": 3},
    "drawn starts": {"params": lambda key: jax.random.normal(key, (3,))},
    "a metric": {"eval_fn": scored, "metric": "score", "mode": "max"},
}


def test_a_search_with_a_budget_has_folds_too():
    found = olr.lr_find(
        loss_fn, jnp.zeros(3), optax.sgd, (X, Y), folds=3, budget=8, horizon=40, progress=False
    )
    assert 0.01 < found.learning_rate < 1 and found.curve.folds == 3
    with pytest.raises(ValueError, match="budget decides seeds"):
        find(folds=3, budget=8, horizon=40, seeds=2, num_steps=None)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_searching_has_folds(way):
    found = find(folds=3, **WAYS[way])
    assert 0.01 < found.learning_rate < 1 and found.deciding.folds == 3


def test_a_list_and_lanes_side_by_side_answer_alike():
    one = find(folds=3)
    for way in ("a list", "lanes side by side", "a metric"):
        assert find(folds=3, **WAYS[way]).learning_rate == pytest.approx(one.learning_rate, rel=1e-4)


def test_the_interval_knows_that_parts_share_what_they_are_trained_on(tmp_path):
    found = find(folds=3)
    shared = olr.suggest.lowest_loss(dataclasses.replace(found.curve, folds=1))
    assert found.low < shared.low and found.high > shared.high
    found.save(tmp_path / "found")
    assert olr.Suggestion.load(tmp_path / "found").curve.folds == 3


def holding(shared, folds, size, trials=300):
    """How often an interval holds the best rate where a share of the noise is one for all five parts."""
    draw, rates = np.random.default_rng(0), np.geomspace(0.01, 1, 9)
    truth, held = 0.02 * np.log(rates / 0.1) ** 2, 0
    for _ in range(trials):
        each, every = draw.normal(size=(5, 9)), draw.normal(size=9)
        noise = size * (np.sqrt(1 - shared) * each + np.sqrt(shared) * every)
        losses = np.float32(truth + noise)[..., None]
        curve = olr.LRCurve(
            rates, losses, losses, np.array([1], np.int32), np.full((5, 9), -1, np.int32),
            reference=np.full(5, 1, np.float32), folds=folds,
        )  # fmt: skip
        found = olr.suggest.lowest_loss(curve)
        held += found.low <= 0.1 <= found.high
    return held / trials


def test_intervals_of_folds_hold_the_best_rate_as_often_as_those_of_independent_runs():
    # Of five parts that train in turn, the theory has it, a fifth of the noise is shared; the means are as sure.
    independent = holding(shared=0.0, folds=1, size=0.02)
    size = 0.02 * np.sqrt((1 / 5) / (0.8 / 5 + 0.2))
    assert holding(shared=0.2, folds=5, size=size) > independent - 0.03
    assert holding(shared=0.2, folds=1, size=size) < independent - 0.05


def test_modules_have_folds():
    found = olr.nnx.lr_find(
        lambda model, batch: jnp.mean((model(batch[0])[..., 0] - batch[1]) ** 2),
        nnx.Linear(3, 1, rngs=nnx.Rngs(0)), optax.sgd, (X, Y), folds=3, **{**OPTIONS, "num_steps": 40},
    )  # fmt: skip
    assert found.curve.folds == 3 and found.curve.eval_losses is not None


def endless():
    while True:
        yield X[0], Y[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"folds": 1}, "folds must be at least 2, got 1"),
        ({"folds": 2, "eval_batch": (X[0], Y[0])}, "eval_batch must not be given beside folds"),
        ({"folds": 7}, "folds must be at most the number of batches, 6, got 7: make smaller batches"),
        ({"folds": 2, "batches": endless()}, "folds need batches with a length"),
        (
            {"folds": 2, "batches": (X, np.zeros(6, np.float32))},
            "each array of a batch must have an axis of them",
        ),
    ],
)
def test_what_cannot_be_parted_is_refused(unhooked, options, said):
    with pytest.raises(ValueError, match=said):
        unhooked.lr_find(
            loss_fn, jnp.zeros(3), optax.sgd, options.pop("batches", (X, Y)), **OPTIONS, **options
        )
