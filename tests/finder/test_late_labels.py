"""A label that joins after the end of every run of a search is said: the answer would be for the others alone."""

import warnings

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_lr as olr
import optax_lr.nnx

BATCHES = np.random.default_rng(0).normal(size=(16, 8, 4)).astype(np.float32)
PARAMS = {"body": jnp.eye(4), "head": jnp.full(4, 0.1)}


def loss_fn(params, x):
    return jnp.mean((jnp.tanh(x @ params["body"]) @ params["head"] - x.sum(-1)) ** 2)


def unfrozen_at(start):
    labels = {"body": "body", "head": "head"}
    return lambda rate: olr.fine_tune(
        optax.adam(rate), {"body": 1.0, "head": 1.0}, labels, starts={"body": start}
    )


QUICK = {"eval_batch": BATCHES[0], "horizon": 200, "num_steps": 10, "seeds": 1, "progress": False}
RATES = {"learning_rates": [0.01, 0.1], "progress": False}
SEARCHES = {
    "lr_find": (lambda **given: olr.lr_find(loss_fn, PARAMS, batches=BATCHES, **QUICK, **given), 40),
    "lr_sweep": (lambda **given: olr.lr_sweep(loss_fn, PARAMS, batches=BATCHES, **RATES, **given), 16),
    "lr_range_test": (
        lambda **given: olr.lr_range_test(
            loss_fn, PARAMS, batches=BATCHES, num_steps=12, progress=False, **given
        ),
        12,
    ),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_label_that_no_run_reaches_is_said(name):
    search, longest = SEARCHES[name]
    with pytest.warns(UserWarning, match=rf"'body' in {longest} steps, and no run is longer than {longest}"):
        search(optimizer=unfrozen_at(longest))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search(optimizer=unfrozen_at(longest - 1))


def test_the_rate_would_be_that_of_the_head_alone():
    def frozen(rate):
        labels = {"body": "body", "head": "head"}
        return olr.fine_tune(optax.adam(rate), {"head": 1.0}, labels, frozen="body")

    search, _ = SEARCHES["lr_find"]
    with pytest.warns(UserWarning, match="search without these starts"):
        late = search(optimizer=unfrozen_at(100))
    assert late.learning_rate == pytest.approx(search(optimizer=frozen).learning_rate, rel=1e-4)


def test_wrappers_clocks_and_numbers_are_seen_through():
    search, _ = SEARCHES["lr_sweep"]
    ways = {
        "MultiSteps": lambda rate: optax.MultiSteps(unfrozen_at(16)(rate), 2).gradient_transformation(),
        "a number": lambda rate: olr.fine_tune(
            optax.sgd(jnp.asarray(rate)),
            {"body": 1.0, "head": 1.0},
            {"body": "body", "head": "head"},
            starts={"body": 16},
        ),
        "zero_until": lambda rate: optax.chain(
            olr.zero_until({"body": 16}, {"body": "body", "head": "head"}), optax.adam(rate)
        ),
    }
    for optimizer in ways.values():
        with pytest.warns(UserWarning, match="'body' in 16 steps"):
            search(optimizer=optimizer)


def test_a_run_that_goes_on_counts_from_its_step():
    tx = unfrozen_at(20)
    state = tx(0.1).init(PARAMS)
    for _ in range(10):
        _, state = tx(0.1).update(PARAMS, state, PARAMS)
    options = {
        "opt_state": state,
        "learning_rate": 0.1,
        "eval_batch": BATCHES[0],
        "seeds": 1,
        "progress": False,
    }
    with pytest.warns(UserWarning, match="'body' in 10 steps, and no run is longer than 8"):
        olr.lr_refind(loss_fn, PARAMS, tx, BATCHES, num_steps=8, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        olr.lr_refind(loss_fn, PARAMS, tx, BATCHES, num_steps=11, **options)


def test_labels_of_a_module_are_seen():
    model = nnx.Linear(4, 1, rngs=nnx.Rngs(0))
    labels = olr.label_by_path({"bias": "bias", ".*": "rest"})

    def late(rate):
        return olr.unfreeze_at(optax.sgd(rate), {"bias": 99}, labels)

    with pytest.warns(UserWarning, match="'bias' in 99 steps"):
        olr.nnx.lr_sweep(lambda model, x: jnp.mean(model(x) ** 2), model, late, BATCHES, **RATES)
