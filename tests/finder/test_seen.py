"""What runs tell the model of a search by budget: values in one unit, levels of rates, what was lost."""

import numpy as np
import pytest

from optax_lr.engine.runs import Plan, Reference, Runs
from optax_lr.finder.beliefs import Belief
from optax_lr.finder.levels import levels_of
from optax_lr.finder.model import Points
from optax_lr.finder.seen import Seen, agree, possible, seen_in

RNG = np.random.default_rng(0)
HORIZON = 400


def seen(octaves, halvings, values):
    points = Points(np.array(octaves, float), np.array(halvings, float), np.zeros(len(octaves), int))
    values = np.array(values, float)
    return Seen(points, values, values, np.zeros(len(octaves), bool), 0.02)


def test_rates_that_a_drift_cannot_reach_are_ruled_out():
    grid = np.arange(-40, 11) * 0.5
    # The best rate of an eighth of the run is 2^-4; it may fall by 1.2 octaves a halving and rise by 0.4.
    found = possible(seen([-10, -7, -4, -1, 2], [3] * 5, [1, 1, 0, 0.4, 1]), grid)
    assert found[0] == -10.5 and found[-1] == 3.0
    # Other lengths tighten it, but six octaves stay where they contradict.
    both = seen([-10, -7, -4, -1, 2, -12, -9, -6], [3] * 5 + [0] * 3, [1, 1, 0, 0.4, 1, 1, 0, 1])
    found = possible(both, grid)
    assert found[0] <= -9 <= found[-1] and 5.5 <= np.ptp(found) <= 6
    # Nothing that did far worse, nothing ruled out.
    assert len(possible(seen([-4, -1], [3, 3], [0, 0.4]), grid)) == len(grid)


def test_runs_are_certain_where_seeds_agree():
    points = Points(np.array([-4.0, -4, -6, -6]), np.zeros(4), np.array([0, 1, 0, 1]))
    assert agree(points, np.array([0.5, 0.5, 0.2, 0.2]))
    assert not agree(points, np.array([0.5, 0.5, 0.2, 0.21]))
    # One seed was lost and the other not; both at one rate tell nothing.
    assert not agree(points, np.array([np.inf, 0.5, 0.2, 0.2]))
    assert agree(points, np.array([np.inf, np.inf, 0.2, 0.2]))
    # One seed tells nothing.
    assert not agree(points._replace(halvings=np.arange(4.0)), np.array([0.5, 0.5, 0.2, 0.2]))


def test_seeds_that_are_both_far_from_the_best_are_not_alike_for_that():
    rows = [(100, octave, 0, 0.1 + 0.1 * abs(octave + 6)) for octave in (-8, -7, -6, -5)]
    far = seen_in(table([*rows, (100, -2, 0, 0.9), (100, -2, 1, 1.8)]), HORIZON)
    assert far.values[-1] == far.values[-2] == 1 and not far.certain


def test_the_best_rate_is_told_from_far_ones_on_a_seed_that_does_badly():
    rows = [(HORIZON, octave, 0, loss) for octave, loss in ((-6, 1.9), (-4, 1.0), (-2, 0.7), (0, 0.3))]
    found = seen_in(table([*rows, (HORIZON, -2, 1, 0.32)]), HORIZON)
    assert found.values[3] < found.values[:2].min() and found.best_of(found.longest) == 0


def test_the_best_rate_is_that_of_the_lowest_mean_and_not_of_a_lucky_seed():
    rows = [(HORIZON, -6, seed, 0.11 + 0.005 * seed) for seed in range(3)]
    lucky = [(HORIZON, -4, seed, loss) for seed, loss in enumerate((0.06, 0.16, 0.17))]
    found = seen_in(table([*rows, *lucky, (HORIZON, -8, 0, 0.5)]), HORIZON)
    assert found.values.argmin() == 3 and found.best_of(found.longest) == -6


@pytest.mark.parametrize("balanced", [True, False])
def test_levels_are_those_of_generalized_least_squares(balanced):
    rates, seeds = (each.ravel() for each in np.meshgrid(np.arange(4.0), np.arange(3), indexing="ij"))
    kept = np.ones(12, bool) if balanced else RNG.permutation(12) < 8
    rates, seeds = rates[kept], seeds[kept]
    losses = rates + RNG.normal(size=3)[seeds] + 0.3 * RNG.normal(size=len(rates))
    # Effects of seeds and noise have one variance: y ~ N(X levels, I + Z Z').
    known, of_rate = np.unique(rates, return_inverse=True)
    x, z = np.eye(len(known))[of_rate], np.eye(3)[seeds]
    inverse = np.linalg.inv(np.eye(len(rates)) + z @ z.T)
    wanted = np.linalg.solve(x.T @ inverse @ x, x.T @ inverse @ losses)
    rest = losses - x @ wanted
    found = levels_of(losses, rates, seeds, near=np.inf)
    np.testing.assert_allclose(found.levels, wanted[of_rate], atol=1e-12)
    np.testing.assert_allclose(found.noise, np.sqrt(rest @ inverse @ rest / (len(rates) - len(known))))


def test_rates_far_from_the_best_tell_nothing_of_seeds():
    rates, seeds = np.repeat([1.0, 2.0, 3.0], 2), np.tile([0, 1], 3)
    losses = np.array([0.0, 0.1, 0.2, 0.3, 1e8, 3e8])
    found = levels_of(losses, rates, seeds, near=1.0)
    np.testing.assert_allclose(found.levels, [0.05, 0.05, 0.25, 0.25, 2e8, 2e8])
    assert found.noise < 0.2
    assert np.isnan(levels_of(losses[::2], rates[::2], seeds[::2], near=1.0).noise)


