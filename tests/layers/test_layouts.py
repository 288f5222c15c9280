"""Fan-in of the layers of Flax Linen, Flax NNX, Equinox and Haiku, against the inputs that each of them sums."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import optax_lr as olr

KEY = jax.random.key(0)
IMAGE, SEQUENCE = jnp.ones((1, 8, 8, 6)), jnp.ones((1, 5, 12))


def linen(module, inputs):
    return jax.eval_shape(module.init, KEY, inputs)["params"]


def of_nnx(module, *arguments, **options):
    return nnx.state(module(*arguments, rngs=nnx.Rngs(0), **options), nnx.Param)


def of_equinox(module):
    return eqx.filter(module, eqx.is_inexact_array)


MATRIX = {12: 1, "vector": 1}
ATTENTION = {12: 4, "vector": 4}
# A tree of parameters, and how many of its arrays have which label.
MODELS = {
    "linen Dense": (linen(nn.Dense(4), SEQUENCE), MATRIX),
    "linen Dense, no bias": (linen(nn.Dense(4, use_bias=False), SEQUENCE), {12: 1}),
    "linen DenseGeneral": (linen(nn.DenseGeneral((3, 4)), SEQUENCE), MATRIX),
    "linen DenseGeneral, two axes in": (
        linen(nn.DenseGeneral(4, axis=(-2, -1)), SEQUENCE),
        {60: 1, "vector": 1},
    ),
    "linen Conv": (linen(nn.Conv(4, (3, 3)), IMAGE), {54: 1, "vector": 1}),
    "linen Conv, one axis": (linen(nn.Conv(4, (3,)), SEQUENCE), {36: 1, "vector": 1}),
    "linen Conv, groups": (linen(nn.Conv(6, (3, 3), feature_group_count=6), IMAGE), {9: 1, "vector": 1}),
    "linen Conv, no bias": (linen(nn.Conv(4, (3, 3), use_bias=False), IMAGE), {54: 1}),
    "linen ConvTranspose": (linen(nn.ConvTranspose(4, (3, 3)), IMAGE), {54: 1, "vector": 1}),
    "linen Embed": (linen(nn.Embed(50, 4), jnp.ones(3, int)), {"vector": 1}),
    "linen LayerNorm": (linen(nn.LayerNorm(), SEQUENCE), {"vector": 2}),
    "linen attention": (linen(nn.MultiHeadDotProductAttention(3), SEQUENCE), ATTENTION),
    "linen attention, no bias": (
        linen(nn.MultiHeadDotProductAttention(3, use_bias=False), SEQUENCE),
        {12: 4},
    ),
    "nnx Linear": (of_nnx(nnx.Linear, 12, 4), MATRIX),
    "nnx LinearGeneral": (of_nnx(nnx.LinearGeneral, 12, (3, 4)), MATRIX),
    "nnx Conv": (of_nnx(nnx.Conv, 6, 4, (3, 3)), {54: 1, "vector": 1}),
    "nnx Embed": (of_nnx(nnx.Embed, 50, 4), {"vector": 1}),
    "nnx attention, one head": (of_nnx(nnx.MultiHeadAttention, 1, 12, decode=False), ATTENTION),
    "nnx attention, four heads": (of_nnx(nnx.MultiHeadAttention, 4, 12, decode=False), ATTENTION),
    "nnx LoRALinear": (of_nnx(nnx.LoRALinear, 12, 4, lora_rank=2), {12: 2, 2: 1, "vector": 1}),
    "equinox Linear": (of_equinox(eqx.nn.Linear(512, 10, key=KEY)), {512: 1, "vector": 1}),
    "equinox Linear, square": (of_equinox(eqx.nn.Linear(12, 12, key=KEY)), MATRIX),
    "equinox Conv2d": (of_equinox(eqx.nn.Conv2d(8, 32, 3, key=KEY)), {72: 1, "vector": 1}),
    "equinox LayerNorm": (of_equinox(eqx.nn.LayerNorm((4, 3))), {"vector": 2}),
    "haiku": (
        {"linear": {"w": jnp.ones((12, 4)), "b": jnp.ones(4)}, "conv": {"w": jnp.ones((3, 3, 6, 4))}},
        {12: 1, 54: 1, "vector": 1},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_fan_in_is_the_number_of_inputs_that_are_summed(name):
    params, wanted = MODELS[name]
    labels = jax.tree.leaves(olr.label_by_fan_in().resolve(params))
    assert {label: labels.count(label) for label in labels} == wanted


def test_heads_change_no_multiplier():
    rules = [
        olr.fan_in_multipliers(base=64).resolve(olr.label_by_fan_in().resolve(MODELS[name][0]))
        for name in ("nnx attention, one head", "nnx attention, four heads")
    ]
    assert rules[0] == rules[1] == {12: 64 / 12, "vector": 1.0}


def test_a_layout_goes_before_what_is_known():
    params = {
        "pos": jnp.ones((1, 5, 8)),
        "blocks": {"kernel": jnp.ones((3, 16, 4)), "bias": jnp.ones((3, 4))},
        "head": {"weight": jnp.ones((10, 7))},
    }
    layouts = {"pos": "vector", "blocks/kernel": "stack in out", r".*/weight": "out in"}
    labels = olr.label_by_fan_in(layouts).resolve(params)
    assert labels == {
        "pos": "vector",
        "blocks": {"kernel": 16, "bias": "vector"},
        "head": {"weight": 7},
    }


REFUSALS = {
    "no name that is known": (
        {},
        {"table": jnp.ones((7, 4))},
        "No layout is known for 'table (7, 4)': say which axes are summed over, as in "
        "layouts={'table': 'in out'}, or "
        "'vector' if none is.",
    ),
    "an embedding or a matrix": (
        {},
        {"tokens": {"weight": jnp.ones((50, 4))}},
        "No layout is known for 'tokens/weight (50, 4)': say which axes are summed over, as in "
        "layouts={'tokens/weight': 'in out'}, or 'vector' if none is.",
    ),
    "a convolution or heads": (
        {},
        {"mix": {"kernel": jnp.ones((3, 4, 5))}},
        "No layout is known for 'mix/kernel (3, 4, 5)': say which axes are summed over, as in "
        "layouts={'mix/kernel': 'in out'}, or 'vector' if none is.",
    ),
    "stacked layers": (
        {},
        {"kernel": jnp.ones((3, 16, 4)), "bias": jnp.ones((3, 4))},
        "No layout is known for 'kernel (3, 16, 4)': say which axes are summed over, as in "
        "layouts={'kernel': 'in out'}, or 'vector' if none is.",
    ),
    "other axes": (
        {"w": "in out"},
        {"w": jnp.ones((3, 4, 5))},
        "layouts['w'] must have a word for each axis of 'w', which has the shape (3, 4, 5), got 'in out'.",
    ),
    "another word": (
        {"w": "in by out"},
        {},
        "layouts['w'] must be 'vector', or a word for each axis (in, out, stack), with an in and an out, got "
        "'in by out'.",
    ),
    "no input": (
        {"w": "out out"},
        {},
        "layouts['w'] must be 'vector', or a word for each axis (in, out, stack), with an in and an out, got "
        "'out out'.",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_no_layout_names_is_refused_in_one_sentence(name, unhooked):
    layouts, params, sentence = REFUSALS[name]
    with pytest.raises(ValueError, match=r"\S") as refusal:
        unhooked.label_by_fan_in(layouts).resolve(params)
    assert str(refusal.value) == sentence
