"""Searches by budget: what they cost, what they answer, what they tell of their rounds."""

import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest
from flax import nnx
from lowerings import count_lowerings

import optax_lr as olr
import optax_lr.nnx
from optax_lr.engine.runs import Reference, Runs
from optax_lr.engine.session import Session
from optax_lr.finder import tables
from optax_lr.finder.budget import Budgeted
from optax_lr.finder.combinations import Combinations
from optax_lr.finder.optimizer import TABLE
from optax_lr.finder.policy import AllDivergedError, Bounds
from optax_lr.finder.spending import Spending, usual_budget

HORIZON = 200
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(HORIZON, 16, 3)).astype(np.float32)
TARGETS = INPUTS @ np.array([1.0, -2.0, 0.5], np.float32)
VALIDATION = {"eval_batch": (INPUTS[-1], TARGETS[-1]), "progress": False}


def loss_fn(params, batch):
    return jnp.mean((batch[0] @ params - batch[1]) ** 2)


def find(budget=3, optimizer=optax.adam, **options):
    given = {"horizon": HORIZON, **VALIDATION, **options}
    return olr.lr_find(loss_fn, jnp.zeros(3), optimizer, (INPUTS, TARGETS), budget=budget, **given)


def drawn(key):
    return jax.random.normal(key, (3,))


def with_state(params, count, batch):
    return loss_fn(params, batch), count + 1


def with_noise(params, batch, key):
    return loss_fn(params, batch) * (1 + 0.01 * jax.random.normal(key))


FORMS = {
    "validated": {},
    "drawn starts": {"params": drawn},
    "training loss": {"eval_batch": None},
    "model state": {"loss": with_state, "model_state": jnp.zeros(())},
    "drawn, training loss": {"params": drawn, "eval_batch": None},
    "noise in the loss": {"loss": with_noise, "with_key": True},
    "two combinations": {"lanes": {"b1": np.array([0.9, 0.5])}},
}


@pytest.mark.filterwarnings("ignore:horizon without eval_batch")
@pytest.mark.parametrize("budget", [0.1, 0.3, 1, 3, 10])
@pytest.mark.parametrize("form", FORMS)
def test_no_budget_is_overspent(form, budget):
    given = {**VALIDATION, **FORMS[form]}
    loss, params = given.pop("loss", loss_fn), given.pop("params", jnp.zeros(3))
    found = olr.lr_find(loss, params, optax.adam, (INPUTS, TARGETS), horizon=HORIZON, budget=budget, **given)
    assert found.lane_steps <= budget * HORIZON
    # Of combinations that were dropped the rest is given back.
    assert found.lane_steps >= (0.25 if "lanes" in given else 0.6) * budget * HORIZON
    assert 0 < found.low <= found.learning_rate <= found.high < np.inf


@pytest.mark.filterwarnings("ignore:horizon without eval_batch", "ignore:No rate learned")
@pytest.mark.parametrize(
    ("horizon", "budget", "most"), [(10, 1, None), (25, 0.4, None), (HORIZON, 1, 1), (HORIZON, 10, 1)]
)
def test_the_loss_without_training_is_paid_from_the_budget(horizon, budget, most):
    found = find(budget, horizon=horizon, max_rounds=most, eval_batch=None)
    assert found.trace[-1].price * horizon == found.lane_steps <= budget * horizon


def test_the_answer_is_carried_on_from_its_horizon():
    found = find(budget=0.5)
    assert found.curve.losses.shape[-1] < found.horizon == HORIZON
    assert olr.lr_transfer(found, horizon=HORIZON).learning_rate == found.learning_rate


@pytest.mark.parametrize(
    ("horizon", "runs"), [(1, 30), (200, 30), (400, 25), (1000, 10), (3334, 3), (10**6, 3)]
)
def test_by_default_three_runs_or_ten_thousand_steps_are_spent(horizon, runs):
    assert usual_budget(horizon) == pytest.approx(runs, rel=1e-3)


