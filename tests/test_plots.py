"""Pictures hold the numbers they were drawn from, with labels, units and legends beside the data."""

import dataclasses

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


@pytest.fixture
def with_error(curve):
    """A curve with an error rate, which is 0 in places, in training and validation at four times."""
    evals = curve.losses[..., 2::3]
    return dataclasses.replace(
        curve,
        eval_losses=evals,
        eval_steps=np.array([3, 6, 9, 12], np.int32),
        metrics={"error": np.clip(curve.losses - 2, 0, 1), "norm": curve.losses},
        eval_metrics={"error": np.clip(evals - 2, 0, 1), "recall": evals},
    )


@pytest.fixture
def grid():
    """3 rates by 2 decays by 2 seeds; the loss is lowest at 0.1 and 0.01, and the largest rate fails at 0.01."""
    lanes = olr.grid(learning_rate=[0.01, 0.1, 1.0], weight_decay=[0.0, 0.01])
    losses = np.array([4.0, 3.0, 2.0, 1.0, 5.0, np.nan], np.float32)[None, :, None] * np.array(
        [[[1]], [[1.5]]]
    )
    stops = np.full((2, 6), -1, np.int32)
    stops[:, 5] = 0
    rates = lanes.pop("learning_rate")
    return LRCurve(
        rates, losses.astype(np.float32), None, np.array([], np.int32), stops, hyperparameters=lanes
    )


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def outside(axes):
    axes.figure.canvas.draw()
    return axes.get_legend().get_window_extent().x0 >= axes.get_window_extent().x1


def lines(axes, style):
    """The lines of that style with data, one a lane."""
    return [line for line in axes.lines if line.get_linestyle() == style and len(line.get_xdata())]


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


def test_a_ramp_is_no_end():
    ramp = LRCurve(RATES, np.arange(1, 8, dtype=np.float32).reshape(1, 7, 1), None, np.array([], np.int32),
                   np.full((1, 7), -1, np.int32))  # fmt: skip
    axes = ramp.plot()
    assert legend(axes) == ["one step a rate"] and axes.get_ylabel() == "training loss"
    assert legend(plots.plot_histories(ramp))[0] == "1"


def test_histories_in_epochs(curve):
    axes = plots.plot_histories(dataclasses.replace(curve, eval_losses=None), steps_per_epoch=4)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "training loss, mean of the epoch")
    named = [line for line in axes.lines if line.get_label()[0] != "_"]
    assert len(named) == 7 and len(named[0].get_xdata()) == 3
    np.testing.assert_allclose(named[0].get_ydata()[0], curve.losses[:, 0, :4].mean(), rtol=1e-6)
    assert legend(axes)[0] == "1, diverged" and outside(axes)
    assert plots.plot_histories(curve).get_xlabel() == "step"


def test_loss_and_error_side_by_side(with_error):
    first = plots.plot_histories(with_error, steps_per_epoch=3)
    loss, error = first.figure.axes
    assert first is loss and loss.get_legend() is None and outside(error)
    assert [axes.get_ylabel() for axes in (loss, error)] == ["loss", "error"]
    assert [axes.get_yscale() for axes in (loss, error)] == ["log", "linear"]
    for axes, train, evals in (
        (loss, with_error.losses, with_error.eval_losses),
        (error, with_error.metrics["error"], with_error.eval_metrics["error"]),
    ):
        solid, dashed = lines(axes, "-"), lines(axes, "--")
        assert len(dashed) == len(solid) == 7
        np.testing.assert_allclose(solid[2].get_ydata(), train[:, 2].reshape(2, 4, 3).mean((0, 2)), rtol=1e-6)
        np.testing.assert_allclose(dashed[2].get_ydata(), evals[:, 2].mean(axis=0), rtol=1e-6)
        assert dashed[2].get_xdata().tolist() == solid[2].get_xdata().tolist() == [1, 2, 3, 4]
        colors = [line.get_color() for line in dashed]
        assert colors == [line.get_color() for line in solid] and len(set(colors)) == 7
    names = legend(error)
    assert names[0] == "1, diverged" and names[-2:] == ["training, mean of the epoch", "validation"]
    verdict = olr.diagnose(with_error.losses, with_error.eval_losses).kind
    assert names[1] == f"0.32, {verdict[0, 5]}"


