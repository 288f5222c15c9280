"""What the clocks of starts and schedules count: optimizer steps, whatever stands inside or around."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_lr as olr
from optax_lr.layers import per_label, unfreezing

CALLS, EVERY, START = 36, 3, 4
LABELS = {"body": "body", "head": "head"}
PARAMS = {"body": jnp.zeros(2), "head": jnp.zeros(2)}
DRAWN = np.random.default_rng(0).normal(size=(CALLS, 2, 2)).astype(np.float32)
SCHEDULE = olr.one_cycle_schedule(0.1, 12)


def multiplier(count):
    return 1.0 / (1.0 + count)


def with_nans():
    """Gradients `[calls, label, 2]`, of which some of the head's are not finite."""
    grads = DRAWN.copy()
    grads[[4, 5, 20], 1, 0] = np.nan
    return grads


def windows(grads):
    """The means of every `EVERY` gradients."""
    return grads[: len(grads) // EVERY * EVERY].reshape(-1, EVERY, 2, 2).mean(1)


def finite(grads):
    return grads[np.isfinite(grads).all((1, 2))]


def multi_steps(tx, **options):
    return optax.MultiSteps(tx, EVERY, **options).gradient_transformation()


# A wrapper, the gradients that it is given, and those with which it makes optimizer steps.
WRAPPERS = {
    "none": (lambda tx: tx, DRAWN, DRAWN),
    "MultiSteps": (multi_steps, DRAWN, windows(DRAWN)),
    "apply_if_finite": (lambda tx: optax.apply_if_finite(tx, 5), with_nans(), finite(with_nans())),
    "skip_not_finite": (
        lambda tx: multi_steps(tx, should_skip_update_fn=optax.skip_not_finite),
        with_nans(),
        windows(finite(with_nans())),
    ),
    "apply_if_finite of MultiSteps": (
        lambda tx: optax.apply_if_finite(multi_steps(tx), 5),
        with_nans(),
        windows(finite(with_nans())),
    ),
}


def adam(grads, rates, scales):
    """Adam as its paper writes it (Kingma & Ba 2015, Algorithm 1), in float64: the sum of its updates."""
    first, second, total = 0.0, 0.0, 0.0
    for t, (grad, rate, scale) in enumerate(zip(grads.astype(float), rates, scales, strict=True), 1):
        first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad**2
        step = first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        total = total - rate * scale * step
    return total


def run(tx, grads):
    def step(carry, grad):
        updates, state = tx.update({"body": grad[0], "head": grad[1]}, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    return jax.jit(lambda: jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), grads)[0])()


@pytest.mark.parametrize("place", ["inside", "outside"])
@pytest.mark.parametrize("clock", ["run", "label"])
@pytest.mark.parametrize("name", WRAPPERS)
def test_starts_and_schedules_count_optimizer_steps(name, clock, place):
    wrap, grads, steps = WRAPPERS[name]
    inner = optax.adam(SCHEDULE)
    tx = olr.fine_tune(
        wrap(inner) if place == "inside" else inner,
        {"body": 1.0, "head": multiplier},
        LABELS,
        starts={"body": START},
        clock=clock,
    )
    params, _ = run(wrap(tx) if place == "outside" else tx, grads)
    count = np.arange(len(steps))
    rates = np.asarray(jax.vmap(SCHEDULE)(count), float)
    np.testing.assert_allclose(params["head"], adam(steps[:, 1], rates, multiplier(count)), rtol=2e-4)
    late = rates[START:] if clock == "run" else rates[: len(steps) - START]
    ones = np.ones(len(late))
    np.testing.assert_allclose(params["body"], adam(steps[START:, 0], late, ones), rtol=2e-4)


