"""Rules on curves whose answer is known in closed form."""

import dataclasses
import itertools

import numpy as np
import pytest

from optax_lr import LRCurve, suggest
from optax_lr.finder.classic import CLASSIC_RULES, longest_fall
from optax_lr.finder.neighbors import edge_rate
from optax_lr.finder.policy import Bounds, beyond_edge

RATES = np.geomspace(1e-4, 1, 17)


def curve_of(losses, *, rates=RATES, steps=1, diverged=(), untrained=3.0):
    """A curve with the given training loss at all steps, [lanes] or [seeds, lanes]; lost where it is not finite."""
    table = np.atleast_2d(losses).astype(np.float32)
    stops = np.where(np.isfinite(table), -1, 0).astype(np.int32)
    stops[:, list(diverged)] = 0
    reference = np.full(len(table), untrained, np.float32)
    every = table[..., None].repeat(steps, -1)
    return LRCurve(rates, every, None, np.array([], np.int32), stops, reference=reference)


def bowl(best, rates=RATES):
    """A parabola over the log of the rate, from an untrained loss of 3 down to 1."""
    return np.minimum(1 + 0.3 * np.log(rates / best) ** 2, 3.0)


@pytest.mark.parametrize("best", [0.01, 0.013, 0.002])
def test_the_best_rate_is_read_between_lanes(best):
    found = suggest.lowest_loss(curve_of(bowl(best)))
    assert np.isclose(found.learning_rate, best, rtol=5e-2)
    assert found.low <= found.learning_rate <= found.high and not found.at_edge


LAWS = {
    "lowest_loss": lambda *curves: suggest.lowest_loss(curves[-1]),
    "for_horizon": lambda *curves: suggest.for_horizon(curves, 900),
    "beside": lambda *curves: suggest.rates_beside(curves[-1]),
    "next": lambda *curves: suggest.next_rate(curves[-1]),
    "undecided": lambda *curves: suggest.undecided(curves[-1]),
}


@pytest.mark.parametrize("rule", LAWS)
def test_a_constant_and_a_power_of_two_change_no_bit_of_any_rate(rule):
    draw = np.random.default_rng(0)
    # On a grid of 2^-12, so that float32 holds all sums exactly.
    losses = np.round((bowl(0.013) + 0.05 * draw.normal(size=(3, 17))) * 4096) / 4096

    def rates(factor, constant, diverged):
        found = LAWS[rule](*(
            curve_of(factor * losses + constant, steps=steps, diverged=diverged, untrained=factor * 3 + constant)
            for steps in (50, 100)
        ))  # fmt: skip
        return (found.learning_rate, found.low, found.high) if hasattr(found, "low") else found

    for diverged in ((), range(10, 17)):
        plain = rates(1, 0, diverged)
        assert all(rates(1, constant, diverged) == plain for constant in (1, 100, -0.25, -3, -400))
        assert all(rates(2.0**power, 0, diverged) == plain for power in (-60, -1, 3, 60))


def test_an_edge_is_flagged_and_a_diverged_lane_never_suggested():
    rising = suggest.lowest_loss(curve_of(RATES))
    assert rising.at_edge and rising.learning_rate == RATES[0]
    falling = suggest.lowest_loss(curve_of(3 - RATES, diverged=range(12, 17)))
    assert falling.learning_rate == RATES[11] and not falling.at_edge and falling.high < RATES[12]


def test_beside_a_lost_rate_the_answer_is_no_worse_than_the_best_lane_beyond_noise():
    steep = np.where(np.arange(17) == 11, 1.0, 1.1) + 0.001 * np.random.default_rng(0).normal(size=(3, 17))
    found = suggest.lowest_loss(curve_of(steep, diverged=range(12, 17)))
    assert RATES[11] * 0.99 < found.learning_rate < RATES[11] and found.low <= found.learning_rate
    # What noise cannot tell lets it move away from the edge, by half the way.
    flat = 1.0 + 0.1 * np.random.default_rng(1).normal(size=(3, 17))
    best = suggest.best_lane(curve_of(flat, diverged=range(12, 17)))
    beside = curve_of(flat, diverged=range(best + 1, 17))
    assert np.isclose(suggest.lowest_loss(beside).learning_rate, np.sqrt(RATES[best] * RATES[best - 1]))


