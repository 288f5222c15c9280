"""A rate that can be read and set, wherever it stands in an optimizer's state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lowerings import count_lowerings

import optax_lr as olr

PARAMS = {"a": jnp.ones(2), "b": jnp.ones((2, 2))}
GRADS = jax.tree.map(jnp.ones_like, PARAMS)


def falling(step):
    return 1.0 / (1.0 + step)


def visible(rate=0.5):
    return optax.chain(optax.trace(0.0), olr.scale_by_learning_rate(rate))


LABELS = {"a": 0, "b": 1}

NESTS = {
    "alone": lambda: olr.scale_by_learning_rate(0.5),
    "chain": visible,
    "named_chain": lambda: optax.named_chain(("trace", optax.trace(0.0)), ("rate", visible())),
    "masked": lambda: optax.masked(visible(), {"a": True, "b": False}),
    "partition": lambda: optax.partition(
        {"one": visible(), "none": optax.set_to_zero()}, {"a": "one", "b": "none"}
    ),
    "MultiSteps": lambda: optax.MultiSteps(visible(), every_k_schedule=2).gradient_transformation(),
    "apply_if_finite": lambda: optax.apply_if_finite(visible(), 3),
    "train_only": lambda: olr.train_only(visible(), LABELS, 0),
    "fine_tune": lambda: olr.fine_tune(visible(), LABELS, {1: 1.0}, frozen=0),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.sgd)(learning_rate=0.5),
    "injected into ours": lambda: optax.inject_hyperparams(olr.scale_by_learning_rate)(learning_rate=0.5),
    "injected beside ours": lambda: optax.inject_hyperparams(
        lambda decay: optax.chain(optax.trace(decay), visible())
    )(decay=0.0),
}


def step_of(tx):
    @jax.jit
    def step(state):
        return tx.update(GRADS, state, PARAMS)

    return step


def largest(updates):
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize("nest", NESTS)
def test_is_read_and_set_wherever_it_stands(nest):
    tx = NESTS[nest]()
    state, step = tx.init(PARAMS), step_of(tx)
    assert olr.get_learning_rate(state) == 0.5
    _, state = step(state)
    emitted, state = step(state)
    with count_lowerings() as lowered:
        faster = olr.set_learning_rate(state, 2.0)
        step(faster)
    assert lowered == []
    assert olr.get_learning_rate(faster) == 2.0 and olr.get_learning_rate(state) == 0.5
    _, faster = step(faster)
    scaled, faster = step(faster)
    if nest not in ("masked",):  # the other leaf passes through
        assert largest(scaled) == pytest.approx(4 * largest(emitted), rel=1e-5)
    assert jax.tree.map(jnp.result_type, faster) == jax.tree.map(jnp.result_type, state)


def test_the_schedule_rules_until_an_override_and_again_after_it():
    tx = olr.scale_by_learning_rate(falling)
    state, seen = tx.init(PARAMS), []
    for count in range(6):
        if count == 2:
            state = olr.set_learning_rate(state, 0.125)
        if count == 4:
            state = olr.clear_learning_rate(state)
        updates, state = tx.update(GRADS, state)
        seen.append(float(olr.get_learning_rate(state)))
        np.testing.assert_allclose(updates["a"], -seen[-1])
    np.testing.assert_allclose(seen, [1, 1 / 2, 0.125, 0.125, 1 / 5, 1 / 6], rtol=1e-6)


def test_several_rates_go_by_path():
    labels = {"a": "slow", "b": "fast"}
    tx = optax.partition({"slow": visible(0.1), "fast": visible(falling)}, labels)
    state = tx.init(PARAMS)
    slow, fast = "inner_states/slow/inner_state/1", "inner_states/fast/inner_state/1"
    assert olr.get_learning_rate(state) == {slow: np.float32(0.1), fast: 1.0}
    assert olr.get_learning_rate(olr.set_learning_rate(state, 0.25)) == {slow: 0.25, fast: 0.25}
    one = olr.set_learning_rate(state, {fast: 0.25})
    assert olr.get_learning_rate(one) == {slow: np.float32(0.1), fast: 0.25}
    again = olr.set_learning_rate(one, olr.get_learning_rate(state))
    assert olr.get_learning_rate(again) == olr.get_learning_rate(state)


def test_unfreezing_has_a_rate_for_each_state():
    tx = olr.unfreeze_at(visible(falling), LABELS, {1: 2})
    state = tx.init(PARAMS)
    for _ in range(4):
        _, state = tx.update(GRADS, state, PARAMS)
    early, late = "groups/inner_states/(others)/inner_state/1", "groups/inner_states/1/inner_state/1"
    assert olr.get_learning_rate(state) == {early: falling(3), late: falling(1)}


def test_zero_is_a_rate_and_not_its_absence():
    tx = olr.scale_by_learning_rate(0.5)
    updates, state = tx.update(GRADS, olr.set_learning_rate(tx.init(PARAMS), 0))
    assert largest(updates) == 0 and olr.get_learning_rate(state) == 0


def test_a_traced_value_sets_and_a_negative_one_clears():
    tx = olr.scale_by_learning_rate(0.5)
    states = jax.vmap(olr.set_learning_rate, in_axes=(None, 0))(
        tx.init(PARAMS), jnp.array([0.25, -3.0, jnp.nan, 0.0])
    )
    _, states = jax.vmap(tx.update, in_axes=(None, 0))(GRADS, states)
    assert olr.get_learning_rate(states).tolist() == [0.25, 0.5, 0.5, 0.0]
    assert olr.get_learning_rate(olr.set_learning_rate(states, 0.125)).tolist() == [0.125] * 4


def test_a_bfloat16_update_is_scaled_at_full_precision():
    tx = olr.scale_by_learning_rate(0.3)
    update = jnp.asarray(np.linspace(-2, 2, 101), jnp.bfloat16)
    scaled, _ = tx.update(update, tx.init(update))
    exact = (-np.float32(0.3) * np.asarray(update, np.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(scaled), exact)


def test_a_restored_state_of_numpy_arrays_stays_numpy():
    state = jax.tree.map(np.asarray, olr.scale_by_learning_rate(0.5).init(PARAMS))
    assert isinstance(olr.set_learning_rate(state, 0.25).override, np.ndarray)
    assert olr.get_learning_rate(olr.set_learning_rate(state, 0.25)) == 0.25


@pytest.mark.parametrize("committed", [True, False])
def test_committedness_stays(committed):
    state = olr.scale_by_learning_rate(0.5).init(PARAMS)
    if committed:
        state = jax.device_put(state, jax.devices()[0])
    for leaf in olr.set_learning_rate(state, 0.25):
        assert leaf.committed == committed and not leaf.weak_type


def test_one_without_a_visible_rate_names_the_replacement(unhooked):
    state = optax.adam(0.1).init(PARAMS)
    for act in (
        unhooked.get_learning_rate,
        unhooked.clear_learning_rate,
        lambda s: unhooked.set_learning_rate(s, 1),
    ):
        with pytest.raises(
            ValueError, match=r"put optax_lr\.scale_by_learning_rate\(rate\) in place of optax"
        ):
            act(state)


def test_an_injected_schedule_cannot_be_set_and_an_injected_number_not_cleared(unhooked):
    scheduled = optax.inject_hyperparams(optax.sgd)(learning_rate=falling).init(PARAMS)
    with pytest.raises(ValueError, match=r"is a schedule inside optax\.inject_hyperparams"):
        unhooked.set_learning_rate(scheduled, 0.1)
    assert unhooked.get_learning_rate(unhooked.clear_learning_rate(scheduled)) == 1.0
    number = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5).init(PARAMS)
    with pytest.raises(ValueError, match="nothing to go back to"):
        unhooked.clear_learning_rate(number)


def test_bad_values_and_paths_are_refused(unhooked):
    state = optax.chain(optax.trace(0.9), unhooked.scale_by_learning_rate(0.5)).init(PARAMS)
    for value in (-1.0, float("nan"), float("inf"), "fast", None):
        with pytest.raises(ValueError, match="value must be a finite number of at least 0"):
            unhooked.set_learning_rate(state, value)
    with pytest.raises(
        ValueError, match=r"value has '2', where opt_state has no learning rate: there is '1'\."
    ):
        unhooked.set_learning_rate(state, {"2": 0.1})
