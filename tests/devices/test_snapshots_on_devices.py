"""On eight devices: snapshots of sharded parameters are sharded as these are, whoever makes the state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optax_lr as olr
from optax_lr.nnx.modules import pure

TX = optax.chain(
    optax.trace(0.9), olr.scale_by_learning_rate(0.1), olr.snapshot_at_cycle_ends(olr.Cycles(2, 2), 3)
)
PARAMS = {"kernel": jnp.arange(32.0).reshape(16, 2) / 32, "bias": jnp.ones(2)}
SPECS = {"kernel": PartitionSpec("devices"), "bias": PartitionSpec()}


@jax.jit
def step(params, state):
    updates, state = TX.update(params, state, params)
    return optax.apply_updates(params, updates), state


def train(params, init):
    state = init(params)
    for _ in range(7):
        params, state = step(params, state)
    return olr.get_snapshots(state)


def apply(params, inputs):
    return inputs @ params["kernel"] + params["bias"]


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("jitted", [False, True], ids=["eager init", "jitted init"])
def test_snapshots_keep_the_sharding_of_the_parameters(axis_type, jitted):
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(axis_type,))
    placed = {name: jax.device_put(PARAMS[name], NamedSharding(mesh, spec)) for name, spec in SPECS.items()}
    found, alone = train(placed, jax.jit(TX.init) if jitted else TX.init), train(PARAMS, TX.init)
    assert found.steps.tolist() == alone.steps.tolist() == [1, 5]
    for name, rows in found.params.items():
        expected = NamedSharding(mesh, PartitionSpec(None, *SPECS[name]))
        assert rows.sharding.is_equivalent_to(expected, rows.ndim), rows.sharding
        np.testing.assert_allclose(rows, alone.params[name], rtol=1e-6)
    assert found.params["kernel"].addressable_shards[0].data.shape == (2, 2, 2)
    average = olr.average_snapshots(found)["kernel"]
    assert average.sharding.is_equivalent_to(placed["kernel"].sharding, 2)
    inputs = jnp.linspace(-1, 1, 48).reshape(3, 16)
    for one, other in zip(
        *(olr.ensemble_predict(apply, each, inputs) for each in (found, alone)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


MODES = pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
# As many slots as devices: an axis of slots could be taken for one to split.
SLOTS = pytest.mark.parametrize("slots", [2, 8])


def check_laid_out_as(state, params):
    """Every slot lies as the parameters do, and no device holds a whole kernel."""
    for tree in state.snapshots:
        for one, other in zip(jax.tree.leaves(tree), jax.tree.leaves(params), strict=True):
            assert one.shape == other.shape and one.sharding.is_equivalent_to(other.sharding, one.ndim)
            assert one.ndim < 2 or one.addressable_shards[0].data.size == one.size // 8


def mesh_of(axis_type):
    return jax.make_mesh((8,), ("devices",), axis_types=(axis_type,))


def on(mesh, tree=PARAMS):
    return {name: jax.device_put(tree[name], NamedSharding(mesh, spec)) for name, spec in SPECS.items()}


@MODES
@SLOTS
def test_of_abstract_parameters_and_by_tree_map_params(axis_type, slots):
    mesh = mesh_of(axis_type)
    params = on(mesh)
    tx = olr.snapshot_at_cycle_ends(2, slots)
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), params
    )
    check_laid_out_as(tx.init(abstract), params)
    shardings = optax.tree_map_params(
        tx,
        lambda _, sharding: sharding,
        jax.eval_shape(tx.init, PARAMS),
        jax.tree.map(lambda leaf: leaf.sharding, params),
        transform_non_params=lambda _: NamedSharding(mesh, PartitionSpec()),
    )
    check_laid_out_as(jax.jit(tx.init, out_shardings=shardings)(PARAMS), params)


@MODES
@SLOTS
def test_of_an_nnx_optimizer_with_sharded_parameters(axis_type, slots):
    kernel_init = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("devices", None))
    tx = optax.chain(optax.sgd(0.1), olr.snapshot_at_cycle_ends(2, slots))
    with jax.set_mesh(mesh_of(axis_type)):
        model = nnx.Linear(16, 16, use_bias=False, rngs=nnx.Rngs(0), kernel_init=kernel_init)
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        graph, arrays = nnx.split((model, optimizer))

        @functools.partial(jax.jit, donate_argnums=0)
        def step(arrays):
            model, optimizer = nnx.merge(graph, arrays)
            optimizer.update(model, nnx.grad(lambda model: jnp.sin(model.kernel[...]).sum())(model))
            return nnx.state((model, optimizer))

        program = step.lower(arrays).compile().as_text()
        assert "all-gather" not in program and "all-to-all" not in program
        trained = []
        for _ in range(4):
            arrays = step(arrays)
            trained.append(np.asarray(jax.tree.leaves(arrays[0])[0]))
        _, optimizer = nnx.merge(graph, arrays)
        state = pure(optimizer.opt_state)
        check_laid_out_as(state[1], [jax.tree.leaves(arrays[0])[0]])
        rows = olr.get_snapshots(state).params["kernel"]
    np.testing.assert_array_equal(rows, [trained[1], trained[3]])
    assert rows.addressable_shards[0].data.shape == (2, 2, 16)


@MODES
def test_lanes_of_sharded_parameters(axis_type):
    """A vmapped training on the mesh: every lane has the snapshots that it has alone."""
    mesh, scales = mesh_of(axis_type), jnp.array([1.0, 2.0])
    tx = optax.chain(optax.sgd(0.1), olr.snapshot_at_cycle_ends(2, 2))

    def run(params, scale):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.tree.map(lambda leaf: scale * leaf, params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=5)[0][1]

    lanes = olr.get_snapshots(jax.jit(jax.vmap(run, in_axes=(None, 0)))(on(mesh), scales))
    assert lanes.steps.tolist() == [[1, 3]] * 2
    for lane, scale in enumerate(scales):
        alone = olr.get_snapshots(run(PARAMS, scale)).params
        for name in PARAMS:
            np.testing.assert_allclose(lanes.params[name][lane], alone[name], rtol=1e-6)


def test_a_state_made_under_jit_gives_up_its_buffers():
    params = on(mesh_of(AxisType.Auto))
    state = jax.jit(TX.init)(params)
    jax.jit(lambda params, state: TX.update(params, state, params), donate_argnums=1)(params, state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state[2].snapshots))
