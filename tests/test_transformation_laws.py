"""The laws of the package for transformations, each held over every factory in `transformations.py`."""

import dataclasses
import functools
import inspect
import re
import typing

import equinox as eqx
import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from lowerings import count_lowerings
from test_rooms import public_functions
from transformations import STEPS, TRANSFORMATIONS, gradients, parameters

import optax_lr as olr

MAX_STEP = 2**31 - 1

each = pytest.mark.parametrize("case", TRANSFORMATIONS, ids=lambda case: case.id)


def run(tx, params, grads, extra):
    """The updates of every step, and the last state, of one compiled run."""

    def step(carry, given):
        params, state = carry
        gradient, extra = given
        updates, state = tx.update(gradient, state, params, unrelated=None, **extra)
        return (optax.apply_updates(params, updates), state), updates

    (_, state), updates = jax.lax.scan(step, (params, tx.init(params)), (grads, extra))
    return updates, state


@functools.cache
def traced_run(case):
    """A run with all numbers traced: one compiled program for every law."""
    return jax.jit(lambda arguments, *given: run(case.make(olr, **arguments), *given))


@functools.cache
def expected(case):
    return traced_run(case)(case.values, *given(case))


def given(case, dtype=jnp.float32):
    return parameters(dtype), gradients(dtype), {name: jnp.asarray(each) for name, each in case.extra.items()}


def at(tree, step):
    return jax.tree.map(lambda leaf: leaf[step], tree)


def loop(case, tx, steps=STEPS, as_tree=lambda tree: tree):
    """The updates of every step, one call at a time, on the tree that `as_tree` makes of a dict."""
    params, grads, extra = given(case)
    params = as_tree(params)
    state, emitted = tx.init(params), []
    for step in range(steps):
        updates, state = tx.update(as_tree(at(grads, step)), state, params, **at(extra, step))
        params = optax.apply_updates(params, updates)
        emitted.append(updates)
    return emitted, state


def check_close(got, wanted, rtol=2e-6, atol=1e-7):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)


def check_loop(emitted, case):
    """The first updates of a loop are those of the compiled run, leaf by leaf in order."""
    updates, _ = expected(case)
    for step, update in enumerate(emitted):
        check_close(update, at(updates, step))


def test_every_factory_has_a_row():
    made = {name: inspect.get_annotations(function).get("return") for name, function in public_functions()}
    public = {
        name
        for name, returned in made.items()
        if any(
            inspect.isclass(one) and issubclass(one, optax.GradientTransformation)
            for one in (returned, *typing.get_args(returned)[-1:])
        )
    }
    assert public == {case.factory for case in TRANSFORMATIONS}


@each
def test_eager_jit_and_scan_agree(case):
    eager, state = loop(case, case.make(olr))
    check_loop(eager, case)
    check_close(state, expected(case)[1])
    check_close(jax.jit(functools.partial(run, case.make(olr)))(*given(case)), expected(case))


@each
def test_vmap_over_each_number_and_over_all(case):
    lanes = {name: two for name, (_, two) in case.arguments.items()}
    trials = [{name: two} for name, two in lanes.items()] + [lanes]
    for trial in trials:
        for dtype in (None, np.float32):
            stacked = {name: np.asarray(two, dtype) for name, two in trial.items()}
            axes = {name: 0 if name in stacked else None for name in case.values}
            batched = jax.vmap(traced_run(case), in_axes=(axes, None, None, None))
            got = batched({**case.values, **stacked}, *given(case))
            for lane in (0, 1):
                arguments = {**case.values, **at(stacked, lane)}
                check_close(at(got, lane), traced_run(case)(arguments, *given(case)))
    for lane in (0, 1):
        eager, _ = loop(case, case.make(olr, **{name: two[lane] for name, two in lanes.items()}))
        updates, _ = at(got, lane)
        for step, update in enumerate(eager):
            check_close(update, at(updates, step))


@each
def test_gradients_by_every_value_are_finite(case):
    values = {name: np.float32(value) for name, value in case.values.items() if isinstance(value, float)}

    def total(values, grads):
        params, _, extra = given(case)
        updates, _ = traced_run(case)({**case.values, **values}, params, grads, extra)
        return sum(leaf.sum() for leaf in jax.tree.leaves(updates))

    for grads in (gradients(), jax.tree.map(jnp.zeros_like, gradients())):
        for name, slope in jax.grad(total)(values, grads).items():
            assert np.isfinite(slope), name