def test_between_close_lanes_the_answer_is_no_worse_than_the_best_one_beyond_noise():
    # A slope down to a sharp edge: the parabola through all lanes around has its vertex far from it.
    rates = np.geomspace(0.001, 0.03, 18)
    losses = np.where(rates < 0.02, 0.008 / rates, 0.4 + 400 * (rates / 0.02 - 1) ** 2)
    rng = np.random.default_rng(0)
    for noise in (0.0, 0.003):
        table = losses + noise * rng.normal(size=(3, len(rates)))
        found = suggest.lowest_loss(curve_of(np.minimum(table, 3.0), rates=rates))
        loss = np.interp(np.log(found.learning_rate), np.log(rates), losses)
        assert loss <= losses.min() + 4 * noise + 1e-6
        assert found.low <= found.learning_rate <= found.high


def test_the_reason_quotes_the_loss_of_the_answer():
    losses = np.full(17, 2.5)
    losses[7:10] = 1.5, 1.0, 1.4
    measured = suggest.lowest_loss(curve_of(losses, diverged=range(9, 17)))
    assert measured.learning_rate == RATES[8] and "(1, the mean of 1 seed)" in measured.reason
    between = suggest.lowest_loss(curve_of(losses))
    loss = np.interp(np.log(between.learning_rate), np.log(RATES), losses)
    assert f"({loss:.4g}, estimated between lanes, the mean of 1 seed)" in between.reason


def test_where_no_rate_learned_the_answer_says_so():
    noise = 0.1 * np.random.default_rng(0).normal(size=(3, 17))
    harmful = np.where(np.arange(17) < 13, 3.0, 5.0) + noise
    found = suggest.lowest_loss(curve_of(harmful, steps=20))
    assert "No rate learned anything in 20 steps" in found.reason and "try 100" in found.reason
    assert found.learning_rate == RATES[12] and found.low == RATES[0] and RATES[12] < found.high < RATES[13]
    assert suggest.for_horizon([curve_of(harmful, steps=20)], 1000).learning_rate == RATES[12]
    noise[0, 16] = -0.1
    harmless = suggest.lowest_loss(curve_of(3.0 + noise, steps=20))
    assert harmless.learning_rate == RATES[15] and harmless.high == RATES[16]  # never the bound
    constant = suggest.lowest_loss(curve_of(np.full((3, 17), 3.0)))
    assert "The loss does not depend on the parameters" in constant.reason
    assert constant.learning_rate == RATES[15] and (constant.low, constant.high) == (RATES[0], RATES[16])


def test_noise_between_seeds_widens_the_interval():
    noise = np.random.default_rng(0).normal(size=(3, 17))
    quiet, loud = (suggest.lowest_loss(curve_of(bowl(0.01) + scale * noise)) for scale in (0.001, 0.3))
    assert loud.high / loud.low > 1.5 * quiet.high / quiet.low


def test_the_interval_holds_a_good_rate_in_nine_of_ten_noisy_searches():
    draw, held = np.random.default_rng(0), []
    for best in np.exp(draw.uniform(np.log(0.003), np.log(0.03), 200)):
        noise = 0.15 * draw.normal(size=(3, len(RATES))) + 0.1 * draw.normal(size=(3, 1))
        found = suggest.lowest_loss(curve_of(np.exp(0.1 * np.log(RATES / best) ** 2 + noise), untrained=8.0))
        within_a_percent = np.exp(np.sqrt(0.1))
        held.append(found.low <= best * within_a_percent and found.high >= best / within_a_percent)
    assert 0.8 <= np.mean(held) <= 0.98


def test_the_interval_of_one_seed_ends_near_what_lost_more_than_a_thousandth_of_the_fall():
    losses = np.where(np.arange(17) < 8, 3.0, 5.0)
    losses[8:10] = 2.0, 2.005
    found = suggest.lowest_loss(curve_of(losses, diverged=range(14, 17), untrained=12.0))
    # A thousandth of the fall is 0.01.
    assert RATES[7] < found.low <= RATES[8] and RATES[9] <= found.high < np.sqrt(RATES[9] * RATES[10])
    beside_lost = suggest.lowest_loss(curve_of(losses, diverged=range(10, 17), untrained=12.0))
    assert np.isclose(beside_lost.high, np.sqrt(RATES[9] * RATES[10]))


