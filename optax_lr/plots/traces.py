"""The answers of a search with a budget, round by round."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist

from ..finder.suggestion import Round
from .style import Axes, accent, grid, legend, new_axes


def plot_trace(trace: Sequence[Round], *, ax: Axes | None = None) -> Axes:
    """The answer and its interval over what the search had cost, and the expected excess on a second scale.

    Args:
      trace: `found.trace` of a search with a budget.
      ax: the axes to draw on; new ones by default.

    Returns:
      The axes of the rates, both scales logarithmic.

    Raises:
      ValueError: the trace is empty.

    >>> import matplotlib.pyplot as plt
    >>> trace = [Round(0.1, 0.01, 1.0, 0.2, 0.5, 0.1), Round(0.2, 0.1, 0.4, 0.01, 1.0, 0.6)]
    >>> axes = plot_trace(trace)
    >>> [text.get_text() for text in axes.get_legend().get_texts()]
    ['answer', 'interval', 'expected excess']
    >>> plt.close(axes.figure)
    """
    if not len(trace):
        raise ValueError("trace is empty: only a search with a budget has one.")
    axes = new_axes(ax)
    price = [known.price for known in trace]
    answer = axes.plot(
        price, [known.learning_rate for known in trace], color=accent(0), marker="o", label="answer"
    )
    low, high = [known.low for known in trace], [known.high for known in trace]
    style: dict[str, Any] = {"color": accent(0), "label": "interval"}
    if len(trace) > 1:
        band: Artist = axes.fill_between(price, low, high, alpha=0.15, lw=0, **style)
    else:  # a band over a single price has no width
        band = axes.vlines(price, low, high, lw=1.6, **style)
    axes.set(xscale="log", yscale="log", xlabel="price (runs of the horizon)", ylabel="learning rate")
    other = axes.twinx()
    expected = np.maximum([known.expected_excess for known in trace], 1e-6)
    excess = other.plot(price, expected, color=accent(1), ls="--", marker=".", label="expected excess")
    other.set(yscale="log", ylabel="expected excess, of the fall")
    grid(axes)
    # Above: the numbers of the second scale stand beside the axes.
    legend(axes, above=True, handles=[*answer, band, *excess])
    return axes