@pytest.mark.parametrize("schedule", [None, lambda peak: olr.one_cycle_schedule(peak, 24)])
def test_a_search_for_a_horizon_is_by_budget_and_a_recipe_where_one_of_its_knobs_is_given(schedule):
    found = find(None, horizon=24, schedule=schedule)
    assert found.trace is not None and 25 * 24 < found.lane_steps <= 30 * 24
    assert found.learning_rate == find(30, horizon=24, schedule=schedule).learning_rate
    for knob in ({"num_steps": 8}, {"seeds": 2}, {"max_full_horizon": 100}, {"folds": 2, "eval_batch": None}):
        recipe = find(None, horizon=24, schedule=schedule, **knob)
        assert not recipe.trace and len(recipe.curve.losses) >= 2


def test_by_default_each_of_several_combinations_has_as_much():
    def adam(learning_rate, b1):
        return optax.adam(learning_rate, b1=b1)

    found = find(None, adam, horizon=16, lanes=olr.grid(b1=[0.5, 0.9]))
    assert 30 * 16 < found.lane_steps <= 60 * 16


def bowl(octave, steps, seed, edge):
    """A closed form: the best octave falls by half for each doubling, runs above an edge are lost."""
    halvings = np.log2(1000 / steps)
    best = -7 + 0.5 * halvings
    noise = 0.01 * np.sin(37 * octave + 11 * seed) + 0.01 * np.sin(5 * seed)
    loss = 0.2 * (1 + 0.3 * halvings) * np.exp(0.1 * (octave - best) ** 2 + noise)
    return np.nan if octave > edge else min(loss, 2.2)


def policy_of(budget):
    return Budgeted(Bounds(1e-6, 10.0), Spending(budget, 1000), lambda steps: tables.constant)


def searched(budget, edge=np.inf, starts=(2.3,)):
    """The policy on runs of the closed form; the loss without training by seed, in turn."""
    return driven(
        policy_of(budget), lambda lane, steps, seed: bowl(lane["learning_rate"], steps, seed, edge), starts
    )


def driven(policy, loss_of, starts=(2.3,)):
    """What a policy answers on runs of a closed form."""
    return policy.answer(replayed(policy, loss_of, starts))


def replayed(policy, loss_of, starts=(2.3,)):
    """The runs of a policy on a closed form, to which a lane goes with the log2 of its rate."""
    runs = Runs(("loss",), ("loss",))
    untrained = np.resize(np.float32(starts), (8, 1))
    runs.reference = Reference(np.arange(8), {}, {"loss": untrained}, (1,), 0)
    while (asked := policy.ask(runs)) is not None:
        for row in map(int, runs.append(asked.plan)):
            steps, seed = (int(runs.columns[name][row]) for name in ("steps", "seed"))
            lane = {name: values[row] for name, values in runs.lanes.items()}
            loss = loss_of(lane | {"learning_rate": np.log2(lane["learning_rate"])}, steps, seed)
            runs.evals["loss"][row, 0] = loss
            runs.metrics["loss"][row, :steps] = loss
            runs.end(row, steps, -1 if np.isfinite(loss) else steps - 1, 0)
    return runs


@pytest.mark.parametrize(("budget", "octaves"), [(1, 1.5), (3, 0.75), (10, 0.4)])
def test_a_bowl_that_drifts_is_found_and_lies_in_the_interval(budget, octaves):
    found = searched(budget)
    assert abs(np.log2(found.learning_rate) + 7) <= octaves
    assert np.log2(found.low) <= -7 <= np.log2(found.high)


@pytest.mark.parametrize("budget", [10, 30])
def test_starts_that_differ_by_more_than_their_ends_hide_no_rate(budget):
    found, alike = searched(budget, starts=(2.3, 1.7, 3.9, 2.2)), searched(budget)
    assert abs(np.log2(found.learning_rate) + 7) <= 0.4 and np.log2(found.low) <= -7 <= np.log2(found.high)
    assert np.log2(found.high / found.low) <= 1 + np.log2(alike.high / alike.low)


