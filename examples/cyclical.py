"""Cyclical rates on handwritten digits: a range test, its bounds, and three modes beside fixed and one-cycle rates.

The network is trained for 16 epochs at each of twelve peaks. Under cycles the loss is worse at each peak and better
at each end of a cycle, so runs are compared at their ends, each schedule at its best peak by validation loss.
"""

import pathlib

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import scipy.stats
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import optax_lr as olr

BATCH, EPOCHS, SEEDS = 32, 16, 5
OUT = pathlib.Path("out")

images, labels = load_digits(return_X_y=True)
x, valid_x, y, valid_y = train_test_split(
    images.astype(np.float32) / 16, labels, test_size=540, random_state=0, stratify=labels
)
EPOCH = len(y) // BATCH
STEPS, HALF = EPOCH * EPOCHS, 2 * EPOCH  # a cycle of four epochs
ORDER = np.concatenate(
    [np.random.default_rng(epoch).permutation(len(y))[: EPOCH * BATCH] for epoch in range(EPOCHS)]
)
BATCHES = x[ORDER].reshape(STEPS, BATCH, 64), y[ORDER].reshape(STEPS, BATCH)


def init(key):
    first, second = jax.random.split(key)
    return jax.random.normal(first, (64, 64)) * (2 / 64) ** 0.5, jax.random.normal(second, (64, 10)) / 8


def momentum(rate):
    return optax.sgd(rate, momentum=0.9)


def loss_fn(params, batch):
    logits = jax.nn.relu(batch[0] @ params[0]) @ params[1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


# From a peak to a schedule; the base is a tenth of the peak. exp_range halves its peaks in a third of the run.
SCHEDULES = {
    "fixed": olr.constant_schedule,
    "one cycle": lambda peak: olr.one_cycle_schedule(peak, STEPS),
    "triangular": lambda peak: olr.cyclical_schedule(peak / 10, peak, HALF),
    "triangular2": lambda peak: olr.cyclical_schedule(peak / 10, peak, HALF, mode="triangular2"),
    "exp_range": lambda peak: olr.cyclical_schedule(
        peak / 10, peak, HALF, mode="exp_range", decay_rate=0.5 ** (3 / STEPS)
    ),
}


def train(peaks, schedule):
    return olr.lr_sweep(
        loss_fn, init, momentum, BATCHES, learning_rates=peaks, schedule=schedule, seeds=SEEDS,
        eval_batch=(valid_x, valid_y), eval_every=EPOCH, stop_factor=1e9,
    )  # fmt: skip


def bounds():
    """The bounds as taught: the ramp's loss begins to fall, and stops falling. And those of `cyclical_bounds`."""
    ramp = olr.lr_range_test(loss_fn, init, momentum, BATCHES)
    runs = olr.lr_sweep(
        loss_fn, init, momentum, BATCHES, learning_rates=np.geomspace(1e-3, 3, 15), num_steps=200,
        eval_batch=(valid_x, valid_y),
    )  # fmt: skip
    losses = ramp.losses[0, :, 0]
    lowest = float(ramp.learning_rates[np.nanargmin(losses)])
    return ramp, {"where the ramp is lowest": lowest, "a quarter of that": lowest / 4,
                  "cyclical_bounds of runs": olr.suggest.cyclical_bounds(runs)[1]}  # fmt: skip


def main():
    OUT.mkdir(exist_ok=True)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(17, 4.6), layout="constrained")
    ramp, found = bounds()
    left.plot(ramp.learning_rates, ramp.losses[0, :, 0])
    print(f"Validation loss after {EPOCHS} epochs of triangular cycles, mean of {SEEDS} seeds")
    bounded = {}
    for index, (name, peak) in enumerate(found.items()):
        bounded[name] = peak, float(train([peak], SCHEDULES["triangular"]).eval_losses[:, 0, -1].mean())
        print(f"  peak {peak:<6.2g} {name:<26}{bounded[name][1]:>7.3f}")
        left.axvline(peak, color=f"C{index + 1}", ls=":", label=f"{name}: {peak:.2g}")
    left.set(
        xscale="log",
        xlabel="learning rate of the ramp",
        ylabel="training loss",
        title="A range test of 100 steps",
    )
    left.legend(fontsize=8)

    peaks = np.geomspace(0.01, 0.6, 12)
    curves = {name: train(peaks, schedule) for name, schedule in SCHEDULES.items()}
    histories = {
        name: curve.eval_losses[:, curve.eval_losses[..., -1].mean(0).argmin()]
        for name, curve in curves.items()
    }
    fixed = histories["fixed"][..., -1]
    target = fixed.mean()
    print(f"\n{'':<12}{'peak':>5}{'loss at the end':>18}{'less fixed, paired':>22}   epochs to {target:.3f}")
    epochs, ends = np.arange(1, EPOCHS + 1), {}
    for name, values in histories.items():
        mean, less = values.mean(0), values[:, -1] - fixed
        half = scipy.stats.t.ppf(0.975, SEEDS - 1) * less.std(ddof=1) / SEEDS**0.5
        peak = peaks[curves[name].eval_losses[..., -1].mean(0).argmin()]
        reached = [int(epoch) for epoch in epochs[mean <= target]] or [None]
        ends[name] = {"peak": peak, "loss": mean[-1], "less": less.mean(), "half": half, "epochs": reached[0]}
        words = "" if name == "fixed" else f"{less.mean():+.4f} ± {half:.4f}"
        print(f"{name:<12}{peak:>5.2g}{mean[-1]:>18.4f}{words:>22}   {reached[0] or 'never'}")
        if name in ("fixed", "one cycle", "triangular"):
            middle.plot(epochs, mean, ".-", label=f"{name}, {peak:.2g}")
        right.plot(peaks, curves[name].eval_losses[..., -1].mean(0), ".-", label=name)
    high = curves["triangular"].eval_losses[:, -2].mean(0)
    hump = {"peak": peaks[-2], "before": high[3], "at the peak": high[5], "after": high[7]}
    middle.plot(epochs, high, ".--", color="C4", label=f"triangular, {peaks[-2]:.2g}")
    words = f"{high[3]:.3f} before the second one, {high[5]:.3f} at its peak, {high[7]:.3f} at its end"
    print(f"\nThe hump of cycles with a peak of {peaks[-2]:.2g}: {words}")
    middle.set(
        yscale="log",
        xlabel="epoch",
        ylabel="validation loss",
        title="Over time: cycles end every four epochs",
    )
    right.set(xscale="log", xlabel="rate, or peak", ylabel="validation loss at the end", title="Each peak")
    right.set_ylim(0.9 * min(end["loss"] for end in ends.values()), 3 * target)
    middle.legend()
    right.legend()
    figure.savefig(OUT / "cyclical.png", dpi=120)
    print("Picture: out/cyclical.png")
    return {"bounds": bounded, "ends": ends, "hump": hump}


if __name__ == "__main__":
    main()
