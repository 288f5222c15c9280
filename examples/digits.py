"""Find a learning rate on handwritten digits, train with it, and see it.

The finder trains copies of a small network at many rates; then one network each is trained with a one-cycle
schedule whose peak is the rate that was found, a tenth of it and ten times it. Writes three pictures to out/.
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


def train(peak, batches, key):
    """One run with a one-cycle schedule: the losses and the trained parameters."""
    steps = len(batches[1])
    optimizer = optax.adam(olr.one_cycle_schedule(peak, steps))

    @jax.jit
    def run(params):
        def step(carry, batch):
            params, state = carry
            loss, gradients = jax.value_and_grad(loss_fn)(params, batch)
            updates, state = optimizer.update(gradients, state)
            return (optax.apply_updates(params, updates), state), loss

        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), batches)
        return params, losses

    return run(init(key))


def accuracy(params, data):
    return float((logits(params, data[0]).argmax(-1) == data[1]).mean())


def main():
    start = time.perf_counter()
    OUT.mkdir(exist_ok=True)
    training, validation, test = load()
    batches = batches_of(training, EPOCHS)
    steps, per_epoch = len(batches[1]), len(training[1]) // BATCH

    found = olr.lr_find(
        loss_fn,
        init,
        optax.adam,
        batches,
        eval_batch=validation,
        horizon=steps,
        schedule=lambda peak: olr.one_cycle_schedule(peak, steps),
    )
    print(found, end="\n\n")
    found.plot(rules=True).figure.savefig(OUT / "lr_find.png", dpi=120)

    print("one-cycle training at       peak   validation   test")
    for name, factor in {"a tenth": 0.1, "the suggestion": 1.0, "ten times": 10.0}.items():
        params, _ = train(found.learning_rate * factor, batches, jax.random.key(1))
        valid, held_out = accuracy(params, validation), accuracy(params, test)
        print(f"{name:<22}{found.learning_rate * factor:>10.3g}   {valid:>9.1%}   {held_out:>5.1%}")

    rates = found.learning_rate * 3.0 ** np.arange(-3, 7)
    curve = olr.lr_sweep(
        loss_fn,
        init,
        optax.adam,
        batches,
        learning_rates=rates,
        num_steps=10 * per_epoch,
        stop_factor=1e9,  # rates that are too high go on, to be looked at
    )
    plots.plot_histories(curve, steps_per_epoch=per_epoch).figure.savefig(OUT / "histories.png", dpi=120)

    peaks = {"suggested peak": 1.0, "a tenth": 0.1, "ten times": 10.0}
    schedules = {
        name: olr.one_cycle_schedule(found.learning_rate * factor, steps) for name, factor in peaks.items()
    }
    axes = plots.plot_schedules(schedules, steps, steps_per_epoch=per_epoch)
    axes.set(yscale="log", ylabel="learning rate")
    axes.figure.savefig(OUT / "schedule.png", dpi=120)
    print(
        f"\nPictures: {', '.join(str(OUT / name) for name in ('lr_find.png', 'histories.png', 'schedule.png'))}"
    )
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
