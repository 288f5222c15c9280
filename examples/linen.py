"""The fine-tuning of fine_tune.py with Flax Linen: ten seeds at ten rates in one program."""

import few_labels as data
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

import optax_lr as olr


class Network(nn.Module):
    @nn.compact
    def __call__(self, rows):
        x = nn.relu(nn.Dense(16, name="block_0")(data.INPUTS[rows])).reshape(len(rows), -1)
        x = nn.relu(nn.Dense(64, name="block_2")(nn.relu(nn.Dense(64, name="block_1")(x))))
        return nn.Dense(5, name="head")(x)


def loss_fn(params, rows):
    logits = Network().apply({"params": params}, rows)
    return optax.softmax_cross_entropy_with_integer_labels(logits, data.LABELS[rows]).mean()


def train(params, tx, batches):
    def step(state, rows):
        return state.apply_gradients(grads=jax.grad(loss_fn)(state.params, rows)), None

    state = TrainState.create(apply_fn=Network().apply, params=params, tx=tx)
    return jax.lax.scan(step, state, batches)[0].params


def pretrained(key):
    fresh = Network().init(key, data.OLD)["params"]
    return {**train(fresh, optax.adam(3e-3), jnp.tile(data.OLD, (60, 1))), "head": fresh["head"]}


def fine_tuned(params, key, rate, body):
    labels = olr.label_by_path({"head/.*": "head", "block_.*": "body"})
    schedule = olr.one_cycle_schedule(rate, data.STEPS)
    tx = olr.fine_tune(optax.adam(schedule), {"head": 1.0, "body": body}, labels)
    params = train(params, tx, jax.random.permutation(key, data.POOL)[data.ORDER])
    right = Network().apply({"params": params}, data.TEST).argmax(-1) == data.LABELS[data.TEST]
    return loss_fn(params, data.VALID), right.mean()


keys, rates = jax.random.split(jax.random.key(0), 10), jnp.asarray(data.RATES)
run = jax.jit(jax.vmap(jax.vmap(fine_tuned, (None, None, 0, None)), (0, 0, None, None)))
start = jax.jit(jax.vmap(pretrained))(keys)
found = {
    name: run(start, keys, rates, body) for name, body in (("one rate for all", 1.0), ("head x 10", 0.1))
}
data.report(found, "linen.png")
