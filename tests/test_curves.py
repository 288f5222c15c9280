"""Every curve rises from 0 to 1 and agrees with its float64 formula."""

import jax
import numpy as np
import pytest
import references

import optax_lr as olr

CURVES = {"linear": (olr.curves.linear, references.linear), "cosine": (olr.curves.cosine, references.cosine)}


@pytest.mark.parametrize("name", CURVES)
def test_curve(name):
    curve, reference = CURVES[name]
    progress = np.linspace(0, 1, 257, dtype=np.float32)
    weights = jax.jit(curve)(progress)
    np.testing.assert_allclose(weights, reference(progress.astype(np.float64)), rtol=0, atol=3e-7)
    assert weights[0] == 0 and weights[-1] == 1 and (np.diff(weights) >= 0).all()
    assert np.isfinite(jax.vmap(jax.grad(curve))(progress)).all()
