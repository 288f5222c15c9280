"""Find the learning rate again every three epochs, and compare with fixed schedules.

A small network learns handwritten digits with momentum, five times each: at rates that `lr_refind` finds on the
way, under a one-cycle schedule whose peak `lr_find` found, and at the constant rate that it found. Writes
out/refind.png: the rates over time.
"""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from digits import BATCH, OUT, batches_of, init, load, logits, loss_fn

import optax_lr as olr

EPOCHS, EVERY, SEEDS = 24, 3, 5


def optimizer(rate):
    return optax.sgd(rate, momentum=0.9)


@jax.jit
def train(params, state, batches, rates):
    """One step for each batch, each at its own rate."""

    def step(carry, batch_and_rate):
        (params, state), (batch, rate) = carry, batch_and_rate
        updates, state = optimizer(rate).update(jax.grad(loss_fn)(params, batch), state)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, state), (batches, rates))[0]


def accuracy(params, data):
    return float((logits(params, data[0]).argmax(-1) == data[1]).mean())


def train_and_refind(params, batches, validation, rate, stretch):
    """A new rate before every stretch of steps; the trained parameters and the rates."""
    state, rates = optimizer(rate).init(params), []
    for begin in range(0, len(batches[1]), stretch):
        ahead = jax.tree.map(lambda x, begin=begin: x[begin : begin + stretch], batches)
        rate = olr.lr_refind(
            loss_fn, params, optimizer, ahead, learning_rate=rate, opt_state=state, eval_batch=validation
        ).learning_rate
        rates += [rate] * stretch
        params, state = train(params, state, ahead, jnp.full(stretch, rate))
    return params, rates


def main():
    OUT.mkdir(exist_ok=True)
    training, validation, test = load()
    per_epoch = len(training[1]) // BATCH
    steps = EPOCHS * per_epoch
    one_cycle = lambda peak: olr.one_cycle_schedule(peak, steps)  # noqa: E731
    search = {"eval_batch": validation, "horizon": steps}
    data = batches_of(training, EPOCHS)
    constant = olr.lr_find(loss_fn, init, optimizer, data, **search).learning_rate
    peak = olr.lr_find(loss_fn, init, optimizer, data, schedule=one_cycle, **search).learning_rate
    fixed = {
        f"constant, {constant:.2g}": np.full(steps, constant),
        f"one-cycle, peak {peak:.2g}": np.asarray(olr.sample_schedule(one_cycle(peak), steps)),
    }
    scores, chosen = {}, []
    for seed in range(SEEDS):
        batches, start = batches_of(training, EPOCHS, seed + 1), init(jax.random.key(seed + 1))
        ends = {
            name: train(start, optimizer(0.0).init(start), batches, jnp.asarray(rates))[0]
            for name, rates in fixed.items()
        }
        ends["found again"], rates = train_and_refind(start, batches, validation, constant, EVERY * per_epoch)
        chosen.append(rates)
        for name, params in ends.items():
            scores.setdefault(name, []).append((float(loss_fn(params, test)), accuracy(params, test)))

    print(f"{SEEDS} runs of {steps} steps each    test loss          test accuracy")
    for name, values in scores.items():
        (loss, right), (loss_error, right_error) = np.mean(values, 0), np.std(values, 0, ddof=1) / SEEDS**0.5
        print(f"{name:<28}{loss:.4f} ± {loss_error:.4f}    {right:.2%} ± {right_error:.2%}")

    axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")[1]
    epochs = np.arange(steps) / per_epoch
    for rates, color in zip(fixed.values(), ("gray", "#1f77b4"), strict=True):
        axes.plot(epochs, rates, color=color, lw=1.6)
    for rates in chosen:
        axes.plot(epochs, rates, color="#d62728", lw=1, alpha=0.7)
    axes.set(
        xlabel="epoch", ylabel="learning rate", yscale="log", ylim=(min(map(min, chosen)) / 2, constant * 5)
    )
    names = [*fixed, f"found again, {SEEDS} runs"]
    axes.legend([axes.lines[0], axes.lines[1], axes.lines[2]], names, frameon=False)
    axes.grid(alpha=0.25)
    axes.figure.savefig(OUT / "refind.png", dpi=120)
    print("Picture: out/refind.png")


if __name__ == "__main__":
    main()
