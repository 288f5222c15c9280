"""Losses over learning rates: the picture of a search."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from ..finder import suggest
from ..finder.curve import LRCurve
from ..finder.losses import as_reported
from ..finder.suggestion import Suggestion
from .style import Axes, Color, accent, grid, ink, legend, loss_scale, muted, new_axes

Regimes: TypeAlias = Mapping[str, tuple[float, float]] | Sequence[Sequence[Any]]

# Of more rates than this, a ramp's, no dots are drawn.
FEW_RATES = 60
# Rules that lie closer than this share of the view have their names side by side.
BESIDE = 0.05
# A span of a smaller share has its name turned.
NARROW = 0.15
# How much wider and higher the view is with shorter runs in it: a factor of the rates, a share of the losses.
WIDER, HIGHER = 5.0, 0.4
DASHES = ("--", "-.", ":", (0, (1, 3)), (0, (8, 3)), (0, (3, 1, 1, 1, 1, 1)))


def plot_lr_curve(
    curve: LRCurve,
    *,
    suggestion: Suggestion | None = None,
    regimes: Regimes | None = None,
    shorter: bool = True,
    rules: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Loss against learning rate: the mean over the seeds, their range as a band, and which rates diverged.

    A curve that another metric judges is drawn by that metric.

    Args:
      curve: the curve of a sweep.
      suggestion: drawn as a line, its interval as a shaded span; its full runs beside the curve.
      regimes: spans of rates to shade, low and high by name: `{"good": (0.01, 0.3)}`. A bound that is 0,
        infinite or NaN is the edge of the picture. A list of `(name, low, high)` will do.
      shorter: whether the suggestion's shorter runs are drawn too, thin and gray in the background.
      rules: whether to draw what the common rules say of `curve`, each with its name at the line.
      ax: the axes to draw on; new ones by default.

    Returns:
      The axes. The legend has at most six entries and covers no other axes.

    Raises:
      ValueError: every rate diverged, or a span of `regimes` is no pair of numbers.

    >>> import matplotlib.pyplot as plt
    >>> rates = np.geomspace(0.01, 1.0, 5)
    >>> losses = (1 + np.log(rates / 0.1) ** 2).astype(np.float32)[None, :, None]
    >>> curve = LRCurve(rates, losses, None, np.array([], np.int32), np.full((1, 5), -1, np.int32))
    >>> axes = plot_lr_curve(curve, regimes={"good": (0.03, 0.3)})
    >>> axes.get_xlabel(), axes.texts[0].get_text()
    ('learning rate', 'good')
    >>> plt.close(axes.figure)
    """
    losses = as_reported(curve, suggest.final_losses(curve))
    axes = new_axes(ax)
    drawn, rates = [_draw_curve(axes, curve, losses)], [curve.learning_rates]
    if suggestion is not None and suggestion.finalists is not None:
        drawn.append(_draw_full_runs(axes, suggestion.finalists))
        rates.append(suggestion.finalists.learning_rates)
    at_end = " at the end" * (curve.losses.shape[-1] > 1)
    axes.set(xscale="log", xlabel="learning rate", ylabel=f"{curve.judged_by}{at_end}")
    loss_scale(axes, *drawn)
    others = suggestion.shorter if suggestion is not None and shorter else ()
    if others:
        _draw_shorter(axes, others, curve.losses.shape[-1])
    _cross(axes, curve.learning_rates[~curve.stable], f"diverged, {_length(curve)}")
    if others:
        _narrow(axes, np.concatenate(rates))
    if rules:
        _draw_rules(axes, curve)
    if suggestion is not None:
        span = f"suggestion {suggestion.learning_rate:.3g}\n({suggestion.low:.2g} to {suggestion.high:.2g})"
        axes.axvspan(suggestion.low, suggestion.high, color=accent(0), alpha=0.15, lw=0)
        axes.axvline(suggestion.learning_rate, color=accent(0), lw=2, label=span)
    grid(axes)
    if regimes:
        _shade(axes, regimes)
    legend(axes)
    return axes


def _length(curve: LRCurve) -> str:
    steps = curve.losses.shape[-1]
    return f"{steps} steps" if steps > 1 else "one step a rate"


def _means(curve: LRCurve) -> np.ndarray:
    """The mean over the seeds; NaN where a rate diverged, and everywhere if all did."""
    if not curve.stable.any():
        return np.full(len(curve.stable), np.nan)
    return as_reported(curve, suggest.final_losses(curve).mean(axis=0))


def _draw_curve(axes: Axes, curve: LRCurve, losses: np.ndarray) -> np.ndarray:
    kept = np.isfinite(losses).all(axis=0)
    rates, values, color = curve.learning_rates[kept], losses[:, kept], ink(axes)
    label = _length(curve)
    if len(losses) > 1:
        label += f",\nmean and range of {len(losses)} seeds"
        axes.fill_between(rates, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, lw=0)
    dots = "o-" if len(rates) <= FEW_RATES else "-"
    axes.plot(rates, values.mean(axis=0), dots, color=color, ms=4, lw=1.6, label=label, zorder=3)
    return values


