"""Pictures: the only room that imports matplotlib. Every function draws on `ax`, or on new axes, and returns it."""

import io
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import ScalarLike
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from . import checks, suggest
from .compose import sample_schedule
from .results import LRCurve, Suggestion
from .types import Schedule

COLORS = plt.get_cmap("viridis")
ACCENT = "#d62728"
LANES_IN_LEGEND = 14


def plot_lr_curve(
    curve: LRCurve, *, suggestion: Suggestion | None = None, rules: bool = False, ax: Axes | None = None
) -> Axes:
    """Loss against learning rate: the mean over the seeds, their range as a band, and where lanes diverged.

    Args:
      curve: the curve of a sweep.
      suggestion: drawn as a line, its interval as a shaded span.
      rules: whether the common rules are drawn as lines, too.
      ax: where to draw; new axes by default.

    Raises:
      ValueError: every rate diverged.
    """
    axes = ax or plt.subplots(figsize=(7.5, 4.6), layout="constrained")[1]
    losses = suggest.final_losses(curve)
    kept = np.isfinite(losses).all(axis=0)
    rates, values = curve.learning_rates, losses[:, kept]
    steps = curve.losses.shape[-1]
    kind = "training" if curve.eval_losses is None else "validation"
    axes.plot(
        rates[kept], values.mean(axis=0), "o-", color="black", ms=4, lw=1.4, label=f"{steps} steps", zorder=3
    )
    if len(losses) > 1:
        band = (values.min(axis=0), values.max(axis=0))
        axes.fill_between(rates[kept], *band, color="black", alpha=0.15, lw=0, label="range of seeds")
    if not kept.all():
        top = np.full((~kept).sum(), 0.97)
        crosses = axes.plot(rates[~kept], top, "x", color=ACCENT, ms=7, mew=1.8, label="diverged")
        crosses[0].set_transform(axes.get_xaxis_transform())
    if suggestion is not None and suggestion.finalists is not None:
        full = suggestion.finalists
        ends = suggest.final_losses(full).mean(axis=0)
        label = f"full runs, {full.losses.shape[-1]} steps"
        axes.plot(full.learning_rates, ends, "s-", color=COLORS(0.4), ms=6, lw=1.4, label=label, zorder=3)
    if suggestion is not None:
        span = f"interval {suggestion.low:.2g} to {suggestion.high:.2g}"
        axes.axvspan(suggestion.low, suggestion.high, color=COLORS(0.6), alpha=0.25, lw=0, label=span)
        label = f"suggestion {suggestion.learning_rate:.3g}"
        axes.axvline(suggestion.learning_rate, color=COLORS(0.4), lw=2, label=label)
    if rules:
        said = suggest.classic(curve).items()
        for (name, rate), dashes in zip(said, ("--", "-.", ":", (0, (1, 3))), strict=False):
            axes.axvline(rate, color="gray", lw=1.2, ls=dashes, label=f"{name} {rate:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel=f"{kind} loss at the end")
    if (values > 0).all():
        axes.set_yscale("log")
        _log_ticks(axes.yaxis)
    axes.grid(alpha=0.25)
    return _legend_outside(axes)


def plot_histories(curve: LRCurve, *, steps_per_epoch: int | None = None, ax: Axes | None = None) -> Axes:
    """Training loss over time, one line a rate, colored by rate; a cross stands where a run was stopped.

    Args:
      curve: the curve of a sweep; the mean over the seeds that are still running is drawn.
      steps_per_epoch: average the losses over epochs of that many steps; by default every step is drawn.
      ax: where to draw; new axes by default.
    """
    axes = ax or plt.subplots(figsize=(7.5, 4.6), layout="constrained")[1]
    every, rates = steps_per_epoch or 1, curve.learning_rates
    norm = LogNorm(rates.min(), rates.max() if rates.max() > rates.min() else rates.min() * 1.01)
    losses = np.where(np.isfinite(curve.losses), curve.losses, np.nan)
    # What blows up is cut off above, so that the rates that train fill the picture.
    ceiling = 10 * np.nanmax(np.abs(losses[:, :, 0]))
    for lane, rate in enumerate(rates):
        epochs = [losses[:, lane, start : start + every] for start in range(0, losses.shape[-1], every)]
        x = np.array([i + 1 for i, epoch in enumerate(epochs) if np.isfinite(epoch).any()])
        y = np.minimum([np.nanmean(epochs[i - 1]) for i in x], ceiling)
        stopped = (curve.diverged_at[:, lane] >= 0).any()
        label = f"{rate:.2g}" + (", diverged" if stopped else "")
        axes.plot(x, y, ".-", ms=4, color=COLORS(norm(rate)), lw=1.4, label=label)
        if stopped and len(x):
            axes.plot(x[-1], y[-1], "x", color=ACCENT, ms=8, mew=2, zorder=3, clip_on=False)
    unit = "step" if steps_per_epoch is None else "epoch"
    axes.set(xlabel=unit, ylabel="training loss" + ("" if steps_per_epoch is None else ", mean of the epoch"))
    if np.nanmin(losses) > 0:
        axes.set_yscale("log")
        _log_ticks(axes.yaxis)
    axes.grid(alpha=0.25)
    if len(rates) > LANES_IN_LEGEND:
        axes.figure.colorbar(ScalarMappable(norm, COLORS), ax=axes, label="learning rate")
        return axes
    return _legend_outside(axes, title="learning rate", reverse=True)


def plot_schedules(
    schedules: Mapping[str, Schedule],
    num_steps: int,
    *,
    steps_per_epoch: ScalarLike | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Schedules over the steps of a run, one line each.

    Args:
      schedules: schedule by name, at least one; names stand in the legend.
      num_steps: how many steps are drawn, from 0 on, at least 1.
      steps_per_epoch: where given, the axis counts epochs. The schedules still read steps.
      ax: where to draw; None for a new figure.

    Returns:
      The axes, for the caller to show or save: `ax.figure.savefig("schedules.png")`.

    Raises:
      ValueError: there is no schedule, one is not a function, or a number is out of its range.

    >>> import optax_lr as olr
    >>> ax = plot_schedules({"cosine": olr.anneal_schedule(0.1, 0.0, 100)}, 100)
    >>> ax.get_xlabel(), len(ax.lines)
    ('step', 1)
    >>> plt.close(ax.figure)
    """
    if not isinstance(schedules, Mapping) or not schedules:
        raise ValueError(f"schedules must be a dict with at least one name and schedule, got {schedules!r}.")
    epoch = 1 if steps_per_epoch is None else checks.steps("steps_per_epoch", steps_per_epoch)
    lines = {name: np.asarray(sample_schedule(part, num_steps)) for name, part in schedules.items()}
    axes = ax or plt.subplots(figsize=(7.5, 4.2), layout="constrained")[1]
    for name, values in lines.items():
        axes.plot(np.arange(len(values)) / np.asarray(epoch), values, lw=1.8, label=name)
    axes.set(xlabel="step" if steps_per_epoch is None else "epoch", ylabel="value")
    axes.grid(alpha=0.25)
    return _legend_outside(axes)


def png(axes: Axes) -> bytes:
    """The picture as a PNG file. The figure is closed, so that a notebook shows it once."""
    buffer = io.BytesIO()
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.savefig(buffer, format="png", bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()


def _log_ticks(axis: Axis) -> None:
    """Numbers at 1, 2 and 5 of each decade: a loss often spans less than one."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _legend_outside(axes: Axes, **options: Any) -> Axes:
    """A legend beside the axes, where it covers no data."""
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, frameon=False, fontsize=9, **options
    )
    return axes
