"""Float64 formulas in NumPy, written from the sources, as oracles. They import nothing from the package."""

import numpy as np


def linear(p):
    return p


def cosine(p):
    return (1 - np.cos(np.pi * p)) / 2


def anneal(t, init_value, end_value, transition_steps, curve=cosine):
    p = min(t / transition_steps, 1.0)
    return init_value + (end_value - init_value) * curve(p)


def one_cycle(
    t,
    peak_value,
    total_steps,
    pct_start=0.3,
    div_factor=25.0,
    final_div_factor=1e4,
    three_phase=False,
    curve=cosine,
):
    first = peak_value / div_factor
    last = first / final_div_factor
    top = pct_start * total_steps - 1
    phases = [(top, first, peak_value), (total_steps - 1, peak_value, last)]
    if three_phase:
        phases = [(top, first, peak_value), (2 * top, peak_value, first), (total_steps - 1, first, last)]
    start = 0.0
    for end, low, high in phases:
        if t <= end:
            return low + (high - low) * curve((t - start) / (end - start))
        start = end
    return last
