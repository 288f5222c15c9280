"""Rprop: the four variants against a loop written from the paper, and against PyTorch's."""

import functools
import json
import pathlib
import typing

import adaptive_references as references
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gains import STEPS, gradients_with_gaps

import optax_lr as olr
from optax_lr.adaptive.rprop import Variant

ORACLES = json.loads((pathlib.Path(__file__).parents[1] / "torch_adaptive.json").read_text())


@functools.cache
def compiled(variant, keep_sign=False):
    """All updates and the last state of a run whose numbers are data."""

    def run(numbers, gradients, losses):
        tx = olr.scale_by_rprop(variant=variant, keep_sign=keep_sign, **numbers)

        def step(state, given):
            gradient, loss = given
            updates, state = tx.update(gradient, state, value=loss)
            return state, updates

        state, updates = jax.lax.scan(step, tx.init(gradients[0]), (gradients, losses))
        return updates, state

    return jax.jit(run)


@pytest.mark.parametrize("keep_sign", [False, True])
@pytest.mark.parametrize("variant", typing.get_args(Variant))
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    numbers=st.fixed_dictionaries(
        {
            "decrease": st.floats(0.1, 0.9),
            "increase": st.floats(1.05, 3.0),
            "initial_step": st.floats(0.1, 0.5),
            "min_step": st.floats(1e-30, 0.1),
            "max_step": st.floats(0.5, 1e9),
        }
    ),
    seed=st.integers(0, 99),
)
def test_equals_the_loop_of_the_paper(variant, keep_sign, numbers, seed):
    gradients = gradients_with_gaps(seed)
    losses = np.random.default_rng(seed).normal(size=STEPS).astype(np.float32)
    losses[::17] = np.nan
    updates, state = compiled(variant, keep_sign)(numbers, gradients, losses)
    expected, sizes = references.rprop(gradients, variant, losses=losses, keep_sign=keep_sign, **numbers)
    np.testing.assert_allclose(updates, expected, rtol=1e-4)
    np.testing.assert_allclose(state.steps, sizes, rtol=1e-4)


@pytest.mark.parametrize("oracle", ORACLES["rprop"], ids=["defaults", "bounded"])
def test_is_pytorchs(oracle):
    weights, gradients = np.array(oracle["weights"]), np.array(oracle["gradients"])
    options = oracle["options"]
    shrink, grow = options.get("etas", (0.5, 1.2))
    shortest, longest = options.get("step_sizes", (1e-6, 50.0))
    numbers = {
        "decrease": shrink,
        "increase": grow,
        "initial_step": options["lr"],
        "min_step": shortest,
        "max_step": longest,
    }
    updates, _ = compiled("iRprop-")(numbers, jnp.asarray(gradients, float), jnp.zeros(len(gradients)))
    np.testing.assert_allclose(updates[:-1], -np.diff(weights, axis=0), rtol=1e-4, atol=1e-7)


def test_a_loss_is_asked_for(unhooked):
    tx = unhooked.scale_by_rprop(variant="iRprop+")
    with pytest.raises(ValueError, match=r"^value must be the loss for iRprop\+, as in .*, got None\.$"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    with pytest.raises(ValueError, match=r"^value must be one number, got an array of shape \(2,\)\.$"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), value=jnp.ones(2))


def test_a_step_is_taken_back_where_the_loss_rose():
    for loss, second in ((2.0, -0.1), (0.5, 0.0), (float("nan"), -0.1)):
        tx = olr.scale_by_rprop(variant="iRprop+")
        _, state = tx.update(jnp.ones(1), tx.init(jnp.ones(1)), value=1.0)
        updates, _ = tx.update(-jnp.ones(1), state, value=loss)
        np.testing.assert_allclose(updates, [second])
