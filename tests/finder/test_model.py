"""The model of runs: a mixture of Gaussian processes, against scikit-learn's, and the chance of being lost."""

import itertools

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, Matern, PairwiseKernel

from optax_lr.finder import model
from optax_lr.finder.model import Edge, Points, Values, at_horizon

GRID = np.arange(-8.0, 0.1, 0.5)
SEEN = Points(
    np.array([-8.0, -6, -4, -2, -5, -4, -3, -4, -5]),
    np.array([5.0, 5, 5, 5, 1, 1, 1, 1, 1]),
    np.array([0, 0, 0, 0, 0, 0, 0, 1, 1]),
)
VALUES = np.array([0.9, 0.5, 0.1, 0.7, 0.1, 0.0, 0.3, 0.05, 0.1])


@pytest.fixture
def members(monkeypatch):
    """Leaves few members in the mixture."""

    def few(**constants):
        for name, values in constants.items():
            monkeypatch.setattr(model, name, values)

    few(SLOPES=(0.8,), GOES_ON=1.0, WIDTHS=(1.5,), HEIGHTS=(0.3,), NOISES=(0.06,))
    return few


def rows_of(points, curve=0.0):
    """What scikit-learn sees: octave, halvings, seed, and whether it is asked for the curve alone."""
    return np.column_stack([*points, np.full(len(points.octaves), curve)])


def scikit(slope=0.8, width=1.5, height=0.3, noise=0.06, seen=SEEN, values=VALUES):
    """The same process by scikit-learn: its kernels, its algebra."""

    def of_pair(one, other, gamma=None):
        u, v = ([[row[0] - slope * row[1]]] for row in (one, other))
        along = RBF(4.0)([[one[1]]], [[other[1]]])[0, 0]
        smooth = height**2 * Matern(width, nu=2.5)(u, v)[0, 0] * along
        if one[3] or other[3] or one[1] != other[1]:
            return smooth
        return smooth + 10.0**2 + (one[2] == other[2]) * noise**2 / 2

    process = GaussianProcessRegressor(PairwiseKernel(metric=of_pair), alpha=noise**2 / 2, optimizer=None)
    return process.fit(rows_of(seen), values)


def predicted(process, octaves=GRID):
    return process.predict(rows_of(at_horizon(octaves), curve=1.0), return_cov=True)


def test_one_member_is_scikit_learns_process(members):
    found, (mean, covariance) = Values(SEEN, VALUES, GRID), predicted(scikit())
    np.testing.assert_allclose(found.mean, mean, atol=1e-8)
    np.testing.assert_allclose(found.covariances[0], covariance, atol=1e-7)
    constant = len(VALUES) / 2 * np.log(2 * np.pi)
    assert found.evidence[0] - constant == pytest.approx(scikit().log_marginal_likelihood_value_)


def test_members_weigh_what_their_evidence_and_the_prior_say(members):
    members(SLOPES=(0.4, 0.8), SLOPE_MEAN=0.4, SLOPE_DEVIATION=0.4, GOES_ON=0.5)
    found = Values(SEEN, VALUES, GRID)
    # The slope between lengths, and that beyond the longest, whose prior has its mean halfway to the other.
    pairs = list(itertools.product((0.4, 0.8), (0.4, 0.8)))
    each = {slope: scikit(slope=slope) for slope in (0.4, 0.8)}
    logs = np.array([each[slope].log_marginal_likelihood_value_ for slope, _ in pairs])
    logs -= [
        ((slope - 0.4) ** 2 + (beyond - (slope + 0.4) / 2) ** 2) / (2 * 0.4**2) for slope, beyond in pairs
    ]
    weights = np.exp(logs - logs.max()) / np.exp(logs - logs.max()).sum()
    np.testing.assert_allclose(found.weights, weights, rtol=1e-6)
    # Longest runs are one halving away: by another slope beyond, their rates stand for others at the horizon.
    means = weights @ [predicted(each[slope], GRID + beyond - slope)[0] for slope, beyond in pairs]
    np.testing.assert_allclose(found.mean, means, atol=1e-8)


def extended(row, value):
    seen = Points(*(np.append(values, at) for values, at in zip(SEEN, row, strict=True)))
    return seen, np.append(VALUES, value)


