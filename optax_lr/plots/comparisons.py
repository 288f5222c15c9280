"""The runs of `compare`: loss over steps, a color for each candidate."""

from typing import Any

import numpy as np

from ..finder.compared import Comparison
from .style import Axes, accent, grid, legend, loss_scale, muted, new_axes, plt, sequential


def plot_comparison(compared: Comparison, *, ax: Axes | None = None) -> Axes:
    """Loss over steps at each candidate's found peak: the mean over the seeds, and their range as a band.

    A dotted line is the target, a dot the step at which a candidate's mean loss is first there.

    Args:
      compared: what `compare` returned. A candidate that diverged is in the legend alone.
      ax: the axes to draw on; new ones by default.

    Returns:
      The axes.

    >>> from optax_lr.finder.curve import LRCurve
    >>> losses = np.geomspace(3, 1, 40, dtype=np.float32) * np.ones((2, 1, 1), np.float32)
    >>> runs = LRCurve(np.array([0.1]), losses, None, np.array([], np.int32), np.full((2, 1), -1, np.int32))
    >>> axes = plot_comparison(Comparison({"sgd": None}, {"sgd": runs}, target=2.0))
    >>> axes.get_ylabel(), len(axes.lines)
    ('training loss, mean and range of 2 seeds', 3)
    >>> plt.close(axes.figure)
    """
    axes = new_axes(ax)
    cycle = len(plt.rcParams["axes.prop_cycle"].by_key().get("color", []))
    names = compared.names
    many = len(names) > cycle
    colors = sequential(axes, len(names)) if many else [accent(index) for index in range(len(names))]
    drawn = []
    for name, color in zip(names, colors, strict=True):
        steps, losses = compared.history(name)
        peak = compared.peak(name)
        rate = "" if peak is None else f", {peak:.2g}"
        if not len(steps):
            axes.plot([], [], color=color, label=f"{name}{rate}, diverged")
            continue
        mean = losses.mean(axis=0)
        drawn.append(losses)
        axes.fill_between(steps, losses.min(axis=0), losses.max(axis=0), color=color, alpha=0.15, lw=0)
        axes.plot(steps, mean, color=color, lw=1.8, label=f"{name}{rate}", zorder=3)
        reached = compared.steps_to_target(name)
        if reached is not None:
            height = mean[np.flatnonzero(steps == reached)[0]]
            axes.plot(reached, height, "o", color=color, ms=6, zorder=4)
    axes.axhline(compared.target, color=muted(axes), lw=1, ls=":", zorder=1)
    loss_scale(axes, *drawn)
    axes.set(xlabel="step", ylabel=_axis_name(compared))
    grid(axes)
    legend(axes)
    return axes


def _axis_name(compared: Comparison) -> str:
    runs: Any = compared.runs[compared.first]
    return f"{runs.judged_by}, mean and range of {len(runs.losses)} seeds"
