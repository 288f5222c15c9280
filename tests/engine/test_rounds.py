"""`on_round`: the runs of each round, as a log gets them."""

import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from searches import BATCHES, PARAMS, loss_fn

import optax_lr as olr

RATES = [0.01, 0.1]
OPTIONS = {"eval_batch": BATCHES[0], "progress": False}


def test_a_round_has_every_run_of_the_curve():
    told = []
    curve = olr.lr_sweep(
        loss_fn, PARAMS, optax.sgd, BATCHES, learning_rates=RATES, seeds=2, on_round=told.append, **OPTIONS
    )
    (runs,) = told
    assert [(run["seed"], run["learning_rate"]) for run in runs] == [
        (seed, pytest.approx(rate)) for seed in range(2) for rate in RATES
    ]
    np.testing.assert_array_equal([run["loss"] for run in runs], curve.losses[..., -1].ravel())
    np.testing.assert_array_equal([run["eval_loss"] for run in runs], curve.eval_losses[..., -1].ravel())
    assert {(run["steps"], run["done"], run["stopped"], run["round"]) for run in runs} == {(8, 8, "", 0)}
    assert json.loads(json.dumps(runs)) == runs


def test_a_run_that_was_stopped_says_why_and_where():
    told = []
    olr.lr_sweep(
        lambda w, x: jnp.mean(w * x) ** 2 * jnp.where(w > 1, jnp.inf, 1.0),
        jnp.ones(()) * 0.9,
        lambda learning_rate: optax.sgd(-learning_rate),
        np.ones((6, 3), np.float32),
        learning_rates=[1e-6, 0.1],
        engine=olr.Engine(progress=False, on_round=told.append),
    )
    whole, lost = told[0]
    assert whole["stopped"] == "" and whole["done"] == 6
    assert lost["stopped"] == "not finite" and lost["done"] == 2


def test_a_search_tells_of_each_round_once_and_a_resumed_one_of_its_own(tmp_path):
    told, again = [], []
    arguments = (loss_fn, PARAMS, optax.sgd, BATCHES)
    options = {**OPTIONS, "num_steps": 4, "seeds": 1, "min_learning_rate": 0.01, "max_learning_rate": 0.1}
    found = olr.lr_find(*arguments, checkpoint=tmp_path, on_round=told.append, **options)
    rounds = [{run["round"] for run in runs} for runs in told]
    assert rounds == [{at} for at in range(len(told))] and len(told) > 1
    assert sum(run["done"] for runs in told for run in runs) == found.lane_steps
    assert all(run["description"] for runs in told for run in runs)
    resumed = olr.lr_find(*arguments, checkpoint=tmp_path, on_round=again.append, **options)
    assert again == [] and resumed.learning_rate == found.learning_rate


def test_what_is_no_function_is_refused(unhooked):
    with pytest.raises(ValueError, match="on_round must be a function of a list of runs, got 'log'"):
        unhooked.Engine(on_round="log")


def test_an_error_of_the_callback_loses_no_run(tmp_path):
    arguments = (loss_fn, PARAMS, optax.sgd, BATCHES)
    options = {**OPTIONS, "learning_rates": RATES, "checkpoint": tmp_path}

    def fails(runs):
        raise OSError("The log is full.")

    with pytest.raises(OSError, match="The log is full"):
        olr.lr_sweep(*arguments, on_round=fails, **options)
    told = []
    whole = olr.lr_sweep(*arguments, **{**options, "checkpoint": None})
    resumed = olr.lr_sweep(*arguments, on_round=told.append, **options)
    np.testing.assert_array_equal(resumed.losses, whole.losses)
    assert told == []
