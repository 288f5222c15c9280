"""A rate for another run: each factor by its formula, intervals that widen, and reasons that name the source."""

import dataclasses
import math
import re

import numpy as np
import pytest

import optax_lr as olr
from optax_lr import LRCurve, Suggestion

RATES = 2.0 ** np.arange(-12, 3)


def curve_of(best, steps):
    losses = np.broadcast_to(np.exp(0.1 * np.log(RATES / best) ** 2)[None, :, None], (1, len(RATES), steps))
    return LRCurve(
        RATES, losses.astype(np.float32), None, np.array([], np.int32), np.full((1, len(RATES)), -1, np.int32)
    )


ONE = Suggestion(0.04, 0.03, 0.06, "Lowest.", curve_of(0.04, 100))


def drifting(slope):
    shorter = tuple(curve_of(0.04 * (steps / 100) ** slope, steps) for steps in (25, 50))
    return Suggestion(0.04, 0.03, 0.06, "Lowest.", curve_of(0.04, 100), shorter=shorter)


def slope_in(reason, lengths):
    """The slope that was taken from runs of some lengths."""
    return float(re.search(rf"steps\^(\S+), off the best rates of runs of {lengths} steps", reason)[1])


@pytest.mark.parametrize("slope", [-0.5, -0.2, -0.9])
def test_the_drift_between_shorter_runs_is_carried_on(slope):
    found = olr.lr_transfer(drifting(slope), horizon=1600)
    taken = min(slope, -0.25)  # a rate that is too high costs more
    assert found.learning_rate == pytest.approx(0.04 * 16**taken, rel=0.05)
    bounds = [0.03 * 16 ** max(taken - 0.25, -1), 0.06 * 16 ** min(taken + 0.25, 0)]
    assert [found.low, found.high] == pytest.approx(bounds, rel=0.05)
    assert slope_in(found.reason, "25, 50 and 100") == pytest.approx(taken, abs=0.02)


def test_the_steps_of_the_found_run_are_those_of_its_full_runs_or_as_told():
    full = Suggestion(0.04, 0.03, 0.06, "Lowest.", curve_of(0.04, 100), finalists=curve_of(0.04, 400))
    assert olr.lr_transfer(full, horizon=1600).learning_rate == pytest.approx(0.04 / 2)
    assert olr.lr_transfer(full, horizon=1600, base_horizon=100).learning_rate == pytest.approx(0.04 / 4)
    same = olr.lr_transfer(full, horizon=400)
    assert (same.learning_rate, same.low, same.high) == (0.04, 0.03, 0.06)


# Optimizer, base and new batch size, critical one, factor, and those of both bounds.
BATCHES = [
    ("sgd", 64, 256, None, 2, 1, 4),
    ("sgd", 64, 256, 1000, 4, 2, 4),
    ("sgd", 64, 256, 128, 2, math.sqrt(2), 2),
    ("sgd", 256, 64, None, 1 / 4, 1 / 4, 1 / 2),
    ("adam", 64, 256, None, 2, 1, 4**0.75),
    ("lion", 64, 256, 1000, 2, math.sqrt(2), 4**0.75),
    ("muon", 64, 1024, 16, 1, 1, 1),
]


@pytest.mark.parametrize(("kind", "base", "size", "critical", "factor", "low", "high"), BATCHES)
def test_the_batch_size_counts_linearly_or_by_its_root(kind, base, size, critical, factor, low, high):
    found = olr.lr_transfer(
        ONE, batch_size=size, base_batch_size=base, critical_batch_size=critical, optimizer=kind
    )
    wanted = [0.04 * factor, 0.03 * low, 0.06 * high]
    assert [found.learning_rate, found.low, found.high] == pytest.approx(wanted)
    assert ("arXiv:1706.02677" if kind == "sgd" else "arXiv:2205.10287") in found.reason
    assert ("arXiv:1812.06162" in found.reason) == (critical is not None)