def signature(tree):
    """What must not change between init and update: the structure, and of each leaf the shape and type."""
    avals = [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(tree)]
    return jax.tree.structure(tree), avals


def is_named(state):
    """A NamedTuple, or a chain of them."""
    return isinstance(state, tuple) and (hasattr(state, "_fields") or all(map(is_named, state)))


@each
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, "mixed"], ids=["float32", "bfloat16", "mixed"])
def test_states_are_stable_and_updates_keep_their_dtype(case, dtype):
    params, grads, extra = given(case, jnp.bfloat16 if dtype == "mixed" else dtype)
    if dtype == "mixed":
        params["bias"], grads["bias"] = params["bias"].astype(float), grads["bias"].astype(float)
    tx = case.make(olr)
    first = jax.eval_shape(tx.init, params)
    updates, second = jax.eval_shape(tx.update, at(grads, 0), tx.init(params), params, **at(extra, 0))
    assert is_named(tx.init(params))
    assert signature(first) == signature(tx.init(params)) == signature(second)
    assert signature(updates) == signature(params)
    for leaf in jax.tree.leaves(first):
        assert not leaf.weak_type
        assert leaf.dtype in (jnp.int32, jnp.float32, jnp.bool_, jnp.int8) or case.keeps_params


@each
def test_counters_saturate(case):
    params, grads, extra = given(case)
    tx = case.make(olr)
    late = jax.tree.map(
        lambda leaf: jnp.full_like(leaf, MAX_STEP) if leaf.dtype == jnp.int32 else leaf, tx.init(params)
    )
    updates, state = tx.update(at(grads, 0), late, params, **at(extra, 0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))
    for leaf in jax.tree.leaves(state):
        assert leaf.dtype != jnp.int32 or (leaf >= 0).all()


@each
def test_what_looks_like_the_parameters_has_their_shapes(case):
    """Who lays parameters out over devices lays such state out in the same way."""
    params, _, _ = given(case)
    tx = case.make(olr)

    def is_masked(leaf):
        return isinstance(leaf, optax.MaskedNode)

    def alike(leaf, param):
        return is_masked(leaf) or leaf.shape == param.shape

    state = optax.tree_map_params(
        tx, alike, tx.init(params), params, transform_non_params=lambda _: True, is_leaf=is_masked
    )
    assert all(jax.tree.leaves(state))


def composed(case):
    """The transformation inside each of Optax's combinators, to act as it does alone."""
    tx = case.make(olr)
    return {
        "chain": optax.chain(optax.identity(), tx, optax.identity()),
        "named_chain": optax.named_chain(("first", optax.identity()), ("second", tx)),
        "masked": optax.masked(tx, {"bias": True, "kernel": True}),
        "partition": optax.partition({"a": tx, "b": case.make(olr)}, {"bias": "a", "kernel": "b"}),
        "inject_hyperparams": optax.inject_hyperparams(case.injectable(olr))(**case.values),
        "apply_if_finite": optax.apply_if_finite(tx, max_consecutive_errors=3),
        "conditionally_mask": optax.transforms.conditionally_mask(tx, lambda step: step >= 0),
    }


@each
def test_composes(case):
    for name, tx in composed(case).items():
        updates, _ = jax.jit(functools.partial(run, tx))(*given(case))
        try:
            check_close(updates, expected(case)[0])
        except AssertionError as error:
            raise AssertionError(f"inside {name}") from error


@each
def test_accumulates_gradients(case):
    tx = optax.MultiSteps(case.make(olr), every_k_schedule=2).gradient_transformation()
    params, *stacked = given(case)
    twice = jax.tree.map(lambda leaf: jnp.repeat(leaf, 2, 0), stacked)
    updates, _ = jax.jit(functools.partial(run, tx))(params, *twice)
    check_close(at(updates, slice(1, None, 2)), expected(case)[0])
    assert not any(leaf.any() for leaf in jax.tree.leaves(at(updates, slice(0, None, 2))))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Record:
    bias: jax.Array
    kernel: jax.Array