def test_the_classic_rules_on_a_known_shape():
    # Flat, one steep step down between lanes 8 and 9, a slow fall to lane 13, and a rise.
    losses = np.array([2.0] * 8 + [1.9, 1.0, 0.9, 0.8, 0.7, 0.65, 0.9, 1.5, 3.0])
    curve = curve_of(losses, diverged=[16])
    steep = suggest.steepest(curve)
    slopes = np.gradient(losses[:16], np.log(RATES[:16]))
    assert steep.learning_rate == RATES[np.argmin(slopes)]
    assert np.isclose(suggest.minimum_over_ten(curve).learning_rate, RATES[13] / 10)
    assert suggest.largest_stable(curve).learning_rate == RATES[15]
    # The longest fall: one of the flat lanes and lanes 8 to 13; index 7 // 3 + 7 // 6 = 3 of it.
    assert suggest.valley(curve).learning_rate == RATES[10]
    assert set(suggest.classic(curve)) == set(CLASSIC_RULES)


def test_the_longest_fall_against_all_subsequences():
    draw = np.random.default_rng(1)
    for _ in range(20):
        values = draw.normal(size=9)
        chain = values[longest_fall(values)]
        falls = [k for k in range(1, 10) for c in itertools.combinations(values, k) if (np.diff(c) < 0).all()]
        assert (np.diff(chain) < 0).all() and len(chain) == max(falls)


def test_a_rule_refuses_a_curve_of_more_axes_and_says_what_to_take():
    decay = np.repeat([0.0, 0.1], 17)
    both = curve_of(bowl(0.01)).merge(curve_of(bowl(0.01)))
    grid = dataclasses.replace(both, hyperparameters={"weight_decay": decay})
    rules = (suggest.lowest_loss, suggest.steepest, suggest.largest_stable, suggest.best_lane)
    for rule in rules:
        with pytest.raises(
            ValueError, match=r"over learning_rate, weight_decay; take a part of it"
        ) as refusal:
            rule(grid)
    assert str(refusal.value).endswith("curve.take(curve.lanes['weight_decay'] == 0.0).")
    backwards = curve_of(bowl(0.01)).take(slice(None, None, -1))
    for rule in rules:
        with pytest.raises(
            ValueError, match=r"increasing order, .*take\(np\.argsort\(curve\.learning_rates\)\)"
        ):
            rule(backwards)
    sorted_again = backwards.take(np.argsort(backwards.learning_rates))
    assert (
        suggest.lowest_loss(sorted_again).learning_rate
        == suggest.lowest_loss(curve_of(bowl(0.01))).learning_rate
    )


# So far above the lowest loss, that a share of 0.004 of the fall is 0.2.
FAR = 51.0


def curved(best, rates=RATES):
    return 1 + 0.3 * np.log(rates / best) ** 2


def test_a_drift_of_constant_rates_is_carried_on_at_half_of_what_is_expected():
    steps, slope, expected = np.array([25, 50, 100]), -0.5, -0.575
    evals = np.stack([curved(0.02 * (step / 100) ** slope) for step in steps], -1)[None].astype(np.float32)
    losses, alive = np.ones((1, 17, 100), np.float32), np.full((1, 17), -1, np.int32)
    curve = LRCurve(RATES, losses, evals, steps.astype(np.int32), alive, reference=np.float32([FAR]))
    found = suggest.for_horizon(curve, 1600)
    assert np.isclose(found.learning_rate, 0.02 * 16 ** (expected / 2), rtol=1e-2)
    assert "steps^-0.50" in found.reason and found.low < found.learning_rate < found.high


def test_the_drift_of_runs_under_their_own_schedules_is_a_quarter_of_what_goes_on():
    rates = 2.0 ** np.arange(-12, 3)

    def curves(slope):
        return [
            curve_of(curved(0.2 * (steps / 100) ** slope, rates), rates=rates, steps=steps, untrained=FAR)
            for steps in (100, 25, 50)
        ]

    for slope, carried in ((-0.5, -0.575), (-1.4, -0.7), (0.5, -0.45)):
        found = suggest.for_horizon(curves(slope), 1600)
        assert np.isclose(found.learning_rate, 0.2 * 16**carried, rtol=2e-2)
        assert found.low < found.learning_rate < found.high
        assert [curve.losses.shape[-1] for curve in (*found.shorter, found.curve)] == [25, 50, 100]
        assert found.lane_steps == 15 * 175


