"""Training against plain loops: every form of loss, any optimizer, a start from the middle, lanes of anything."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from references import key_of_seed

import optax_lr as olr

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(12, 8, 3)).astype(np.float32)
TARGETS = np.tanh(INPUTS @ RNG.normal(size=(3, 4)).astype(np.float32))
BATCHES = (INPUTS, TARGETS)
VALIDATION = (INPUTS[-1], TARGETS[-1])
PARAMS = {"w": jnp.asarray(RNG.normal(size=(3, 4)).astype(np.float32)), "b": jnp.zeros(4)}
STATE = {"mean": jnp.zeros(3), "count": 0, "name": len}
quiet = functools.partial(olr.lr_sweep, progress=False)


def error_of(params, inputs, targets):
    return jnp.tanh(inputs @ params["w"] + params["b"]) - targets


def loss_fn(params, batch):
    return jnp.mean(error_of(params, *batch) ** 2)


def full_loss(params, model_state, batch, key):
    """All forms in one: a key (dropout), a model state (running mean, count, a function), and metrics."""
    assert model_state["name"] is len
    mean = 0.9 * model_state["mean"] + 0.1 * batch[0].mean(axis=0)
    kept = jax.random.bernoulli(key, 0.8, batch[0].shape)
    error = error_of(params, jnp.where(kept, (batch[0] - batch[0].mean(axis=0)) / 0.8, 0), batch[1])
    state = {"mean": mean, "count": model_state["count"] + 1, "name": len}
    return jnp.mean(error**2), (state, {"error": jnp.abs(error).max(), "count": model_state["count"]})


def eval_fn(params, model_state, batch):
    error = error_of(params, batch[0] - model_state["mean"], batch[1])
    return {"loss": jnp.mean(error**2), "error": jnp.abs(error).max()}


def plain_loop(
    optimizer, num_steps, *, loss=None, params=PARAMS, state=None, opt_state=None, start=0, key=None
):
    """A user's own loop over the batches in order: params, model state, optimizer state, losses, metrics."""
    tx = optax.with_extra_args_support(optimizer)
    form = loss or (lambda params, state, batch, key: (loss_fn(params, batch), (state, {})))
    static = {} if state is None else {"name": len}
    arrays = None if state is None else {name: jnp.asarray(state[name]) for name in ("mean", "count")}

    @jax.jit
    def step(params, arrays, opt_state, batch, key):
        def value(params):
            found, (new, metrics) = form(
                params, arrays if arrays is None else {**arrays, **static}, batch, key
            )
            return found, (None if new is None else {name: new[name] for name in arrays}, metrics)

        (found, (new, metrics)), gradients = jax.value_and_grad(value, has_aux=True)(params)
        updates, opt_state = tx.update(
            gradients, opt_state, params, value=found, grad=gradients, value_fn=lambda p: value(p)[0]
        )
        return optax.apply_updates(params, updates), new, opt_state, found, metrics

    opt_state = tx.init(params) if opt_state is None else opt_state
    root, losses, every = jax.random.key(0) if key is None else key, [], []
    for t in range(num_steps):
        batch = jax.tree.map(lambda leaf, t=t: leaf[start + t], BATCHES)
        params, arrays, opt_state, found, metrics = step(
            params, arrays, opt_state, batch, jax.random.fold_in(root, t)
        )
        losses.append(found)
        every.append(metrics)
    return params, arrays, opt_state, np.array(losses), every


OPTIMIZERS = {
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True),
    "adam": optax.adam,
    "adamw": optax.adamw,
    "lion": optax.lion,
    "muon": optax.contrib.muon,
    "adafactor": optax.adafactor,
    "clipped": lambda rate: optax.chain(optax.clip_by_global_norm(0.1), optax.adam(rate)),
    "injected": lambda rate: optax.inject_hyperparams(optax.adamw)(learning_rate=rate),
    "visible": lambda rate: optax.chain(optax.scale_by_adam(), olr.scale_by_learning_rate(rate)),
    "plateau": lambda rate: optax.chain(optax.sgd(rate), optax.contrib.reduce_on_plateau(patience=1)),
    "lbfgs": lambda rate: optax.chain(
        optax.lbfgs(rate, linesearch=optax.scale_by_backtracking_linesearch(5))
    ),
    "of a schedule": lambda rate: optax.adam(olr.one_cycle_schedule(rate, 20)),
    "sam": lambda rate: sam(rate),
    "sam in a chain": lambda rate: optax.chain(optax.clip_by_global_norm(0.1), sam(rate)),
    "momo": lambda rate: optax.contrib.momo(rate),
    "polyak": lambda rate: optax.polyak_sgd(rate),
}


