"""Labels, multipliers and starts against the reference implementation, as mup_oracles.py wrote them."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mup_oracles import NARROW, RATES, WIDE, batch, weights

import optax_lr as olr
from optax_lr.layers.labels import leaves_by_path

ORACLES = json.loads((pathlib.Path(__file__).parents[1] / "mup_oracles.json").read_text())
TABLE = ORACLES["rates and starts"]
# The reference reads these out with a forward factor of 1 / growth, which counts once in a start, and in a rate
# once for the update and, under SGD, once for the gradient.
READ_OUT, GROWTH = "head.weight", WIDE["width"] / NARROW["width"]


def models():
    """The base's and the wide one's arrays, in PyTorch's layout; a table's name is the one of Flax."""
    trees = []
    for size in ("base", "wide"):
        tree = {}
        for name, row in TABLE.items():
            layer, leaf = name.split(".")
            leaf = "embedding" if layer == "embed" else leaf
            shape = row[size]
            if leaf == "bias" and len(TABLE[f"{layer}.weight"][size]) == 4:
                shape = [*shape, 1, 1]  # as Equinox has the bias of a convolution
            tree.setdefault(layer, {})[leaf] = jnp.ones(shape)
        trees.append(tree)
    return trees


def by_name(tree):
    return {
        path.replace("/", ".").replace("embedding", "weight"): leaf for path, leaf in leaves_by_path(tree)[0]
    }


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_rates_are_those_of_the_reference(kind):
    base, wide = models()
    labels = olr.label_by_width(base, {"narrow/weight": "out in"})
    scale = olr.scale_by_label(olr.width_multipliers(kind), labels)
    found = by_name(scale.update(wide, scale.init(wide), wide)[0])
    assert found.keys() == TABLE.keys()
    for name, row in TABLE.items():
        forward = GROWTH ** (2 if kind == "sgd" else 1) if name == READ_OUT else 1.0
        np.testing.assert_allclose(found[name], row[kind] / forward, rtol=1e-6, err_msg=name)


def test_starts_are_those_of_the_reference():
    base, wide = models()
    found = by_name(olr.rescale_init(wide, base, {"narrow/weight": "out in"}))
    for name, row in TABLE.items():
        wanted = row["start"][0] / (GROWTH if name == READ_OUT else 1.0)
        if name == "narrow.weight":  # the spectral norm counts how outputs grow beside inputs, too
            wanted *= np.sqrt((64 / 16) / (384 / 64))
        np.testing.assert_allclose(found[name], wanted, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("kind", RATES)
def test_a_model_trains_as_in_the_reference(kind):
    def drawn(width):
        shapes = ((3, width), (width, width), (width, 1))
        layers = [
            {"kernel": jnp.asarray(weights(s, i)), "bias": jnp.zeros(s[1])} for i, s in enumerate(shapes)
        ]
        return dict(zip(("first", "middle", "head"), layers, strict=True))

    def loss_fn(params, x, y):
        for name in ("first", "middle"):
            x = jnp.tanh(x @ params[name]["kernel"] + params[name]["bias"])
        return jnp.mean((x @ params["head"]["kernel"] + params["head"]["bias"] - y) ** 2)

    params = drawn(64)
    params["head"]["kernel"] /= 4
    scale = olr.scale_by_label(olr.width_multipliers(kind), olr.label_by_width(drawn(16)))
    inner = optax.scale_by_adam() if kind == "adam" else optax.trace(0.9)
    optimizer = optax.chain(inner, scale, olr.scale_by_learning_rate(RATES[kind]))

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(loss_fn)(params, *batch())
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, found = optimizer.init(params), []
    for _ in ORACLES["losses"][kind]:
        params, state, loss = step(params, state)
        found.append(float(loss))
    np.testing.assert_allclose(found, ORACLES["losses"][kind], rtol=2e-4)
