"""States of the transformations that adapt: they are plain, they are set by name, and they live in any tree."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optax_lr as olr

SIGNED = {
    "plain": olr.scale_by_local_gains,
    "keep_sign": functools.partial(olr.scale_by_local_gains, keep_sign=True),
    "momentum": functools.partial(olr.scale_by_local_gains, momentum=0.9),
    "nesterov": functools.partial(olr.scale_by_local_gains, momentum=0.9, nesterov=True),
    "delta_bar_delta": olr.scale_by_delta_bar_delta,
    "iRprop-": olr.scale_by_rprop,
    "Rprop-": functools.partial(olr.scale_by_rprop, variant="Rprop-"),
    "Rprop+": functools.partial(olr.scale_by_rprop, variant="Rprop+"),
    "iRprop+": functools.partial(olr.scale_by_rprop, variant="iRprop+"),
    "rows of Rprop": functools.partial(olr.scale_by_rprop, keep_sign=True),
}
ALL = SIGNED | {
    "plateau": functools.partial(olr.reduce_on_plateau, patience=0, factor=0.5),
    "plateau of epochs": functools.partial(
        olr.reduce_on_plateau, patience=0, factor=0.5, every=2, accumulation_size=2, raise_patience=3
    ),
}
each = pytest.mark.parametrize("make", ALL.values(), ids=ALL)
each_signed = pytest.mark.parametrize("make", SIGNED.values(), ids=SIGNED)

GRADIENTS = ([1.0, -2.0, 0.0], [2.0, 1.0, -1.0], [0.5, 1.0, -3.0], [-1.0, 2.0, 0.0], [-1.0, -1.0, -1.0])


def steps(tx, params, gradients=GRADIENTS, of=lambda gradient: gradient):
    """Updates and states of a few steps whose loss rises and falls."""
    state, seen = tx.init(params), []
    for step, gradient in enumerate(gradients):
        given = of(jnp.array(gradient))
        updates, state = tx.update(given, state, params, value=jnp.float32(3 + (-1) ** step))
        seen.append((updates, state))
    return seen


def equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), one, other)


@each
def test_init_takes_abstract_parameters_and_keeps_their_sharding(make):
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("rows"))
    concrete = {"w": jax.device_put(jnp.ones((4, 2), jnp.bfloat16), sharding)}
    abstract = {"w": jax.ShapeDtypeStruct((4, 2), jnp.bfloat16, sharding=sharding)}
    equal(make().init(abstract), make().init(concrete))
    for leaf in jax.tree.leaves(make().init(abstract)):
        assert not leaf.ndim or leaf.sharding.is_equivalent_to(sharding, 2)
    make().init({"w": jax.ShapeDtypeStruct((4, 2), jnp.float32)})


@each
def test_scalars_none_masked_and_integers_pass(make):
    params = {"w": jnp.ones(3), "none": None, "masked": optax.MaskedNode(), "n": jnp.arange(3), "s": 1.0}

    def tree(gradient):
        frozen = np.zeros(3, jax.dtypes.float0)
        return {**params, "w": gradient, "n": frozen, "s": float(gradient[0])}

    alone = steps(make(), jnp.ones(3))
    for (updates, _), (expected, _) in zip(steps(make(), params, of=tree), alone, strict=True):
        equal(updates["w"], expected)
        equal(jnp.asarray(updates["s"]), expected[0])
        assert updates["none"] is None and updates["n"].dtype == jax.dtypes.float0


@each
def test_an_update_that_is_none_keeps_its_state(make):
    params = {"w": jnp.ones(3), "late": jnp.ones(3)}
    first = steps(make(), params, GRADIENTS[:1], of=lambda gradient: {"w": gradient, "late": gradient})[0][1]
    updates, state = make().update({"w": jnp.ones(3), "late": None}, first, params, value=1.0)
    assert updates["late"] is None
    assert jax.tree.structure(state) == jax.tree.structure(first)


@each
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_works_under_strict_promotion(make, dtype):
    loose = steps(make(), jnp.ones(3, dtype), of=lambda gradient: gradient.astype(dtype))
    with jax.numpy_dtype_promotion("strict"):
        tx = make()
        strict = jax.vmap(tx.init)(jnp.ones((1, 3), dtype))
        for step, gradient in enumerate(GRADIENTS):
            value = jnp.full(1, 3 + (-1) ** step, jnp.float32)
            update = jax.jit(jax.vmap(lambda g, s, v: tx.update(g, s, value=v)))
            updates, strict = update(jnp.array([gradient], dtype), strict, value)
            equal(updates[0], loose[step][0])


FLAGS = {
    "jax_enable_x64": (True, False),
    "jax_debug_nans": (True, False),
    "jax_debug_infs": (True, False),
    "jax_check_tracer_leaks": (True, False),
    "jax_disable_jit": (True, False),
    "jax_numpy_rank_promotion": ("raise", "allow"),
}


@each
@pytest.mark.parametrize("flag", FLAGS)
def test_works_under_a_flag(make, flag):
    expected = steps(make(), jnp.ones(3))
    jax.config.update(flag, FLAGS[flag][0])
    try:
        tx = make()
        state = jax.jit(tx.init)(jnp.ones(3, jnp.float32))
        for step, gradient in enumerate(GRADIENTS):
            value = jnp.float32(3 + (-1) ** step)
            updates, state = jax.jit(tx.update)(jnp.array(gradient, jnp.float32), state, value=value)
            equal(updates, expected[step][0])
            assert all(leaf.dtype in (jnp.float32, jnp.int32, jnp.int8) for leaf in jax.tree.leaves(state))
    finally:
        jax.config.update(flag, FLAGS[flag][1])


@each_signed
def test_a_state_that_was_cast_says_the_same(make):
    """Halves have 11 bits: what follows from a state of halves is right to these, and is float32 again."""
    tx, (_, state) = make(), steps(make(), jnp.ones(3))[-1]
    halves = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), state)
    for gradient in GRADIENTS:
        expected, state = tx.update(jnp.array(gradient), state, value=1.0)
        updates, halves = tx.update(jnp.array(gradient), halves, value=1.0)
        np.testing.assert_allclose(updates, expected, rtol=4e-3, atol=1e-6)
    assert jax.eval_shape(lambda: halves) == jax.eval_shape(lambda: state)


@each_signed
def test_states_of_replicas_are_averaged(make):
    """Replicas that saw the same gradients have one state, and so its mean; gains that differ meet in between."""
    tx, (_, state) = make(), steps(make(), jnp.ones(3))[-1]
    mean = jax.tree.map(lambda leaf: jnp.mean(jnp.stack([leaf, leaf]).astype(jnp.float32), 0), state)
    equal(
        tx.update(jnp.array(GRADIENTS[1]), mean, value=1.0),
        tx.update(jnp.array(GRADIENTS[1]), state, value=1.0),
    )


def test_every_field_that_is_set_does_what_its_name_says():
    """By `optax.tree.set`, in a state whose last signs are +, -, 0, before a gradient of 1, 1, 0."""
    first, then = jnp.array([1.0, -1.0, 0.0]), jnp.array([1.0, 1.0, 0.0])

    def after(make, **fields):
        tx = make()
        _, state = tx.update(first, tx.init(first), value=1.0)
        return tx.update(then, optax.tree.set(state, **fields), value=2.0)

    def check(name, expected, **fields):
        updates, _ = after(ALL[name], **fields)
        np.testing.assert_allclose(updates, expected, rtol=1e-6)

    check("plain", [2.05, 1.9, 0.0], gains=jnp.full(3, 2.0))
    check("plain", [0.95, 1.05, 0.0], last_sign=jnp.array([-1, 1, 1], jnp.int8))
    check("momentum", [0.9 + 2.05, -0.9 + 1.9, 0.0], gains=jnp.full(3, 2.0))
    check("momentum", [-0.9 + 0.95, 1.0, 1.8], velocity=jnp.array([-1.0, 0.0, 2.0]))
    check("delta_bar_delta", [2.05, 1.8, 0.0], gains=jnp.full(3, 2.0))
    check("delta_bar_delta", [0.9, 1.05, 0.0], average=jnp.array([-1.0, 1.0, 0.0]))
    check("Rprop-", [1.2, 0.5, 0.0], steps=jnp.ones(3))
    check("Rprop-", [0.05, 0.12, 0.0], last_sign=jnp.array([-1, 1, 0], jnp.int8))
    check("iRprop+", [0.12, 0.1, 0.0], last_value=jnp.float32(1.0))
    check("iRprop+", [0.12, 0.0, 0.0], last_value=jnp.float32(3.0))
    for name in ("plain", "momentum", "delta_bar_delta", "iRprop-"):
        # The bounds are the optimizer's; the state holds a record of them, which statistics read.
        with pytest.raises(KeyError):
            after(ALL[name], min_gain=0.5)
        _, state = after(ALL[name])
        full = optax.tree.set(state, last_max=jnp.max(jax.tree.leaves(state)[0]))
        assert float(olr.gain_statistics(full).overall["at_max"]) > 0


def test_every_field_of_a_plateau_that_is_set_does_what_its_name_says():
    tx = olr.reduce_on_plateau(patience=2, factor=0.5, accumulation_size=2, raise_patience=9, max_scale=8.0)

    def scale(values, **fields):
        state = optax.tree.set(tx.init(()), **{"best_value": 1.0, **fields})
        for value in values:
            _, state = tx.update((), state, value=value)
        return float(state.scale)

    assert scale([]) == 1.0 and scale([], scale=0.25) == 0.25
    assert scale([1.0] * 4, scale=4.0) == 4.0 and scale([1.0] * 6, scale=4.0) == 2.0
    assert scale([1.0] * 6, best_value=2.0) == 1.0
    assert scale([1.0] * 2, plateau_count=2) == 0.5
    assert scale([1.0] * 2, stalled_count=8) == 2.0
    assert scale([1.0] * 6, cooldown_count=3) == 1.0
    assert scale([1.0] * 1, plateau_count=2, count=1, avg_value=1.0) == 0.5
    assert scale([1.0] * 1, plateau_count=2, count=1, avg_value=0.0) == 1.0
    greedy = olr.reduce_on_plateau(raise_after_progress=3, max_scale=20.0)
    state = optax.tree.set(greedy.init(()), progress_count=2)
    assert float(greedy.update((), state, value=1.0)[1].scale) == pytest.approx(10.0)
    epochs = olr.reduce_on_plateau(patience=0, factor=0.5, every=5)
    for passed, expected in ((0, 0.5), (3, 1.0)):
        state = optax.tree.set(epochs.init(()), every_count=passed, best_value=1.0)
        assert float(epochs.update((), state, value=1.0)[1].scale) == expected


@pytest.mark.parametrize("make", [SIGNED["plain"], SIGNED["momentum"], SIGNED["iRprop-"]])
def test_a_state_set_to_another_shape_fails(make):
    state = optax.tree.set(make().init(jnp.ones(3)), **{make().init(jnp.ones(3))._fields[0]: jnp.ones(2)})
    with pytest.raises((TypeError, ValueError)):
        make().update(jnp.ones(3), state)


@pytest.mark.parametrize(
    ("make", "dense"),
    [
        (SIGNED["keep_sign"], 1 + 19 * 0.05),
        (SIGNED["rows of Rprop"], 0.1 * 1.2**19),
        (functools.partial(olr.scale_by_rprop, keep_sign=True, variant="Rprop+"), 0.1 * 1.2**19),
    ],
)
def test_a_row_that_few_batches_touch_grows_with_its_visits(make, dense):
    """Twenty visits that agree, with nine zeros after each, are twenty dense steps; without the option none."""
    tx = make()
    state, moved = tx.init(jnp.zeros(2)), []
    for step in range(200):
        visits = jnp.array([1.0, step % 10 == 0])
        updates, state = tx.update(visits, state)
        moved.append(updates)
    np.testing.assert_allclose(state[0], [min(10.0 if dense < 2 else 50.0, state[0][0]), dense], rtol=1e-5)
    assert not np.array(moved)[np.arange(200) % 10 != 0, 1].any()
    plain = olr.scale_by_local_gains()
    state = plain.init(jnp.zeros(1))
    for step in range(40):
        _, state = plain.update(jnp.array([step % 10 == 0], jnp.float32), state)
    assert state.gains.tolist() == [1.0]


@pytest.mark.parametrize(
    ("make", "kept"),
    [
        (functools.partial(olr.scale_by_local_gains, momentum=0.9), 800),
        (functools.partial(olr.scale_by_local_gains, momentum=0.5), 120),
        (olr.scale_by_delta_bar_delta, 240),
    ],
)
def test_a_velocity_or_an_average_keeps_its_sign_between_visits_as_long_as_is_said(make, kept):
    tx = make()

    def gains(pause, visits=4):
        def visit(state, _):
            state = tx.update(jnp.ones(1), state)[1]
            return jax.lax.fori_loop(
                0, pause, lambda _, state: tx.update(jnp.zeros(1), state)[1], state
            ), None

        return jax.lax.scan(visit, tx.init(jnp.zeros(1)), length=visits)[0].gains[0]

    np.testing.assert_allclose(gains(9), 1.15, rtol=1e-6)
    np.testing.assert_allclose(gains(kept), 1.15, rtol=1e-6)
    assert gains(2 * kept) == 1.0


def test_keep_sign_is_for_gains_without_a_velocity(unhooked):
    sentence = r"^keep_sign must be False where momentum is given: the velocity keeps its sign, got True\.$"
    with pytest.raises(ValueError, match=sentence):
        unhooked.local_gains(0.1, keep_sign=True)


@pytest.mark.parametrize("name", ["plain", "momentum", "delta_bar_delta", "iRprop-"])
def test_tiny_gradients_have_signs(name):
    """A product of two of them is zero in float32, and says nothing of signs."""
    tiny, large = (steps(ALL[name](), jnp.ones(3), scale * np.array(GRADIENTS)) for scale in (1e-30, 1.0))
    np.testing.assert_array_equal(tiny[-1][1][0], large[-1][1][0])


@each_signed
def test_statistics_of_a_stacked_state_are_those_of_each(make):
    tx = make()
    gradients = jnp.array(GRADIENTS)
    one = functools.partial(tx.update, value=1.0)
    states = jax.vmap(lambda gradient: one(gradient, one(gradient, tx.init(gradient))[1])[1])(gradients)
    stacked = jax.jit(olr.gain_statistics)(states)
    for lane in range(len(GRADIENTS)):
        take = operator.itemgetter(lane)
        equal(jax.tree.map(take, stacked), olr.gain_statistics(jax.tree.map(take, states)))


def test_statistics_of_states_that_are_stacked_differently_are_refused():
    tx = olr.scale_by_local_gains()
    states = {"a": tx.init({"w": jnp.ones(3)}), "b": jax.vmap(tx.init)({"v": jnp.ones((2, 3))})}
    with pytest.raises(
        ValueError, match=r"^opt_state must hold gains that are stacked alike, got \[\(\), \(2,\)\]"
    ):
        olr.gain_statistics(states)


@pytest.mark.parametrize("make", [SIGNED["plain"], SIGNED["momentum"], SIGNED["iRprop-"]])
def test_statistics_of_leaves_that_are_sharded_explicitly(make):
    """Each leaf is split as it wants; the statistics of all are those of the same state on one device."""
    mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(AxisType.Explicit,))
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    plain = {"w": jnp.arange(32.0).reshape(8, 4), "b": jnp.ones(8)}
    tx = make()
    expected = olr.gain_statistics(tx.update(plain, tx.init(plain))[1])
    with jax.set_mesh(mesh):
        params = {"w": jax.device_put(plain["w"], rows), "b": jax.device_put(plain["b"], PartitionSpec())}
        _, state = jax.jit(tx.update)(params, jax.jit(tx.init)(params))
        assert jax.typeof(state[0]["w"]).sharding.spec == PartitionSpec("fsdp", None)
        equal(olr.gain_statistics(state), expected)
        equal(jax.jit(olr.gain_statistics)(state), expected)
    equal(olr.gain_statistics(state), expected)


@each
def test_an_explicit_sharding_stays_and_a_shard_map_agrees(make):
    tx, gradient = make(), jnp.arange(8.0) - 3

    def moved(gradient):
        _, state = tx.update(gradient, tx.init(gradient), value=1.0)
        return tx.update(gradient, state, value=1.0)[0]

    def mesh(kind):
        return jax.make_mesh((1,), ("rows",), axis_types=(kind,))

    rows = PartitionSpec("rows")
    mapped = jax.shard_map(moved, mesh=mesh(AxisType.Auto), in_specs=rows, out_specs=rows)
    equal(jax.jit(mapped)(gradient), moved(gradient))
    with jax.set_mesh(mesh(AxisType.Explicit)):
        params = jax.device_put(gradient, rows)
        first = jax.jit(tx.init)(params)
        updates, second = jax.jit(tx.update)(params, first, value=1.0)
        assert jax.tree.map(jax.typeof, first) == jax.tree.map(jax.typeof, second)
        assert jax.typeof(updates) == jax.typeof(params)
