"""Small modules of Flax NNX, their losses, and the training loop that an NNX user would write for them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import optax_lr as olr
from optax_lr.nnx.modules import pure

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(12, 8, 3)).astype(np.float32)
TARGETS = np.tanh(INPUTS.sum(-1, keepdims=True))
BATCHES = (INPUTS, TARGETS)
VALIDATION = (INPUTS[-1], TARGETS[-1])


class Plain(nnx.Module):
    """Two layers without any state."""

    def __init__(self, rngs):
        self.body = nnx.Linear(3, 4, rngs=rngs)
        self.head = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, inputs):
        return self.head(jnp.tanh(self.body(inputs)))


class Stateful(Plain):
    """Batch statistics, dropout, a stream of its own and a count."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.25, rngs=rngs)
        self.noise = rngs.fork()
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, inputs):
        self.calls[...] += 1
        noisy = inputs + 0.1 * jax.random.normal(self.noise(), inputs.shape)
        return self.head(self.drop(self.norm(jnp.tanh(self.body(noisy)))))


def loss_fn(model, batch):
    return jnp.mean((model(batch[0]) - batch[1]) ** 2)


def loss_and_metrics(model, batch):
    error = model(batch[0]) - batch[1]
    return jnp.mean(error**2), {"worst": jnp.abs(error).max()}


def eval_fn(model, batch):
    loss, metrics = loss_and_metrics(model, batch)
    return {"loss": loss, **metrics}


def stateful():
    return Stateful(nnx.Rngs(0))


def variables(model):
    """Every variable and static attribute of a module, keys as numbers."""
    graphdef, state = nnx.split(model)
    arrays = nnx.to_pure_dict(pure(state))
    return graphdef, jax.tree.map(
        lambda x: np.asarray(
            jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        ).copy(),
        arrays,
    )


def assert_same(one, other):
    assert one[0] == other[0]
    jax.tree.map(np.testing.assert_array_equal, one[1], other[1])


ADAM = optax.chain(optax.scale_by_adam(), olr.scale_by_learning_rate(1.0))


@functools.cache
def own_step(wrt):
    """The training step of an NNX user, compiled once for models of one form and one transformation."""

    @nnx.jit
    def step(model, optimizer, batch):
        take = nnx.value_and_grad(loss_and_metrics, argnums=nnx.DiffState(0, wrt), has_aux=True)
        found, gradients = take(model, batch)
        optimizer.update(model, gradients)
        return found

    return step


def own_loop(model, rate, num_steps, *, wrt=nnx.Param):
    """The loop of an NNX user over the batches in order; the model, its optimizer, losses and metrics."""
    model = nnx.clone(model)
    optimizer = nnx.Optimizer(model, ADAM, wrt=wrt)
    nnx.update(optimizer.opt_state, nnx.state(olr.set_learning_rate(pure(optimizer.opt_state), rate)))
    said = [own_step(wrt)(model, optimizer, (INPUTS[t], TARGETS[t])) for t in range(num_steps)]
    worst = [float(metrics["worst"]) for _, metrics in said]
    return model, optimizer, np.array([float(loss) for loss, _ in said]), np.array(worst)


LABELS = olr.label_by_path({"head/.*": "head", ".*": "body"})


class Deep(nnx.Module):
    """An embedding of the inputs, three blocks and a head: five groups."""

    def __init__(self, rngs, width=4, inputs=3):
        self.embed = nnx.Linear(inputs, width, rngs=rngs)
        self.block = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(3)])
        self.head = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, inputs):
        hidden = jnp.tanh(self.embed(inputs))
        for layer in self.block:
            hidden = jnp.tanh(layer(hidden))
        return self.head(hidden)


class Convolutions(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.second = nnx.Conv(8, 16, (3, 3), rngs=rngs)
        self.head = nnx.Linear(16 * 64, 10, rngs=rngs)

    def __call__(self, images):
        features = jax.nn.relu(self.second(jax.nn.relu(self.first(images))))
        return self.head(features.reshape(len(images), -1))


def square(model, inputs):
    return jnp.mean(model(inputs) ** 2)


def train_step(wrt):
    @nnx.jit
    def step(model, optimizer, inputs):
        loss, gradients = nnx.value_and_grad(square, argnums=nnx.DiffState(0, wrt))(model, inputs)
        optimizer.update(model, gradients)
        return loss

    return step


def state_bytes(optimizer):
    """What an optimizer keeps of the parameters, counts left out."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(pure(optimizer.opt_state)) if leaf.ndim)


def adapted():
    """A network whose first layer has a low-rank adapter."""
    model = Plain(nnx.Rngs(0))
    model.body = nnx.LoRA(3, 2, 4, base_module=model.body, rngs=nnx.Rngs(1))
    return model