def test_no_combination_is_dropped_for_what_it_does_in_short_runs():
    def loss_of(lane, steps, seed):
        late = 0.3 if lane["head"] == 1 else 0.0
        return bowl(lane["learning_rate"], steps, seed, np.inf) * (1 + late * (1 - 2 * (steps > 200)))

    found = driven(Combinations(policy_of(3), {"head": np.array([0, 1])}), loss_of)
    assert found.hyperparameters == {"head": 1} and found.lane_steps > 0.9 * 2 * 3 * 1000
    assert "best of 2 combinations" in found.reason and "worse in shorter runs" not in found.reason


def test_beside_the_highest_rate_that_was_tried_the_search_goes_higher():
    # Rates that are alike at first, and the higher the better: of long runs, up to an edge.
    def loss_of(lane, steps, seed):
        return (
            np.nan if lane["learning_rate"] > 2 else 2.3 - 0.1 * (lane["learning_rate"] + 20) * (steps > 40)
        )

    found = driven(policy_of(3), loss_of)
    # The edge is at 2; what is compared are half octaves.
    assert 0 <= np.log2(found.learning_rate) <= 1 <= np.log2(found.high) + 0.5


@pytest.mark.parametrize(("steps", "budget"), [(100, 0.1), (20, 0.5)])
def test_no_run_is_shorter_than_a_cycle_that_reaches_its_peak(steps, budget):
    policy = Budgeted(Bounds(1e-6, 10.0), Spending(budget, steps), lambda steps: tables.one_cycle)
    plan = policy.ask(Runs(("loss",), ("loss",))).plan
    assert plan.steps.min() >= 4 and plan.steps.sum() <= budget * steps
    assert (plan.tables[TABLE].max(axis=1) > 0.5 * plan.lanes["learning_rate"]).all()


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_losses_that_are_tiny_beside_the_fall_are_told_apart(noise):
    def loss_of(lane, steps, seed):
        drawn = np.random.default_rng([seed, round(1000 * lane["learning_rate"] + 50_000), steps])
        return min(2.3, 1e-4 * 2 ** abs(lane["learning_rate"] + 8) * np.exp(noise * drawn.standard_normal()))

    found = driven(policy_of(10), loss_of)
    assert abs(np.log2(found.learning_rate) + 8) < 0.5 and found.low <= 2**-8 <= found.high < 4 * found.low


def test_three_rates_that_tie_tell_of_no_scale():
    def loss_of(lane, steps, seed):
        return 0.25 if -9 < lane["learning_rate"] < -2 else 2.3 - 0.3 * (steps > 100)

    found = driven(policy_of(3), loss_of)
    assert -9 < np.log2(found.learning_rate) < -2


def test_what_lies_at_an_edge_is_answered_below_it():
    found = searched(10, edge=-7.5)
    assert -9 <= np.log2(found.learning_rate) <= -7.5


def test_where_nothing_was_learned_no_tolerance_ends_it_and_the_trace_says_what_is_answered():
    def alike(lane, steps, seed):
        rate = lane["learning_rate"]
        return 2.31 + 0.01 * np.sin(37 * rate + seed) if rate < 0 else 2.4 * 2**rate

    policy = policy_of(3)
    policy = dataclasses.replace(policy, spend=policy.spend._replace(tolerance=0.5))
    found = driven(policy, alike)
    assert found.lane_steps > 2000 and "try a larger budget" in found.reason
    last = found.trace[-1]
    assert (last.learning_rate, last.low, last.high) == (found.learning_rate, found.low, found.high)