@pytest.mark.parametrize("row", [(-3.5, 1.0, 0), (-3.5, 1.0, 2), (-4.0, 0.0, 0)])
def test_a_further_run_moves_means_as_it_does_scikit_learns(members, row):
    found, before = Values(SEEN, VALUES, GRID), scikit()
    at = Points(*(np.array([value]) for value in row))
    mean, deviation = before.predict(rows_of(at), return_std=True)
    spread = np.sqrt(deviation**2 + 0.06**2 / 2)
    seen, values = extended(row, (mean + spread)[0])
    later = scikit(seen=seen, values=values)
    moved = predicted(later)[0] - predicted(before)[0]
    np.testing.assert_allclose(found.moved_by(at)[0, :, 0], moved, atol=1e-6)
    np.testing.assert_allclose(found.expecting(at).covariances[0], predicted(later)[1], atol=1e-7)


def test_draws_have_the_mean_and_the_spread_of_the_process(members):
    found = Values(SEEN, VALUES, GRID)
    draws = found.draws(20_000, np.random.default_rng(0))
    np.testing.assert_allclose(draws.mean(axis=0), found.mean, atol=0.01)
    np.testing.assert_allclose(np.cov(draws.T), found.covariances[0], atol=0.004)


def test_the_drift_is_learned_from_two_lengths(monkeypatch):
    monkeypatch.setattr(model, "GOES_ON", 1.0)
    octaves = np.arange(-8.0, 0.1, 1)
    for slope in (0.0, 0.8):
        short = 0.05 * (octaves + 4 - 5 * slope) ** 2
        long = 0.05 * (octaves + 4 - 2 * slope) ** 2
        seen = Points(
            np.tile(octaves, 2), np.repeat([5.0, 2.0], len(octaves)), np.zeros(2 * len(octaves), int)
        )
        found = Values(seen, np.minimum(np.append(short, long), 1), GRID)
        assert abs(GRID[found.mean.argmin()] + 4) <= 0.5


def test_a_constant_of_a_length_tells_nothing():
    once = Values(SEEN, VALUES, GRID)
    again = Values(SEEN, VALUES + np.where(SEEN.halvings == 5, 0.5, 0.0), GRID)
    np.testing.assert_allclose(again.mean, once.mean, atol=5e-3)


def test_a_hard_edge_lies_anywhere_between_kept_and_lost(members):
    members(FALLS=(0.0,), SOFTNESSES=(1e-3,))
    seen = Points(np.array([-6.0, -4.0, 0.0]), np.array([3.0, 3.0, 3.0]), np.zeros(3, int))
    grid = np.arange(-8.0, 4.1, 0.25)
    found = Edge(seen, np.array([False, False, True]), grid)
    uniform = np.clip((grid + 4) / 4, 0, 1)
    np.testing.assert_allclose(found.chance(at_horizon(grid)), uniform, atol=0.07)


def test_the_edge_of_long_runs_lies_no_higher():
    seen = Points(np.array([-6.0, -4.0, 0.0]), np.full(3, 5.0), np.zeros(3, int))
    found = Edge(seen, np.array([False, False, True]), GRID)
    chances = [
        found.chance(Points(GRID, np.full(len(GRID), h), np.zeros(len(GRID)))) for h in (5.0, 2.0, 0.0)
    ]
    assert (np.diff(chances, axis=0) >= 0).all() and (np.diff(chances[0]) >= 0).all()


def test_what_a_run_would_say_of_the_edge_is_what_it_says():
    lost = np.array([False, False, True, True, False, False, False, False, False])
    found, row = Edge(SEEN, lost, GRID), (-3.0, 1.0, 1)
    at = Points(*(np.array([value]) for value in row))
    if_lost, if_kept = found.after(GRID, at)
    seen = Points(*(np.append(values, of) for values, of in zip(SEEN, row, strict=True)))
    for said, so in ((if_lost, True), (if_kept, False)):
        again = Edge(seen, np.append(lost, so), GRID).chance(at_horizon(GRID))
        np.testing.assert_allclose(said[:, 0], again, atol=1e-4)
