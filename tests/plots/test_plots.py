"""Pictures of sweeps hold the numbers they were drawn from, with labels, units and legends beside the data."""

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pytest

import optax_lr as olr
from optax_lr import LRCurve, Suggestion, plots, suggest
from optax_lr.finder.suggestion import Round

RATES = np.geomspace(1e-3, 1, 7)


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def outside(axes):
    axes.figure.canvas.draw()
    return axes.get_legend().get_window_extent().x0 >= axes.get_window_extent().x1


def above(axes):
    axes.figure.canvas.draw()
    return axes.get_legend().get_window_extent().y0 >= axes.get_window_extent().y1


def lines(axes, style):
    """The lines of that style with data, one a lane."""
    return [line for line in axes.lines if line.get_linestyle() == style and len(line.get_xdata())]


def test_lr_curve(curve):
    found = Suggestion(0.1, 0.05, 0.2, "because", curve, finalists=curve)
    axes = found.plot(rules=True)
    assert (axes.get_xlabel(), axes.get_xscale(), axes.get_yscale()) == ("learning rate", "log", "log")
    np.testing.assert_allclose(axes.lines[0].get_xdata(), RATES[:6])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), curve.eval_losses[:, :6, 0].mean(axis=0), rtol=1e-6)
    (crosses,) = [line for line in axes.lines if line.get_marker() == "x"]
    assert crosses.get_xdata().tolist() == [1.0]
    assert legend(axes) == [
        "12 steps,\nmean and range of 2 seeds",
        "full runs, 12 steps",
        "diverged, 12 steps",
        "common rules, 12 steps",
        "suggestion 0.1\n(0.05 to 0.2)",
    ]
    # The rules are those of the runs that are drawn, each with its name at its line.
    named = "\n".join(text.get_text() for text in axes.texts).split("\n")
    assert sorted(named) == sorted(f"{name} {rate:.2g}" for name, rate in suggest.classic(curve).items())
    assert outside(axes)


def test_shorter_runs_are_in_the_background_and_named(curve):
    short = dataclasses.replace(curve, losses=curve.losses[..., :4], eval_losses=None)
    found = Suggestion(0.1, 0.05, 0.2, "because", curve, shorter=(short, short))
    axes = found.plot()
    thin = [line for line in axes.lines if line.get_linewidth() < 1 and line.get_linestyle() == "-"]
    assert len(thin) == 2 and all(line.get_zorder() < axes.lines[0].get_zorder() for line in thin)
    assert legend(axes)[1] == "shorter runs, 4 steps"
    np.testing.assert_allclose(thin[0].get_ydata()[:6], short.losses[:, :6, -1:].mean(axis=(0, 2)), rtol=1e-6)
    assert "shorter runs, 4 steps" not in legend(found.plot(shorter=False))


def test_crosses_of_the_curve_are_in_view_beside_other_runs(curve):
    longer = dataclasses.replace(curve, losses=np.repeat(curve.losses, 2, -1)).take(slice(1, 4))
    axes = Suggestion(0.1, 0.05, 0.2, "because", curve, shorter=(longer,)).plot()
    (crosses,) = [line for line in axes.lines if line.get_label() == "diverged, 12 steps"]
    left, right = axes.get_xlim()
    assert left < crosses.get_xdata()[0] < right
    assert "other runs, 24 steps" in legend(axes)


TRACE = (Round(0.1, 0.01, 1.0, 0.05, 0.5, 0.1), Round(0.2, 0.1, 0.4, 0.01, 1.0, 0.6))


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_trace_shows_its_interval_and_covers_no_numbers(curve, rounds):
    axes = Suggestion(0.1, 0.05, 0.2, "because", curve, trace=TRACE[:rounds]).plot_trace()
    assert legend(axes) == ["answer", "interval", "expected excess"] and above(axes)
    (interval,) = axes.collections
    whole = interval.get_datalim(axes.transData)
    assert (whole.y0, whole.y1) == pytest.approx((0.01, 1.0))
    assert whole.width > 0 or interval.get_linewidth()[0] > 1
    numbers = [each.yaxis.get_tightbbox() for each in axes.figure.axes]
    assert not any(axes.get_legend().get_window_extent().overlaps(box) for box in numbers)


SPANS = {"too low": (0.0, 0.01), "good": (0.03, 0.3), "too high": (0.5, np.inf), "unseen": (5.0, 9.0)}
TRIPLES = [(name, *span) for name, span in SPANS.items()]


