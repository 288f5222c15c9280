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
