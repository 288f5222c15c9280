"""Small models of Flax Linen, NNX, Equinox and Haiku at any width, and the labels of their parameters by hand.

Table 3, for a width n: input weights and biases, hidden weights, output weights have the variance 1, 1 / n,
1 / n^2; Adam's rate 1, 1 / n, 1 / n; SGD's rate n, 1, 1 / n.
"""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

KEY = jax.random.key(0)
IMAGE, SEQUENCE, TOKENS = jnp.ones((1, 8, 8, 3)), jnp.ones((1, 5, 7)), jnp.ones((1, 5), int)

# Table 3 for a model four times as wide: Adam's rate, SGD's rate, the size of the start against the base's.
TABLE = {
    "vector out x4": (1, 4, 1),
    "input out x4": (1, 4, 1),
    "hidden in x4 out x4": (1 / 4, 1, 1 / 2),
    "output in x4": (1 / 4, 1 / 4, 1 / 4),
    "tied out x4": (1, 4, 1),
    "fixed": (1, 1, 1),
}


def linen(module, inputs):
    return jax.eval_shape(module.init, KEY, inputs)["params"]


def of_nnx(module, *arguments, **options):
    return nnx.state(nnx.eval_shape(lambda: module(*arguments, rngs=nnx.Rngs(0), **options)), nnx.Param)


def of_equinox(make):
    return eqx.filter(eqx.filter_eval_shape(make), lambda leaf: hasattr(leaf, "shape"))


class LinenTransformer(nn.Module):
    width: int
    bias: bool = True

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(50, self.width, name="embed")(tokens)
        x = x + nn.MultiHeadDotProductAttention(4, use_bias=self.bias, name="attention")(
            nn.LayerNorm(name="norm")(x)
        )
        x = x + nn.Dense(self.width, name="narrow")(
            nn.Dense(4 * self.width, use_bias=self.bias, name="wide")(x)
        )
        return nn.Dense(50, use_bias=self.bias, name="head")(x)


class LinenConvolutions(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (3, 3), use_bias=False, name="stem")(x)
        x = nn.Conv(self.width, (3, 3), use_bias=False, name="body")(x)
        x = nn.Conv(self.width, (3, 3), feature_group_count=self.width, name="depthwise")(x)
        return nn.Dense(10, name="head")(x.mean(axis=(1, 2)))


class Block(nn.Module):
    width: int
    bias: bool

    @nn.compact
    def __call__(self, x, _):
        x = x + nn.MultiHeadDotProductAttention(2, use_bias=self.bias, name="attention")(x)
        return x + nn.Dense(self.width, use_bias=self.bias, name="dense")(nn.LayerNorm(name="norm")(x)), None


class LinenStack(nn.Module):
    width: int
    bias: bool = True

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(50, self.width, name="embed")(tokens)
        stack = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = stack(self.width, self.bias, name="blocks")(x, None)
        return nn.Dense(50, name="head")(x)


class LinenRecurrent(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="head")(nn.RNN(nn.OptimizedLSTMCell(self.width))(x))


def haiku_like(width):
    shape = jax.ShapeDtypeStruct
    return {
        "in": {"w": shape((3, width), jnp.float32), "b": shape((width,), jnp.float32)},
        "mid": {"w": shape((width, width), jnp.float32)},
        "out": {"w": shape((width, 2), jnp.float32)},
    }


def of_equinox_mlp(width):
    return of_equinox(lambda: eqx.nn.MLP(3, 5, width, 2, key=KEY))


def of_equinox_stack(width):
    def layer(key):
        return eqx.nn.Linear(width, width, use_bias=False, key=key)

    return of_equinox(
        lambda: {
            "in": eqx.nn.Conv2d(3, width, 3, key=KEY),
            "stack": eqx.filter_vmap(layer)(jax.random.split(KEY, 3)),
            "norm": eqx.nn.LayerNorm(width),
            "conv": eqx.nn.Conv2d(width, width, 3, use_bias=False, key=KEY),
            "out": eqx.nn.Linear(width, 5, key=KEY),
        }
    )


