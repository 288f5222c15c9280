"""The ways to fine-tune that `fine_tuning.py` compares, and their data."""

import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.linear_model import LogisticRegression

import optax_lr as olr
import optax_lr.nnx

sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))
import docstrings
import minilm_model as minilm
from fine_tuning_table import PROBED

CLASSES, HEAD = len(docstrings.CLASSES), minilm.BLOCKS + 1
DEPTHS = olr.label_by_depth([r"body/embed/.*", r"body/block/(\d+)/.*", "head/.*"])  # 0, then 1 to 6, then 7


class Size(NamedTuple):
    """A form of the benchmark."""

    length: int  # word pieces of a text
    shots: int  # labeled texts of each class
    batch: int
    epochs: int
    seeds: int

    @property
    def steps(self) -> int:
        return self.shots * CLASSES // self.batch * self.epochs


class Method(NamedTuple):
    """A way to train: the start of a seed, its optimizer at a rate, what is trained, where on the grid to look."""

    start: Callable[["Data", int], nnx.Module]
    optimizer: Callable[[Any], optax.GradientTransformation]
    guess: int
    wrt: Any = nnx.Param
    on_features: bool = False


class Data:
    """The texts as word pieces, and as embeddings of the frozen encoder."""

    def __init__(self, size: Size) -> None:
        texts, self.labels = docstrings.texts_and_labels()
        tokens, self.size = minilm.tokens_of(texts, size.length), size
        # Rows of the table that no text reads have no gradient and never move.
        self.used = np.union1d([0], tokens)  # what pads is 0 and stays it
        self.tokens = np.searchsorted(self.used, tokens).astype(np.int32)

    def body(self, whole: minilm.MiniLM) -> minilm.MiniLM:
        word = whole.embed.word
        word.embedding = nnx.Param(word.embedding[...][self.used])
        word.num_embeddings = len(self.used)
        return whole

    @functools.cached_property
    def features(self) -> np.ndarray:
        embed, body = nnx.jit(lambda body, tokens: body(tokens) * minilm.WIDTH**0.5), pretrained(self)
        parts = [embed(body, self.tokens[at : at + 48]) for at in range(0, len(self.tokens), 48)]
        return np.concatenate(parts)

    def of_seed(self, seed: int, on_features: bool) -> tuple[Any, Any]:
        """Batches [steps, batch, ...], and what is held out: to choose a rate by, and to judge it."""
        inputs = self.features if on_features else self.tokens
        mine, valid, test = docstrings.split(self.labels, self.size.shots, seed)
        draw = np.random.default_rng(seed)
        order = np.concatenate([mine[draw.permutation(len(mine))] for _ in range(self.size.epochs)])
        rows = order.reshape(self.size.steps, self.size.batch)
        held = {"valid": (inputs[valid], self.labels[valid]), "test": (inputs[test], self.labels[test])}
        return (inputs[rows], self.labels[rows]), held


@functools.lru_cache(maxsize=1)
def pretrained(data: Data) -> minilm.MiniLM:
    return data.body(minilm.pretrained())


def classifier(data: Data, seed: int) -> nnx.Module:
    return minilm.Classifier(nnx.clone(pretrained(data)), CLASSES, nnx.Rngs(seed))


def from_scratch(data: Data, seed: int) -> nnx.Module:
    body = data.body(minilm.MiniLM(nnx.Rngs(100 + seed)))
    return minilm.Classifier(body, CLASSES, nnx.Rngs(seed))


def head(data: Data, seed: int) -> nnx.Module:
    return nnx.Linear(minilm.WIDTH, CLASSES, rngs=nnx.Rngs(seed))


@functools.lru_cache(maxsize=8)
def probe(data: Data, seed: int) -> LogisticRegression:
    """A logistic regression on the frozen embeddings, its penalty chosen by validation loss."""
    (x, y), held = data.of_seed(seed, on_features=True)
    x, y = x.reshape(-1, minilm.WIDTH), y.reshape(-1)
    fits = [LogisticRegression(C=c, max_iter=1000).fit(x, y) for c in 10.0 ** np.arange(-5, 2)]
    return min(fits, key=lambda fit: judged(fit, held["valid"])[0])


def judged(fit: LogisticRegression, held: Any) -> tuple[float, float]:
    """Loss and accuracy of a regression."""
    inputs, labels = held
    found = fit.predict_log_proba(inputs)[np.arange(len(labels)), labels]
    return float(-found.mean()), float(fit.score(inputs, labels))


def from_probe(data: Data, seed: int) -> nnx.Module:
    """The head begins as the regression, the body as it came (Kumar et al. 2022, arXiv:2202.10054)."""
    model, fit = classifier(data, seed), probe(data, seed)
    model.head.kernel[...] = jnp.asarray(fit.coef_.T, jnp.float32)
    model.head.bias[...] = jnp.asarray(fit.intercept_, jnp.float32)
    return model


def with_lora(data: Data, seed: int) -> nnx.Module:
    return minilm.with_lora(classifier(data, seed), 8, nnx.Rngs(100 + seed))


def head_times_ten(rate: Any) -> optax.GradientTransformation:
    return olr.fine_tune(optax.adam(rate), {**dict.fromkeys(range(HEAD), 1.0), HEAD: 10.0}, DEPTHS)


def decayed(decay: float, rate: Any) -> optax.GradientTransformation:
    return olr.fine_tune(optax.adam(rate), olr.layer_decay(decay), DEPTHS)


def gradual(steps: int, rate: Any) -> optax.GradientTransformation:
    """A rate 2.6 times lower for each group below the head; over half of the run each joins after the one above."""
    multipliers = {depth: 2.6 ** (depth - HEAD) for depth in range(HEAD + 1)}
    starts = {depth: steps * (HEAD - depth) // (2 * HEAD) for depth in range(HEAD)}
    return olr.fine_tune(optax.adam(rate), multipliers, DEPTHS, starts=starts)


@functools.cache  # an optimizer that is the same object is compiled once
def methods(steps: int) -> dict[str, Method]:
    lora = nnx.Any(nnx.LoRAParam, nnx.PathContains("head"))
    biases = nnx.Any(nnx.PathContains("bias"), nnx.PathContains("head"))
    return {
        "from scratch": Method(from_scratch, optax.adam, -9),
        "head alone": Method(head, optax.adam, -4, on_features=True),
        "one rate for all": Method(classifier, optax.adam, -10),
        PROBED: Method(from_probe, optax.adam, -13),
        "head x 10": Method(classifier, head_times_ten, -11),
        "layer decay 0.9": Method(classifier, functools.partial(decayed, 0.9), -10),
        "layer decay 0.75": Method(classifier, functools.partial(decayed, 0.75), -9),
        "layer decay 0.5": Method(classifier, functools.partial(decayed, 0.5), -8),
        "discriminative, unfrozen in turn": Method(classifier, functools.partial(gradual, steps), -8),
        "LoRA, rank 8": Method(with_lora, optax.adam, -8, lora),
        "biases alone": Method(classifier, optax.adam, -7, biases),
    }
