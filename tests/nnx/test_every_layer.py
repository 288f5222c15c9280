"""Every layer of Flax NNX: the lanes of a sweep are the loop that a user would write."""

import inspect

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_lr as olr

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(4, 3, 5, 6)).astype(np.float32)  # [steps, batch, time, features]
RATES, STEPS = (0.01, 0.1), 4


class Net(nnx.Module):
    """A layer, and how it is called."""

    def __init__(self, layer, call=lambda layer, x: layer(x)):
        self.layer = layer
        self.call = call

    def __call__(self, x):
        return self.call(self.layer, x)


def of_cell(cell):
    """One step of a recurrent cell from its own first carry."""
    return Net(cell, lambda cell, x: cell(cell.initialize_carry(x[:, 0].shape, nnx.Rngs(1)), x[:, 0])[1])


# Each takes the streams of random keys.
LAYERS = {
    "BatchNorm": lambda r: Net(nnx.BatchNorm(6, rngs=r)),
    "Bidirectional": lambda r: Net(
        nnx.Bidirectional(
            nnx.RNN(nnx.SimpleCell(6, 4, rngs=r)), nnx.RNN(nnx.SimpleCell(6, 4, rngs=r)), rngs=r
        )
    ),
    "Conv": lambda r: Net(nnx.Conv(6, 4, (3,), rngs=r)),
    "ConvTranspose": lambda r: Net(nnx.ConvTranspose(6, 4, (3,), rngs=r)),
    "Dropout": lambda r: Net(nnx.Sequential(nnx.Linear(6, 8, rngs=r), nnx.Dropout(0.5, rngs=r))),
    "Einsum": lambda r: Net(nnx.Einsum("btf,fg->btg", (6, 4), rngs=r)),
    "Embed": lambda r: Net(nnx.Embed(7, 4, rngs=r), lambda layer, x: layer(jnp.abs(x * 3).astype(int) % 7)),
    "GRUCell": lambda r: of_cell(nnx.GRUCell(6, 4, rngs=r)),
    "GroupNorm": lambda r: Net(nnx.GroupNorm(6, num_groups=2, rngs=r)),
    "InstanceNorm": lambda r: Net(nnx.InstanceNorm(6, rngs=r)),
    "LSTMCell": lambda r: of_cell(nnx.LSTMCell(6, 4, rngs=r)),
    "LayerNorm": lambda r: Net(nnx.LayerNorm(6, rngs=r)),
    "Linear": lambda r: Net(nnx.Linear(6, 4, rngs=r)),
    "LinearGeneral": lambda r: Net(nnx.LinearGeneral(6, (2, 3), rngs=r)),
    "LoRA": lambda r: Net(nnx.LoRA(6, 2, 4, base_module=nnx.Linear(6, 4, rngs=r), rngs=r)),
    "LoRALinear": lambda r: Net(nnx.LoRALinear(6, 4, lora_rank=2, rngs=r)),
    "MultiHeadAttention": lambda r: Net(
        nnx.MultiHeadAttention(
            num_heads=2, in_features=6, dropout_rate=0.2, deterministic=False, decode=False, rngs=r
        )
    ),
    "OptimizedLSTMCell": lambda r: of_cell(nnx.OptimizedLSTMCell(6, 4, rngs=r)),
    "PReLU": lambda r: Net(nnx.PReLU()),
    "RMSNorm": lambda r: Net(nnx.RMSNorm(6, rngs=r)),
    "RNN": lambda r: Net(nnx.RNN(nnx.LSTMCell(6, 4, rngs=r), rngs=r)),
    "Sequential": lambda r: Net(nnx.Sequential(nnx.Linear(6, 4, rngs=r), jnp.tanh, nnx.Linear(4, 2, rngs=r))),
    "SimpleCell": lambda r: of_cell(nnx.SimpleCell(6, 4, rngs=r)),
    "SpectralNorm": lambda r: Net(
        nnx.SpectralNorm(nnx.Linear(6, 4, rngs=r), rngs=r), lambda layer, x: layer(x, update_stats=True)
    ),
    "WeightNorm": lambda r: Net(nnx.WeightNorm(nnx.Linear(6, 4, rngs=r), rngs=r)),
}
# Some are newer than Flax 0.12.0.
LAYERS = {name: build for name, build in LAYERS.items() if hasattr(nnx, name)}
# They hold other modules, or are what all modules are.
NO_LAYERS = {"Dict", "List", "Module", "RNNCellBase"}


def loss_fn(model, x):
    return jnp.mean((model(x) - 1) ** 2)


def own_losses(model, rate):
    model = nnx.clone(model)
    optimizer = nnx.Optimizer(model, optax.sgd(rate), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        loss, gradients = nnx.value_and_grad(loss_fn)(model, x)
        optimizer.update(model, gradients)
        return loss

    return [float(step(model, optimizer, INPUTS[t])) for t in range(STEPS)]


def test_every_layer_has_a_row():
    classes = (name for name, value in vars(nnx).items() if inspect.isclass(value))
    layers = {name for name in classes if issubclass(getattr(nnx, name), nnx.Module)}
    assert layers - NO_LAYERS == set(LAYERS)


@pytest.mark.parametrize("name", LAYERS)
def test_the_lanes_of_a_layer_are_the_loop_by_hand(name):
    model = LAYERS[name](nnx.Rngs(0))
    curve = olr.nnx.lr_sweep(
        loss_fn, model, optax.sgd, INPUTS, learning_rates=RATES, stop_factor=1e9, progress=False
    )
    for lane, rate in enumerate(RATES):
        np.testing.assert_allclose(curve.losses[0, lane], own_losses(model, rate), rtol=2e-4)