def sam(rate):
    return optax.contrib.sam(optax.sgd(rate), optax.chain(optax.contrib.normalize(), optax.sgd(0.05)))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_equals_a_plain_loop(name):
    curve = quiet(loss_fn, PARAMS, OPTIMIZERS[name], BATCHES, learning_rates=[0.03], num_steps=5)
    tx = OPTIMIZERS[name](jnp.float32(0.03))
    # This one refuses extra arguments, in a chain too.
    alone = optax.GradientTransformation(tx.init, tx.update) if name.startswith("sam") else tx
    *_, losses, _ = plain_loop(alone, 5)
    np.testing.assert_allclose(curve.losses[0, 0], losses, rtol=2e-6, atol=1e-7)
    assert losses[-1] != losses[0]


def test_parts_of_an_optimizer_that_cannot_be_called_alike_are_named(unhooked):
    def torn(rate):
        return optax.chain(sam(rate), optax.contrib.reduce_on_plateau())

    said = (
        r"optimizer must have parts.*sam.*unexpected keyword argument.*, and .*plateau.* missing.*'value'\."
    )
    with pytest.raises(ValueError, match=said):
        unhooked.lr_sweep(loss_fn, PARAMS, torn, BATCHES, learning_rates=[0.03], num_steps=5, progress=False)


