"""The classic figure: loss and classification error over time at five learning rates, training and validation.

A network learns handwritten digits from 300 images, a fifth of which have a wrong label. One rate is too low, one
good; at 0.3 the network learns the wrong labels by heart: its training loss falls on, and its validation loss rises
again. At 1.0 the losses swing, and 30 diverges. The five runs are one sweep; `diagnose` says the same of them.
Writes out/loss_functions.png.
"""

import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import optax_lr as olr
from optax_lr import plots

RATES, BATCH, EPOCHS = [0.01, 0.1, 0.3, 1.0, 30.0], 20, 60
OUT = pathlib.Path("out")


def init(key):
    first, second = jax.random.split(key)
    return jax.random.normal(first, (64, 64)) * (2 / 64) ** 0.5, jax.random.normal(second, (64, 10)) / 8


def loss_fn(params, batch):
    images, labels = batch
    logits = jnp.tanh(images @ params[0]) @ params[1]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, {"error": jnp.mean(logits.argmax(-1) != labels)}


def eval_fn(params, batch):
    loss, metrics = loss_fn(params, batch)
    return {"loss": loss, **metrics}


def main():
    start = time.perf_counter()
    images, labels = load_digits(return_X_y=True)
    images = images.astype(np.float32) / 16
    x, valid_x, y, valid_y = train_test_split(images, labels, train_size=300, random_state=0, stratify=labels)
    draw, per_epoch = np.random.default_rng(1), len(x) // BATCH
    y = np.where(draw.random(len(y)) < 0.2, draw.integers(0, 10, len(y)), y)
    order = np.concatenate([draw.permutation(len(x)) for _ in range(EPOCHS)])
    curve = olr.lr_sweep(
        loss_fn,
        init,
        optax.sgd,
        (x[order].reshape(-1, BATCH, 64), y[order].reshape(-1, BATCH)),
        learning_rates=RATES,
        eval_batch=(valid_x, valid_y),
        eval_every=per_epoch,
        eval_fn=eval_fn,
        has_aux=True,
        stop_factor=50.0,  # of a rate that is too high the swings are to be seen
    )
    verdict = olr.diagnose(curve)
    print(verdict)
    OUT.mkdir(exist_ok=True)
    plots.plot_histories(curve, steps_per_epoch=per_epoch).figure.savefig(OUT / "loss_functions.png", dpi=120)
    print(f"\nPicture: {OUT / 'loss_functions.png'}, {time.perf_counter() - start:.0f} s")
    return verdict


if __name__ == "__main__":
    main()
