"""Snapshots against a loop that copies parameters, on any state, and what a step costs."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

import optax_lr as olr
from optax_lr.nnx.modules import pure

STEPS = 40
NORMAL = np.random.default_rng(9).normal
PARAMS = {"kernel": jnp.asarray(NORMAL(size=(3, 2)), jnp.float32), "bias": jnp.zeros(2, jnp.bfloat16)}
GRADS = {
    "kernel": jnp.asarray(NORMAL(size=(STEPS, 3, 2)), jnp.float32),
    "bias": jnp.asarray(NORMAL(size=(STEPS, 2)), jnp.bfloat16),
}


def chain(cycles, *last):
    rate = olr.sgdr_schedule(0.5, 0.01, cycles)
    return optax.chain(optax.trace(0.9), olr.scale_by_learning_rate(rate), *last)


def one_step(tx):
    def step(carry, grads):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    return step


def train(tx, grads=GRADS, carry=None):
    """The parameters and state after one compiled scan, whose carry is given up."""
    carry = jax.tree.map(jnp.copy, carry or (PARAMS, tx.init(PARAMS)))
    scan = jax.jit(functools.partial(jax.lax.scan, one_step(tx)), donate_argnums=0)
    return scan(carry, grads)[0]


def at(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def check_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))


def copies(cycles, ends):
    """The parameters after some updates, copied by a plain loop over the optimizer without snapshots."""
    carry, found = (PARAMS, chain(cycles).init(PARAMS)), []
    step = jax.jit(one_step(chain(cycles)))
    for index in range(STEPS):
        carry, _ = step(carry, at(GRADS, index))
        if index in ends:
            found.append(jax.tree.map(jnp.copy, carry[0]))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)


KEPT = {
    "equal": (olr.Cycles(7), 9, 0),
    "every step": (olr.Cycles(1), STEPS, 0),
    "growing": (olr.Cycles(3, growth=2), 4, 0),
    "fractional": (olr.Cycles(4, growth=1.5), 5, 0),
    "limited": (olr.Cycles(5, limit=3), 9, 0),
    "a full ring": (olr.Cycles(4), 3, 0),
    "one slot": (olr.Cycles(4), 1, 0),
    "burn-in": (olr.Cycles(5), 9, 3),
    "burn-in, full": (olr.Cycles(2, growth=1.5), 2, 1),
}


@pytest.mark.parametrize(("cycles", "slots", "burn_in"), KEPT.values(), ids=KEPT)
def test_equal_bit_for_bit_to_a_loop_that_copies(cycles, slots, burn_in):
    ends = cycles.ends(STEPS)[burn_in:][-slots:]
    tx = chain(cycles, olr.snapshot_at_cycle_ends(cycles, slots, burn_in=burn_in))
    found = olr.get_snapshots(train(tx)[1])
    assert tuple(found.steps.tolist()) == ends
    check_equal(found.params, copies(cycles, ends))


def test_eager_equals_the_loop_too():
    tx = chain(olr.Cycles(3), olr.snapshot_at_cycle_ends(3, 2))
    carry, params = (PARAMS, tx.init(PARAMS)), []
    for index in range(6):
        carry, _ = one_step(tx)(carry, at(GRADS, index))
        params.append(carry[0])
    found = olr.get_snapshots(carry[1])
    assert found.steps.tolist() == [2, 5]
    for member, step in enumerate((2, 5)):
        check_equal(at(found.params, member), params[step])


def test_is_taken_where_the_schedule_is_lowest():
    cycles = olr.Cycles(6, growth=1.5)
    rates = jax.vmap(olr.sgdr_schedule(1.0, 0.0, cycles))(np.arange(STEPS))
    restarts = np.flatnonzero(np.diff(rates) > 0)  # from these steps to the next the rate jumps up
    tx = olr.snapshot_at_cycle_ends(cycles, 9)
    found = olr.get_snapshots(train(tx)[1])
    assert len(restarts) == 3 and found.steps.tolist() == restarts.tolist()


def test_resumed_in_mid_cycle_the_snapshots_are_the_same(tmp_path):
    cycles = olr.Cycles(4, growth=2)
    tx = chain(cycles, olr.snapshot_at_cycle_ends(cycles, 2))
    early, late = at(GRADS, slice(0, 17)), at(GRADS, slice(17, STEPS))
    carry = train(tx, early)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "carry", carry)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "carry", jax.eval_shape(lambda: carry))
    resumed = olr.get_snapshots(train(tx, late, restored)[1])
    assert resumed.steps.tolist() == [11, 27]
    check_equal(resumed, olr.get_snapshots(train(tx)[1]))


def test_after_multi_steps_with_cycles_of_its_every_step():
    inner, every = optax.chain(optax.sgd(0.5)), 2
    outer = optax.chain(
        optax.MultiSteps(inner, every).gradient_transformation(),
        olr.snapshot_at_cycle_ends(3 * every, 2),
    )
    twice = jax.tree.map(lambda leaf: jnp.repeat(leaf, every, 0), at(GRADS, slice(0, 7)))
    plain = optax.chain(inner, olr.snapshot_at_cycle_ends(3, 2))
    found = olr.get_snapshots(train(outer, twice)[1])
    assert found.steps.tolist() == [5, 11]
    check_equal(found.params, olr.get_snapshots(train(plain, at(GRADS, slice(0, 7)))[1]).params)


def test_the_derivative_of_a_run_is_that_without_snapshots_and_goes_forwards_by_way_of_them():
    def run(params, *last):
        tx = optax.chain(optax.sgd(0.1), *last)
        return jax.lax.scan(one_step(tx), (params, tx.init(params)), jnp.ones(5))[0]

    def loss(params, *last):
        end, state = run(params, *last)
        return end**3, state

    snapshots = olr.snapshot_at_cycle_ends(2, 2)
    slope, _ = jax.grad(loss, has_aux=True)(2.0, snapshots)
    assert slope == jax.grad(loss, has_aux=True)(2.0)[0] > 0
    _, (forward, _) = jax.jvp(lambda start: run(start, snapshots)[1][1].snapshots, (2.0,), (1.0,))
    assert forward == 1


def compiled(scan, *last):
    """A step, or a scan of steps, of Adam over a matrix and a vector, compiled for this CPU."""
    params = {"kernel": jnp.zeros((256, 256)), "bias": jnp.zeros(256)}
    tx = optax.chain(optax.adam(olr.sgdr_schedule(1e-3, 0.0, olr.Cycles(100, 2))), *last)
    run = functools.partial(jax.lax.scan, one_step(tx)) if scan else one_step(tx)
    grads = jax.tree.map(lambda leaf: jnp.zeros((4, *leaf.shape)), params) if scan else params
    program = jax.jit(run, donate_argnums=0).lower((params, tx.init(params)), grads).compile()
    return program, sum(leaf.nbytes for leaf in params.values())


def copied(program):
    """The copies of arrays in each computation that has any, but for those inside fusions."""
    computations = re.findall(r"^(?:ENTRY )?%\S+ \(.*?^}", program.as_text(), re.M | re.S)
    found = [
        (re.findall(r"= \w+\[(\d[\d,]*)\]\S* copy\(", text), len(re.findall(r" (?:fusion|while)\(", text)))
        for text in computations
    ]
    return [(sorted(shapes), kernels) for shapes, kernels in found if shapes]


@pytest.mark.parametrize("scan", [False, True], ids=["alone", "scan"])
def test_a_step_that_keeps_nothing_copies_and_moves_nothing(scan):
    slots = 5
    (bare, size), (program, _) = (
        compiled(scan),
        compiled(scan, olr.snapshot_at_cycle_ends(olr.Cycles(100, 2), slots)),
    )
    assert copied(bare) == []
    # Each slot has a loop of its own, which runs in its turn: it copies the parameters and does nothing else.
    assert copied(program) == [(["256", "256,256"], 0)] * slots
    # The count holds the bodies of all these loops: each reads and writes the parameters.
    moved, before = (each.cost_analysis()["bytes accessed"] for each in (program, bare))
    assert before < moved - 2 * slots * size <= 1.02 * before


def test_multi_steps_around_it_moves_every_snapshot():
    snapshots = olr.snapshot_at_cycle_ends(100, 5)
    inside = optax.MultiSteps(snapshots, 2).gradient_transformation()
    after = optax.chain(optax.MultiSteps(optax.identity(), 2).gradient_transformation(), snapshots)
    moved = [compiled(False, tx)[0].cost_analysis()["bytes accessed"] for tx in (inside, after)]
    assert moved[0] > 1.5 * moved[1]


NESTS = {
    "alone": lambda tx: tx,
    "named_chain": lambda tx: optax.named_chain(("rate", optax.sgd(0.1)), ("last", tx)),
    "masked": lambda tx: optax.masked(tx, {"kernel": True, "bias": True}),
    "apply_if_finite": lambda tx: optax.apply_if_finite(optax.chain(optax.sgd(0.1), tx), 3),
    "inject_hyperparams": lambda tx: optax.inject_hyperparams(lambda rate: optax.chain(optax.sgd(rate), tx))(
        rate=0.1
    ),
}


@pytest.mark.parametrize("nest", NESTS)
def test_is_found_wherever_it_stands(nest):
    tx = NESTS[nest](olr.snapshot_at_cycle_ends(2, 2))
    (params, state), _ = jax.lax.scan(one_step(tx), (PARAMS, tx.init(PARAMS)), at(GRADS, slice(0, 4)))
    found = olr.get_snapshots(state)
    assert found.steps.tolist() == [1, 3]
    check_equal(at(found.params, -1), params)


def test_before_the_first_cycle_ends_there_are_none():
    state = olr.snapshot_at_cycle_ends(5, 3, burn_in=1).init(PARAMS)
    found = olr.get_snapshots(state)
    assert found.steps.shape == (0,) and found.params["kernel"].shape == (0, 3, 2)


def test_a_vmapped_training_has_snapshots_for_each_lane(unhooked):
    def run(tx, params):
        return jax.lax.scan(one_step(tx), (params, tx.init(params)), GRADS["bias"])[0][1]

    tx = optax.chain(optax.sgd(0.1), olr.snapshot_at_cycle_ends(9, 3))
    starts = jnp.arange(4.0).reshape(2, 2)  # two lanes
    lanes = olr.get_snapshots(jax.vmap(functools.partial(run, tx))(starts))
    assert lanes.steps.tolist() == [[17, 26, 35]] * 2 and lanes.params.shape == (2, 3, 2)
    for lane in (0, 1):
        alone = olr.get_snapshots(run(tx, starts[lane]))
        np.testing.assert_allclose(lanes.params[lane], alone.params, rtol=1e-6)

    def of_length(first):
        return run(optax.chain(optax.sgd(0.1), unhooked.snapshot_at_cycle_ends(first, 9)), starts[0])

    states = jax.vmap(of_length)(jnp.array([10, 20]))
    with pytest.raises(ValueError, match="from 2 to 4 snapshots: pass the state of one lane"):
        unhooked.get_snapshots(states)
    assert unhooked.get_snapshots(at(states, 1)).steps.tolist() == [19, 39]


def test_of_an_nnx_optimizer():
    class Model(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.ones(2))

    model = Model()
    tx = optax.chain(optax.sgd(1.0), olr.snapshot_at_cycle_ends(2, 2))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for _ in range(4):
        optimizer.update(model, nnx.grad(lambda model: model.w.sum())(model))
    graph = nnx.graphdef(model)
    found = olr.get_snapshots(pure(optimizer.opt_state))

    def apply(params, x):
        return nnx.merge(graph, params).w[...] * x

    predicted = olr.ensemble_predict(apply, found, 2.0, combine="none")
    assert predicted.outputs.tolist() == [[-2.0, -2.0], [-6.0, -6.0]]


def test_what_is_asked_of_the_wrong_state_is_refused(unhooked):
    tx = unhooked.snapshot_at_cycle_ends(2, 3)
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match="must hold one state of snapshot_at_cycle_ends, and holds 0"):
        unhooked.get_snapshots(optax.adam(0.1).init(PARAMS))
    with pytest.raises(ValueError, match="and holds 2, at '0', '1': pass one of them"):
        unhooked.get_snapshots((state, state))
    with pytest.raises(ValueError, match="must be called outside jit"):
        jax.jit(unhooked.get_snapshots)(state)
    with pytest.raises(ValueError, match=r"call update\(updates, state, params\)"):
        tx.update(PARAMS, state)
    with pytest.raises(ValueError, match="max_snapshots must be a concrete number"):
        jax.jit(lambda slots: unhooked.snapshot_at_cycle_ends(2, slots).init(PARAMS))(3)
    for bad in (0, 0.5, None):
        with pytest.raises(ValueError, match="cycle_steps must be a number of steps"):
            unhooked.snapshot_at_cycle_ends(bad, 3)


# Every kind of state: parameters as they are, only more of them.


def test_slots_look_like_the_parameters_to_whoever_asks():
    boxed = {"w": nn.Partitioned(jnp.ones((4, 2)), ("rows", None)), "b": jnp.zeros(2)}
    state = optax.chain(optax.trace(0.9), olr.snapshot_at_cycle_ends(2, 3)).init(boxed)
    spec = nn.get_partition_spec(state)
    assert spec[1].snapshots == (spec[0].trace,) * 3
    assert spec[0].trace["w"] == PartitionSpec("rows", None)
    assert [leaf.shape for leaf in jax.tree.leaves(state[1].snapshots)] == [(2,), (4, 2)] * 3


def test_tree_map_params_maps_each_slot_as_the_parameters():
    params = {"w": jnp.ones((4, 2)), "b": jnp.zeros(2)}
    tx = optax.chain(optax.adam(0.1), olr.snapshot_at_cycle_ends(3, 2))
    names = optax.tree_map_params(
        tx,
        lambda _, name: name,
        tx.init(params),
        {"w": "of w", "b": "of b"},
        transform_non_params=lambda _: None,
    )
    assert names[1].snapshots == (names[0][0].mu,) * 2 == ({"w": "of w", "b": "of b"},) * 2
    assert names[1].count is names[1].snapshot_steps is None


def test_abstract_parameters_and_missing_leaves():
    tx = olr.snapshot_at_cycle_ends(1, 2)
    concrete, abstract = tx.init(PARAMS), tx.init(jax.eval_shape(lambda: PARAMS))
    assert jax.tree.structure(abstract) == jax.tree.structure(concrete)
    for one, other in zip(jax.tree.leaves(abstract), jax.tree.leaves(concrete), strict=True):
        assert isinstance(one, jax.Array) and (one.shape, one.dtype, one.weak_type) == (
            other.shape, other.dtype, False,
        )  # fmt: skip
    params = {"w": 1.0, "none": None, "masked": optax.MaskedNode()}
    _, state = jax.jit(tx.update)({**params, "w": 0.5}, tx.init(params), params)
    found = olr.get_snapshots(state).params
    assert found["w"].tolist() == [1.5] and found["none"] is None and found["masked"] == optax.MaskedNode()


def test_fields_set_by_name_do_what_they_say():
    tx = olr.snapshot_at_cycle_ends(10, 3)

    def kept(state, steps):
        (_, state), _ = jax.lax.scan(one_step(tx), (PARAMS, state), at(GRADS, slice(0, steps)))
        return state

    start = kept(tx.init(PARAMS), 20)
    # The clock set back: the next two replace the oldest two, in order.
    again = kept(optax.tree.set(start, count=jnp.int32(0)), 20)
    assert olr.get_snapshots(start).steps.tolist() == [9, 19]
    assert olr.get_snapshots(again).steps.tolist() == [19, 9, 19]
    assert olr.get_snapshots(kept(optax.tree.set(start, count=jnp.int32(8)), 2)).steps.tolist() == [9, 19, 9]
    assert olr.get_snapshots(optax.tree.set(start, num_snapshots=jnp.int32(0))).steps.shape == (0,)
    renamed = optax.tree.set(start, snapshot_steps=jnp.array([5, 6, -1], jnp.int32))
    assert olr.get_snapshots(renamed).steps.tolist() == [5, 6]
    assert (
        olr.get_snapshots(optax.tree.set(start, snapshots=(PARAMS,) * 3)).params["bias"].tolist()
        == [[0, 0]] * 2
    )
    with pytest.raises(KeyError):
        optax.tree.set(start, params=PARAMS)


FOLLOWED = {
    "a rate": lambda tx: optax.chain(tx, optax.scale(0.5)),
    "outside": lambda tx: optax.chain(
        optax.apply_if_finite(optax.chain(optax.sgd(0.1), tx), 3), optax.scale(0.5)
    ),
    "inside": lambda tx: optax.masked(optax.chain(tx, optax.trace(0.9)), {"kernel": True, "bias": True}),
}


@pytest.mark.parametrize("make", FOLLOWED.values(), ids=FOLLOWED)
def test_what_follows_in_a_chain_is_seen(make):
    state = make(olr.snapshot_at_cycle_ends(1, 2)).init(PARAMS)
    with pytest.warns(UserWarning, match="followed by 1 more in its chain.* put snapshot_at_cycle_ends last"):
        olr.get_snapshots(state)


def test_a_carry_with_parameters_is_no_chain():
    state = optax.chain(optax.sgd(0.1), olr.snapshot_at_cycle_ends(1, 2)).init(PARAMS)
    assert olr.get_snapshots((state, PARAMS)).steps.shape == (0,)


def test_a_rejected_step_counts_and_leaves_the_parameters_as_they_are():
    tx = optax.chain(optax.apply_if_finite(optax.sgd(0.5), 3), olr.snapshot_at_cycle_ends(2, 2))
    params, state = jnp.ones(2), tx.init(jnp.ones(2))
    for gradient in (1.0, jnp.nan, 1.0, 1.0):
        (params, state), _ = one_step(tx)((params, state), jnp.full(2, gradient))
    found = olr.get_snapshots(state)
    assert found.steps.tolist() == [1, 3] and found.params.tolist() == [[0.5, 0.5], [-0.5, -0.5]]


def test_projected_parameters_are_had_by_projecting_the_snapshots():
    def project(params):
        return params / jnp.linalg.norm(params)

    tx, params = optax.chain(optax.sgd(0.5), olr.snapshot_at_cycle_ends(2, 2)), jnp.array([0.6, 0.8])
    state, trained = tx.init(params), []
    for step in range(4):
        updates, state = tx.update(jnp.array([1.0, step]), state, params)
        params = project(optax.apply_updates(params, updates))
        trained.append(params)
    found = olr.get_snapshots(state)
    np.testing.assert_allclose(jax.vmap(project)(found.params), np.array(trained)[[1, 3]], rtol=1e-6)
