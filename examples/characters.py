"""What transformer.py trains: the characters of Python's own documentation strings, and a small transformer."""

import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

CONTEXT, WIDTH, BATCH = 32, 32, 8
MODULES = "argparse collections datetime decimal difflib inspect logging pathlib statistics threading".split()
_items = [item for name in MODULES for item in vars(importlib.import_module(name)).values()]
_docs = dict.fromkeys(inspect.getdoc(item) or "" for item in _items)  # each once
TEXT = np.frombuffer("\n".join(_docs).encode("ascii", "replace"), np.uint8).astype(np.int32)
TRAIN, VALID = np.split(TEXT, [len(TEXT) * 9 // 10])


def batch_at(step, text=TRAIN, size=BATCH):
    """What a step sees, whenever it is asked: windows one character longer than the context."""
    starts = np.random.default_rng(step).integers(len(text) - CONTEXT, size=size)
    return text[starts[:, None] + np.arange(CONTEXT + 1)]


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(4, WIDTH, decode=False, rngs=rngs)
        self.wide = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.narrow = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm[0](x), mask=nnx.make_causal_mask(x[..., 0]))
        return x + self.narrow(jax.nn.gelu(self.wide(self.norm[1](x))))


class Transformer(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(128, WIDTH, rngs=rngs)
        self.place = nnx.Embed(CONTEXT, WIDTH, rngs=rngs)
        self.block = nnx.List([Block(rngs) for _ in range(2)])
        self.head = nnx.Linear(WIDTH, 128, rngs=rngs)

    def __call__(self, characters):
        x = self.embed(characters) + self.place(jnp.arange(CONTEXT))
        return self.head(self.block[1](self.block[0](x)))


def loss_fn(model, batch):
    """The cross-entropy of the next character, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(model(batch[:, :-1]), batch[:, 1:]).mean()
