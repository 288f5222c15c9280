"""The range test against a plain loop, and its smoothing, stop and rules against the formulas of fastai."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_lr as olr
from optax_lr import suggest

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(50, 16, 3)).astype(np.float32)
TARGETS = INPUTS @ np.array([1.0, -2.0, 0.5], np.float32) + 0.1 * RNG.normal(size=(50, 16)).astype(np.float32)
BATCHES, VALIDATION = (INPUTS, TARGETS), (INPUTS[-1], TARGETS[-1])
PARAMS = {"w": jnp.zeros(3), "b": jnp.zeros(())}
BOUNDS = {"min_learning_rate": 1e-4, "max_learning_rate": 10.0}
quiet = functools.partial(olr.lr_range_test, progress=False)


def loss_fn(params, batch):
    return jnp.mean((batch[0] @ params["w"] + params["b"] - batch[1]) ** 2)


def ramp(shape, num_steps, low=1e-4, high=10.0):
    return np.geomspace(low, high, num_steps) if shape == "exponential" else np.linspace(low, high, num_steps)


def plain_loop(factory, rates, params=PARAMS, opt_state=None, order=None, eval_batch=None):
    """One run whose optimizer is made anew at every step, with that step's rate: losses before each update."""
    losses, evals = [], []

    @jax.jit
    def step(params, state, rate, batch):
        loss, gradients = jax.value_and_grad(loss_fn)(params, batch)
        updates, state = factory(rate).update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    state = factory(rates[0]).init(params) if opt_state is None else opt_state
    for t, rate in enumerate(np.asarray(rates, np.float32)):
        index = t % len(INPUTS) if order is None else order[t]
        params, state, loss = step(params, state, rate, (INPUTS[index], TARGETS[index]))
        losses.append(loss)
        if eval_batch is not None:
            evals.append(loss_fn(params, eval_batch))
    return np.array(losses, np.float64), np.array(evals, np.float64)


def fastai(losses, smoothing=0.98, factor=4.0):
    """fastai's recorder and its stop, in float64: smoothed losses up to and with the stop, and where it is."""
    average, smooth = 0.0, []
    for t, loss in enumerate(losses):
        average = smoothing * average + (1 - smoothing) * loss
        smooth.append(average / (1 - smoothing ** (t + 1)))
        if not np.isfinite(smooth[-1]) or smooth[-1] > factor * min(smooth):
            return np.array(smooth), t
    return np.array(smooth), None


@pytest.mark.parametrize("shape", ["exponential", "linear"])
def test_a_ramp_equals_a_plain_loop_smoothed_and_stopped(shape):
    curve = quiet(loss_fn, PARAMS, optax.sgd, BATCHES, num_steps=60, shape=shape, seeds=2, **BOUNDS)
    rates = ramp(shape, 60)
    np.testing.assert_allclose(curve.learning_rates, rates, rtol=2e-6)
    losses, _ = plain_loop(optax.sgd, rates)
    smooth, stop = fastai(losses)
    assert stop is not None and stop < 59
    assert curve.losses.shape == (2, 60, 1) and curve.eval_losses is None and curve.lane_steps == 120
    np.testing.assert_allclose(curve.losses[0, : stop + 1, 0], smooth, rtol=1e-4)
    np.testing.assert_allclose(
        curve.metrics["unsmoothed_loss"][0, : stop + 1, 0], losses[: stop + 1], rtol=1e-3
    )
    assert np.isnan(curve.losses[0, stop + 1 :]).all()
    assert curve.diverged_at[0].tolist() == [-1] * stop + [0] * (60 - stop)
    assert not np.allclose(curve.losses[0, :5], curve.losses[1, :5])


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_smoothing_and_stop_are_what_is_asked_for(smoothing):
    losses, _ = plain_loop(optax.sgd, ramp("exponential", 40))
    for factor in (1.5, 100.0):
        curve = quiet(
            loss_fn,
            PARAMS,
            optax.sgd,
            BATCHES,
            num_steps=40,
            smoothing=smoothing,
            stop_factor=factor,
            **BOUNDS,
        )
        smooth, stop = fastai(losses, smoothing, factor)
        assert (curve.diverged_at[0] == 0).argmax() == stop
        np.testing.assert_allclose(curve.losses[0, : stop + 1, 0], smooth, rtol=1e-3)