def test_the_drift_is_that_of_the_last_two_lengths():
    rates = 2.0 ** np.arange(-12, 3)
    bests = {25: 0.01, 100: 0.08, 200: 0.04, 400: 0.02}
    curves = [
        curve_of(curved(best, rates), rates=rates, steps=steps, untrained=FAR)
        for steps, best in bests.items()
    ]
    found = suggest.for_horizon(curves, 1600)
    assert (
        np.isclose(found.learning_rate, 0.02 * 4**-0.7, rtol=2e-2) and "from 200 to 400 steps" in found.reason
    )
    # Runs of one length say nothing of it: what is usual.
    alone = suggest.for_horizon(curves[-1:], 1600)
    assert np.isclose(alone.learning_rate, 0.02 * 4**-0.6, rtol=2e-2) and "is taken to move" in alone.reason
    assert alone.low < alone.learning_rate / 4**0.25 and alone.high > alone.learning_rate * 4**0.25


def test_no_slope_is_taken_between_lengths_whose_best_stands_beside_a_lost_rate():
    def runs(best, steps, lost):
        losses = np.where(np.arange(17) < lost, 2.0 - RATES / RATES[best], 1.0)
        return curve_of(losses, steps=steps, diverged=range(lost, 17))

    at_edge = suggest.for_horizon([runs(9, 50, 10), runs(8, 100, 9)], 1600)
    assert at_edge.learning_rate == RATES[8] and "beside a rate that diverged" in at_edge.reason
    free = curve_of(curved(0.02), steps=100, untrained=FAR)
    beyond = suggest.for_horizon([runs(9, 50, 10), free], 1600)
    assert "is taken to move as steps^-0.60" in beyond.reason


def test_the_center_stays_within_the_interval():
    # The middle of what is nearly flat lies far from the best two, which one seed tells apart.
    losses = np.where(np.arange(17) > 12, 2.5, 1.008)
    losses[11:13] = 1.004, 1.0
    found = suggest.for_horizon([curve_of(losses, steps=steps) for steps in (50, 100)], 100)
    here = suggest.lowest_loss(curve_of(losses, steps=100))
    assert found.learning_rate == found.low == here.low


def test_the_rate_of_a_flat_curve_is_the_middle_of_what_is_flat():
    rates = 2.0 ** np.arange(-6, 1)
    noise = np.random.default_rng(0).normal(size=(3, 7))
    flat = np.where(np.arange(7) > 0, 1.0, 2.5) + 0.003 * noise
    flat[:, 5:] = 2.8
    found = suggest.for_horizon([curve_of(flat, rates=rates, steps=steps) for steps in (50, 100)], 100)
    assert np.isclose(found.learning_rate, 2.0**-3.5, rtol=0.3)


@pytest.mark.parametrize(
    ("losses", "wanted"),
    [
        ([[5, 1, 5]], []),
        ([[1.001, 1, 5]], [0.25]),
        ([[5, 1, 1.001]], [4.0]),
        ([[1.001, 1, 1.002]], [0.25, 4.0]),
        ([[5, 2, 1]], [4.0]),
        ([[5, 4, 1]], [4.0]),
        ([[5, 1, np.inf]], []),
        ([[1, 5, np.inf]], [0.25]),
        ([[np.inf, np.inf, np.inf]], [0.25]),
        # The noise of the seeds: the lower rate cannot be told from the best, the higher one can.
        ([[1.0, 1.3, 9.0], [1.3, 1.0, 9.1], [1.1, 1.1, 8.9]], [0.25]),
    ],
)
def test_the_best_is_surrounded_up_to_what_can_be_told_from_it(losses, wanted):
    assert suggest.rates_beside(curve_of(losses, rates=np.array([0.5, 1.0, 2.0]))) == wanted


def test_lanes_that_tie_are_all_the_best():
    """Errors are counted, and tie: the search goes on beyond the outermost of them, and the interval holds them."""
    rates = 2.0 ** np.arange(-3, 3)
    tied = curve_of([0.6, 0.2, 0.22, 0.24, 0.2, 0.5], rates=rates, untrained=1.0)
    found = suggest.lowest_loss(tied)
    assert found.low <= rates[1] and found.high >= rates[4] and not found.at_edge
    assert suggest.rates_beside(curve_of([0.6, 0.2, 0.22, 0.24, 0.2], rates=rates[:5], untrained=1.0)) == [
        4.0
    ]
    for losses, wider in (
        ([0.6, 0.2, 0.22, 0.2], 3.0),
        ([0.2, 0.22, 0.2, 0.6], 1 / 24),
        ([0.6, 0.2, 0.2, 0.6], None),
    ):
        curve = curve_of(losses, rates=rates[:4], untrained=1.0)
        assert beyond_edge(curve, 3.0, Bounds(0.1, 1.0)) == (wider and pytest.approx(wider))
        assert suggest.lowest_loss(curve).at_edge == bool(wider)


