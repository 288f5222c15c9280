"""Effective rates: AdaGrad's fall and RMSProp's stay, in closed form; what is masked, absent or stacked."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lowerings import count_lowerings

import optax_lr as olr
from optax_lr.layers.labels import StackedLabel

STEPS, RATE, SIZE, DECAY = 50, 0.1, 3.0, 0.9
PARAMS = {"body": jnp.full((4, 5), 2.0), "head": jnp.full(5, 0.5)}
LABELS = {"body": "old", "head": "new"}
GRADIENTS = jax.tree.map(lambda leaf: jnp.full_like(leaf, SIZE), PARAMS)


def history(inner, labels=None, gradients=GRADIENTS, **options):
    """The effective rates of every step under one gradient, [steps], and the updates."""
    tx = olr.track_effective_rates(inner, labels, **options)

    def step(state, _):
        updates, state = tx.update(gradients, state, PARAMS)
        return state, (olr.effective_rates(state), updates)

    return jax.lax.scan(step, tx.init(PARAMS), length=STEPS)[1]


T = np.arange(1, STEPS + 1)
CLOSED_FORMS = {
    "sgd": (optax.sgd(RATE), np.full(STEPS, RATE)),
    # The sum of squares is t c^2, so each step is the rate over sqrt(t).
    "adagrad": (
        optax.adagrad(RATE, initial_accumulator_value=0.0, eps=0.0),
        RATE / (SIZE * np.sqrt(T)),
    ),
    # The average of squares is c^2 (1 - decay^t), which stays.
    "rmsprop": (optax.rmsprop(RATE, decay=DECAY, eps=0.0), RATE / (SIZE * np.sqrt(1 - DECAY**T))),
    "momentum": (optax.sgd(RATE, momentum=DECAY), RATE * (1 - DECAY**T) / (1 - DECAY)),
}


@pytest.mark.parametrize(("inner", "expected"), CLOSED_FORMS.values(), ids=CLOSED_FORMS)
def test_on_constant_gradients_rates_are_the_closed_form(inner, expected):
    rates, updates = history(inner, LABELS)
    for label, leaf in (("old", "body"), ("new", "head")):
        size = np.sqrt(PARAMS[leaf].size)
        np.testing.assert_allclose(rates.update_to_gradient[label], expected, rtol=1e-5)
        np.testing.assert_allclose(rates.gradient_norm[label], SIZE * size, rtol=1e-6)
        weight = float(PARAMS[leaf].ravel()[0])
        np.testing.assert_allclose(rates.update_to_weight[label], expected * SIZE / weight, rtol=1e-5)
    tx, state = inner, inner.init(PARAMS)
    for step in range(3):
        plain, state = jax.jit(tx.update)(GRADIENTS, state, PARAMS)
        for one, other in zip(*map(jax.tree.leaves, (plain, updates)), strict=True):
            np.testing.assert_allclose(one, other[step], rtol=2e-7)


def test_labels_part_the_norms():
    mixed = {"body": jnp.zeros((4, 5)), "head": jnp.full(5, 2.0)}
    rates = history(optax.sgd(RATE), LABELS, mixed)[0]
    assert set(rates.gradient_norm) == {"old", "new"}
    assert not rates.gradient_norm["old"].any() and not rates.update_to_gradient["old"].any()
    whole = history(optax.sgd(RATE), None, mixed)[0]
    np.testing.assert_allclose(whole.gradient_norm["all"], rates.gradient_norm["new"])


def test_stacked_layers_have_a_norm_each():
    params = {f"block_{layer}": jnp.full((3, 2), layer + 1.0) for layer in range(4)}
    stacked = {"blocks": jnp.stack(list(params.values()), axis=1)}
    both = [
        (params, {f"block_{layer}": layer for layer in range(4)}),
        (stacked, {"blocks": StackedLabel(range(4), axis=1)}),
    ]
    found = []
    for tree, labels in both:
        tx = olr.track_effective_rates(optax.sgd(RATE), labels)
        found.append(olr.effective_rates(tx.update(tree, tx.init(tree), tree)[1]))
    expected = {str(layer): (layer + 1) * 6**0.5 for layer in range(4)}
    for one in found:
        assert {label: float(norm) for label, norm in one.gradient_norm.items()} == pytest.approx(expected)


def test_every_so_many_updates_are_measured():
    rates = history(CLOSED_FORMS["adagrad"][0], every=7)[0].update_to_gradient["all"]
    np.testing.assert_allclose(rates, (RATE / (SIZE * np.sqrt(T)))[np.arange(STEPS) // 7 * 7], rtol=1e-5)


def test_in_between_nothing_is_summed():
    def primitives(every):
        tx = olr.track_effective_rates(optax.sgd(RATE), every=every)
        jaxpr = jax.make_jaxpr(tx.update)(GRADIENTS, tx.init(PARAMS), PARAMS)
        return [equation.primitive.name for equation in jaxpr.eqns]

    assert "cond" in primitives(2) and "reduce_sum" not in primitives(2)
    assert "cond" not in primitives(1) and "reduce_sum" in primitives(1)


def test_no_kernel_writes_more_than_the_inner_optimizer_does():
    params = jnp.ones((512, 512))

    def written(tx):
        """How many kernels of the compiled update write an array of the parameters' shape."""
        text = jax.jit(tx.update).lower(params, tx.init(params), params).compile().as_text()
        entry = text[text.index("ENTRY") :].splitlines()
        return sum("f32[512,512]" in line.split("fusion(")[0] for line in entry if "fusion(" in line)

    inner = optax.sgd(RATE, momentum=0.9)
    assert written(olr.track_effective_rates(inner)) == written(inner) > 0


