"""Labels by width of layers whose shapes mislead: mixtures of experts, cells, grouped convolutions, projections
onto several axes, low ranks, transposed convolutions and stacks in stacks. The labels are worked out by hand."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from width_models import HIDDEN, INPUT, KEY, OUTPUT, VECTOR, linen, of_equinox, of_nnx

import optax_lr as olr
from optax_lr.layers.labels import leaves_by_path


def arrays(**shapes):
    """A tree of shapes: `layer__kernel=(2, 3)` is at layer/kernel."""
    tree = {}
    for name, shape in shapes.items():
        *layers, leaf = name.split("__")
        here = tree
        for layer in layers:
            here = here.setdefault(layer, {})
        here[leaf] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return tree


class Experts(nn.Module):
    """Stacked layers, each a mixture of four experts in one array."""

    width: int

    @nn.compact
    def __call__(self, x, _):
        each = nn.vmap(
            nn.Dense,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,
            out_axes=0,
            axis_size=4,
        )
        gate = nn.softmax(nn.Dense(4, name="router")(x))
        return x + jnp.einsum("ebn,be->bn", each(self.width, name="up")(x), gate), None


class Mixture(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        stack = nn.scan(Experts, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return stack(self.width, name="blocks")(nn.Dense(self.width, name="first")(x), None)[0]


def convnext(width):
    return {
        "depthwise": of_nnx(nnx.Conv, width, width, (7, 7), feature_group_count=width),
        "four groups": of_nnx(nnx.Conv, width, width, (3, 3), feature_group_count=4, use_bias=False),
        "groups of four": of_nnx(nnx.Conv, width, width, (3, 3), feature_group_count=width // 4),
        "up": of_nnx(nnx.ConvTranspose, width, width // 2, (2, 2), use_bias=False),
        "out": of_nnx(nnx.ConvTranspose, width // 2, 3, (2, 2)),
    }


def cells(width):
    return of_equinox(
        lambda: {
            "gru": eqx.nn.GRUCell(3, width, key=KEY),
            "lstm": eqx.nn.LSTMCell(width, width, key=KEY),
            "attention": eqx.nn.MultiheadAttention(4, width, key=KEY),
        }
    )


def projections(width):
    """Heads of size 8, their number grows; keys have two at any width. Without biases."""
    heads = width // 8
    return arrays(
        qkv__kernel=(width, 3, heads, 8),
        stacked__kernel=(6, width, 3, heads, 8),
        query__kernel=(6, width, heads, 8),
        key__kernel=(6, width, 2, 8),
        q_einsum__w=(heads, width, 8),
        kv_einsum__w=(2, heads, width, 8),
        single__w=(2, 1, width, 8),
        out__w=(heads, 8, width),
        gate__gating_einsum=(2, width, 4 * width),
    )


def low_rank(width):
    return {"wide": of_nnx(nnx.LoRALinear, width, width, lora_rank=4)}


# A function of the width, the base's and the wide one's, and the label of each path.
LAYERS = {
    "experts in a stack": (
        lambda width: linen(Mixture(width), jnp.ones((1, 7))),
        4,
        16,
        {
            "first/kernel": INPUT,
            "first/bias": VECTOR,
            "blocks/router/kernel": OUTPUT,
            "blocks/router/bias": "fixed",
            "blocks/up/kernel": HIDDEN,
            "blocks/up/bias": VECTOR,
        },
    ),
    "convolutions": (
        convnext,
        8,
        32,
        {
            "depthwise/kernel": INPUT,
            "depthwise/bias": VECTOR,
            "four groups/kernel": HIDDEN,
            "groups of four/kernel": INPUT,
            "groups of four/bias": VECTOR,
            "up/kernel": HIDDEN,
            "out/kernel": OUTPUT,
            "out/bias": "fixed",
        },
    ),
    "nnx GRU": (
        lambda width: of_nnx(nnx.GRUCell, 3, width),
        3,
        12,
        {"dense_i/kernel": INPUT, "dense_i/bias": VECTOR, "dense_h/kernel": HIDDEN},
    ),
    "nnx LSTM": (
        lambda width: of_nnx(nnx.OptimizedLSTMCell, 3, width),
        3,
        12,
        {"dense_i/kernel": INPUT, "dense_h/kernel": HIDDEN, "dense_h/bias": VECTOR},
    ),
    "equinox cells": (
        cells,
        8,
        32,
        {
            "gru/weight_ih": INPUT,
            "gru/weight_hh": HIDDEN,
            "gru/bias": VECTOR,
            "gru/bias_n": VECTOR,
            "lstm/weight_ih": HIDDEN,
            "lstm/weight_hh": HIDDEN,
            "lstm/bias": VECTOR,
            **{f"attention/{name}_proj/weight": HIDDEN for name in ("query", "key", "value", "output")},
        },
    ),
    "projections": (
        projections,
        16,
        64,
        {
            "qkv/kernel": HIDDEN,
            "stacked/kernel": HIDDEN,
            "query/kernel": HIDDEN,
            "key/kernel": OUTPUT,
            "q_einsum/w": HIDDEN,
            "kv_einsum/w": HIDDEN,
            "single/w": OUTPUT,
            "out/w": HIDDEN,
            "gate/gating_einsum": HIDDEN,
        },
    ),
    "low ranks": (
        low_rank,
        16,
        64,
        {
            "wide/kernel": HIDDEN,
            "wide/bias": VECTOR,
            "wide/lora/lora_a": OUTPUT,
            "wide/lora/lora_b": INPUT,
        },
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_labels_are_those_of_what_the_layer_sums(name):
    model, base, width, wanted = LAYERS[name]
    labels = olr.label_by_width(model(base)).resolve(model(width))
    assert dict(leaves_by_path(labels)[0]) == wanted


@pytest.mark.parametrize(
    "path", ["b1", "norm__weight", "dt_bias", "gamma", "LayerNorm_0__g", "bn__mean", "log_scale"]
)
def test_what_is_added_or_scales_is_known_by_its_name(path):
    labels = olr.label_by_width(arrays(**{path: (8,)})).resolve(arrays(**{path: (32,)}))
    assert [label for _, label in leaves_by_path(labels)[0]] == [VECTOR]


INNER = {
    "routers": {"layer_0__router__kernel": (None, 8), "layer_1__router__kernel": (None, 8)},
    "stacked routers": {"layers__kernel": (3, None, 8), "layers__bias": (3, 8)},
    "keys of two heads": {"key__kernel": (None, 2, 8)},
    "a low rank": {"query__lora_a": (None, 4)},
}


@pytest.mark.parametrize("name", INNER)
def test_an_output_inside_the_model_does_not_read_its_table_out(name):
    def model(width, **more):
        inner = {path: tuple(size or width for size in shape) for path, shape in INNER[name].items()}
        return arrays(embed__embedding=(50, width), **inner, **more)

    with pytest.raises(
        ValueError, match="'embed/embedding' is a table of embeddings in a model without an output"
    ):
        olr.label_by_width(model(16)).resolve(model(64))
    base, wide = (model(width, head__kernel=(width, 10)) for width in (16, 64))
    assert olr.label_by_width(base).resolve(wide)["embed"]["embedding"] == INPUT
    labels = olr.label_by_width(model(16), {"embed/.*": "tied"}).resolve(model(64))
    assert labels["embed"]["embedding"] == "tied out x4"