def test_one_cycle_ends_for_a_late_label_where_the_run_ends():
    schedule = olr.one_cycle_schedule(1.0, 100)
    tx = olr.fine_tune(optax.sgd(schedule), {"head": 1.0, "body": 1.0}, LABELS, starts={"body": 50})
    state, update = tx.init(PARAMS), jax.jit(tx.update)
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    for _ in range(100):
        updates, state = update(ones, state, PARAMS)
    assert updates["body"][0] == updates["head"][0] == -schedule(99)


def test_what_looks_at_all_gradients_sees_all_that_train():
    inner = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
    tx = olr.fine_tune(inner, {"head": 1.0, "body": 1.0}, LABELS, starts={"body": 1})
    state, grads = tx.init(PARAMS), {"body": jnp.array([3.0, 0.0]), "head": jnp.array([0.0, 4.0])}
    updates, state = tx.update(grads, state, PARAMS)
    assert updates["head"].tolist() == [0.0, -1.0] and not updates["body"].any()
    updates, state = tx.update(grads, state, PARAMS)
    np.testing.assert_allclose([updates["body"][0], updates["head"][1]], [-0.6, -0.8], rtol=1e-6)


def test_a_gradient_that_is_not_finite_is_nobodys_before_its_label_begins():
    grads = {"body": jnp.full(2, jnp.nan), "head": jnp.ones(2)}
    for inner in (
        optax.adam(0.1),
        optax.apply_if_finite(optax.adam(0.1), 3),
        optax.chain(optax.clip_by_global_norm(9.0), optax.adam(0.1)),
    ):
        tx = olr.unfreeze_at(inner, {"body": 1}, LABELS)
        updates, state = tx.update(grads, tx.init(PARAMS), PARAMS)
        np.testing.assert_allclose(updates["head"], -0.1, rtol=1e-5)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((updates, state)))