def test_nothing_is_tried_beyond_a_rate_that_was_lost():
    lost = curve_of([5, 1, np.inf], rates=np.array([0.5, 1.0, 1.2]))
    assert suggest.rates_beside(lost) == []
    two_on_a_side = curve_of([1.001, 1.001, 1, 1.001, 1.001], rates=2.0 ** np.arange(-2, 3))
    assert suggest.rates_beside(two_on_a_side) == []


def test_slide_equals_the_loop_of_fastai():
    draw = np.random.default_rng(3)
    rates = np.geomspace(1e-7, 10, 85)
    for _ in range(20):
        losses = np.cumsum(draw.normal(size=85)) * draw.choice([0.001, 0.01, 0.1])
        slopes, right = np.gradient(losses.astype(np.float32).astype(float)), -1
        expected = rates[right - 15]
        while right - 15 >= -85 and abs(slopes[right] - slopes[right - 15]) > 0.005:
            expected, right = rates[right - 15], right - 1
        curve = LRCurve(
            rates, losses.astype(np.float32)[None, :, None], None, np.array([], np.int32),
            np.full((1, 85), -1, np.int32),
        )  # fmt: skip
        assert suggest.slide(curve).learning_rate == expected


def test_the_hand_rules_read_where_the_loss_begins_to_fall_and_to_rise():
    losses = np.array([2.0] * 6 + [1.95, 1.7, 1.2, 1.0, 1.02, 1.05, 1.3, 2.0, 4.0, 8.0, 9.0])
    curve = curve_of(losses)
    curve = dataclasses.replace(curve, reference=None)
    assert np.isclose(suggest.before_rise(curve).learning_rate, RATES[11] / 10)
    # Half of the fall from 2 to 1 is done between lanes 7 (1.7) and 8 (1.2); a tenth at lane 7.
    base, peak = suggest.cyclical_bounds(curve)
    assert peak == RATES[8] and np.isclose(base, RATES[8] / 4)
    # Separate runs have no lag.
    assert suggest.cyclical_bounds(runs_of(losses)) == (RATES[9] / 4, RATES[9])
    # The fall is that from the untrained loss, wherever the rates of the runs begin.
    runs = runs_of([2.9, 2.6, 2.0, 1.2, 1.0, 1.4], start=3.0)
    for lanes in (slice(0, None), slice(1, None)):
        assert suggest.cyclical_bounds(runs.take(lanes)) == (RATES[1], RATES[4])
    falling = suggest.before_rise(curve_of(np.linspace(2, 1, 17)))
    assert np.isclose(falling.learning_rate, RATES[16] / 10)
    assert falling.at_edge and "had not risen by 1" in falling.reason
    with pytest.raises(
        ValueError, match=r"cyclical_bounds needs a loss that falls, got none between 0\.0001 and 1"
    ):
        suggest.cyclical_bounds(dataclasses.replace(curve_of(RATES), reference=None))


RAMP_RULES = ("steepest", "valley", "slide", "minimum_over_ten", "before_rise", "flat_then_rising")


def ramp_of(losses, seed=0, noise=0.0, rates=None):
    """A range test of these losses, smoothed as the range test does, with the noise of batches."""
    raw = np.array(losses) + noise * np.random.default_rng(seed).normal(size=len(losses))
    smooth, average = [], 0.0
    for step, loss in enumerate(raw):
        average = 0.98 * average + 0.02 * loss
        smooth.append(average / (1 - 0.98 ** (step + 1)))
    kept = [np.array(part, np.float32)[None, :, None] for part in (smooth, raw)]
    where = np.geomspace(1e-6, 1, len(raw)) if rates is None else rates
    never = np.full((1, len(raw)), -1, np.int32)
    return LRCurve(
        where, kept[0], None, np.array([], np.int32), never, metrics={"unsmoothed_loss": kept[1]}
    )  # fmt: skip


