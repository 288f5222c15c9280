"""The classic figure: cross-entropy and classification error over time at five learning rates.

A network of one layer learns handwritten digits; the five runs are one sweep. Writes out/loss_functions.png.
"""

import pathlib
import time

import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import optax_lr as olr
from optax_lr import plots

RATES, BATCH, EPOCHS = [0.01, 0.1, 0.2, 0.5, 1.0], 32, 30
OUT = pathlib.Path("out")


def loss_fn(params, batch):
    images, labels = batch
    logits = images @ params["kernel"] + params["bias"]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, {"error": jnp.mean(logits.argmax(-1) != labels)}


def eval_fn(params, batch):
    loss, metrics = loss_fn(params, batch)
    return {"loss": loss, **metrics}


def main():
    start = time.perf_counter()
    images, labels = load_digits(return_X_y=True)
    images = images.astype(np.float32) / 16
    x, valid_x, y, valid_y = train_test_split(images, labels, test_size=360, random_state=0, stratify=labels)
    per_epoch, draw = len(x) // BATCH, np.random.default_rng(0)
    order = np.concatenate([draw.permutation(len(x))[: per_epoch * BATCH] for _ in range(EPOCHS)])
    curve = olr.lr_sweep(
        loss_fn,
        {"kernel": jnp.zeros((64, 10)), "bias": jnp.zeros(10)},
        optax.sgd,
        (x[order].reshape(-1, BATCH, 64), y[order].reshape(-1, BATCH)),
        learning_rates=RATES,
        eval_batch=(valid_x, valid_y),
        eval_every=per_epoch,
        eval_fn=eval_fn,
        has_aux=True,
    )
    print(olr.diagnose(curve.losses[0], curve.eval_losses[0]))
    OUT.mkdir(exist_ok=True)
    plots.plot_histories(curve, steps_per_epoch=per_epoch).figure.savefig(OUT / "loss_functions.png", dpi=120)
    print(f"\nPicture: {OUT / 'loss_functions.png'}, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
