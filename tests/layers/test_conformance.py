"""What Optax asks of its own optimizers, and what states go through, over the transformations of this folder."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_lr as olr

LABELS = olr.label_by_path({r"body.*": "body", r"head.*": "head"})


def momentum():
    return optax.chain(optax.trace(0.5), olr.scale_by_learning_rate(0.5))


MAKERS = {
    "scale_by_label": lambda: olr.scale_by_label({"body": 0.5, "head": 2.0}, LABELS),
    "scale_by_label, schedules": lambda: olr.scale_by_label(
        {"body": lambda count: 1.0 / (1.0 + jnp.asarray(count, float)), "head": 0.0}, LABELS
    ),
    "train_only": lambda: olr.train_only(momentum(), "head", LABELS),
    "zero_until": lambda: olr.zero_until({"body": 1}, LABELS),
    "unfreeze_at": lambda: olr.unfreeze_at(optax.adam(0.5), {"body": 1}, LABELS),
    "fine_tune": lambda: olr.fine_tune(momentum(), {"body": 0.5, "head": 2.0}, LABELS, starts={"body": 1}),
    "fine_tune, frozen": lambda: olr.fine_tune(momentum(), {"head": 2.0}, LABELS, frozen="body"),
}
each = pytest.mark.parametrize("name", MAKERS)
PARAMS = {"body": jnp.array([1.0, -2.0, 0.5]), "head": jnp.array([3.0, 0.25, -1.0])}


def steps(tx, params, grads, number=3):
    """The updates of some steps, and the last state."""
    state, emitted = tx.init(params), []
    for _ in range(number):
        updates, state = tx.update(grads, state, params)
        emitted.append(updates)
    return emitted, state


def check_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
        assert jnp.asarray(a).dtype == jnp.asarray(b).dtype


@each
def test_init_takes_abstract_parameters(name):
    tx = MAKERS[name]()
    on_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=on_device), PARAMS
    )
    check_same(tx.init(abstract), tx.init(PARAMS))
    check_same(tx.init(jax.eval_shape(lambda: PARAMS)), tx.init(PARAMS))


@each
def test_updates_may_be_python_numbers(name):
    tx = MAKERS[name]()
    numbers, arrays = {"body": 2.0, "head": -1.0}, {"body": jnp.float32(2.0), "head": jnp.float32(-1.0)}
    for one, other in zip(steps(tx, arrays, numbers)[0], steps(tx, arrays, arrays)[0], strict=True):
        for key in numbers:
            np.testing.assert_allclose(one[key], other[key], rtol=1e-6)


@each
def test_nothing_and_masked_leaves_stay_what_they_are(name):
    tx = MAKERS[name]()
    masked = {**PARAMS, "body_none": None, "head_masked": optax.MaskedNode(), "body_parts": {"a": None}}
    emitted, state = steps(tx, masked, masked)
    wanted, _ = steps(tx, PARAMS, PARAMS)
    for one, other in zip(emitted, wanted, strict=True):
        assert one["body_none"] is None and one["head_masked"] == optax.MaskedNode()
        check_same({key: one[key] for key in PARAMS}, other)
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(masked))


@each
def test_a_state_made_in_lanes_is_that_of_each_lane(name):
    tx = MAKERS[name]()
    lanes = jax.tree.map(lambda leaf: jnp.stack([leaf, -2 * leaf]), PARAMS)
    state = jax.vmap(tx.init)(lanes)
    if "starts" in str(state):
        state = olr.set_unfreezing_steps(state, {"body": 2})
    for _ in range(3):
        updates, state = jax.vmap(tx.update)(lanes, state, lanes)
    for lane in (0, 1):
        alone = jax.tree.map(lambda leaf, lane=lane: leaf[lane], lanes)
        single = tx.init(alone)
        if "starts" in str(single):
            single = olr.set_unfreezing_steps(single, {"body": 2})
        for _ in range(3):
            wanted, single = tx.update(alone, single, alone)
        check_same(jax.tree.map(lambda leaf, lane=lane: leaf[lane], (updates, state)), (wanted, single))


@each
def test_a_state_cast_to_half_precision_goes_on(name):
    """Counters are integers, so only moments are rounded."""
    tx = MAKERS[name]()
    _, state = steps(tx, PARAMS, PARAMS)
    cast = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float16) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, state
    )
    updates, _ = tx.update(PARAMS, cast, PARAMS)
    wanted, _ = tx.update(PARAMS, state, PARAMS)
    for one, other in zip(jax.tree.leaves(updates), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3)


FLAGS = {
    "x64": {"jax_enable_x64": True},
    "strict promotion": {"jax_numpy_dtype_promotion": "strict"},
    "rank promotion": {"jax_numpy_rank_promotion": "raise"},
    "debug_nans": {"jax_debug_nans": True},
    "leaks": {"jax_check_tracer_leaks": True},
    "disable_jit": {"jax_disable_jit": True},
}


@each
@pytest.mark.parametrize("flag", FLAGS)
def test_works_under_the_flags_of_jax(name, flag, request):
    adam_fails = flag == "strict promotion" and name == "unfreeze_at"  # Optax's own does
    tx = olr.unfreeze_at(momentum(), {"body": 1}, LABELS) if adam_fails else MAKERS[name]()
    wanted, _ = steps(tx, PARAMS, PARAMS)
    ((option, value),) = FLAGS[flag].items()
    before = getattr(jax.config, option)
    request.addfinalizer(lambda: jax.config.update(option, before))
    jax.config.update(option, value)
    got, _ = steps(tx, PARAMS, PARAMS)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5)


def test_half_precision_updates_are_multiplied_in_float32():
    update = jnp.asarray([1.0, 3.0], jnp.bfloat16)
    tx = olr.scale_by_label({0: 0.1}, [0])
    got, _ = tx.update([update], tx.init([update]))
    wanted = (np.asarray(update, np.float32) * np.float32(0.1)).astype(jnp.bfloat16)
    assert got[0].dtype == jnp.bfloat16 and (np.asarray(got[0]) == wanted).all()


def ones():
    return jax.tree.map(jnp.ones_like, PARAMS)


def test_every_field_that_optax_sets_does_what_its_name_says():
    labels = {"body": "body", "head": "head"}
    clock = olr.zero_until({"body": 9}, labels)
    for fields in ({"starts": {"body": jnp.int32(0)}}, {"count": jnp.int32(9)}):
        state = optax.tree.set(clock.init(PARAMS), **fields)
        assert clock.update(ones(), state)[0]["body"].all()

    scheduled = olr.scale_by_label({"body": lambda count: count * 1.0, "head": 2.0}, labels)
    state = optax.tree.set(scheduled.init(PARAMS), count=jnp.int32(7))
    updates, state = scheduled.update(ones(), state)
    assert updates["body"].tolist() == [7.0] * 3
    assert state.last_multipliers == {"body": 7.0, "head": 2.0}
    # A record of the last update: to write in it changes the record, until the next one.
    record = optax.tree.set(state, last_multipliers={"body": jnp.float32(0.0), "head": jnp.float32(0.0)})
    assert scheduled.update(ones(), record)[1].last_multipliers == {"body": 8.0, "head": 2.0}

    late = olr.unfreeze_at(optax.adam(0.5), {"body": 0}, labels)
    state = late.init(PARAMS)
    old = state._replace(late={"body": {"0/count": jnp.int32(1000)}})
    moved, after = late.update(ones(), old, PARAMS)
    np.testing.assert_allclose(
        moved["body"], -0.5 * 0.1 / 0.001**0.5 / (1 / (1 - 0.999**1001)) ** 0.5, rtol=1e-3
    )
    np.testing.assert_allclose(moved["head"], -0.5, rtol=1e-5)
    assert after.late["body"]["0/count"] == 1001
    state = optax.tree.set(state, starts={"body": jnp.int32(5)})
    assert not late.update(ones(), state, PARAMS)[0]["body"].any()


def test_states_tell_which_labels_train_and_since_when():
    tx = olr.fine_tune(
        optax.sgd(1.0), {"body": 0.5, "head": 1.0}, {"body": "body", "head": "head"}, starts={"body": 2}
    )
    state = tx.init(PARAMS)
    awake = []
    for _ in range(4):
        updates, state = tx.update(ones(), state, PARAMS)
        clock = state.inner.clock
        awake.append(bool(clock.count > clock.starts["body"]))
        assert awake[-1] == updates["body"].all()
    assert awake == [False, False, True, True]
    assert state.scale.last_multipliers == {"body": 0.5, "head": 1.0}
