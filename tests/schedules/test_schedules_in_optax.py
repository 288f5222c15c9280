"""Every schedule inside Optax: as a rate, as a hyperparameter, in a scan, and restored in the middle."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from factories import SCHEDULES

import optax_lr as olr

HALF = 23
PARAMS = {"w": jnp.array([1.0, -2.0])}
GRADIENTS = {"w": jnp.ones(2)}


def train(optimizer, params, state, steps):
    """The parameters and the state after some steps, and every update."""

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(GRADIENTS, state, params)
        return (optax.apply_updates(params, updates), state), updates

    return jax.lax.scan(step, (params, state), None, length=steps)


# One row for each factory: how Optax calls a schedule does not depend on its options.
CASES = {case.factory: case for case in reversed(SCHEDULES)}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_in_optax(case, tmp_path):
    schedule = case.make(olr)
    optimizers = {
        "adamw": optax.adamw(schedule),
        "injected": optax.inject_hyperparams(optax.adamw)(learning_rate=schedule),
        "scaled": optax.scale_by_schedule(schedule),
    }
    states = {name: optimizer.init(PARAMS) for name, optimizer in optimizers.items()}

    @jax.jit
    def run(params, states):
        return {
            name: train(optimizer, params[name], states[name], HALF) for name, optimizer in optimizers.items()
        }

    first = run(dict.fromkeys(optimizers, PARAMS), states)
    carried = {name: carry for name, (carry, _) in first.items()}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "middle", carried)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "middle", jax.tree.map(jnp.zeros_like, carried))

    def again(carried):
        return run({n: c[0] for n, c in carried.items()}, {n: c[1] for n, c in carried.items()})

    second, third = again(carried), again(restored)
    jax.tree.map(np.testing.assert_array_equal, second, third)
    rates = np.array(olr.sample_schedule(schedule, 2 * HALF))
    updates = np.concatenate([run["scaled"][1]["w"][:, 0] for run in (first, second)])
    np.testing.assert_allclose(updates, rates, rtol=1e-5, atol=1e-9)
    injected = second["injected"][0][1].hyperparams["learning_rate"]
    np.testing.assert_allclose(injected, rates[-1], rtol=1e-5, atol=1e-9)
    for run_ in (first, second):
        np.testing.assert_allclose(
            run_["adamw"][0][0]["w"], run_["injected"][0][0]["w"], rtol=1e-4, atol=1e-5
        )
