"""The examples show what their texts say; figures of landscapes against closed forms and loops in NumPy."""

import importlib.util
import pathlib

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

mpl.use("agg")
EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


def loaded(name, folder):
    """An example as a module; its pictures go to the folder."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.OUT = folder
    return module


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def landscapes(tmp_path):
    return loaded("landscapes", tmp_path)


def test_the_edge_of_a_parabola_is_two_over_its_curvature(landscapes, tmp_path):
    found = landscapes.parabola()
    assert found["edge"] == pytest.approx(2 / 5, rel=1e-4)  # of 2.5 w^2
    assert 1 < found["first"] / found["edge"] < 1.08  # one step of the rates
    assert (tmp_path / "parabola.png").exists()
    right = plt.gcf().axes[1]
    (label,) = right.texts
    words = label.get_window_extent()
    for line in right.lines:
        path = line.get_transform().transform_path(line.get_path())
        assert not path.intersects_bbox(words, filled=False)


def test_the_saddle_is_left_when_a_loop_leaves_it(landscapes):
    def steps(rates):
        point, count = np.array([1.0, 0.001]), 0
        while point[1] <= 0.5:
            point = point - rates(count) * np.array([2 * point[0], -0.04 * point[1] + 0.04 * point[1] ** 3])
            count += 1
        return count

    found = landscapes.saddle()
    assert abs(found["fixed"] - steps(lambda _: 0.05)) <= 1
    cycles = steps(lambda step: 0.05 * (1 + 15 * (1 - abs(step / 50 % 2 - 1))))
    assert abs(found["cyclical, 1 to 16 times"] - cycles) <= 1
    assert found["raised on a plateau"] < 400


def test_the_sharp_minimum_is_left_where_a_loop_leaves_it(landscapes):
    def end(peak):
        at = -1.05
        for step in range(400):
            rate = peak * (1 + np.cos(np.pi * (step % 100) / 100)) / 2
            sharp = (at + 1) / 0.15**2 * np.exp(-0.5 * ((at + 1) / 0.15) ** 2)
            broad = 1.1 * (at - 1) / 0.9**2 * np.exp(-0.5 * ((at - 1) / 0.9) ** 2)
            at -= rate * (sharp + broad)
        return at

    found = landscapes.minima()
    assert end(found["leaves"]) > 0.9 and end(found["leaves"] / 1.17) < 0
    assert found["leaves"] > 2 * found["edge"]


def test_gains_help_along_the_axes_and_not_in_a_turned_valley(landscapes):
    found = landscapes.gains()
    best = min((np.array([-3.0, 0.5]) ** 2 * (1 - rate * np.array([1, 100])) ** 198 / 2 @ np.array([1, 100]))
               for rate in np.geomspace(1e-4, 0.1, 25))  # fmt: skip
    assert found["plain descent"] == pytest.approx([best, best], rel=1e-3)
    straight, turned = found["local gains"]
    assert straight < 1e-6 * best and turned > best / 4
    assert (
        found["momentum"][0] == pytest.approx(found["momentum"][1], rel=0.05) and found["momentum"][0] < 1e-3
    )


def test_loss_functions_shows_what_its_text_says(tmp_path):
    example = loaded("loss_functions", tmp_path)
    kinds = example.main().kind[0].tolist()
    assert kinds == ["too low", "healthy", "overfitting", "too high", "diverged"]