OPTIMIZERS = {
    "adamw": lambda rate: optax.adamw(rate),
    "nadamw, masked decay": lambda rate: optax.nadamw(rate, mask={"body": True, "head": False}),
    "adafactor": lambda rate: optax.adafactor(rate, min_dim_size_to_factor=2),
    "lion": lambda rate: optax.lion(rate),
    "lamb": lambda rate: optax.lamb(rate),
    "rmsprop": lambda rate: optax.rmsprop(rate, bias_correction=True, initial_scale=0.0),
    "radam": lambda rate: optax.radam(rate),
    "sgd": lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True),
    "injected": lambda rate: optax.inject_hyperparams(optax.adam)(rate),
    "visible": lambda rate: optax.chain(optax.scale_by_adam(), olr.scale_by_learning_rate(rate)),
    "gains": lambda rate: optax.chain(olr.scale_by_local_gains(), optax.scale_by_learning_rate(rate)),
    "rprop": lambda rate: olr.scale_by_rprop(initial_step=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_late_label_trains_as_under_a_fresh_optimizer_of_its_own(name):
    start, steps, rate = 3, 8, 0.05
    normal = np.random.default_rng(1).normal
    params = {
        "body": jnp.asarray(normal(size=(4, 3)), jnp.float32),
        "head": jnp.asarray(normal(size=(4, 3)), jnp.float32),
    }
    grads = [
        jax.tree.map(lambda leaf: jnp.asarray(normal(size=leaf.shape), jnp.float32), params)
        for _ in range(steps)
    ]

    def path(tx, params, grads):
        state, emitted = tx.init(params), []
        for grad in grads:
            updates, state = tx.update(grad, state, params)
            params = optax.apply_updates(params, updates)
            emitted.append(updates)
        return emitted

    make = OPTIMIZERS[name]
    late = path(olr.unfreeze_at(make(rate), {"body": start}, LABELS), params, grads)
    alone = path(make(rate), params, grads)
    fresh = path(make(rate), params, grads[start:])
    # RAdam subtracts numbers near 2000: Optax's own differs by that much between eager and compiled.
    close = {"rtol": 1e-2 if name == "radam" else 2e-5, "atol": 1e-7}
    for step in range(steps):
        np.testing.assert_allclose(late[step]["head"], alone[step]["head"], **close)
        wanted = fresh[step - start]["body"] if step >= start else jnp.zeros((4, 3))
        np.testing.assert_allclose(late[step]["body"], wanted, **close)


def test_a_bare_array_and_a_bare_scalar_wake_up_fresh():
    for params in (jnp.ones(3), jnp.ones(())):
        tx = olr.unfreeze_at(
            optax.chain(optax.scale_by_adam(), olr.scale_by_learning_rate(SCHEDULE)), {"all": 5}, "all"
        )
        state = tx.init(params)
        for _ in range(6):
            updates, state = tx.update(params, state, params)
        np.testing.assert_allclose(updates, -SCHEDULE(5), rtol=1e-5)
        assert updates.shape == params.shape and olr.get_learning_rate(state) == SCHEDULE(5)


def test_a_parameter_may_have_the_name_of_a_counter():
    params = {"count": jnp.ones(()), "mu": jnp.ones(2), "learning_rate": jnp.ones(2)}
    inner = optax.chain(optax.scale_by_adam(), olr.scale_by_learning_rate(SCHEDULE))
    tx = olr.unfreeze_at(inner, {"count": 3}, olr.label_by_path({"count": "count", ".*": "rest"}))
    state = tx.init(params)
    assert list(state.late["count"]) == ["0/count"]
    for step in range(5):
        updates, state = tx.update(params, state, params)
        np.testing.assert_allclose(updates["mu"], -SCHEDULE(step), rtol=1e-4)
        np.testing.assert_allclose(updates["count"], -SCHEDULE(step) if step >= 3 else 0.0, rtol=1e-4)


@pytest.mark.parametrize("clock", ["run", "label"])
@pytest.mark.parametrize("names", [("body", "head"), ("slow", "fast")], ids=["of parameters", "others"])
def test_multipliers_and_records_inside_keep_the_clock_whatever_labels_are_called(names, clock):
    """A label may have the name of a parameter: what is kept by label is no moment of that parameter."""
    labels = dict(zip(PARAMS, names, strict=True))
    inner = optax.chain(
        optax.sgd(1.0),
        olr.scale_by_label(dict.fromkeys(names, multiplier), labels),
        olr.track_effective_rates(optax.identity(), labels),
        olr.scale_by_learning_rate(0.5, flip_sign=False),
    )
    tx = olr.unfreeze_at(inner, {names[0]: 2}, labels, clock=clock)
    state, grads = tx.init(PARAMS), jax.tree.map(jnp.ones_like, PARAMS)
    for step in range(5):
        updates, state = tx.update(grads, state, PARAMS)
        own = multiplier(step if clock == "run" else step - 2) if step >= 2 else 0.0
        np.testing.assert_allclose(updates["head"], -0.5 * multiplier(step), rtol=1e-6)
        np.testing.assert_allclose(updates["body"], -0.5 * own, rtol=1e-6)
        told = olr.learning_rates_in_force(state)
        np.testing.assert_allclose(
            [told[name] for name in names], [0.5 * own, 0.5 * multiplier(step)], rtol=1e-6
        )
        norms = olr.effective_rates(state).gradient_norm
        np.testing.assert_allclose(
            [norms[name] for name in names], np.sqrt(2) * np.array([own, multiplier(step)]), rtol=1e-6
        )


def test_a_group_without_parameters_has_no_counters_of_labels():
    inner = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5)
    labels = {"body": "body", "head": "head"}
    late = olr.unfreeze_at(inner, {"body": 2}, olr.label_by_path({".*": "body"}), clock="label")
    tx = optax.partition({"body": optax.sgd(0.5), "head": optax.sgd(0.5), "none": late}, labels)
    updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    assert jax.tree.structure(updates) == jax.tree.structure(PARAMS)
    empty = late.init({})
    assert late.update({}, empty, {})[1].clock.count == 1


