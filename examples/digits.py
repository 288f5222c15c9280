"""Find a learning rate on handwritten digits, train with it, and see it.

The finder trains copies of a small network at many rates. Then ten new networks each are trained under a one-cycle
schedule whose peak is a tenth of the rate that was found, that rate, and ten times it: the table has their means.
Writes two pictures and the numbers to out/.
"""

import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import optax_lr as olr
from optax_lr import plots

BATCH, EPOCHS, HIDDEN, SEEDS = 64, 30, 128, 10
OUT = pathlib.Path("out")


def load():
    """Train, validation and test: 1,077, 360 and 360 images of 8 x 8 pixels."""
    images, labels = load_digits(return_X_y=True)
    rest_x, test_x, rest_y, test_y = train_test_split(
        images.astype(np.float32) / 16, labels, test_size=360, random_state=0, stratify=labels
    )
    train_x, valid_x, train_y, valid_y = train_test_split(
        rest_x, rest_y, test_size=360, random_state=0, stratify=rest_y
    )
    return (train_x, train_y), (valid_x, valid_y), (test_x, test_y)


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


def batches_of(data, epochs, seed=0):
    """Shuffled batches of all epochs, stacked: [steps, batch, ...]."""
    images, labels = data
    per_epoch = len(labels) // BATCH
    draw = np.random.default_rng(seed)
    order = np.concatenate([draw.permutation(len(labels))[: per_epoch * BATCH] for _ in range(epochs)])
    return images[order].reshape(-1, BATCH, 64), labels[order].reshape(-1, BATCH)


def error(params, batch):
    return (logits(params, batch[0]).argmax(-1) != batch[1]).mean()


def eval_fn(params, batch):
    """What the search judges: the loss on images that are not trained on; and the share of wrong answers."""
    return {"loss": loss_fn(params, batch), "error": error(params, batch)}


def with_test(params, images):
    """The same, and on images that the search never saw."""
    validation, test = images
    return {
        **eval_fn(params, validation),
        "test_loss": loss_fn(params, test),
        "test_error": error(params, test),
    }


def interval(values):
    """The mean over seeds, the first axis, and half the width of its interval: Student's, at 95%."""
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * values.std(axis=0, ddof=1) / len(values) ** 0.5
    return values.mean(axis=0), half


def main():
    start = time.perf_counter()
    OUT.mkdir(exist_ok=True)
    training, validation, test = load()
    batches = batches_of(training, EPOCHS)
    steps, per_epoch = len(batches[1]), len(training[1]) // BATCH

    def schedule(peak):
        return olr.one_cycle_schedule(peak, steps)

    problem = olr.Problem(loss_fn, eval_fn=eval_fn)
    found = olr.lr_find(problem, init, optax.adam, batches, eval_batch=validation, schedule=schedule)
    print(found, end="\n\n")
    found.plot().figure.savefig(OUT / "lr_find.png", dpi=120)

    peaks = found.learning_rate * np.array([0.1, 1.0, 10.0])
    trained = olr.lr_sweep(
        loss_fn,
        init,
        optax.adam,
        batches,
        learning_rates=peaks,
        schedule=schedule,
        eval_fn=with_test,
        eval_batch=(validation, test),
        seeds=SEEDS,
        key=jax.random.key(1),
        stop_factor=1e9,
    )
    measured = {"loss": trained.eval_losses, **trained.eval_metrics}
    names = ("loss", "test_loss", "test_error")
    columns = [interval(measured[name][..., -1]) for name in names]
    print(f"What the search judged, and what it never saw: means of {SEEDS} new seeds, 95% intervals")
    print(f"{'one cycle, with a peak of':<28}{'validation loss':>18}{'test loss':>18}{'test error':>18}")
    for at, name in enumerate(("a tenth", "the suggestion", "ten times")):
        validated, tested, wrong = ((mean[at], half[at]) for mean, half in columns)
        cells = [f"{mean:.3f} +- {half:.3f}" for mean, half in (validated, tested)]
        cells.append(f"{wrong[0]:.1%} +- {wrong[1]:.1%}")
        print(f"{name:<16}{peaks[at]:>12.3g}" + "".join(f"{cell:>18}" for cell in cells))
    means = {name: mean.tolist() for name, (mean, _) in zip(names, columns, strict=True)}
    (OUT / "digits.json").write_text(json.dumps({"found": found.to_dict(), "peaks": peaks.tolist(), **means}))

    curve = olr.lr_sweep(
        problem,
        init,
        optax.adam,
        batches,
        learning_rates=found.learning_rate * 3.0 ** np.arange(-3, 5),
        num_steps=10 * per_epoch,
        eval_batch=validation,
        eval_every=per_epoch,
        stop_factor=1e9,  # rates that are too high go on, to be looked at
    )
    plots.plot_histories(curve, steps_per_epoch=per_epoch).figure.savefig(OUT / "histories.png", dpi=120)
    print(f"\nPictures: {OUT / 'lr_find.png'}, {OUT / 'histories.png'}")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
