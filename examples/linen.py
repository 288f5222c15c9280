"""Layer-wise rates with Flax Linen: a `TrainState` whose optimizer is `fine_tune`. Ten seeds at eight rates are one
compiled program, since rates and multipliers may be traced.

A network that has learned ten digits learns from 25 labeled images which of five pairs (0 or 1, 2 or 3, ...) it
sees: at one rate, and with a head ten times as fast as the body.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats
from flax import linen as nn
from flax.training.train_state import TrainState
from sklearn.datasets import load_digits

import optax_lr as olr

SEEDS, STEPS, RATES = 10, 80, np.geomspace(1e-3, 0.1, 8)
images, digits = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(digits))
INPUTS, DIGITS = jnp.asarray(images[order] / 16, jnp.float32), jnp.asarray(digits[order])
# Rows to learn the digits from, to draw labeled images from, to choose a rate by, and to measure with.
OLD, POOL, VALID, TEST = np.split(np.arange(len(digits)), [900, 1200, 1400])
POOLS = jnp.stack([POOL[DIGITS[POOL] // 2 == pair][:45] for pair in range(5)])


class Network(nn.Module):
    classes: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(64, name="body_1")(nn.relu(nn.Dense(64, name="body_0")(x))))
        return nn.Dense(self.classes, name="head")(x)


def loss_fn(params, classes, rows):
    logits = Network(classes).apply({"params": params}, INPUTS[rows])
    labels = DIGITS[rows] * classes // 10  # of five classes, pairs
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train(params, classes, tx, batches):
    def step(state, rows):
        return state.apply_gradients(grads=jax.grad(loss_fn)(state.params, classes, rows)), None

    state = TrainState.create(apply_fn=Network(classes).apply, params=params, tx=tx)
    return jax.lax.scan(step, state, batches)[0].params


def pretrained(key):
    start, draw, head = jax.random.split(key, 3)
    tx = optax.adam(olr.one_cycle_schedule(3e-3, 400))
    params = train(
        Network(10).init(start, INPUTS[:1])["params"], 10, tx, jax.random.choice(draw, OLD, (400, 32))
    )
    return params | {"head": Network(5).init(head, INPUTS[:1])["params"]["head"]}


def fine_tuned(params, key, rate, body):
    labels = olr.label_by_path({"head/.*": "head", "body_.*": "body"})
    tx = olr.fine_tune(optax.adam(olr.one_cycle_schedule(rate, STEPS)), {"head": 1.0, "body": body}, labels)
    mine = jax.random.permutation(key, POOLS, axis=1, independent=True)[:, :5].ravel()
    epochs = jax.random.permutation(key, jnp.tile(mine, (STEPS // 5, 1)), axis=1, independent=True)
    params = train(params, 5, tx, epochs.reshape(STEPS, 5))
    right = Network(5).apply({"params": params}, INPUTS[TEST]).argmax(-1) == DIGITS[TEST] // 2
    return loss_fn(params, 5, VALID), right.mean()


def interval(values):
    """The mean over the seeds and half the width of its 95% interval, Student's."""
    half = scipy.stats.t.ppf(0.975, SEEDS - 1) * np.std(values, ddof=1) / SEEDS**0.5
    return f"{np.mean(values):>6.1%} ± {half:.1%}"


keys = jax.random.split(jax.random.key(0), SEEDS)
start = jax.jit(jax.vmap(pretrained))(keys)
run = jax.jit(jax.vmap(jax.vmap(fine_tuned, (None, None, 0, None)), (0, 0, None, None)))  # [seeds, rates]
found = {}
for name, body in {"one rate": 1.0, "head x 10": 0.1}.items():
    losses, accuracies = map(np.asarray, run(start, keys, jnp.asarray(RATES), body))
    best = int(losses.mean(0).argmin())
    found[name] = accuracies[:, best]
    print(f"{name:<10} at {RATES[best]:<7.2g} test accuracy {interval(found[name])}")
print(f"gain, seed by seed{'':>17}{interval(found['head x 10'] - found['one rate'])}")
