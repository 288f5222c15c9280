"""Labels by path and depth on every kind of tree, their table, and what is refused."""

from typing import Any, NamedTuple

import equinox as eqx
import flax.core
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from test_transformation_laws import Module

import optax_lr as olr
from optax_lr.nnx.modules import pure

PARAMS = {
    "embed": {"table": jnp.ones((7, 4))},
    "block_0": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)},
    "block_2": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)},
    "block_10": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)},
    "head": {"kernel": jnp.ones((4, 2))},
}
DEPTHS = [r"embed/.*", r"block_(\d+)/.*", r"head/.*"]


@pytest.fixture
def plain(unhooked):
    """The package without checks of annotations, to see its own refusals."""
    return unhooked


def of_each(tree):
    """The labels of a tree of two levels, by its first key."""
    return {key: set(jax.tree.leaves(part)) for key, part in tree.items()}


def test_the_first_rule_that_matches_the_whole_path_wins():
    labeler = olr.label_by_path(
        {r".*/bias": "bias", r"block_\d+/.*": "block", "embed": "never"}, default="rest"
    )
    with pytest.raises(ValueError, match="'embed', which matches no parameter"):
        labeler.resolve(PARAMS)  # a part of a path is no match
    labels = olr.label_by_path({r".*/bias": "bias", r"block_\d+/.*": "block"}, default="rest").resolve(PARAMS)
    assert labels["block_2"] == {"kernel": "block", "bias": "bias"}
    assert of_each(labels)["embed"] == of_each(labels)["head"] == {"rest"}


def test_depths_follow_the_numbers_and_have_no_gaps():
    labels = olr.label_by_depth(DEPTHS).resolve(PARAMS)
    assert of_each(labels) == {"embed": {0}, "block_0": {1}, "block_2": {2}, "block_10": {3}, "head": {4}}


def test_depths_of_two_numbers_are_ordered_from_left_to_right():
    stages = {f"stage{stage}_block{block}": 0 for stage in (2, 1) for block in (10, 9)}
    labels = olr.label_by_depth([r"stage(\d+)_block(\d+)"]).resolve(stages)
    assert labels == {"stage1_block9": 0, "stage1_block10": 1, "stage2_block9": 2, "stage2_block10": 3}


class Layers(nnx.Module):
    def __init__(self):
        self.embed = nnx.Embed(7, 4, rngs=nnx.Rngs(0))
        self.block = nnx.List([nnx.Linear(4, 4, rngs=nnx.Rngs(0)) for _ in range(2)])


@pytest.mark.parametrize(
    ("tree", "paths"),
    [
        ({"a": {"b": 1.0}}, ["a/b"]),
        (flax.core.freeze({"a": {"b": 1.0}}), ["a/b"]),
        ([1.0, (2.0,)], ["0", "1/0"]),
        (Module(1.0, [2.0]), ["bias", "kernel/0"]),
        (optax.EmaState(1, 2.0), ["count", "ema"]),
        (1.0, [""]),
    ],
    ids=["dict", "FrozenDict", "list", "equinox", "NamedTuple", "leaf"],
)
def test_paths_of_every_tree(tree, paths):
    resolved = olr.label_by_path({path.replace("/", "."): path for path in paths}).resolve(tree)
    assert jax.tree.leaves(resolved) == paths
    assert jax.tree.structure(resolved) == jax.tree.structure(tree)


def test_nnx_variables_and_their_arrays_have_one_path():
    state = nnx.state(Layers(), nnx.Param)
    labeler = olr.label_by_depth([r"embed/embedding", r"block/(\d+)/(?:kernel|bias)"])
    assert jax.tree.leaves(labeler.resolve(state)) == jax.tree.leaves(labeler.resolve(pure(state)))
    assert sorted(jax.tree.leaves(labeler.resolve(state))) == [0, 1, 1, 2, 2]


def test_what_is_masked_out_keeps_its_place():
    mask = {
        key: jax.tree.map(lambda _, key=key: key in ("block_2", "head"), part) for key, part in PARAMS.items()
    }
    seen = {}

    def look(updates, state, params=None):
        seen["labels"] = olr.label_by_depth(DEPTHS).resolve(updates)
        return updates, state

    spy = optax.GradientTransformation(lambda params: optax.EmptyState(), look)
    optax.masked(spy, mask).update(PARAMS, optax.masked(spy, mask).init(PARAMS))
    assert of_each(seen["labels"])["block_2"] == {2} and of_each(seen["labels"])["head"] == {4}
    assert of_each(seen["labels"])["embed"] == set()


