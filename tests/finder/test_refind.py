"""Finding the rate again from the middle of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lowerings import count_lowerings

import optax_lr as olr

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(20, 16, 3)).astype(np.float32)
TARGETS = INPUTS @ np.array([1.0, -2.0, 0.5], np.float32)
BATCHES, VALIDATION = (INPUTS, TARGETS), (INPUTS[-1], TARGETS[-1])


def loss_fn(params, batch):
    return jnp.mean((batch[0] @ params - batch[1]) ** 2)


def optimizer(rate):
    return optax.sgd(rate, momentum=0.9)


def refind(params, state, rate, **options):
    return olr.lr_refind(
        loss_fn, params, optimizer, BATCHES, learning_rate=rate, opt_state=state,
        eval_batch=VALIDATION, num_steps=10, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def begun():
    """Three steps into a run."""
    params, state = jnp.zeros(3), optimizer(0.01).init(jnp.zeros(3))
    for t in range(3):
        gradients = jax.grad(loss_fn)(params, jax.tree.map(lambda x, t=t: x[t], BATCHES))
        updates, state = optimizer(0.01).update(gradients, state)
        params = optax.apply_updates(params, updates)
    return params, state


def test_the_rates_around_the_present_one_go_on_from_the_present_state(begun):
    kept = jax.tree.map(np.array, begun)
    found = refind(*begun, 0.02)
    swept = olr.lr_sweep(
        loss_fn, begun[0], optimizer, BATCHES, learning_rates=found.curve.learning_rates, opt_state=begun[1],
        eval_batch=VALIDATION, num_steps=10, seeds=2, stop_factor=100.0, progress=False,
    )  # fmt: skip
    np.testing.assert_allclose(found.curve.eval_losses[..., -1], swept.eval_losses[..., -1], rtol=1e-4)
    assert {0.005, 0.01, 0.02, 0.04, 0.08} <= set(found.curve.learning_rates.round(6).tolist())
    assert found.low <= found.learning_rate <= found.high
    jax.tree.map(np.testing.assert_array_equal, kept, begun)


def test_a_rate_far_off_is_left_behind(begun):
    assert refind(*begun, 1e-4).learning_rate > 5e-4
    assert refind(*begun, 0.02, horizon=1000).learning_rate > 0


def test_where_all_rates_around_diverge_smaller_ones_are_tried(begun):
    with pytest.warns(
        UserWarning, match="No rate learned anything in 10 steps.*every rate that was tried did harm"
    ):
        found = refind(*begun, 20.0)
    assert not found.curve.stable[-5:].any() and found.curve.learning_rates[0] >= 0.2
    assert found.learning_rate < 2.0 and found.curve.stable[0]


def test_the_next_call_compiles_nothing(begun):
    refind(*begun, 0.02)
    with count_lowerings() as lowered:
        refind(jax.tree.map(lambda x: x + 0.1, begun[0]), begun[1], 0.03)
    assert "train" not in " ".join(lowered)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be"),
        ({"num_rates": 2}, "num_rates must be"),
        ({"horizon": 0}, "horizon must be"),
    ],
)
def test_wrong_input_gets_one_sentence(unhooked, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        unhooked.lr_refind(loss_fn, jnp.zeros(3), optimizer, BATCHES, **{"learning_rate": 0.1, **options})
