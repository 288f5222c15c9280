"""Training problems on real data that ships with packages: what `finder_accuracy.py` scores the finder on.

The set is hard on purpose. Some problems overfit, and their best rate falls with the length of the run; some are
limited by stability, and their best rate is just below divergence. There are convolutions, attention and
recurrence, losses of 20,000 and of 0.001, and data sets of a hundred and of a thousand rows.
"""

import pydoc_data.topics
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import sklearn.datasets
from sklearn.model_selection import train_test_split

BATCHES = 1000
# Letters, the space, and all else.
CHARACTERS = 28


class Problem(NamedTuple):
    """What `lr_find` takes: a loss, a function that draws parameters, batches and validation data."""

    loss_fn: Callable[[Any, Any], jax.Array]
    init: Callable[[jax.Array], Any]
    batches: Any
    eval_batch: Any


OPTIMIZERS: Mapping[str, Callable[[Any], optax.GradientTransformation]] = {
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "adam": optax.adam,
    "lion": optax.lion,
    "clipped adamw": lambda rate: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate)),
}


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def squared(found: jax.Array, wanted: jax.Array) -> jax.Array:
    return jnp.mean((found - wanted) ** 2)


def dense(key: jax.Array, fan_in: int, fan_out: int) -> dict[str, jax.Array]:
    """Glorot's normal weights and zero biases."""
    scale = np.sqrt(2 / (fan_in + fan_out))
    return {"w": scale * jax.random.normal(key, (fan_in, fan_out)), "b": jnp.zeros(fan_out)}


def apply(layer: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    return x @ layer["w"] + layer["b"]


def layers(*sizes: tuple[int, int]) -> Callable[[jax.Array], list[dict[str, jax.Array]]]:
    """Draws one dense layer for each (fan-in, fan-out)."""
    return lambda key: [
        dense(k, *size) for k, size in zip(jax.random.split(key, len(sizes)), sizes, strict=True)
    ]


def mlp(params: Any, x: jax.Array) -> jax.Array:
    for layer in params[:-1]:
        x = jax.nn.relu(apply(layer, x))
    return apply(params[-1], x)


def neighborhoods(images: jax.Array) -> jax.Array:
    """The 3 x 3 neighborhood of every pixel: [n, h, w, c] to [n, h, w, 9 c], zeros beyond the edge.

    A dense layer on these is a convolution; XLA's CPU backend runs its own many times slower in a loop.
    """
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifts, axis=-1)


def convolutional(params: Any, x: jax.Array) -> jax.Array:
    x = jax.nn.relu(apply(params[0], neighborhoods(x.reshape(-1, 8, 8, 1))))
    x = x.reshape(-1, 4, 2, 4, 2, x.shape[-1]).mean(axis=(2, 4))
    x = jax.nn.relu(apply(params[1], neighborhoods(x)))
    return apply(params[2], x.mean(axis=(1, 2)))


def denoiser(params: Any, x: jax.Array) -> jax.Array:
    """What is to be subtracted from noisy patches."""
    return x - apply(params[1], neighborhoods(jnp.tanh(apply(params[0], neighborhoods(x)))))


def recurrent(params: Any, x: jax.Array) -> jax.Array:
    """A plain recurrent network over the rows of an image."""
    state = jnp.zeros((len(x), params[1]["b"].shape[0]))
    for row in jnp.split(x, 8, axis=1):
        state = jnp.tanh(apply(params[0], row) + apply(params[1], state))
    return apply(params[2], state)


