"""`visible`: the updates of the plain factory, with a rate that can be read and set."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lowerings import count_lowerings

import optax_lr as olr

PARAMS = {"kernel": jnp.array([[1.0, -2.0], [0.5, 0.1]]), "bias": jnp.array([0.3, 0.2])}
SCHEDULE = optax.cosine_decay_schedule(0.3, 10)
STEPS = 4


def public(module):
    """Every function of Optax that takes a learning rate."""
    functions = {
        name: each for name, each in vars(module).items() if inspect.isfunction(each) and name[0] != "_"
    }
    return {
        name: each
        for name, each in functions.items()
        if "learning_rate" in inspect.signature(each).parameters
    }


OPTIONS = {"noisy_sgd": {"key": 0}}
# A factory whose rate is a first step, or no schedule in Optax itself; and wrappers of an optimizer.
NO_SCHEDULE = {"rprop", "scale_by_rprop", "sm3", "optimistic_adam"}
WRAPPERS = {"schedule_free", "sophia", "dpsgd"}
FACTORIES = {
    name: functools.partial(factory, **OPTIONS.get(name, {}))
    for name, factory in (public(optax) | public(optax.contrib)).items()
    if name not in NO_SCHEDULE | WRAPPERS
}


def loss(params):
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))


def run(tx, *, dtype=jnp.float32):
    """The last updates of a compiled run, and its state."""
    full = optax.with_extra_args_support(tx)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)

    @jax.jit
    def step(t, params, state):
        grads = jax.tree.map(lambda leaf: jnp.sin(leaf * 3.3 + t), params)
        updates, state = full.update(grads, state, params, value=loss(params), grad=grads, value_fn=loss)
        return updates, optax.apply_updates(params, updates), state

    state = tx.init(params)
    for t in range(STEPS):
        updates, params, state = step(t, params, state)
    return updates, state


def check_close(got, wanted, atol=1e-7):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(np.asarray(one, float), np.asarray(other, float), rtol=2e-7, atol=atol)


@pytest.mark.parametrize("name", FACTORIES)
def test_updates_are_those_of_the_plain_factory(name):
    factory = FACTORIES[name]
    updates, state = run(olr.visible(factory)(SCHEDULE))
    check_close(updates, run(factory(SCHEDULE))[0])
    assert olr.get_learning_rate(state) == np.float32(SCHEDULE(STEPS - 1))


EVERYDAY = {
    "adam": optax.adam,
    "adamw": functools.partial(optax.adamw, weight_decay=0.01),
    "sgd": functools.partial(optax.sgd, momentum=0.9, nesterov=True),
    "lion": optax.lion,
    "rmsprop": optax.rmsprop,
    "muon": optax.contrib.muon,
}
every_day = pytest.mark.parametrize("name", EVERYDAY)


@every_day
def test_a_number_is_that_of_the_plain_factory(name):
    factory = EVERYDAY[name]
    check_close(run(olr.visible(factory)(0.1))[0], run(factory(0.1))[0])
    check_close(
        run(olr.visible(factory)(0.1), dtype=jnp.bfloat16)[0], run(factory(0.1), dtype=jnp.bfloat16)[0]
    )


@every_day
def test_a_traced_rate_is_a_number(name):
    factory = EVERYDAY[name]
    rates = jnp.array([0.0, 0.1, 2.0])
    got = jax.vmap(lambda rate: run(olr.visible(factory)(rate))[0])(rates)
    wanted = jax.vmap(lambda rate: run(factory(rate))[0])(rates)
    check_close(got, wanted)


def wrapped(factory):
    """A factory inside each of Optax's wrappers."""
    labels = {"kernel": "one", "bias": "other"}
    return {
        "MultiSteps": lambda rate: optax.MultiSteps(factory(rate), 2).gradient_transformation(),
        "apply_if_finite": lambda rate: optax.apply_if_finite(factory(rate), 3),
        "partition": lambda rate: optax.partition({"one": factory(rate), "other": factory(0.5)}, labels),
        "masked": lambda rate: optax.masked(factory(rate), {"kernel": True, "bias": False}),
        "flatten": lambda rate: optax.flatten(factory(rate)),
    }


