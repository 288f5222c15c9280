"""The picture of a coordinate check has a line for each parameter, and names those that are wrong."""

import numpy as np

import optax_lr as olr


def test_lines_are_the_changes_and_wrong_ones_are_named():
    widths = np.array([64, 128, 256])
    slopes = {"a": 0.0, "b": 0.1, **{f"w{index}": 0.5 + index / 10 for index in range(6)}, "lost": np.nan}
    changes = {path: widths**slope for path, slope in slopes.items()}
    axes = olr.WidthCheck(widths, changes, slopes).plot()
    assert (axes.get_xscale(), axes.get_yscale(), axes.get_xlabel()) == ("log", "log", "width")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "lost, slope +nan",
        "w5, slope +1.00",
        "w4, slope +0.90",
        "w3, slope +0.80",
        "the other 3 that are not 0",
        "the other 2, slopes near 0",
    ]
    drawn = {tuple(line.get_ydata()) for line in axes.lines}
    assert {tuple(values) for path, values in changes.items() if path != "lost"} <= drawn
    assert [text.get_text() for text in axes.get_xticklabels()] == ["64", "128", "256"]
