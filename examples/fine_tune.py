"""Fine-tune on 25 labeled images: which of five pairs (0 or 1, 2 or 3, ...) is it? The network has learned all ten
digits before. One rate for all of it, a faster head, the head alone, the body later, and the same from scratch.

Each way takes the same steps at its best rate of ten by validation loss, from twelve seeds, each with a body of its
own and its own 25 images. Gains over one rate are paired, seed by seed; intervals are Student's, at 95%.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import scipy.stats
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import optax_lr as olr
import optax_lr.nnx

SEEDS, BATCH, STEPS, RATES = 12, 5, 80, np.geomspace(3e-4, 0.3, 10)
OUT = pathlib.Path("out")

images, digits = load_digits(return_X_y=True)
INPUTS, DIGITS = jnp.asarray(images / 16, jnp.float32), jnp.asarray(digits)
PAIRS = DIGITS // 2
# Rows to learn the digits from; to draw labeled images from; to choose a rate by; to measure with.
OLD, rest = train_test_split(np.arange(len(digits)), train_size=900, random_state=0, stratify=digits)
POOL, rest = train_test_split(rest, train_size=300, random_state=0, stratify=digits[rest])
VALID, TEST = train_test_split(rest, train_size=200, random_state=0, stratify=digits[rest])
POOLS = jnp.stack([POOL[PAIRS[POOL] == pair][:55] for pair in range(5)])
# Which of a seed's labeled images each step sees.
ORDER = np.random.default_rng(0).permuted(np.tile(np.arange(25), (16, 1)), axis=1).reshape(STEPS, BATCH)


PRETRAINING = optax.adam(olr.one_cycle_schedule(3e-3, 400))


class Network(nnx.Module):
    def __init__(self, classes, rngs):
        self.body = nnx.Sequential(
            nnx.Linear(64, 64, rngs=rngs), nnx.relu, nnx.Linear(64, 64, rngs=rngs), nnx.relu
        )
        self.head = nnx.Linear(64, classes, rngs=rngs)
        # This seed's labeled images, five of each pair.
        self.labeled = nnx.Variable(
            jax.random.permutation(rngs(), POOLS, axis=1, independent=True)[:, :5].ravel()
        )

    def __call__(self, rows):
        return self.head(self.body(INPUTS[rows]))


def cross_entropy(model, rows, labels):
    return optax.softmax_cross_entropy_with_integer_labels(model(rows), labels[rows]).mean()


def loss_fn(model, batch):
    return cross_entropy(model, model.labeled[batch], PAIRS)


def eval_fn(model, eval_batch):
    valid, test = eval_batch
    return {
        "loss": cross_entropy(model, valid, PAIRS),
        "accuracy": (model(test).argmax(-1) == PAIRS[test]).mean(),
    }


@functools.partial(nnx.jit, donate_argnums=(0, 1))  # model and optimizer are updated in their own memory
def pretrain_step(model, optimizer, rows):
    optimizer.update(model, nnx.grad(cross_entropy)(model, rows, DIGITS))


@functools.cache
def pretrained(seed, steps):
    """A network that has learned the digits for so many steps, with a new head."""
    model = Network(10, nnx.Rngs(seed))
    optimizer = nnx.Optimizer(model, PRETRAINING, wrt=nnx.Param)
    for rows in np.random.default_rng(seed).choice(OLD, (steps, 32)):
        pretrain_step(model, optimizer, rows)
    model.head = nnx.Linear(64, 5, rngs=nnx.Rngs(seed))
    return model


def sweep(make, steps=400):
    """Test accuracies [seeds, evaluations] at the best rate, and that rate."""
    curve = olr.nnx.lr_sweep(
        loss_fn,
        lambda key: pretrained(int(jax.random.randint(key, (), 0, 10**9)), steps),
        make,
        ORDER,
        schedule=lambda rate: olr.one_cycle_schedule(rate, STEPS),
        learning_rates=RATES,
        seeds=SEEDS,
        eval_fn=eval_fn,
        eval_batch=(VALID, TEST),
        eval_every=10,
        stop_factor=1e9,
    )
    best = int(np.nanargmin(curve.eval_losses[..., -1].mean(0)))
    return curve.eval_metrics["accuracy"][:, best], RATES[best]


LABELS = olr.label_by_path({"body/.*": "body", "head/.*": "head"})
EVEN = {"body": 1.0, "head": 1.0}
WAYS = {
    "one rate": lambda rate: optax.adam(rate),
    "head x 10": lambda rate: olr.fine_tune(optax.adam(rate), {"body": 0.1, "head": 1.0}, LABELS),
    "head x 100": lambda rate: olr.fine_tune(optax.adam(rate), {"body": 0.01, "head": 1.0}, LABELS),
    "head alone": lambda rate: olr.fine_tune(optax.adam(rate), {"head": 1.0}, LABELS, frozen="body"),
    "body from step 40": lambda rate: olr.fine_tune(optax.adam(rate), EVEN, LABELS, starts={"body": 40}),
}


def interval(values):
    """The mean over the seeds, and half the width of its interval."""
    return values.mean(0), scipy.stats.t.ppf(0.975, SEEDS - 1) * values.std(0, ddof=1) / SEEDS**0.5


def main():
    """Accuracies in percent, [seeds, evaluations], by way."""
    OUT.mkdir(exist_ok=True)
    found = {name: sweep(make) for name, make in WAYS.items()} | {"from scratch": sweep(optax.adam, steps=0)}
    accuracies = {name: 100 * accuracy for name, (accuracy, _) in found.items()}
    axes = plt.subplots(figsize=(8, 4.6), layout="constrained")[1]
    print(f"Test accuracy in percent, {SEEDS} seeds{'':>10}gain over one rate")
    for name, values in accuracies.items():
        (mean, half), (gain, spread) = (
            interval(values[:, -1]),
            interval(values[:, -1] - accuracies["one rate"][:, -1]),
        )
        words = "" if name == "one rate" else f"{gain:>+12.1f} ± {spread:.1f}"
        print(f"  {name:<18} at {found[name][1]:<7.2g}{mean:>6.1f} ± {half:.1f}{words}")
        axes.plot(np.arange(10, STEPS + 1, 10), values.mean(0), ".-", label=name)
    axes.set(
        xlabel="step", ylabel="test accuracy in percent, mean of the seeds", title="Fine-tuning on 25 images"
    )
    axes.legend()
    axes.grid(alpha=0.25)
    axes.figure.savefig(OUT / "fine_tune.png", dpi=120)
    print("Picture: out/fine_tune.png")
    return accuracies


if __name__ == "__main__":
    main()
