"""Schedules against values that other libraries computed, and what is particular to one of them."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_lr as olr

HERE = pathlib.Path(__file__).parents[1]
ORACLES = json.loads((HERE / "oracles.json").read_text())
TORCH = json.loads((HERE / "torch_oracles.json").read_text())
CURVES = {"cos": olr.curves.cosine, "linear": olr.curves.linear}


def check_oracle(schedule, expected):
    """Law 3's bound, under jit."""
    expected = np.asarray(expected)
    values = jax.jit(jax.vmap(schedule))(np.arange(len(expected), dtype=np.int32))
    np.testing.assert_allclose(
        values, expected, rtol=0, atol=1e-6 * np.ptp(expected) + 2.0**-22 * expected.max()
    )


SGDR = olr.sgdr_schedule(0.1, 0.003, olr.Cycles(5, growth=2))
TIMM = olr.sgdr_schedule(0.1, 0.001, olr.Cycles(20, limit=4), peak_decay=0.5)
WSD = olr.warmup_stable_decay_schedule(
    0.1, warmup_steps=10, stable_steps=30, decay_steps=20, init_value=0.01, end_value=0.01
)


def cyclic(**options):
    """The rate and the momentum of the oracles' `CyclicLR`."""
    return (
        olr.cyclical_schedule(0.001, 0.1, 10, **options),
        olr.cyclical_momentum_schedule(0.8, 0.95, 10, **options),
    )


@pytest.mark.parametrize(
    ("name", "schedule", "momentum"),
    [
        ("torch.StepLR", olr.exponential_decay(0.1, 7, 0.3, staircase=True), None),
        ("torch.ExponentialLR", olr.exponential_decay(0.1, 1, 0.93), None),
        ("torch.CosineAnnealingWarmRestarts.Tm2", SGDR, None),
        ("torch.CyclicLR.triangular2", *cyclic(mode="triangular2")),
        ("torch.CyclicLR.exp_range", *cyclic(mode="exp_range", decay_rate=0.97)),
        (
            "torch.OneCycleLR.cos.2ph",
            olr.one_cycle_schedule(0.5, 50),
            olr.one_cycle_momentum_schedule(50),
        ),
        ("timm.Cosine.cycle", TIMM, None),
        ("hf.wsd.default", WSD, None),
        ("hf.inverse_sqrt", olr.inverse_sqrt_schedule(0.1, 10), None),
        ("ps.rex", olr.anneal_schedule(0.1, 0.0, 60, curve=olr.curves.rex), None),
    ],
)
def test_equals_other_libraries(name, schedule, momentum):
    check_oracle(schedule, ORACLES[name]["lr"])
    if momentum:
        check_oracle(momentum, ORACLES[name]["momentum"])


def test_every_schedule_oracle_is_used():
    used = {name for mark in test_equals_other_libraries.pytestmark for name, *_ in mark.args[1]}
    assert used == {name for name in ORACLES if "Plateau" not in name}


def test_an_oracle_can_fail():
    oracle = ORACLES["torch.OneCycleLR.cos.2ph"]
    with pytest.raises(AssertionError):
        check_oracle(olr.one_cycle_schedule(0.5, 51), oracle["lr"])


@pytest.mark.parametrize("name", [name for name in TORCH if name.startswith("OneCycleLR")])
def test_one_cycle_is_pytorchs_in_every_form(name):
    config = TORCH[name]["config"]
    shared = {name: config[name] for name in ("pct_start", "three_phase")}
    shared["transition_steps"] = config["total_steps"]
    shared["curve"] = CURVES[config["anneal_strategy"]]
    factors = {name: config[name] for name in ("div_factor", "final_div_factor")}
    check_oracle(olr.one_cycle_schedule(config["max_lr"], **shared, **factors), TORCH[name]["lr"])
    check_oracle(olr.one_cycle_momentum_schedule(**shared), TORCH[name]["momentum"])


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("CyclicLR", olr.cyclical_schedule(0.01, 0.5, 7, down_steps=12)),
        ("MultiStepLR", olr.piecewise_constant_schedule(0.1, dict.fromkeys([5, 17, 40], 0.3))),
        ("PolynomialLR", olr.polynomial_schedule(0.1, 0.0, 1.7, 33)),
        ("CosineAnnealingLR", olr.anneal_schedule(0.1, 0.01, 30)),
    ],
)
def test_equals_pytorch_at_other_arguments(name, schedule):
    check_oracle(schedule, TORCH[name]["lr"])


def test_timms_tanh_and_k_decay_by_their_formulas():
    t = np.arange(100) / 100
    tanh = olr.anneal_schedule(0.1, 0.001, 100, curve=olr.curves.tanh())
    check_oracle(tanh, 0.001 + 0.099 * (1 - np.tanh(-7 * (1 - t) + 3 * t)) / 2)
    assert tanh(100) == np.float32(0.001)
    k_decay = olr.sgdr_schedule(0.1, 0.001, olr.Cycles(100), curve=olr.curves.k_decay(1.5))
    check_oracle(k_decay, 0.001 + 0.099 * (1 + np.cos(np.pi * t**1.5)) / 2)