@pytest.mark.parametrize("lanes_at_once", ["auto", 2])
def test_dropout_batch_norm_and_metrics_equal_a_plain_loop(lanes_at_once):
    kept, key = jax.tree.map(np.asarray, (PARAMS, STATE["mean"])), jax.random.key(7)
    curve = quiet(
        full_loss, PARAMS, optax.adam, BATCHES, learning_rates=[0.01, 0.1], num_steps=6, seeds=2, key=key,
        with_key=True, model_state=STATE, has_aux=True, eval_fn=eval_fn, eval_batch=VALIDATION, eval_every=3,
        lanes_at_once=lanes_at_once,
    )  # fmt: skip
    for lane, rate in enumerate(curve.learning_rates):
        params, state, _, losses, metrics = plain_loop(
            optax.adam(jnp.float32(rate)), 6, loss=full_loss, state=STATE, key=key_of_seed(key, 0)
        )
        np.testing.assert_allclose(curve.losses[0, lane], losses, rtol=0, atol=1e-6)
        for name in ("error", "count"):
            expected = [said[name] for said in metrics]
            np.testing.assert_allclose(curve.metrics[name][0, lane], expected, rtol=0, atol=2e-6)
        measured = eval_fn(params, state, VALIDATION)
        np.testing.assert_allclose(curve.eval_losses[0, lane, 1], measured["loss"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(curve.eval_metrics["error"][0, lane, 1], measured["error"], atol=2e-6)
    assert set(curve.metrics) == {"error", "count"} and set(curve.eval_metrics) == {"error"}
    assert curve.metrics["error"].shape == (2, 2, 6) and curve.eval_metrics["error"].shape == (2, 2, 2)
    assert not np.allclose(curve.losses[0], curve.losses[1])
    jax.tree.map(np.testing.assert_array_equal, kept, (PARAMS, STATE["mean"]))


@pytest.mark.parametrize(
    ("options", "loss"),
    [
        ({"with_key": True}, lambda params, batch, key: full_loss(params, STATE, batch, key)[0]),
        ({"has_aux": True}, lambda params, batch: (loss_fn(params, batch), {"error": 1})),
        (
            {"model_state": STATE, "has_aux": True},
            lambda params, state, batch: full_loss(params, state, batch, jax.random.key(0)),
        ),
        (
            {"model_state": STATE},
            lambda params, state, batch: (loss_fn(params, batch), {**state, "count": state["count"] + 1}),
        ),
    ],
)
def test_each_form_of_loss_is_evaluated_too(options, loss):
    # At a rate that moves nothing every evaluation is the same: the key of an evaluation is one.
    curve = quiet(
        loss, PARAMS, optax.sgd, BATCHES, learning_rates=[1e-30], num_steps=3, eval_batch=VALIDATION,
        eval_every=1, **options,
    )  # fmt: skip
    assert np.isfinite(curve.losses).all() and len(set(curve.eval_losses.ravel().tolist())) == 1
    assert set(curve.metrics) == set(curve.eval_metrics) == ({"error"} if options == {"has_aux": True} else
        {"error", "count"} if "has_aux" in options else set())  # fmt: skip


def test_a_model_state_may_hold_random_keys():
    def loss(params, streams, batch):
        key, noise = jax.random.split(streams)
        return loss_fn(params, batch) + 0.1 * jax.random.normal(noise), key

    curve = quiet(
        loss, PARAMS, optax.sgd, BATCHES, learning_rates=[0.1], num_steps=2, model_state=jax.random.key(1)
    )
    key = jax.random.split(jax.random.key(1))[0]
    first = loss(PARAMS, jax.random.key(1), (INPUTS[0], TARGETS[0]))[0]
    np.testing.assert_allclose(curve.losses[0, 0, 0], first, rtol=1e-6)
    second = plain_loop(optax.sgd(0.1), 2)[3][1] + 0.1 * jax.random.normal(jax.random.split(key)[1])
    np.testing.assert_allclose(curve.losses[0, 0, 1], second, rtol=1e-6)


def test_random_keys_in_the_best_finalists_model_state_are_keys_again():
    def loss(params, streams, batch):
        return loss_fn(params, batch), {"key": jax.random.split(streams["key"])[0]}

    found = olr.lr_find(
        loss, PARAMS, optax.sgd, BATCHES, model_state={"key": jax.random.key(1)}, eval_batch=VALIDATION, horizon=2,
        schedule=lambda peak: lambda step: peak, num_steps=2, seeds=1, min_learning_rate=1e-2,
        max_learning_rate=0.1, progress=False,
    )  # fmt: skip
    expected = jax.random.split(jax.random.split(jax.random.key(1))[0])[0]
    assert found.model_state["key"] == expected


def test_params_and_model_state_may_be_drawn_together():
    drawn = []

    def draw(key):
        drawn.append(jax.random.key_data(key).tolist())
        return jax.random.normal(key, (3,))

    def loss(params, state, batch):
        return jnp.sum((params - state) ** 2) + 0 * jnp.sum(batch[0]), state

    curve = quiet(
        loss, draw, optax.sgd, BATCHES, learning_rates=[0.1], num_steps=1, seeds=2, model_state=draw
    )
    assert (curve.losses == 0).all() and drawn[:2] == drawn[2:] and drawn[0] != drawn[1]


RESUMED = {
    "adam": (OPTIMIZERS["adam"], lambda rate: optax.adam(rate), lambda state: state),
    "injected": (
        OPTIMIZERS["injected"],
        OPTIMIZERS["injected"],
        lambda state: olr.set_learning_rate(state, 5.0),
    ),
    "visible": (
        OPTIMIZERS["visible"],
        OPTIMIZERS["visible"],
        lambda state: olr.set_learning_rate(state, 5.0),
    ),
    "a schedule's": (optax.adam, lambda rate: optax.adam(lambda step: rate), lambda state: state),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_start_from_the_middle_goes_on_as_if_never_left(name):
    swept, trained, touched = RESUMED[name]
    *_, through, _ = plain_loop(trained(0.03), 8)
    params, _, opt_state, _, _ = plain_loop(trained(0.03), 4)
    later = jax.tree.map(lambda leaf: leaf[4:], BATCHES)
    curve = quiet(
        loss_fn, params, swept, later, learning_rates=[0.03, 0.3], num_steps=4, opt_state=touched(opt_state)
    )
    np.testing.assert_allclose(curve.losses[0, 0], through[4:], rtol=1e-5)
    other = plain_loop(trained(0.3), 4, params=params, opt_state=_at(opt_state, 0.3, name), start=4)[3]
    np.testing.assert_allclose(curve.losses[0, 1], other, rtol=1e-5)


def _at(opt_state, rate, name):
    return olr.set_learning_rate(opt_state, rate) if name in ("injected", "visible") else opt_state


def test_a_scheduled_search_starts_from_the_middle_too():
    def peak(rate):
        return lambda step: jnp.float32(rate)

    params, _, opt_state, _, _ = plain_loop(optax.adam(lambda step: 0.03), 2)
    found = olr.lr_find(
        loss_fn, params, optax.adam, BATCHES, eval_batch=VALIDATION, opt_state=opt_state, horizon=6,
        schedule=peak, num_steps=3, seeds=1, progress=False, min_learning_rate=1e-3, max_learning_rate=0.1,
    )  # fmt: skip
    full = found.finalists
    expected = plain_loop(
        optax.adam(lambda step: np.float32(full.learning_rates[0])), 6, params=params, opt_state=opt_state
    )[3]
    np.testing.assert_allclose(full.losses[0, 0], expected, rtol=1e-5)


def test_the_best_finalist_hands_over_its_model_state():
    found = olr.lr_find(
        full_loss, PARAMS, optax.sgd, BATCHES, with_key=True, model_state=STATE, has_aux=True, eval_fn=eval_fn,
        eval_batch=VALIDATION, horizon=4, schedule=lambda peak: lambda step: peak, num_steps=2, seeds=1,
        min_learning_rate=1e-2, max_learning_rate=0.1, progress=False,
    )  # fmt: skip
    assert found.model_state["count"] == 4 and found.model_state["name"] is len
    measured = eval_fn(found.params, found.model_state, VALIDATION)["loss"]
    best = np.nanargmin(found.finalists.eval_losses[0, :, -1])
    np.testing.assert_allclose(measured, found.finalists.eval_losses[0, best, -1], rtol=1e-5)


@pytest.mark.parametrize("factory", [optax.adamw, optax.inject_hyperparams(optax.adamw)])
def test_lanes_of_more_hyperparameters_equal_plain_loops(factory):
    lanes = olr.grid(learning_rate=[0.1, 0.01], weight_decay=[0.0, 1.0])
    curve = quiet(loss_fn, PARAMS, factory, BATCHES, lanes=lanes, num_steps=4)
    for lane in range(4):
        one = {name: jnp.float32(values[lane]) for name, values in lanes.items()}
        np.testing.assert_allclose(curve.losses[0, lane], plain_loop(optax.adamw(**one), 4)[3], rtol=1e-5)
    assert {name: values.tolist() for name, values in curve.lanes.items()} == {
        "learning_rate": [0.1, 0.1, 0.01, 0.01],
        "weight_decay": [0.0, 1.0, 0.0, 1.0],
    }
    assert curve.axes == ["learning_rate", "weight_decay"]


def test_lanes_may_be_whole_numbers_and_have_a_schedule():
    def factory(learning_rate, start):
        return optax.sgd(lambda step: jnp.where(step >= start, learning_rate(step), 0.0))

    lanes = olr.grid(learning_rate=[0.1], start=[0, 2])
    curve = quiet(
        loss_fn, PARAMS, factory, BATCHES, lanes=lanes, num_steps=4,
        schedule=lambda peak: olr.anneal_schedule(peak, 0.0, 4),
    )  # fmt: skip
    for lane, begin in enumerate((0, 2)):
        tx = factory(olr.anneal_schedule(0.1, 0.0, 4), begin)
        np.testing.assert_allclose(curve.losses[0, lane], plain_loop(tx, 4)[3], rtol=1e-5)


WARMED = {
    "optax's": lambda peak: optax.warmup_cosine_decay_schedule(0.0, peak, 2, 10),
    "with an if": lambda peak: lambda step: peak * step / 4 if step < 4 else peak,
    "of numpy": lambda peak: lambda step: peak * np.cos(step / 10),
    "restarts": lambda peak: optax.sgdr_schedule(
        [{"init_value": 0.0, "peak_value": peak, "warmup_steps": 1, "decay_steps": 5, "end_value": 0.0}] * 2
    ),
}


@pytest.mark.parametrize("name", WARMED)
def test_a_schedule_may_be_any_function_of_the_step(name):
    schedule = WARMED[name]
    curve = quiet(
        loss_fn, PARAMS, optax.adam, BATCHES, learning_rates=[0.01, 0.1], num_steps=10, schedule=schedule
    )
    for lane, peak in enumerate((0.01, 0.1)):
        table = jnp.array([float(schedule(peak)(step)) for step in range(10)], jnp.float32)
        own = plain_loop(optax.adam(lambda step, table=table: table[step]), 10)[3]
        np.testing.assert_allclose(curve.losses[0, lane], own, rtol=1e-5)


COUNTED = {
    "MultiSteps": lambda rate: optax.MultiSteps(optax.adam(rate), 3).gradient_transformation(),
    "apply_if_finite": lambda rate: optax.apply_if_finite(optax.adam(rate), 5),
    "inject_hyperparams": lambda rate: optax.inject_hyperparams(optax.adam)(learning_rate=rate),
    "half the rate": lambda rate: optax.adam(lambda step: 0.5 * rate(step)),
}


@pytest.mark.parametrize("name", COUNTED)
def test_an_optimizer_reads_the_schedule_by_its_own_clock(name):
    schedule = lambda peak: olr.one_cycle_schedule(peak, 10)  # noqa: E731
    factory = COUNTED[name]
    curve = quiet(loss_fn, PARAMS, factory, BATCHES, learning_rates=[0.1], num_steps=10, schedule=schedule)
    own = plain_loop(factory(schedule(0.1)), 10)[3]
    np.testing.assert_allclose(curve.losses[0, 0], own, rtol=1e-5)


def test_an_optimizer_whose_state_holds_the_rate_is_handed_numbers():
    curve = quiet(loss_fn, PARAMS, optax.rprop, BATCHES, learning_rates=[0.001, 0.01], num_steps=6)
    for lane, rate in enumerate((0.001, 0.01)):
        np.testing.assert_allclose(curve.losses[0, lane], plain_loop(optax.rprop(rate), 6)[3], rtol=1e-5)


def test_a_factory_may_make_a_schedule_of_its_peak():
    factory = lambda peak: optax.adam(olr.one_cycle_schedule(peak, 10))  # noqa: E731
    curve = quiet(loss_fn, PARAMS, factory, BATCHES, learning_rates=[0.01, 0.1], num_steps=10)
    for lane, peak in enumerate((0.01, 0.1)):
        np.testing.assert_allclose(curve.losses[0, lane], plain_loop(factory(peak), 10)[3], rtol=1e-5)


@pytest.mark.parametrize("given", [olr.one_cycle_schedule, None], ids=["scheduled", "constant"])
def test_an_optimizer_that_takes_numbers_alone_is_handed_them(given):
    factory = lambda rate: optax.chain(optax.scale_by_adam(), optax.scale(-rate))  # noqa: E731
    schedule = None if given is None else lambda peak: given(peak, 10)
    options = {"learning_rates": [0.01, 0.1], "num_steps": 10, "schedule": schedule}
    one, other = (quiet(loss_fn, PARAMS, each, BATCHES, **options) for each in (factory, optax.adam))
    np.testing.assert_allclose(one.losses, other.losses, rtol=1e-5)


def warmed(peak):
    return optax.adam(optax.warmup_cosine_decay_schedule(0.0, peak, 2, 10))


REFUSED = [
    ({"optimizer": warmed}, "optimizer must not branch on the value"),
    ({"schedule": lambda peak: peak}, "schedule must be a function of the peak to a function of the step"),
    ({"schedule": lambda peak: lambda step: np.inf}, "schedule must give a finite number at every step"),
    ({"optimizer": lambda rate: optax.sgd(float(rate))}, "optimizer must not branch on the value"),
    ({"optimizer": lambda rate: optax.sgd(np.log(rate))}, "optimizer must not branch on the value"),
    ({"with_key": True}, r"loss_fn must take \(params, batch, key\): too many positional arguments"),
    ({"model_state": {}}, r"loss_fn must take \(params, model_state, batch\): too many"),
    ({"has_aux": True}, r"loss_fn must return \(loss, metrics\), the loss one scalar, got \(\)\."),
    ({"loss_fn": lambda p, b: (p["b"][0], {})}, r"one scalar, got .*; what is beside it needs has_aux or"),
    (
        {"loss_fn": lambda p, s, b: p["b"].sum(), "model_state": jnp.zeros(2)},
        r"must return \(loss, new_state\), the loss one scalar, got \(\)",
    ),
    (
        {"loss_fn": lambda p, s, b: (p["b"].sum(), {}), "model_state": jnp.zeros(2), "has_aux": True},
        r"must return \(loss, \(new_state, metrics\)\), the loss one scalar",
    ),
    (
        {"loss_fn": lambda p, s, b: (p["b"].sum(), s[:1]), "model_state": jnp.zeros(2)},
        r"new model_state like the one it was given, but it has float32\[1\] at .* in place of float32\[2\]",
    ),
    (
        {"loss_fn": lambda p, s, b: (p["b"].sum(), {}), "model_state": {"mean": jnp.zeros(2)}},
        r"new model_state like the one it was given, but it lacks \['mean'\]",
    ),
    (
        {"loss_fn": lambda p, b: (p["b"].sum(), {"e": p["b"]}), "has_aux": True},
        r"loss_fn must return a scalar as metric 'e', got \(4,\)",
    ),
    (
        {"loss_fn": lambda p, b: (p["b"].sum(), p["b"].sum()), "has_aux": True},
        r"loss_fn must return its metrics as a dict of scalars, got \(\)",
    ),
    (
        {"loss_fn": lambda p, b: (p["b"].sum(), {"loss": p["b"].sum()}), "has_aux": True},
        "loss_fn must not report 'loss' among its metrics",
    ),
    ({"eval_fn": lambda p, b: 0.0}, "eval_fn needs eval_batch"),
    (
        {"eval_fn": lambda p, b: {"error": 0.0}, "eval_batch": VALIDATION},
        r"eval_fn must return a loss or a dict with \"loss\", got \['error'\]",
    ),
    (
        {"eval_fn": lambda p, b: (p["b"].sum(), {"error": 0.0}), "eval_batch": VALIDATION},
        r"eval_fn must return a scalar as metric 'loss', or several as a dict of scalars, got \(\(\), ",
    ),
    (
        {"opt_state": optax.adam(0.1).init(PARAMS)},
        r"opt_state must be as optimizer\(learning_rate\)\.init\(params\) makes it, but it also has \[0\]\.count",
    ),
    (
        {"opt_state": optax.sgd(0.1, 0.9).init({"w": jnp.zeros(2), "b": jnp.zeros(4)})},
        r"makes it, but it also has \[0\]\.trace",
    ),
    (
        {"opt_state": optax.adam(0.1).init({"w": jnp.zeros(2), "b": jnp.zeros(4)}), "optimizer": optax.adam},
        r"makes it, but it has float32\[2\] at \[0\]\.mu\['w'\] in place of float32\[3, 4\]",
    ),
    (
        {"learning_rates": None, "lanes": {"learning_rate": [0.1], "beta": [0.9]}, "optimizer": optax.adamw},
        r"optimizer must take the names of lanes as keywords, learning_rate, beta: got an unexpected keyword",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "sentence"), REFUSED)
def test_wrong_input_gets_one_sentence(unhooked, changes, sentence):
    arguments = {
        "loss_fn": loss_fn,
        "params": PARAMS,
        "optimizer": optax.sgd,
        "batches": BATCHES,
        "learning_rates": [0.1],
        "num_steps": 2,
        "progress": False,
    } | changes
    with pytest.raises(ValueError, match=sentence) as refusal:
        unhooked.lr_sweep(**arguments)
    assert "\n" not in str(refusal.value) and str(refusal.value).endswith(".")
