"""How large updates are beside gradients: AdaGrad's effective rate shrinks as 1 / sqrt(t), RMSProp's stays.

A small network on scikit-learn's digits, of which a third have a random label, so that gradients never vanish:
where they shrink with the loss, RMSProp's effective rate grows. Writes out/effective_rates.png.
"""

import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import optax_lr as olr
from optax_lr import plots

OUT = pathlib.Path("out")
STEPS, BATCH, HIDDEN = 3000, 16, 64
SPANS = {"updates 300 to 500": slice(300, 500), "the last 200": slice(-200, None)}
OPTIMIZERS = {
    "AdaGrad": optax.adagrad(0.03),
    "RMSProp": optax.rmsprop(0.001),
    "Adam": optax.adam(0.001),
    "momentum": optax.sgd(0.05, momentum=0.9),
}


def loss_fn(params, batch):
    images, labels = batch
    logits = jax.nn.relu(images @ params["hidden"]) @ params["output"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train(optimizer, params, batches):
    """The effective rates and the loss of every step, in one compiled loop."""
    tx = olr.track_effective_rates(optimizer)

    def step(carry, batch):
        params, state = carry
        loss, gradients = jax.value_and_grad(loss_fn)(params, batch)
        updates, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), (olr.effective_rates(state), loss)

    return jax.lax.scan(step, (params, tx.init(params)), batches)[1]


def main():
    OUT.mkdir(exist_ok=True)
    images, labels = load_digits(return_X_y=True)
    random = np.random.default_rng(0)
    labels = np.where(random.random(len(labels)) < 1 / 3, random.integers(0, 10, len(labels)), labels)
    draw = random.integers(0, len(images), (STEPS, BATCH))
    batches = jnp.asarray(images[draw] / 16, jnp.float32), jnp.asarray(labels[draw])
    keys = jax.random.split(jax.random.key(0))
    params = {
        "hidden": jax.random.normal(keys[0], (64, HIDDEN)) / 8,
        "output": jax.random.normal(keys[1], (HIDDEN, 10)) / 8,
    }
    histories, shares = {}, {}
    print(f"|update| / |gradient|, medians over {', '.join(SPANS)} of {STEPS}")
    for name, optimizer in OPTIMIZERS.items():
        rates, losses = jax.jit(train, static_argnums=0)(optimizer, params, batches)
        histories[name] = jax.tree.map(np.asarray, rates)
        first, last = (np.median(histories[name].update_to_gradient["all"][span]) for span in SPANS.values())
        loss, shares[name] = np.mean(losses[-200:]), last / first
        print(f"  {name:<9} {first:8.3g} {last:8.3g}, {last / first:5.2f} times; loss at the end {loss:.2f}")
    figure, axes = plt.subplots(1, 2, figsize=(13, 4.6), layout="constrained")
    plots.plot_effective_rates(histories, ax=axes[0]).get_legend().remove()
    plots.plot_effective_rates(histories, "update_to_weight", ax=axes[1])
    figure.savefig(OUT / "effective_rates.png", dpi=120)
    print("Picture: out/effective_rates.png")
    return shares


if __name__ == "__main__":
    main()