PERIODS = np.arange(1, 4097, dtype=np.int32)


@pytest.mark.parametrize("way", ["constant", "traced", "traced float", "float step"])
def test_boundaries_are_exact_for_every_period(way):
    dtype = np.float32 if way == "traced float" else np.int32

    def at_boundaries(period):
        counts = jnp.array([1, 2, 3, 127, 4095])
        starts = period.astype(np.int32) * counts
        kind = np.float32 if way == "float step" else np.int32
        steps = jnp.concatenate([starts, starts - 1]).astype(kind)
        drops = olr.in_epochs(lambda epoch: epoch, period, staircase=True)
        ramp = olr.sgdr_schedule(1.0, 0.0, olr.Cycles(period), curve=olr.curves.linear)
        halves = olr.exponential_decay(1.0, period, 0.5, staircase=True)
        cyclical = olr.cyclical_schedule(0.0, 1.0, period, scale=lambda cycle: cycle + 1)
        return [jax.vmap(schedule)(steps) for schedule in (drops, ramp, halves, cyclical)]

    periods = PERIODS.astype(dtype)
    if way == "constant":
        results = jax.jit(lambda: jax.vmap(at_boundaries)(jnp.asarray(periods)))()
    else:
        results = jax.jit(jax.vmap(at_boundaries))(periods)
    drops, ramp, halves, cyclical = map(np.asarray, results)
    counts = np.array([1, 2, 3, 127, 4095])
    assert (drops == np.concatenate([counts, counts - 1])).all()
    assert (ramp[:, :5] == 1).all()
    np.testing.assert_allclose(ramp[:, 5:], np.broadcast_to(1 / PERIODS[:, None], (4096, 5)), atol=3e-7)
    expected = 0.5 ** np.concatenate([counts, counts - 1]).astype(float)
    np.testing.assert_allclose(halves, np.broadcast_to(expected, halves.shape), rtol=1e-5, atol=1e-37)
    peaks = np.broadcast_to((counts + 1) / 2, (4096, 5))[:, [0, 2, 3, 4]]
    assert (cyclical[:, [0, 2, 3, 4]] == peaks).all() and (cyclical[:, 1] == 0).all()


@pytest.mark.parametrize("period", [41, 47, 55, 61, 4093])
def test_boundaries_are_exact_where_the_period_is_a_number_in_the_program(period):
    schedule = jax.jit(jax.vmap(olr.exponential_decay(1.0, period, 0.5, staircase=True)))
    counts = np.arange(1, 100, dtype=np.int32)
    np.testing.assert_array_equal(schedule(counts * period), schedule((counts + 1) * period - 1))
    assert (np.diff(schedule(counts * period)) < 0).all()


def count_equations(jaxpr):
    """Equations, those of inner jaxprs in place of the call."""
    total = 0
    for equation in jaxpr.eqns:
        inner = [p.jaxpr for p in equation.params.values() if hasattr(p, "jaxpr")]
        total += sum(map(count_equations, inner)) if inner else 1
    return total


def test_the_cost_does_not_grow_with_the_cycles():
    def equations(schedule):
        return count_equations(jax.make_jaxpr(schedule)(0).jaxpr)

    def sgdr(growth, limit):
        return olr.sgdr_schedule(0.1, 0.0, olr.Cycles(10, growth, limit), peak_decay=0.9)

    for growth in (1, 2, 1.01):
        assert len({equations(sgdr(growth, limit)) for limit in (16, 64, 500)}) == 1
        assert equations(sgdr(growth, 500)) <= 60
        assert equations(sgdr(growth, None)) <= 60
    for mode, rate in (("triangular", 1.0), ("triangular2", 1.0), ("exp_range", 0.9)):
        assert equations(olr.cyclical_schedule(0.1, 1.0, 10, mode=mode, decay_rate=rate)) <= 60


def test_fractional_counts_work_for_float_steps():
    schedule = olr.exponential_decay(1.0, 2.5, 0.5, staircase=True)
    assert [float(schedule(t)) for t in (0.0, 2.4, 2.5, 4.9, 5.0)] == [1.0, 1.0, 0.5, 0.5, 0.25]
    assert [float(schedule(t)) for t in (2, 3, 4, 5)] == [1.0, 0.5, 0.5, 0.25]
    traced = jax.jit(lambda n, t: olr.exponential_decay(1.0, n, 0.5, staircase=True)(t))
    assert [float(traced(2.5, t)) for t in (2, 3, 4, 5)] == [1.0, 0.5, 0.5, 0.25]
    warm = olr.warmup_stable_decay_schedule(
        1.0, warmup_steps=1.5, stable_steps=1.75, decay_steps=2.25, num_cycles=2
    )
    expected = [0.0, 0.5, 1.0, 1.0, 1.0, 0.5, 0.0, 0.5]
    got = [float(warm(t)) for t in (0.0, 0.75, 1.5, 2.0, 3.25, 4.375, 5.5, 6.25)]
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_a_traced_count_out_of_range_is_raised_to_its_minimum():
    values = jax.vmap(lambda n: olr.exponential_decay(1.0, n, 0.5, staircase=True)(3))(jnp.array([-2, 0, 1]))
    assert values.tolist() == [0.125] * 3


