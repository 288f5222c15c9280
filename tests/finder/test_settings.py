"""Searches under every setting of JAX: the same answers, each program traced once, in the calling thread."""

import contextvars
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from searches import BATCHES, PARAMS, SEARCHES, assert_alike, loss_fn, numbers, public_searches

import optax_lr as olr
from optax_lr.engine.workers import enable_x64

# What a user turns on to be told of mistakes, and the other settings that a trace depends on.
FLAGS = {
    "x64": lambda: enable_x64(True),
    "debug_nans": lambda: jax.debug_nans(True),
    "debug_infs": lambda: jax.debug_infs(True),
    "strict promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "tracer leaks": lambda: jax.checking_leaks(),
    "disable_jit": lambda: jax.disable_jit(),
    "transfer guard": lambda: jax.transfer_guard("disallow"),
    "rbg": lambda: jax.default_prng_impl("rbg"),
}
CONTEXTS = FLAGS | {
    "matmul precision": lambda: jax.default_matmul_precision("highest"),
    "threefry": lambda: jax.threefry_partitionable(False),
    "default device": lambda: jax.default_device(jax.devices()[-1]),
    "Auto mesh": lambda: jax.set_mesh(jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))),
    "Explicit mesh": lambda: jax.set_mesh(jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))),
}
_FOUND: dict = {}


def usual(name):
    """What a search finds without any flag."""
    if name not in _FOUND:
        _FOUND[name] = SEARCHES[name]()
    return _FOUND[name]


def test_every_public_search_has_a_row():
    # `compare` is searches and sweeps of these, one after the other.
    assert {name.split()[0] for name in SEARCHES} == public_searches() - {"compare"}


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("name", SEARCHES)
def test_a_flag_changes_no_answer(name, flag):
    expected = usual(name)
    with FLAGS[flag]():
        found = SEARCHES[name]()
    if flag == "rbg":
        # Another kind of key orders the batches of further seeds in another way.
        np.testing.assert_allclose(numbers(found)["losses"][0], numbers(expected)["losses"][0], rtol=2e-5)
    else:
        assert_alike(expected, found)


@pytest.mark.parametrize("name", SEARCHES)
def test_legacy_keys_are_those_of_today(name):
    assert_alike(SEARCHES[name](key=jax.random.PRNGKey(1)), SEARCHES[name](key=jax.random.key(1)), rtol=0)


@pytest.mark.parametrize("flag", ["debug_nans", "debug_infs"])
def test_a_lane_that_rightly_diverges_raises_no_alarm(flag):
    with FLAGS[flag]():
        curve = SEARCHES["lr_sweep"](learning_rates=[0.01, 1e30])
    assert curve.stable.tolist() == [True, False]


def test_float64_parameters_are_trained_in_float64():
    with enable_x64(True):
        params, batches = jax.tree.map(lambda leaf: leaf.astype(np.float64), (PARAMS, BATCHES))
        seen = []

        def watched(params, x):
            seen.append((params["w"].dtype, x.dtype))
            return loss_fn(params, x)

        found = SEARCHES["lr_sweep"](loss=watched, params=params, batches=batches, eval_batch=batches[0])
    assert set(seen) == {(np.dtype("float64"),) * 2}
    assert_alike(usual("lr_sweep"), found, rtol=1e-4)


SMOOTHING = contextvars.ContextVar("smoothing", default=0.0)


def sweep_of_lanes_that_start_alike():
    """Twelve lanes, the threads that their loss was traced in, and whether it saw the user's own context."""
    seen = []

    def loss(params, x, key):
        seen.append((threading.current_thread(), SMOOTHING.get()))
        return loss_fn(params, x) + SMOOTHING.get() + 0.1 * jax.random.uniform(key, (10,))[3]

    curve = olr.lr_sweep(
        loss, PARAMS, optax.sgd, BATCHES, learning_rates=np.geomspace(1e-5, 1e-4, 12).tolist(), with_key=True,
        eval_batch=BATCHES[0], progress=False,
    )  # fmt: skip
    return curve, seen