def attentive(params: Any, tokens: jax.Array, *, causal: bool) -> jax.Array:
    """One pre-norm transformer block over [n, tokens, features], with learned positions."""
    x = apply(params["embed"], tokens) + params["positions"]
    norm = lambda y: (y - y.mean(-1, keepdims=True)) / jnp.sqrt(y.var(-1, keepdims=True) + 1e-5)  # noqa: E731
    query, key, value = jnp.split(apply(params["attend"], norm(x)), 3, axis=-1)
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(key.shape[-1])
    if causal:
        scores = jnp.where(np.tri(scores.shape[-1], dtype=bool), scores, -1e9)
    x = x + apply(params["mix"], jax.nn.softmax(scores) @ value)
    x = x + apply(params["down"], jax.nn.gelu(apply(params["up"], norm(x))))
    return apply(params["head"], norm(x))


def transformer(features: int, tokens: int, outputs: int, width: int = 16) -> Callable[[jax.Array], Any]:
    sizes = {
        "embed": (features, width),
        "attend": (width, 3 * width),
        "mix": (width, width),
        "up": (width, 2 * width),
        "down": (2 * width, width),
        "head": (width, outputs),
    }

    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key, len(sizes) + 1)
        parts = {name: dense(k, *size) for k, (name, size) in zip(keys, sizes.items(), strict=False)}
        return {**parts, "positions": 0.02 * jax.random.normal(keys[-1], (tokens, width))}

    return init


