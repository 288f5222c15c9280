"""The learning rates in force are what the last update was multiplied by, and the table says why."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_lr as olr

PARAMS = {"body": jnp.ones(2), "norm": jnp.ones((2, 2)), "head": jnp.ones(3)}
ONES = jax.tree.map(jnp.ones_like, PARAMS)
LABELS = {name: name for name in PARAMS}
STEPS = 6


def falling(step):
    return 1.0 / (1.0 + step)


def rate(value=falling):
    return olr.scale_by_learning_rate(value)


def plateau(**options):
    return olr.reduce_on_plateau(patience=0, factor=0.5, **options)


MULTIPLIERS = {"body": 0.1, "norm": optax.linear_schedule(1.0, 0.0, 4), "head": 2.0}

# Every gradient is 1 in each of them, so minus the update is the number that is looked for.
NESTS = {
    "number": lambda: rate(0.5),
    "schedule": rate,
    "visible": lambda: olr.visible(optax.sgd)(falling),
    "injected": lambda: optax.inject_hyperparams(optax.sgd)(learning_rate=falling),
    "injected into ours": lambda: optax.inject_hyperparams(rate)(value=0.5),
    "injected around multipliers": lambda: optax.inject_hyperparams(
        lambda learning_rate: olr.fine_tune(rate(learning_rate), MULTIPLIERS, LABELS)
    )(learning_rate=0.25),
    "two rates": lambda: optax.chain(rate(), olr.scale_by_learning_rate(0.5, flip_sign=False)),
    "plateau": lambda: optax.chain(rate(0.5), plateau()),
    "plateau, every": lambda: optax.chain(rate(0.5), plateau(every=2)),
    "multipliers": lambda: optax.chain(rate(), olr.scale_by_label(MULTIPLIERS, LABELS)),
    "multipliers, plateau": lambda: optax.chain(rate(), olr.scale_by_label(MULTIPLIERS, LABELS), plateau()),
    "zero_until": lambda: optax.chain(olr.zero_until({"body": 2, "norm": 4}, LABELS), rate()),
    "unfreeze_at": lambda: olr.unfreeze_at(rate(), {"body": 2, "norm": 4}, LABELS),
    "label clock": lambda: olr.unfreeze_at(rate(), {"body": 2, "norm": 4}, LABELS, clock="label"),
    "label clock, injected": lambda: olr.unfreeze_at(
        optax.inject_hyperparams(optax.sgd)(learning_rate=falling),
        {"body": 2, "norm": 4},
        LABELS,
        clock="label",
    ),
    "label clock, multipliers inside": lambda: olr.unfreeze_at(
        optax.chain(rate(), olr.scale_by_label(MULTIPLIERS, LABELS)), {"norm": 2}, LABELS, clock="label"
    ),
    "label clock, zero_until inside": lambda: olr.unfreeze_at(
        optax.chain(olr.zero_until({"body": 1}, LABELS), rate()), {"body": 2}, LABELS, clock="label"
    ),
    "one unfreeze_at in another": lambda: olr.unfreeze_at(
        olr.fine_tune(rate(), MULTIPLIERS, LABELS, starts={"body": 1, "norm": 2}),
        {"body": 3, "head": 1},
        LABELS,
        clock="label",
    ),
    "fine_tune": lambda: olr.fine_tune(rate(), MULTIPLIERS, LABELS, starts={"body": 3}),
    "fine_tune, label clock": lambda: olr.fine_tune(
        olr.visible(optax.sgd)(falling), MULTIPLIERS, LABELS, starts={"body": 3}, clock="label"
    ),
    "fine_tune, frozen": lambda: olr.fine_tune(
        rate(), {"norm": 0.5, "head": 1.0}, LABELS, frozen="body", starts={"norm": 2}
    ),
    "train_only": lambda: olr.train_only(rate(), "head", LABELS),
    "partition": lambda: optax.partition({"body": rate(), "norm": rate(0.5), "head": rate(0.25)}, LABELS),
    "rate outside": lambda: optax.chain(
        optax.partition({"body": plateau(), "norm": optax.identity(), "head": optax.identity()}, LABELS),
        rate(),
    ),
    "partition, multipliers": lambda: optax.chain(
        optax.partition({"body": rate(), "norm": rate(0.5), "head": rate(0.25)}, LABELS),
        olr.scale_by_label(MULTIPLIERS, LABELS),
    ),
    "named_chain": lambda: optax.named_chain(
        ("rate", rate()), ("labels", olr.scale_by_label(MULTIPLIERS, LABELS))
    ),
    "apply_if_finite": lambda: optax.apply_if_finite(olr.fine_tune(rate(), MULTIPLIERS, LABELS), 3),
}


def of_label(rates, name):
    """The number for a parameter: by its label, or what it falls under without one."""
    names = (name, "frozen" if name != "head" else "trainable", "(others)", "(all)")
    return next(rates[each] for each in names if each in rates)


@pytest.mark.parametrize("nest", NESTS)
def test_is_what_the_last_update_was_multiplied_by(nest):
    tx = optax.with_extra_args_support(NESTS[nest]())
    state = tx.init(PARAMS)
    before = olr.learning_rates_in_force(state)
    update = jax.jit(lambda state, value: tx.update(ONES, state, PARAMS, value=value))
    for step, value in enumerate((3.0, 3.0, 2.0, 2.0, 2.5, 1.0)):
        updates, state = update(state, value)
        rates = olr.learning_rates_in_force(state)
        for name, leaf in updates.items():
            np.testing.assert_allclose(-leaf, of_label(rates, name), rtol=1e-6)
            if step == 0 and "every" not in nest:
                np.testing.assert_allclose(of_label(before, name), -leaf.ravel()[0], rtol=1e-6)


BY_HAND = {
    "set_learning_rate": olr.set_learning_rate,
    "optax.tree.set": lambda state, value: optax.tree.set(state, learning_rate=value),
}


@pytest.mark.parametrize("by", BY_HAND)
@pytest.mark.parametrize("clock", ["run", "label"])
@pytest.mark.parametrize("inner", [rate, lambda: olr.visible(optax.sgd)(falling)], ids=["bare", "visible"])
def test_a_rate_set_by_hand_is_in_force_at_once_whatever_the_clock(inner, clock, by):
    constant = {"body": 0.1, "norm": 0.5, "head": 2.0}
    tx = olr.fine_tune(inner(), constant, LABELS, starts={"body": 2, "norm": 4}, clock=clock)
    state = tx.init(PARAMS)
    awake = {"head"}  # in the last update
    for step in range(STEPS):
        changed = BY_HAND[by](state, 0.3)
        told, why = olr.learning_rates_in_force(changed), olr.describe_learning_rates(changed)
        assert why.count("0.3 set by hand") == len(PARAMS), why
        updates, after = tx.update(ONES, changed, PARAMS)
        for name, leaf in updates.items():
            np.testing.assert_allclose(told[name], -leaf.ravel()[0] if name in awake else 0.0, rtol=1e-6)
        # Once used, it is what it was, and a rate that is cleared is the label's own again.
        again = olr.learning_rates_in_force(after)
        for name, leaf in updates.items():
            np.testing.assert_allclose(again[name], -leaf.ravel()[0], rtol=1e-6)
        cleared, back = tx.update(ONES, olr.clear_learning_rate(after), PARAMS)
        for name, leaf in cleared.items():
            np.testing.assert_allclose(olr.learning_rates_in_force(back)[name], -leaf.ravel()[0], rtol=1e-6)
        _, state = tx.update(ONES, state, PARAMS)
        awake |= {name for name, start in {"body": 2, "norm": 4}.items() if step >= start}


@pytest.mark.parametrize("nest", NESTS)
def test_is_read_in_a_jitted_step_and_of_a_vmapped_state(nest):
    tx = optax.with_extra_args_support(NESTS[nest]())

    @jax.jit
    def train(scale):
        grads, state = jax.tree.map(lambda leaf: scale * leaf, ONES), tx.init(PARAMS)
        for value in (3.0, 3.0, 2.0):
            updates, state = tx.update(grads, state, PARAMS, value=value * scale)
        return updates, olr.learning_rates_in_force(state), state

    updates, rates, states = jax.vmap(train)(jnp.array([1.0, 2.0]))
    for name, leaf in updates.items():
        np.testing.assert_allclose(
            -leaf.reshape(2, -1)[:, 0] / jnp.array([1.0, 2.0]), of_label(rates, name), rtol=1e-6
        )
    for label, lanes in olr.learning_rates_in_force(states).items():
        np.testing.assert_array_equal(lanes, rates[label])


def test_what_is_masked_goes_by_its_place():
    tx = optax.chain(
        optax.masked(rate(0.5), {"body": True, "norm": False, "head": False}),
        optax.masked(olr.visible(optax.sgd)(falling), {"body": False, "norm": True, "head": True}),
        plateau(),
    )
    state = tx.init(PARAMS)
    for value in (3.0, 3.0, 3.0):
        updates, state = tx.update(ONES, state, PARAMS, value=value)
    rates = olr.learning_rates_in_force(state)
    assert list(rates) == ["(masked at 0)", "(masked at 1)"]
    np.testing.assert_allclose(list(rates.values()), [-updates["body"][0], -updates["head"][0]], rtol=1e-6)


def test_inside_multisteps_it_is_that_of_the_last_optimizer_step():
    tx = optax.MultiSteps(olr.fine_tune(rate(), MULTIPLIERS, LABELS, starts={"body": 2}), 2)
    state, emitted = tx.init(PARAMS), None
    for call in range(8):
        updates, state = tx.update(ONES, state, PARAMS)
        emitted = updates if call % 2 else emitted
        if emitted:
            for name, leaf in emitted.items():
                np.testing.assert_allclose(
                    -leaf.ravel()[0], olr.learning_rates_in_force(state)[name], rtol=1e-6
                )


def test_stacked_layers_have_a_number_each(unhooked):
    params = {"blocks": jnp.ones((3, 2)), "head": jnp.ones(2)}
    multipliers = {"blocks": [0.25, 0.5, 1.0], "head": 1.0}
    tx = optax.chain(
        unhooked.scale_by_learning_rate(0.5),
        unhooked.scale_by_label(multipliers, {"blocks": "blocks", "head": "head"}),
    )
    updates, state = tx.update(params, tx.init(params))
    rates = unhooked.learning_rates_in_force(state)
    np.testing.assert_allclose(rates["blocks"], -updates["blocks"][:, 0])
    lanes = jax.vmap(lambda scale: tx.update(params, tx.init(params))[1])(jnp.ones(2))
    assert unhooked.learning_rates_in_force(lanes)["blocks"].tolist() == [[0.125, 0.25, 0.5]] * 2
    assert "x [0.25, 0.5, 1.0] for the label" in unhooked.describe_learning_rates(state)


def test_a_frozen_label_has_no_rate_whatever_its_multiplier():
    labels = olr.label_by_depth(["body", "norm", "head"])
    for multipliers in (olr.layer_decay(0.5), {0: 0.25, 1: 0.5, 2: 1.0}):
        tx = olr.fine_tune(rate(0.5), multipliers, labels, frozen=0, starts={1: 2})
        _, state = tx.update(ONES, tx.init(PARAMS), PARAMS)
        assert olr.learning_rates_in_force(state) == {"1": 0.0, "2": 0.5, "frozen": 0.0}


def test_an_nnx_optimizer_is_read_as_it_is():
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    labels = olr.label_by_path({"bias": "bias", "kernel": "kernel"})
    tx = olr.fine_tune(olr.visible(optax.adam)(0.5), {"bias": 0.5, "kernel": 1.0}, labels)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, nnx.state(model, nnx.Param))
    assert olr.learning_rates_in_force(optimizer) == {"bias": 0.25, "kernel": 0.5}


def test_the_table_says_why():
    tx = optax.chain(
        olr.fine_tune(rate(0.5), {"norm": 0.5, "head": 1.0}, LABELS, frozen="body", starts={"norm": 500}),
        plateau(),
    )
    state = tx.init(PARAMS)
    for _ in range(3):
        _, state = tx.update(ONES, state, PARAMS, value=1.0)
    assert olr.describe_learning_rates(state).splitlines() == [
        " label  rate  why",
        "frozen     0  never trained, x 0.5 by the plateau",
        "  head  0.25  0.5 by the number or schedule, x 1 for the label, x 0.5 by the plateau",
        "  norm     0  0.5 by the number or schedule, frozen until update 500, x 0.5 for the label, "
        "x 0.5 by the plateau",
    ]
    fast = olr.set_unfreezing_steps(olr.set_learning_rate(state, 0.1), {"norm": 1})
    assert olr.describe_learning_rates(fast).splitlines()[2:] == [
        "  head   0.05  0.1 set by hand, x 1 for the label, x 0.5 by the plateau",
        "  norm  0.025  0.1 set by hand, x 0.5 for the label, x 0.5 by the plateau",
    ]


def test_a_state_without_a_visible_rate_and_a_traced_table_are_refused(unhooked):
    with pytest.raises(ValueError, match=r"no visible learning rate: write optax_lr\.visible\(optax\.adam\)"):
        unhooked.learning_rates_in_force(optax.adam(0.1).init(PARAMS))
    with pytest.raises(ValueError, match="must be called outside jit"):
        jax.jit(lambda state: jnp.ones(len(unhooked.describe_learning_rates(state))))(rate(0.5).init(PARAMS))


def test_a_group_without_parameters_keeps_its_rate_as_the_docstring_says():
    groups = {"body": olr.visible(optax.sgd)(0.1), "empty": olr.visible(optax.sgd)(0.2)}
    state = optax.partition(groups, dict.fromkeys(PARAMS, "body")).init(PARAMS)
    assert {
        label: float(rate) for label, rate in olr.learning_rates_in_force(state).items()
    } == pytest.approx({"body": 0.1, "empty": 0.2})
    assert "one without parameters is not" in olr.learning_rates_in_force.__doc__