def table(rows, untrained=2.0):
    """Runs by hand: (steps, octave, seed, loss) of each."""
    runs = Runs(("loss",), ("loss",))
    runs.reference = Reference(np.arange(8), {}, {"loss": np.full((8, 1), untrained, np.float32)}, (1,), 0)
    for steps, octave, seed, loss in rows:
        rates, seeds = np.array([2.0**octave]), np.array([seed], np.int32)
        plan = Plan({"learning_rate": rates}, seeds, np.array([steps], np.int32), (steps,), {}, 0)
        (row,) = map(int, runs.append(plan))
        runs.evals["loss"][row, 0] = runs.metrics["loss"][row, :steps] = loss
        runs.end(row, steps, -1 if np.isfinite(loss) else steps - 1, 0)
    return runs


# Of every seed the best rate is -6; the second seed's losses are all far above those of the first.
PAIRED = [
    (HORIZON, octave, seed, 0.1 * 2 ** (0.5 * abs(octave + 6)) + 0.8 * seed)
    for octave in (-7.0, -6.0, -5.0, -4.0)
    for seed in (0, 1)
]


def test_what_a_seed_has_in_common_hides_no_rate():
    # On its own seed each run is told from the next; that seeds differ by the whole fall costs none its value.
    found = seen_in(table(PAIRED), HORIZON)
    values = found.values.reshape(4, 2)
    assert (np.diff(values[1:], axis=0) > 0.05).all() and (values[0] > values[1] + 0.05).all()
    assert found.best_of(found.longest) == -6


def test_the_unit_is_that_of_the_noise_also_of_shorter_runs():
    drawn = np.random.default_rng(3)
    short = [
        (100, octave, seed, 0.1 + 0.02 * drawn.standard_normal())
        for octave in (-7, -6, -5, -4)
        for seed in range(3)
    ]
    long = [(HORIZON, octave, 0, 0.05 + 1e-5 * octave) for octave in (-7, -6, -5, -4)]
    alone, found = (seen_in(table(rows), HORIZON) for rows in (long, short + long))
    # A quarter of 0.02, five times: losses that differ by less are not told apart.
    assert alone.unit < 1e-3 and 0.4 < found.unit * 1.95 / (5 * 0.02 / 4) < 2
    assert np.ptp(alone.values[-4:]) > 0.5 and np.ptp(found.values[-4:]) < 0.01


def test_seeds_that_fell_nearly_all_the_way_are_not_alike_for_that():
    # Each fell by two but for a thousandth; by how much less differs from seed to seed.
    rows = [(100, octave, 0, 1e-3 * 2 ** (0.1 * abs(octave + 6))) for octave in (-8, -7, -6, -5)]
    assert not seen_in(table([*rows, (100, -6, 1, 1.2e-3)]), HORIZON).certain
    assert seen_in(table([*rows, (100, -6, 1, 1e-3)]), HORIZON).certain


def test_where_no_run_would_change_the_answer_the_best_rates_are_told_apart():
    # Far rates are all alike to the model, so none of them is worth a run.
    rows = [(HORIZON, octave, seed, 1.9) for octave in (-12.0, -10.0, -2.0) for seed in (0, 1)]
    rows += [(HORIZON, -6.0, seed, 0.1 + 0.01 * seed) for seed in (0, 1)]
    belief = Belief(seen_in(table(rows), HORIZON), np.arange(-16.0, 2.5, 0.5))
    assert all(abs(octave + 6) <= 2.5 for octave, _ in belief.next_runs(0.0, 4, 8))


def test_without_noise_a_run_that_ended_above_its_start_is_lost():
    rows = [(HORIZON, -6.0, 0, 0.2), (HORIZON, -5.0, 0, 0.1), (HORIZON, -4.0, 0, 1e6), (100, -4.0, 0, 5.0)]
    assert not seen_in(table(rows), HORIZON).lost.any()
    certain = seen_in(table([*rows, (HORIZON, -5.0, 1, 0.1)]), HORIZON)
    assert certain.lost.tolist() == [False, False, True, False, False]
    belief = Belief(certain, np.arange(-12.0, 0.5, 0.5))
    assert belief.octave == -5 and -4.5 <= belief.interval[1] < -4


def test_beside_an_edge_rates_are_compared_more_finely():
    rows = [
        (HORIZON, octave, seed, 0.1 - 0.01 * octave + 0.001 * seed)
        for octave in (-7, -6, -5)
        for seed in (0, 1)
    ]
    grid = np.arange(-12.0, 0.5, 0.5)
    smooth, edge = (
        Belief(seen_in(table(each), HORIZON), grid) for each in (rows, [*rows, (HORIZON, -4, 0, np.nan)])
    )
    assert np.diff(smooth.grid).max() == 0.5 and np.diff(edge.grid).max() == 0.25
    assert edge.grid[0] >= grid[0] and edge.grid[-1] <= grid[-1]


def test_the_first_lanes_of_a_length_are_no_rate_twice():
    rows = [(HORIZON, octave, 0, 0.1 + 0.1 * abs(octave + 11)) for octave in (-11, -9, -7, -5)]
    octaves = Belief(seen_in(table(rows), HORIZON), np.arange(-11.0, 0.5, 0.5)).around(3)
    assert len(set(octaves.tolist())) == len(octaves) and octaves.min() >= -11
