"""The smooth curve through lanes: against scikit-learn's process, beside a steep side, and what must not count."""

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from optax_lr.finder import smooth as module
from optax_lr.finder.comparison import excess, near_best, pooled_deviation
from optax_lr.finder.smooth import lowest, smooth

RATES = 2.0 ** np.arange(-6, 3)
# Steep below its lowest point at 1/8 and flat above it, as where noise limits what is learned.
HEIGHTS = np.array([-0.2, -0.55, -0.9, -0.99, -0.98, -0.96, -0.93, -0.7, 0.1])
NOISY = HEIGHTS + 0.01 * np.random.default_rng(0).normal(size=(3, 9))


def test_the_curve_is_that_of_scikit_learns_process():
    found = smooth(RATES, NOISY)
    above = excess(NOISY)[1:6]
    near = near_best(NOISY)
    own = (NOISY - near.mean(axis=1, keepdims=True)).std(axis=0, ddof=1)[1:6]
    pooled = pooled_deviation(near)
    scale = max(2 * pooled / np.sqrt(3), 4 * np.sort(above)[1])
    variance = (pooled**2 + own**2) / 2 / 3 / (scale + above) ** 2 + 1e-6
    process = GaussianProcessRegressor(ConstantKernel(4.0) * RBF(1.0), alpha=variance, optimizer=None)
    values = np.log1p(above / scale)
    process.fit(np.log2(RATES[1:6])[:, None], values - values.mean())
    expected = values.mean() + process.predict(np.log2(found.rates)[:, None])
    np.testing.assert_allclose(found.rates[[0, -1]], RATES[[1, 5]])
    np.testing.assert_allclose(found.values, expected, atol=1e-6)
    assert found.scale == scale


@pytest.mark.parametrize("shift", np.linspace(-0.5, 0.5, 5))
def test_the_answer_stays_off_the_steep_side(shift):
    """exp(-rate / slow) dies away, and a noise that grows with the rate is left: best at 0.31."""
    rates = RATES * 2.0**shift
    losses = np.exp(-rates / 0.05) + 0.002 * rates / 0.05
    found, *_ = lowest(rates, losses[None] - 1, 0.0, 0.001)
    lost = np.exp(-found / 0.05) + 0.002 * found / 0.05
    best = -0.05 * np.log(0.002)
    assert lost < 1.1 * (0.002 + 0.002 * best / 0.05)


def test_what_lies_far_from_the_best_does_not_count():
    wide = 2.0 ** np.arange(-10.0, 7)
    far = np.concatenate([np.full(4, -0.1), NOISY[0], np.full(4, 50.0)])[None]
    farther = np.concatenate([np.full(4, -0.01), NOISY[0], np.full(4, 1e4)])[None]
    assert lowest(wide, far, 0.0, 0.001) == lowest(wide, farther, 0.0, 0.001)


def test_what_diverged_ends_the_curve():
    heights = NOISY.copy()
    heights[:, 6] = np.nan
    found = smooth(RATES, heights)
    assert found.rates[-1] == RATES[5] and np.isclose(found.ends[1], RATES[5] * np.sqrt(2))
    # All that is left is alike, up to the edge.
    assert lowest(RATES, heights, 0.1, 1.0)[2] == found.ends[1]
    heights[:, 2:5] = np.nan
    assert smooth(RATES[:7], heights[:, :7]) is None


def test_a_factor_moves_no_bit():
    assert lowest(RATES, NOISY, 0.01, 0.02) == lowest(
        RATES, NOISY * 2.0**-20, 0.01 * 2.0**-20, 0.02 * 2.0**-20
    )


def test_lanes_that_are_alike_have_no_curve():
    assert smooth(RATES, np.full((1, 9), -1.0)) is None
    assert lowest(RATES, np.full((1, 9), -1.0), 0.0, 0.001) == (RATES[0], RATES[0], RATES[-1])


def test_a_single_seed_may_be_noisy(monkeypatch):
    """It is smoothed as far as its own roughness says, where a seed without noise would be followed."""
    rates = np.geomspace(1e-3, 1, 25)
    draw = np.random.default_rng(1)
    heights = [0.05 * np.log2(rates / 0.03) ** 2 - 1 + 0.02 * draw.normal(size=(1, 25)) for _ in range(40)]

    def missed():
        return np.mean([abs(np.log2(lowest(rates, each, 0.0, 0.001)[0] / 0.03)) for each in heights])

    mixed = missed()
    monkeypatch.setattr(module, "UNKNOWN_NOISE", (module.LEAST_NOISE,))
    assert mixed < 0.8 * missed()


def test_curves_of_all_kinds_have_an_answer_in_their_interval():
    """Ties with a lost lane between them, few lanes, close ones, large and small numbers."""
    draw = np.random.default_rng(0)
    for _ in range(300):
        count, seeds = draw.integers(1, 12), draw.integers(1, 5)
        rates = np.sort(10 ** draw.uniform(-8, 2, count))
        heights = np.round(draw.normal(size=(seeds, count)), draw.integers(0, 4)) * 10.0 ** draw.integers(
            -9, 9
        )
        heights[:, draw.random(count) < 0.2] = np.nan
        if np.isfinite(heights).any():
            rate, low, high = lowest(rates, heights, 0.1, 0.2)
            assert rates[0] <= low <= rate <= high <= rates[-1]
