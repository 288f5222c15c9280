"""Full-batch training on handwritten digits: local gains against momentum, each at its best rate, over seeds.

One sweep for each optimizer finds the rate at which its training loss is lowest after the run. Writes
out/local_gains.png: the loss of all seeds at those rates, and how large the gains are at the end, by layer.
"""

import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import optax_lr as olr

STEPS, SEEDS, HIDDEN = 150, 5, 32
RATES = np.geomspace(0.1, 3.0, 8)
OPTIMIZERS = {"momentum": lambda rate: optax.sgd(rate, 0.9), "local gains": olr.local_gains}
OUT = pathlib.Path("out")


def load():
    """Training and test data: 1,437 and 360 images of 8 x 8 pixels."""
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(
        images.astype(np.float32) / 16, labels, test_size=360, random_state=0, stratify=labels
    )
    return (split[0], split[2]), (split[1], split[3])


def init(key):
    first, second = jax.random.split(key)
    return {
        "hidden": {
            "kernel": jax.random.normal(first, (64, HIDDEN)) * (2 / 64) ** 0.5,
            "bias": jnp.zeros(HIDDEN),
        },
        "head": {"kernel": jax.random.normal(second, (HIDDEN, 10)) * HIDDEN**-0.5, "bias": jnp.zeros(10)},
    }


def logits(params, images):
    hidden = jax.nn.relu(images @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["head"]["kernel"] + params["head"]["bias"]


def loss_fn(params, batch):
    images, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, images), labels).mean()


def train(optimizer, batch):
    """A run from each of as many starts as there are seeds: trained parameters, and optimizer states."""

    @jax.jit
    @jax.vmap
    def run(params):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss_fn)(params, batch), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), length=STEPS)[0]

    return run(jax.vmap(init)(jax.random.split(jax.random.key(1), SEEDS)))


def spread(values, form):
    """The median over seeds, and the lowest and highest."""
    return f"{np.median(values):{form}} [{values.min():{form}}, {values.max():{form}}]"


def plot(losses, best, gains):
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for (name, lanes), color in zip(losses.items(), ("tab:gray", "tab:blue"), strict=True):
        left.plot(lanes.T, color=color, alpha=0.35, linewidth=0.8)
        left.plot(np.median(lanes, 0), color=color, label=f"{name}, rate {best[name]:.2g}")
    left.set(yscale="log", xlabel="step (full batch)", ylabel="training loss", title="Each at its best rate")
    left.legend(title=f"median of {SEEDS} seeds; thin: each seed")
    bins = np.geomspace(0.1, 10.0, 41)
    for name, values in gains.items():
        right.hist(values, bins, histtype="step", label=name, weights=np.full(values.size, 1 / values.size))
    right.set(
        xscale="log",
        xlabel="gain after the run",
        ylabel="share of the leaf's weights",
        title="Gains of the first seed",
    )
    right.axvline(1.0, color="black", linewidth=0.6, linestyle=":")
    right.legend()
    figure.savefig(OUT / "local_gains.png", dpi=120)


def main():
    start = time.perf_counter()
    OUT.mkdir(exist_ok=True)
    training, test = load()
    batches = jax.tree.map(lambda array: np.broadcast_to(array, (STEPS, *array.shape)), training)
    losses, best = {}, {}
    for name, optimizer in OPTIMIZERS.items():
        curve = olr.lr_sweep(loss_fn, init, optimizer, batches, learning_rates=RATES, seeds=SEEDS)
        at = int(np.nanargmin(np.where(curve.stable, curve.losses[..., -10:].mean((0, 2)), np.nan)))
        losses[name], best[name] = curve.losses[:, at], float(RATES[at])
        failed = (np.asarray(curve.diverged_at) >= 0).sum(0)
        print(f"{name}: {failed.sum()} of {failed.size * SEEDS} runs of the sweep diverged")
    # Each seed's start is the same for both optimizers, and so is its target: where momentum ended.
    target = losses["momentum"][:, -1]
    found = {}
    print(f"\nOver {SEEDS} seeds: median [lowest, highest]; inf is not within {STEPS} steps")
    print(f"{'':<13}{'rate':>5}  {'final loss':<27}{'steps to momentum':<22}test accuracy")
    for name, lanes in losses.items():
        reached = lanes <= target[:, None]
        steps_to = np.where(reached.any(1), reached.argmax(1), np.inf)
        found[name] = np.median(steps_to)
        params, state = train(OPTIMIZERS[name](best[name]), training)
        right = jax.vmap(logits, (0, None))(params, test[0]).argmax(-1) == test[1]
        print(
            f"{name:<13}{best[name]:>5.2g}  {spread(lanes[:, -1], '.2g'):<27}{spread(steps_to, '.0f'):<22}"
            f"{spread(np.asarray(right.mean(-1)), '.1%')}"
        )
    state = jax.tree.map(lambda leaf: leaf[0], state)

    statistics = olr.gain_statistics(state)
    print(f"\n{'gains':<16}{'min':>7}{'median':>8}{'max':>7}{'at a bound':>12}")
    for name, summary in {**statistics.leaves, "all": statistics.overall}.items():
        at_bound = float(summary["at_min"] + summary["at_max"])
        print(
            f"{name:<16}{summary['min']:>7.2f}{summary['median']:>8.2f}{summary['max']:>7.2f}{at_bound:>12.1%}"
        )
    leaves = jax.tree.leaves_with_path(state[0].gains)
    gains = {jax.tree_util.keystr(path, simple=True, separator="/"): np.ravel(gain) for path, gain in leaves}
    plot(losses, best, gains)
    print(f"\nPicture: {OUT / 'local_gains.png'}\n{time.perf_counter() - start:.0f} s")
    return {"momentum_steps": found["momentum"], "gains_steps": found["local gains"]}


if __name__ == "__main__":
    main()
