"""Eight optimizers, each at the rate that one sweep found for it: on a ravine, and on handwritten digits.

Writes out/ravine.png (their ways down a narrow quadratic), out/optimizers.png (loss over full-batch steps on
digits), and prints for each the best rate and the largest stable one, without and with gradient clipping.
"""

import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import optax_lr as olr

OPTIMIZERS = {
    "momentum": lambda rate: optax.sgd(rate, 0.9),
    "NAG": lambda rate: optax.sgd(rate, 0.9, nesterov=True),
    "AdaGrad": optax.adagrad,
    "RMSProp": optax.rmsprop,
    "AdaDelta": optax.adadelta,
    "Adam": optax.adam,
    "Rprop": olr.rprop,
    "local gains": olr.local_gains,
}
RAVINE_STEPS, DIGITS_STEPS, SEEDS, HIDDEN = 40, 80, 3, 32
MAX_NORM = 1.0
OUT = pathlib.Path("out")

# A valley 40 times as steep across as along, turned by 20 degrees against the axes.
ANGLE = np.deg2rad(20)
TURN = np.array([[np.cos(ANGLE), -np.sin(ANGLE)], [np.sin(ANGLE), np.cos(ANGLE)]], np.float32)
VALLEY = jnp.asarray(TURN @ np.diag([1.0, 40.0]) @ TURN.T, jnp.float32)
START = jnp.array([-3.5, 0.5])


def ravine(point, _):
    return 0.5 * point @ VALLEY @ point


def digits():
    """All 1,797 images of 8 x 8 pixels, as one batch."""
    images, labels = load_digits(return_X_y=True)
    return images.astype(np.float32) / 16, labels


def init(key):
    first, second = jax.random.split(key)
    return {
        "hidden": jax.random.normal(first, (64, HIDDEN)) * (2 / 64) ** 0.5,
        "head": jax.random.normal(second, (HIDDEN, 10)) * HIDDEN**-0.5,
    }


def digits_loss(params, batch):
    images, labels = batch
    logits = jax.nn.relu(images @ params["hidden"]) @ params["head"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def best(curve):
    """The lane whose loss is lowest at the end, among the rates at which no run diverged."""
    return int(np.nanargmin(np.where(curve.stable, curve.losses[..., -3:].mean((0, 2)), np.nan)))


def trajectory(optimizer):
    """The points of one run down the ravine."""

    def step(carry, _):
        point, state = carry
        updates, state = optimizer.update(jax.grad(ravine)(point, None), state, point)
        return (optax.apply_updates(point, updates), state), point

    return np.asarray(jax.lax.scan(step, (START, optimizer.init(START)), length=RAVINE_STEPS)[1])


def plot_ravine(rates):
    x, y = np.meshgrid(np.linspace(-4, 1.5, 200), np.linspace(-2.2, 1.6, 160))
    points = np.stack([x, y], -1)
    heights = 0.5 * np.einsum("...i,ij,...j", points, np.asarray(VALLEY), points)
    figure, panels = plt.subplots(2, 4, figsize=(13, 5.2), sharex=True, sharey=True, layout="constrained")
    for (name, make), panel in zip(OPTIMIZERS.items(), panels.flat, strict=True):
        way = trajectory(make(rates[name]))
        panel.contour(x, y, heights, np.geomspace(0.05, 60, 10), colors="0.8", linewidths=0.7)
        panel.plot(*way.T, ".-", color="tab:blue", markersize=4, linewidth=0.9)
        panel.plot(0, 0, "+", color="tab:red")
        end = float(ravine(jnp.asarray(way[-1]), None))
        panel.set_title(f"{name}, rate {rates[name]:.2g}: {end:.1g} left", fontsize=9)
        panel.set(xlim=(-4, 1.5), ylim=(-2.2, 1.6))
    figure.suptitle(
        f"{RAVINE_STEPS} steps down a ravine (curvatures 1 and 40), from a height of {ravine(START, 0):.2g}"
    )
    figure.supxlabel("first parameter")
    figure.supylabel("second parameter")
    figure.savefig(OUT / "ravine.png", dpi=120)


def plot_digits(losses, rates):
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    styles = ["-", "--"]
    for index, (name, history) in enumerate(losses.items()):
        axes.plot(np.median(history, 0), styles[index % 2], label=f"{name}, {rates[name]:.2g}")
    axes.set(
        yscale="log",
        xlabel="step (full batch)",
        ylabel="training loss",
        title=f"Digits, each at its best rate: median of {SEEDS} seeds",
    )
    axes.legend(title="optimizer, rate", bbox_to_anchor=(1.02, 1), loc="upper left")
    figure.savefig(OUT / "optimizers.png", dpi=120)


def clipped(make):
    return lambda rate: optax.chain(optax.clip_by_global_norm(MAX_NORM), make(rate))


def stable(curve):
    """The largest rate up to which no run diverged, in words."""
    found = olr.suggest.largest_stable(curve)
    return f"{'>= ' if found.at_edge else ''}{found.learning_rate:.2g}"


def main():
    start = time.perf_counter()
    OUT.mkdir(exist_ok=True)
    batch = digits()
    batches = jax.tree.map(lambda array: np.broadcast_to(array, (DIGITS_STEPS, *array.shape)), batch)
    rates = np.geomspace(1e-4, 1e2, 19)
    ravine_rates, digits_rates, losses = {}, {}, {}
    print(
        f"Best rates; final loss on digits, median of {SEEDS} seeds [lowest, highest]; largest stable rates there"
    )
    print(
        f"{'':<13}{'ravine':>9}{'digits':>9}  {'loss':<28}{'unclipped':>15}{f'clipped to {MAX_NORM:g}':>15}"
    )
    for name, make in OPTIMIZERS.items():
        steep = olr.lr_sweep(
            ravine, START, make, np.zeros(RAVINE_STEPS), learning_rates=np.geomspace(1e-3, 1e3, 37)
        )
        curve, bound = (
            olr.lr_sweep(digits_loss, init, factory, batches, learning_rates=rates, seeds=SEEDS)
            for factory in (make, clipped(make))
        )
        at = best(curve)
        ravine_rates[name] = float(steep.learning_rates[best(steep)])
        digits_rates[name], losses[name] = float(rates[at]), curve.losses[:, at]
        final = losses[name][:, -1]
        over_seeds = f"{np.median(final):.2g} [{final.min():.2g}, {final.max():.2g}]"
        print(
            f"{name:<13}{ravine_rates[name]:>9.2g}{rates[at]:>9.2g}  {over_seeds:<28}"
            f"{stable(curve):>15}{stable(bound):>15}"
        )
    plot_ravine(ravine_rates)
    plot_digits(losses, digits_rates)
    print(f"\nPictures: {OUT / 'ravine.png'}, {OUT / 'optimizers.png'}\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