def test_the_state_tells_the_rate_of_each_label_on_its_own_clock():
    inner = optax.chain(optax.scale_by_adam(), olr.scale_by_learning_rate(SCHEDULE))
    tx = olr.unfreeze_at(inner, {"body": 2}, LABELS, clock="label")
    state = tx.init(PARAMS)
    for _ in range(5):
        _, state = tx.update(PARAMS, state, PARAMS)
    assert olr.get_learning_rate(state) == SCHEDULE(4)
    assert state.late["body"]["1/learning_rate"] == SCHEDULE(2)
    changed = olr.set_learning_rate(state, 0.5)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, PARAMS), changed, PARAMS)
    for update in updates.values():
        assert 0.1 < -update[0] < 1.0  # the rate that was set is that of all labels


def late(blocks, inner=None):
    """A transformer's blocks, each with a start of its own, and their labels."""
    labels = olr.label_by_depth([r"block_(\d+)/.*"])
    return olr.unfreeze_at(inner or optax.adam(0.1), {i: blocks - i for i in range(blocks)}, labels)


def traced(tx, blocks, arrays=6):
    params = {f"block_{i}": {f"w{key}": jnp.zeros(1) for key in range(arrays)} for i in range(blocks)}
    return jax.make_jaxpr(tx.update)(params, jax.eval_shape(tx.init, params), params)


def test_the_trace_grows_with_the_leaves():
    few, more, most = (len(traced(late(blocks), blocks).eqns) for blocks in (25, 50, 100))
    assert most - more == 2 * (more - few)
    # Four selections an array, of gradient, update and both moments, and Adam's bias corrections once a label.
    adam = len(traced(optax.adam(0.1), 100).eqns)
    assert most <= adam + 4 * 600 + 12 * 100
    # Under a conditional inside, too: not one whole conditional for each label.
    few, many = (
        len(traced(late(blocks, optax.apply_if_finite(optax.adam(0.1), 3)), blocks).eqns)
        for blocks in (10, 20)
    )
    assert many <= 2.1 * few


def test_the_trace_has_a_value_for_each_label_only_where_several_need_it(monkeypatch):
    made = []

    class Counted(per_label.PerLabel):
        def __init__(self, values):
            super().__init__(values)
            made.append(values)

    for module in (per_label, unfreezing):
        monkeypatch.setattr(module, "PerLabel", Counted)
    counts = []
    for arrays in (2, 8):
        made.clear()
        traced(late(3), 3, arrays)
        counts.append(len(made))
    assert counts[0] == counts[1] > 0


def test_an_effect_in_the_inner_optimizer_happens_for_each_label():
    seen = []

    def schedule(count):
        jax.debug.callback(lambda count: seen.append(int(count)), count)
        jax.lax.cond(count >= 0, lambda: jax.debug.callback(lambda: seen.append("awake")), lambda: None)
        return 1.0 / (1.0 + count)

    tx = olr.unfreeze_at(optax.sgd(schedule), {"body": 2}, LABELS, clock="label")
    state, update = tx.init(PARAMS), jax.jit(tx.update)
    seen.clear()
    for _ in range(4):
        updates, state = update(jax.tree.map(jnp.ones_like, PARAMS), state, PARAMS)
    jax.effects_barrier()
    assert sorted(one for one in seen if one != "awake") == [0, 0, 0, 0, 1, 1, 2, 3]
    assert seen.count("awake") == 8
    np.testing.assert_allclose([updates["head"][0], updates["body"][0]], [-1 / 4, -1 / 2])


def test_a_fresh_state_is_given_up_whole():
    """Each label has counters of its own from the start: one array in two places cannot be donated."""
    tx = olr.unfreeze_at(optax.adam(0.1), {"body": 2, "head": 1}, LABELS)
    state = tx.init(PARAMS)
    leaves = jax.tree.leaves(state)
    assert len({id(leaf) for leaf in leaves}) == len(leaves)
    step = jax.jit(lambda grads, state: tx.update(grads, state)[1], donate_argnums=1)
    assert int(step(PARAMS, state).clock.count) == 1
