"""`compare`: its winners are a grid's, at a third of the price; the table, the pairs, the failures."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from sklearn.datasets import load_breast_cancer, load_digits

import optax_lr as olr

STEPS, GRID, SEEDS = 160, np.geomspace(1e-5, 10.0, 13), 5


def momentum(rate):
    return optax.sgd(rate, momentum=0.9)


def one_cycle(peak):
    return olr.one_cycle_schedule(peak, STEPS)


def rows(inputs, targets, size):
    """Batches drawn from the first 400 rows, and the others to validate with."""
    draw = np.random.default_rng(0).integers(0, 400, (STEPS, size))
    return (inputs[draw], targets[draw]), (inputs[400:600], targets[400:600])


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def digits():
    images, labels = load_digits(return_X_y=True)

    def init(key):
        one, two = jax.random.split(key)
        return {"in": jax.random.normal(one, (64, 12)) / 8, "out": jax.random.normal(two, (12, 10)) / 4}

    def loss_fn(params, batch):
        return cross_entropy(jnp.tanh(batch[0] @ params["in"]) @ params["out"], batch[1])

    return loss_fn, init, *rows(np.float32(images / 16), labels, 16)


def logistic():
    inputs, labels = load_breast_cancer(return_X_y=True)
    scaled = np.float32((inputs - inputs.mean(0)) / inputs.std(0))

    def loss_fn(params, batch):
        return cross_entropy(batch[0] @ params["w"] + params["b"], batch[1])

    return loss_fn, {"w": jnp.zeros((30, 2)), "b": jnp.zeros(2)}, *rows(scaled, labels, 8)


def quadratic():
    scales = jnp.asarray(np.geomspace(0.01, 1.0, 10), jnp.float32)
    noise = 0.1 * np.random.default_rng(0).normal(size=(STEPS, 10)).astype(np.float32)

    def loss_fn(w, shift):
        return 0.5 * jnp.sum(scales * (w - shift) ** 2)

    return loss_fn, jnp.ones(10), noise, np.zeros(10, np.float32)


CANDIDATES = {"adam": optax.adam, "sgd": optax.sgd, "momentum, one-cycle": (momentum, one_cycle)}


def by_hand(problem):
    """The mean loss of each candidate at the best rate of a grid, and the steps of one candidate."""
    loss_fn, init, batches, valid = problem
    found = {}
    for name, candidate in CANDIDATES.items():
        factory, schedule = candidate if isinstance(candidate, tuple) else (candidate, None)
        curve = olr.lr_sweep(
            loss_fn, init, factory, batches, learning_rates=GRID, num_steps=STEPS, schedule=schedule,
            seeds=SEEDS, eval_batch=valid, progress=False,
        )  # fmt: skip
        found[name] = np.nanmin(np.where(curve.stable, curve.eval_losses[..., -1].mean(0), np.nan))
    return found, len(CANDIDATES) * len(GRID) * SEEDS * STEPS


@pytest.mark.parametrize("make", [digits, logistic, quadratic])
def test_the_winner_is_that_of_a_grid_by_hand_at_a_third_of_its_price(make):
    problem = make()
    grid, price = by_hand(problem)
    loss_fn, init, batches, valid = problem
    compared = olr.compare(
        loss_fn, init, CANDIDATES, batches, eval_batch=valid, horizon=STEPS, progress=False
    )
    assert compared.best == min(grid, key=grid.get)
    assert compared.lane_steps < price / 3


def test_peaks_may_be_found_by_budget():
    loss_fn, init, batches, valid = quadratic()
    compared = olr.compare(
        loss_fn, init, {"sgd": optax.sgd}, batches, eval_batch=valid, horizon=STEPS, seeds=2, search={"budget": 2},
        progress=False,
    )  # fmt: skip
    assert compared.lane_steps <= (2 + 2) * STEPS and compared.found["sgd"].trace


@pytest.fixture(scope="module")
def compared():
    loss_fn, init, batches, valid = digits()

    def eval_fn(params, batch):
        logits = jnp.tanh(batch[0] @ params["in"]) @ params["out"]
        return {"loss": cross_entropy(logits, batch[1]), "error": jnp.mean(logits.argmax(-1) != batch[1])}

    loaded = list(zip(*batches, strict=True))
    return olr.compare(
        loss_fn, init, {"sgd": optax.sgd, "one-cycle": (optax.sgd, one_cycle)}, iter(loaded), eval_batch=valid,
        eval_fn=eval_fn, metric="error", seeds=3, progress=False,
    )  # fmt: skip


def test_runs_are_those_of_a_sweep_at_the_found_peak(compared):
    loss_fn, init, batches, valid = digits()
    for name, schedule in (("sgd", None), ("one-cycle", one_cycle)):
        runs = compared.runs[name]
        assert compared.peak(name) == pytest.approx(compared.found[name].learning_rate)
        again = olr.lr_sweep(
            loss_fn, init, optax.sgd, batches, learning_rates=[compared.peak(name)], schedule=schedule, seeds=3,
            num_steps=STEPS, eval_batch=valid, progress=False,
        )  # fmt: skip
        np.testing.assert_allclose(compared.losses(name), again.eval_losses[:, 0, -1], rtol=1e-5)
        assert runs.losses.shape == (3, 1, STEPS) and len(runs.eval_steps) == 20
    # Paired: all candidates have the same starts, and read the same batches first.
    first = [compared.runs[name].losses[:, 0, 0] for name in compared.names]
    np.testing.assert_array_equal(*first)
    assert len(set(first[0].tolist())) == 3


def test_a_difference_is_a_paired_t_test(compared):
    pair = compared.losses("one-cycle"), compared.losses("sgd")
    test = scipy.stats.ttest_rel(*pair)
    found, interval = compared.difference("one-cycle"), test.confidence_interval()
    np.testing.assert_allclose(found, (np.mean(pair[0] - pair[1]), interval.low, interval.high), rtol=1e-6)
    assert (found.word == "even") == (test.pvalue > 0.05)
    assert compared.difference("sgd") == (0, 0, 0)


def test_what_is_said_is_what_was_measured(compared):
    header, *lines, end = str(compared).splitlines()
    for name, line in zip(compared.names, lines, strict=True):
        assert line.startswith(name) and f"{compared.peak(name):.3g}" in line
        assert f"{compared.losses(name).mean():.4g} ± " in line
        assert f"{compared.metrics(name).mean():.4g}" in line
        low, high = compared.good_rates(name)
        assert f"{low:.2g} to {high:.2g}" in line and low <= compared.found[name].learning_rate <= high
    assert "validation loss" in header and "error" in header and "difference to sgd" in header
    assert f"Lowest: {compared.best}." in end and f"{compared.lane_steps:,}" in end
    said = json.loads(json.dumps(compared.to_dict()))
    assert said["best"] == compared.best and said["target"] == pytest.approx(compared.losses("sgd").mean())
    assert said["candidates"]["sgd"]["steps_to_target"] == compared.steps_to_target("sgd")
    steps, losses = compared.history("sgd")
    reached = compared.steps_to_target("sgd")
    assert losses.mean(0)[steps == reached] <= compared.target < losses.mean(0)[steps < reached].min()


def test_training_losses_judge_where_there_are_no_validation_data():
    loss_fn, start, batches, _ = logistic()
    with pytest.warns(UserWarning, match="horizon without eval_batch"):
        compared = olr.compare(loss_fn, start, {"sgd": optax.sgd}, batches, horizon=40, seeds=2,
                               target=0.0, progress=False)  # fmt: skip
    runs = compared.runs["sgd"]
    np.testing.assert_allclose(compared.losses("sgd"), runs.losses[:, 0, 30:].mean(-1), rtol=1e-6)
    assert compared.steps_to_target("sgd") is None and "never" in str(compared)
    steps, losses = compared.history("sgd")
    np.testing.assert_allclose(losses[:, 0], runs.losses[:, 0, :2].mean(-1), rtol=1e-6)
    assert steps[0] == 2 and steps[-1] == 40


def never(rate):
    """An optimizer that makes NaN of all parameters."""
    return optax.chain(optax.sgd(rate), optax.scale(float("nan")))


def test_a_candidate_that_diverges_harms_no_other():
    loss_fn, start, batches, valid = quadratic()
    given = {"eval_batch": valid, "horizon": 20, "seeds": 2, "progress": False}
    compared = olr.compare(loss_fn, start, {"broken": never, "sgd": optax.sgd}, batches, **given)
    assert compared.best == "sgd" and "diverged" in str(compared).splitlines()[1]
    assert compared.peak("broken") is compared.difference("broken") is None
    assert compared.first == "sgd" and "difference to sgd" in str(compared)
    assert compared.target == pytest.approx(compared.losses("sgd").mean())
    assert json.loads(json.dumps(compared.to_dict()))["candidates"]["broken"]["loss"] is None
    with pytest.raises(RuntimeError, match="Every lane diverged"):
        olr.compare(loss_fn, start, {"broken": never}, batches, **given)


def test_a_candidate_that_learns_nothing_has_no_good_rates():
    loss_fn, start, batches, valid = quadratic()
    still = {"still": lambda rate: optax.chain(optax.sgd(rate), optax.scale(0.0)), "sgd": optax.sgd}
    with pytest.warns(UserWarning, match="does not depend on the parameters"):
        compared = olr.compare(
            loss_fn, start, still, batches, eval_batch=valid, horizon=20, seeds=2, progress=False
        )
    assert compared.best == "sgd" and compared.good_rates("still") is None and compared.good_rates("sgd")
    assert "no rate learned" in str(compared).splitlines()[1]
    assert compared.to_dict()["candidates"]["still"]["good_rates"] is None


class OwnWarning(UserWarning):
    """Of a user's loss."""