VECTOR, INPUT, HIDDEN, OUTPUT = "vector out x4", "input out x4", "hidden in x4 out x4", "output in x4"
ATTENTION = {
    f"{name}/{leaf}": HIDDEN if leaf == "kernel" else VECTOR
    for name in ("query", "key", "value", "out")
    for leaf in ("kernel", "bias")
}
TRANSFORMER = {
    "embed/embedding": INPUT,
    **{f"attention/{path}": label for path, label in ATTENTION.items()},
    "norm/scale": VECTOR,
    "norm/bias": VECTOR,
    "wide/kernel": HIDDEN,
    "wide/bias": VECTOR,
    "narrow/kernel": HIDDEN,
    "narrow/bias": VECTOR,
    "head/kernel": OUTPUT,
    "head/bias": "fixed",
}
STACK = {
    "embed/embedding": INPUT,
    **{f"blocks/attention/{path}": label for path, label in ATTENTION.items()},
    "blocks/dense/kernel": HIDDEN,
    "blocks/dense/bias": VECTOR,
    "blocks/norm/scale": VECTOR,
    "blocks/norm/bias": VECTOR,
    "head/kernel": OUTPUT,
    "head/bias": "fixed",
}
MLP = {
    "layers/0/weight": INPUT,
    "layers/0/bias": VECTOR,
    "layers/1/weight": HIDDEN,
    "layers/1/bias": VECTOR,
    "layers/2/weight": OUTPUT,
    "layers/2/bias": "fixed",
}


def without(labels, *paths):
    return {path: label for path, label in labels.items() if path not in paths}


WITHOUT_BIAS = [f"attention/{name}/bias" for name in ("query", "key", "value", "out")]
# A function of the width, the base's and the wide one's, and the label of each path.
MODELS = {
    "linen transformer": (lambda width: linen(LinenTransformer(width), TOKENS), 16, 64, TRANSFORMER),
    # The width of the vocabulary, of a window or of the heads may be that of the base.
    "linen transformer, square": (
        lambda width: linen(LinenTransformer(width), TOKENS),
        50 - 2,
        192,
        TRANSFORMER,
    ),
    "linen transformer, no bias": (
        lambda width: linen(LinenTransformer(width, bias=False), TOKENS),
        4,
        16,
        without(TRANSFORMER, *WITHOUT_BIAS, "wide/bias", "head/bias"),
    ),
    "linen convolutions": (
        lambda width: linen(LinenConvolutions(width), IMAGE),
        3,
        12,
        {
            "stem/kernel": INPUT,
            "body/kernel": HIDDEN,
            "depthwise/kernel": INPUT,
            "depthwise/bias": VECTOR,
            "head/kernel": OUTPUT,
            "head/bias": "fixed",
        },
    ),
    "linen stack": (lambda width: linen(LinenStack(width), TOKENS), 8, 32, STACK),
    "linen stack, as many layers as heads": (lambda width: linen(LinenStack(width), TOKENS), 2, 8, STACK),
    "linen stack, no bias": (
        lambda width: linen(LinenStack(width, bias=False), TOKENS),
        8,
        32,
        without(STACK, *(f"blocks/{path}" for path in WITHOUT_BIAS), "blocks/dense/bias"),
    ),
    "linen recurrent": (
        lambda width: linen(LinenRecurrent(width), SEQUENCE),
        4,
        16,
        {
            **{f"OptimizedLSTMCell_0/i{gate}/kernel": INPUT for gate in "ifgo"},
            **{f"OptimizedLSTMCell_0/h{gate}/kernel": HIDDEN for gate in "ifgo"},
            **{f"OptimizedLSTMCell_0/h{gate}/bias": VECTOR for gate in "ifgo"},
            "head/kernel": OUTPUT,
            "head/bias": "fixed",
        },
    ),
    "nnx attention": (
        lambda width: {
            "attention": of_nnx(nnx.MultiHeadAttention, 2, width, decode=False),
            "embed": of_nnx(nnx.Embed, 50, width),
            "out": of_nnx(nnx.Linear, width, 3),
        },
        8,
        32,
        {
            **{f"attention/{path}": label for path, label in ATTENTION.items()},
            "embed/embedding": INPUT,
            "out/kernel": OUTPUT,
            "out/bias": "fixed",
        },
    ),
    "nnx convolution": (
        lambda width: {"conv": of_nnx(nnx.Conv, width, width, (3,)), "norm": of_nnx(nnx.BatchNorm, width)},
        4,
        16,
        {"conv/kernel": HIDDEN, "conv/bias": VECTOR, "norm/scale": VECTOR, "norm/bias": VECTOR},
    ),
    "equinox MLP": (of_equinox_mlp, 8, 32, MLP),
    "equinox MLP, square": (of_equinox_mlp, 3, 12, MLP),
    "equinox stack": (
        of_equinox_stack,
        8,
        32,
        {
            "in/weight": INPUT,
            "in/bias": VECTOR,
            "stack/weight": HIDDEN,
            "norm/weight": VECTOR,
            "norm/bias": VECTOR,
            "conv/weight": HIDDEN,
            "out/weight": OUTPUT,
            "out/bias": "fixed",
        },
    ),
    "haiku": (
        haiku_like,
        8,
        32,
        {"in/w": INPUT, "in/b": VECTOR, "mid/w": HIDDEN, "out/w": OUTPUT},
    ),
}