def test_longer_runs_that_learned_nothing_are_no_shorter_ones_and_the_reason_names_those_that_ran():
    def loss_of(lane, steps, seed):
        return bowl(lane["learning_rate"], steps, seed, np.inf) if steps < 100 else 2.3

    found = driven(policy_of(3), loss_of)
    assert all(curve.losses.shape[-1] < found.curve.losses.shape[-1] for curve in found.shorter)
    policy = policy_of(3)
    sure = dataclasses.replace(policy, spend=policy.spend._replace(tolerance=0.9))
    early = driven(sure, lambda lane, steps, seed: bowl(lane["learning_rate"], steps, seed, np.inf))
    assert f"as runs of {early.curve.losses.shape[-1]} steps say in 1 round, for" in early.reason


def test_where_every_run_of_the_horizon_is_lost_there_is_no_answer():
    with pytest.raises(AllDivergedError):
        driven(
            policy_of(10),
            lambda lane, steps, seed: np.nan if steps == 1000 else 1.0 + lane["learning_rate"] ** 2,
        )


@pytest.mark.parametrize("budget", [1, 3])
def test_a_best_rate_at_the_end_of_all_that_was_tried_is_at_the_edge(budget):
    found = driven(policy_of(budget), lambda lane, steps, seed: 2.3 - 1e-3 * 2 ** lane["learning_rate"])
    assert found.at_edge and not searched(budget).at_edge


def edge_at(edge, noise):
    """The higher the rate the lower the loss, up to an edge; with noise, the edge is another for each seed."""

    def loss_of(lane, steps, seed):
        drawn = np.random.default_rng([seed, steps]).standard_normal()
        lost = lane["learning_rate"] > edge + 0.3 * noise * drawn
        return (
            np.nan if lost else 2.3 * 2 ** (-0.7 * (lane["learning_rate"] + 20)) * np.exp(0.1 * noise * drawn)
        )

    return loss_of


@pytest.mark.parametrize("edge", [-5.2, -4.87, -4.6])
@pytest.mark.parametrize(("budget", "octaves"), [(10, 0.75), (25, 0.25)])
def test_an_edge_without_noise_is_approached(budget, octaves, edge):
    runs = replayed(policy_of(budget), edge_at(edge, noise=0))
    answer = policy_of(budget).answer(runs)
    assert (
        0 <= edge - np.log2(answer.learning_rate) <= octaves
        and np.log2(answer.high) <= edge + 0.5 * octaves + 0.1
    )
    # Two seeds tell that there is no noise, and then there are no others.
    assert np.bincount(runs.columns["seed"])[1:].tolist() == [1]


def test_beside_a_noisy_edge_the_best_rate_has_a_second_seed():
    runs = replayed(policy_of(25), edge_at(-5.0, noise=1))
    octaves, seeds = np.log2(runs.lanes["learning_rate"]), runs.columns["seed"]
    long = runs.columns["steps"] == 1000
    assert len(np.unique(seeds[long])) > 1 and octaves[long & (seeds == 1)].min() < -5
    assert -7.5 <= np.log2(policy_of(25).answer(runs).learning_rate) <= -5.2


def test_a_trace_tells_answer_price_and_chain_of_each_round():
    found = find()
    assert len(found.trace) > 2
    last = found.trace[-1]
    assert (last.learning_rate, last.low, last.high) == (found.learning_rate, found.low, found.high)
    assert last.price * HORIZON == found.lane_steps
    for name in ("price", "chain"):
        assert (np.diff([getattr(known, name) for known in found.trace]) > 0).all()
    lengths = sorted({curve.losses.shape[-1] for curve in (*found.shorter, found.curve)})
    assert found.trace[0].chain * HORIZON == lengths[0]
    assert last.chain * HORIZON <= len(found.trace) * lengths[-1]
    assert all(known.expected_excess >= 0 for known in found.trace)
    assert last.expected_excess < found.trace[0].expected_excess


def test_a_tolerance_ends_the_search_early():
    whole = find(10)
    reached = next(at for at, known in enumerate(whole.trace) if known.expected_excess < 0.05)
    found = find(10, tolerance=0.05)
    assert found.trace == whole.trace[: reached + 1]
    assert found.lane_steps < whole.lane_steps


