"""Every schedule in one picture: writes docs/schedules.png. Run with `python examples/gallery.py`."""

import pathlib

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

import optax_lr as olr
from optax_lr.plots import plot_schedules

STEPS = 200
TARGET = pathlib.Path(__file__).parents[1] / "docs" / "schedules.png"

GALLERY = {
    "anneal_schedule": {
        name: olr.anneal_schedule(1.0, 0.0, STEPS, curve=curve)
        for name, curve in {
            "cosine": olr.curves.cosine,
            "linear": olr.curves.linear,
            "rex": olr.curves.rex,
            "sqrt": olr.curves.sqrt,
            "tanh": olr.curves.tanh(),
        }.items()
    },
    "one_cycle_schedule": {
        "rate": olr.one_cycle_schedule(1.0, STEPS),
        "three_phase": olr.one_cycle_schedule(1.0, STEPS, three_phase=True),
        "momentum": olr.one_cycle_momentum_schedule(STEPS),
    },
    "warmup_stable_decay_schedule": {
        "one cycle": olr.warmup_stable_decay_schedule(
            1.0, warmup_steps=20, stable_steps=130, decay_steps=50, decay_curve=olr.curves.sqrt
        ),
        "num_cycles=3": olr.warmup_stable_decay_schedule(
            0.8, warmup_steps=6, stable_steps=40, decay_steps=20, num_cycles=3
        ),
    },
    "sgdr_schedule": {
        "growth=2": olr.sgdr_schedule(1.0, 0.0, olr.Cycles(29, growth=2)),
        "growth=0.7": olr.sgdr_schedule(0.6, 0.0, olr.Cycles(60, growth=0.7)),
        "warm-up, peak_decay": olr.sgdr_schedule(0.8, 0.0, olr.Cycles(50), peak_decay=0.7, warmup_steps=8),
    },
    "cyclical_schedule": {
        "triangular": olr.cyclical_schedule(0.1, 1.0, 25),
        "triangular2": olr.cyclical_schedule(0.1, 0.8, 25, mode="triangular2"),
        "momentum": olr.cyclical_momentum_schedule(0.8, 0.9, 25),
    },
    "Optax's, exact": {
        "warmup_cosine_decay": olr.warmup_cosine_decay_schedule(0.0, 1.0, 20, STEPS, end_value=0.1),
        "exponential_decay, staircase": olr.exponential_decay(0.95, 40, 0.5, staircase=True),
        "piecewise_constant": olr.piecewise_constant_schedule(0.9, {100: 0.2, 150: 0.2}),
        "polynomial, cycle": olr.polynomial_schedule(0.8, 0.0, 2.0, 50, cycle=True),
    },
    "exponential and inverse decay": {
        "exponential": olr.exponential_decay(1.0, 50, 0.4),
        "inverse time": olr.inverse_time_schedule(1.0, 20, 0.5),
        "inverse sqrt": olr.inverse_sqrt_schedule(1.0, 20),
    },
    "slanted, knots and ramp": {
        "slanted_triangular": olr.slanted_triangular_schedule(1.0, STEPS),
        "knot": olr.knot_schedule({0: 0.0, 40: 0.8, 100: 0.3, 200: 0.0}),
        "geometric": olr.geometric_schedule(1e-3, 1.0, STEPS),
    },
    "composed": {
        "with_warmup": olr.with_warmup(olr.exponential_decay(0.9, 60, 0.4, staircase=True), 20),
        "multiplied": olr.multiply_schedules(
            olr.cyclical_schedule(0.2, 1.0, 12), olr.anneal_schedule(1.0, 0.1, STEPS)
        ),
        "in_epochs, staircase": olr.in_epochs(olr.anneal_schedule(0.7, 0.0, 10), 20, staircase=True),
    },
}


def main() -> None:
    figure, grid = plt.subplots(3, 3, figsize=(13, 8.5), sharex=True, layout="constrained")
    for ax, (title, schedules) in zip(grid.flat, GALLERY.items(), strict=True):
        plot_schedules(schedules, STEPS, right=(), ax=ax)
        ax.set_title(title, fontsize=11)
        ax.legend(fontsize=8, frameon=False, loc="upper right")
        ax.set_ylim(0, 1.42)
        ax.spines[["top", "right"]].set_visible(False)
        ax.label_outer()
    TARGET.parent.mkdir(exist_ok=True)
    figure.savefig(TARGET, dpi=110)
    print(f"wrote {TARGET.relative_to(TARGET.parents[1])}")


if __name__ == "__main__":
    main()
