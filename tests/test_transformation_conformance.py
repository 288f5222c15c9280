"""What Optax asks of its own transformations, and users of their states, held over every factory."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from readers import OTHER_READERS, READERS, SETTERS, readings, settings
from test_rooms import public_functions
from test_transformation_laws import at, check_close, check_loop, each, expected, given, loop
from transformations import RECORD, TRANSFORMATIONS, parameters

import optax_lr as olr


def as_structs(tree, mesh):
    """The tree without arrays: shapes, dtypes and a sharding."""

    def struct(leaf):
        sharding = NamedSharding(mesh, PartitionSpec(*["rows"][: leaf.ndim]))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(struct, tree)


@each
def test_init_takes_abstract_parameters(case):
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    tx, abstract = case.make(olr), as_structs(parameters(), mesh)
    state, wanted = tx.init(abstract), jax.eval_shape(tx.init, parameters())
    assert jax.tree.structure(state) == jax.tree.structure(wanted)
    shardings = {leaf.shape: leaf.sharding for leaf in jax.tree.leaves(abstract)}
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        if isinstance(one, jax.Array) and one.shape in shardings:
            assert one.sharding.is_equivalent_to(shardings[one.shape], one.ndim)


@each
def test_shardings_stay_between_init_and_update(case):
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    params, grads, extra = given(case)
    placed = jax.device_put(
        params, jax.tree.map(lambda leaf: NamedSharding(mesh, PartitionSpec(*["rows"][: leaf.ndim])), params)
    )
    tx = case.make(olr)
    first = jax.jit(tx.init)(placed)
    _, second = jax.jit(tx.update)(at(grads, 0), first, placed, **at(extra, 0))
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert one.sharding.is_equivalent_to(other.sharding, one.ndim)


@each
def test_updates_may_be_python_numbers(case):
    floats = {"bias": 0.5, "kernel": -2.0}
    tx, extra = case.make(olr), at(given(case)[2], 0)
    scalars = jax.tree.map(jnp.float32, floats)
    got, _ = tx.update(floats, tx.init(floats), floats, **extra)
    wanted, _ = tx.update(scalars, tx.init(scalars), scalars, **extra)
    check_close(got, wanted)


@each
@pytest.mark.parametrize("empty", [None, optax.MaskedNode()], ids=["None", "MaskedNode"])
def test_leaves_without_a_parameter_pass(case, empty):
    def with_empty(tree):
        return {**tree, "zz": {"bias": empty, "kernel": empty}}

    emitted, _ = loop(case, case.make(olr), steps=2, as_tree=with_empty)
    assert all(updates["zz"] == {"bias": empty, "kernel": empty} for updates in emitted)
    check_loop([{**updates, "zz": None} for updates in emitted], case)


@each
def test_flattens_or_says_that_it_needs_paths(case):
    tx = optax.flatten(case.make(olr))
    if case.labeled:
        with pytest.raises(ValueError, match="every parameter"):
            tx.init(parameters())
    elif not case.keeps_params:  # flattened updates do not fit the parameters that are kept
        check_loop(loop(case, tx, steps=2)[0], case)


def own_fields(state):
    """Every field of the package's states that holds arrays: (type, field, value), each type once."""
    found = {}

    def visit(node):
        if hasattr(node, "_fields") and type(node).__module__.startswith("optax_lr"):
            for name in node._fields:
                if jax.tree.leaves(getattr(node, name)):
                    found.setdefault((type(node).__name__, name), getattr(node, name))
        children = node.values() if isinstance(node, dict) else node if isinstance(node, tuple) else ()
        for child in children:
            visit(child)

    visit(state)
    return found


@each
def test_fields_are_found_by_name(case):
    state = loop(case, case.make(olr), steps=1)[1]
    for (kind, name), value in own_fields(state).items():
        found = optax.tree.get_all_with_path(state, name)
        assert any(one is value and path[-1].tuple_name == kind for path, one in found)


def more(leaf):
    """Another value that a field of this type may have."""
    if leaf.dtype == jnp.bool_:
        return ~leaf
    return leaf + 1 if jnp.issubdtype(leaf.dtype, jnp.integer) else leaf / 2 + 0.3


def outcome(case, update, state, first):
    """What the next updates and snapshots are, and what becomes of every field."""
    params, grads, extra = given(case)
    emitted = []
    for step in range(first, first + 3):
        updates, state = update(at(grads, step), state, params, **at(extra, step))
        emitted.append(updates)
    return (emitted, readings(state, ("get_snapshots",))), own_fields(state)


