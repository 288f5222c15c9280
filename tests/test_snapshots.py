"""Snapshots against a loop that copies parameters, ensembles against NumPy, and what a step costs."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import scipy.special
from flax import nnx

import optax_lr as olr

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
    _, (forward, *_) = jax.jvp(lambda start: run(start, snapshots)[1][1].params, (2.0,), (1.0,))
    assert forward == 1


def compiled(scan, *last):
    """A step, or a scan of steps, of Adam over a matrix and a vector, compiled for this CPU."""
    params = {"kernel": jnp.zeros((256, 256)), "bias": jnp.zeros(256)}
    tx = optax.chain(optax.adam(olr.sgdr_schedule(1e-3, 0.0, olr.Cycles(100, 2))), *last)
    run = functools.partial(jax.lax.scan, one_step(tx)) if scan else one_step(tx)
    grads = jax.tree.map(lambda leaf: jnp.zeros((4, *leaf.shape)), params) if scan else params
    program = jax.jit(run, donate_argnums=0).lower((params, tx.init(params)), grads).compile()
    return program, sum(leaf.nbytes for leaf in params.values())


@pytest.mark.parametrize("scan", [False, True], ids=["alone", "scan"])
def test_a_step_that_keeps_nothing_copies_and_moves_nothing(scan):
    def copied(program):
        return re.findall(r"= \w+(\[\d[\d,]*\])\S* copy\(", program.as_text())

    (bare, size), (program, _) = (
        compiled(scan),
        compiled(scan, olr.snapshot_at_cycle_ends(olr.Cycles(100, 2), 5)),
    )
    assert copied(program) == copied(bare) == []
    # The count has the body of the loop in it, which reads and writes the parameters once a cycle.
    moved, before = (each.cost_analysis()["bytes accessed"] for each in (program, bare))
    assert before < moved - 2 * size <= 1.02 * before


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
    found = olr.get_snapshots(nnx.as_pure(optimizer.opt_state))

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
    for bad in (0, 2.5, None):
        with pytest.raises(ValueError, match="cycles must be a whole number of steps"):
            unhooked.snapshot_at_cycle_ends(bad, 3)


# Ensembles: five members of a linear model with three classes, against float64 NumPy.

MEMBERS, INPUTS = NORMAL(size=(5, 4, 3)), NORMAL(size=(7, 4))
ENSEMBLE = olr.Snapshots({"w": jnp.asarray(MEMBERS, jnp.float32)}, jnp.arange(5))
WEIGHTS = np.array([1.0, 0.0, 2.0, 0.5, 3.0])


def apply(params, inputs):
    return inputs @ params["w"]


def expected(combine, weights):
    said = np.einsum("ni,mio->mno", INPUTS, MEMBERS)
    if combine == "probabilities":
        said = scipy.special.softmax(said, axis=-1)
    mean = np.average(said, axis=0, weights=weights)
    spread = np.sqrt(np.average((said - mean) ** 2, axis=0, weights=weights))
    return said if combine == "none" else mean, spread


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
@pytest.mark.parametrize("combine", ["probabilities", "logits", "none"])
def test_ensemble_is_numpys(combine, weights):
    def predict(inputs, weights):
        return olr.ensemble_predict(apply, ENSEMBLE, inputs, combine=combine, weights=weights)

    for got in (predict(INPUTS, weights), jax.jit(predict)(INPUTS, weights)):
        for one, other in zip(got, expected(combine, weights), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_seeds_and_lanes_of_a_sweep_are_members():
    def step(params, rate, batch, key):
        loss, grads = jax.value_and_grad(lambda params: jnp.mean((apply(params, batch) - 1) ** 2))(params)
        return jax.tree.map(lambda leaf, grad: leaf - rate * grad, params, grads), {"loss": loss}

    carry, rates = at(ENSEMBLE.params, slice(0, 2)), jnp.array([0.01, 0.1, 1e6])
    found = olr.sweep(
        step,
        carry,
        rates,
        jnp.asarray(INPUTS, jnp.float32)[None],
        num_steps=9,
        seeds=2,
        carry_per_seed=True,
        return_carries=True,
    )
    ended = np.where(found.diverged_at < 0, 8, found.diverged_at)
    members, alive = olr.Snapshots(found.carries, ended), found.diverged_at < 0
    predicted = olr.ensemble_predict(apply, members, INPUTS, combine="logits", weights=alive)
    said = np.einsum("ni,slio->slno", INPUTS, np.asarray(found.carries["w"], np.float64))
    assert alive.tolist() == [[True, True, False]] * 2
    np.testing.assert_allclose(predicted.outputs, said[alive].mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(predicted.spread, said[alive].std(0), rtol=1e-4, atol=1e-5)
    each = olr.ensemble_predict(apply, members, INPUTS, combine="none", weights=alive)
    assert each.outputs.shape == (2, 3, 7, 3)
    for lane, one in enumerate(jax.vmap(olr.average_snapshots, in_axes=1)(members)["w"]):
        np.testing.assert_allclose(one, found.carries["w"][:, lane].mean(0), rtol=1e-6)


def test_outputs_may_be_a_tree_in_bfloat16():
    half = ENSEMBLE._replace(params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), ENSEMBLE.params))

    def heads(params, inputs):
        return {"first": apply(params, inputs), "second": 2 * apply(params, inputs)}

    outputs, spread = olr.ensemble_predict(heads, half, jnp.asarray(INPUTS, jnp.bfloat16))
    for leaf in jax.tree.leaves((outputs, spread)):
        assert leaf.dtype == jnp.float32 and leaf.shape == (7, 3)
    np.testing.assert_allclose(outputs["second"].sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(outputs["first"], expected("probabilities", None)[0], atol=0.02)


def test_a_member_that_is_not_finite_has_no_part_where_its_weight_is_0():
    broken = ENSEMBLE._replace(params={"w": ENSEMBLE.params["w"].at[1].set(jnp.nan)})
    for combine in ("probabilities", "logits"):
        got = olr.ensemble_predict(apply, broken, INPUTS, combine=combine, weights=WEIGHTS)
        np.testing.assert_allclose(got.outputs, expected(combine, WEIGHTS)[0], rtol=1e-5, atol=1e-6)
        assert np.isfinite(got.spread).all()
    assert np.isnan(olr.ensemble_predict(apply, broken, INPUTS).outputs).all()
    np.testing.assert_allclose(
        olr.average_snapshots(broken, WEIGHTS)["w"], np.average(MEMBERS, 0, WEIGHTS), rtol=1e-5, atol=1e-6
    )


def test_derivatives_are_finite_where_members_agree_and_weights_are_0():
    twins = olr.Snapshots({"w": jnp.ones((2, 4, 3))}, jnp.arange(2))

    def total(params, weights, members):
        said = olr.ensemble_predict(apply, members._replace(params=params), INPUTS, weights=weights)
        return (said.outputs**2).sum() + said.spread.sum()

    for members, weights in ((twins, jnp.ones(2)), (ENSEMBLE, jnp.asarray(WEIGHTS))):
        slopes = jax.jit(jax.grad(total, argnums=(0, 1)))(members.params, weights, members)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
    assert slopes[1][1] != 0  # by the weight that is 0


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
def test_average_is_numpys_and_keeps_dtypes(weights):
    members = olr.Snapshots(
        {
            "w": ENSEMBLE.params["w"],
            "half": jnp.full(5, 2.0**-8, jnp.bfloat16) + 1,
            "count": jnp.arange(5),
            "key": jax.random.split(jax.random.key(0), 5),
        },
        jnp.arange(5),
    )
    got = jax.jit(olr.average_snapshots)(members, weights)
    np.testing.assert_allclose(got["w"], np.average(MEMBERS, 0, weights), rtol=1e-5, atol=1e-6)
    assert got["half"] == members.params["half"][0] and got["half"].dtype == jnp.bfloat16
    assert got["count"] == 4 and got["key"] == members.params["key"][4]
    # Of a linear model the average of the weights says what the average of the outputs says.
    outputs = olr.ensemble_predict(apply, ENSEMBLE, INPUTS, combine="logits", weights=weights).outputs
    np.testing.assert_allclose(apply(got, INPUTS), outputs, rtol=1e-4, atol=1e-5)


def test_bad_ensembles_are_refused(unhooked):
    members = unhooked.Snapshots(*ENSEMBLE)
    with pytest.raises(ValueError, match=r"weights must be .* of shape \(5,\), .* got the shape \(4,\)"):
        unhooked.average_snapshots(members, np.ones(4))
    for bad in ([1, 1, 1, 1, -1], [np.nan] * 5, [0] * 5):
        with pytest.raises(
            ValueError, match=rf"weights must be .*got {re.escape(str(list(map(float, bad))))}"
        ):
            unhooked.ensemble_predict(apply, members, INPUTS, weights=np.array(bad, float))
    for bad in (
        members._replace(steps=np.arange(3)),
        members._replace(steps=np.int32(3)),
        at(members, slice(0)),
    ):
        with pytest.raises(ValueError, match="snapshots must have at least one member"):
            unhooked.average_snapshots(bad)
    with pytest.raises(ValueError, match="combine must be one of 'probabilities', 'logits', 'none'"):
        unhooked.ensemble_predict(apply, members, INPUTS, combine="mean")
    with pytest.raises(ValueError, match=r"two classes .* got the shape \(7, 1\) .*combine='logits'"):
        unhooked.ensemble_predict(lambda *given: apply(*given)[:, :1], members, INPUTS)
    with pytest.raises(ValueError, match="apply_fn must be a function"):
        unhooked.ensemble_predict(members, apply, INPUTS)
    with pytest.raises(ValueError, match="batches must be arrays with one leading axis"):
        unhooked.refresh_batch_stats(apply, members.params, {"x": np.ones((3, 2)), "y": np.ones((2, 2))})


class Normalized(nn.Module):
    @nn.compact
    def __call__(self, inputs, use_running_average=False):
        hidden = nn.Dense(3, use_bias=False)(inputs)
        return nn.BatchNorm(use_running_average=use_running_average, momentum=0.0)(hidden)


def test_refreshed_statistics_are_the_mean_over_batches():
    model, batches = Normalized(), jnp.asarray(NORMAL(size=(6, 10, 4)), jnp.float32)
    variables = model.init(jax.random.key(0), batches[0])

    def batch_stats(params, batch):
        return model.apply({"params": params}, batch, mutable=["batch_stats"])[1]["batch_stats"]

    stats = olr.refresh_batch_stats(batch_stats, variables["params"], batches)
    hidden = np.asarray(batches, np.float64) @ np.asarray(variables["params"]["Dense_0"]["kernel"])
    found = stats["BatchNorm_0"]
    np.testing.assert_allclose(found["mean"], hidden.mean(1).mean(0), atol=1e-6)
    np.testing.assert_allclose(found["var"], hidden.var(1).mean(0), rtol=1e-5)
    assert jax.tree.structure(stats) == jax.tree.structure(variables["batch_stats"])
    fresh = {"params": variables["params"], "batch_stats": stats}
    said = model.apply(fresh, batches.reshape(60, 4), use_running_average=True)
    np.testing.assert_allclose(said.mean(0), 0, atol=1e-5)
