"""Pictures: any of the package's results to matplotlib `Axes`. The one room that imports matplotlib."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import ScalarLike
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from . import checks
from .compose import sample_schedule
from .types import Schedule


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
    axes = plt.subplots(figsize=(6, 3.5), layout="constrained")[1] if ax is None else ax
    for name, values in lines.items():
        axes.plot(np.arange(len(values)) / np.asarray(epoch), values, label=name)
    axes.set_xlabel("step" if steps_per_epoch is None else "epoch")
    axes.set_ylabel("value")
    axes.set_ylim(bottom=min(0.0, *(float(values.min()) for values in lines.values())))
    axes.legend()
    return axes
