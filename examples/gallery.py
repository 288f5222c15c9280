"""Every schedule in one picture, under each panel the calls that draw it: writes docs/schedules.png.

A call is its line's name, in its color; the values are of a run of 200 steps.
"""

import pathlib
import textwrap

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

import optax_lr as olr
from optax_lr.plots import plot_schedules

STEPS = 200
TARGET = pathlib.Path(__file__).parents[1] / "docs" / "schedules.png"

GALLERY = {
    "From one value to another, along any curve": [
        "anneal_schedule(1.0, 0.0, 200)",
        "anneal_schedule(1.0, 0.0, 200, curve=curves.linear)",
        "anneal_schedule(1.0, 0.0, 200, curve=curves.rex)",
        "anneal_schedule(1.0, 0.0, 200, curve=curves.sqrt)",
        "anneal_schedule(1.0, 0.0, 200, curve=curves.tanh())",
    ],
    "One cycle, and its momentum": [
        "one_cycle_schedule(1.0, 200)",
        "one_cycle_schedule(1.0, 200, three_phase=True)",
        "one_cycle_momentum_schedule(200)",
        "slanted_triangular_schedule(0.8, 200)",
    ],
    "Warm-up, stable, decay": [
        "warmup_stable_decay_schedule(1.0, warmup_steps=20, stable_steps=130, decay_steps=50,"
        " decay_curve=curves.sqrt)",
        "warmup_stable_decay_schedule(0.8, warmup_steps=6, stable_steps=40, decay_steps=20, num_cycles=3)",
        "warmup_cosine_decay_schedule(0.0, 0.9, 20, 200, end_value=0.1)",
    ],
    "Warm restarts": [
        "sgdr_schedule(1.0, 0.0, Cycles(29, growth=2))",
        "sgdr_schedule(0.6, 0.0, Cycles(60, growth=0.7))",
        "sgdr_schedule(0.8, 0.0, 50, peak_decay=0.7, warmup_steps=8)",
    ],
    "Cyclical rates and momenta": [
        "cyclical_schedule(0.1, 1.0, 25)",
        "cyclical_schedule(0.1, 0.8, 25, mode='triangular2')",
        "cyclical_momentum_schedule(0.8, 0.9, 25)",
    ],
    "In steps, and in cycles": [
        "exponential_decay(0.95, 40, 0.5, staircase=True)",
        "piecewise_constant_schedule(0.9, {100: 0.2, 150: 0.2})",
        "polynomial_schedule(0.8, 0.0, 2.0, 50, cycle=True)",
    ],
    "Exponential and inverse decay": [
        "exponential_decay(1.0, 50, 0.4)",
        "inverse_time_schedule(1.0, 20, 0.5)",
        "inverse_sqrt_schedule(1.0, 20)",
    ],
    "Knots and ramps": [
        "knot_schedule({0: 0.0, 40: 0.8, 100: 0.3, 200: 0.0})",
        "geometric_schedule(1e-3, 1.0, 200)",
        "linear_schedule(0.5, 0.1, 100, 50)",
    ],
    "Composed": [
        "with_warmup(exponential_decay(0.9, 60, 0.4, staircase=True), 20)",
        "multiply_schedules(cyclical_schedule(0.2, 1.0, 12), anneal_schedule(1.0, 0.1, 200))",
        "in_epochs(anneal_schedule(0.7, 0.0, 10), 20, staircase=True)",
    ],
}


def main() -> None:
    names = vars(olr) | {name: getattr(olr, name) for name in olr.__all__}
    figure, grid = plt.subplots(3, 3, figsize=(15, 14), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.12)
    for ax, (title, calls) in zip(grid.flat, GALLERY.items(), strict=True):
        plot_schedules({call: eval(call, names) for call in calls}, STEPS, right=(), ax=ax)
        ax.get_legend().remove()
        ax.set(ylim=(0, 1.05), ylabel="")
        ax.set_title(title, fontsize=12)
        ax.spines[["top", "right"]].set_visible(False)
        height = -32.0
        for call, line in zip(calls, ax.lines, strict=True):
            text = textwrap.fill(call, 66, subsequent_indent="    ")
            place = {"xy": (0, 0), "xycoords": "axes fraction", "textcoords": "offset points", "va": "top"}
            style = {"color": line.get_color(), "fontsize": 8, "family": "monospace"}
            ax.annotate(text, xytext=(-8, height), **place, **style)
            height -= 11.5 * (1 + text.count("\n"))
    TARGET.parent.mkdir(exist_ok=True)
    figure.savefig(TARGET, dpi=100)
    print(f"wrote {TARGET.relative_to(TARGET.parents[1])}")


if __name__ == "__main__":
    main()
