"""Which leaves a training step returns as they came: what is found, what is not, and nothing that does change."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

import optax_lr as olr
from optax_lr.engine.task import Task, look_at
from optax_lr.engine.unchanged import reached, sources, unchanged

PARAMS = {"backbone": {"w": jnp.ones((4, 4)), "b": jnp.ones(4)}, "head": jnp.ones((4, 2))}
LABELS = {"backbone": {"w": "backbone", "b": "backbone"}, "head": "head"}


def loss_of(params, batch):
    hidden = jnp.tanh(batch @ params["backbone"]["w"] + params["backbone"]["b"])
    return jnp.mean((hidden @ params["head"]) ** 2)


def step_of(optimizer, loss=loss_of):
    def step(carry, batch):
        params, state = carry
        gradients = jax.grad(loss)(params, batch)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step


def kept_of(optimizer, loss=loss_of, params=PARAMS):
    """Which parameters a step with an optimizer leaves as they are, [backbone b, backbone w, head]."""
    carry = (params, optimizer.init(params))
    closed = jax.make_jaxpr(step_of(optimizer, loss))(carry, jnp.ones((3, 4)))
    return unchanged(closed, len(jax.tree.leaves(carry)))[:3]


def frozen(optimizer, name="backbone"):
    trained = "head" if name == "backbone" else "backbone"
    return optax.partition({name: optax.set_to_zero(), trained: optimizer}, LABELS)


def frozen_mask(updates):
    return jax.tree.map(lambda label: label == "backbone", LABELS)


FOUND = {
    "partition": frozen(optax.adam(0.1)),
    "partition, MultiSteps inside": frozen(optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation()),
    "freeze last": optax.chain(optax.adam(0.1), optax.masked(optax.set_to_zero(), frozen_mask)),
    "selective_transform": optax.selective_transform(optax.adam(0.1), freeze_mask=frozen_mask(None)),
    "train_only": olr.train_only(optax.adam(0.1), "head", LABELS),
    "fine_tune": olr.fine_tune(
        optax.adam(0.1), multipliers={"backbone": 1.0, "head": 1.0}, labels=LABELS, frozen=("backbone",)
    ),
    "a multiplier of zero": optax.chain(
        optax.adam(0.1), olr.scale_by_label(multipliers={"backbone": 0.0, "head": 1.0}, labels=LABELS)
    ),
    "apply_if_finite": optax.apply_if_finite(frozen(optax.adam(0.1)), 3),
    "weight decay on what is trained": frozen(optax.adamw(0.1, weight_decay=0.1)),
}
NOT_FOUND = {
    "adam": optax.adam(0.1),
    # Right, only larger: a copy a lane.
    "freezing before Adam": optax.chain(optax.masked(optax.set_to_zero(), frozen_mask), optax.adam(0.1)),
    "MultiSteps outside": optax.MultiSteps(frozen(optax.adam(0.1)), 2).gradient_transformation(),
    "zero_until": optax.chain(
        optax.sgd(0.1), olr.zero_until(starts={"backbone": 3, "head": 0}, labels=LABELS)
    ),
}


@pytest.mark.parametrize("optimizer", FOUND.values(), ids=FOUND)
def test_frozen_parameters_are_found(optimizer):
    assert kept_of(optimizer) == [True, True, False]


@pytest.mark.parametrize("optimizer", FOUND.values(), ids=FOUND)
def test_frozen_parameters_in_bfloat16_are_found(optimizer):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    assert kept_of(optimizer, params=params) == [True, True, False]


@pytest.mark.parametrize("optimizer", NOT_FOUND.values(), ids=NOT_FOUND)
def test_what_is_not_known_to_stay_is_a_lanes_own(optimizer):
    assert kept_of(optimizer) == [False] * 3


def through_scan(x):
    return jax.lax.scan(lambda c, _: ((c[0], c[1] * 2), None), x, length=3)[0]


def through_while(x):
    return jax.lax.while_loop(lambda c: c[1].sum() < 9, lambda c: (c[0], c[1] + 1), x)


def through_cond(x):
    return jax.lax.cond(x[1].sum() > 0, lambda a, b: (a, b + 1), lambda a, b: (a, b * 2), *x)


@jax.custom_vjp
def passed_on(x):
    return x[0], x[1] * 2


passed_on.defvjp(lambda x: (passed_on(x), None), lambda _, g: (g,))


def through_shard_map(x):
    mesh = Mesh(np.array(jax.devices()[:1]), ("d",))
    spec = PartitionSpec("d")
    return jax.shard_map(lambda a, b: (a, b * 2), mesh=mesh, in_specs=(spec, spec), out_specs=(spec, spec))(
        *x
    )


THROUGH = {
    "jit": jax.jit(lambda x: (x[0], x[1] * 2)),
    "remat": jax.checkpoint(lambda x: (x[0], jnp.sin(x[1]))),
    "scan": through_scan,
    "fori": lambda x: jax.lax.fori_loop(0, 3, lambda _, c: (c[0], c[1] * 2), x),
    "while": through_while,
    "cond": through_cond,
    "custom_vjp": passed_on,
    "shard_map": through_shard_map,
    "a wider type and back": lambda x: (x[0].astype(jnp.float32).astype(x[0].dtype), x[1] * 2),
    "plus a constant zero": lambda x: (x[0] + jnp.zeros_like(x[0]), x[1] + 1),
    "times a constant one": lambda x: (jnp.ones_like(x[0]) * x[0], x[1] * 2),
    "minus zero": lambda x: (x[0] - 0.0, x[1] - 1.0),
    "where a mask is constant": lambda x: (
        jnp.where(np.ones(4, bool), x[0], x[1]),
        jnp.where(True, x[1] * 2, x[0]),
    ),
    "a reshape to the same": lambda x: (x[0].reshape(x[0].shape), x[1] * 2),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("function", THROUGH.values(), ids=THROUGH)
def test_a_value_is_followed_through(function, dtype):
    x = (jnp.arange(1, 5).astype(dtype), jnp.arange(1, 5).astype(dtype))
    assert unchanged(jax.make_jaxpr(function)(x), 2) == [True, False]
    np.testing.assert_array_equal(function(x)[0], x[0])


CHANGES = {
    "swapped": lambda x: (x[1], x[0]),
    "swapped in a loop": lambda x: jax.lax.fori_loop(0, 3, lambda _, c: (c[1], c[0]), x),
    "swapped in a branch": lambda x: jax.lax.cond(
        x[0].sum() > 0, lambda a, b: (b, a), lambda a, b: (a, b), *x
    ),
    "handed on late in a loop": lambda x: jax.lax.fori_loop(0, 3, lambda _, c: (c[1] + 0.0, c[1] * 2), x),
    "transposed": lambda x: (x[0].T, x[1][::-1]),
    "a narrower type and back": lambda x: tuple(leaf.astype(jnp.bfloat16).astype(jnp.float32) for leaf in x),
    "plus what is not zero everywhere": lambda x: (x[0] + np.eye(4, dtype=np.float32), x[1] * 2),
    "plus another's zero": lambda x: (x[0] + x[1] * 0, x[1] + x[0] * 0),
    "where a mask is mixed": lambda x: (jnp.where(np.arange(4) > 1, x[0], x[1]), x[1] * 2),
    "a flag that is data": lambda x: (jnp.where(x[0] > 0, x[0], x[1]), x[1] * 2),
    "negated": lambda x: (0.0 - x[0], x[1] * -1.0),
}


@pytest.mark.parametrize("function", CHANGES.values(), ids=CHANGES)
def test_what_changes_is_never_taken_for_unchanged(function):
    x = tuple(jnp.linspace(low, 2.7, 16).reshape(4, 4).at[0, 1].set(jnp.inf) for low in (-1.1, -0.9))
    kept = unchanged(jax.make_jaxpr(function)(x), 2)
    assert kept == [False, False]
    assert all((new != old).any() for new, old in zip(function(x), x, strict=True))


def test_sources_name_the_input_that_an_output_equals():
    closed = jax.make_jaxpr(lambda a, b: (b, a + 1, a, jnp.zeros(3)))(jnp.ones(3), jnp.ones(3))
    assert sources(closed) == [1, None, 0, None]


def test_reached_are_the_outputs_that_may_depend_on_an_input():
    closed = jax.make_jaxpr(lambda a, b: (a, a + b, jnp.sin(a) * 2, jax.jit(lambda x: x * 3)(b), 5.0))(
        1.0, 2.0
    )
    assert reached(closed, [1]) == [False, True, False, True, False]
    assert reached(closed, [0]) == [True, True, True, False, False]


def test_a_leaf_that_holds_the_rate_of_a_lane_is_its_own():
    """`inject_hyperparams` keeps the rate in a state that no step changes."""

    def begin(start, rate, seed):
        return start, optax.inject_hyperparams(optax.sgd)(rate).init(start)

    def step(carry, rate, batch, key):
        params, state = step_of(optax.inject_hyperparams(optax.sgd)(rate))(carry, batch)
        return (params, state), {"loss": loss_of(carry[0], batch)}

    form, _ = look_at(Task(step, begin), PARAMS, np.float32(0.1), jnp.ones((3, 4)), None, "threefry2x32")
    moving = form.carry.tree(form.moving)
    assert all(jax.tree.leaves(moving))


def test_lora_shares_its_backbone():
    def begin(start, rate, seed):
        return start, frozen(optax.adam(rate)).init(start)

    def step(carry, rate, batch, key):
        return step_of(frozen(optax.adam(rate)))(carry, batch), {"loss": loss_of(carry[0], batch)}

    form, _ = look_at(Task(step, begin), PARAMS, np.float32(0.1), jnp.ones((3, 4)), None, "threefry2x32")
    params, _ = form.carry.tree(form.moving)
    assert params == {"backbone": {"w": False, "b": False}, "head": True}
    shared = [source for source, own in zip(form.sources, form.moving, strict=True) if not own]
    assert shared[:2] == [0, 1]