def test_a_warning_names_its_candidate_at_the_line_of_the_caller(unhooked):
    loss_fn, start, batches, _ = quadratic()

    def warning(w, shift):
        warnings.warn("my own", OwnWarning, stacklevel=1)
        return loss_fn(w, shift)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        unhooked.compare(
            warning, start, {"one": optax.sgd, "broken": never}, batches, horizon=20, seeds=2, progress=False
        )
    said = [str(each.message) for each in caught if each.category is UserWarning]
    assert [each.partition(" horizon without")[0] for each in said] == [
        "candidate 'one':",
        "candidate 'broken':",
    ]
    assert {each.filename for each in caught} == {__file__}
    assert "my own" in [str(each.message) for each in caught if each.category is OwnWarning]


def test_a_peak_at_which_a_seed_diverges_is_halved(compared):
    from optax_lr.finder.compare import _at_peak
    from optax_lr.finder.search import EveryLaneDivergedError

    tried = []

    def sweep(peak, part):
        tried.append(peak)
        if peak > 0.3:
            raise EveryLaneDivergedError
        return compared.runs["sgd"]

    assert _at_peak(sweep, 1.0) == (compared.runs["sgd"], 2) and tried == [1.0, 0.5, 0.25]
    with pytest.raises(EveryLaneDivergedError):
        _at_peak(sweep, 10.0)