def _draw_full_runs(axes: Axes, curve: LRCurve) -> np.ndarray:
    means = _means(curve)
    label = f"full runs, {_length(curve)}"
    axes.plot(curve.learning_rates, means, "s-", color=accent(1), ms=6, lw=1.4, label=label, zorder=3)
    return means


def _draw_shorter(axes: Axes, curves: tuple[LRCurve, ...], steps: int) -> None:
    """Thin lines behind the curve, one legend entry for all; their diverged rates as small gray crosses.

    The view is that of the curve, somewhat higher: runs of a few steps would flatten it. Where longer runs learned
    nothing, the curve is one of fewer steps.
    """
    low, high = axes.get_ylim()
    top = high * (high / low) ** HIGHER if axes.get_yscale() == "log" else high + HIGHER * (high - low)
    lengths = sorted({curve.losses.shape[-1] for curve in curves})
    words = " and ".join(map(str, lengths)) if len(lengths) < 3 else f"{lengths[0]} to {lengths[-1]}"
    kind = "shorter" if lengths[-1] < steps else "other"
    label, color = f"{kind} runs, {words} steps", muted(axes)
    every = [_means(curve) for curve in curves]
    for curve, means in zip(curves, every, strict=True):
        axes.plot(curve.learning_rates, means, ".-", color=color, ms=3, lw=0.8, label=label, zorder=1.5)
        label = f"_{label}"
    lost = np.concatenate([curve.learning_rates[~curve.stable] for curve in curves])
    _cross(axes, np.unique(lost), label, background=True)
    axes.set_ylim(np.nanmin([low, *np.concatenate(every)]), min(top, axes.get_ylim()[1]))


def _narrow(axes: Axes, rates: np.ndarray) -> None:
    """The view of the rates, somewhat wider, whatever shorter runs tried; with all crosses of the rates in it."""
    left, right = axes.get_xlim()
    axes.set_xlim(max(left, rates.min() / WIDER), min(right, rates.max() * WIDER))


def _cross(axes: Axes, rates: np.ndarray, label: str, *, background: bool = False) -> None:
    """Crosses at the upper edge, where no loss can be drawn."""
    if len(rates):
        height, size, color = (0.91, 5, muted(axes)) if background else (0.96, 7, accent(3))
        style: dict[str, Any] = {"color": color, "ms": size, "mew": 1.6, "label": label}
        axes.plot(rates, np.full(len(rates), height), "x", transform=axes.get_xaxis_transform(), **style)


def _draw_rules(axes: Axes, curve: LRCurve) -> None:
    """A line for each rule; names of rules that agree stand beside each other."""
    found = sorted(suggest.classic(curve).items(), key=lambda item: item[1])
    left, right = axes.get_xlim()
    label = f"common rules, {_length(curve)}"
    together: list[tuple[float, str]] = []
    for (name, rate), dashes in zip(found, itertools.cycle(DASHES), strict=False):
        axes.axvline(rate, color=muted(axes), lw=1, ls=dashes, label=label, zorder=1.4)
        label = f"_{label}"
        if together and rate < together[-1][0] * (right / left) ** BESIDE:
            words = f"{together.pop()[1]}\n{name} {rate:.2g}"
        else:
            words = f"{name} {rate:.2g}"
        together.append((rate, words))
    for rate, words in together:
        _name(axes, rate, words, muted(axes, 0.7), height=0.09, rotation=90, fontsize=8, ha="right")


def _name(axes: Axes, rate: float, text: str, color: Color, *, height: float = 0.02, **options: Any) -> None:
    """Words near the lower edge, at a rate."""
    across = axes.get_xaxis_transform()
    axes.text(
        rate, height, text, color=color, va="bottom", transform=across, clip_on=True, zorder=4, **options
    )


def _shade(axes: Axes, regimes: Regimes) -> None:
    """Spans with their names at the lower edge; the view stays as it is."""
    left, right = axes.get_xlim()
    for name, *bounds in regimes.items() if isinstance(regimes, Mapping) else regimes:
        span: Any = bounds[0] if len(bounds) == 1 else bounds
        if np.shape(span) != (2,):
            raise ValueError(f"regimes must give low and high for each name, got {span!r} for {name!r}.")
        low, high = (float(bound) for bound in span)
        start = max(low, left) if np.isfinite(low) and low > 0 else left
        end = min(high, right) if np.isfinite(high) else right
        if start >= end:
            continue
        color = accent(2) if "good" in name else accent(3) if "high" in name else muted(axes)
        axes.axvspan(start, end, color=color, alpha=0.12, lw=0, zorder=0.5)
        turned = 90 * (end / start < (right / left) ** NARROW)
        _name(axes, (start * end) ** 0.5, name, color, fontsize=9, ha="center", rotation=turned)
    axes.set_xlim(left, right)
