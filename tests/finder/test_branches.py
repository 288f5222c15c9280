"""`lr_refind(budget=)`: what its branches cost and are, when it goes on, and where it looks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lowerings import count_lowerings

import optax_lr as olr
from optax_lr.engine.runs import Reference, Runs
from optax_lr.finder import tables
from optax_lr.finder.branches import Branches
from optax_lr.finder.policy import AllDivergedError, Bounds
from optax_lr.finder.spending import Spending

HORIZON = 100
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(HORIZON, 16, 3)).astype(np.float32)
TARGETS = INPUTS @ np.array([1.0, -2.0, 0.5], np.float32)
VALIDATION = INPUTS[-1], TARGETS[-1]
NOW = 0.01


def loss_fn(params, batch):
    return jnp.mean((batch[0] @ params - batch[1]) ** 2)


def with_state(params, count, batch):
    return loss_fn(params, batch), count + 1


def refind(budget=2, now=NOW, loss=loss_fn, optimizer=optax.adam, **options):
    given = {"horizon": HORIZON, "eval_batch": VALIDATION, **options}
    return olr.lr_refind(
        loss, jnp.zeros(3), optimizer, (INPUTS, TARGETS), learning_rate=now, budget=budget, **given
    )


FORMS = {
    "validated": {},
    "training loss": {"eval_batch": None},
    "model state": {"loss": with_state, "model_state": jnp.zeros(())},
    "decaying": {"decay_steps": 20},
    "from a high rate": {"now": 10.0},
}


@pytest.mark.parametrize("budget", [0.1, 1, 3, 8])
@pytest.mark.parametrize("form", FORMS)
def test_no_budget_is_overspent_and_the_answer_lies_within_a_factor_of_100(form, budget):
    now = FORMS[form].get("now", NOW)
    found = refind(budget=budget, **FORMS[form])
    assert found.lane_steps <= budget * HORIZON
    assert 0 < found.low <= found.learning_rate <= found.high < np.inf
    assert now / 100 <= found.learning_rate <= now * 100
    assert found.trace[-1].price * HORIZON == found.lane_steps
    last = found.trace[-1]
    assert (last.learning_rate, last.low, last.high) == (found.learning_rate, found.low, found.high)


def searched(loss_of, budget=3.0, untrained=1.0):
    """The answer of the policy, and its belief, on runs of a closed form of octave, steps and seed."""
    spend = Spending(budget, 1000)
    policy = Branches(Bounds(NOW / 100, NOW * 100), spend, lambda steps: tables.constant, now=NOW)
    runs = Runs(("loss",), ("loss",))
    runs.reference = Reference(np.arange(8), {}, {"loss": np.full((8, 1), untrained, np.float32)}, (1,), 0)
    while (asked := policy.ask(runs)) is not None:
        for row in map(int, runs.append(asked.plan)):
            steps, seed = (int(runs.columns[name][row]) for name in ("steps", "seed"))
            loss = loss_of(np.log2(runs.lanes["learning_rate"][row] / NOW), steps, seed)
            runs.evals["loss"][row, 0] = runs.metrics["loss"][row, :steps] = loss
            runs.end(row, steps, -1 if np.isfinite(loss) else steps - 1, 0)
    return policy.answer(runs), policy, runs


@pytest.mark.parametrize("budget", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_answer_is_no_worse_than_going_on(seed, budget):
    """Bowls that drift with the length, at random places."""
    best, drift, width = np.random.default_rng(seed).uniform([-4, 0, 0.02], [4, 0.8, 0.1])

    def loss_of(octave, steps, seed):
        middle = best + drift * np.log2(1000 / steps)
        return 0.2 + 0.1 * np.log2(1000 / steps) * width + width * (octave - middle) ** 2 / 4

    found, *_ = searched(loss_of, budget)
    octave = np.log2(found.learning_rate / NOW)
    assert loss_of(octave, 1000, 0) <= 1.001 * loss_of(0.0, 1000, 0)
    if abs(best) > 2 and budget > 1:
        assert abs(octave - best) <= 1.5 and found.low / NOW <= 2.0 ** (best + 0.5)


@pytest.mark.parametrize("budget", [1.0, 3.0])
def test_what_cannot_be_told_from_going_on_is_to_go_on(budget):
    """At the best rate; and where all rates are alike."""
    at_best, *_ = searched(lambda octave, steps, seed: 0.3 + 0.02 * octave**2, budget)
    alike, *_ = searched(lambda octave, steps, seed: 0.3, budget)
    for found in (at_best, alike):
        assert found.learning_rate == NOW and found.low <= NOW <= found.high and not found.at_edge
        assert found.reason.startswith("Go on at the present rate")


def test_the_present_rate_is_among_the_first_long_branches():
    _, policy, runs = searched(lambda octave, steps, seed: 0.3 + 0.02 * (octave - 2) ** 2)
    short, long = policy.lengths
    assert runs.lanes["learning_rate"][runs.columns["steps"] == short].min() == pytest.approx(NOW / 16)
    first = runs.where(round=1)
    assert np.isclose(first.lanes["learning_rate"], NOW).any() and set(first.columns["steps"]) == {long}


@pytest.mark.parametrize("best", [-3.0, 0.0, 2.0])
def test_the_first_long_branches_lie_around_the_best_rate(best):
    # Rates that did far worse are no longer compared, so the best one is another of fewer.
    def loss_of(octave, steps, seed):
        return 0.3 + (octave - best - 0.5 * np.log2(1000 / steps)) ** 2

    _, _, runs = searched(loss_of, untrained=20.0)
    octaves = np.log2(runs.where(round=1).lanes["learning_rate"] / NOW)
    assert len(octaves) == 3 and abs(octaves[0] - best) <= 1


def test_a_rate_that_gets_worse_than_all_is_left_for_less_and_it_is_said_so():
    found, *_ = searched(lambda octave, steps, seed: 1.0 + 0.1 * 2.0**octave)
    assert found.learning_rate < NOW / 2
    assert "No rate got the validation loss below what it is now" in found.reason


def test_where_all_short_branches_diverge_lower_rates_are_tried():
    found, _, runs = searched(lambda octave, *_: 0.5 if octave < -5 else np.nan)
    assert found.learning_rate < NOW / 16 and len(found.trace) == runs.rounds - 1
    with pytest.raises(AllDivergedError):
        searched(lambda *_: np.nan)


def test_branches_go_on_from_the_present_state_and_decay_in_the_same_share():
    optimizer = lambda rate: optax.sgd(rate, momentum=0.9)  # noqa: E731
    state = jax.tree.map(lambda leaf: leaf + 0.1, optimizer(NOW).init(jnp.zeros(3)))
    found = refind(optimizer=optimizer, opt_state=state, decay_steps=50)
    for curve in (*found.shorter, found.curve):
        steps = curve.losses.shape[-1]

        def schedule(peak, steps=steps):
            decay = optax.linear_schedule(peak, 0.0, steps // 2)
            return optax.join_schedules([optax.constant_schedule(peak), decay], [steps - steps // 2])

        swept = olr.lr_sweep(
            loss_fn, jnp.zeros(3), optimizer, (INPUTS, TARGETS), learning_rates=curve.learning_rates,
            opt_state=state, eval_batch=VALIDATION, num_steps=steps, schedule=schedule, seeds=1, stop_factor=1e6,
            progress=False,
        )  # fmt: skip
        if steps % 2 == 0:
            np.testing.assert_allclose(curve.eval_losses[:1, :, -1], swept.eval_losses[..., -1], rtol=1e-4)
    assert any(curve.losses.shape[-1] % 2 == 0 for curve in (*found.shorter, found.curve))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_a_branch_is_constant_and_then_linear_to_zero(share):
    steps, rates = 20, np.array([0.5, 2.0])
    decay = round(share * steps)
    parts = optax.constant_schedule(1.0), optax.linear_schedule(1.0, 0.0, max(decay, 1))
    wanted = [optax.join_schedules(parts, [steps - decay])(step) for step in range(steps)]
    np.testing.assert_allclose(tables.branch(rates, steps, share), rates[:, None] * wanted, rtol=1e-6)


def test_a_second_call_compiles_nothing():
    refind()
    with count_lowerings() as lowered:
        refind(now=0.03, horizon=HORIZON + 9)  # below the same power of two
    assert "train" not in " ".join(lowered)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"budget": 0}, "budget must be"),
        ({"budget": 0.05}, "budget must buy 10 steps"),
        ({"horizon": None}, "budget needs horizon"),
        ({"num_steps": 5}, "budget decides num_steps"),
        ({"num_rates": 5}, "budget decides num_rates"),
        ({"seeds": 2}, "budget decides seeds"),
        ({"decay_steps": HORIZON + 1}, "decay_steps must be at most horizon=100, got 101"),
        ({"decay_steps": -1}, r"decay_steps must be a whole number of steps from 0 to 2\^31 - 1, got -1"),
        ({"decay_steps": 5, "budget": None}, "decay_steps needs a budget"),
    ],
)
def test_wrong_input_gets_one_sentence(unhooked, options, sentence):
    given = {"horizon": HORIZON, "budget": 2, "eval_batch": VALIDATION, **options}
    with pytest.raises(ValueError, match=sentence):
        unhooked.lr_refind(loss_fn, jnp.zeros(3), optax.adam, (INPUTS, TARGETS), learning_rate=NOW, **given)