@pytest.mark.parametrize("name", RAMP_RULES)
@pytest.mark.parametrize("shape", ["flat", "rising", "falling", "bowl"])
def test_a_rule_says_what_a_ramp_did_not_show_and_names_no_rate_outside_it(name, shape):
    x = np.linspace(0, 1, 100)
    losses = {"flat": 0 * x, "rising": 8 * np.maximum(x - 0.7, 0), "falling": -np.maximum(x - 0.5, 0) * 2}
    losses["bowl"] = np.where(x < 0.8, -2 * np.maximum(x - 0.4, 0), -0.8 + 20 * (x - 0.8))
    for seed in range(20):
        ramp = ramp_of(2 + losses[shape], seed, 0.05)
        found = getattr(suggest, name)(ramp)
        assert ramp.learning_rates[0] <= found.low <= found.learning_rate <= found.high <= 1
        assert not found.at_edge or ";" in found.reason
        if name != "flat_then_rising" and shape in ("flat", "rising"):
            assert found.at_edge and "no fall was seen between 1e-06 and 1" in found.reason
        if name in ("flat_then_rising", "before_rise") and shape in ("flat", "falling"):
            assert found.at_edge and "had not risen" in found.reason
    if name == "flat_then_rising" and shape == "rising":
        # It rises from 10^(-6 + 0.7 * 6) on; the smoothed loss a little later.
        assert 10**-1.8 / 10 <= found.learning_rate <= 10**-1.8 and not found.at_edge


def runs_of(losses, start=2.0, seeds=1):
    """Separate runs of twenty steps, of which each but the first has the given loss."""
    table = np.broadcast_to(np.array(losses, np.float32)[None, :, None], (seeds, len(losses), 20)).copy()
    table[..., 0] = start
    return LRCurve(
        RATES[: len(losses)], table, None, np.array([], np.int32), np.full((seeds, len(losses)), -1, np.int32)
    )


def test_stable_means_learned():
    # Dead networks stand at chance, below an untrained loss of 2.6; the last one that learned is lane 5.
    losses = [2.5, 2.2, 1.5, 0.5, 0.1, 0.8, 2.4, 2.4]
    curve = runs_of(losses, start=2.6)
    assert suggest.largest_stable(curve).learning_rate == RATES[5]
    assert not suggest.largest_stable(curve).at_edge
    assert suggest.largest_stable(curve, reference=0.6).learning_rate == RATES[4]
    told = dataclasses.replace(curve, reference=np.array([0.6]))
    assert suggest.largest_stable(told).learning_rate == RATES[4]
    halved = suggest.halve_until_stable(curve)
    assert halved.learning_rate == RATES[5] and "of 3, halved from 0.00562" in halved.reason
    for rule in (suggest.largest_stable, suggest.halve_until_stable):
        with pytest.raises(ValueError, match="No rate learned"):
            rule(runs_of([2.6] * 8, start=2.6))
        with pytest.raises(ValueError, match="reference must be a finite number"):
            rule(curve, reference=float("nan"))
        assert "largest_stable" not in suggest.classic(runs_of([2.6] * 8, start=2.6))


def test_regimes_are_spans_and_say_what_was_not_seen():
    whole = suggest.regimes(runs_of([2.5, 2.2, 1.5, 0.5, 0.1, 0.8, 2.4, 2.4], start=2.6))
    assert [name for name, _ in whole] == ["too low", "good", "too high"] and not whole.unseen
    assert whole.low[0] == RATES[0] and whole.low[1] == whole.good[0] and whole.good[1] == whole.high[0]
    assert RATES[3] < whole.good[0] < RATES[4] < whole.good[1] < RATES[5] and whole.high[1] == RATES[7]
    low_only = suggest.regimes(runs_of([2.5, 1.0, 0.2]))
    assert low_only.high is None and low_only.unseen == (
        "No rate was seen that is too high: the largest is good.",
    )
    nothing = suggest.regimes(runs_of([2.0] * 4))
    assert list(nothing) == [] and "No rate from 0.0001 to 0.000562 was seen to learn." in str(nothing)
    x = np.linspace(0, 1, 100)
    ramp = ramp_of(np.where(x < 0.8, 2 - 2 * np.maximum(x - 0.4, 0), 1.2 + 20 * (x - 0.8)), noise=0.02)
    spans = suggest.regimes(ramp)
    assert spans.good == suggest.cyclical_bounds(ramp)
    assert spans.low[0] < spans.low[1] == spans.good[0] < spans.good[1] == spans.high[0] < spans.high[1]
    # A ramp that still falls at its end has seen no rate that is too high.
    falling = suggest.regimes(ramp_of(2 - np.maximum(x - 0.4, 0), noise=0.01))
    assert falling.high is None and "too high" in falling.unseen[0]
    assert falling.good[1] > 0.99 and falling.low[1] == falling.good[0]


