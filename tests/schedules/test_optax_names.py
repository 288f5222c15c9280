"""Optax's own schedules: the same values at every step, but where Optax is wrong."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_lr as olr

CONFIGURATIONS = 30
STEPS = np.arange(140, dtype=np.int32)


def rate(rng, low=1e-3, high=1.0):
    return float(rng.uniform(low, high))


def count(rng, low=1, high=100):
    return int(rng.integers(low, high))


def scales(rng):
    steps = rng.choice(np.arange(1, 120), size=rng.integers(1, 5), replace=False)
    return {int(step): float(rng.choice([0.0, 0.1, 0.5, 1.0, rng.uniform(0, 2)])) for step in steps}


def exponential(rng, init):
    """A decay or a growth, with its bound on the right side."""
    decay_rate = float(rng.choice([rng.uniform(0.1, 0.99), rng.uniform(1.01, 1.5)]))
    bound = init * (rng.uniform(0, 0.9) if decay_rate < 1 else rng.uniform(1.1, 5))
    return {
        "transition_steps": count(rng),
        "decay_rate": decay_rate,
        "transition_begin": count(rng, 0, 30),
        "staircase": bool(rng.integers(2)),
        "end_value": rng.choice([None, float(bound)]),
    }


def onecycle(rng):
    return {
        "transition_steps": count(rng, 10, 130),
        "peak_value": rate(rng),
        "pct_start": float(rng.uniform(0.15, 0.45)),
        "div_factor": float(rng.uniform(1, 30)),
        "final_div_factor": float(rng.uniform(1, 1e4)),
    }


def of_ends(rng):
    return {"init_value": rate(rng), "end_value": rate(rng)}


def transition(rng):
    return {**of_ends(rng), "transition_steps": count(rng), "transition_begin": count(rng, 0, 30)}


def warmup(rng):
    return {"init_value": rate(rng), "peak_value": rate(rng), "warmup_steps": count(rng)}


def warmup_cosine(rng):
    numbers = {**warmup(rng), "end_value": rate(rng), "exponent": float(rng.uniform(0.5, 3))}
    return {**numbers, "decay_steps": numbers["warmup_steps"] + count(rng)}


def with_init(rng, rest):
    init = rate(rng)
    return {"init_value": init, **rest(rng, init)}


# Every schedule of Optax but `sgdr_schedule`, whose list of dicts is `Cycles` here, and a draw of its arguments.
DRAWS = {
    "constant_schedule": lambda rng: {"value": rate(rng)},
    "linear_schedule": transition,
    "polynomial_schedule": lambda rng: {**transition(rng), "power": float(rng.uniform(0.5, 4))},
    "cosine_decay_schedule": lambda rng: {
        "init_value": rate(rng),
        "decay_steps": count(rng),
        "alpha": float(rng.uniform(0, 1)),
        "exponent": float(rng.uniform(0.5, 3)),
    },
    "exponential_decay": lambda rng: with_init(rng, exponential),
    "piecewise_constant_schedule": lambda rng: {
        "init_value": rate(rng),
        "boundaries_and_scales": rng.choice([None, scales(rng)]),
    },
    "piecewise_interpolate_schedule": lambda rng: {
        "interpolate_type": str(rng.choice(["linear", "cosine"])),
        "init_value": rate(rng),
        "boundaries_and_scales": rng.choice([None, scales(rng)]),
    },
    "cosine_onecycle_schedule": onecycle,
    "linear_onecycle_schedule": lambda rng: {**onecycle(rng), "pct_final": float(rng.uniform(0.6, 0.95))},
    "warmup_constant_schedule": warmup,
    "warmup_cosine_decay_schedule": warmup_cosine,
    "warmup_exponential_decay_schedule": lambda rng: (
        lambda numbers: {**numbers, **exponential(rng, numbers["peak_value"])}
    )(warmup(rng)),
}


def test_every_schedule_of_optax_is_here():
    theirs = {
        name
        for name in dir(optax.schedules)
        if name.endswith(("_schedule", "_decay", "_schedules")) and name[0] != "_"
    }
    assert theirs - {"sgdr_schedule"} == {*DRAWS, "join_schedules"}
    assert all(hasattr(olr, name) for name in theirs)


@pytest.mark.parametrize("name", DRAWS)
def test_equals_optax(name):
    rng = np.random.default_rng(0)
    for _ in range(CONFIGURATIONS):
        arguments = DRAWS[name](rng)
        schedule = getattr(optax, name)(**arguments)
        # Eagerly, for under jit Optax's drops are late.
        theirs = np.asarray(jax.vmap(lambda step, schedule=schedule: jnp.asarray(schedule(step)))(STEPS))
        ours = jax.vmap(getattr(olr, name)(**arguments))(STEPS)
        # A cosine loses half of its digits at its ends in Optax's form.
        np.testing.assert_allclose(ours, theirs, rtol=5e-6, atol=5e-7 * theirs.max(), err_msg=f"{arguments}")


def test_positional_arguments_are_optaxs():
    for name in [*DRAWS, "join_schedules"]:
        ours, theirs = (inspect.signature(getattr(room, name)).parameters for room in (olr, optax))
        assert list(ours)[: len(theirs)] == list(theirs), name
        for key, parameter in theirs.items():
            assert ours[key].default == parameter.default and ours[key].kind == parameter.kind
        assert all(extra.kind is extra.KEYWORD_ONLY for extra in list(ours.values())[len(theirs) :])


def test_join_schedules_equals_optax():
    parts = [
        optax.linear_schedule(0.0, 1.0, 10),
        optax.cosine_decay_schedule(1.0, 20),
        optax.constant_schedule(0.3),
    ]
    theirs, ours = (room.join_schedules(parts, [10, 40]) for room in (optax, olr))
    np.testing.assert_allclose(jax.vmap(ours)(STEPS), [theirs(step) for step in STEPS], rtol=1e-6, atol=1e-7)


# Where Optax is wrong, and what is said or done here.


def test_optax_drops_late_under_jit_and_we_do_not():
    wrong = 0
    for period in (1, 2, 40, 41, 47, 55, 61, 100):
        args = (1.0, period, 0.5, 0, True)
        wrong += float(jax.jit(optax.exponential_decay(*args))(period)) != 0.5
        assert float(jax.jit(olr.exponential_decay(*args))(period)) == 0.5
    assert wrong == 4


def test_optax_refuses_a_traced_peak_and_we_do_not():
    def value(room, peak):
        return room.warmup_cosine_decay_schedule(0.0, peak, 10, 100)(55)

    with pytest.raises(jax.errors.TracerBoolConversionError):
        jax.vmap(lambda peak: value(optax, peak))(jnp.ones(2))
    np.testing.assert_allclose(jax.vmap(lambda peak: value(olr, peak))(jnp.array([0.5, 1.0])), [0.25, 0.5])


def test_optax_loses_the_peak_where_two_phases_meet_and_we_do_not():
    arguments = {"transition_steps": 100, "peak_value": 1.0, "pct_start": 0.5, "pct_final": 0.5}
    theirs, ours = (room.linear_onecycle_schedule(**arguments) for room in (optax, olr))
    assert max(float(theirs(step)) for step in range(100)) < 0.1
    assert float(ours(49)) > 0.98 and float(ours(50)) == np.float32(0.04)


def test_optax_holds_the_first_value_without_a_warmup_and_we_hold_the_peak():
    assert optax.warmup_constant_schedule(0.0, 1.0, 0)(10) == 0.0
    assert olr.warmup_constant_schedule(0.0, 1.0, 0)(10) == 1.0


def test_optax_rounds_a_share_down_too_far_and_we_do_not():
    theirs, ours = (room.cosine_onecycle_schedule(100, 1.0, pct_start=0.29) for room in (optax, olr))
    assert 0.29 * 100 < 29 and theirs(28) == 1.0 and ours(29) == 1.0


@pytest.mark.parametrize(
    ("build", "constant"),
    [
        (lambda room: room.linear_schedule(1.0, 0.0, 0), 1.0),
        (lambda room: room.polynomial_schedule(1.0, 0.0, 2, -3), 1.0),
        (lambda room: room.exponential_decay(1.0, 0, 0.5), 1.0),
        (lambda room: room.exponential_decay(1.0, 10, 0.0), 1.0),
        (lambda room: room.exponential_decay(1.0, 10, 1.5, end_value=0.5), 0.5),
    ],
)
def test_optax_is_silently_constant_and_we_refuse(unhooked, build, constant):
    assert build(optax)(0) == build(optax)(50) == constant
    with pytest.raises(ValueError, match="must be"):
        build(unhooked)


@pytest.mark.parametrize(
    "word",
    ["cosine", "linear", "warmup_cosine", "piecewise", "constant", "exponential", "polynomial", "onecycle"],
)
def test_what_people_type_is_found(word):
    assert [name for name in dir(olr) if word in name]