@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_rounds_are_bounded(most):
    found = find(10, max_rounds=most)
    assert len(found.trace) <= most
    assert 0.5 * 10 * HORIZON <= found.lane_steps <= 10 * HORIZON


def test_whole_runs_are_under_the_schedule_itself_and_the_best_is_kept():
    seen = []

    def schedule(peak):
        seen.append(peak)
        return optax.cosine_decay_schedule(peak, HORIZON)

    found = find(10, schedule=schedule)
    assert found.curve.losses.shape[-1] == HORIZON and seen
    whole = olr.lr_sweep(
        loss_fn, jnp.zeros(3), optax.adam, (INPUTS, TARGETS), learning_rates=found.curve.learning_rates,
        schedule=schedule, seeds=1, **VALIDATION,
    )  # fmt: skip
    np.testing.assert_allclose(found.curve.eval_losses[0], whole.eval_losses[0], rtol=2e-3, atol=1e-6)
    kept = float(loss_fn(jnp.asarray(found.params), VALIDATION["eval_batch"]))
    assert kept <= float(np.nanmin(found.curve.eval_losses)) * (1 + 1e-5) + 1e-7


def test_a_second_search_compiles_nothing_and_the_first_two_programs():
    def fresh(params, batch):
        return loss_fn(params, batch)

    def once():
        return olr.lr_find(
            fresh, jnp.zeros(3), optax.adam, (INPUTS, TARGETS), horizon=HORIZON, budget=3, **VALIDATION
        )

    with count_lowerings() as first:
        found = once()
    assert sum(name in ("train", "evaluate", "still") for name in first) <= 2
    with count_lowerings() as second:
        again = once()
    assert second == [] and str(again) == str(found)


def test_a_trace_is_saved_and_drawn(tmp_path):
    found = find(1)
    found.save(tmp_path / "found.npz")
    again = olr.Suggestion.load(tmp_path / "found.npz")
    assert again.trace == found.trace and str(again) == str(found)
    axes = again.plot_trace()
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [known.price for known in found.trace])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [known.learning_rate for known in found.trace])
    plt.close(axes.figure)
    with pytest.raises(ValueError, match="only a search with a budget"):
        olr.plots.plot_trace(())


def test_interrupted_it_answers_from_its_rounds_and_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    whole, say = find(3), Session._say

    def interrupting(self, *arguments):
        if self.runs.rounds == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return say(self, *arguments)

    monkeypatch.setattr(Session, "_say", interrupting)
    # The signal may come when the round that sent it has just ended.
    with pytest.warns(UserWarning, match="its answer is that of [12] finished rounds"):
        found = find(3, checkpoint=tmp_path)
    assert (
        found.trace == whole.trace[: len(found.trace)] and len(found.trace) in (1, 2) and len(whole.trace) > 2
    )
    monkeypatch.undo()
    resumed = find(3, checkpoint=tmp_path)
    assert resumed.trace == whole.trace and str(resumed) == str(whole)


def test_the_reason_names_what_judges():
    def gain(params, batch):
        loss = loss_fn(params, batch)
        return {"loss": loss, "gain": -loss}

    least, most = find(1), find(1, eval_fn=gain, metric="gain", mode="max")
    assert least.learning_rate == most.learning_rate
    assert (
        "validation loss after 200 steps is expected to be lowest at this rate, and above that"
        in least.reason
    )
    assert (
        "validation gain after 200 steps is expected to be highest at this rate, and below that"
        in most.reason
    )


def test_where_nothing_is_learned_it_says_so():
    with pytest.warns(UserWarning, match="does not depend on the parameters"):
        found = olr.lr_find(
            lambda params, batch: jnp.mean(batch[0]) + 0 * params.sum(), jnp.zeros(3), optax.adam,
            (INPUTS, TARGETS), horizon=HORIZON, budget=1, **VALIDATION,
        )  # fmt: skip
    assert found.lane_steps <= HORIZON