def test_the_next_rate_is_half_way_into_the_wider_gap_beside_the_best():
    curve = curve_of(bowl(0.0133))
    assert np.isclose(suggest.next_rate(curve), np.sqrt(RATES[8] * RATES[9]))
    uneven = curve.take(np.delete(np.arange(17), 7))
    assert np.isclose(suggest.next_rate(uneven), np.sqrt(RATES[6] * RATES[8]))
    # Beside a lost rate it is half way to that, until both are close.
    lost = curve_of(2 - RATES, diverged=range(12, 17))
    for rule in (suggest.next_rate, edge_rate):
        assert np.isclose(rule(lost), np.sqrt(RATES[11] * RATES[12]))
        # One seed hides nothing: close is a ratio of 1.07, but without a slope one of 1.25.
        for ratio, losses in ((1.06, 2 - RATES), (1.24, np.where(np.arange(17) > 9, 1.0, 2.0))):
            close = curve_of(losses, rates=ratio ** np.arange(-16.0, 1), diverged=range(12, 17))
            assert rule(close) is None
        steep = curve_of(2 - RATES, rates=1.24 ** np.arange(-16.0, 1), diverged=range(12, 17))
        assert np.isclose(rule(steep), steep.learning_rates[11] * np.sqrt(1.24))
    assert edge_rate(curve) is None
    assert suggest.next_rate(curve_of(RATES)) is None
    fine = dataclasses.replace(curve, learning_rates=np.geomspace(0.01, 0.1, 17))
    assert suggest.next_rate(fine) is None


def test_one_unlucky_lane_moves_the_answer_little():
    # Through the best lane and the two beside it the vertex would lie between the two others.
    rates = 0.01 * 1.3 ** np.arange(-6.0, 7)
    losses = 1 + np.log(rates / 0.01) ** 2
    losses[7] += 0.1
    assert np.isclose(suggest.lowest_loss(curve_of(losses, rates=rates)).learning_rate, 0.01, rtol=0.1)


def test_what_noise_hides_is_lost_where_nothing_can_be_told():
    means = 1 + 0.004 * np.log(RATES / 0.013) ** 2 + (np.abs(np.arange(17) - 8) > 3)
    means[9] += 0.01
    # Seeds that differ in turn leave the means as they are, and a noise above them.
    losses = means + 0.1 * np.outer([1, -1], (-1.0) ** np.arange(17))
    found = suggest.lowest_loss(curve_of(losses))
    assert 0.004 * np.log(found.learning_rate / 0.013) ** 2 < 0.1 / 4
    assert found.low < RATES[6] and found.high > RATES[10]


def test_noise_alone_leaves_a_curve_undecided():
    noise = 0.3 * np.random.default_rng(0).normal(size=(3, len(RATES)))
    assert suggest.undecided(curve_of(bowl(0.01) * np.exp(noise)))
    # Seeds that differ alike at all rates, a single one, and a flat curve without noise leave nothing to decide.
    assert not suggest.undecided(curve_of(bowl(0.01) + np.array([[0.0], [1.0], [2.0]])))
    assert not suggest.undecided(curve_of(bowl(0.01) * np.exp(noise[:1])))
    assert not suggest.undecided(curve_of(np.ones((3, len(RATES)))))


def test_a_curve_that_diverged_everywhere_has_no_suggestion():
    curve = curve_of(bowl(0.01), diverged=range(17))
    for rule in (suggest.lowest_loss, suggest.steepest, suggest.largest_stable):
        with pytest.raises(ValueError, match=r"[Dd]iverged|diverged"):
            rule(curve)
    assert suggest.classic(curve) == {} and suggest.best_lane(curve) == 0


def test_training_losses_are_averaged_over_the_last_quarter():
    losses = np.tile(np.arange(8.0, dtype=np.float32), (1, 17, 1))
    curve = LRCurve(RATES, losses, None, np.array([], np.int32), np.full((1, 17), -1, np.int32))
    assert (suggest.final_losses(curve) == 6.5).all()
