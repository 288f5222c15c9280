"""`carry_state` and counts: moments stay under the count that they were made under, or it says why they cannot."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_lr as olr

PARAMS = {"body": jnp.array([0.5, -1.0]), "head": jnp.array([0.3, 0.2])}
LABELS = {"body": "body", "head": "head"}
ONES = {"body": 1.0, "head": 1.0}
SCHEDULE = optax.linear_schedule(1.0, 0.0, 100)
STEPS = 20


def gradient(step):
    return jax.tree.map(lambda leaf: jnp.sin(leaf * 3.3 + step), PARAMS)


def fine_tuned(starts, schedule=SCHEDULE, multipliers=ONES, **options):
    tx = olr.visible(optax.adam)(schedule)
    return olr.fine_tune(tx, multipliers, LABELS, starts=starts, **options)


def train(tx, state, steps):
    for step in steps:
        updates, state = tx.update(gradient(step), state, PARAMS)
    return updates, state


def after(starts, **options):
    tx = fine_tuned(starts, **options)
    return train(tx, tx.init(PARAMS), range(STEPS))[1]


def by_label(starts, last):
    """The update of step `last` where each label has an Adam of its own, begun at its start."""
    updates = {}
    for label, start in starts.items():
        adam = optax.scale_by_adam()
        state = adam.init(PARAMS[label])
        for step in range(start, last + 1):
            moved, state = adam.update(gradient(step)[label], state)
        updates[label] = -SCHEDULE(last) * moved
    return updates


@pytest.mark.parametrize("start", [500, 8], ids=["yet to begin", "begun"])
def test_a_late_label_is_not_put_under_the_count_of_the_others(start, unhooked):
    state = after({"body": start})
    sentence = r"the late label 'body' apart \(\d+, the others' 20\).*as in unfreeze_at\(\.\.\., {'body': 0}"
    for tx in (
        fine_tuned(None),
        optax.adam(SCHEDULE),
        fine_tuned({"head": 5}),
        olr.train_only(optax.adam(SCHEDULE), "body", LABELS),
        optax.partition({"body": optax.adam(SCHEDULE), "head": optax.adam(SCHEDULE)}, LABELS),
    ):
        with pytest.raises(ValueError, match=sentence):
            unhooked.carry_state(state, tx, PARAMS)


@pytest.mark.parametrize("start", [500, 8], ids=["yet to begin", "begun"])
def test_by_the_way_that_the_sentence_names_each_label_goes_on_with_its_own_count(start):
    for tx, labels in (
        (fine_tuned({"body": 0}), ["body", "head"]),
        (
            olr.train_only(olr.unfreeze_at(optax.adam(SCHEDULE), {"body": 0}, LABELS), "head", LABELS),
            ["head"],
        ),
        (
            olr.train_only(olr.unfreeze_at(optax.adam(SCHEDULE), {"body": 0}, LABELS), "body", LABELS),
            ["body"],
        ),
    ):
        state = olr.carry_state(after({"body": start}), tx, PARAMS).state
        updates, _ = train(tx, state, range(STEPS, STEPS + 3))
        wanted = by_label({"body": min(start, STEPS), "head": 0}, STEPS + 2)
        for label in labels:
            np.testing.assert_allclose(updates[label], wanted[label], rtol=1e-5)


def test_a_label_that_did_not_begin_and_is_not_trained_any_more_has_no_count_to_keep():
    tx = olr.train_only(optax.adam(SCHEDULE), "head", LABELS)
    updates, _ = train(tx, olr.carry_state(after({"body": 500}), tx, PARAMS).state, [STEPS])
    np.testing.assert_allclose(updates["head"], by_label({"head": 0}, STEPS)["head"], rtol=1e-5)


def test_groups_of_unequal_counts_do_not_come_under_one(unhooked):
    groups = {
        "body": optax.transforms.conditionally_transform(optax.scale_by_adam(), lambda step: step >= 5),
        "head": optax.scale_by_adam(),
    }
    apart = optax.partition(groups, LABELS)
    _, state = train(apart, apart.init(PARAMS), range(STEPS))
    with pytest.raises(
        ValueError, match=r"moments of (15|20) steps and of (15|20), and the optimizer has one"
    ):
        unhooked.carry_state(state, optax.scale_by_adam(), PARAMS)
    again = optax.partition({name: optax.scale_by_adam() for name in groups}, LABELS)
    updates, _ = train(again, olr.carry_state(state, again, PARAMS).state, [STEPS])
    wanted, _ = train(apart, state, [STEPS])
    for one, other in zip(jax.tree.leaves(updates), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_where_schedules_begin_with_labels_a_new_one_counts_from_the_start_that_the_code_says():
    tx = fine_tuned({"body": 5}, clock="label")
    state = olr.carry_state(after({"body": 5}), tx, PARAMS).state
    updates, _ = train(tx, state, [STEPS])
    wanted = by_label({"body": 5, "head": 0}, STEPS)
    np.testing.assert_allclose(updates["head"], wanted["head"], rtol=1e-5)
    ratio = SCHEDULE(STEPS - 5) / SCHEDULE(STEPS)
    np.testing.assert_allclose(updates["body"], ratio * wanted["body"], rtol=1e-5)


def test_rates_and_multipliers_that_the_code_changes_are_told_with_both_numbers():
    starts = {"body": 3}
    state = after(starts, multipliers={"body": 0.1, "head": lambda count: 1.0 / (1.0 + count)})
    same = fine_tuned(starts, multipliers={"body": 0.1, "head": lambda count: 1.0 / (1.0 + count)})
    assert olr.carry_state(state, same, PARAMS).overridden == ()
    changed = fine_tuned(
        starts, optax.linear_schedule(1.0, 0.0, 200), {"body": 0.1, "head": lambda count: 2.0 / (1.0 + count)}
    )
    assert olr.carry_state(state, changed, PARAMS).overridden == (
        "inner/inner/rate ScaleByLearningRateState: the rate was 0.81 in the last update, and is 0.905 by the code",
        "scale ScaleByLabelState: the multiplier of 'head' was 0.05 in the last update, and is 0.1 by the code",
    )


def test_a_rate_that_was_set_is_told_once_and_one_in_half_precision_is_not_compared():
    state = after({"body": 3})
    told = olr.carry_state(olr.set_learning_rate(state, 0.5), fine_tuned({"body": 3}), PARAMS).overridden
    assert len(told) == 1 and "0.5 was set by hand" in told[0]
    halved = jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16) if leaf.dtype == jnp.float32 else leaf, state
    )
    assert olr.carry_state(halved, fine_tuned({"body": 3}), PARAMS).overridden == ()


def test_an_optimizer_that_needs_arguments_of_its_own_is_carried_without_the_comparison():
    def needy(rate):
        return optax.chain(
            olr.scale_by_learning_rate(rate),
            optax.scale_by_backtracking_linesearch(max_backtracking_steps=3),
        )

    old = needy(0.5)
    state = old.init(PARAMS)
    loss = lambda params: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))  # noqa: E731
    grads = jax.grad(loss)(PARAMS)
    _, state = old.update(grads, state, PARAMS, value=loss(PARAMS), grad=grads, value_fn=loss)
    carried = olr.carry_state(state, needy(0.25), PARAMS)
    assert olr.get_learning_rate(carried.state) == 0.5 and carried.overridden == ()
