"""Plateau control against PyTorch's, call by call, and against a loop written from the rules."""

import functools
import json
import pathlib

import adaptive_references as references
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optax_lr as olr

HERE = pathlib.Path(__file__).parents[1]
GIVEN = {
    name: oracle
    for name, oracle in json.loads((HERE / "oracles.json").read_text()).items()
    if "Plateau" in name
}
TORCH = json.loads((HERE / "torch_adaptive.json").read_text())["plateau"]

MODES = [(mode, policy) for mode in ("min", "max") for policy in ("wait", "reduce")]


def named(options):
    """PyTorch's options, as they are called here."""
    threshold, kind = options.get("threshold", 1e-4), options.get("threshold_mode", "rel")
    same = {name: options[name] for name in ("factor", "patience", "cooldown", "mode") if name in options}
    shares = {"rtol": threshold, "atol": 0.0} if kind == "rel" else {"rtol": 0.0, "atol": threshold}
    return {**same, **shares, "min_scale": options.get("min_lr", 0.0)}


def scales(tx, values, dtype=jnp.float32):
    """What updates of one are multiplied by at each call."""

    def step(state, value):
        updates, state = tx.update(jnp.ones(2, dtype), state, value=value)
        return state, updates[0]

    return jax.lax.scan(step, tx.init(jnp.ones(2, dtype)), jnp.asarray(values, float))[1]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", GIVEN)
def test_is_pytorchs_call_by_call(name, dtype):
    oracle = GIVEN[name]
    options = {key: value for key, value in oracle["config"].items() if key != "lr"}
    got = scales(olr.reduce_on_plateau(**options), oracle["metrics"], dtype)
    wanted = np.array(oracle["lr"]) / oracle["config"]["lr"]
    assert got.dtype == dtype
    np.testing.assert_allclose(np.asarray(got, float), wanted, rtol=1e-2 if dtype == jnp.bfloat16 else 2e-6)


@pytest.mark.parametrize("oracle", TORCH, ids=range(len(TORCH)))
def test_is_pytorchs_in_every_mode(oracle):
    options = named(oracle["options"])
    got = scales(olr.reduce_on_plateau(**options), oracle["metrics"])
    np.testing.assert_allclose(got, oracle["rates"], rtol=5e-6)


@pytest.mark.parametrize("oracle", TORCH, ids=range(len(TORCH)))
def test_a_negative_metric_is_the_mirror_of_a_positive_one(oracle):
    options = named(oracle["options"])
    mirrored = options | {"mode": {"min": "max", "max": "min"}[options.get("mode", "min")]}
    got = scales(olr.reduce_on_plateau(**mirrored), -np.array(oracle["metrics"]))
    np.testing.assert_allclose(got, oracle["rates"], rtol=5e-6)


@functools.cache
def compiled(mode, policy):
    """The scales of a run whose numbers are data."""

    def run(numbers, values):
        fixed = {"mode": mode, "non_finite": policy}
        return scales(olr.reduce_on_plateau(**fixed, **numbers), values)

    return jax.jit(run)


@pytest.mark.parametrize("modes", MODES, ids="-".join)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_equals_the_loop_of_the_rules(modes, data):
    numbers = data.draw(
        st.fixed_dictionaries(
            {
                "factor": st.sampled_from([0.5, 0.25, 0.9]),
                "patience": st.integers(0, 4),
                # Between two metrics of the grid below, so that rounding decides nothing.
                "rtol": st.sampled_from([0.003, 0.02]),
                "atol": st.sampled_from([0.004, 0.2]),
                "cooldown": st.integers(0, 3),
                "min_scale": st.sampled_from([1e-6, 0.1]),
                "accumulation_size": st.integers(1, 3),
                "raise_patience": st.integers(5, 9),
                "raise_after_progress": st.integers(1, 3),
                "raise_factor": st.sampled_from([1.5, 2.0, 4.0]),
                "max_scale": st.sampled_from([1.0, 2.0, 64.0]),
            }
        )
    )
    random = np.random.default_rng(data.draw(st.integers(0, 999)))
    values = random.choice([-1, 1]) * (3 + random.integers(0, 9, size=200) / 8)
    values[random.random(200) < 0.05] = random.choice([np.nan, np.inf, -np.inf])
    got = compiled(*modes)(numbers, values)
    fixed = dict(zip(("mode", "non_finite"), modes, strict=True))
    expected = references.plateau(values, **fixed, **numbers)
    np.testing.assert_allclose(got, expected, rtol=5e-5)


COLUMNS = {
    "scale": {},
    "with cooldown=1": {"cooldown": 1},
    "with raise_patience=4": {"raise_patience": 4},
    "raise_after_progress=1": {"raise_after_progress": 1},
}


