"""A search for the rate and other hyperparameters: one search for each combination of these, in one table."""

import json

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest
from flax import nnx

import optax_lr as olr
import optax_lr.nnx
from optax_lr.engine.runs import Reference, Runs
from optax_lr.finder import tables
from optax_lr.finder.budget import Budgeted
from optax_lr.finder.combinations import Combinations
from optax_lr.finder.constant import Constant
from optax_lr.finder.finalists import Scheduled
from optax_lr.finder.policy import AllDivergedError, Bounds
from optax_lr.finder.quick import Quick
from optax_lr.finder.spending import Spending

SEEDS, HORIZON = 3, 64
BOUNDS = Bounds(1e-4, 1.0)
QUICK = Quick(BOUNDS, (4, 8, 16), HORIZON, SEEDS, tables.one_cycle)
POLICIES = {
    "constant": Constant(BOUNDS, 16, SEEDS, tables.constant, (4, 8, 16)),
    "quick": QUICK,
    "scheduled": Scheduled(QUICK, (HORIZON,), 3, {HORIZON: tables.one_cycle}),
}


def bowl(best=0.01, lowest=1.0, noise=0.02, limit=np.inf):
    """A loss over the rate and the length of a run, another on each seed; infinite at rates above a limit."""

    def loss(rate, steps, seed, **_):
        draw = np.random.default_rng([seed, steps, int(1e6 * rate)]).normal()
        drifted = best * (HORIZON / steps) ** 0.4
        value = lowest * (1 + 4 / steps) * (1 + 0.3 * np.log10(rate / drifted) ** 2 + noise * draw)
        return value if rate <= limit else np.inf

    return loss


def driven(policy, loss, *, through=lambda runs: runs):
    """The table of a search whose runs all end with a loss that is known, and what was asked for in each round."""
    runs, rounds = Runs(["loss"], ["loss"]), []
    seeds = np.arange(2 * SEEDS)
    untrained = np.full((len(seeds), 1), 6.5, np.float32)
    runs.reference = Reference(seeds, {}, {"loss": untrained}, (1,), 0)
    while (asked := policy.ask(runs)) is not None:
        rounds.append(asked.plan)
        for row in runs.append(asked.plan).tolist():
            steps, seed = (int(runs.columns[name][row]) for name in ("steps", "seed"))
            lane = {name: values[row].item() for name, values in runs.lanes.items()}
            rate = lane.pop("learning_rate")
            value, evals = loss(rate, steps, seed, **lane), len(asked.plan.eval_steps)
            runs.record(row, 0, {"loss": np.full(steps, value, np.float32)})
            runs.evals["loss"][row, :evals] = value
            lost = not np.isfinite(value)
            runs.end(row, 1 if lost else steps, 0 if lost else -1, int(lost))
        runs = through(runs)
    return runs, rounds


def said(found):
    """All that a search of the rate alone says."""
    return {**found.to_dict(), "hyperparameters": None, "shorter": [str(curve) for curve in found.shorter]}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("loss", [bowl(), bowl(noise=0.3), bowl(best=30.0), bowl(limit=0.02)])
def test_a_single_combination_is_searched_and_answered_as_the_rate_alone(name, loss):
    alone, single = POLICIES[name], Combinations(POLICIES[name], {"decay": np.array([0.5])})
    (runs, rounds), (others, other_rounds) = driven(alone, loss), driven(single, loss)
    assert len(rounds) == len(other_rounds)
    for one, other in zip(rounds, other_rounds, strict=True):
        assert (other.lanes["decay"] == 0.5).all()
        np.testing.assert_array_equal(one.lanes["learning_rate"], other.lanes["learning_rate"])
        np.testing.assert_array_equal(one.seeds, other.seeds)
        assert (one.stage, one.eval_steps) == (other.stage, other.eval_steps)
    found, one = single.answer(others), alone.answer(runs)
    assert said(found) == said(one)
    assert found.hyperparameters == {"decay": 0.5} and found.combinations is None


