"""A metric other than the loss judges: every search answers as if that metric were the validation loss."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest
from flax import nnx

import optax_lr as olr
import optax_lr.nnx
from optax_lr import plots

RNG = np.random.default_rng(3)
WEIGHTS = RNG.normal(size=5).astype(np.float32)


def data(*shape):
    x = RNG.normal(size=(*shape, 5)).astype(np.float32)
    return x, (x @ WEIGHTS + 0.5 * RNG.normal(size=shape) > 0).astype(np.float32)


BATCHES, VALIDATION = data(100, 8), data(400)


def loss_fn(params, batch):
    return optax.sigmoid_binary_cross_entropy(batch[0] @ params, batch[1]).mean()


def squared(params, batch):
    """What is measured: the Brier score, whose best rate is another than that of the loss."""
    return jnp.mean((jax.nn.sigmoid(batch[0] @ params) - batch[1]) ** 2)


def measured(name, sign, params, batch):
    """Validation that reports the score under a name, with a sign, beside a loss that says nothing."""
    score = sign * squared(params, batch)
    return {"loss": score} if name == "loss" else {"loss": 7.0 + 0 * score, name: score}


AS_LOSS = functools.partial(measured, "loss", 1)
AS_ERROR = functools.partial(measured, "error", 1)
AS_SCORE = functools.partial(measured, "score", -1)

SEARCHES = {
    "constant": functools.partial(olr.lr_find, num_steps=20),
    "quick": functools.partial(olr.lr_find, num_steps=20, horizon=60),
    "scheduled": functools.partial(
        olr.lr_find, num_steps=20, horizon=60, schedule=lambda peak: olr.one_cycle_schedule(peak, 60)
    ),
    "lanes": functools.partial(olr.lr_find, num_steps=20, lanes={"b1": np.array([0.8, 0.95])}),
    "refind": functools.partial(olr.lr_refind, learning_rate=0.01, num_steps=20),
}


def searched(name, eval_fn, **options):
    search = SEARCHES[name]
    return search(
        loss_fn, jnp.zeros(5), optax.adam, BATCHES, eval_batch=VALIDATION, eval_fn=eval_fn, progress=False,
        **options,
    )  # fmt: skip


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_by_a_metric_is_that_of_the_metric_as_loss(name):
    expected = searched(name, AS_LOSS)
    for eval_fn, metric, mode in ((AS_ERROR, "error", "min"), (AS_SCORE, "score", "max")):
        found = searched(name, eval_fn, metric=metric, mode=mode)
        assert (found.learning_rate, found.low, found.high) == (
            expected.learning_rate,
            expected.low,
            expected.high,
        )
        assert found.lane_steps == expected.lane_steps and found.hyperparameters == expected.hyperparameters
        assert (found.curve.metric, found.curve.mode) == (metric, mode)
        assert f"The validation {metric} is {'lowest' if mode == 'min' else 'highest'}" in found.reason


@pytest.mark.parametrize("name", ["quick", "scheduled"])
def test_a_metric_that_is_counted_is_searched_beyond_all_of_the_best(name):
    """Hundredths tie: no edge of what was tried is as good as the best, but three in a row that are."""

    def counted(params, batch):
        return {"loss": 0.0, "error": jnp.ceil(100 * squared(params, batch)) / 100}

    found = searched(name, counted, metric="error", seeds=1)
    errors = found.deciding.eval_metrics["error"][0, :, -1]
    tied = errors == errors.min()
    rates = found.deciding.learning_rates[tied]
    assert len(rates) > 1 and found.low <= rates[0] and rates[-1] <= found.high
    assert (not tied[0] or tied[:3].all()) and (not tied[-1] or tied[-3:].all())


def test_the_kept_run_is_the_best_by_the_metric():
    expected, found = (
        searched("scheduled", AS_LOSS),
        searched("scheduled", AS_SCORE, metric="score", mode="max"),
    )
    np.testing.assert_array_equal(found.params, expected.params)


def trained(name, sign):
    """A loss with the gradient of the cross-entropy, whose report, or value, is the score."""

    @jax.custom_vjp
    def value(params, batch):
        return squared(params, batch)

    value.defvjp(
        lambda params, batch: (squared(params, batch), (params, batch)),
        lambda kept, g: (g * jax.grad(loss_fn)(*kept), None),
    )
    if name == "loss":
        return value
    return lambda params, batch: (loss_fn(params, batch), {name: sign * squared(params, batch)})


def test_without_validation_a_metric_of_training_judges():
    search = functools.partial(olr.lr_find, num_steps=20, stop_factor=np.inf, progress=False)
    start = jnp.zeros(5), optax.adam, BATCHES
    expected = search(trained("loss", 1), *start)
    for name, sign, mode in (("error", 1, "min"), ("score", -1, "max")):
        found = search(trained(name, sign), *start, has_aux=True, metric=name, mode=mode)
        assert found.learning_rate == expected.learning_rate
        assert (found.low, found.high) == (expected.low, expected.high)
        assert f"training {name}" in found.reason


@pytest.fixture(scope="module")
def curves():
    sweep = functools.partial(
        olr.lr_sweep, loss_fn, jnp.zeros(5), optax.adam, BATCHES, learning_rates=np.geomspace(1e-4, 30, 9),
        num_steps=40, seeds=2, eval_batch=VALIDATION, eval_every=4, progress=False,
    )  # fmt: skip
    return sweep(eval_fn=AS_LOSS), sweep(eval_fn=AS_SCORE, metric="score", mode="max")


RULES = {
    "lowest_loss": olr.suggest.lowest_loss,
    "for_horizon": lambda curve: olr.suggest.for_horizon(curve, 400),
    "largest_stable": olr.suggest.largest_stable,
    "steepest": olr.suggest.steepest,
}


@pytest.mark.parametrize("rule", RULES)
def test_rules_read_the_metric(curves, rule):
    expected, found = (RULES[rule](curve) for curve in curves)
    assert (found.learning_rate, found.low, found.high) == (
        expected.learning_rate,
        expected.low,
        expected.high,
    )


def test_a_curve_of_a_metric(curves, tmp_path):
    expected, curve = curves
    np.testing.assert_array_equal(curve.diverged_at, expected.diverged_at)
    assert olr.diagnose(curve).kind.tolist() == olr.diagnose(expected).kind.tolist()
    assert olr.suggest.regimes(curve) == olr.suggest.regimes(expected)
    curve.save(tmp_path / "curve")
    again = olr.LRCurve.load(tmp_path / "curve")
    assert (again.metric, again.mode) == ("score", "max") and str(again) == str(curve)
    best = olr.suggest.final_losses(curve).mean(axis=0)
    place = f"{curve.learning_rates[np.nanargmin(best)]:.3g}"
    assert f"The validation score is highest at learning_rate {place}: {-np.nanmin(best):.4g}." in str(curve)
    with pytest.raises(ValueError, match="Merged curves must have the same metric that judges"):
        curve.merge(dataclasses.replace(curve, mode="min"))


def test_pictures_name_the_metric(curves):
    axes = plots.plot_lr_curve(curves[1])
    assert axes.get_ylabel() == "validation score at the end"
    drawn = axes.lines[0].get_ydata()
    shown = -olr.suggest.final_losses(curves[1]).mean(axis=0)
    np.testing.assert_array_equal(drawn, shown[np.isfinite(shown)])
    panels = plots.plot_histories(curves[1]).figure.axes
    assert "validation score" in [panel.get_ylabel() for panel in panels]
    plt.close("all")


def test_a_heat_map_frames_the_highest_score():
    found = searched("lanes", AS_SCORE, metric="score", mode="max")
    axes = found.plot()
    cells = found.combinations.eval_metrics["score"][..., -1].mean(axis=0)
    best = np.nanmax(np.where(found.combinations.stable, cells, np.nan))
    assert f"best, {best:.3g}" in axes.get_legend().get_texts()[0].get_text()
    assert axes.figure.axes[-1].get_ylabel() == "validation score after 20 steps"
    plt.close("all")


def test_a_saved_search_knows_its_metric(tmp_path):
    found = searched("constant", AS_SCORE, metric="score", mode="max")
    found.save(tmp_path / "found")
    again = olr.Suggestion.load(tmp_path / "found")
    assert again.reason == found.reason
    assert (
        olr.suggest.lowest_loss(again.curve).learning_rate
        == olr.suggest.lowest_loss(found.curve).learning_rate
    )


def test_a_search_resumes_by_its_metric_and_by_no_other(tmp_path):
    options = {"metric": "score", "mode": "max", "checkpoint": tmp_path}
    first = searched("constant", AS_SCORE, **options)
    assert searched("constant", AS_SCORE, **options).learning_rate == first.learning_rate
    with pytest.raises(ValueError, match="another search: it differs in metric"):
        searched("constant", AS_SCORE, metric="score", mode="min", checkpoint=tmp_path)


def test_modules_are_judged_by_a_metric():
    model = nnx.Linear(5, 1, rngs=nnx.Rngs(0))

    def loss(model, batch):
        return optax.sigmoid_binary_cross_entropy(model(batch[0])[..., 0], batch[1]).mean()

    def eval_fn(name, sign):
        def measure(model, batch):
            score = sign * jnp.mean((jax.nn.sigmoid(model(batch[0])[..., 0]) - batch[1]) ** 2)
            return {"loss": score, name: score}

        return measure

    options = {"eval_batch": VALIDATION, "num_steps": 10, "progress": False}
    expected = olr.nnx.lr_find(loss, model, optax.adam, BATCHES, eval_fn=eval_fn("error", 1), **options)
    found = olr.nnx.lr_find(
        loss, model, optax.adam, BATCHES, eval_fn=eval_fn("score", -1), metric="score", mode="max", **options
    )
    assert found.learning_rate == expected.learning_rate


@pytest.mark.parametrize("name", ["constant", "refind"])
def test_a_metric_that_validation_does_not_report_is_refused(name):
    with pytest.raises(
        ValueError, match=r"metric='eror' is not reported by validation \(eval_fn\): did you mean"
    ):
        searched(name, AS_ERROR, metric="eror")


def test_another_mode_is_refused(unhooked):
    sweep = functools.partial(unhooked.lr_sweep, learning_rates=[0.1])
    finders = unhooked.lr_find, sweep, functools.partial(unhooked.lr_refind, learning_rate=0.1)
    for finder in finders:
        with pytest.raises(ValueError, match="mode must be one of 'min', 'max'"):
            finder(loss_fn, jnp.zeros(5), optax.adam, BATCHES, mode="highest", progress=False)


def test_a_metric_that_training_does_not_report_is_refused():
    with pytest.raises(ValueError, match=r"metric='error' is not reported by the loss \(has_aux\)"):
        olr.lr_find(loss_fn, jnp.zeros(5), optax.adam, BATCHES, metric="error", progress=False)
