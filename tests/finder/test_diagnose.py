"""Verdicts on histories: closed forms, invariances, noise, what is refused, and real runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import optax_lr as olr

STEPS = 120
LINE = 10.0 - np.arange(STEPS)


def exponential(rate, steps=STEPS):
    return np.exp(-rate * np.arange(steps) / steps)


def late_share(history):
    """(B - C) / (top - C), from its definition alone."""
    n = len(history)
    first = np.mean(history[: max(1, n // 20)])
    thirds = [np.mean(history[start : start + n // 3]) for start in range(0, n, n // 3)]
    return (thirds[1] - thirds[2]) / (first - thirds[2])


@pytest.mark.parametrize(
    ("losses", "kind", "measure"),
    [
        # The centers of the thirds and of the first twentieth of 120 steps are 59.5, 99.5 and 2.5.
        (LINE, "too low", 40 / 97),
        (exponential(2.0), "too low", late_share(exponential(2.0))),
        (exponential(5.0), "healthy", late_share(exponential(5.0))),
        (1 + exponential(60.0), "plateaued", late_share(exponential(60.0))),
        (np.ones(STEPS), "too low", np.nan),
        # Down by 1, then up and down by 0.9 nine times: rises of 8.1 against a fall that is kept.
        (np.r_[1.0, np.tile(np.repeat([0.0, 0.9], 6), 10)[:-1]], "too high", None),
        (np.r_[1.0, 9.0, np.ones(STEPS - 2)], "too high", None),
        (1.1 ** np.arange(STEPS), "diverged", None),
        (np.where(np.arange(STEPS) < 30, LINE, np.nan), "diverged", 30 / STEPS),
        (np.where(np.arange(STEPS) < 30, LINE, np.inf), "diverged", 30 / STEPS),
    ],
    ids="line slow fast flat still swings jump explodes nan inf".split(),
)
def test_closed_forms(losses, kind, measure):
    verdict = olr.diagnose(losses)
    assert verdict.kind.shape == () and str(verdict.kind) == kind
    if measure is not None:
        np.testing.assert_allclose(verdict.measure, measure, rtol=1e-9, atol=1e-9)
    else:
        assert 0 <= verdict.measure <= 1


def test_validation_losses_decide():
    train, half = exponential(5.0), np.linspace(0, 1, 20)
    falls = exponential(5.0, 20)
    opens = np.where(half < 0.5, 1 - half, half)
    swings = 0.5 + 0.4 * np.cos(np.pi * np.arange(20))
    verdicts = olr.diagnose(np.stack([train] * 3), np.stack([falls, opens, swings]))
    assert verdicts.kind.tolist() == ["healthy", "overfitting", "too high"]
    # The last tenth, two of twenty, against the lowest, over the range from where training began.
    lowest, top = opens.min(), max(np.mean(train[:6]), opens.max())
    np.testing.assert_allclose(verdicts.measure[1], (opens[-2:].mean() - lowest) / (top - lowest))
    # A validation loss that rises beside a training loss that does, too, is no sign of a gap.
    assert olr.diagnose(np.r_[train, np.linspace(0, 1, 120)], opens).kind == "too high"
    # Few of them show a gap, though not how the loss moved.
    assert olr.diagnose(train, [0.6, 0.5, 0.7]).kind == "overfitting"
    assert olr.diagnose(train, [0.6, 0.5, 0.4]).kind == "healthy"
    assert olr.diagnose(train, np.where(half < 0.5, half, np.nan)).kind == "diverged"


@pytest.mark.parametrize(
    ("level", "noise", "kind"),
    [
        (0.5 + 0.5 * exponential(6.0, 400), 0.1, {"healthy", "plateaued"}),
        (0.5 + 3 * exponential(100.0, 400), 0.1, {"plateaued"}),
        (1 - 0.8 * np.arange(400) / 400, 0.1, {"too low"}),
        (1 - 0.001 * np.arange(400) / 400, 0.1, {"too low"}),
        (0.5 + 0.4 * np.cos(np.arange(400) / 10), 0.1, {"too high"}),
    ],
    ids="healthy plateaued falling still swinging".split(),
)
def test_noise_of_batches_is_no_swing_of_the_loss(level, noise, kind):
    losses = level + noise * np.random.default_rng(0).normal(size=(200, 400))
    assert np.isin(olr.diagnose(losses).kind, list(kind)).mean() >= 0.9


NOISES = {
    "chi-squared": lambda draw, shape: draw.chisquare(1, shape),
    "lognormal": lambda draw, shape: draw.lognormal(0, 1, shape),
    "student": lambda draw, shape: 1 + 0.5 * draw.standard_t(3, shape),
    "normal": lambda draw, shape: 1 + 0.5 * draw.normal(size=shape),
}
DECAY = 0.1 + 0.9 * exponential(8.0, 400)


@pytest.mark.parametrize("name", NOISES)
def test_a_healthy_decay_is_seen_through_the_noise_of_single_samples(name):
    draw = np.random.default_rng(1)
    losses = DECAY * NOISES[name](draw, (200, 400))
    assert np.isin(olr.diagnose(losses).kind, ["healthy", "plateaued"]).mean() >= 0.9
    evals = DECAY[19::20] * (1 + 0.01 * draw.normal(size=(200, 20)))
    assert (olr.diagnose(losses, evals).kind == "healthy").mean() >= 0.9
    assert (olr.diagnose((1 - 0.5 * np.linspace(0, 1, 400)) * losses / DECAY).kind == "too low").mean() >= 0.8


def test_bad_batches_are_not_divergence():
    draw = np.random.default_rng(0)
    losses = DECAY + 0.05 * draw.normal(size=(100, 400))
    losses[:, 25::50] = 900 + 300 * draw.normal(size=(100, 8))
    evals = np.broadcast_to(DECAY[19::20], (100, 20))
    for said in (olr.diagnose(losses), olr.diagnose(losses, evals)):
        assert np.isin(said.kind, ["healthy", "plateaued"]).mean() >= 0.9
    # The same at a rate at which nothing moves.
    still = losses - DECAY + 1
    assert (olr.diagnose(still, np.ones((100, 20))).kind == "too low").mean() >= 0.9
    # A finite training loss that rises without bound is no divergence while validation falls.
    rising = np.broadcast_to(1.1 ** np.arange(400.0), (100, 400))
    assert not (olr.diagnose(rising, evals).kind == "diverged").any()
    assert (olr.diagnose(rising, evals[:, ::-1]).kind == "diverged").all()


@pytest.mark.parametrize("level", [np.ones(400), DECAY], ids=["still", "decay"])
@pytest.mark.parametrize("count", [5, 10, 20])
def test_validation_on_a_random_batch_each_time_has_the_noise_of_training(level, count):
    draw = np.random.default_rng(2)
    noise = 0.05 if level is DECAY else 0.1
    losses = level + noise * draw.normal(size=(200, 400))
    every = 400 // count
    evals = level[every - 1 :: every] + noise * draw.normal(size=(200, count))
    right = ["too low"] if level is not DECAY else ["healthy", "plateaued"]
    assert np.isin(olr.diagnose(losses, evals).kind, right).mean() >= 0.85
    # A fixed set: each evaluation counts.
    fixed = np.broadcast_to(level[every - 1 :: every], evals.shape)
    assert np.isin(olr.diagnose(losses, fixed).kind, right).mean() >= 0.95


@pytest.mark.parametrize("tau", [300, 500, 1000])
def test_a_flat_validation_loss_is_no_reason_to_raise_the_rate(tau):
    steps = np.arange(1000)
    noise = 0.02 * np.random.default_rng(0).normal(size=1000)
    evals = 1 + np.exp(-np.linspace(0, 999, 20) / 80)
    assert olr.diagnose(2 * np.exp(-steps / tau) + noise, evals).kind == "plateaued"


def test_what_one_history_cannot_tell_is_said():
    solved = olr.diagnose(np.r_[exponential(3.0), np.zeros(STEPS)])
    assert (
        solved.kind == "solved" and "0" in str(solved.reason) and olr.diagnose(np.zeros(100)).kind == "solved"
    )
    assert olr.diagnose(np.r_[-1.0, np.zeros(99)]).kind != "solved"
    # From an optimum, nothing falls: no advice to raise the rate.
    losses = 0.3 + 0.1 * np.random.default_rng(0).normal(size=(100, 1000))
    said = olr.diagnose(losses)
    untold = np.char.find(said.advice, "cannot be told from an optimum") >= 0
    assert untold.mean() >= 0.9 and (np.char.find(said.advice, "raise") >= 0).mean() <= 0.02


def curve_of(finals, *, evals=20, rates=None, seeds=2, bounce=0.0, dead=(), tau=10):
    """Runs that fall from 2.6 to their final loss; the last two may bounce, and dead ones are at chance."""
    steps, lanes = 200, len(finals)
    decay = np.exp(-np.arange(steps + 1) / tau)
    level = np.array(finals)[:, None] + (2.6 - np.array(finals))[:, None] * decay
    level[:, 1:] += (
        bounce * np.cos(np.pi * np.arange(1, steps + 1) / 10) * (np.arange(lanes) >= lanes - 2)[:, None]
    )
    level[list(dead), 1:] = 2.303
    draw = np.random.default_rng(0)
    losses = level[:, :-1] + 0.02 * draw.normal(size=(seeds, lanes, steps))
    at = np.arange(1, evals + 1) * (steps // evals)
    valid = np.broadcast_to(level[:, at], (seeds, lanes, evals)) + 0.001 * draw.normal(size=(seeds, lanes, 1))
    return olr.LRCurve(
        np.geomspace(0.001, 10, lanes) if rates is None else rates,
        losses.astype(np.float32), valid.astype(np.float32), at.astype(np.int32),
        np.full((seeds, lanes), -1, np.int32),
    )  # fmt: skip


@pytest.mark.parametrize("evals", [5, 10, 20])
def test_lanes_of_a_curve_are_compared(evals):
    verdict = olr.diagnose(curve_of([2.5, 1.8, 0.5, 0.1, 0.11, 0.7, 1.0, 2.0], evals=evals, dead=[6, 7]))
    expected = ["too low", "too low", "too low", "plateaued", "plateaued", "too high", "too high", "too high"]
    assert verdict.kind.tolist() == [expected] * 2
    assert "of the fall of the best rate, which is lower" in str(verdict.reason[0, 7])
    # Two bouncing lanes: how often they are evaluated does not matter.
    bouncing = olr.diagnose(curve_of([2.0, 0.1, 0.6, 0.9], evals=evals, bounce=0.3))
    assert bouncing.kind.tolist() == [["too low", "plateaued", "too high", "too high"]] * 2


def test_a_lane_that_ends_far_above_the_best_is_not_overfitting():
    curve = curve_of([1.5, 0.1, 0.6], tau=40)
    rising = curve.eval_losses.copy()
    rising[:, 2] = np.r_[np.linspace(2, 0.3, 10), np.linspace(0.35, 0.7, 10)]
    curve = dataclasses.replace(curve, eval_losses=rising)
    assert olr.diagnose(curve.losses, curve.eval_losses).kind[0, 2] == "overfitting"
    assert olr.diagnose(curve).kind[0].tolist() == ["too low", "healthy", "too high"]


def test_a_curve_of_more_axes_compares_rates_alone():
    one = curve_of([2.0, 0.1, 1.5])
    both = one.merge(
        dataclasses.replace(one, losses=one.losses[:, ::-1], eval_losses=one.eval_losses[:, ::-1])
    )
    decay = np.tile([0.0, 0.1], 3)
    verdict = olr.diagnose(dataclasses.replace(both, hyperparameters={"weight_decay": decay}))
    for part in (slice(0, None, 2), slice(1, None, 2)):
        assert verdict.kind[0, part].tolist() == ["too low", "plateaued", "too high"]


def test_a_curve_brings_its_own_validation(unhooked):
    curve = curve_of([1.0, 0.5])
    with pytest.raises(ValueError, match="must not be given beside a curve"):
        unhooked.diagnose(unhooked.LRCurve(**vars(curve)), curve.eval_losses)
    stopped = dataclasses.replace(curve, diverged_at=np.array([[-1, 50]] * 2, np.int32))
    said = olr.diagnose(stopped)
    assert said.kind[:, 1].tolist() == ["diverged"] * 2 and said.measure[0, 1] == 0.25


histories = st.lists(st.integers(-64, 64), min_size=4, max_size=60).map(lambda x: np.array(x) / 8)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(histories, st.none() | histories, st.integers(-20, 20), st.integers(-50, 50))
def test_units_do_not_matter(losses, evals, power, shift):
    def verdict(change):
        return olr.diagnose(change(losses), None if evals is None else change(evals))

    plain, scaled = verdict(lambda x: x), verdict(lambda x: x * 2.0**power)
    assert plain.kind == scaled.kind
    np.testing.assert_array_equal(plain.measure, scaled.measure)
    shifted = verdict(lambda x: x + 1000 + shift)
    # A loss of 0 and a blow-up have a unit.
    assume(not {"diverged", "solved"} & {str(plain.kind), str(shifted.kind)})
    assert plain.kind == shifted.kind
    np.testing.assert_allclose(plain.measure, shifted.measure, atol=1e-9)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.booleans(), st.integers(3, 60))
def test_lanes_do_not_see_each_other(seed, with_evals, steps):
    draw = np.random.default_rng(seed)
    losses, evals = draw.normal(size=(2, 3, steps)).cumsum(-1), draw.normal(size=(2, 3, 8)).cumsum(-1)
    losses[1, 1, steps // 2], evals[0, 2, 5] = np.nan, np.inf
    whole = olr.diagnose(losses, evals if with_evals else None)
    assert whole.kind.shape == whole.measure.shape == (2, 3)
    assert whole.kind[1, 1] == "diverged" and (not with_evals or whole.kind[0, 2] == "diverged")
    for lane in np.ndindex(2, 3):
        alone = olr.diagnose(losses[lane], evals[lane] if with_evals else None)
        assert alone.kind == whole[lane].kind
        np.testing.assert_array_equal(alone.measure, whole.measure[lane])
        assert np.isfinite(alone.measure) or alone.kind == "too low"


@pytest.mark.parametrize(
    ("losses", "evals", "sentence"),
    [
        ([], None, r"losses must be of shape \[\*lanes, steps\], at least 3 of them, got \(0,\)\."),
        (1.0, None, r"losses must be .* got \(\)\."),
        ([[2.0, 1.0]], None, r"losses must be .* got \(1, 2\)\."),
        (np.ones((0, 5)), None, r"losses must be .* got \(0, 5\)\."),
        (["a", "b", "c"], None, r"losses must be an array of numbers, got \['a', 'b', 'c'\]\."),
        ([3, 2, 1], [], r"eval_losses must be of shape \[\*lanes, evals\], at least 1 of them, got \(0,\)\."),
        ([3, 2, 1], [[1.0]], r"eval_losses must have lanes of shape \(\), as losses have, got \(1,\)\."),
    ],
)
def test_refusals(unhooked, losses, evals, sentence):
    with pytest.raises(ValueError, match=sentence):
        unhooked.diagnose(losses, evals)


@pytest.fixture(scope="module")
def least_squares():
    """Noisy batches, at rates from far too low to far too high; the largest stable one swings."""
    key = jax.random.key(0)
    x = jax.random.normal(key, (120, 16, 8)) * jnp.geomspace(1, 0.2, 8)
    y = x @ jnp.ones(8) + 0.3 * jax.random.normal(jax.random.fold_in(key, 1), (120, 16))
    return olr.lr_sweep(
        lambda w, batch: jnp.mean((batch[0] @ w - batch[1]) ** 2),
        jnp.zeros(8),
        optax.sgd,
        (x, y),
        learning_rates=[1e-4, 1e-3, 0.03, 0.06, 0.25, 0.9, 2.0],
        eval_batch=(x[:20].reshape(320, 8), y[:20].reshape(320)),
        eval_every=6,
        progress=False,
    )


def test_real_runs(least_squares):
    expected = ["too low", "too low", "healthy", "healthy", "plateaued", "too high", "diverged"]
    verdicts = olr.diagnose(least_squares.losses, least_squares.eval_losses)
    assert verdicts.kind.tolist() == [expected]
    assert olr.diagnose(least_squares.losses).kind.tolist() == [expected]