def test_the_drift_is_that_of_all_lengths_by_least_squares():
    bests = {25: 0.08, 50: 0.08, 100: 0.04}
    curves = [curve_of(best, steps) for steps, best in bests.items()]
    one = dataclasses.replace(ONE, curve=curves[-1], shorter=tuple(curves[:-1]))
    slope = np.polyfit(np.log(list(bests)), np.log(list(bests.values())), 1)[0]
    assert slope == pytest.approx(-0.5)
    assert olr.lr_transfer(one, horizon=1600).learning_rate == pytest.approx(0.04 / 4, rel=0.05)


def test_a_length_whose_best_rate_stands_beside_a_lost_one_has_no_part_in_the_drift():
    def beside(curve, best):
        return dataclasses.replace(
            curve, diverged_at=np.where(best * 1.5 > RATES, -1, 7).astype(np.int32)[None]
        )

    steep = drifting(-0.9)
    first = (beside(curve_of(0.01, 25), 0.01), *steep.shorter[1:])
    found = olr.lr_transfer(dataclasses.replace(steep, shorter=first), horizon=1600)
    assert found.learning_rate == pytest.approx(0.04 * 16**-0.9, rel=0.05)
    last = dataclasses.replace(steep, curve=beside(steep.curve, 0.04))
    assert olr.lr_transfer(last, horizon=1600).learning_rate == pytest.approx(0.04 * 16**-0.25)
    # Nor does a shorter run raise the rate to what diverged, where no other length tells.
    alone = olr.lr_transfer(dataclasses.replace(last, shorter=()), horizon=25)
    assert alone.learning_rate == pytest.approx(0.04) and "beside one that diverged" in alone.reason
    none = dataclasses.replace(steep, shorter=first[:1])
    assert "since no shorter runs tell" in olr.lr_transfer(none, horizon=1600).reason


def test_runs_that_have_barely_begun_tell_no_drift_where_two_longer_lengths_do():
    steep = drifting(-0.9)
    begun = [dataclasses.replace(each, reference=np.float32([1.4])) for each in steep.shorter]
    barely = dataclasses.replace(begun[0], losses=begun[0].losses + np.float32(0.25))
    longest = dataclasses.replace(steep.curve, reference=np.float32([1.4]))
    one = dataclasses.replace(steep, curve=longest, shorter=(barely, begun[1]))
    found = olr.lr_transfer(one, horizon=1600)
    assert slope_in(found.reason, "50 and 100") == pytest.approx(-0.9, abs=0.02)
    alone = olr.lr_transfer(dataclasses.replace(one, shorter=(barely,)), horizon=1600)
    assert "runs of 25 and 100 steps" in alone.reason


def test_a_rate_that_was_found_for_a_horizon_is_carried_on_from_there(tmp_path):
    curves = [curve_of(0.04 * (steps / 100) ** -0.5, steps) for steps in (50, 100)]
    found = olr.suggest.for_horizon(curves, 1600)
    found.save(tmp_path / "found.npz")
    for one in (found, Suggestion.load(tmp_path / "found.npz")):
        assert one.horizon == 1600
        same, longer = (olr.lr_transfer(one, horizon=steps) for steps in (1600, 6400))
        assert [same.learning_rate, same.low, same.high] == [one.learning_rate, one.low, one.high]
        assert longer.learning_rate == pytest.approx(one.learning_rate / 2, rel=0.05)
        assert longer.horizon == 6400 and "Steps 1600 to 6400" in longer.reason


def test_a_carried_rate_is_carried_on_from_where_it_is():
    there = olr.lr_transfer(olr.lr_transfer(ONE, horizon=400), horizon=1600)
    assert there.learning_rate == pytest.approx(olr.lr_transfer(ONE, horizon=1600).learning_rate)
    assert olr.lr_transfer(there, width=4, base_width=2).horizon == 1600


def test_the_rate_of_a_range_test_needs_to_be_told_for_how_many_steps_it_is(unhooked):
    found = dataclasses.replace(ONE, curve=curve_of(0.04, 1))
    with pytest.raises(ValueError, match="horizon needs base_horizon beside it, since a range test"):
        unhooked.lr_transfer(found, horizon=100)
    assert olr.lr_transfer(found, horizon=400, base_horizon=100).learning_rate == pytest.approx(0.02)