@pytest.mark.parametrize("row", COLUMNS)
def test_the_table_of_the_docstring_is_true(row):
    lines = {
        line.strip()[:23].strip(): line.strip()[23:].split()
        for line in olr.reduce_on_plateau.__doc__.splitlines()
    }
    values = [float(value) for value in lines["value"]]
    got = scales(olr.reduce_on_plateau(patience=2, factor=0.5, **COLUMNS[row]), values)
    assert [{"½": 0.5, "¼": 0.25, "1": 1.0}[sign] for sign in lines[row]] == got.tolist()


def test_a_scale_is_lowered_and_raised_in_turn():
    values = [5.0] * 20
    options = {"patience": 2, "factor": 0.5, "raise_patience": 5, "raise_factor": 8.0, "max_scale": 4.0}
    for cooldown, expected in ((0, [0.5, 4.0, 2.0, 4.0, 2.0]), (4, [0.5, 4.0, 2.0])):
        got = scales(olr.reduce_on_plateau(cooldown=cooldown, **options), values)
        np.testing.assert_allclose(got, references.plateau(values, cooldown=cooldown, **options))
        changes = np.flatnonzero(np.diff(got))
        assert got[changes + 1].tolist()[: len(expected)] == expected
        # Whatever changed the scale, the next checks of the cooldown do not.
        assert (np.diff(changes) > cooldown).all()


@pytest.mark.parametrize("seed", range(20))
def test_a_scale_that_is_only_raised_follows_the_rules(seed):
    random = np.random.default_rng(seed)
    values = 3 + random.integers(0, 9, size=200) / 8
    numbers = {
        "factor": None,
        "cooldown": int(random.integers(0, 5)),
        "raise_patience": int(random.integers(1, 20)),
        "raise_factor": 2.0,
        "max_scale": 50.0,
    }
    got = scales(olr.reduce_on_plateau(**numbers), values)
    np.testing.assert_allclose(got, references.plateau(values, **numbers))
    assert (np.diff(got) >= 0).all()


def steps_to_leave_the_saddle(*middle):
    """Steps until p1 has gone half the way from the saddle to the minimum, at p1 = 1."""

    def loss(p):
        return p[0] ** 2 - 0.02 * p[1] ** 2 + 0.01 * p[1] ** 4

    tx = optax.chain(*middle, optax.sgd(0.05))

    def step(carry, _):
        params, state = carry
        value, grad = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grad, state, params, value=value)
        return (optax.apply_updates(params, updates), state), params[1]

    start = jnp.array([1.0, 0.001])
    way = jax.lax.scan(step, (start, tx.init(start)), length=4000)[1]
    assert 0.9 < way[-1] < 1.01
    return int(np.argmax(way > 0.5))


@pytest.mark.parametrize(
    "options",
    [
        {"factor": None, "raise_patience": 10, "atol": 1e-4, "max_scale": 15.0},
        {"factor": None, "raise_factor": 2.0, "raise_patience": 10, "atol": 1e-3, "max_scale": 16.0},
        {"patience": 10, "cooldown": 20, "raise_patience": 15, "raise_factor": 200.0}
        | {"atol": 1e-4, "max_scale": 15.0},
    ],
    ids=["once", "by twos", "in turn"],
)
def test_a_raise_leaves_the_saddle(options):
    assert steps_to_leave_the_saddle() > 3000
    assert steps_to_leave_the_saddle(olr.reduce_on_plateau(**options)) < 400


@pytest.mark.parametrize("oracle", TORCH, ids=range(len(TORCH)))
def test_a_loss_that_is_known_after_each_epoch_is_pytorchs(oracle):
    """Epochs of 4 steps: PyTorch steps its scheduler after each, and the next epoch has the new rate."""
    known = np.concatenate([[np.inf], oracle["metrics"]])
    tx = olr.reduce_on_plateau(every=4, **named(oracle["options"]))
    got = scales(tx, np.repeat(known, 4)).reshape(-1, 4)
    np.testing.assert_allclose(got[:-1], np.repeat(oracle["rates"], 4).reshape(-1, 4), rtol=5e-6)


def test_a_late_value_of_an_epoch_is_not_read():
    values = np.full((6, 3), [1.0, 9.0, np.nan])
    got = scales(olr.reduce_on_plateau(patience=0, factor=0.5, every=3), values.ravel())
    assert got.reshape(6, 3)[:, 0].tolist() == [1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125]
    assert (got.reshape(6, 3) == got.reshape(6, 3)[:, :1]).all()


