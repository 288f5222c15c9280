"""What the problems of `wild_problems.py` are made of: small networks, losses and data."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

BATCHES = 400


class Wild(NamedTuple):
    """What a search is given, and what else its truth needs.

    Attributes:
      loss_fn, params, optimizer, batches, eval_batch, eval_fn, with_key: as in `lr_find`.
      floor: what no training can go below; losses are measured from there.
      seeds: how many runs of the truth each rate has.
    """

    loss_fn: Callable[..., Any]
    params: Any
    optimizer: Callable[[Any], optax.GradientTransformation]
    batches: Any
    eval_batch: Any
    eval_fn: Callable[..., Any] | None = None
    with_key: bool = False
    floor: float = 0.0
    seeds: int = 64


def momentum(rate: Any) -> optax.GradientTransformation:
    return optax.sgd(rate, 0.9)


def clipped(rate: Any) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), momentum(rate))


def network(*sizes: int, scale: float = 1.0) -> Callable[[jax.Array], Any]:
    """Draws weights and zero biases of dense layers."""

    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key, len(sizes) - 1)
        pairs = zip(keys, sizes[:-1], sizes[1:], strict=True)
        return [(scale * jax.random.normal(k, (m, n)) / np.sqrt(m), jnp.zeros(n)) for k, m, n in pairs]

    return init


def apply(layers: Any, x: jax.Array) -> jax.Array:
    """Dense layers with tanh between them."""
    for weights, biases in layers[:-1]:
        x = jnp.tanh(x @ weights + biases)
    return x @ layers[-1][0] + layers[-1][1]


def square(params: Any, batch: Any) -> jax.Array:
    return jnp.mean((apply(params, batch[0])[..., 0] - batch[1]) ** 2)


def entropy(params: Any, batch: Any) -> jax.Array:
    logits = apply(params, batch[0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


def rows(draw: np.random.Generator, label: Callable, size: int, features: int, noise: Callable) -> tuple:
    """Batches of rows, a target for each with noise, and 1000 rows to validate on without it."""
    x = draw.normal(size=(BATCHES, size, features)).astype(np.float32)
    valid = draw.normal(size=(1000, features)).astype(np.float32)
    y = label(x)
    return (x, (y + noise(y.shape)).astype(np.float32)), (valid, label(valid).astype(np.float32))