def test_masked_none_and_integer_leaves_have_no_norm():
    params = {**PARAMS, "none": None, "masked": optax.MaskedNode(), "n": jnp.arange(3), "s": 2.0}
    gradient = {**params, **GRADIENTS, "n": np.zeros(3, jax.dtypes.float0), "s": 1.0}
    passed = optax.GradientTransformation(lambda params: optax.EmptyState(), lambda u, s, p=None: (u, s))
    tx = olr.track_effective_rates(passed)
    updates, state = tx.update(gradient, tx.init(params), params)
    assert updates["none"] is None and updates["n"].dtype == jax.dtypes.float0
    squares = sum(float(jnp.sum(leaf**2)) for leaf in GRADIENTS.values()) + 1
    assert float(olr.effective_rates(state).gradient_norm["all"]) == pytest.approx(squares**0.5)
    outer = optax.masked(olr.track_effective_rates(optax.sgd(RATE), LABELS), {"body": True, "head": False})
    _, state = outer.update(GRADIENTS, outer.init(PARAMS), PARAMS)
    rates = olr.effective_rates(state)
    assert float(rates.gradient_norm["new"]) == 0 and float(rates.gradient_norm["old"]) > 0
    _, state = tx.update({**gradient, "body": None}, tx.init(params), params)
    assert float(olr.effective_rates(state).gradient_norm["all"]) == pytest.approx((5 * SIZE**2 + 1) ** 0.5)


def test_half_precision_is_summed_in_float32_and_keeps_its_dtype():
    half = jax.tree.map(lambda leaf: jnp.full(4096, 0.01, jnp.bfloat16), PARAMS)
    tx = olr.track_effective_rates(optax.sgd(RATE))
    updates, state = tx.update(half, tx.init(half), half)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}
    expected = float(half["body"][0]) * np.sqrt(2 * 4096)
    assert float(olr.effective_rates(state).gradient_norm["all"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("every", [1, 2])
def test_flags_of_jax(every):
    tx = olr.track_effective_rates(optax.sgd(RATE), every=every)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    with (
        jax.numpy_dtype_promotion("strict"),
        jax.debug_nans(True),
        jax.debug_infs(True),
        jax.numpy_rank_promotion("raise"),
    ):
        for update in (tx.update, jax.jit(tx.update)):
            _, state = update(zeros, tx.init(PARAMS), PARAMS)
            _, state = update(GRADIENTS, state)  # no parameters: no update over weight
            assert float(olr.effective_rates(state).update_to_weight["all"]) == 0


def test_abstract_parameters_and_lanes():
    tx = olr.track_effective_rates(optax.adam(RATE), LABELS)
    abstract = jax.eval_shape(lambda: PARAMS)
    assert jax.tree.structure(tx.init(abstract)) == jax.tree.structure(tx.init(PARAMS))
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), GRADIENTS)
    lanes = jax.vmap(lambda g: olr.effective_rates(tx.update(g, tx.init(PARAMS), PARAMS)[1]))(stacked)
    one, two = lanes.gradient_norm["old"]
    assert float(two) == pytest.approx(2 * float(one))


def test_a_changed_interval_compiles_nothing():
    step = jax.jit(
        lambda every, g, s: olr.track_effective_rates(optax.sgd(RATE), every=every).update(g, s, PARAMS)
    )
    state = olr.track_effective_rates(optax.sgd(RATE)).init(PARAMS)
    step(np.int32(2), GRADIENTS, state)
    with count_lowerings() as lowered:
        step(np.int32(5), GRADIENTS, state)
    assert lowered == []


def test_what_cannot_be_read_or_labeled_is_refused(unhooked):
    with pytest.raises(ValueError, match="must hold one state of track_effective_rates, and holds 0"):
        unhooked.effective_rates(optax.sgd(0.1).init(PARAMS))
    both = optax.chain(*[unhooked.track_effective_rates(optax.sgd(0.1))] * 2)
    with pytest.raises(ValueError, match="holds 2"):
        unhooked.effective_rates(both.init(PARAMS))
    with pytest.raises(ValueError, match="resolve"):
        unhooked.track_effective_rates(optax.sgd(0.1), unhooked.label_by_depth(["body", "head"]))
    with pytest.raises(ValueError, match="labels"):
        unhooked.track_effective_rates(optax.sgd(0.1), {"body": "old"}).init(PARAMS)