@pytest.mark.parametrize("name", POLICIES)
def test_each_combination_is_searched_as_if_it_were_alone(name):
    bowls = {0.1: bowl(0.1, 1.05), 0.2: bowl(0.003, 1.0), 0.3: bowl(0.01, 1.06)}
    policy = Combinations(POLICIES[name], {"decay": np.array(list(bowls))})
    runs, _ = driven(policy, lambda *at, decay: bowls[decay](*at))
    for which, loss in enumerate(bowls.values()):
        expected = driven(POLICIES[name], loss)[0]
        mine = policy.of(runs, which)
        for column in ("seed", "stage", "steps", "done"):
            np.testing.assert_array_equal(mine.columns[column], expected.columns[column])
        np.testing.assert_array_equal(mine.lanes["learning_rate"], expected.lanes["learning_rate"])
    found = policy.answer(runs)
    assert found.hyperparameters == {"decay": 0.2}
    assert found.learning_rate == POLICIES[name].answer(driven(POLICIES[name], bowls[0.2])[0]).learning_rate
    assert found.lane_steps == runs.price
    assert "decay 0.2 is the best of 3 combinations" in found.reason
    assert sorted(set(found.combinations.lanes["decay"])) == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("name", POLICIES)
def test_what_is_clearly_worse_is_dropped_when_a_length_ends(name):
    bowls = {0.0: bowl(), 1.0: bowl(lowest=1.5), 2.0: bowl(limit=1e-9), 3.0: bowl(lowest=1.01)}
    policy = Combinations(POLICIES[name], {"decay": np.array(list(bowls))})
    runs, _ = driven(policy, lambda *at, decay: bowls[decay](*at))
    stages = [set(policy.of(runs, which).columns["stage"].tolist()) for which in range(4)]
    assert stages[1] == {0} and stages[2] == {0} and len(stages[0]) > 1 and len(stages[3]) > 1
    found = policy.answer(runs)
    assert found.hyperparameters["decay"] in (0.0, 3.0)
    assert "of which 2 clearly worse in shorter runs" in found.reason
    # A tenth of the cost of both good ones at most.
    assert runs.price < 1.1 * sum(policy.of(runs, which).price for which in (0, 3)) + 2 * 9 * SEEDS * 16


def test_a_trace_has_the_answer_of_the_best_and_the_price_of_all():
    alone = Budgeted(BOUNDS, Spending(3, HORIZON), lambda steps: tables.one_cycle)
    policy = Combinations(alone, {"decay": np.array([0.0, 1.0])})
    # Losses of the second one leave nothing to search in long runs: it ends in earlier rounds.
    bowls = {0.0: bowl(noise=0.2), 1.0: bowl(lowest=1.5)}
    runs, rounds = driven(policy, lambda *at, decay: bowls[decay](*at))
    found, best = policy.answer(runs), alone.answer(policy.of(runs, 0))
    assert found.hyperparameters == {"decay": 0.0} and len(found.trace) == len(rounds)
    for known, alike in zip(found.trace, best.trace, strict=False):
        assert known[:4] == alike[:4] and known.price > alike.price
    assert found.trace[-1][:4] == best.trace[-1][:4]
    assert found.trace[-1].price * HORIZON == found.lane_steps == runs.price
    assert found.trace[-1].chain * HORIZON == sum(plan.longest for plan in rounds)
    assert f"all 2 together took {runs.price / HORIZON:.3g} runs" in found.reason


def test_where_every_combination_diverges_it_is_said_as_for_one():
    policy = Combinations(POLICIES["quick"], {"decay": np.array([0.0, 1.0])})
    with pytest.raises(AllDivergedError):
        driven(policy, bowl(limit=1e-9))


@pytest.mark.parametrize("name", POLICIES)
def test_a_table_that_was_saved_goes_on_as_it_would_have(name):
    policy = Combinations(POLICIES[name], {"decay": np.array([0.0, 1.0]), "warm": np.array([1, 2])})
    loss = bowl(noise=0.2)
    whole, rounds = driven(policy, loss)
    saved, again = driven(policy, loss, through=lambda runs: Runs.from_arrays(runs.arrays()))
    assert str(whole) == str(saved) and len(rounds) == len(again)


def test_combinations_that_noise_hides_are_named():
    policy = Combinations(POLICIES["quick"], {"decay": np.array([0.0, 1.0])})
    runs, _ = driven(policy, bowl(noise=0.1))
    assert "and cannot be told from decay" in policy.answer(runs).reason


BATCHES = np.zeros((8, 1), np.float32)
START = {"body": jnp.zeros(()), "head": jnp.zeros(())}
LABELS = {"body": "body", "head": "head"}


def loss_fn(params, x):
    """The body's curvature is 100 times the head's: plain descent wants 100 times the rate for the head."""
    return 50 * (params["body"] - 1) ** 2 + 0.5 * (params["head"] - 1) ** 2 + 0 * x.sum() + 1e-3


def sgd(learning_rate, head_multiplier):
    return olr.fine_tune(optax.sgd(learning_rate), {"body": 1.0, "head": head_multiplier}, LABELS)


