"""Find a learning rate on handwritten digits, train with it, and see it.

The finder trains copies of a small network at many rates; then five networks each are trained with a one-cycle
schedule whose peak is a tenth of the rate that was found, that rate, and ten times it. Writes two pictures to out/.
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

BATCH, EPOCHS, HIDDEN = 64, 30, 128
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


def eval_fn(params, batch):
    errors = logits(params, batch[0]).argmax(-1) != batch[1]
    return {"loss": loss_fn(params, batch), "error": errors.mean()}


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

    # What the search judged, on images that it never saw, by the means of five other seeds.
    peaks = found.learning_rate * np.array([0.1, 1.0, 10.0])
    trained = olr.lr_sweep(
        problem,
        init,
        optax.adam,
        batches,
        learning_rates=peaks,
        schedule=schedule,
        eval_batch=test,
        seeds=5,
        key=jax.random.key(1),
        stop_factor=1e9,
    )
    losses, errors = trained.eval_losses[..., -1].mean(0), trained.eval_metrics["error"][..., -1].mean(0)
    print("one cycle with a peak of          test loss  test error")
    for name, peak, loss, error in zip(
        ("a tenth", "the suggestion", "ten times"), peaks, losses, errors, strict=True
    ):
        print(f"{name:<18}{peak:>12.3g}{loss:>13.3f}{error:>12.1%}")

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