def test_a_step_that_is_not_finite_harms_itself_alone():
    schedule = olr.anneal_schedule(1.0, 0.5, 10)
    values = jax.vmap(schedule)(jnp.array([0.0, jnp.nan, jnp.inf, -jnp.inf]))
    assert values[0] == 1 and values[2] == 0.5 and values[3] == 1


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (
            lambda olr: olr.knot_schedule({}),
            "knots must be a dict with at least one step and its value, got {}.",
        ),
        (
            lambda olr: olr.knot_schedule({-1: 0.1}),
            "a step of knots must be a number of steps from 0 to 2^31 - 1, got -1.",
        ),
        (
            lambda olr: olr.knot_schedule({0: float("nan")}),
            "knots[0] must be a finite number of at least 0, got nan.",
        ),
        (
            lambda olr: olr.join_schedules([lambda step: 0.1] * 3, [30, 20]),
            "boundaries must be in increasing order, got [30, 20].",
        ),
        (
            lambda olr: olr.join_schedules([lambda step: 0.1] * 2, 30),
            "boundaries must be a sequence of numbers of steps, got 30.",
        ),
        (
            lambda olr: olr.piecewise_constant_schedule(1.0, {0.5: 0.1}),
            "a step of boundaries_and_scales must be a number of steps, not a share, got 0.5.",
        ),
        (
            lambda olr: olr.with_warmup(olr.constant_schedule(0.1), 0.1),
            "warmup_steps must be a number of steps, not a share, got 0.1.",
        ),
        (
            lambda olr: olr.with_warmup(olr.linear_schedule, 10),
            "schedule must be a function, got linear_schedule, which must be called to make one.",
        ),
        (
            lambda olr: olr.warmup_cosine_decay_schedule(0.0, 0.1, 100, 100),
            "decay_steps counts the warm-up too and must be above warmup_steps=100, got 100.",
        ),
        (
            lambda olr: olr.linear_onecycle_schedule(100, 0.1, 0.5, 0.4),
            "pct_final must be at least pct_start=0.5, got 0.4.",
        ),
        (
            lambda olr: olr.table_schedule(0.1),
            "values must be one row of at least one number, got 0.1.",
        ),
        (
            lambda olr: olr.sgdr_schedule(0.1, 0.0, 0),
            "cycle_steps must be a number of steps from 1 to 2^31 - 1, got 0.",
        ),
        (
            lambda olr: olr.sgdr_schedule(0.1, 0.0, 5, warmup_steps=5),
            "warmup_steps must be below the 5 steps of the first cycle, got 5.",
        ),
        (
            lambda olr: olr.cyclical_schedule(0.1, 0.2, 5, mode="square"),
            "mode must be one of 'triangular', 'triangular2', 'exp_range', got 'square'.",
        ),
        (
            lambda olr: olr.cyclical_schedule(0.1, 0.2, 5, decay_rate=0.5),
            "decay_rate must be left out unless mode is 'exp_range', got 0.5.",
        ),
        (
            lambda olr: olr.cyclical_schedule(0.3, 0.2, 5),
            "peak_value must be at least init_value=0.3, got 0.2.",
        ),
        (
            lambda olr: olr.one_cycle_schedule(0.1, 100, pct_start=0.005),
            "pct_start=0.005 leaves a phase of transition_steps=100 without a step.",
        ),
        (
            lambda olr: olr.slanted_triangular_schedule(0.1, 5),
            "cut_fraction=0.1 leaves no step to rise in of transition_steps=5.",
        ),
        (
            lambda olr: olr.warmup_stable_decay_schedule(1.0, warmup_steps=0, stable_steps=0, decay_steps=0),
            "warmup_steps=0, stable_steps=0 and decay_steps=0 leave the schedule without a step.",
        ),
    ],
)
def test_refusals_read_well(unhooked, build, sentence):
    with pytest.raises(ValueError, match=r".") as refusal:
        build(unhooked)
    assert str(refusal.value) == sentence


def test_scale_and_a_mode_exclude_each_other(unhooked):
    with pytest.raises(ValueError, match="scale must be left out unless mode is 'triangular'"):
        unhooked.cyclical_schedule(0.1, 0.2, 5, mode="triangular2", scale=lambda cycle: 1.0)
