"""Rules of multipliers: their numbers, that they are traced, and that they serve wherever a mapping does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_lr as olr

LAYERS = ("embed", "block_0", "block_2", "block_10", "head")
PARAMS = {name: jnp.full((2, 3), 1.0 + index) for index, name in enumerate(LAYERS)}
DEPTHS = olr.label_by_depth(["embed", r"block_(\d+)", "head"])
FAN_INS = {"block": 4, "head": 4, "bias": "vector"}


def test_layer_decay_and_geometric_multipliers():
    labels = DEPTHS.resolve(PARAMS)
    wanted = {label: 0.75 ** (4 - label) for label in range(5)}
    assert olr.layer_decay().resolve(labels) == pytest.approx(wanted)
    spread = olr.geometric_multipliers(1e-4, 1.0).resolve(labels)
    assert spread == pytest.approx(dict(enumerate(np.geomspace(1e-4, 1.0, 5))))
    assert olr.geometric_multipliers(None, 1.0).resolve(labels) == pytest.approx(
        {0: 0.1, 1: 0.1, 2: 0.1, 3: 0.1, 4: 1}
    )
    assert olr.geometric_multipliers(0.1, 2.0).resolve({"only": 0}) == {0: 2.0}


def test_fan_in_multipliers():
    labels = FAN_INS
    assert olr.fan_in_multipliers(base=1).resolve(labels) == {4: 1 / 4, "vector": 1.0}
    assert olr.fan_in_multipliers(base=1, power=0.5).resolve(labels)[4] == 0.5


def test_multipliers_may_be_traced_and_have_finite_derivatives():
    labels = DEPTHS.resolve(PARAMS)

    def total(decay, low, high, base, power):
        tables = (
            olr.layer_decay(decay).resolve(labels),
            olr.geometric_multipliers(low, high).resolve(labels),
            olr.fan_in_multipliers(base=base, power=power).resolve(FAN_INS),
        )
        return sum(jnp.asarray(value) for table in tables for value in table.values())

    slopes = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3, 4)))(0.0, 0.1, 1.0, 64.0, 1.0)
    assert np.isfinite(slopes).all()
    assert float(jax.jit(total)(0.75, 0.1, 1.0, 64.0, 1.0)) == pytest.approx(
        float(total(0.75, 0.1, 1.0, 64.0, 1.0))
    )


@pytest.mark.parametrize("rule", [olr.layer_decay(0.5), olr.geometric_multipliers(0.1, 1.0)], ids=repr)
def test_a_rule_is_the_mapping_that_it_resolves_to(rule):
    mapping = rule.resolve(DEPTHS.resolve(PARAMS))
    assert olr.describe_labels(PARAMS, DEPTHS, rule) == olr.describe_labels(PARAMS, DEPTHS, mapping)
    for make in (
        lambda given: olr.scale_by_label(given, DEPTHS),
        lambda given: olr.fine_tune(optax.adam(0.1), given, DEPTHS, starts={0: 1}),
        lambda given: olr.fine_tune(optax.adam(0.1), given, DEPTHS, frozen=[0, 1]),
    ):
        by_rule, by_mapping = (
            tx.update(PARAMS, tx.init(PARAMS), PARAMS) for tx in map(make, (rule, mapping))
        )
        for one, other in zip(*map(jax.tree.leaves, (by_rule, by_mapping)), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_rule_sees_the_labels_that_are_masked_out_or_not_in_these_parameters():
    mask = {name: name != "head" for name in LAYERS}
    tx = optax.masked(olr.scale_by_label(olr.layer_decay(0.5), DEPTHS), mask)
    updates, _ = tx.update(PARAMS, tx.init(PARAMS))
    np.testing.assert_array_equal(updates["block_10"], 0.5 * PARAMS["block_10"])
    part = {name: PARAMS[name] for name in ("embed", "block_2")}
    tx = olr.scale_by_label(olr.layer_decay(0.5), DEPTHS.resolve(PARAMS))
    np.testing.assert_array_equal(tx.update(part, tx.init(part))[0]["embed"], PARAMS["embed"] / 16)


def test_fan_in_multipliers_are_a_rule_that_needs_no_resolved_tree():
    params = {"dense": {"kernel": jnp.ones((256, 8)), "bias": jnp.ones(8)}}
    tx = olr.scale_by_label(olr.fan_in_multipliers(base=64), olr.label_by_fan_in())
    updates, _ = tx.update(params, tx.init(params))
    assert updates["dense"]["kernel"][0, 0] == 0.25 and updates["dense"]["bias"][0] == 1.0


def test_rules_say_what_they_are_and_are_no_functions():
    said = {
        "layer_decay(0.75)": olr.layer_decay(),
        "geometric_multipliers(None, 1)": olr.geometric_multipliers(None, 1),
        "fan_in_multipliers(base=64, power=0.5)": olr.fan_in_multipliers(base=64, power=0.5),
    }
    for text, rule in said.items():
        assert repr(rule) == text and not callable(rule)


REFUSALS = {
    "not resolved": (
        lambda olr: olr.layer_decay().resolve(olr.label_by_depth(["head"])),
        "layer_decay(0.75) needs a resolved tree, as labeler.resolve(params) gives: a label must be a string or an "
        "integer, got label_by_depth(['head']).",
    ),
    "no depth": (
        lambda olr: olr.layer_decay().resolve({"head": "head"}),
        "layer_decay needs integer labels, as label_by_depth gives, got 'head'.",
    ),
    "no depth, used": (
        lambda olr: olr.scale_by_label(olr.layer_decay(), {"head": "head"}).init({"head": 1.0}),
        "layer_decay needs integer labels, as label_by_depth gives, got 'head'.",
    ),
    "no fan-in": (
        lambda olr: olr.fan_in_multipliers(base=64).resolve({"head": "head"}),
        "fan_in_multipliers needs the labels of label_by_fan_in(), got 'head'.",
    ),
    "empty": (
        lambda olr: olr.layer_decay().resolve({}),
        "layer_decay(0.75) needs a tree of labels, got one without any: {}.",
    ),
    "decay": (
        lambda olr: olr.layer_decay(-0.5),
        "decay must be a finite number of at least 0, got -0.5.",
    ),
    "low": (
        lambda olr: olr.geometric_multipliers(0.0, 1.0),
        "low must be a finite number above 0, got 0.0.",
    ),
    "labels in the place of the decay": (
        lambda olr: olr.layer_decay({"head": 0}),
        "decay must be a finite number of at least 0, got {'head': 0}.",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_does_not_fit_is_refused_in_one_sentence(name, unhooked):
    act, sentence = REFUSALS[name]
    with pytest.raises(ValueError, match=r"\S") as refusal:
        act(unhooked)
    assert str(refusal.value) == sentence
