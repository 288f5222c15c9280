"""Pictures hold the numbers they were drawn from, with labels, units and legends beside the data."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

import optax_lr as olr
from optax_lr import LRCurve, Suggestion, plots

mpl.use("agg")
RATES = np.geomspace(1e-3, 1, 7)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def curve():
    losses = np.geomspace(3, 1, 12)[None, None] * (1 + np.log(RATES / 0.1) ** 2)[None, :, None]
    losses = np.concatenate([losses, 1.1 * losses]).astype(np.float32)
    stops = np.full((2, 7), -1, np.int32)
    losses[1, 6, 5:], stops[1, 6] = np.nan, 4
    return LRCurve(RATES, losses, losses[..., -1:], np.array([12], np.int32), stops)


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def outside(axes):
    axes.figure.canvas.draw()
    return axes.get_legend().get_window_extent().x0 >= axes.get_window_extent().x1


def test_lr_curve(curve):
    found = Suggestion(0.1, 0.05, 0.2, "because", curve, finalists=curve)
    axes = found.plot(rules=True)
    assert (axes.get_xlabel(), axes.get_xscale(), axes.get_yscale()) == ("learning rate", "log", "log")
    np.testing.assert_allclose(axes.lines[0].get_xdata(), RATES[:6])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), curve.eval_losses[:, :6, 0].mean(axis=0), rtol=1e-6)
    assert axes.lines[1].get_xdata().tolist() == [1.0]
    names = legend(axes)
    assert {"12 steps", "diverged", "suggestion 0.1", "interval 0.05 to 0.2", "full runs, 12 steps"} <= set(
        names
    )
    assert any(name.startswith("valley") for name in names) and outside(axes)


def test_histories_in_epochs(curve):
    axes = plots.plot_histories(curve, steps_per_epoch=4)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "training loss, mean of the epoch")
    lines = [line for line in axes.lines if line.get_label()[0] != "_"]
    assert len(lines) == 7 and len(lines[0].get_xdata()) == 3
    np.testing.assert_allclose(lines[0].get_ydata()[0], curve.losses[:, 0, :4].mean(), rtol=1e-6)
    assert legend(axes)[0].endswith("diverged") and outside(axes)
    assert plots.plot_histories(curve).get_xlabel() == "step"


def test_many_lanes_get_a_color_bar(curve):
    many = curve.merge(curve).merge(curve)
    axes = plots.plot_histories(many)
    assert axes.get_legend() is None and len(axes.figure.axes) == 2


def test_schedules():
    schedule = olr.one_cycle_schedule(1.0, 20)
    axes = plots.plot_schedules({"one cycle": schedule}, 20, steps_per_epoch=10)
    np.testing.assert_allclose(axes.lines[0].get_ydata()[5], schedule(5))
    assert axes.lines[0].get_xdata()[-1] == 1.9
    assert (axes.get_xlabel(), axes.get_ylabel(), legend(axes)) == ("epoch", "value", ["one cycle"])


def test_given_axes_are_drawn_on_and_a_notebook_shows_one_picture(curve):
    _, axes = plt.subplots()
    assert plots.plot_lr_curve(curve, ax=axes) is axes
    before = len(plt.get_fignums())
    assert curve._repr_png_()[:4] == b"\x89PNG"
    assert len(plt.get_fignums()) == before
