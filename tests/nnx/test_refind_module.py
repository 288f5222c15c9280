"""`nnx.lr_refind(budget=)`: branches of a module are those of its parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import optax_lr as olr
import optax_lr.nnx

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(40, 8, 3)).astype(np.float32)


def loss_fn(model, x):
    return jnp.mean((model(x)[:, 0] - x.sum(-1)) ** 2)


def loss_of_arrays(params, x):
    return jnp.mean(((x @ params["kernel"] + params["bias"])[:, 0] - x.sum(-1)) ** 2)


def test_branches_of_a_module_are_those_of_its_parameters():
    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.001), wrt=nnx.Param)
    params = {"kernel": model.kernel[...], "bias": model.bias[...]}
    kept = jax.tree.map(np.array, params)
    given = {"learning_rate": 0.001, "eval_batch": INPUTS[0], "horizon": 40, "budget": 2}
    found = olr.nnx.lr_refind(loss_fn, model, optax.sgd, INPUTS, opt_state=optimizer, **given)
    plain = olr.lr_refind(loss_of_arrays, params, optax.sgd, INPUTS, **given)
    np.testing.assert_allclose(found.learning_rate, plain.learning_rate, rtol=1e-3)
    np.testing.assert_allclose(found.curve.eval_losses, plain.curve.eval_losses, rtol=1e-4)
    assert found.learning_rate > 0.001 and found.lane_steps <= 80
    np.testing.assert_array_equal(kept["kernel"], model.kernel[...])
