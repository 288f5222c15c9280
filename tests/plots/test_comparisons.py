"""Pictures of a comparison and of effective rates hold the numbers they were drawn from."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

import optax_lr as olr
from optax_lr import Comparison, LRCurve, plots


def runs(factor, *, evals=False):
    losses = (factor * np.geomspace(3, 0.5, 40)[None, None] * np.array([1.0, 1.2])[:, None, None]).astype(
        np.float32
    )
    steps = np.arange(4, 41, 4, dtype=np.int32) if evals else np.zeros(0, np.int32)
    taken = losses[..., steps - 1] if evals else None
    return LRCurve(np.array([0.1 * factor]), losses, taken, steps, np.full((2, 1), -1, np.int32))


def compared(**options):
    names = ("sgd", "adam", "broken")
    curves = dict(zip(names, (runs(1.0, **options), runs(2.0, **options), None), strict=True))
    return Comparison(dict.fromkeys(names), curves, target=1.3)


@pytest.mark.parametrize("evals", [False, True])
@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_a_comparison(evals, style):
    with plt.style.context(style):
        found = compared(evals=evals)
        axes = found.plot()
    words = [text.get_text() for text in axes.get_legend().get_texts()]
    assert words == ["sgd, 0.1", "adam, 0.2", "broken, diverged"]
    kind = "validation" if evals else "training"
    assert axes.get_ylabel() == f"{kind} loss, mean and range of 2 seeds" and axes.get_xlabel() == "step"
    lines = {line.get_label(): line for line in axes.lines}
    steps, losses = found.history("adam")
    np.testing.assert_array_equal(lines["adam, 0.2"].get_xdata(), steps)
    np.testing.assert_allclose(lines["adam, 0.2"].get_ydata(), losses.mean(0))
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    reached = [int(np.atleast_1d(dot.get_xdata())[0]) for dot in dots]
    assert reached == [found.steps_to_target("sgd"), found.steps_to_target("adam")]
    assert len(axes.collections) == 2 and len({line.get_color() for line in axes.lines}) == 4
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose((band.min(), band.max()), (losses.min() / 2, losses.max() / 2), rtol=1e-6)


def test_many_candidates_have_a_color_each():
    names = [f"run {at}" for at in range(14)]
    found = Comparison(dict.fromkeys(names), {name: runs(1.0 + at) for at, name in enumerate(names)}, 1e-9)
    axes = found.plot(ax=plt.subplots()[1])
    drawn = [line for line in axes.lines if line.get_label().startswith("run")]
    assert len({line.get_color() for line in drawn}) == 14
    assert found._repr_png_()[:4] == b"\x89PNG"


def rates(values):
    return olr.EffectiveRates({"all": values}, {"all": 2 * values}, {"all": np.ones_like(values)})


def test_effective_rates():
    few, many = 1 / np.sqrt(np.arange(1.0, 51)), 1 / np.sqrt(np.arange(1.0, 2001))
    axes = plots.plot_effective_rates({"few": rates(few), "many": rates(many)})
    one, other = axes.lines
    np.testing.assert_allclose(one.get_ydata(), few)
    assert one.get_xdata().tolist() == list(range(1, 51))
    # Medians over windows of a line that is straight on these axes lie on it.
    np.testing.assert_allclose(other.get_ydata(), other.get_xdata() ** -0.5, rtol=0.02)
    assert len(other.get_xdata()) <= 60 and (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    weight = plots.plot_effective_rates({"few": rates(few)}, "update_to_weight")
    assert weight.get_ylabel() == "|update| / |weight|"
    np.testing.assert_allclose(weight.lines[0].get_ydata(), 2 * few)


def test_labels_are_dashes_and_what_is_zero_is_not_drawn():
    both = {"body": np.array([0.1, 0.0, 0.3]), "head": np.array([1.0, np.inf, np.nan])}
    axes = plots.plot_effective_rates({"sgd": olr.EffectiveRates(both, both, both)})
    body, head = axes.lines
    np.testing.assert_array_equal(body.get_ydata(), [0.1, np.nan, 0.3])
    np.testing.assert_array_equal(head.get_ydata(), [1.0, np.nan, np.nan])
    assert body.get_linestyle() != head.get_linestyle() and body.get_color() == head.get_color()
    assert [line.get_label() for line in axes.lines] == ["sgd, body", "sgd, head"]


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="histories must have at least one"):
        plots.plot_effective_rates({})
    with pytest.raises(ValueError, match="quantity"):
        plots.plot_effective_rates({"sgd": rates(np.ones(3))}, "rate")
    with pytest.raises(ValueError, match=r"histories\['sgd'\] must be arrays \[steps\]"):
        plots.plot_effective_rates({"sgd": rates(np.ones(()))})
