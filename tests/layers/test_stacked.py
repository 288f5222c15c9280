"""Layers stacked in one array, as a scan has them, train as the same layers do apart."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_lr as olr

LAYERS, WIDTH, STEPS = 4, 8, 50
APART = olr.label_by_depth([r"embed", r"block_(\d+)/.*", r"head"])


def apart():
    """A transformer-like model: an embedding, blocks of attention and MLP, a head."""
    keys = iter(jax.random.split(jax.random.key(0), 2 + 3 * LAYERS))

    def normal(*shape):
        return jax.random.normal(next(keys), shape) / shape[0] ** 0.5

    blocks = {
        f"block_{i}": {
            "attention": {"kernel": normal(WIDTH, 2, WIDTH // 2), "bias": jnp.zeros((2, WIDTH // 2))},
            "out": normal(WIDTH, WIDTH),
            "scale": jnp.ones(WIDTH),
            "mlp": normal(WIDTH, WIDTH),
        }
        for i in range(LAYERS)
    }
    return {"embed": normal(11, WIDTH), **blocks, "head": normal(WIDTH, 3)}


def block(layer, hidden):
    heads = jnp.einsum("sd,dhk->shk", hidden, layer["attention"]["kernel"]) + layer["attention"]["bias"]
    mixed = jax.nn.softmax(jnp.einsum("shk,thk->hst", heads, heads)) @ jnp.swapaxes(heads, 0, 1)
    hidden = hidden + jnp.swapaxes(mixed, 0, 1).reshape(hidden.shape) @ layer["out"]
    return hidden + jnp.tanh(hidden * layer["scale"]) @ layer["mlp"]


def stack(params, axis):
    blocks = [params[f"block_{i}"] for i in range(LAYERS)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis), *blocks)
    return {"embed": params["embed"], "blocks": stacked, "head": params["head"]}


def unstack(params, axis):
    layers = {
        f"block_{i}": jax.tree.map(lambda leaf, i=i: jnp.take(leaf, i, axis), params["blocks"])
        for i in range(LAYERS)
    }
    return {"embed": params["embed"], **layers, "head": params["head"]}


def loss(params, tokens):
    hidden = params["embed"][tokens]
    for i in range(LAYERS):
        hidden = block(params[f"block_{i}"], hidden)
    return (hidden.mean(0) @ params["head"] - 1.0).var() + (hidden**2).mean()


def train(tx, params, loss):
    """The parameters after each step, and the last state."""

    @jax.jit
    def all_steps(params, state):
        def step(carry, tokens):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params, tokens), state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        tokens = jax.random.randint(jax.random.key(1), (STEPS, 6), 0, 11)
        return jax.lax.scan(step, (params, state), tokens)

    (_, state), path = all_steps(params, tx.init(params))
    return path, state


SCHEDULE = olr.one_cycle_schedule(0.02, STEPS)
STARTS = {0: 30, 1: 20, 2: 10, 4: 5}
MAKERS = {
    "layer_decay": lambda labels: optax.chain(
        optax.adamw(0.01), olr.scale_by_label(olr.layer_decay(0.5), labels)
    ),
    "geometric": lambda labels: optax.chain(
        optax.adamw(0.01), olr.scale_by_label(olr.geometric_multipliers(0.1, 1.0), labels)
    ),
    "schedules": lambda labels: optax.chain(
        optax.adam(0.01),
        olr.scale_by_label({i: olr.anneal_schedule(1.0, 0.1 * i, STEPS) for i in range(6)}, labels),
    ),
    "zero_until": lambda labels: optax.chain(
        olr.zero_until(STARTS, labels), optax.clip_by_global_norm(0.1), optax.adam(0.01)
    ),
    "unfreeze_at": lambda labels: olr.unfreeze_at(optax.adamw(SCHEDULE), STARTS, labels),
    "unfreeze_at, clock of each label": lambda labels: olr.unfreeze_at(
        optax.adamw(SCHEDULE), STARTS, labels, clock="label"
    ),
    "fine_tune": lambda labels: olr.fine_tune(
        optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(SCHEDULE)),
        olr.layer_decay(0.75),
        labels,
        frozen=0,
        starts={1: 20, 2: 10},
    ),
}


@pytest.mark.parametrize(("name", "axis"), [*((name, 0) for name in MAKERS), ("fine_tune", 1)])
def test_stacked_layers_train_as_layers_apart(name, axis):
    stacked_labels = olr.label_by_depth(["embed", olr.at_depth("blocks/.*", stacked_axis=axis), "head"])
    params = apart()
    ours, _ = train(
        MAKERS[name](stacked_labels),
        stack(params, axis),
        lambda params, tokens: loss(unstack(params, axis), tokens),
    )
    theirs, _ = train(MAKERS[name](APART), params, loss)
    assert not np.allclose(theirs["head"][-1], params["head"])
    ours = jax.vmap(lambda params: unstack(params, axis))(ours)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-6)


def test_the_tables_agree():
    stacked_labels = olr.label_by_depth(["embed", olr.at_depth("blocks/.*", stacked_axis=0), "head"])
    tables = [
        olr.describe_labels(params, labels, olr.layer_decay(0.5)).splitlines()
        for params, labels in ((apart(), APART), (stack(apart(), 0), stacked_labels))
    ]
    without_paths = [[line.split()[:5] for line in table[1:]] for table in tables]
    assert without_paths[0] == without_paths[1]


def test_an_array_of_multipliers_lies_along_the_leading_axis():
    params = stack(apart(), 0)
    labels = olr.label_by_path({"blocks/.*": "blocks", ".*": "rest"})
    decay = [0.125, 0.25, 0.5, 1.0]
    for multiplier in (np.array(decay), jnp.array(decay), lambda count: jnp.array(decay)):
        tx = olr.scale_by_label({"blocks": multiplier, "rest": 2.0}, labels)
        updates, state = jax.jit(tx.update)(params, tx.init(params))
        for got, leaf in zip(
            jax.tree.leaves(updates["blocks"]), jax.tree.leaves(params["blocks"]), strict=True
        ):
            np.testing.assert_allclose(got, leaf * np.reshape(decay, (-1, *[1] * (leaf.ndim - 1))))
        assert state.last_multipliers["blocks"].tolist() == decay
    assert "0.125 to 1" in olr.describe_labels(params, labels, {"blocks": np.array(decay), "rest": 2.0})


class Block(nn.Module):
    @nn.compact
    def __call__(self, hidden, _):
        return hidden + nn.Dense(WIDTH)(jnp.tanh(hidden)), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        scan = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS)
        return nn.Dense(1)(scan(name="blocks")(inputs, None)[0])


class ScannedNNX(nnx.Module):
    def __init__(self):
        @nnx.split_rngs(splits=LAYERS)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def made(rngs):
            return nnx.Linear(WIDTH, WIDTH, rngs=rngs)

        self.blocks, self.head = made(nnx.Rngs(0)), nnx.Linear(WIDTH, 1, rngs=nnx.Rngs(1))

    def __call__(self, inputs):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def forward(hidden, layer):
            return hidden + layer(jnp.tanh(hidden))

        return self.head(forward(inputs, self.blocks))


def test_scanned_modules_of_flax_have_a_rate_for_each_layer():
    labels = olr.label_by_depth([olr.at_depth("blocks/.*", stacked_axis=0), r"Dense_0/.*"])
    params = Scanned().init(jax.random.key(0), jnp.ones((2, WIDTH)))["params"]
    tx = olr.fine_tune(optax.sgd(1.0), olr.layer_decay(0.5), labels, starts={0: 3})
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    assert updates["blocks"]["Dense_0"]["bias"][:, 0].tolist() == [0.0, -0.125, -0.25, -0.5]
    assert updates["Dense_0"]["bias"].tolist() == [-1.0]


def test_a_scanned_nnx_module_has_a_rate_for_each_layer():
    model = ScannedNNX()
    labels = olr.label_by_depth([olr.at_depth("blocks/.*", stacked_axis=0), r"head/.*"])
    tx = olr.fine_tune(optax.sgd(1.0), olr.layer_decay(0.5), labels, starts={0: 3})
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    before = np.asarray(model.blocks.bias[...])

    @nnx.jit
    def step(model, optimizer):
        grads = nnx.grad(lambda model: (model(jnp.ones((4, WIDTH))) ** 2).mean())(model)
        optimizer.update(model, jax.tree.map(jnp.ones_like, grads))

    step(model, optimizer)
    assert (np.asarray(model.blocks.bias[...]) - before)[:, 0].tolist() == [0.0, -0.125, -0.25, -0.5]


def test_one_array_is_not_trained_in_part(unhooked):
    labels = unhooked.label_by_depth([unhooked.at_depth("blocks", stacked_axis=0), "head"])
    params = {"blocks": jnp.ones((3, 2)), "head": jnp.ones(2)}
    assert (
        not unhooked.train_only(optax.sgd(1.0), 3, labels)
        .update(params, unhooked.train_only(optax.sgd(1.0), 3, labels).init(params), params)[0]["blocks"]
        .any()
    )
    with pytest.raises(ValueError, match="names has only some of the layers that are stacked in 'blocks'"):
        unhooked.train_only(optax.sgd(1.0), [1, 3], labels).init(params)
    with pytest.raises(ValueError, match="frozen has only some of the layers that are stacked in 'blocks'"):
        unhooked.fine_tune(optax.sgd(1.0), unhooked.layer_decay(), labels, frozen=0).init(params)
