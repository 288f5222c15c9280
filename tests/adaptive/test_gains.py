"""Local gains and delta-bar-delta against loops written from the papers; what gains buy; their statistics."""

import functools

import adaptive_references as references
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optax_lr as olr

STEPS = 200

FACTORIES = {
    "plain": (olr.scale_by_local_gains, references.local_gains),
    "keep_sign": (
        functools.partial(olr.scale_by_local_gains, keep_sign=True),
        functools.partial(references.local_gains, keep_sign=True),
    ),
    "momentum": (functools.partial(olr.scale_by_local_gains, nesterov=False), references.local_gains),
    "nesterov": (
        functools.partial(olr.scale_by_local_gains, nesterov=True),
        functools.partial(references.local_gains, nesterov=True),
    ),
    "delta_bar_delta": (olr.scale_by_delta_bar_delta, references.delta_bar_delta),
}
EXTRA = {"momentum": "momentum", "nesterov": "momentum", "delta_bar_delta": "average_decay"}


def gradients_with_gaps(seed, steps=STEPS, parameters=12):
    """Random gradients, each column of its own bias; a fifth are zero and some are not finite."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(steps, parameters)) + np.linspace(0, 2, parameters)
    values[random.random(values.shape) < 0.2] = 0.0
    holes = random.random(values.shape) < 0.04
    values[holes] = random.choice([np.nan, np.inf, -np.inf], size=holes.sum())
    return values.astype(np.float32)


@functools.cache
def compiled(name):
    """All updates and the last state of a run whose numbers are data: compiled once for every example."""

    def run(numbers, gradients):
        tx = FACTORIES[name][0](**numbers)

        def step(state, gradient):
            updates, state = tx.update(gradient, state)
            return state, updates

        state, updates = jax.lax.scan(step, tx.init(gradients[0]), gradients)
        return updates, state

    return jax.jit(run)


bounds = {
    "increase": st.floats(0.0, 0.5),
    "decrease": st.floats(0.5, 1.0),
    "min_gain": st.floats(1e-30, 1.5),
    "max_gain": st.floats(1.5, 1e9),
}

# A share of 1e-100 is nothing in float32, where in float64 it is a sign to compare with.
shares = st.just(0.0) | st.floats(0.05, 0.95)


@pytest.mark.parametrize("name", FACTORIES)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(numbers=st.fixed_dictionaries(bounds), share=shares, seed=st.integers(0, 99))
def test_equals_the_loop_of_the_paper(name, numbers, share, seed):
    numbers = numbers | ({EXTRA[name]: share} if name in EXTRA else {})
    gradients = gradients_with_gaps(seed)
    updates, state = compiled(name)(numbers, gradients)
    expected, gains = FACTORIES[name][1](gradients, **numbers)
    np.testing.assert_allclose(updates, expected, rtol=2e-4, atol=1e-4 * gains.max())
    np.testing.assert_allclose(state.gains, gains, rtol=2e-5)


@pytest.mark.parametrize("name", FACTORIES)
def test_a_gradient_that_is_not_finite_is_passed_on_as_it_is(name):
    tx = FACTORIES[name][0](**({EXTRA[name]: 0.9} if name in EXTRA else {}))
    _, state = tx.update(jnp.array([0.3, -0.7, 0.1]), tx.init(jnp.ones(3)))
    updates, after = tx.update(jnp.array([jnp.nan, jnp.inf, -jnp.inf]), state)
    np.testing.assert_array_equal(updates, [np.nan, np.inf, -np.inf])
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_factors_that_change_act_from_their_own_step():
    gradients = jnp.ones((3, 1))
    injected = optax.inject_hyperparams(functools.partial(olr.scale_by_local_gains, momentum=0.5))
    state = (tx := injected(increase=0.1)).init(gradients[0])
    for increase, gradient in zip((0.1, 0.5, 1.0), gradients, strict=True):
        state.hyperparams["increase"] = jnp.float32(increase)
        updates, state = tx.update(gradient, state)
    # The first velocity is 0 and agrees with nothing; the gains are then 1, 1.5 and 2.5.
    np.testing.assert_allclose(updates, [0.5 * (0.5 * 1 + 1.5) + 2.5], rtol=1e-6)
    assert float(olr.gain_statistics(state).overall["max"]) == 2.5


@pytest.mark.parametrize("nesterov", [False, True])
def test_updates_have_derivatives_in_all_that_made_them(nesterov):
    def moved(numbers, gradients):
        tx = olr.scale_by_local_gains(momentum=numbers[0], increase=numbers[1], nesterov=nesterov)
        state = tx.init(gradients[0])
        for gradient in gradients:
            updates, state = tx.update(gradient, state)
        return updates[0]

    numbers, gradients = jnp.array([0.9, 0.05]), jnp.array([[1.0], [0.5], [2.0]])
    derivatives = jax.grad(moved, argnums=(0, 1))(numbers, gradients)
    for at, derivative in enumerate(derivatives):
        arguments = [numbers, gradients]
        for index in np.ndindex(derivative.shape):
            ends = []
            for sign in (1, -1):
                arguments[at] = (numbers, gradients)[at].at[index].add(sign * 0.01)
                ends.append(moved(*arguments))
            np.testing.assert_allclose(derivative[index], (ends[0] - ends[1]) / 0.02, rtol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", FACTORIES)
def test_gains_of_small_floats_are_kept_in_float32(name, dtype):
    gradients = jnp.asarray(gradients_with_gaps(1), dtype)
    share = {EXTRA[name]: 0.7} if name in EXTRA else {}
    updates, state = compiled(name)(share, gradients)
    expected, gains = FACTORIES[name][1](np.asarray(gradients, np.float64), **share)
    assert updates.dtype == dtype
    np.testing.assert_allclose(state.gains, gains, rtol=2e-5)
    np.testing.assert_allclose(np.asarray(updates, float), expected, rtol=1e-2, atol=1e-2)


def test_apply_if_finite_sees_what_is_not():
    tx = optax.apply_if_finite(olr.scale_by_local_gains(momentum=0.9), 5)
    state = tx.init(jnp.ones(3))
    updates, state = tx.update(jnp.array([1.0, jnp.nan, 1.0]), state)
    assert int(state.total_notfinite) == 1 and not updates.any()


def test_a_velocity_beyond_float32_stays_at_its_largest_number():
    tx = olr.scale_by_local_gains(momentum=0.9, max_gain=2.0)
    state = tx.init(jnp.ones(1))
    for gradient in (2e38, 2e38, 1.0, 1.0):
        updates, state = tx.update(jnp.array([gradient]), state)
    np.testing.assert_allclose(updates, 0.9**2 * np.finfo(np.float32).max, rtol=1e-6)
    assert float(state.gains[0]) == pytest.approx(1.15)


def test_gains_start_at_the_nearest_bound():
    for numbers, first in (({"min_gain": 2.0}, 2.0), ({"max_gain": 0.5}, 0.5)):
        for factory in (olr.scale_by_local_gains, olr.scale_by_delta_bar_delta):
            updates, _ = factory(**numbers).update(jnp.ones(1), factory(**numbers).init(jnp.ones(1)))
            assert updates.tolist() == [first]


@pytest.mark.parametrize("factory", ["scale_by_local_gains", "scale_by_delta_bar_delta", "scale_by_rprop"])
def test_complex_parameters_are_refused(factory):
    with pytest.raises(ValueError, match=r"^params must be real.* got complex64 of shape \(3,\)\.$"):
        getattr(olr, factory)().init({"w": jnp.ones(3, jnp.complex64)})


def test_nesterov_needs_momentum(unhooked):
    with pytest.raises(ValueError, match=r"^nesterov must be False where momentum is None, got True\.$"):
        unhooked.scale_by_local_gains(nesterov=True)


def test_a_compiled_init_is_sharded_as_the_parameters():
    mesh = jax.make_mesh((1,), ("devices",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("devices"))
    state = jax.jit(olr.scale_by_local_gains(momentum=0.9).init)(jax.device_put(jnp.ones((8, 2)), sharding))
    for leaf in (state.gains, state.velocity):
        assert leaf.sharding.is_equivalent_to(sharding, 2)


def test_statistics_are_those_of_the_gains():
    gradients = gradients_with_gaps(1)
    numbers = {"min_gain": 1.0, "max_gain": 1.5}
    tx = optax.chain(optax.identity(), olr.scale_by_local_gains(**numbers))
    tree = {
        "kernel": gradients[:, :8].reshape(STEPS, 2, 4),
        "bias": gradients[:, 8:],
        "none": gradients[:, :0],
    }
    state = jax.lax.scan(
        lambda state, gradient: (tx.update(gradient, state)[1], None),
        tx.init(jax.tree.map(lambda leaf: leaf[0], tree)),
        tree,
    )[0]
    _, gains = references.local_gains(gradients, **numbers)
    statistics = jax.jit(olr.gain_statistics)(state)
    leaves = {"kernel": gains[:8], "bias": gains[8:]}
    assert statistics.leaves.keys() == leaves.keys()
    for summary, sizes in [(statistics.overall, gains)] + [
        (statistics.leaves[name], leaves[name]) for name in leaves
    ]:
        expected = dict(
            zip(
                ("min", "lower_quartile", "median", "upper_quartile", "max"),
                np.quantile(sizes, [0, 0.25, 0.5, 0.75, 1]),
                strict=True,
            )
        )
        expected |= {"at_min": np.mean(sizes == 1.0), "at_max": np.mean(sizes == 1.5)}
        assert summary.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(summary[name], value, rtol=2e-5, atol=1e-7, err_msg=name)
    assert 0 < statistics.overall["at_max"] < 1 and 0 < statistics.overall["at_min"] < 1


def test_statistics_of_several_gains_and_of_none():
    parts = {"a": olr.scale_by_rprop(initial_step=0.5), "b": olr.scale_by_local_gains(max_gain=1.0)}
    params = {"w": jnp.ones(3), "b": jnp.ones(2)}
    state = optax.partition(parts, {"w": "a", "b": "b"}).init(params)
    statistics = olr.gain_statistics(state)
    assert {name: float(each["median"]) for name, each in statistics.leaves.items()} == {"b": 1.0, "w": 0.5}
    assert float(statistics.overall["at_max"]) == pytest.approx(0.4)
    with pytest.raises(ValueError, match=r"one gain for each leaf, got two for 'w'\.$"):
        olr.gain_statistics((state, state))
    with pytest.raises(
        ValueError, match=r"^opt_state must hold the gains of .* got a state without gains\.$"
    ):
        olr.gain_statistics(optax.adam(0.1).init(params))


def test_the_rate_multiplies_and_can_be_read():
    schedule = olr.anneal_schedule(0.5, 0.1, 4)
    alone, optimizer = olr.scale_by_local_gains(momentum=0.9), olr.local_gains(schedule)
    gradients = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
    one, two = alone.init(gradients[0]), optimizer.init(gradients[0])
    for step, gradient in enumerate(gradients):
        uphill, one = alone.update(gradient, one)
        updates, two = optimizer.update(gradient, two)
        np.testing.assert_allclose(updates, -schedule(step) * uphill, rtol=1e-6)
        assert olr.get_learning_rate(two) == schedule(step)
