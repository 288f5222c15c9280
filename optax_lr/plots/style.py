"""What all pictures share: axes, colors of the style in use, legends, scales, and PNG files."""

import io
from collections.abc import Sequence
from typing import Any, TypeAlias

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import ListedColormap, to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

Color: TypeAlias = tuple[float, float, float]

MOST_ENTRIES = 6
"""The most entries of a legend."""

# How much brighter or darker than the background a line's color is at least, of 1.
CONTRAST = 0.35
# A loss that moves by less than this factor is drawn on a linear scale: a logarithmic one has no numbers there.
SPAN_OF_LOGS = 3.0


def new_axes(ax: Axes | None, height: float = 4.6) -> Axes:
    """The axes to draw on: the given ones, or those of a new figure."""
    return ax or plt.subplots(figsize=(7.5, height), layout="constrained")[1]


def figure(axes: Axes) -> Figure:
    """The whole figure that the axes are in."""
    whole = axes.get_figure(root=True)
    if whole is None:
        raise ValueError("ax must be axes of a figure, got axes that were removed from theirs.")
    return whole


def ink(axes: Axes) -> Color:
    """The color of the axes' words: dark on a light style, light on a dark one."""
    return to_rgb(axes.xaxis.label.get_color())


def paper(axes: Axes) -> Color:
    """The color behind the axes."""
    face = to_rgba(axes.get_facecolor())
    return to_rgb(face if face[3] else figure(axes).get_facecolor())


def muted(axes: Axes, share: float = 0.45) -> Color:
    """A color for the background: so much ink on the paper."""
    mixed = share * np.array(ink(axes)) + (1 - share) * np.array(paper(axes))
    return tuple(mixed.tolist())


def brightness(colors: Any) -> np.ndarray:
    """From 0 for black to 1 for white; [*colors]."""
    return np.asarray(colors)[..., :3] @ np.array([0.299, 0.587, 0.114])


def sequential(axes: Axes, count: int) -> list[Color]:
    """So many colors in an order, from the style's color map; without those that the background would hide."""
    every = plt.get_cmap()(np.linspace(0, 1, 256))
    shown = every[np.abs(brightness(every) - brightness(paper(axes))) > CONTRAST]
    usable = shown if len(shown) else every
    return [to_rgb(usable[at]) for at in np.linspace(0, len(usable) - 1, count).round().astype(int)]


def listed(colors: Sequence[Color]) -> ListedColormap:
    """A color map of some colors, in equal parts."""
    return ListedColormap(list(colors))


def accent(index: int) -> Color:
    """A color of the style's cycle: 0 for an answer, 2 for what is good, 3 for what diverged."""
    return to_rgb(f"C{index}")


def short(values: np.ndarray) -> list[str]:
    """Numbers with as few digits as tell them apart."""
    for digits in range(2, 7):
        words = [f"{value:.{digits}g}" for value in values]
        if len(set(words)) == len(set(values.tolist())):
            break
    return words


def legend(axes: Axes, *, above: bool = False, inside: str | None = "best", **options: Any) -> None:
    """A legend that covers no other axes: beside or above its own, or inside.

    Outside there is room only if the figure lays out its axes itself ("constrained"). Else the legend stands
    `inside`, or above in any case if that is None.
    """
    constrained = isinstance(figure(axes).get_layout_engine(), ConstrainedLayoutEngine)
    place: dict[str, Any] = {"loc": inside, "fontsize": 8}
    if above and (constrained or inside is None):
        place = {
            "loc": "lower left",
            "bbox_to_anchor": (0, 1.01),
            "ncols": 3,
            "frameon": False,
            "fontsize": 9,
        }
    elif constrained:
        place = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "frameon": False, "fontsize": 9}
    axes.legend(**(place | {"borderaxespad": 0.3} | options))


def loss_scale(axes: Axes, *values: Any) -> None:
    """A logarithmic vertical scale for positive values that span enough, with numbers on it."""
    drawn = np.concatenate([np.ravel(each) for each in values] or [np.zeros(0)])
    known = drawn[np.isfinite(drawn)]
    if len(known) and known.min() > 0 and known.max() > SPAN_OF_LOGS * known.min():
        axes.set_yscale("log")
        log_ticks(axes.yaxis, known.max() / known.min())


def log_ticks(axis: Axis, span: float) -> None:
    """Plain numbers at each decade, and at 2 and 5 if there are few decades."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if span < 300 else (1.0,)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def grid(axes: Axes) -> None:
    """Faint lines, unless the style has its own."""
    if not mpl.rcParams["axes.grid"]:
        axes.grid(alpha=0.25)


def png(axes: Axes) -> bytes:
    """The picture as a PNG file. The figure is closed, so that a notebook shows it once.

    >>> png(plt.subplots()[1])[1:4]
    b'PNG'
    """
    buffer, whole = io.BytesIO(), figure(axes)
    whole.savefig(buffer, format="png", bbox_inches="tight")
    plt.close(whole)
    return buffer.getvalue()