def differ(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return any(not np.array_equal(a, b, equal_nan=True) for a, b in pairs)


def acting_fields(case, first):
    """For each field of a state after some steps, whether other values of it lead to another outcome."""
    tx = case.make(olr)
    update, state = jax.jit(tx.update), loop(case, tx, steps=first)[1]
    emitted, fields = outcome(case, update, state, first)
    acts = {}
    for (kind, name), value in own_fields(state).items():
        others = [key for key in fields if key != (kind, name)]
        for change in (more, jnp.zeros_like):
            here = functools.partial(lambda path, _, kind: path[-1].tuple_name == kind, kind=kind)
            changed = optax.tree.set(state, here, **{name: jax.tree.map(change, value)})
            moved, after = outcome(case, update, changed, first)
            acts[kind, name] = (
                acts.get((kind, name), False)
                or differ(emitted, moved)
                or any(differ(fields[key], after[key]) for key in others)
            )
    return acts


def test_no_field_is_set_in_vain():
    """A field that `optax.tree.set` changes has an effect on updates or on other fields, or is a record by name."""
    found = [acting_fields(case, first) for case in TRANSFORMATIONS for first in (1, 2)]
    acting = {key for acts in found for key, effect in acts.items() if effect}
    silent = {key for acts in found for key in acts} - acting
    # What a record consists of is one, too.
    assert {key for key in silent if not key[1].startswith(RECORD) and key[0] != "EffectiveRates"} == set()


@each
def test_a_vmapped_state_is_read_and_set_lane_by_lane(case):
    tx = case.make(olr)
    params, grads, extra = given(case)
    lanes = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf / 2]), params)
    states = jax.vmap(tx.init)(lanes)
    for step in (0, 1):
        update = functools.partial(tx.update, **at(extra, step))
        _, states = jax.vmap(update, in_axes=(None, 0, 0))(at(grads, step), states, lanes)
    said, alone = readings(states), [readings(at(states, lane)) for lane in (0, 1)]
    assert set(said) == set(alone[0])
    for name, both in said.items():
        for lane in (0, 1):
            check_close(at(both, lane), alone[lane][name])
    if "get_learning_rates" in said:
        again = olr.set_learning_rate(states, said["get_learning_rates"])
        check_close(olr.get_learning_rates(again), said["get_learning_rates"])
        lines = [olr.describe_learning_rates(each).splitlines() for each in (states, at(states, 0))]
        assert [line.split()[0] for line in lines[0]] == [line.split()[0] for line in lines[1]]
    made = settings(states)
    for lane in (0, 1):
        check_close(at(made, lane), settings(at(states, lane)))


def test_every_reader_and_setter_is_in_the_columns():
    public = {
        name
        for name, function in public_functions()
        if next(iter(inspect.signature(function).parameters), "") == "opt_state"
    }
    assert public == {*READERS, *OTHER_READERS, *SETTERS}


@each
def test_explicit_sharding(case):
    with jax.set_mesh(jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Explicit,))):
        params, grads, extra = given(case)
        placed = {"bias": params["bias"], "kernel": jax.device_put(params["kernel"], PartitionSpec("rows"))}
        tx = case.make(olr)
        state, emitted = jax.jit(tx.init)(placed), []
        for step in (0, 1):
            gradient = jax.tree.map(
                lambda leaf, like: jax.device_put(leaf, like.sharding), at(grads, step), placed
            )
            updates, state = jax.jit(tx.update)(gradient, state, placed, **at(extra, step))
            placed = optax.apply_updates(placed, updates)
            emitted.append(updates)
        check_loop(emitted, case)
        wanted = readings(loop(case, tx, steps=2)[1])
        said = readings(state)
        check_close(said, wanted)
        if "get_learning_rates" in said:
            again = olr.set_learning_rate(state, said["get_learning_rates"])
            check_close(olr.get_learning_rates(again), said["get_learning_rates"])
        for made in settings(state).values():
            for one, other in zip(jax.tree.leaves(made), jax.tree.leaves(state), strict=True):
                assert one.sharding.is_equivalent_to(other.sharding, one.ndim)


def switched(case, tx, state, params):
    """The state with what code says put in by Optax: the starts of a changed transformation."""
    fresh = tx.init(params)
    starts = optax.tree.get_all_with_path(fresh, "starts")
    return optax.tree.set(state, starts=starts[0][1]) if starts else state


@each
def test_a_state_is_resumed_under_changed_code(case):
    params, grads, extra = given(case)
    same, changed = (
        case.make(olr),
        case.make(olr, **{name: two[1] for name, (_, two) in case.arguments.items()}),
    )
    for step in range(3):
        params = optax.apply_updates(params, at(expected(case)[0], step))
    _, state = loop(case, same, steps=3)
    saved = jax.tree.map(np.asarray, state)
    for tx in (same, changed):
        carried = olr.carry_state(saved, tx, params)
        assert carried.kept or not jax.tree.leaves(state)
        assert not carried.reset and not carried.dropped, str(carried)
        wanted = switched(case, tx, state, params)
        by_code = loop(case, tx, steps=3)[1]
        told = any(
            differ(
                *(
                    [value for _, value in optax.tree.get_all_with_path(each, name)]
                    for each in (by_code, state)
                )
            )
            for name in ("starts", "learning_rate", "last_multipliers")
        )
        assert bool(carried.overridden) == told, str(carried)
        assert jax.tree.map(jnp.shape, carried.state) == jax.tree.map(jnp.shape, wanted)
        resumed, update = carried.state, jax.jit(tx.update)
        for step in (3, 4):
            updates, resumed = update(at(grads, step), resumed, params, **at(extra, step))
            other, wanted = update(at(grads, step), wanted, params, **at(extra, step))
            check_close(updates, other)
            if tx is same:
                check_close(updates, at(expected(case)[0], step), rtol=1e-5)
