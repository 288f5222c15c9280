"""Checks of arguments: concrete ones are refused with one sentence, traced ones pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture
def checks(unhooked):
    return unhooked.checks


@pytest.mark.parametrize(
    "value", [3, 3.0, np.float32(3), np.int64(3), jnp.float32(3), jnp.int32(3), np.array(3.0)]
)
def test_concrete_scalars_become_python_numbers(checks, value):
    assert type(checks.number("x", value)) is float and checks.number("x", value) == 3.0
    assert type(checks.steps("n", value)) is int and checks.steps("n", value) == 3


def test_fractional_steps_stay_fractional(checks):
    assert checks.steps("n", 2.5) == 2.5


@pytest.mark.parametrize(
    ("bounds", "value", "sentence"),
    [
        ({}, float("nan"), "x must be a finite number, got nan."),
        ({"minimum": 0}, -1, "x must be a finite number of at least 0, got -1."),
        ({"above": 0, "below": 1}, 1.0, "x must be a finite number above 0 and below 1, got 1.0."),
        ({"maximum": 2}, 3, "x must be a finite number of at most 2, got 3."),
        ({}, "3", "x must be a finite number, got '3'."),
        ({}, None, "x must be a finite number, got None."),
        ({}, [1.0, 2.0], "x must be a finite number, got [1.0, 2.0]."),
    ],
)
def test_refusals_read_well(checks, bounds, value, sentence):
    with pytest.raises(ValueError, match=r"^x must be") as refusal:
        checks.number("x", value, **bounds)
    assert str(refusal.value) == sentence


def test_traced_steps_are_raised_to_their_minimum(checks):
    lanes = jax.vmap(lambda n: checks.steps("n", n))(jnp.array([-2, 0, 5], jnp.int8))
    assert lanes.dtype == jnp.int32 and lanes.tolist() == [1, 1, 5]


def test_a_traced_array_is_refused_by_its_shape(checks):
    for check in (checks.number, checks.steps):
        with pytest.raises(ValueError, match=r"got an array of shape \(2,\)"):
            jax.jit(lambda x, check=check: check("x", x))(jnp.ones(2))


def test_not_below_names_both(checks):
    with pytest.raises(ValueError, match=r"^peak_value must be at least base_value=0.2, got 0.1\.$"):
        checks.not_below("peak_value", 0.1, "base_value", 0.2)
    assert checks.not_below("peak_value", 0.2, "base_value", 0.2) is None


def test_a_name_among_none_is_told_that_there_is_none(checks):
    assert checks.close_match("error", []) == "there is none."
    assert checks.close_match("eror", ["error", "loss"]) == "did you mean 'error'?"
