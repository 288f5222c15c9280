"""`carry_state`: what training made comes from the old state, what is written in code from the optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization
from jax.sharding import NamedSharding, PartitionSpec

import optax_lr as olr

PARAMS = {"body": {"w": jnp.array([[1.0, -2.0], [0.5, 0.1]])}, "head": jnp.array([0.3, 0.2])}
LABELS = {"body": {"w": "body"}, "head": "head"}
SHORT, LONG = optax.linear_schedule(1.0, 0.0, 10), optax.linear_schedule(1.0, 0.0, 20)


def gradient(step):
    return jax.tree.map(lambda leaf: jnp.sin(leaf * 3.3 + step), PARAMS)


def train(tx, state, steps):
    for step in steps:
        updates, state = tx.update(gradient(step), state, PARAMS)
    return updates, state


def check_equal(got, wanted):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


OLD = optax.adam(SHORT)
STATE = train(OLD, OLD.init(PARAMS), range(4))[1]
# Optax's own answer to a longer schedule: Adam's state fits as it is.
WANTED = train(optax.adam(LONG), STATE, [4, 5])[0]

CHANGED = {
    "visible": lambda: olr.visible(optax.adam)(LONG),
    "chain": lambda: optax.chain(
        optax.clip(1e3), optax.scale_by_adam(), olr.scale_by_learning_rate(LONG), optax.identity()
    ),
    "named_chain": lambda: optax.named_chain(
        ("adam", optax.scale_by_adam()), ("rate", olr.scale_by_learning_rate(LONG))
    ),
    "partition": lambda: optax.partition(
        {"body": optax.adam(LONG), "head": olr.visible(optax.adam)(LONG)}, LABELS
    ),
    "apply_if_finite": lambda: optax.apply_if_finite(olr.visible(optax.adam)(LONG), 3),
    "MultiSteps": lambda: optax.MultiSteps(olr.visible(optax.adam)(LONG), 1).gradient_transformation(),
    "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=LONG),
    "plain": lambda: optax.adam(LONG),
}


@pytest.mark.parametrize("name", CHANGED)
def test_from_plain_adam_into_any_optimizer_with_a_longer_schedule(name):
    carried = olr.carry_state(STATE, CHANGED[name](), PARAMS)
    updates, state = train(CHANGED[name](), carried.state, [4, 5])
    check_equal(updates, WANTED)
    back = olr.carry_state(state, optax.adam(LONG), PARAMS)
    check_equal(train(optax.adam(LONG), back.state, [6])[0], train(optax.adam(LONG), STATE, [4, 5, 6])[0])


@pytest.mark.parametrize("name", ["visible", "chain", "partition", "apply_if_finite", "inject_hyperparams"])
def test_the_rate_that_is_shown_is_that_of_the_next_update(name):
    rates = olr.get_learning_rates(olr.carry_state(STATE, CHANGED[name](), PARAMS).state)
    assert [float(rate) for rate in rates.values()] == pytest.approx([float(LONG(4))])


def test_a_new_head_under_an_old_count_is_named_and_a_start_gives_it_a_count_of_its_own():
    labels = {"body": {"w": "body"}, "head": "head"}
    params = {**PARAMS, "head": jnp.ones(3)}
    grads = jax.tree.map(jnp.ones_like, params)
    carried = olr.carry_state(STATE, optax.adam(0.1), params)
    assert "mu of head (zeros under the count 4), nu of head (zeros under the count 4)" in str(carried)
    updates, _ = optax.adam(0.1).update(grads, carried.state, params)
    assert (updates["head"] < -0.1 * (0.1 / np.sqrt(0.001 / (1 - 0.999**5)) * 0.99)).all()
    late = olr.unfreeze_at(optax.adam(0.1), {"head": 4}, labels)
    state, moved = olr.carry_state(STATE, late, params).state, []
    fresh, alone = optax.adam(0.1).init(params["head"]), []
    for _ in range(5):
        updates, state = late.update(grads, state, params)
        wanted, fresh = optax.adam(0.1).update(grads["head"], fresh)
        moved.append(updates["head"]), alone.append(wanted)
    np.testing.assert_allclose(moved, alone, rtol=1e-5)


def test_empty_slots_and_accumulated_gradients_are_under_no_count():
    few, more = (optax.chain(optax.sgd(0.1), olr.snapshot_at_cycle_ends(2, slots)) for slots in (1, 2))
    carried = olr.carry_state(train(few, few.init(PARAMS), range(5))[1], more, PARAMS)
    assert carried.reset == ("1 SnapshotAtCycleEndsState: snapshots",)
    steps = optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()
    state = train(steps, steps.init(PARAMS), range(3))[1]
    carried = olr.carry_state(state, steps, {**PARAMS, "head": jnp.ones(3)})
    assert carried.reset == ("MultiStepsState: acc_grads of head",)


def test_a_rate_that_was_set_gives_way_to_the_code_and_is_told():
    tx = olr.visible(optax.adam)(SHORT)
    state = olr.set_learning_rate(train(tx, tx.init(PARAMS), range(4))[1], 1e-5)
    carried = olr.carry_state(state, olr.visible(optax.adam)(LONG), PARAMS)
    assert "the rate 1e-05 was set by hand, and is again what the code says" in str(carried)
    check_equal(train(olr.visible(optax.adam)(LONG), carried.state, [4, 5])[0], WANTED)


def test_an_injected_number_is_the_codes():
    before, after = (
        optax.inject_hyperparams(optax.sgd)(learning_rate=rate, momentum=0.9) for rate in (0.5, 0.25)
    )
    state = optax.tree.set(train(before, before.init(PARAMS), range(3))[1], learning_rate=jnp.float32(2.0))
    carried = olr.carry_state(state, after, PARAMS)
    assert "hyperparams/learning_rate is 0.25, was 2" in str(carried)
    plain = [optax.sgd(rate, momentum=0.9) for rate in (0.5, 0.25)]
    check_equal(
        train(after, carried.state, [3])[0],
        train(plain[1], train(plain[0], plain[0].init(PARAMS), range(3))[1], [3])[0],
    )


def test_an_injected_schedule_is_no_number_that_was_overridden():
    before, after = (optax.inject_hyperparams(optax.adam)(learning_rate=rate) for rate in (SHORT, LONG))
    state = train(before, before.init(PARAMS), range(4))[1]
    carried = olr.carry_state(state, after, PARAMS)
    assert not carried.overridden and not carried.reset
    assert olr.get_learning_rate(carried.state) == olr.get_learning_rate(state) == SHORT(3)
    check_equal(train(after, carried.state, [4, 5])[0], WANTED)


def test_moments_are_carried_between_partitions_and_to_the_whole():
    def by_label(labels):
        return optax.partition({name: optax.adam(LONG) for name in ("a", "b")}, labels)

    one, other = ({"body": {"w": first}, "head": second} for first, second in (("a", "b"), ("b", "a")))
    carried = olr.carry_state(STATE, by_label(one), PARAMS)
    state = train(by_label(one), carried.state, [4])[1]
    again = olr.carry_state(state, by_label(other), PARAMS)
    check_equal(train(by_label(other), again.state, [5])[0], WANTED)
    whole = olr.carry_state(state, optax.adam(LONG), PARAMS)
    check_equal(train(optax.adam(LONG), whole.state, [5])[0], WANTED)


def test_another_optimizer_starts_its_moments_and_keeps_the_run():
    tx = olr.visible(optax.sgd)(LONG, momentum=0.9)
    carried = olr.carry_state(STATE, tx, PARAMS)
    updates, _ = train(tx, carried.state, [4])
    check_equal(updates, jax.tree.map(lambda leaf: -LONG(4) * leaf, gradient(4)))
    assert any("TraceState: trace" in line for line in carried.reset)
    assert any("ScaleByAdamState: mu, nu" in line for line in carried.dropped)


def test_a_new_parameter_starts_its_moments():
    grown = {**PARAMS, "new": jnp.ones(3)}
    carried = olr.carry_state(STATE, olr.visible(optax.adam)(LONG), grown)
    inner = carried.state.inner_state[0]
    check_equal(inner.mu, {**STATE[0].mu, "new": jnp.zeros(3)})
    assert inner.count == 4 and any("mu" in line for line in carried.reset)
    resized = {**PARAMS, "head": jnp.ones(7)}
    assert not olr.carry_state(STATE, optax.adam(LONG), resized).state[0].mu["head"].any()


def test_a_checkpoint_of_numpy_arrays_is_carried():
    saved = serialization.from_bytes(OLD.init(PARAMS), serialization.to_bytes(STATE))
    carried = olr.carry_state(saved, olr.visible(optax.adam)(LONG), PARAMS)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(carried.state))
    check_equal(train(olr.visible(optax.adam)(LONG), carried.state, [4, 5])[0], WANTED)


def test_the_carried_state_goes_where_the_parameters_are():
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    placed = jax.device_put(PARAMS, NamedSharding(mesh, PartitionSpec()))
    state = olr.carry_state(STATE, olr.visible(optax.adam)(LONG), placed).state
    for leaf in jax.tree.leaves(state.inner_state[0].mu):
        assert leaf.sharding.mesh.axis_names == ("rows",)


@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 2), (3, 3)])
def test_the_newest_snapshots_stay_in_more_or_fewer_slots(before, after):
    def tx(slots):
        return optax.chain(optax.sgd(1.0), olr.snapshot_at_cycle_ends(1, slots))

    def train(slots, steps, params, state):
        for _ in range(steps):
            updates, state = tx(slots).update(jnp.ones(()), state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    params, state = train(before, 5, jnp.zeros(()), tx(before).init(jnp.zeros(())))
    state = olr.carry_state(state, tx(after), params).state
    stay = min(before, after)
    assert olr.get_snapshots(state).steps.tolist() == list(range(5))[-stay:]
    assert olr.get_snapshots(state).params.tolist() == [-1.0, -2.0, -3.0, -4.0, -5.0][-stay:]
    _, state = train(after, 2, params, state)
    assert olr.get_snapshots(state).steps.tolist() == list(range(7))[-min(after, stay + 2) :]


def test_plain_dicts_and_traced_states_are_refused(unhooked):
    plain = serialization.to_state_dict(STATE)
    with pytest.raises(ValueError, match=r"restore the checkpoint into the structure of old_optimizer\.init"):
        unhooked.carry_state(plain, OLD, PARAMS)
    with pytest.raises(ValueError, match="must be called outside jit"):
        jax.jit(lambda state: unhooked.carry_state(state, OLD, PARAMS).state)(STATE)


def test_a_state_of_which_nothing_fits_is_refused(unhooked):
    with pytest.raises(ValueError, match="old_state must fit at least a part of the optimizer's state"):
        unhooked.carry_state(optax.sgd(0.1, momentum=0.9).init(PARAMS), optax.scale_by_adam(), PARAMS)
