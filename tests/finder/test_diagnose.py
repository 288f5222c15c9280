"""Verdicts on histories: closed forms, invariances, noise, what is refused, and real runs."""

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
        np.testing.assert_allclose(verdict.measure, measure, rtol=1e-9, atol=1e-14)
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
    assume("diverged" not in (plain.kind, shifted.kind))
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