def test_a_comparison_goes_on_from_its_checkpoints(tmp_path):
    loss_fn, start, batches, valid = quadratic()
    given = {"eval_batch": valid, "horizon": 20, "seeds": 2, "progress": False, "checkpoint": tmp_path}
    one = olr.compare(loss_fn, start, {"sgd": optax.sgd, "adam": optax.adam}, batches, **given)
    two = olr.compare(loss_fn, start, {"sgd": optax.sgd, "adam": optax.adam}, batches, **given)
    assert str(one) == str(two)
    assert {"0-find", "0-runs-0", "1-find", "1-runs-0"} == {folder.name for folder in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"candidates": {}}, "candidates must be a dict"),
        (
            {"candidates": {"adam": optax.adam(0.1)}},
            r"candidates\['adam'\] must be a function of the learning",
        ),
        ({"candidates": {"a": (optax.adam, 0.1)}}, "and a function of the peak to a schedule"),
        ({"seeds": 1}, "seeds must be at least 2"),
        ({"horizon": None}, "horizon must be given"),
        ({"metric": "error", "horizon": 20}, "metric 'error' is not reported"),
    ],
)
def test_what_cannot_be_compared_is_refused(unhooked, changes, sentence):
    loss_fn, start, batches, valid = quadratic()
    given = {
        "candidates": {"sgd": optax.sgd},
        "horizon": 20,
        "eval_batch": valid,
        "progress": False,
        **changes,
    }
    with pytest.raises(ValueError, match=sentence):
        unhooked.compare(loss_fn, start, given.pop("candidates"), batches, **given)


def bowl(rates):
    """Losses over rates that are lowest at 0.1."""
    losses = (1 + np.log10(rates / 0.1) ** 2).astype(np.float32)[None, :, None]
    return olr.LRCurve(rates, losses, None, np.zeros(0, np.int32), np.full((1, len(rates)), -1, np.int32))


def test_good_rates_are_those_within_a_tenth_of_the_lowest_loss():
    found = olr.suggest.lowest_loss(bowl(np.geomspace(1e-3, 10, 401)))
    compared = olr.Comparison({"sgd": found}, {"sgd": bowl(np.array([0.1]))}, target=1.0)
    decades = 0.1**0.5
    np.testing.assert_allclose(compared.good_rates("sgd"), (0.1 / 10**decades, 0.1 * 10**decades), rtol=2e-3)