@pytest.mark.parametrize("context", CONTEXTS)
def test_each_program_is_traced_once_in_the_calling_thread(context):
    token = SMOOTHING.set(0.5)
    try:
        _, usual_traces = sweep_of_lanes_that_start_alike()
        with CONTEXTS[context]():
            curve, seen = sweep_of_lanes_that_start_alike()
    finally:
        SMOOTHING.reset(token)
    assert seen == [(threading.main_thread(), 0.5)] * len(usual_traces)
    assert (curve.losses[0, :, 0] == curve.losses[0, 0, 0]).all()
    draw = curve.losses[0, 0, 0] - 0.5 - float(loss_fn(jax.tree.map(jnp.asarray, PARAMS), BATCHES[0]))
    assert 0 <= draw <= 0.1


def test_a_device_that_is_named_is_the_one_searched_on():
    device = jax.devices()[-1]
    for found in (
        SEARCHES["lr_sweep"](mesh=jax.sharding.Mesh(np.array([device]), ("x",))),
        _under(jax.default_device(device), SEARCHES["lr_sweep"]),
    ):
        assert_alike(usual("lr_sweep"), found)


def _under(context, search):
    with context:
        return search()


def test_what_is_no_search_is_said_in_one_sentence():
    text = {"x": BATCHES, "id": np.array(["row"] * len(BATCHES))}
    listed = [{"x": x, "id": "row7"} for x in BATCHES]
    for batches in (text, {**text, "id": ["row"] * len(BATCHES)}, listed):
        with pytest.raises(ValueError, match=r"batches must be arrays of numbers, got .* at batches\['id'\]"):
            SEARCHES["lr_sweep"](loss=lambda params, x: loss_fn(params, x["x"]), batches=batches)
    with pytest.raises(ValueError, match="eval_batch must be arrays of numbers"):
        SEARCHES["lr_sweep"](eval_batch={"id": "row"})
    for name in ("lr_sweep", "lr_find", "lr_refind"):
        with pytest.raises(
            ValueError, match=r"leading axis of steps.*shape \(4,\), but eval_batch has \(8, 4\)"
        ):
            SEARCHES[name](batches=BATCHES[0])


def test_data_without_the_axis_of_steps_are_refused_where_targets_have_no_further_axis():
    """Batches `(x [16, 4], y [16])` would be 16 steps of single examples, which broadcast to a finite loss."""
    x = BATCHES.reshape(-1, 4)[:16]
    data = (x, x.sum(-1))

    def loss(params, batch):
        return jnp.mean((batch[0] @ params["w"] @ params["v"] - batch[1]) ** 2)

    with pytest.raises(
        ValueError, match=r"leading axis of steps.*\(4,\), \(\)\), but eval_batch has \(\(16, 4\)"
    ):
        SEARCHES["lr_sweep"](loss=loss, batches=data, eval_batch=data)
    one_number_a_step = SEARCHES["lr_sweep"](
        loss=lambda params, x: 5.0 + params["v"].sum() * x.mean(),
        batches=x[:, 0],
        eval_batch=x[:, 0],
    )
    assert np.isfinite(one_number_a_step.eval_losses).all()


TRACING = {
    "jit": lambda call: jax.jit(call)(1.0),
    "scan": lambda call: jax.lax.scan(lambda carry, number: (carry, call(number)), 0, jnp.zeros(2)),
    "vmap": lambda call: jax.vmap(call)(jnp.zeros(2)),
    "grad": lambda call: jax.grad(call)(1.0),
}


@pytest.mark.parametrize("transform", TRACING)
@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_while_jax_traces_is_refused(name, transform):
    with pytest.raises(ValueError, match="cannot be called inside jit, vmap or grad"):
        TRACING[transform](lambda number: (SEARCHES[name](), number)[1])


def test_traced_arguments_are_refused():
    for given in ("params", "batches", "eval_batch"):
        plain = {"params": PARAMS, "batches": BATCHES, "eval_batch": BATCHES[0]}[given]
        with pytest.raises(ValueError, match="cannot be called inside jit"):
            jax.vmap(lambda traced, given=given: SEARCHES["lr_sweep"](**{given: traced}))(
                jax.tree.map(lambda leaf: leaf[None], plain)
            )
