"""Checkpoints: what is resumed, refused, passed over, and survived."""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest

import optax_lr as olr
from optax_lr.engine import checkpoints, jobs

BATCHES = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
LANES = np.array([0.05, 0.1, 0.2], np.float32)


def step(carry, rate, batch, key):
    x = carry["x"] - rate * (jnp.sin(3 * carry["x"]) + 0.1 * jax.random.normal(key) + batch.mean())
    return {"x": x, "key": jax.random.split(carry["key"])[0]}, {"loss": 2 + jnp.cos(x)}


def run(directory=None, **changes):
    options = {
        "num_steps": 30,
        "seeds": 2,
        "evaluate": lambda carry, batch: {"loss": jnp.abs(carry["x"] - batch)},
        "eval_batch": np.float32(0.3),
        "eval_steps": [10, 30],
        "return_carries": True,
        "progress": False,
    }
    start = {"x": jnp.bfloat16(0.3).astype(jnp.float32), "key": jax.random.key(4)}
    arguments = {"carry": start, "lanes": LANES, "batches": BATCHES, **options, **changes}
    positional = [arguments.pop(name) for name in ("carry", "lanes", "batches")]
    return olr.sweep(step, *positional, checkpoint=directory, **arguments)


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one[:4], other[:4])


@pytest.fixture
def small_calls(monkeypatch):
    """Calls of ten steps, a checkpoint after each."""
    monkeypatch.setattr(jobs, "STEPS_PER_CALL", 10)
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN_SAVES", 0.0)


@contextlib.contextmanager
def stopped_after(puts):
    """Make the sweep fail, as a crash would, after so many calls."""
    seen, put = [], checkpoints.Store.put

    def failing(self, *arguments):
        if len(seen) == puts:
            raise KeyboardInterrupt
        seen.append(1)
        put(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints.Store, "put", failing)
        yield


@pytest.mark.parametrize("lanes_at_once", ["auto", 2])
@pytest.mark.parametrize("puts", [1, 4])
def test_an_interrupted_sweep_ends_with_the_same_bits(tmp_path, small_calls, lanes_at_once, puts):
    whole = run(lanes_at_once=lanes_at_once)
    with stopped_after(puts), pytest.raises(KeyboardInterrupt):
        run(tmp_path, lanes_at_once=lanes_at_once)
    resumed = run(tmp_path, lanes_at_once=lanes_at_once)
    same(whole, resumed)
    per_call = 10 if lanes_at_once == "auto" else 10 * 2 * 2
    assert resumed.skipped_steps > 0 and resumed.skipped_steps % per_call == 0
    again = run(tmp_path, lanes_at_once=lanes_at_once)
    same(whole, again)
    assert again.skipped_steps >= 2 * 3 * 30 and again.redone_steps == 0


def test_the_chunk_of_a_checkpoint_is_kept(tmp_path, small_calls):
    run(tmp_path, lanes_at_once=2)
    assert "2 at once" in run(tmp_path).placement
    with pytest.raises(ValueError, match="it differs in lanes_at_once"):
        run(tmp_path, lanes_at_once=3)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lanes": 2 * LANES}, "lanes"),
        ({"batches": BATCHES[::-1].copy()}, "batches"),
        ({"num_steps": 40, "eval_steps": [10, 40]}, "num_steps, eval_steps"),
        ({"key": jax.random.key(1)}, "key"),
        ({"carry": {"x": jnp.float32(0.5), "key": jax.random.key(4)}}, "start"),
        ({"stop_factor": 4.0}, "stop_factor"),
        ({"eval_batch": np.float32(0.4)}, "eval_batch"),
        ({"return_carries": False}, "return_carries"),
    ],
)
def test_a_checkpoint_of_another_sweep_is_refused_by_what_differs(tmp_path, small_calls, changes, named):
    run(tmp_path)
    with pytest.raises(ValueError, match=f"is of another sweep: it differs in {named}"):
        run(tmp_path, **changes)


def test_a_step_of_another_form_is_another_sweep(tmp_path):
    checkpoints_of = {"num_steps": 2, "progress": False, "checkpoint": tmp_path}
    olr.sweep(lambda x, r, b, k: (x - r, {"loss": x}), jnp.float32(9), LANES, BATCHES, **checkpoints_of)
    with pytest.raises(ValueError, match="it differs in step"):
        olr.sweep(
            lambda x, r, b, k: (x - 2 * r, {"loss": x}), jnp.float32(9), LANES, BATCHES, **checkpoints_of
        )


def test_a_torn_checkpoint_is_passed_over_for_the_one_before(tmp_path, small_calls):
    whole = run(lanes_at_once=2)
    with stopped_after(5), pytest.raises(KeyboardInterrupt):
        run(tmp_path, lanes_at_once=2)
    numbers = sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit())
    assert len(numbers) == checkpoints.KEPT
    torn = tmp_path / str(numbers[-1])
    for path in torn.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    earlier = orbax.checkpoint.PyTreeCheckpointer().restore(tmp_path / str(numbers[0]))["done"].sum()
    with pytest.warns(UserWarning, match=f"Checkpoint {numbers[-1]} .* is torn and passed over"):
        resumed = run(tmp_path)
    assert resumed.skipped_steps == earlier * 2 * 2
    same(whole, resumed)


def test_a_full_disk_is_a_warning_and_the_sweep_goes_on(tmp_path, small_calls, monkeypatch):
    class Full:
        def save(self, *arguments):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "_checkpointer", Full)
    with pytest.warns(UserWarning, match="No space left on device.*goes on without it"):
        found = run(tmp_path)
    same(found, run())


def test_the_label_says_what_the_sweep_was(tmp_path):
    run(tmp_path)
    label = json.loads((tmp_path / "sweep.json").read_text())
    assert label["num_steps"] == 30 and label["lanes_at_once"] is None and label["devices"] == 1


def test_digests_tell_values_shapes_and_keys_apart():
    trees = [np.zeros(3), np.zeros((3, 1)), np.zeros(3, np.float32), {"a": np.zeros(3)}, jax.random.key(0)]
    assert len({checkpoints.digest(tree) for tree in trees}) == len(trees)
    assert checkpoints.digest_of_program("f at 0x1f") == checkpoints.digest_of_program("f at 0x2e")
