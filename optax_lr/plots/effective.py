"""Effective rates over the steps of a run."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import checks
from ..effective import EffectiveRates
from .style import Axes, accent, grid, legend, new_axes

_NAMES = {
    "update_to_gradient": "|update| / |gradient|",
    "update_to_weight": "|update| / |weight|",
    "gradient_norm": "|gradient|",
}
DASHES = ("-", "--", ":", "-.")
# Of more updates than this, each point is the median of several.
POINTS = 60


def plot_effective_rates(
    histories: Mapping[str, EffectiveRates], quantity: str = "update_to_gradient", *, ax: Axes | None = None
) -> Axes:
    """Effective rates over steps, on logarithmic scales: where they shrink as 1 / sqrt(t) the line is straight.

    Args:
      histories: by name, for instance of an optimizer, what `effective_rates` gave at every step: each number an
        array, [steps], as `jax.lax.scan` stacks them. A color for each name, a dash for each label.
      quantity: "update_to_gradient", "update_to_weight" or "gradient_norm".
      ax: the axes to draw on; new ones by default.

    Returns:
      The axes. Of more than 60 updates a point is the median of several, the band their middle four fifths. What
      is 0 is not drawn: there was nothing to divide by.

    Raises:
      ValueError: there is no history, one is not an array of steps, or `quantity` is unknown.

    >>> import matplotlib.pyplot as plt
    >>> rates = EffectiveRates({"all": np.array([0.1, 0.05])}, {"all": np.ones(2)}, {"all": np.ones(2)})
    >>> axes = plot_effective_rates({"adagrad": rates})
    >>> axes.get_ylabel(), axes.lines[0].get_ydata().tolist()
    ('|update| / |gradient|', [0.1, 0.05])
    >>> plt.close(axes.figure)
    """
    checks.choice("quantity", quantity, tuple(_NAMES))
    if not histories:
        raise ValueError("histories must have at least one name and its effective rates, got none.")
    axes = new_axes(ax)
    for index, (name, rates) in enumerate(histories.items()):
        values: Mapping[str, Any] = getattr(rates, quantity)
        for at, (label, each) in enumerate(values.items()):
            numbers = np.asarray(each, np.float64)
            if numbers.ndim != 1:
                raise ValueError(f"histories[{name!r}] must be arrays [steps], got shape {numbers.shape}.")
            steps, low, middle, high = _summary(numbers)
            style: dict[str, Any] = {"color": accent(index), "ls": DASHES[at % len(DASHES)]}
            axes.fill_between(steps, low, high, color=accent(index), alpha=0.12, lw=0)
            axes.plot(steps, middle, lw=1.6, label=name if len(values) == 1 else f"{name}, {label}", **style)
    axes.set(xlabel="update", ylabel=_NAMES[quantity], xscale="log", yscale="log")
    grid(axes)
    legend(axes)
    return axes


def _summary(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Updates, from 1, and three quantiles of what is above 0 in windows that widen with the logarithm of time."""
    count = len(numbers)
    starts = np.arange(count)
    if count > POINTS:
        starts = np.unique(np.geomspace(1, count + 1, POINTS + 1).astype(int)[:-1]) - 1
    windows = np.split(numbers, starts[1:])
    known = [window[np.isfinite(window) & (window > 0)] for window in windows]
    quantiles = [
        np.quantile(window, (0.1, 0.5, 0.9)) if len(window) else np.full(3, np.nan) for window in known
    ]
    ends = np.append(starts[1:], count)
    return np.sqrt((starts + 1) * ends), *np.array(quantiles).T