def _epochs(*arrays: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
    """Batches of `size` rows from shuffled passes over the rows, one after the other: [BATCHES, size, ...]."""
    draw, rows = np.random.default_rng(0), len(arrays[0])
    passes = -(-BATCHES * size // rows)
    order = np.concatenate([draw.permutation(rows) for _ in range(passes)])[: BATCHES * size]
    return tuple(array[order].reshape(BATCHES, size, *array.shape[1:]) for array in arrays)


def _rows(loader: Callable, *, train: int | float = 0.6, kind: type = np.int32) -> tuple[tuple, tuple]:
    """A table of scikit-learn's, features standardized: (x, y) to train on, and to validate on."""
    x, y = loader(return_X_y=True)
    stratify = y if kind is np.int32 else None
    x, other_x, y, other_y = train_test_split(
        x.astype(np.float32), y.astype(kind), train_size=train, random_state=0, stratify=stratify
    )
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-3
    return ((x - mean) / scale, y), ((other_x - mean) / scale, other_y)


def _digits(train: int | float = 0.6) -> tuple[tuple, tuple]:
    x, y = sklearn.datasets.load_digits(return_X_y=True)
    x, other_x, y, other_y = train_test_split(
        (x / 16).astype(np.float32), y.astype(np.int32), train_size=train, random_state=0, stratify=y
    )
    return (x, y), (other_x, other_y)


def _text(length: int = 16, windows: int = 8000) -> tuple[np.ndarray, np.ndarray]:
    """Windows of the text of Python's help: numbers below CHARACTERS, to train on and to validate on."""
    topics = ("assignment", "formatstrings", "function", "import", "try", "typesmapping", "with", "yield")
    text = " ".join(" ".join(pydoc_data.topics.topics[name] for name in topics).lower().split())
    numbers = np.array([1 + ord(c) - ord("a") if "a" <= c <= "z" else 0 if c == " " else 27 for c in text])
    starts = np.random.default_rng(0).integers(0, len(numbers) - length - 1, windows)
    cut = numbers[starts[:, None] + np.arange(length + 1)].astype(np.int32)
    # Windows to validate on come from the last fifth of the text.
    last = int(0.8 * len(numbers))
    return cut[starts + length < last], cut[starts >= last]


def _classify(
    data: tuple[tuple, tuple], init: Callable, forward: Callable[[Any, jax.Array], jax.Array], size: int = 32
) -> Problem:
    train, held_out = data
    return Problem(
        lambda params, batch: cross_entropy(forward(params, batch[0]), batch[1]),
        init,
        _epochs(*train, size=size),
        held_out,
    )


def _regress(data: tuple[tuple, tuple], init: Callable, size: int = 32, unit: float = 1.0) -> Problem:
    (x, y), (other_x, other_y) = data
    mean = y.mean()
    return Problem(
        lambda params, batch: squared(mlp(params, batch[0])[:, 0], batch[1]),
        init,
        _epochs(x, (y - mean) / unit, size=size),
        (other_x, (other_y - mean) / unit),
    )


def _noisy_patches() -> Problem:
    """Patches of a photograph, to be freed from noise: losses of about 0.003."""
    image = sklearn.datasets.load_sample_image("china.jpg")[::2, ::2].mean(axis=-1) / 255
    draw = np.random.default_rng(0)
    top, left = (draw.integers(0, edge - 8, 1500) for edge in image.shape)
    clean = image[top[:, None, None] + np.arange(8)[:, None], left[:, None, None] + np.arange(8)]
    clean = clean[..., None].astype(np.float32)
    noisy = clean + draw.normal(0, 0.1, clean.shape).astype(np.float32)
    return Problem(
        lambda params, batch: squared(denoiser(params, batch[0]), batch[1]),
        layers((9, 8), (72, 1)),
        _epochs(noisy[:1000], clean[:1000], size=16),
        (noisy[1000:], clean[1000:]),
    )


def _next_character(forward: Callable, init: Callable) -> Problem:
    train, held_out = _text()

    def loss_fn(params: Any, windows: jax.Array) -> jax.Array:
        logits = forward(params, jax.nn.one_hot(windows[:, :-1], CHARACTERS))
        return cross_entropy(logits, windows[:, 1:] if logits.ndim == 3 else windows[:, -1])

    return Problem(loss_fn, init, _epochs(train, size=16)[0], held_out[:500])


def problems() -> dict[str, Callable[[], Problem]]:
    """By name, functions that make the problems."""
    tables = sklearn.datasets
    by_rows = lambda params, x: attentive(  # noqa: E731
        params, x.reshape(-1, 8, 8), causal=False
    ).mean(axis=1)
    return {
        "digits, MLP": lambda: _classify(_digits(), layers((64, 64), (64, 10)), mlp),
        "200 digits, MLP": lambda: _classify(_digits(200), layers((64, 128), (128, 10)), mlp),
        "digits, deep MLP": lambda: _classify(_digits(), layers((64, 32), *[(32, 32)] * 6, (32, 10)), mlp),
        "digits, convolutions": lambda: _classify(
            _digits(), layers((9, 8), (72, 16), (16, 10)), convolutional, size=16
        ),
        "digits, recurrence": lambda: _classify(_digits(), layers((8, 32), (32, 32), (32, 10)), recurrent),
        "digits, attention": lambda: _classify(_digits(), transformer(8, 8, 10), by_rows, size=16),
        "digits, autoencoder": lambda: Problem(
            lambda params, x: squared(mlp(params, x), x),
            layers((64, 32), (32, 8), (8, 32), (32, 64)),
            _epochs(_digits()[0][0], size=32)[0],
            _digits()[1][0],
        ),
        "photograph, denoiser": _noisy_patches,
        "diabetes, linear": lambda: _regress(
            _rows(tables.load_diabetes, kind=np.float32), layers((10, 1)), unit=77.0
        ),
        "diabetes in its own unit, MLP": lambda: _regress(
            _rows(tables.load_diabetes, kind=np.float32), layers((10, 64), (64, 1))
        ),
        "breast cancer, MLP": lambda: _classify(
            _rows(tables.load_breast_cancer), layers((30, 32), (32, 2)), mlp
        ),
        "wine, MLP": lambda: _classify(
            _rows(tables.load_wine, train=60), layers((13, 32), (32, 3)), mlp, size=20
        ),
        "text, MLP": lambda: _next_character(
            lambda params, x: mlp(params, x.reshape(len(x), -1)),
            layers((16 * CHARACTERS, 64), (64, CHARACTERS)),
        ),
        "text, attention": lambda: _next_character(
            lambda params, x: attentive(params, x, causal=True),
            transformer(CHARACTERS, 16, CHARACTERS),
        ),
    }