def test_which_metrics_are_drawn(curve, with_error):
    assert len(plots.plot_histories(curve).figure.axes) == 1
    axes = plots.plot_histories(with_error, metrics=["recall", "norm", "loss"]).figure.axes
    assert [panel.get_ylabel() for panel in axes] == ["validation recall", "training norm", "loss"]
    assert plots.plot_histories(with_error, metrics="error").get_ylabel() == "error"
    sentence = "metrics: the curve has no 'eror'; did you mean 'error'"
    with pytest.raises(ValueError, match=sentence):
        plots.plot_histories(with_error, metrics=["eror"])
    with pytest.raises(ValueError, match="metrics: the curve has no 'error'; there is 'loss'"):
        plots.plot_histories(curve, metrics=["loss", "error"])
    with pytest.raises(ValueError, match="metrics must name at least one metric; there is 'loss'"):
        plots.plot_histories(curve, metrics=[])
    with pytest.raises(ValueError, match="steps_per_epoch must be"):
        plots.plot_histories(curve, steps_per_epoch=0)


def test_many_lanes_get_a_color_bar(curve):
    many = curve.merge(curve).merge(curve)
    axes = plots.plot_histories(many)
    assert axes.get_legend() is None and len(axes.figure.axes) == 2


def test_lanes_are_named_by_all_that_varies(grid):
    assert legend(plots.plot_histories(grid))[:2] == ["1, weight_decay 0.01", "1, weight_decay 0"]


def test_grid(grid):
    axes = grid.plot()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("learning_rate", "weight_decay")
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.01", "0.1", "1"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["0", "0.01"]
    cells = axes.collections[0].get_array()
    np.testing.assert_allclose(cells.filled(np.nan), 1.25 * np.array([[4, 2, 5], [3, 1, np.nan]]))
    assert axes.lines[0].get_xydata().tolist() == [[2.5, 1.5]]
    assert axes.patches[0].get_xy() == (1, 1) and legend(axes) == ["diverged", "best, 1.25 at 0.1, 0.01"]
    assert axes.figure.axes[1].get_ylabel() == "training loss at the end"


def test_grid_without_the_rate_and_with_gaps(grid):
    swapped = dataclasses.replace(
        grid,
        learning_rates=np.full(6, 0.1),
        hyperparameters={**grid.hyperparameters, "b1": grid.learning_rates},
    )
    axes = plots.plot_grid(swapped)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("weight_decay", "b1")
    axes = plots.plot_grid(grid.take([0, 1, 2]))
    assert axes.collections[0].get_array().mask.sum() == 1 and not axes.lines
    negative = dataclasses.replace(grid, losses=-grid.losses)
    assert legend(plots.plot_grid(negative))[-1] == "best, -6.25 at 1, 0"
    lost = dataclasses.replace(grid, diverged_at=np.zeros((2, 6), np.int32))
    assert len(plots.plot_grid(lost).lines[0].get_xdata()) == 6


def test_grid_refusals(curve, grid):
    with pytest.raises(ValueError, match="two hyperparameters vary, got 1: learning_rate"):
        plots.plot_grid(curve)
    with pytest.raises(ValueError, match="one lane for each pair of values, got several"):
        plots.plot_grid(grid.merge(grid))


def test_schedules():
    schedule = olr.one_cycle_schedule(1.0, 20)
    axes = plots.plot_schedules({"one cycle": schedule}, 20, steps_per_epoch=10)
    np.testing.assert_allclose(axes.lines[0].get_ydata()[5], schedule(5))
    assert axes.lines[0].get_xdata()[-1] == 1.9
    assert (axes.get_xlabel(), axes.get_ylabel(), legend(axes)) == ("epoch", "value", ["one cycle"])


def test_given_axes_are_drawn_on(curve, with_error, grid):
    figure, axes = plt.subplots(2, 2)
    assert plots.plot_lr_curve(curve, ax=axes[0, 0]) is axes[0, 0]
    assert plots.plot_grid(grid, ax=axes[0, 1]) is axes[0, 1]
    assert plots.plot_histories(with_error, ax=axes[1]) is axes[1, 0]
    assert lines(axes[1, 1], "--") and plt.get_fignums() == [figure.number]
    with pytest.raises(ValueError, match="ax must be one axes for each of 2 panels, got 1"):
        plots.plot_histories(with_error, ax=axes[0, 0])


def test_a_notebook_shows_one_picture(curve, grid):
    for result in (curve, grid, Suggestion(0.1, 0.05, 0.2, "because", curve)):
        assert result._repr_png_()[:4] == b"\x89PNG"
    assert plt.get_fignums() == []


def test_a_notebook_shows_text_where_there_is_nothing_to_draw(curve, grid):
    lost = dataclasses.replace(curve, diverged_at=np.zeros((2, 7), np.int32))
    three = dataclasses.replace(grid, hyperparameters={**grid.hyperparameters, "seed": np.arange(6)})
    assert lost._repr_png_() is three._repr_png_() is None
