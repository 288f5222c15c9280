"""Curves: progress in [0, 1] to a weight in [0, 1]. All rise from 0 to 1.

A schedule's value is `start + (end - start) * curve(progress)`, so one curve serves a rise and a fall. Any
function of that kind is a curve; pass your own where an argument is named `curve`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Shaped


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
