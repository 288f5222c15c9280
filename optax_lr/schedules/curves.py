"""Curves: a progress in [0, 1] to a weight in [0, 1]. All rise from 0 to 1.

A schedule's value is `init + (end - init) * curve(progress)`, so one curve serves a rise and a fall. Pass
`curves.cosine`, `curves.linear`, `curves.rex`, `curves.sqrt` or `curves.square` as it is; call the others with
their numbers, as in `curves.tanh()` or `curves.power(3)`. Your own function is a curve if it rises from 0 to 1;
a schedule tries it at 0 and 1 when it is built.

Slopes are finite at every progress: where a curve is vertical (`sqrt` at 0) its slope is given as 0, so that
gradients stay finite.
"""

import jax
import jax.numpy as jnp

from .. import checks
from ..types import Array, Curve, ScalarLike, Shaped
from .named import named

__all__ = [
    "cosine",
    "exponential",
    "k_decay",
    "linear",
    "polynomial",
    "power",
    "reverse",
    "rex",
    "sqrt",
    "square",
    "tanh",
]


def linear(progress: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """p.

    >>> float(linear(jnp.float32(0.25)))
    0.25
    """
    return progress


def cosine(progress: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """(1 - cos(pi p)) / 2, slow at both ends (Loshchilov & Hutter 2017, arXiv:1608.03983, equation 5).

    Computed as sin(pi p / 2)^2, which is the same and loses no digits near 0.

    >>> round(float(cosine(jnp.float32(0.5))), 6)
    0.5
    """
    return jnp.square(jnp.sin(0.5 * jnp.pi * progress))


def sqrt(progress: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """p^(1/2), fast at first: the "1-sqrt" cool-down (Hägele et al. 2024, arXiv:2405.18392).

    >>> float(sqrt(jnp.float32(0.25)))
    0.5
    """
    moving = progress > 0
    return jnp.where(moving, jnp.sqrt(jnp.where(moving, progress, 1)), 0)


def square(progress: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """p^2, slow at first: the "1-square" cool-down of pytorch_optimizer.

    >>> float(square(jnp.float32(0.5)))
    0.25
    """
    return jnp.square(progress)


def rex(progress: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """p / (2 - p), which is 1 - (1 - p) / (1 - p / 2): fast at the end (Chen et al. 2021, arXiv:2107.04197).

    >>> round(float(rex(jnp.float32(0.5))), 4)
    0.3333
    """
    return progress / (2 - progress)


@named
def power(exponent: ScalarLike) -> Curve:
    """p^exponent, for an exponent above 0.

    Raises:
      ValueError: a concrete `exponent` is not a finite number above 0.

    >>> round(float(power(3)(jnp.float32(0.5))), 4)
    0.125
    """
    bend = checks.number("exponent", exponent, above=0)

    def curve(progress: Array) -> Array:
        moving = progress > 0
        return jnp.where(moving, jnp.where(moving, progress, 1) ** bend, 0)

    return curve


@named
def polynomial(exponent: ScalarLike) -> Curve:
    """1 - (1 - p)^exponent, for an exponent above 0: what polynomial decay follows.

    Raises:
      ValueError: a concrete `exponent` is not a finite number above 0.

    >>> round(float(polynomial(2)(jnp.float32(0.5))), 4)
    0.75
    """
    return reverse(power(exponent))


@named
def exponential(rate: ScalarLike) -> Curve:
    """(1 - exp(-rate p)) / (1 - exp(-rate)), for a rate above 0: exponential decay that arrives.

    A large rate does most of the way at first; `reverse(exponential(rate))` does it at the end.

    Raises:
      ValueError: a concrete `rate` is not a finite number above 0.

    >>> round(float(exponential(5.0)(jnp.float32(0.5))), 4)
    0.9241
    """
    steepness = checks.number("rate", rate, above=0)

    def curve(progress: Array) -> Array:
        # Exactly 1 at the end, where a division that became a multiplication may miss it.
        share = jnp.expm1(-steepness * progress) / jnp.expm1(-steepness)
        return jnp.where(progress < 1, share, 1.0)

    return curve


@named
def k_decay(k: ScalarLike) -> Curve:
    """(1 - cos(pi p^k)) / 2, for a k above 0: later where k > 1 (Zhang & Li 2020, arXiv:2004.05909).

    Raises:
      ValueError: a concrete `k` is not a finite number above 0.

    >>> round(float(k_decay(2.0)(jnp.float32(0.5))), 4)
    0.1464
    """
    bent = power(checks.number("k", k, above=0))
    return lambda progress: cosine(bent(progress))


@named
def tanh(lower: ScalarLike = -7.0, upper: ScalarLike = 3.0) -> Curve:
    """(1 + tanh(lower (1 - p) + upper p)) / 2, as in timm (Hsueh, Li & Wu 2018, arXiv:1806.01593).

    It reaches neither 0 nor 1; a schedule holds its end value from its last step on.

    Raises:
      ValueError: a concrete `lower` is not a finite number below 0, or `upper` not one above 0.

    >>> round(float(tanh()(jnp.float32(0.7))), 4)
    0.5
    """
    left = checks.number("lower", lower, below=0)
    right = checks.number("upper", upper, above=0)
    # sigmoid(2x) is (1 + tanh x) / 2 without the cancellation near 0.
    return lambda progress: jax.nn.sigmoid(2 * (left * (1 - progress) + right * progress))


@named
def reverse(curve: Curve) -> Curve:
    """1 - curve(1 - p): the curve run backwards, fast where it was slow.

    Raises:
      ValueError: `curve` is not a curve.

    >>> float(reverse(square)(jnp.float32(0.5)))
    0.75
    """
    forward = checks.curve("curve", curve)
    return lambda progress: 1 - forward(1 - progress)


def __dir__() -> list[str]:
    return __all__