def search(**options):
    given = {"num_steps": 8, "seeds": 1, "progress": False, "eval_batch": BATCHES[0]} | options
    return olr.lr_find(loss_fn, START, given.pop("optimizer", sgd), BATCHES, **given)


GRID = olr.grid(head_multiplier=[1, 10, 100, 1000])


def test_the_multiplier_that_the_curvatures_ask_for_is_found():
    found = search(lanes=GRID, max_learning_rate=0.1)
    assert found.hyperparameters == {"head_multiplier": 100}
    assert found.learning_rate == pytest.approx(0.01, rel=0.3)  # both curvatures times their rates are then 1
    assert "head_multiplier" in str(found) and found.lane_steps > 0


def test_a_single_combination_finds_what_a_factory_of_the_rate_finds():
    one = search(lanes=olr.grid(head_multiplier=[10.0]))
    alone = search(optimizer=lambda rate: sgd(rate, 10.0))
    assert one.learning_rate == pytest.approx(alone.learning_rate, rel=1e-5)
    assert (one.reason, one.lane_steps) == (alone.reason, alone.lane_steps)


def test_a_scheduled_search_varies_keywords_of_an_optimizer_of_optax():
    found = search(
        optimizer=optax.adamw, lanes=olr.grid(weight_decay=[0.0, 1.0], b1=[0.5, 0.9]),
        schedule=lambda peak: olr.one_cycle_schedule(peak, 16), num_steps=4,
    )  # fmt: skip
    assert found.hyperparameters["weight_decay"] in (0.0, 1.0) and found.hyperparameters["b1"] in (0.5, 0.9)
    assert found.finalists is not None and found.params is not None
    assert found.combinations.axes == ["learning_rate", "weight_decay", "b1"]


def test_a_module_is_searched_too():
    def on_module(model, x):
        return jnp.mean((model(x) - 3 * x) ** 2)

    model, batches = (
        nnx.Linear(1, 1, rngs=nnx.Rngs(0)),
        np.linspace(-1, 1, 20, dtype=np.float32).reshape(5, 4, 1),
    )
    found = olr.nnx.lr_find(
        on_module, model, lambda learning_rate, momentum: optax.sgd(learning_rate, momentum), batches,
        eval_batch=batches[0], num_steps=5, seeds=1, progress=False, lanes=olr.grid(momentum=[0.0, 0.5]),
    )  # fmt: skip
    assert found.hyperparameters["momentum"] in (0.0, 0.5)


def test_an_answer_is_saved_told_and_drawn(tmp_path):
    found = search(lanes=GRID, max_learning_rate=0.1)
    found.save(tmp_path / "found.npz")
    again = olr.Suggestion.load(tmp_path / "found.npz")
    assert json.dumps(again.to_dict()) == json.dumps(found.to_dict()) and str(again) == str(found)
    assert type(again.hyperparameters["head_multiplier"]) is int
    np.testing.assert_array_equal(again.combinations.losses, found.combinations.losses)
    axes = again.plot()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("learning_rate", "head_multiplier")
    (star,) = (line for line in axes.lines if line.get_marker() == "*")
    assert star.get_ydata() == pytest.approx([2.8])  # in the third row
    rates = np.unique(found.combinations.learning_rates)
    between = np.interp(np.log(found.learning_rate), np.log(rates), np.arange(len(rates)) + 0.5)
    assert star.get_xdata() == pytest.approx([between])
    plt.close(axes.figure)


def test_of_further_axes_a_picture_shows_the_best():
    found = search(optimizer=optax.adamw, lanes=olr.grid(weight_decay=[0.0, 1.0], b1=[0.5, 0.9]))
    axes = found.plot()
    assert axes.get_ylabel() == "weight_decay"
    plt.close(axes.figure)


@pytest.mark.parametrize(
    ("lanes", "sentence"),
    [
        ({}, "lanes must be what varies beside the learning rate"),
        (
            olr.grid(learning_rate=[0.1], b1=[0.5]),
            "the rates to search between are min_learning_rate and max",
        ),
        ({"b1": [0.5, 0.9], "b2": [0.9]}, "lanes must be arrays of one length"),
        ({"b1": [0.5, 0.5]}, "lanes must hold each combination once, got {'b1': 0.5} twice"),
        ({"b1": [np.nan]}, "must be finite numbers"),
        ({"beta": [0.5]}, "optimizer must take the names of lanes as keywords, learning_rate, beta"),
    ],
)
def test_other_lanes_are_refused(lanes, sentence):
    with pytest.raises(ValueError, match=sentence):
        search(optimizer=optax.adamw, lanes=lanes)
