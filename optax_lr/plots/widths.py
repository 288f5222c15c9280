"""What the updates of each parameter change, over widths: the picture of a coordinate check."""

from typing import Any

import numpy as np

from ..layers.width_check import WidthCheck
from .style import MOST_ENTRIES, Axes, accent, grid, legend, log_ticks, muted, new_axes


def plot_width_check(check: WidthCheck, *, ax: Axes | None = None) -> Axes:
    """The change of the loss by each parameter over the width, both logarithmic, with slopes in the legend.

    Lines are flat where the rate carries over. Those that are not are drawn in color, the worst first.

    Args:
      check: what `check_width_transfer` returned.
      ax: the axes to draw on; new ones by default.

    Returns:
      The axes. The legend has at most six entries.

    >>> import matplotlib.pyplot as plt
    >>> change = {"w": np.array([1.0, 4.0]), "b": np.array([1.0, 1.0])}
    >>> axes = plot_width_check(WidthCheck(np.array([64, 256]), change, {"w": 1.0, "b": 0.0}))
    >>> [text.get_text() for text in axes.get_legend().get_texts()]
    ['w, slope +1.00', 'the other 1, slopes near 0']
    >>> plt.close(axes.figure)
    """
    axes = new_axes(ax)
    wrong = check.wrong
    named, rest = wrong[: MOST_ENTRIES - 2], wrong[MOST_ENTRIES - 2 :]
    right = [path for path in check.changes if path not in wrong]
    for index, path in enumerate(named):
        label = f"{path}, slope {check.slopes[path]:+.2f}"
        _line(axes, check, path, color=accent(index), marker="o", lw=1.6, label=label, zorder=3)
    groups: tuple[tuple[list[str], dict[str, Any], str], ...] = (
        (rest, {"color": accent(len(named)), "ls": "--"}, f"the other {len(rest)} that are not 0"),
        (right, {"color": muted(axes)}, f"the other {len(right)}, slopes near 0"),
    )
    for paths, style, label in groups:
        for index, path in enumerate(paths):
            _line(axes, check, path, marker=".", lw=1, label=f"{'_' * (index > 0)}{label}", **style)
    axes.set(xscale="log", yscale="log", xlabel="width", ylabel="change of the loss by the updates")
    axes.set_xticks(check.widths, [str(width) for width in check.widths])
    axes.xaxis.minorticks_off()
    drawn = np.concatenate([values[values > 0] for values in check.changes.values()] or [np.ones(1)])
    if len(drawn):
        log_ticks(axes.yaxis, float(np.nanmax(drawn) / np.nanmin(drawn)))
    grid(axes)
    legend(axes)
    return axes


def _line(axes: Axes, check: WidthCheck, path: str, **style: Any) -> None:
    values = check.changes[path]
    axes.plot(check.widths, np.where(values > 0, values, np.nan), **style)
