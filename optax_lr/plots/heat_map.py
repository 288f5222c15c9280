"""The loss over two hyperparameters, as a heat map."""

import contextlib
from collections import Counter

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.patches import Rectangle

from ..finder import suggest
from ..finder.curve import LRCurve
from ..finder.losses import as_reported
from ..finder.suggestion import Suggestion
from .style import Axes, accent, brightness, ink, legend, log_ticks, new_axes, paper, plt, short

LABELS_ON_AXIS = 12
# Of the horizontal axis; more are turned.
LETTERS_AN_INCH = 9
# Losses above so many times the best share a color, so that those near the best can be told apart.
TOP = 10.0
# Points of the smallest numbers that can be read, and the width of a digit in the height of its font.
SMALLEST, LARGEST, DIGIT = 4.5, 10.0, 0.62


def plot_grid(curve: LRCurve, *, suggestion: Suggestion | None = None, ax: Axes | None = None) -> Axes:
    """The loss at the end over two hyperparameters: the mean over the seeds, one cell a lane, its value in it.

    The lower the loss, or the better the metric that judges, the brighter the cell. The best one is framed. A cross
    stands where any seed diverged. What is the same in all lanes is named beside the colors.
    Losses above ten times the best share one color; their values stand in the cells.

    Args:
      curve: the curve of a sweep over lanes in which two hyperparameters vary, as `grid` makes them.
      suggestion: what a search over such lanes answered, drawn as a star where it lies among them.
      ax: the axes to draw on; new ones by default.

    Returns:
      The axes, with the first hyperparameter to the right and the second one upward, in equal steps.

    Raises:
      ValueError: not two hyperparameters vary, or two lanes have the same two values.

    >>> import optax_lr as olr
    >>> lanes = olr.grid(learning_rate=[0.1, 0.3], weight_decay=[0.0, 0.01, 0.1])
    >>> losses = np.arange(1, 7, dtype=np.float32).reshape(1, 6, 1)
    >>> curve = LRCurve(lanes.pop("learning_rate"), losses, None, np.array([], np.int32),
    ...                 np.full((1, 6), -1, np.int32), hyperparameters=lanes)
    >>> axes = plot_grid(curve)
    >>> axes.get_xlabel(), axes.get_ylabel(), axes.texts[0].get_text()
    ('learning_rate', 'weight_decay', '1')
    >>> plt.close(axes.figure)
    """
    names, ticks, places = _places(curve)
    cells = np.full([len(values) for values in ticks], np.nan)
    for lane, place in enumerate(places):
        with contextlib.suppress(ValueError):  # It diverged.
            cells[place] = as_reported(curve, suggest.final_losses(curve.take([lane]))).mean()
    axes = new_axes(ax)
    for axis, values, name in zip((axes.xaxis, axes.yaxis), ticks, names, strict=True):
        shown = np.arange(0, len(values), -(-len(values) // LABELS_ON_AXIS))
        axis.set_ticks(shown + 0.5, short(values[shown]))
        axis.set_label_text(name)
    if (
        sum(map(len, short(ticks[0][:LABELS_ON_AXIS])))
        > LETTERS_AN_INCH * axes.get_window_extent().width / axes.figure.dpi
    ):
        axes.tick_params("x", labelrotation=45)
    axes.set(xlim=(0, cells.shape[0]), ylim=(0, cells.shape[1]))
    if np.isfinite(cells).any():
        fixed = [
            f"{name} {short(values[:1])[0]}" for name, values in curve.lanes.items() if name not in names
        ]
        label = ", ".join([f"{curve.judged_by} after {curve.losses.shape[-1]} steps", *fixed])
        _draw_cells(axes, cells, label, most=curve.mode == "max")
        best = divmod(int(np.nanargmin(as_reported(curve, cells))), cells.shape[1])
        where = ", ".join(f"{values[at]:.3g}" for values, at in zip(ticks, best, strict=True))
        label = f"best, {cells[best]:.3g} at {where}"
        frame = Rectangle(best, 1, 1, fill=False, ec=accent(3), lw=2.5, label=label, clip_on=False, zorder=3)
        axes.add_patch(frame)
    if suggestion is not None:
        _draw_suggestion(axes, suggestion, names, ticks)
    lost = np.array([place for place in places if np.isnan(cells[place])]).reshape(-1, 2) + 0.5
    if len(lost):
        axes.plot(*lost.T, "x", color=ink(axes), ms=8, mew=1.6, label="diverged")
    legend(axes, above=True, inside=None)
    return axes


def _draw_suggestion(axes: Axes, suggestion: Suggestion, names: list[str], ticks: list[np.ndarray]) -> None:
    """A star: in the row of its combination, and among the rates, which are in equal steps, by their logarithms."""
    values = {"learning_rate": suggestion.learning_rate, **suggestion.hyperparameters}
    place = []
    for name, axis in zip(names, ticks, strict=True):
        known, value = (np.log(axis), np.log(values[name])) if (axis > 0).all() else (axis, values[name])
        place.append(np.interp(value, known, np.arange(len(axis)) + 0.5))
    place[1] += 0.3  # beside the number of the cell
    label = "suggestion, " + ", ".join(f"{values[name]:.3g}" for name in names)
    axes.plot(*place, "*", color=accent(0), mec=ink(axes), ms=13, label=label, zorder=4)


def _places(curve: LRCurve) -> tuple[list[str], list[np.ndarray], list[tuple[int, int]]]:
    """The two hyperparameters that vary, the values of each, and for each lane which of them it has."""
    varying = {name: values for name, values in curve.lanes.items() if len(np.unique(values)) > 1}
    if len(varying) != 2:
        found = ", ".join(varying) or "none does"
        raise ValueError(
            f"plot_grid needs a curve in which two hyperparameters vary, got {len(varying)}: {found}."
        )
    ticks, indices = zip(
        *(np.unique(values, return_inverse=True) for values in varying.values()), strict=True
    )
    places = [(int(one), int(other)) for one, other in zip(*indices, strict=True)]
    if Counter(places).most_common(1)[0][1] > 1:
        raise ValueError(
            "plot_grid needs one lane for each pair of values, got several; curve.take picks some."
        )
    return list(varying), list(ticks), places


def _draw_cells(axes: Axes, cells: np.ndarray, label: str, *, most: bool) -> None:
    """Colors from the style's map, the brightest for the best cell, and the numbers on them."""
    every = plt.get_cmap()
    colors = every if (brightness(every(0.0)) < brightness(every(1.0))) == most else every.reversed()
    low, high = np.nanmin(cells), np.nanmax(cells)
    above = bool(low > 0 and high > TOP * low and not most)
    top = TOP * low if above else high
    norm = LogNorm(low, top) if low > 0 and top > low else Normalize(low, top)
    mesh = axes.pcolormesh(np.ma.masked_invalid(cells.T), cmap=colors, norm=norm, ec=paper(axes), lw=1)
    bar = axes.figure.colorbar(mesh, ax=axes, label=label, extend="max" if above else "neither")
    if not most:
        bar.ax.invert_yaxis()  # The best is on top.
    if isinstance(norm, LogNorm):
        log_ticks(bar.ax.yaxis, top / low)
    texts = {place: f"{value:.3g}" for place, value in np.ndenumerate(cells) if np.isfinite(value)}
    box = axes.get_window_extent()
    width, height = (72 / axes.figure.dpi * size / n for size, n in zip(box.size, cells.shape, strict=True))
    digits = DIGIT * max(map(len, texts.values()))
    flat, upright = (
        min(LARGEST, 0.6 * low, 0.85 * wide / digits) for wide, low in ((width, height), (height, width))
    )
    turned = 0 if flat >= min(SMALLEST, upright) else 90
    if max(flat, upright) < SMALLEST:
        return
    for (column, row), text in texts.items():
        color = "black" if brightness(colors(norm(cells[column, row]))) > 0.5 else "white"
        place = (column + 0.5, row + 0.5)
        size = upright if turned else flat
        axes.text(*place, text, color=color, fontsize=size, rotation=turned, ha="center", va="center")