@pytest.mark.parametrize("wrapper", wrapped(optax.adam))
@every_day
def test_it_stands_in_every_wrapper(name, wrapper):
    plain, ours = (wrapped(each)[wrapper] for each in (EVERYDAY[name], olr.visible(EVERYDAY[name])))
    check_close(run(ours(SCHEDULE))[0], run(plain(SCHEDULE))[0])


@every_day
def test_its_numbers_are_injected(name):
    plain = optax.inject_hyperparams(EVERYDAY[name])(learning_rate=0.1)
    updates, state = run(optax.inject_hyperparams(olr.visible(EVERYDAY[name]))(learning_rate=0.1))
    check_close(updates, run(plain)[0])
    assert olr.get_learning_rate(state) == np.float32(0.1)


@every_day
def test_a_set_rate_is_in_force_and_compiles_nothing(name):
    tx, still = olr.visible(EVERYDAY[name])(SCHEDULE), EVERYDAY[name](0.7)
    update = jax.jit(tx.update)
    update(PARAMS, tx.init(PARAMS), PARAMS)
    with count_lowerings() as lowered:
        fast = olr.set_learning_rate(tx.init(PARAMS), 0.7)
        updates, fast = update(PARAMS, fast, PARAMS)
    assert lowered == []
    check_close(updates, still.update(PARAMS, still.init(PARAMS), PARAMS)[0])
    assert olr.get_learning_rate(fast) == np.float32(0.7) == optax.tree.get(fast.rate, "learning_rate")
    set_by_optax = optax.tree.set(tx.init(PARAMS), learning_rate=jnp.float32(0.7))
    check_close(update(PARAMS, set_by_optax, PARAMS)[0], updates)


def test_all_arguments_go_through():
    tx = olr.visible(optax.sgd)(0.5, 0.9, nesterov=True)
    plain = optax.sgd(0.5, 0.9, nesterov=True)
    check_close(run(tx)[0], run(plain)[0])
    named = olr.visible(optax.adam)(b1=0.5, learning_rate=SCHEDULE)
    check_close(run(named)[0], run(optax.adam(SCHEDULE, b1=0.5))[0])
    assert inspect.signature(olr.visible(optax.adam)) == inspect.signature(optax.adam)


def test_a_factory_of_ones_own():
    def clipped(rate):
        return optax.chain(optax.clip_by_global_norm(0.1), optax.adam(rate))

    updates, state = run(olr.visible(clipped)(SCHEDULE))
    check_close(updates, run(clipped(SCHEDULE))[0])
    assert olr.get_learning_rate(state) == np.float32(SCHEDULE(STEPS - 1))


def test_what_cannot_be_visible_is_refused(unhooked):
    for factory in (optax.rprop, optax.sm3, lambda learning_rate: optax.sgd(0.1)):
        with pytest.raises(ValueError, match="factory must read learning_rate as a schedule at each update"):
            run(unhooked.visible(factory)(0.1))
    for factory in (unhooked.rprop, optax.inject_hyperparams(optax.sgd), unhooked.visible(optax.sgd)):
        with pytest.raises(ValueError, match="with a visible learning rate already"):
            unhooked.visible(factory)(0.1).init(PARAMS)
    with pytest.raises(ValueError, match="factory must take a learning rate"):
        unhooked.visible(lambda: optax.sgd(0.1))
    for rate in (-0.1, float("nan"), "fast", None):
        with pytest.raises(ValueError, match="learning_rate must be a finite number of at least 0"):
            unhooked.visible(optax.adam)(rate)
    with pytest.raises(TypeError, match="learning_rate"):
        unhooked.visible(optax.adam)()
    with pytest.raises(TypeError, match="unexpected keyword argument 'b9'"):
        unhooked.visible(optax.adam)(0.1, b9=0.5)