@pytest.mark.parametrize("regimes", [SPANS, list(SPANS.items()), TRIPLES], ids=["dict", "pairs", "triples"])
def test_regimes_are_shaded_and_named(curve, regimes):
    axes, plain = curve.plot(regimes=regimes), curve.plot()
    assert axes.get_xlim() == plain.get_xlim()
    spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches]
    left, right = axes.get_xlim()
    np.testing.assert_allclose(spans, [(left, 0.01), (0.03, 0.3), (0.5, right)])
    assert [text.get_text() for text in axes.texts] == ["too low", "good", "too high"]
    assert [text.get_position()[0] for text in axes.texts][1] == pytest.approx((0.03 * 0.3) ** 0.5)
    with pytest.raises(ValueError, match="regimes must give low and high for each name, got 3 for 'bad'"):
        curve.plot(regimes={"bad": 3})


def test_a_ramp_is_no_end():
    ramp = LRCurve(RATES, np.arange(1, 8, dtype=np.float32).reshape(1, 7, 1), None, np.array([], np.int32),
                   np.full((1, 7), -1, np.int32))  # fmt: skip
    axes = ramp.plot()
    assert legend(axes) == ["one step a rate"] and axes.get_ylabel() == "training loss"
    assert plots.plot_histories(ramp).get_legend() is not None


def test_histories_in_epochs(curve):
    axes = plots.plot_histories(dataclasses.replace(curve, eval_losses=None), steps_per_epoch=4)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "training loss, mean of the epoch")
    named = [line for line in axes.lines if line.get_label()[0] != "_"]
    assert len(named) == 7 and len(named[0].get_xdata()) == 3
    np.testing.assert_allclose(named[0].get_ydata()[0], curve.losses[:, 0, :4].mean(), rtol=1e-6)
    assert legend(axes)[0] == "1, diverged" and above(axes)
    assert plots.plot_histories(curve).get_xlabel() == "step"


def test_loss_and_error_side_by_side(with_error):
    with_error = with_error.take([0, 3, 5, 6])
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
        assert len(dashed) == len(solid) == 4
        np.testing.assert_allclose(solid[2].get_ydata(), train[:, 2].reshape(2, 4, 3).mean((0, 2)), rtol=1e-6)
        np.testing.assert_allclose(dashed[2].get_ydata(), evals[:, 2].mean(axis=0), rtol=1e-6)
        assert dashed[2].get_xdata().tolist() == solid[2].get_xdata().tolist() == [1, 2, 3, 4]
        colors = [line.get_color() for line in dashed]
        assert colors == [line.get_color() for line in solid] and len(set(colors)) == 4
    names = legend(error)
    assert names[0] == "1, diverged" and names[-2:] == ["training, mean of the epoch", "validation"]
    verdict = olr.diagnose(with_error).kind
    assert names[1] == f"0.32, {verdict[0, 2]}" and len(names) == 6


def test_which_metrics_are_drawn(curve, with_error):
    curve, with_error = curve.take([0, 3, 6]), with_error.take([0, 3, 6])
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


def test_of_many_lanes_the_legend_has_the_best_and_one_of_each_verdict(curve):
    many = curve.merge(curve).merge(curve)
    axes = plots.plot_histories(many)
    bar = axes.figure.axes[1]
    assert [text.get_text() for text in bar.get_yticklabels()] == plots.style.short(RATES)
    found = olr.diagnose(many).kind.T
    kinds = ["diverged" if "diverged" in kind else kind[0] for kind in found]
    names = legend(axes)
    assert len(names) == len(set(kinds)) + 2 <= 6 and above(axes)
    assert {name.split(", ")[1] for name in names[:-2]} == set(kinds)
    assert any(name.startswith("0.1, ") for name in names)  # the lowest loss at the end


def test_lanes_are_named_by_all_that_varies(grid):
    some = grid.take([2, 3, 4, 5])
    assert legend(plots.plot_histories(some))[:2] == ["1, weight_decay 0.01, diverged", "1, weight_decay 0"]


def test_lanes_of_one_rate_are_colored_by_what_varies(grid):
    one_rate = dataclasses.replace(
        grid, learning_rates=np.full(6, 0.1), hyperparameters={"b1": np.linspace(0, 0.9, 6)}
    )
    colors = [line.get_color() for line in plots.plot_histories(one_rate).lines if line.get_marker() != "x"]
    assert len(colors) == len(set(colors)) == 6


FALLING = np.geomspace(3, 1, 40)


