"""The largest curvature: that of quadratics and of a small network's whole Hessian; the edge at 2 / curvature."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_lr as olr

TURN = np.linalg.qr(np.random.default_rng(0).normal(size=(30, 30)))[0]


def quadratic(params, matrix):
    vector = jnp.concatenate([params["a"], params["b"].ravel()])
    return 0.5 * vector @ matrix @ vector


START = {"a": jnp.ones(6), "b": jnp.ones((4, 6))}


@pytest.mark.parametrize(
    "eigenvalues",
    [np.geomspace(1e-4, 37.0, 30), np.linspace(-50, 12, 30), np.linspace(-9, -1, 30), np.full(30, 3.0)],
    ids=["ill-conditioned", "saddle", "hill", "sphere"],
)
def test_a_quadratic_has_its_largest_eigenvalue(eigenvalues):
    matrix = jnp.asarray(TURN @ np.diag(eigenvalues) @ TURN.T, jnp.float32)
    np.testing.assert_allclose(
        olr.top_curvature(quadratic, START, matrix), eigenvalues.max(), rtol=1e-3, atol=1e-4
    )


def test_a_single_parameter_has_its_second_derivative():
    assert olr.top_curvature(lambda w, c: c * w**2, jnp.float32(5.0), 3.0) == pytest.approx(6.0)


@pytest.mark.parametrize("loss_fn", [lambda w, _: jnp.sum(w), lambda w, _: 0.0 * jnp.sum(w**2)])
def test_a_loss_without_curvature_has_none(loss_fn):
    assert olr.top_curvature(loss_fn, jnp.ones(3), None) == 0.0


def test_descent_converges_below_the_edge_and_diverges_above():
    matrix = jnp.asarray(TURN @ np.diag(np.geomspace(0.1, 8.0, 30)) @ TURN.T, jnp.float32)
    edge = 2 / olr.top_curvature(quadratic, START, matrix)
    curve = olr.lr_sweep(
        quadratic, START, optax.sgd, matrix[None], learning_rates=[0.95 * edge, 1.05 * edge], num_steps=200,
        stop_factor=1e9, progress=False,
    )  # fmt: skip
    below, above = curve.losses[0, :, -1] / curve.losses[0, :, 0]
    assert below < 0.5 and not above < 100


def test_a_network_has_that_of_its_whole_hessian():
    keys = jax.random.split(jax.random.key(0), 4)
    params = {"in": jax.random.normal(keys[0], (3, 4)), "out": jax.random.normal(keys[1], (4, 2))}
    batch = jax.random.normal(keys[2], (16, 3)), jax.random.normal(keys[3], (16, 2))

    def loss_fn(params, batch):
        return jnp.mean((jnp.tanh(batch[0] @ params["in"]) @ params["out"] - batch[1]) ** 2)

    flat, unravel = jax.flatten_util.ravel_pytree(params)
    hessian = jax.hessian(lambda vector: loss_fn(unravel(vector), batch))(flat)
    expected = np.linalg.eigvalsh(np.asarray(hessian, np.float64)).max()
    np.testing.assert_allclose(olr.top_curvature(loss_fn, params, batch), expected, rtol=1e-3)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    np.testing.assert_allclose(olr.top_curvature(loss_fn, half, batch, tolerance=0.01), expected, rtol=0.1)


def test_what_has_no_curvature_is_refused(unhooked):
    def loss(params, batch):
        return jnp.sum(params["w"] ** 2)

    for params, sentence in (({}, "no leaf"), ({"w": np.arange(3)}, "3,")):
        with pytest.raises(ValueError, match=f"params must be a tree of arrays of floats, got .*{sentence}"):
            unhooked.top_curvature(loss, params, None)
    with pytest.raises(ValueError, match="finite Hessian"):
        unhooked.top_curvature(lambda p, b: jnp.sum(jnp.sqrt(p["w"])), {"w": jnp.zeros(2)}, None)
    with pytest.raises(ValueError, match="tolerance"):
        unhooked.top_curvature(loss, {"w": jnp.ones(2)}, None, tolerance=1.0)
    with pytest.raises(ValueError, match="inside jit"):
        jax.jit(lambda w: unhooked.top_curvature(loss, {"w": w}, None))(jnp.ones(2))
