"""What the fine-tuning examples share: the digits 0-4 to pretrain on, 5-9 with few labels, and a picture."""

import pathlib

import gains
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SHOTS, BATCH, EPOCHS = 25, 5, 16
EPOCH = SHOTS // BATCH
STEPS = EPOCH * EPOCHS
RATES = np.geomspace(1e-3, 1.0, 10)

_images, _digits = load_digits(return_X_y=True)
_square = np.float32(_images).reshape(-1, 8, 8) / 16
# 36 patches of 3 x 3 for each image: a matrix that multiplies them is a convolution. [images, patches, pixels]
INPUTS = jnp.stack([_square[:, i : i + 6, j : j + 6] for i in range(3) for j in range(3)], -1).reshape(
    -1, 36, 9
)
LABELS = jnp.asarray(_digits % 5)
OLD, _new = np.flatnonzero(_digits < 5), np.flatnonzero(_digits >= 5)
# Rows of images of 5-9: to draw the labeled ones from, to choose a rate by, and to measure with.
POOL, _rest = train_test_split(_new, train_size=300, random_state=0, stratify=_digits[_new])
VALID, TEST = train_test_split(_rest, train_size=200, random_state=0, stratify=_digits[_rest])
# Which of a seed's labeled images each step sees.
ORDER = (
    np.random.default_rng(0).permuted(np.tile(np.arange(SHOTS), (EPOCHS, 1)), axis=1).reshape(STEPS, BATCH)
)


def report(found, picture):
    """The accuracy of each way at its best rate by validation loss, as a table; over all rates, as a picture.

    `found` has for each way the validation losses and the test accuracies, both [seeds, rates].
    """
    pathlib.Path("out").mkdir(exist_ok=True)
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    chosen = {}
    for name, (losses, accuracy) in found.items():
        at = int(np.nanargmin(losses.mean(0)))
        chosen[f"{name}, {RATES[at]:.2g}"] = accuracy[:, at]
        mean, half = gains.interval(accuracy)
        (line,) = axes.plot(RATES, mean, label=name)
        axes.fill_between(RATES, mean - half, mean + half, color=line.get_color(), alpha=0.15, lw=0)
        axes.plot(RATES[at], mean[at], "o", color=line.get_color())
    gains.report("test accuracy in percent", chosen, sign=1, percent=True)
    axes.set(
        xscale="log", xlabel="peak learning rate; dots: chosen by validation loss", ylabel="test accuracy"
    )
    axes.legend()
    figure.savefig(f"out/{picture}", dpi=120)
    print(f"Picture: out/{picture}")