def test_where_all_is_lost_it_raises():
    with pytest.raises(RuntimeError, match="Every lane diverged"):
        olr.lr_find(
            lambda params, batch: jnp.sqrt(params.sum() - 1.0), jnp.zeros(3), optax.adam, (INPUTS, TARGETS),
            horizon=HORIZON, budget=1, **VALIDATION,
        )  # fmt: skip


def test_a_module_is_searched_by_budget_too():
    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))

    def module_loss(model, batch):
        return jnp.mean((model(batch[0])[:, 0] - batch[1]) ** 2)

    found = olr.nnx.lr_find(
        module_loss, model, optax.adam, (INPUTS, TARGETS), horizon=HORIZON, budget=1, **VALIDATION
    )
    assert found.trace and found.lane_steps <= HORIZON


class Bowl(nnx.Module):
    """The body's curvature is 100 times the head's: plain descent wants 100 times the rate for the head."""

    def __init__(self):
        self.body, self.head = nnx.Param(jnp.zeros(())), nnx.Param(jnp.zeros(()))

    def __call__(self):
        return 50 * (self.body[...] - 1) ** 2 + 0.5 * (self.head[...] - 1) ** 2 + 1e-3


def test_rate_and_head_multiplier_of_a_module_are_found_within_one_budget():
    labels = olr.label_by_path({"head": "head", "body": "body"})
    multipliers, budget, horizon = [1, 10, 100, 1000], 12, 16

    def sgd(learning_rate, head_multiplier):
        return olr.fine_tune(optax.sgd(learning_rate), {"body": 1.0, "head": head_multiplier}, labels)

    def bowl_loss(model, batch):
        return model() + 0 * batch.sum()

    found = olr.nnx.lr_find(
        bowl_loss, Bowl(), sgd, np.zeros((horizon, 1)), lanes=olr.grid(head_multiplier=multipliers),
        horizon=horizon, budget=budget, eval_batch=np.zeros(1), max_learning_rate=0.1, progress=False,
    )  # fmt: skip
    assert found.lane_steps <= budget * horizon
    # Both curvatures times their rates are 1 at a rate of 0.01 and a hundred times that for the head.
    assert found.hyperparameters == {"head_multiplier": 100}
    assert found.low <= 0.01 <= found.high and abs(np.log2(found.learning_rate / 0.01)) < 1.5
    assert f"all 4 together took {found.lane_steps / horizon:.3g} runs" in found.reason
    assert sorted(set(found.combinations.lanes["head_multiplier"])) == multipliers
    axes = found.plot()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("learning_rate", "head_multiplier")
    (star,) = (line for line in axes.lines if line.get_marker() == "*")
    assert star.get_ydata() == pytest.approx([2.5], abs=0.5)  # in the third row
    plt.close(axes.figure)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0}, "budget must be"),
        ({"budget": float("nan")}, "budget must be"),
        ({"budget": 0.001}, "budget must buy 8 steps"),
        ({"horizon": None}, "budget needs horizon"),
        ({"num_steps": 10}, "budget decides num_steps: leave it out, got 10"),
        ({"seeds": 3}, "budget decides seeds"),
        ({"finalists": 3}, "budget decides finalists"),
        ({"max_full_horizon": 50}, "budget decides max_full_horizon"),
        ({"tolerance": -1}, "tolerance must be"),
        ({"max_rounds": 0}, "max_rounds must be"),
        ({"budget": None, "tolerance": 0.1, "seeds": 2}, "tolerance needs a budget"),
        ({"budget": None, "max_rounds": 2, "finalists": 1}, "max_rounds needs a budget"),
    ],
)
def test_wrong_arguments_are_refused(unhooked, options, message):
    with pytest.raises(ValueError, match=message):
        find(**options)
