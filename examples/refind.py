"""Find the rate again when a run goes on with other data: `lr_refind`, from the state that the run is in.

A network has learned handwritten digits whose pixels are from 0 to 1, at a rate that `lr_find` found. Then images
come from another scanner, whose pixels are from 0 to 4. The run goes on at the old rate, at a tenth of it, and at
the rate that is found again, with the steps that are left as its horizon. Five runs each, on images it never saw.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import optax_lr as olr

BATCH, EPOCHS, SEEDS, UNIT = 32, 8, 5, 4.0


def batches_of(images, labels, seed):
    """Shuffled batches of all epochs, stacked: [steps, batch, ...]."""
    draw, per_epoch = np.random.default_rng(seed), len(labels) // BATCH
    order = np.concatenate([draw.permutation(len(labels))[: per_epoch * BATCH] for _ in range(EPOCHS)])
    return images[order].reshape(-1, BATCH, 64), labels[order].reshape(-1, BATCH)


def init(key):
    first, second = jax.random.split(key)
    return jax.random.normal(first, (64, 64)) * (2 / 64) ** 0.5, jax.random.normal(second, (64, 10)) / 8


def logits(params, images):
    return jax.nn.relu(images @ params[0]) @ params[1]


def loss_fn(params, batch):
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, batch[0]), batch[1]).mean()


def optimizer(rate):
    return optax.sgd(rate, momentum=0.9)


@jax.jit
def train(params, state, batches, rate):
    def step(carry, batch):
        params, state = carry
        updates, state = optimizer(rate).update(jax.grad(loss_fn)(params, batch), state)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, state), batches)[0]


def main():
    images, labels = load_digits(return_X_y=True)
    x, rest_x, y, rest_y = train_test_split(
        images.astype(np.float32) / 16, labels, test_size=0.5, random_state=0, stratify=labels
    )
    valid_x, test_x, valid_y, test_y = train_test_split(rest_x, rest_y, test_size=0.5, random_state=0)
    first = batches_of(x, y, 0)
    steps = len(first[1])
    old = olr.lr_find(
        loss_fn,
        init,
        optimizer,
        first,
        eval_batch=(valid_x, valid_y),
        horizon=steps,
        schedule=olr.constant_schedule,
    ).learning_rate
    found, rates = {"the old rate": [], "a tenth of it": [], "found again": []}, []
    for seed in range(SEEDS):
        start = init(jax.random.key(seed))
        params, state = train(start, optimizer(0.0).init(start), batches_of(x, y, seed), old)
        ahead = batches_of(UNIT * x, y, seed + SEEDS)
        again = olr.lr_refind(
            loss_fn, params, optimizer, ahead, learning_rate=old, opt_state=state, horizon=steps,
            eval_batch=(UNIT * valid_x, valid_y), stop_factor=1e6,  # the first batch's loss may be near 0
        )  # fmt: skip
        rates.append(again.learning_rate)
        for name, rate in zip(found, (old, old / 10, again.learning_rate), strict=True):
            trained, _ = train(params, state, ahead, rate)
            right = jnp.mean(logits(trained, UNIT * test_x).argmax(-1) == test_y)
            found[name].append((float(loss_fn(trained, (UNIT * test_x, test_y))), 100 * float(right)))
    print(f"The old rate is {old:.2g}; found again, {min(rates):.2g} to {max(rates):.2g}.")
    print(f"{SEEDS} runs of {steps} further steps: test loss, and accuracy in percent with its 95% interval")
    for name, values in found.items():
        (loss, right), spread = np.mean(values, 0), np.std(values, 0, ddof=1)[1] / SEEDS**0.5
        print(f"  {name:<15}{loss:>9.3f}{right:>9.1f} ± {scipy.stats.t.ppf(0.975, SEEDS - 1) * spread:.1f}")


if __name__ == "__main__":
    main()
