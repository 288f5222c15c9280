"""Trees of haiku, penzai, Equinox, and NumPyro's optimizers: at multipliers of 1 a loop is that of plain Optax."""

import re

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import SVI, Trace_ELBO
from numpyro.optim import optax_to_numpyro
from penzai import pz

import optax_lr as olr

STEPS = 12
X = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
Y = np.sin(X.sum(1, keepdims=True))
SCHEDULE = olr.one_cycle_schedule(0.05, STEPS)
ONES = {"body": 1.0, "head": 1.0}


def haiku_model():
    net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([8, 1])(x)))
    params = net.init(jax.random.key(0), X)
    rules = {r"mlp/~/linear_0/.*": "body", r"mlp/~/linear_1/.*": "head"}
    return params, lambda params: net.apply(params, X), rules


def equinox_model():
    params, static = eqx.partition(eqx.nn.MLP(4, 1, 8, 1, key=jax.random.key(0)), eqx.is_inexact_array)
    rules = {r"layers/0/.*": "body", r"layers/1/.*": "head"}
    return params, lambda params: jax.vmap(eqx.combine(params, static))(X), rules


def penzai_model():
    """Named arrays in variables; the variables go into a dict by their names, else paths have numbers alone."""
    layer, key = pz.nn.Affine.from_config, jax.random.key(0)
    layers = [
        layer("body", key, {"features": 4}, {"hidden": 8}),
        pz.nn.Elementwise(jax.nn.relu),
        layer("head", key, {"hidden": 8}, {"out": 1}),
    ]
    unbound, found = pz.unbind_params(pz.nn.Sequential(layers), freeze=True)

    def outputs(params):
        inputs = pz.nx.wrap(jnp.asarray(X), "batch", "features")
        return pz.bind_variables(unbound, params.values())(inputs).unwrap("batch", "out")

    return {one.label: one for one in found}, outputs, {r"body/.*": "body", r"head/.*": "head"}


MODELS = {"haiku": haiku_model, "equinox": equinox_model, "penzai": penzai_model}


def trained(tx, params, outputs):
    """A user's loop: each loss, and the parameters and the state at the end."""
    loss_fn = lambda params: jnp.mean((outputs(params) - Y) ** 2)  # noqa: E731

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = tx.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state, loss

    state, losses = tx.init(params), []
    for _ in range(STEPS):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    return losses, params, state


def ours(rules, multipliers=ONES):
    tuned = olr.fine_tune(olr.visible(optax.adamw)(SCHEDULE), multipliers, olr.label_by_path(rules))
    return optax.chain(tuned, olr.reduce_on_plateau(patience=STEPS), olr.snapshot_at_cycle_ends(4, 2))


def check_equal(got, wanted):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_a_loop_over_its_trees_is_that_of_optax(name):
    params, outputs, rules = MODELS[name]()
    plain = optax.with_extra_args_support(optax.adamw(SCHEDULE))
    losses, found, state = trained(ours(rules), params, outputs)
    wanted, last, _ = trained(plain, params, outputs)
    assert losses[-1] < 0.9 * losses[0]
    check_equal(losses, wanted)
    check_equal(found, last)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    newest = jax.tree.map(lambda leaf: leaf[-1], olr.get_snapshots(state).params)
    assert jax.tree.structure(newest) == jax.tree.structure(params)
    check_equal(newest, found)
    assert set(olr.learning_rates_in_force(state)) == {"body", "head"}


@pytest.mark.parametrize("name", MODELS)
def test_labels_reach_its_layers(name):
    params, outputs, rules = MODELS[name]()
    _, found, _ = trained(ours(rules, {"body": 0.0, "head": 1.0}), params, outputs)
    before = jax.tree_util.tree_leaves_with_path(params)
    for (keys, one), other in zip(before, jax.tree.leaves(found), strict=True):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        (label,) = (label for rule, label in rules.items() if re.fullmatch(rule, path))
        assert np.array_equal(one, other) == (label == "body")


def test_numpyros_inference_with_our_optimizer_is_that_with_optax():
    def model(x, y):
        weights = numpyro.sample("weights", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
        numpyro.sample("y", dist.Normal(x @ weights, 1.0), obs=y)

    def guide(x, y):
        middle = numpyro.param("body", jnp.zeros(4))
        width = numpyro.param("head", jnp.ones(4), constraint=dist.constraints.positive)
        numpyro.sample("weights", dist.Normal(middle, width).to_event(1))

    def inferred(tx):
        svi = SVI(model, guide, optax_to_numpyro(tx), Trace_ELBO())
        return svi.run(jax.random.key(0), STEPS, X, Y[:, 0], progress_bar=False)

    labels = {"body": "body", "head": "head"}
    found, wanted = inferred(ours(labels)), inferred(optax.adamw(SCHEDULE))
    check_equal(found.losses, wanted.losses)
    check_equal(found.params, wanted.params)
    slow = inferred(ours(labels, {"body": 0.0, "head": 1.0}))
    assert not np.any(slow.params["body"]) and np.any(wanted.params["body"])