def test_a_shorter_run_takes_the_drift_as_it_was_seen():
    found = olr.lr_transfer(drifting(-0.1), horizon=25)
    assert found.learning_rate == pytest.approx(0.04 * 4**0.1, rel=0.05)


# The lowest rate that diverged, and the factor of a batch four times as large where the square root is 2.
DIVERGED = [(0.25, 2.0), (0.125, 0.125 / 2 / 0.04), (0.0625, 1.0)]


@pytest.mark.parametrize(("lowest", "factor"), DIVERGED)
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_larger_batches_stay_below_what_diverged(kind, lowest, factor):
    curve = dataclasses.replace(ONE.curve, diverged_at=np.where(lowest > RATES, -1, 7).astype(np.int32)[None])
    one = dataclasses.replace(ONE, curve=curve)
    found = olr.lr_transfer(one, batch_size=256, base_batch_size=64, optimizer=kind)
    assert found.learning_rate == pytest.approx(0.04 * factor)
    assert found.low <= found.learning_rate <= found.high
    assert ("half of the lowest rate that diverged" in found.reason) == (factor < 2)


def test_the_width_changes_nothing_but_the_interval():
    found = olr.lr_transfer(ONE, width=1024, base_width=64)
    assert found.learning_rate == 0.04
    assert [found.low, found.high] == pytest.approx([0.03 * 16**-0.2, 0.06 * 16**0.2])
    assert found.reason == (
        "Lowest.\nWidth 64 to 1024: x1, between 0.574 and 1.74 (unchanged under width_multipliers and "
        "rescale_init, Yang et al. 2022, arXiv:2203.03466)."
    )


def test_factors_multiply_and_so_do_calls():
    steps, batch, width = (
        {"horizon": 400},
        {"batch_size": 8, "base_batch_size": 2},
        {"width": 4, "base_width": 2},
    )
    together = olr.lr_transfer(ONE, **steps, **batch, **width)
    apart = olr.lr_transfer(olr.lr_transfer(olr.lr_transfer(ONE, **steps), **batch), **width)
    for name in ("learning_rate", "low", "high"):
        assert getattr(together, name) == pytest.approx(getattr(apart, name))
    assert together.reason == apart.reason and len(together.reason.splitlines()) == 4
    assert together.low < together.learning_rate < together.high
    assert together.learning_rate == pytest.approx(0.04 * 0.5 * 2)


BAD = {
    "nothing": (
        {},
        "lr_transfer needs a horizon, a batch_size or a width to carry the rate over to, got none.",
    ),
    "no base": (
        {"batch_size": 64},
        "batch_size needs base_batch_size beside it, got batch_size=64 and base_batch_size=None.",
    ),
    "no width": (
        {"base_width": 64},
        "width needs base_width beside it, got width=None and base_width=64.",
    ),
    "no horizon": ({"base_horizon": 10}, "base_horizon needs horizon, the length of the run to come."),
    "no batches": (
        {"horizon": 10, "critical_batch_size": 3},
        "critical_batch_size needs batch_size and base_batch_size.",
    ),
    "a size of 0": (
        {"batch_size": 0, "base_batch_size": 2},
        "batch_size must be a finite number above 0, got 0.",
    ),
    "a critical size of 0": (
        {"batch_size": 4, "base_batch_size": 2, "critical_batch_size": 0},
        "critical_batch_size must be a finite number above 0, got 0.",
    ),
    "half a step": (
        {"horizon": 10.5},
        "horizon must be a whole number of steps from 1 to 2^31 - 1, got 10.5.",
    ),
    "an optimizer": (
        {"horizon": 10, "optimizer": "adamw"},
        "optimizer must be one of 'adam', 'lion', 'muon', 'sgd', got 'adamw'.",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_sentence(name, unhooked):
    options, sentence = BAD[name]
    with pytest.raises(ValueError, match=r"\S") as refusal:
        unhooked.lr_transfer(ONE, **options)
    assert str(refusal.value) == sentence