class Module(eqx.Module):
    bias: jax.Array
    kernel: jax.Array
    activation: None = None


TREES = {
    "list": lambda tree: [tree["bias"], tree["kernel"]],
    "dataclass": lambda tree: Record(**tree),
    "equinox": lambda tree: Module(**tree),
    "FrozenDict": lambda tree: flax.core.freeze(tree),
}


@each
@pytest.mark.parametrize("as_tree", TREES.values(), ids=TREES)
def test_works_on_any_tree(case, as_tree):
    emitted, _ = loop(case, case.make(olr), steps=3, as_tree=as_tree)
    check_loop(emitted, case)


class Model(nnx.Module):
    def __init__(self, bias, kernel):
        self.bias, self.kernel = nnx.Param(bias), nnx.Param(kernel)


@each
def test_works_in_an_nnx_optimizer(case):
    params, grads, extra = given(case)
    model = Model(**params)
    optimizer = nnx.Optimizer(model, case.make(olr), wrt=nnx.Param)
    emitted = []
    for step in range(3):
        gradient = nnx.state(Model(**at(grads, step)), nnx.Param)
        emitted.append(dict(optimizer.update(model, gradient, **at(extra, step))))
    check_loop(emitted, case)


@each
def test_new_numbers_compile_nothing(case):
    params, grads, extra = given(case)
    extra = at(extra, 0)
    values = [
        {name: np.asarray(two[lane], np.result_type(value)) for name, (value, two) in case.arguments.items()}
        for lane in (0, 1)
    ]
    state = case.make(olr).init(params)
    step = jax.jit(
        lambda arguments, grads, state, params, extra: case.make(olr, **arguments).update(
            grads, state, params, **extra
        )
    )
    _, state = step(values[0], at(grads, 0), state, params, extra)
    gradient = at(grads, 1)
    with count_lowerings() as lowered:
        step(values[1], gradient, state, params, extra)
    assert lowered == []


@each
def test_gives_up_its_buffers(case):
    params, grads, extra = given(case)
    tx = case.make(olr)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads, extra):
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    given_up = [leaf for leaf in jax.tree.leaves((params, state)) if leaf.ndim]
    step(params, state, at(grads, 0), at(extra, 0))
    assert all(leaf.is_deleted() for leaf in given_up)


def test_states_come_back_from_a_checkpoint(tmp_path):
    states, transformations = {}, {case.id: case.make(olr) for case in TRANSFORMATIONS}
    for case in TRANSFORMATIONS:
        states[case.id] = loop(case, transformations[case.id], steps=2)[1]
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "states", states)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "states", jax.eval_shape(lambda: states))
    assert signature(restored) == signature(states)
    for case in TRANSFORMATIONS:
        params, grads, extra = given(case)
        update = jax.jit(transformations[case.id].update)
        both = [update(at(grads, 2), each[case.id], params, **at(extra, 2)) for each in (states, restored)]
        for one, other in zip(*map(jax.tree.leaves, both), strict=True):
            np.testing.assert_array_equal(one, other, err_msg=case.id)


@each
def test_what_is_not_finite_does_not_spread(case):
    params, grads, extra = given(case)
    broken = {**grads, "kernel": grads["kernel"].at[2, 0, 0].set(jnp.nan).at[3, 0, 0].set(jnp.inf)}
    got = traced_run(case)(case.values, params, broken, extra)
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected(case)), strict=True
    ):
        if case.measures and case.measures in jax.tree_util.keystr(path):
            continue
        others = np.ones(one.shape, bool)
        if one.shape[-2:] == (3, 2):
            others[..., 0, 0] = False
        np.testing.assert_array_equal(
            np.asarray(one)[others], np.asarray(other)[others], err_msg=jax.tree_util.keystr(path)
        )
    assert re.search("non-finite|NaN", inspect.getdoc(getattr(olr, case.factory)))


@each
def test_bad_numbers_are_refused_by_name(case, unhooked):
    for name, values in case.bad.items():
        for value in values:
            with pytest.raises(ValueError, match=name) as refusal:
                case.make(unhooked, **{name: value})
            message = str(refusal.value)
            assert message.endswith(".") and "\n" not in message
            assert repr(value) in message, message