def test_histories_of_a_dict_of_curves_and_of_plain_losses(curve):
    axes = plots.plot_histories(
        {"sweep": curve, "seeds": np.stack([FALLING, 2 * FALLING]), "list": list(FALLING)}
    )
    drawn = {line.get_label().split(", ")[0]: line.get_ydata() for line in lines(axes, "-")}
    np.testing.assert_allclose(drawn["sweep"], curve.losses[:, 4].mean(axis=0), rtol=1e-6)  # its best lane
    np.testing.assert_allclose(drawn["seeds"], 1.5 * FALLING)
    np.testing.assert_allclose(drawn["list"], FALLING)
    kind = olr.diagnose(FALLING[None]).kind[0]
    assert legend(axes)[2] == f"list, {kind}" and legend(axes)[-2:] == ["training", "validation"]
    assert any(name.startswith("sweep, 0.1, ") for name in legend(axes))


def test_histories_of_plain_losses():
    one = plots.plot_histories(list(FALLING))
    np.testing.assert_allclose(one.lines[0].get_ydata(), FALLING)
    assert legend(one) == [olr.diagnose(FALLING[None]).kind[0]] and one.get_ylabel() == "training loss"
    several = plots.plot_histories([[3.0, 2.0, 1.0, 1.0], [3.0, np.nan], FALLING])
    assert [len(line.get_xdata()) for line in lines(several, "-")] == [4, 1, 40]
    assert [name.split(", ")[0] for name in legend(several)] == ["run 0", "run 1", "run 2"]


def test_a_history_that_blows_up_leaves_room_for_the_others():
    axes = plots.plot_histories({"good": [2.0, 1.5, 1.0, 0.9], "bad": [2.0, 1e3, 1e6, np.inf]})
    assert axes.get_ylim()[1] < 50 and axes.lines[1].get_ydata().tolist() == [2.0, 20.0, 20.0]
    assert legend(axes)[1] == "bad, diverged"


@pytest.mark.parametrize(
    "bad",
    [[], {}, 3.0, {"a": []}, {"a": np.ones((2, 3, 4))}],
    ids=["none", "no name", "number", "empty", "cube"],
)
def test_what_is_no_history_is_refused(bad):
    with pytest.raises(
        ValueError, match=r"curve must (have at least one run|be a curve)|must be of shape \[steps\]"
    ):
        plots.plot_histories(bad)


def test_grid(grid):
    axes = grid.plot()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("learning_rate", "weight_decay")
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.01", "0.1", "1"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["0", "0.01"]
    cells = axes.collections[0].get_array()
    np.testing.assert_allclose(cells.filled(np.nan), 1.25 * np.array([[4, 2, 5], [3, 1, np.nan]]))
    assert axes.lines[0].get_xydata().tolist() == [[2.5, 1.5]]
    assert axes.patches[0].get_xy() == (1, 1) and legend(axes) == ["best, 1.25 at 0.1, 0.01", "diverged"]
    assert [text.get_text() for text in axes.texts] == ["5", "3.75", "2.5", "1.25", "6.25"]
    assert axes.figure.axes[1].get_ylabel() == "training loss after 1 steps"


def test_grid_without_the_rate_and_with_gaps(grid):
    swapped = dataclasses.replace(
        grid,
        learning_rates=np.full(6, 0.1),
        hyperparameters={**grid.hyperparameters, "b1": grid.learning_rates},
    )
    axes = plots.plot_grid(swapped)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("weight_decay", "b1")
    assert axes.figure.axes[1].get_ylabel() == "training loss after 1 steps, learning_rate 0.1"
    axes = plots.plot_grid(grid.take([0, 1, 2]))
    assert axes.collections[0].get_array().mask.sum() == 1 and not axes.lines
    negative = dataclasses.replace(grid, losses=-grid.losses)
    assert legend(plots.plot_grid(negative))[0] == "best, -6.25 at 1, 0"
    lost = dataclasses.replace(grid, diverged_at=np.zeros((2, 6), np.int32))
    assert len(plots.plot_grid(lost).lines[0].get_xdata()) == 6


def test_numbers_stand_upright_in_narrow_cells(grid):
    lanes = olr.grid(learning_rate=list(np.geomspace(1e-3, 1, 30)), weight_decay=[0.0, 1.0])
    rates = lanes.pop("learning_rate")
    losses = np.linspace(1, 2, 60, dtype=np.float32).reshape(1, 60, 1)
    none = np.array([], np.int32)
    axes = LRCurve(rates, losses, None, none, np.full((1, 60), -1, np.int32), hyperparameters=lanes).plot()
    assert len(axes.texts) == 60 and {text.get_rotation() for text in axes.texts} == {90}
    assert {text.get_rotation() for text in plots.plot_grid(grid).texts} == {0}


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
