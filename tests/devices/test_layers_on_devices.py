"""Labels on eight devices: replicated, sharded and explicitly sharded parameters train as on one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optax_lr as olr

LABELS = olr.label_by_depth(["embed", olr.at_depth("blocks", stacked_axis=0), "head"])
SPECS = {"embed": ("devices", None), "blocks": (None, None, "devices"), "head": ("devices",)}
SHAPES = {"embed": (8, 3), "blocks": (2, 3, 16), "head": (8,)}
MAKERS = {
    "scale_by_label": lambda: optax.chain(optax.adam(0.1), olr.scale_by_label(olr.layer_decay(0.5), LABELS)),
    "zero_until": lambda: optax.chain(olr.zero_until({0: 2, 1: 1}, LABELS), optax.adam(0.1)),
    "unfreeze_at": lambda: olr.unfreeze_at(optax.adam(0.1), {0: 2, 1: 1}, LABELS),
    "fine_tune": lambda: olr.fine_tune(
        optax.chain(optax.scale_by_adam(), olr.scale_by_learning_rate(0.1)),
        olr.layer_decay(0.5),
        LABELS,
        frozen=0,
        starts={1: 1},
    ),
}
# How parameters lie: the kind of the mesh's axis, and whether they are split over it.
PLACEMENTS = {
    "replicated": (AxisType.Auto, False),
    "sharded": (AxisType.Auto, True),
    "explicit": (AxisType.Explicit, True),
}


def drawn():
    normal = np.random.default_rng(0).normal
    return {name: jnp.asarray(normal(size=shape), jnp.float32) for name, shape in SHAPES.items()}


def train(tx, params, grads):
    state, step = tx.init(params), jax.jit(tx.update)
    for _ in range(4):
        if "starts" in str(jax.tree.structure(state)):
            state = olr.set_unfreezing_steps(state, {1: 2})
        updates, state = step(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", MAKERS)
def test_labels_act_on_eight_devices_as_on_one(name, placement):
    kind, split = PLACEMENTS[placement]
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(kind,))
    place = {name: NamedSharding(mesh, PartitionSpec(*SPECS[name] if split else ())) for name in SPECS}
    wanted = train(MAKERS[name](), drawn(), drawn())
    with jax.set_mesh(mesh):
        params = jax.device_put(drawn(), place)
        got = train(MAKERS[name](), params, params)
    for key, leaf in got.items():
        assert leaf.sharding.is_equivalent_to(place[key], leaf.ndim)
        np.testing.assert_allclose(leaf, wanted[key], rtol=2e-5, atol=1e-6)