def test_the_rules_read_a_ramp_as_their_formulas_do():
    curve = quiet(loss_fn, PARAMS, optax.sgd, BATCHES, num_steps=50, seeds=3, **BOUNDS)
    kept = curve.stable
    rates, means = curve.learning_rates[kept], curve.losses[:, kept, 0].astype(np.float64).mean(axis=0)
    steepest = rates[np.argmin(np.gradient(means, np.log(rates)))]
    np.testing.assert_allclose(suggest.steepest(curve).learning_rate, steepest)
    np.testing.assert_allclose(suggest.minimum_over_ten(curve).learning_rate, rates[np.argmin(means)] / 10)
    assert rates[0] < suggest.valley(curve).learning_rate < rates[-1]
    # The largest stable rate of this quadratic is 2 / (largest curvature of the mean batch), up to the noise.
    hessian = 2 * np.mean([np.c_[x, np.ones(16)].T @ np.c_[x, np.ones(16)] / 16 for x in INPUTS], axis=0)
    limit = 2 / np.linalg.eigvalsh(hessian).max()
    assert suggest.steepest(curve).learning_rate < limit < 3 * suggest.largest_stable(curve).learning_rate
    trimmed = curve.take(slice(5, -5))
    assert trimmed.learning_rates[0] == curve.learning_rates[5] and suggest.classic(trimmed)


def test_validation_losses_are_taken_at_every_point_and_stop_it():
    curve = quiet(
        loss_fn, PARAMS, optax.sgd, BATCHES, num_steps=40, smoothing=0.5, eval_batch=VALIDATION,
        eval_fn=lambda params, batch: {"loss": loss_fn(params, batch), "bias": params["b"]}, **BOUNDS,
    )  # fmt: skip
    losses, evals = plain_loop(optax.sgd, ramp("exponential", 40), eval_batch=VALIDATION)
    smooth, stop = fastai(evals, 0.5)
    assert stop != fastai(losses, 0.5)[1]
    np.testing.assert_allclose(curve.eval_losses[0, : stop + 1, 0], smooth, rtol=1e-3)
    assert curve.diverged_at[0].tolist() == [-1] * stop + [0] * (40 - stop)
    assert set(curve.eval_metrics) == {"bias", "unsmoothed_loss"} and curve.eval_steps.tolist() == [1]
    assert suggest.steepest(curve).learning_rate > 0


@pytest.mark.parametrize(
    "factory",
    [
        lambda rate: optax.sgd(rate, momentum=0.9),
        lambda rate: optax.inject_hyperparams(optax.adamw)(learning_rate=rate),
        lambda rate: optax.chain(optax.scale_by_adam(), olr.scale_by_learning_rate(rate)),
    ],
)
def test_the_ramp_begins_where_a_run_stands(factory):
    def visible(state, rate):
        try:
            return olr.set_learning_rate(state, rate)
        except ValueError:
            return state

    started = factory(0.01)
    state = started.init(PARAMS)
    for _ in range(7):
        _, state = started.update(jax.tree.map(jnp.ones_like, PARAMS), state, PARAMS)
    curve = quiet(
        loss_fn,
        PARAMS,
        factory,
        BATCHES,
        num_steps=12,
        smoothing=0.0,
        opt_state=visible(state, 3.0),
        **BOUNDS,
    )

    def fresh(rate):
        inner = factory(rate)
        return optax.GradientTransformation(inner.init, lambda g, s, p: inner.update(g, visible(s, rate), p))

    losses, _ = plain_loop(fresh, ramp("exponential", 12), opt_state=state)
    stop = fastai(losses, 0.0)[1]
    np.testing.assert_allclose(curve.losses[0, :stop, 0], losses[:stop], rtol=1e-4)