def test_a_warmup_is_no_check():
    """A schedule warms up while NaN is passed: then the plateau starts, as timm's does after `warmup_t`."""
    warmup, losses = 5, [3.0] * 12
    rate = olr.with_warmup(optax.constant_schedule(0.5), warmup)
    tx = optax.chain(olr.scale_by_learning_rate(rate), olr.reduce_on_plateau(patience=2, factor=0.5))
    state, got = tx.init(jnp.ones(())), []
    for step, loss in enumerate(losses):
        value = jnp.where(step < warmup, jnp.nan, loss)
        updates, state = tx.update(jnp.ones(()), state, value=value)
        got.append(-float(updates))
    after = references.plateau(losses[warmup:], patience=2, factor=0.5)
    np.testing.assert_allclose(got, [float(rate(step)) for step in range(warmup)] + list(0.5 * after))


def test_a_value_that_is_not_finite_waits_or_cuts():
    values = [1.0, np.nan, np.inf, -np.inf, 1.0, 1.0]
    wait = scales(olr.reduce_on_plateau(patience=1, factor=0.5), values)
    cut = scales(olr.reduce_on_plateau(patience=1, factor=0.5, cooldown=9, non_finite="reduce"), values)
    assert wait.tolist() == [1.0] * 6
    assert cut.tolist() == [1.0, 1.0, 0.5, 0.25, 0.125, 0.125]


def test_a_long_window_loses_nothing():
    """A running mean of ones in float32 is one however many there are; 0.1 stays 0.1."""
    tx = olr.reduce_on_plateau(accumulation_size=1000)
    step = jax.jit(lambda state, value: tx.update((), state, value=value)[1])
    state = tx.init(jnp.ones(2, jnp.bfloat16))
    for _ in range(999):
        state = step(state, jnp.bfloat16(0.1))
    assert float(state.avg_value) == float(jnp.bfloat16(0.1)) and int(state.count) == 999


def test_an_integer_leaf_passes():
    tx = olr.reduce_on_plateau(patience=0, factor=0.5)
    updates = {"w": jnp.ones(2), "n": jnp.arange(2), "frozen": np.zeros(2, jax.dtypes.float0)}
    state = tx.init(updates)
    for value in (1.0, 1.0, 1.0):
        scaled, state = tx.update(updates, state, value=value)
    assert scaled["w"].tolist() == [0.5, 0.5] and scaled["n"].tolist() == [0, 1]
    assert scaled["frozen"].dtype == jax.dtypes.float0


def test_around_micro_steps_a_window_sees_every_value():
    tx = optax.chain(
        optax.MultiSteps(optax.identity(), 2).gradient_transformation(),
        olr.reduce_on_plateau(patience=0, factor=0.5, accumulation_size=2),
    )
    state, emitted = tx.init(jnp.ones(1)), []
    for value in (1.0, 3.0, 1.0, 3.0, 1.0, 1.0):
        updates, state = tx.update(jnp.ones(1), state, value=value)
        emitted.append(float(updates[0]))
    assert emitted == [0.0, 1.0, 0.0, 1.0, 0.0, 0.5]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mode": "low"}, "mode must be one of 'min', 'max', got 'low'."),
        (
            {"raise_factor": 2.0},
            "raise_factor=2.0 needs raise_patience or raise_after_progress, got neither.",
        ),
        ({"factor": None}, "factor=None needs raise_patience or raise_after_progress, got neither."),
        (
            {"factor": None, "raise_patience": 3},
            "max_scale must be above 1 where factor is None, got 1.0.",
        ),
        (
            {"factor": None, "raise_patience": 3, "max_scale": 2.0, "non_finite": "reduce"},
            "non_finite must be 'wait' where factor is None, got 'reduce'.",
        ),
        ({"every": 0.5}, "every must be a number of calls, not a share, got 0.5."),
    ],
)
def test_refusals_read_well(options, sentence, unhooked):
    with pytest.raises(ValueError, match=r"must|needs") as refusal:
        unhooked.reduce_on_plateau(**options)
    assert str(refusal.value) == sentence


def test_a_raise_comes_after_patience(unhooked):
    with pytest.raises(ValueError, match=r"^raise_patience must be .* 4 .*, got 3\.$"):
        unhooked.reduce_on_plateau(patience=3, raise_patience=3)


def test_a_metric_of_several_numbers_is_refused(unhooked):
    tx = unhooked.reduce_on_plateau()
    with pytest.raises(ValueError, match=r"^value must be one number, got an array of shape \(2,\)\.$"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), value=jnp.ones(2))
    with pytest.raises(ValueError, match=r"^value must be the metric to watch, as in .*, got None\.$"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