def test_a_ready_tree_may_be_for_more_parameters_than_are_trained():
    labels = olr.label_by_depth(DEPTHS).resolve(PARAMS)
    part = {"head": PARAMS["head"]}
    tx = olr.scale_by_label(olr.layer_decay(), labels)
    updates, _ = tx.update(part, tx.init(part))
    assert updates["head"]["kernel"].tolist() == part["head"]["kernel"].tolist()


def test_the_table_of_a_labeling():
    labels = olr.label_by_depth([r"embed/.*", r"block.*", r"head/.*"])
    table = olr.describe_labels(PARAMS, labels, {0: 0.0, 1: olr.anneal_schedule(0.25, 1.0, 10), 2: 1.0})
    assert table.splitlines() == [
        "label  multiplier  leaves  parameters  share  for example",
        "    0           0       1          28  29.2%  embed/table",
        "    1        0.25       6          60  62.5%  block_0/bias",
        "    2           1       1           8   8.3%  head/kernel",
    ]


REFUSALS = {
    "unmatched": (
        lambda olr: olr.label_by_path({"head/.*": "head"}).resolve(PARAMS),
        "rules must match every parameter, and match none of 'block_0/bias', 'block_0/kernel', "
        "'block_10/bias', 'block_10/kernel', 'block_2/bias', 'block_2/kernel', 'embed/table'.",
    ),
    "unmatched, many": (
        lambda olr: olr.label_by_path({"x": "x"}).resolve({str(i): 0.0 for i in range(13)}),
        "rules must match every parameter, and match none of '0', '1', '10', '11', '12', '2', '3', '4', "
        "'5', '6' and 3 more.",
    ),
    "idle": (
        lambda olr: olr.label_by_path({"haed/kernel": "head"}, default="rest").resolve(PARAMS),
        "rules has 'haed/kernel', which matches no parameter: did you mean 'head/kernel'?",
    ),
    "shadowed": (
        lambda olr: olr.label_by_path({".*": "rest", "head/.*": "head"}).resolve(PARAMS),
        "rules has 'head/.*', but an earlier pattern takes all that it matches: 'head/kernel'. "
        "Under a filter, such as wrt, rules are for what it selects alone.",
    ),
    "no pattern": (
        lambda olr: olr.label_by_path({}),
        "rules must hold at least one regular expression, got {}.",
    ),
    "one string": (
        lambda olr: olr.label_by_depth("head"),
        "patterns must hold at least one regular expression, got 'head'.",
    ),
    "broken": (
        lambda olr: olr.label_by_depth(["block_(", "head"]),
        "patterns has 'block_(', which is no regular expression: missing ), unterminated subpattern at "
        "position 6.",
    ),
    "no label": (
        lambda olr: olr.label_by_path({".*": 0.5}),
        "rules['.*'] must be a string or an integer, got 0.5.",
    ),
    "no default": (
        lambda olr: olr.label_by_path({".*": 1}, default=True),
        "default must be a string or an integer, got True.",
    ),
    "no integer": (
        lambda olr: olr.label_by_depth([r"(.*)_.*", ".*"]).resolve(PARAMS),
        "patterns has '(.*)_.*', where a group holds 'block', which is no number. A group is for the number of a "
        r"layer, as in 'block_(\d+)'; write '(?:.*)_.*' to give all that matches one depth.",
    ),
    "depths beside a masked part": (
        lambda olr: olr.label_by_depth(["head"]).resolve({"head": 1.0, "body": optax.MaskedNode()}),
        "patterns cannot count depths where 'body' is masked out whole: resolve the labels on all "
        "parameters, and pass the tree.",
    ),
    "multiplier for no label": (
        lambda olr: olr.describe_labels({"a": 1.0}, {"a": "head"}, {"head": 1.0, "haed": 2.0}),
        "multipliers has 'haed', a label of no parameter: did you mean 'head'?",
    ),
    "label without multiplier": (
        lambda olr: olr.describe_labels({"a": 1.0, "b": 1.0}, {"a": "head", "b": "neck"}, {"head": 1.0}),
        "multipliers has nothing for 'neck', the label of 'b': there is 'head'.",
    ),
    "tree without a label": (
        lambda olr: olr.describe_labels({"a": 1.0, "bias": 1.0}, {"a": "head", "bais": "head"}),
        "labels has nothing for 'bias': did you mean 'bais'?",
    ),
    "function": (
        lambda olr: olr.describe_labels({"a": 1.0}, len),
        "labels must be a Labeler or a tree of labels: the one at '' must be a string or an integer, got "
        "<built-in function len>.",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_does_not_fit_is_refused_in_one_sentence(name, plain):
    act, sentence = REFUSALS[name]
    with pytest.raises(ValueError, match=r"\S") as refusal:
        act(plain)
    assert str(refusal.value) == sentence


def test_labelers_say_what_they_are_and_are_no_functions():
    said = {
        "label_by_path({'head/.*': 1}, default='rest')": olr.label_by_path({"head/.*": 1}, default="rest"),
        r"label_by_depth(['embed', at_depth('b', stacked_axis=0), 'c'])": olr.label_by_depth(
            ["embed", olr.at_depth("b", stacked_axis=0), "c"]
        ),
        "label_by_fan_in()": olr.label_by_fan_in(),
        "label_by_fan_in({'w': 'out in'})": olr.label_by_fan_in({"w": "out in"}),
    }
    for text, labeler in said.items():
        assert repr(labeler) == text and not callable(labeler)


class Critic(NamedTuple):
    policy: Any
    value: Any


class Heads(eqx.Module):
    query: Any
    value: Any


@pytest.mark.parametrize(
    ("tree", "paths"),
    [
        ({"head": Critic(1.0, 2.0)}, ["head/policy", "head/value"]),
        ([Heads(1.0, 2.0)], ["0/query", "0/value"]),
        ({"head": nnx.Param(jnp.ones(2))}, ["head"]),
        ({"head": nnx.Param({"w": jnp.ones(2), "value": jnp.ones(2)})}, ["head/value", "head/w"]),
        ({"head": flax.linen.Partitioned(jnp.ones(2), ("x",))}, ["head"]),
        ({"value": {"value": 1.0}}, ["value/value"]),
    ],
    ids=["NamedTuple", "equinox", "Variable", "Variable of a dict", "box", "dict"],
)
def test_only_the_field_of_a_box_of_flax_is_left_out_of_a_path(tree, paths):
    resolved = olr.label_by_path({path: path for path in paths}).resolve(tree)
    assert jax.tree.leaves(resolved) == paths


def test_labels_of_a_module_are_those_of_its_state():
    labeler = olr.label_by_depth([r"embed/embedding", r"block/(\d+)/(?:kernel|bias)"])
    model = Layers()
    state = nnx.state(model, nnx.Param)
    from_module, from_state = labeler.resolve(model), labeler.resolve(state)
    for labels in (from_module, from_state):
        tx = olr.scale_by_label(olr.layer_decay(0.5), labels)
        updates, _ = tx.update(pure(state), tx.init(state))
        np.testing.assert_allclose(updates["embed"]["embedding"], 0.25 * model.embed.embedding[...])


def test_two_parameters_of_one_path_are_refused(plain):
    tree = {"a/b": {"w": 1.0}, "a": {"b": {"w": 2.0}}}
    for labels in (plain.label_by_path({".*": 0}), {"a/b": {"w": 0}, "a": {"b": {"w": 1}}}):
        with pytest.raises(ValueError, match="Two parameters have the path 'a/b/w'"):
            plain.scale_by_label({0: 1.0}, labels).init(tree)


@pytest.mark.parametrize("labels", [olr.label_by_path({"w": 0}), olr.label_by_depth(["w"])], ids=repr)
def test_integers_beside_the_parameters_need_no_label(labels):
    params = {"w": jnp.ones(2), "step": jnp.int32(3)}
    tx = olr.fine_tune(optax.sgd(1.0), {0: 0.5}, labels, starts={0: 0})
    for tree in (params, {"w": params["w"]}):
        updates, _ = tx.update(tree, tx.init(tree), tree)
        assert updates["w"].tolist() == [-0.5, -0.5]
    assert "(integers)" in olr.describe_labels(params, labels)
    frozen = olr.fine_tune(optax.sgd(1.0), {}, labels, frozen=0)
    assert not frozen.update(params, frozen.init(params), params)[0]["w"].any()
