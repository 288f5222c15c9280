"""Schedules over the steps of a run."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from .. import checks
from ..schedules.compose import sample_schedule
from ..types import ScalarLike, Schedule
from .style import MOST_ENTRIES, Axes, Color, accent, grid, legend, new_axes, paper, plt, sequential

# How many places along a line are tried for its name.
PLACES = 48


def plot_schedules(
    schedules: Mapping[str, Schedule],
    num_steps: int,
    *,
    right: Collection[str] | None = None,
    steps_per_epoch: ScalarLike | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Schedules over the steps of a run, one line each.

    Args:
      schedules: schedule by name, at least one. Up to six names stand in a legend; more stand on their lines.
      num_steps: how many steps are drawn, from 0 on, at least 1; a single one as a point.
      right: names of schedules that have an axis of their own at the right, drawn dashed. By default those with
        "momentum" in their name, beside others.
      steps_per_epoch: if given, the axis counts epochs. The schedules still read steps.
      ax: the axes to draw on; new ones by default.

    Returns:
      The axes, to show or to save: `ax.figure.savefig("schedules.png")`.

    Raises:
      ValueError: there is no schedule, one is not a function, a number is out of its range, or `right` has a
        name that `schedules` has not.

    >>> import optax_lr as olr
    >>> ax = plot_schedules({"cosine": olr.anneal_schedule(0.1, 0.0, 100)}, 100)
    >>> ax.get_xlabel(), len(ax.lines)
    ('step', 1)
    >>> plt.close(ax.figure)
    """
    if not isinstance(schedules, Mapping) or not schedules:
        raise ValueError(f"schedules must be a dict with at least one name and schedule, got {schedules!r}.")
    epoch = 1 if steps_per_epoch is None else checks.steps("steps_per_epoch", steps_per_epoch)
    others = _on_the_right(schedules, right)
    values = {name: np.asarray(sample_schedule(part, num_steps)) for name, part in schedules.items()}
    many = len(values) > MOST_ENTRIES
    axes = new_axes(ax, height=7.0 if len(values) > 3 * MOST_ENTRIES else 4.2)
    second = axes.twinx() if others else axes
    steps = np.arange(num_steps) / np.asarray(epoch)
    lines = []
    for (name, each), color in zip(values.items(), _colors(axes, len(values)), strict=True):
        style: dict[str, Any] = {
            "color": color,
            "lw": 1.2 if many else 1.8,
            "marker": "o" if num_steps == 1 else None,
        }
        drawn = second if name in others else axes
        lines += drawn.plot(steps, each, ls="--" if name in others else "-", label=name, **style)
    axes.set(xlabel="step" if steps_per_epoch is None else "epoch", ylabel="value")
    if others:
        axes.set_ylabel(_axis_name([name for name in values if name not in others]))
        second.set_ylabel(_axis_name([name for name in values if name in others]) + ", dashed")
    grid(axes)
    if many:
        _name_on_lines(axes, lines)
    else:
        legend(axes, above=bool(others), inside="upper right", handles=lines)
    return axes


def _on_the_right(schedules: Mapping[str, Schedule], right: Collection[str] | None) -> set[str]:
    if right is None:
        named = {name for name in schedules if "momentum" in str(name).lower()}
        return named if len(named) < len(schedules) else set()
    chosen = {right} if isinstance(right, str) else set(right)
    for name in chosen - set(schedules):
        raise ValueError(f"right: schedules has no {name!r}; {checks.close_match(name, schedules)}")
    return chosen


def _colors(axes: Axes, count: int) -> list[Color]:
    """The style's cycle; beyond it, colors in an order, so that no two lines have one."""
    cycle = plt.rcParams["axes.prop_cycle"].by_key().get("color", [])
    return [accent(index) for index in range(count)] if count <= len(cycle) else sequential(axes, count)


def _axis_name(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else "value"


def _name_on_lines(axes: Axes, lines: Sequence) -> None:
    """Each line's name on the line, where it is farthest from other lines and from names that already stand."""
    axes.autoscale_view()
    screen = np.array([line.axes.transData.transform(line.get_xydata()) for line in lines])
    tried = np.unique(np.linspace(0.03, 0.97, PLACES) * (screen.shape[1] - 1)).round().astype(int)
    points = screen[:, tried]  # [lines, places, 2]
    height = 9 * axes.figure.dpi / 72
    taken: list[np.ndarray] = []
    for index, line in enumerate(lines):
        gaps = np.abs(points[:, :, 1] - points[index, :, 1])
        gaps[index] = np.inf
        # Lines that lie on each other have room, too: their names then stand side by side.
        room = np.minimum(gaps.min(axis=0), 3 * height) + height
        for place in taken:
            # A name is about five times as wide as high.
            away = np.abs(points[index] - place) / (5 * height, 1.2 * height)
            beside = away.max(axis=-1)
            room = np.where(beside < 1, 0.1 * beside * room, room)
        best = int(np.argmax(room))
        taken.append(points[index, best])
        at, value = line.get_xydata()[tried[best]]
        box = {"facecolor": paper(axes), "edgecolor": "none", "alpha": 0.9, "pad": 0.5}
        line.axes.text(
            at,
            value,
            line.get_label(),
            color=line.get_color(),
            fontsize=7,
            ha="center",
            va="center",
            bbox=box,
        )
