"""The picture of schedules: what is drawn, on which axis, and what is refused."""

import matplotlib as mpl
import numpy as np
import pytest

import optax_lr as olr

mpl.use("Agg")
from matplotlib import pyplot as plt

from optax_lr import plots


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def test_lines_are_the_schedules():
    schedules = {"one": olr.one_cycle_schedule(1.0, 50), "wsd": olr.anneal_schedule(0.5, 0.0, 20)}
    ax = plots.plot_schedules(schedules, 50)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one", "wsd"]
    for line, schedule in zip(ax.lines, schedules.values(), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), np.arange(50))
        np.testing.assert_array_equal(line.get_ydata(), olr.sample_schedule(schedule, 50))


def test_epochs_and_given_axes():
    ax = plt.subplots()[1]
    drawn = plots.plot_schedules({"a": olr.anneal_schedule(0.5, 0.0, 20)}, 40, steps_per_epoch=10, ax=ax)
    assert drawn is ax and ax.get_xlabel() == "epoch" and ax.lines[0].get_xdata()[-1] == 3.9


def test_refusals():
    with pytest.raises(ValueError, match=r"schedules must be a dict with at least one .* got \{\}\."):
        plots.plot_schedules({}, 10)
    with pytest.raises(ValueError, match="num_steps must be a whole number of steps from 1"):
        plots.plot_schedules({"a": olr.anneal_schedule(0.5, 0.0, 20)}, 0)


def test_one_step_is_a_point():
    line = plots.plot_schedules({"a": olr.anneal_schedule(0.5, 0.0, 20)}, 1).lines[0]
    assert line.get_marker() == "o" and line.get_xydata().tolist() == [[0, 0.5]]


CYCLE = {"rate": olr.one_cycle_schedule(1.0, 50), "momentum": olr.one_cycle_momentum_schedule(50)}


def test_rate_and_momentum_have_an_axis_each():
    left = plots.plot_schedules(CYCLE, 50)
    (right,) = (axes for axes in left.figure.axes if axes is not left)
    assert (left.get_ylabel(), right.get_ylabel()) == ("rate", "momentum, dashed")
    for axes, name, dashes in ((left, "rate", "-"), (right, "momentum", "--")):
        (line,) = axes.lines
        assert line.get_linestyle() == dashes
        np.testing.assert_array_equal(line.get_ydata(), olr.sample_schedule(CYCLE[name], 50))
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["rate", "momentum"]
    assert left.lines[0].get_color() != right.lines[0].get_color()


def test_which_axis_can_be_said():
    assert len(plots.plot_schedules({"momentum": CYCLE["momentum"]}, 50).figure.axes) == 1
    assert len(plots.plot_schedules(CYCLE, 50, right=()).figure.axes) == 1
    for right in ("rate", ["rate"]):
        axes = plots.plot_schedules(CYCLE, 50, right=right)
        assert axes.get_ylabel() == "momentum" and axes.figure.axes[1].get_ylabel() == "rate, dashed"
    with pytest.raises(ValueError, match="right: schedules has no 'rates'; did you mean 'rate'"):
        plots.plot_schedules(CYCLE, 50, right="rates")


def test_forty_schedules_are_named_on_their_lines_with_no_name_over_another():
    peaks = np.geomspace(0.1, 1.0, 40)
    ax = plots.plot_schedules(
        {f"peak {at}": olr.one_cycle_schedule(peak, 50) for at, peak in enumerate(peaks)}, 50
    )
    ax.figure.canvas.draw()
    assert len({line.get_color() for line in ax.lines}) == 40
    for text, line in zip(ax.texts, ax.lines, strict=True):
        assert (text.get_text(), text.get_color()) == (line.get_label(), line.get_color())
        x, y = text.get_position()
        assert y == line.get_ydata()[int(x)]
    boxes = [text.get_window_extent() for text in ax.texts]
    over = [(a, b) for a in range(40) for b in range(a) if boxes[a].overlaps(boxes[b])]
    assert len(over) <= 4, over


def test_names_of_equal_schedules_stand_side_by_side():
    ax = plots.plot_schedules({str(at): olr.anneal_schedule(0.5, 0.5, 20) for at in range(9)}, 20)
    assert len({text.get_position() for text in ax.texts}) == 9
