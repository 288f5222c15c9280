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
    "visible": lambda: olr.visible(optax.sgd)(0.5),
    "injected into visible": lambda: optax.inject_hyperparams(olr.visible(optax.sgd))(learning_rate=0.5),
    "chain": visible,
    "named_chain": lambda: optax.named_chain(("trace", optax.trace(0.0)), ("rate", visible())),
    "masked": lambda: optax.masked(visible(), {"a": True, "b": False}),
    "partition": lambda: optax.partition(
        {"one": visible(), "none": optax.set_to_zero()}, {"a": "one", "b": "none"}
    ),
    "MultiSteps": lambda: optax.MultiSteps(visible(), every_k_schedule=2).gradient_transformation(),
    "apply_if_finite": lambda: optax.apply_if_finite(visible(), 3),
    "train_only": lambda: olr.train_only(visible(), 0, LABELS),
    "fine_tune": lambda: olr.fine_tune(visible(), {1: 1.0}, LABELS, frozen=0),
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
    assert olr.get_learning_rates(state) == {slow: np.float32(0.1), fast: 1.0}
    assert olr.get_learning_rates(olr.set_learning_rate(state, 0.25)) == {slow: 0.25, fast: 0.25}
    one = olr.set_learning_rate(state, {fast: 0.25})
    assert olr.get_learning_rates(one) == {slow: np.float32(0.1), fast: 0.25}
    again = olr.set_learning_rate(one, olr.get_learning_rates(state))
    assert olr.get_learning_rates(again) == olr.get_learning_rates(state)


def test_unfreezing_has_the_rate_of_the_run():
    tx = olr.unfreeze_at(visible(falling), {1: 2}, LABELS)
    state = tx.init(PARAMS)
    for _ in range(4):
        _, state = tx.update(GRADS, state, PARAMS)
    assert olr.get_learning_rate(state) == falling(3)


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


def test_a_rate_is_set_in_the_way_of_optax():
    tx = visible(falling)
    _, state = tx.update(GRADS, tx.init(PARAMS))
    state = optax.tree.set(state, learning_rate=0.125)
    for _ in range(3):
        updates, state = tx.update(GRADS, state)
        np.testing.assert_allclose(updates["a"], -0.125)
        assert olr.get_learning_rate(state) == 0.125 == optax.tree.get(state, "learning_rate")
    _, state = tx.update(GRADS, olr.clear_learning_rate(state))
    assert olr.get_learning_rate(state) == np.float32(falling(4))


def test_a_rate_that_the_schedule_crosses_stays_set():
    tx = olr.scale_by_learning_rate(falling)
    state = olr.set_learning_rate(tx.init(PARAMS), falling(2))
    for _ in range(6):
        _, state = tx.update(GRADS, state)
        assert olr.get_learning_rate(state) == np.float32(falling(2))


@pytest.mark.parametrize("odd", [np.nan, np.inf, -0.5, 0.0])
def test_an_odd_value_of_a_schedule_is_followed_and_left(odd):
    tx = olr.scale_by_learning_rate(lambda step: jnp.where(step == 1, odd, 0.25))
    state, seen = tx.init(PARAMS), []
    for _ in range(3):
        _, state = jax.jit(tx.update)(GRADS, state)
        seen.append(olr.get_learning_rate(state))
    np.testing.assert_array_equal(seen, np.float32([0.25, odd, 0.25]))


@pytest.mark.parametrize("cast", [jnp.float16, jnp.bfloat16], ids=["float16", "bfloat16"])
def test_a_state_that_was_cast_or_averaged_follows_the_schedule(cast):
    tx = olr.scale_by_learning_rate(falling)
    states = [tx.update(GRADS, tx.init(PARAMS))[1]] * 3
    mean = jax.tree.map(lambda *leaves: (sum(leaves) / 3).astype(leaves[0].dtype), *states)
    for state in (jax.tree.map(lambda leaf: leaf if leaf.ndim else leaf.astype(cast), mean), mean):
        _, state = tx.update(GRADS, state._replace(count=jnp.int32(4)))
        assert olr.get_learning_rate(state) == np.float32(falling(4))


def test_a_set_rate_may_be_one_for_each_lane(unhooked):
    tx = unhooked.scale_by_learning_rate(falling)
    states = jax.vmap(tx.init)(jnp.zeros((3, 5)))
    again = unhooked.set_learning_rate(states, unhooked.get_learning_rate(states))
    apart = unhooked.set_learning_rate(again, [0.5, 0.25, 0.0])
    assert unhooked.get_learning_rate(apart).tolist() == [0.5, 0.25, 0.0]
    _, apart = jax.vmap(tx.update)(jnp.ones((3, 5)), apart)
    assert unhooked.get_learning_rate(apart).tolist() == [0.5, 0.25, 0.0]
    with pytest.raises(
        ValueError, match=r"value must be a number, or an array of the .* shape \(3,\), got .*\(2,\)"
    ):
        unhooked.set_learning_rate(states, [0.1, 0.2])
    with pytest.raises(
        ValueError, match=r"value must be finite numbers of at least 0, got \[0\.0, -1\.0, 0\.0\]"
    ):
        unhooked.set_learning_rate(states, [0.0, -1.0, 0.0])


def test_several_rates_are_not_one(unhooked):
    state = optax.chain(*[unhooked.scale_by_learning_rate(0.5)] * 2).init(PARAMS)
    with pytest.raises(
        ValueError, match="opt_state holds 2 learning rates, at '0', '1': use get_learning_rates"
    ):
        unhooked.get_learning_rate(state)


def test_a_cleared_state_gives_up_its_buffers():
    tx = olr.scale_by_learning_rate(falling)
    state = olr.clear_learning_rate(olr.set_learning_rate(tx.init(PARAMS), 0.5))
    for given in (state, tx.init(PARAMS)):
        updates, _ = jax.jit(tx.update, donate_argnums=1)(GRADS, given)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
        for update, gradient in zip(jax.tree.leaves(updates), jax.tree.leaves(GRADS), strict=True):
            np.testing.assert_allclose(update, -falling(0) * gradient, rtol=1e-6)


def test_a_bfloat16_update_is_scaled_at_full_precision():
    tx = olr.scale_by_learning_rate(0.3)
    update = jnp.asarray(np.linspace(-2, 2, 101), jnp.bfloat16)
    scaled, _ = tx.update(update, tx.init(update))
    exact = (-np.float32(0.3) * np.asarray(update, np.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(scaled), exact)


def test_a_restored_state_of_numpy_arrays_stays_numpy():
    state = jax.tree.map(np.asarray, olr.scale_by_learning_rate(0.5).init(PARAMS))
    assert isinstance(olr.set_learning_rate(state, 0.25).written, np.ndarray)
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
            ValueError, match=r"write optax_lr\.visible\(optax\.adam\)\(rate\) in place of optax\.adam"
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
