"""Laws of all pictures: readable in any style, legends that cover no axes, and the way without matplotlib."""

import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

import optax_lr as olr
from optax_lr import Suggestion, plots

STYLES = ["default", "dark_background", "ggplot", "grayscale", "seaborn-v0_8-darkgrid"]


@pytest.fixture
def pictures(curve, with_error, grid):
    """Each picture, with what it can show, as a function of the axes; some need several."""
    short = curve.take(slice(0, 5))
    found = Suggestion(0.1, 0.05, 0.2, "because", curve, finalists=curve, shorter=(short, short))
    rate, momentum = olr.one_cycle_schedule(1.0, 20), olr.one_cycle_momentum_schedule(20)
    return {
        "search": lambda ax: found.plot(rules=True, regimes={"good": (0.02, 0.3)}, ax=ax),
        "histories": lambda ax: plots.plot_histories(with_error, metrics="loss", ax=ax),
        "few histories": lambda ax: plots.plot_histories(with_error.take([1, 2, 5]), metrics="loss", ax=ax),
        "a dict": lambda ax: plots.plot_histories({f"run {i}": [3, 2, 1 / (i + 1)] for i in range(9)}, ax=ax),
        "heat map": lambda ax: plots.plot_grid(grid, ax=ax),
        "schedules": lambda ax: plots.plot_schedules({str(i): rate for i in range(6)}, 20, ax=ax),
        "rate and momentum": lambda ax: plots.plot_schedules({"rate": rate, "momentum": momentum}, 20, ax=ax),
        "many": lambda ax: plots.plot_schedules({str(i): rate for i in range(40)}, 20, ax=ax),
    }


def contrast(color, axes):
    return np.abs(np.array(to_rgb(color)) - plots.style.paper(axes)).max()


@pytest.mark.parametrize("style", STYLES)
def test_lines_and_words_stand_out_from_the_paper(pictures, style):
    for name, draw in pictures.items():
        with plt.style.context(style):
            axes = draw(plt.subplots()[1])
            for line in axes.lines:
                assert contrast(line.get_color(), axes) > 0.2, (name, line)
            if name != "heat map":  # whose numbers stand on cells
                for text in axes.texts:
                    assert contrast(text.get_color(), axes) > 0.2, (name, text)


def test_numbers_stand_out_from_their_cells(grid):
    for style in STYLES:
        with plt.style.context(style):
            axes = plots.plot_grid(grid)
            axes.figure.canvas.draw()
            cells = axes.collections[0].get_facecolors().reshape(2, 3, 4)  # rows, columns
            for text in axes.texts:
                column, row = (int(at) for at in text.get_position())
                on, word = plots.style.brightness([cells[row, column, :3], to_rgb(text.get_color())])
                assert abs(on - word) > 0.4


def test_the_best_cell_is_the_brightest(grid):
    for style in STYLES:
        with plt.style.context(style):
            axes = plots.plot_grid(grid)
            axes.figure.canvas.draw()
            shades = plots.style.brightness(axes.collections[0].get_facecolors())[:5]
            values = axes.collections[0].get_array().compressed()
            assert np.argsort(shades).tolist() == np.argsort(-values).tolist()


@pytest.mark.parametrize("layout", [None, "constrained", "tight"])
def test_a_legend_covers_no_other_axes_and_has_six_entries_at_most(pictures, layout):
    for name, draw in pictures.items():
        figure, (here, beside) = plt.subplots(1, 2, figsize=(11, 4), layout=layout)
        axes = draw(here)
        figure.canvas.draw()
        found = axes.get_legend()
        if name == "many":
            assert found is None and len(axes.texts) == 40
        else:
            assert len(found.get_texts()) <= 6, name
            # A twin axis lies on its own axes; a color bar stands beside them.
            others = [each for each in figure.axes if each.bbox.bounds != here.bbox.bounds]
            assert beside in others and not any(
                found.get_window_extent().overlaps(each.get_window_extent()) for each in others
            ), name
        plt.close(figure)


def test_without_matplotlib_the_extra_is_named(curve):
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import numpy as np, optax_lr as olr\n"
        "none = np.zeros(0, np.int32)\n"
        "losses, alive = np.ones((1, 1, 3), np.float32), np.array([[-1]], np.int32)\n"
        "curve = olr.LRCurve(np.array([0.1]), losses, None, none, alive)\n"
        "assert curve._repr_png_() is None\n"
        "for result in (curve, olr.Suggestion(0.1, 0.1, 0.1, '', curve)):\n"
        "    try: result.plot()\n"
        "    except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["optax_lr.plots needs matplotlib: pip install 'optax-lr[plots]'"] * 2
