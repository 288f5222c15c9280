"""Curvature: the largest eigenvalue of the Hessian, which says where plain gradient descent becomes unstable."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .. import checks
from ..types import Array, PyTree


def top_curvature(
    loss_fn: Callable[[Any, Any], Array], params: PyTree, batch: PyTree, *, tolerance: float = 1e-4
) -> float:
    """The largest eigenvalue of the Hessian of a loss, by Lanczos' method.

    On a quadratic, gradient descent at a rate above 2 / curvature diverges, and below it converges. On a network
    the rate 2 / curvature marks the edge at these parameters and on this batch: curvature changes as training goes
    on, often until the rate in use is at its edge. Momentum m moves the edge to 2 (1 + m) / curvature; adaptive
    optimizers divide by a scale of their own, and for them it says little.

    The Hessian is never formed. Each of some tens of products with a vector costs about two gradients, in one
    compiled program; the vectors of SciPy's `eigsh`, twenty of the size of the parameters, are float64 on the host.

    Args:
      loss_fn: `(params, batch) -> loss`, a scalar; twice differentiable (of ReLU, where it is smooth).
      params: where to look, a pytree of floating-point arrays. Not changed.
      batch: what the loss is taken of: as large as memory allows, since a small one adds noise.
      tolerance: the relative error of the eigenvalue, from 1e-6 to 0.1: products are of float32.

    Returns:
      The eigenvalue; below 0 where the loss curves downward along every direction.

    Raises:
      ValueError: `params` has no leaf or one that is not floating, an argument is traced, `tolerance` is out of
        range, or the Hessian is not finite.

    >>> bowl = jnp.array([1.0, 4.0, 10.0])
    >>> curvature = top_curvature(lambda w, scale: 0.5 * jnp.sum(scale * w**2), jnp.ones(3), bowl)
    >>> round(curvature, 3), round(2 / curvature, 3)  # the curvature, and the largest stable rate
    (10.0, 0.2)

    Source: LeCun, Simard & Pearlmutter 1993 (NIPS 5); products after Pearlmutter 1994; the edge of stability of
    networks after Cohen et al. 2021 (arXiv:2103.00065).
    """
    checks.function("loss_fn", loss_fn)
    checks.not_traced("top_curvature", params, batch)
    checks.no_module("params", params)
    error = checks.concrete("tolerance", tolerance, minimum=1e-6, maximum=0.1)
    leaves = jax.tree.leaves(params)
    if not leaves or not all(jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves):
        raise ValueError(
            f"params must be a tree of arrays of floats, got {checks.shapes(params) if leaves else 'no leaf'}."
        )
    flat, unravel = ravel_pytree(params)

    @jax.jit
    def product(at: Array, direction: Array, data: PyTree) -> Array:
        slope = jax.grad(lambda vector: loss_fn(unravel(vector), data))
        return jax.jvp(slope, (at,), (direction,))[1]

    def times(vector: np.ndarray) -> np.ndarray:
        # Scaled, so that float32 neither overflows nor loses what is small.
        size = float(np.linalg.norm(vector)) or 1.0
        direction = jnp.asarray(vector.ravel() / size, flat.dtype)
        found = np.asarray(product(flat, direction, batch), np.float64) * size
        if not np.isfinite(found).all():
            raise ValueError("loss_fn must have a finite Hessian at params, got one that is not finite.")
        return found

    return _largest(times, flat.size, error)


def _largest(times: Callable[[np.ndarray], np.ndarray], size: int, tolerance: float) -> float:
    """The largest eigenvalue of a symmetric matrix of which only products are known."""
    from scipy.sparse.linalg import LinearOperator, eigsh  # not at `import optax_lr`: it takes its time

    # SciPy's method needs more rows than eigenvalues.
    if size == 1:
        return float(times(np.ones(1))[0])
    start = np.random.default_rng(0).normal(size=size)
    if not times(start).any():
        return 0.0  # The Hessian is zero: no product with a random vector vanishes otherwise.
    operator = LinearOperator((size, size), matvec=times, dtype=np.float64)
    return float(eigsh(operator, k=1, which="LA", tol=tolerance, v0=start, return_eigenvectors=False)[0])