def test_losses_below_zero_do_not_stop_it_at_once():
    curve = quiet(
        lambda w, x: jnp.mean(w * x) - 5,
        jnp.zeros(()),
        optax.sgd,
        jnp.ones((1, 4)),
        num_steps=20,
        max_learning_rate=1.0,
    )
    assert curve.stable.all() and curve.losses[0, -1, 0] < -5


def test_data_that_is_not_finite_stops_the_ramp_there():
    inputs = np.where(np.arange(50)[:, None, None] == 7, np.nan, INPUTS).astype(np.float32)
    curve = quiet(loss_fn, PARAMS, optax.sgd, (inputs, TARGETS), num_steps=20)
    assert curve.diverged_at[0].tolist() == [-1] * 7 + [0] * 13
    assert np.isfinite(curve.losses[0, :7]).all() and np.isnan(curve.losses[0, 7:]).all()


def test_a_loss_that_is_infinite_from_the_start_names_the_batch():
    with pytest.raises(RuntimeError, match=r"at step 0; the loss of batch 0 is inf before any training"):
        quiet(loss_fn, {**PARAMS, "b": jnp.float32(np.inf)}, optax.sgd, BATCHES, num_steps=5)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"shape": "cosine"}, "shape must be one of 'exponential', 'linear', got 'cosine'"),
        ({"smoothing": 1.0}, r"smoothing must be a finite number of at least 0 and below 1, got 1\.0"),
        ({"stop_factor": 1.0}, r"stop_factor must be a finite number above 1, got 1\.0"),
        ({"num_steps": 1}, "num_steps must be a whole number of steps from 2"),
        ({"max_learning_rate": 1e-8}, "max_learning_rate must be above min_learning_rate=1e-07, got 1e-08"),
        ({"seeds": 0}, "seeds must be"),
        ({"batches": []}, "at least one batch, got an empty iterable"),
        ({"with_key": True}, r"loss_fn must take \(params, batch, key\)"),
    ],
)
def test_wrong_input_gets_one_sentence(unhooked, changes, sentence):
    arguments = {"batches": BATCHES, "progress": False, "num_steps": 3} | changes
    with pytest.raises(ValueError, match=sentence):
        unhooked.lr_range_test(loss_fn, PARAMS, optax.sgd, arguments.pop("batches"), **arguments)


@pytest.fixture(scope="module")
def checked():
    return quiet(loss_fn, PARAMS, optax.sgd, BATCHES, num_steps=40, check_runs=5, seeds=2)


def test_short_runs_check_a_ramp_and_are_counted(checked, tmp_path):
    plain = quiet(loss_fn, PARAMS, optax.sgd, BATCHES, num_steps=40, seeds=2)
    short = checked.checked
    assert plain.checked is None and 3 <= len(short.learning_rates) <= 5
    assert short.losses.shape == (2, len(short.learning_rates), 40)
    np.testing.assert_array_equal(checked.losses, plain.losses)
    assert checked.lane_steps == plain.lane_steps + short.lane_steps
    np.testing.assert_allclose(short.learning_rates[1:] / short.learning_rates[:-1] > 1.2, True)
    checked.save(tmp_path / "curve.npz")
    loaded = olr.LRCurve.load(tmp_path / "curve.npz")
    np.testing.assert_array_equal(loaded.checked.losses, short.losses)


def test_bounds_of_a_checked_ramp_have_their_peak_where_short_runs_are_best(checked):
    base, peak = olr.suggest.cyclical_bounds(checked)
    losses = olr.suggest.final_losses(checked.checked).mean(axis=0)
    assert peak == checked.checked.learning_rates[np.nanargmin(losses)] and 0 < base <= peak / 4


def test_no_more_rates_are_checked_than_allowed(unhooked):
    assert (
        len(quiet(loss_fn, PARAMS, optax.sgd, BATCHES, num_steps=40, check_runs=2).checked.learning_rates)
        == 2
    )
    with pytest.raises(ValueError, match="check_runs must be"):
        unhooked.lr_range_test(lambda w, x: (w - x) ** 2, 0.5, optax.sgd, np.ones(20), check_runs=-1)
