"""Checkpoints: what is resumed, refused, passed over, and survived."""

import contextlib
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_lr as olr
from optax_lr.engine import checkpoints, jobs, workers

BATCHES = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
LANES = np.array([0.05, 0.1, 0.2], np.float32)
ALL_STEPS = 2 * 3 * 30


def step(carry, rate, batch, key):
    x = carry["x"] - rate * (jnp.sin(3 * carry["x"]) + 0.1 * jax.random.normal(key) + batch.mean())
    half = carry["half"] + x.astype(jnp.bfloat16)
    return {"x": x, "half": half, "key": jax.random.split(carry["key"])[0]}, {"loss": 2 + jnp.cos(x)}


def distance(carry, batch):
    return {"loss": jnp.abs(carry["x"] - batch)}


def start_at(x):
    return {"x": jnp.float32(x), "half": jnp.bfloat16(0.3), "key": jax.random.key(4)}


def run(directory=None, **changes):
    options = {
        "num_steps": 30,
        "seeds": 2,
        "evaluate": distance,
        "eval_batch": np.float32(0.3),
        "eval_steps": [10, 30],
        "return_carries": True,
        "progress": False,
    }
    arguments = {"carry": start_at(0.3), "lanes": LANES, "batches": BATCHES, **options, **changes}
    positional = [arguments.pop(name) for name in ("carry", "lanes", "batches")]
    return olr.sweep(step, *positional, checkpoint=directory, **arguments)


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one[:4], other[:4])


@pytest.fixture(scope="module")
def whole():
    """An undisturbed sweep, by how many lanes ride at once."""
    return {at_once: run(lanes_at_once=at_once) for at_once in ("auto", 2)}


@pytest.fixture
def small_calls(monkeypatch):
    """Calls of ten steps, a checkpoint after each, one worker."""
    monkeypatch.setattr(jobs.Pace, "steps", lambda self, most: min(most, 10))
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr("optax_lr.engine.choose.cores", lambda: 1)


@contextlib.contextmanager
def stopped_after(calls):
    """Make the sweep fail, as a crash would, after so many calls."""
    seen, record = [], workers._record

    def failing(*arguments):
        if len(seen) == calls:
            raise KeyboardInterrupt
        seen.append(1)
        return record(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "_record", failing)
        yield


def files(directory):
    return sorted(directory.glob("checkpoint-*.npz"), key=lambda path: int(path.stem.split("-")[1]))


@pytest.mark.parametrize("lanes_at_once", ["auto", 2])
@pytest.mark.parametrize("calls", [1, 4])
def test_an_interrupted_sweep_ends_with_the_same_bits(tmp_path, small_calls, whole, lanes_at_once, calls):
    with stopped_after(calls), pytest.raises(KeyboardInterrupt):
        run(tmp_path, lanes_at_once=lanes_at_once)
    resumed = run(tmp_path, lanes_at_once=lanes_at_once)
    same(whole[lanes_at_once], resumed)
    # A call of one lane makes ten steps; one of the grid that of two lanes, or of the last one, on two seeds.
    if lanes_at_once == "auto":
        assert resumed.skipped_steps == 10 * calls
    else:
        assert resumed.skipped_steps == {1: 40, 4: 120 + 20}[calls]
    assert resumed.redone_steps == 0
    again = run(tmp_path, lanes_at_once=lanes_at_once)
    same(whole[lanes_at_once], again)
    assert again.skipped_steps == ALL_STEPS and again.redone_steps == 0


def test_steps_made_after_the_checkpoint_are_counted_as_made_again(tmp_path, small_calls, monkeypatch, whole):
    saves, save = [], checkpoints.Folder.save

    def first_two(self, saved):
        saves.append(saved.steps)
        if len(saves) <= 2:
            save(self, saved)

    monkeypatch.setattr(checkpoints.Folder, "save", first_two)
    with stopped_after(4), pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    monkeypatch.setattr(checkpoints.Folder, "save", save)
    assert saves == [0, 10, 20, 30, 40, 40]
    resumed = run(tmp_path)
    assert (resumed.skipped_steps, resumed.redone_steps) == (10, 30)
    same(whole["auto"], resumed)


def test_steps_that_a_stopped_lane_does_not_make_are_not_counted(tmp_path, small_calls):
    options = {"lanes": np.array([0.1, np.nan, 0.2], np.float32), "lanes_at_once": 3}
    calm = run(**options)
    assert (calm.diverged_at[:, 1] == 0).all()
    with stopped_after(2), pytest.raises(KeyboardInterrupt):
        run(tmp_path, **options)
    resumed = run(tmp_path, **options)
    # Two lanes on two seeds made 20 steps, the lost one a single one.
    assert resumed.skipped_steps == 2 * (20 + 1 + 20) and resumed.redone_steps == 0
    same(calm, resumed)


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
        ({"carry": start_at(0.5)}, "start"),
        ({"stop_factor": 4.0}, "stop_factor"),
        ({"eval_batch": np.float32(0.4)}, "eval_batch"),
        ({"return_carries": False}, "return_carries"),
    ],
)
def test_a_checkpoint_of_another_search_is_refused_by_what_differs(tmp_path, small_calls, changes, named):
    run(tmp_path)
    with pytest.raises(ValueError, match=f"is of another search: it differs in {named}"):
        run(tmp_path, **changes)


def test_a_step_of_another_form_is_another_search(tmp_path):
    options = {"num_steps": 2, "progress": False, "checkpoint": tmp_path}
    olr.sweep(lambda x, r, b, k: (x - r, {"loss": x}), jnp.float32(9), LANES, BATCHES, **options)
    with pytest.raises(ValueError, match="it differs in step"):
        olr.sweep(lambda x, r, b, k: (x - 2 * r, {"loss": x}), jnp.float32(9), LANES, BATCHES, **options)


def broken(content, how):
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
    return {"flipped": flipped, "cut": content[:middle], "empty": b"", "text": b"hello"}[how]


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "text"])
def test_a_torn_checkpoint_is_passed_over_for_the_one_before(tmp_path, small_calls, whole, how):
    with stopped_after(5), pytest.raises(KeyboardInterrupt):
        run(tmp_path, lanes_at_once=2)
    older, newest = files(tmp_path)
    earlier = checkpoints._read(older).steps
    newest.write_bytes(broken(newest.read_bytes(), how))
    with pytest.warns(UserWarning, match=f"{newest.name} is torn and passed over"):
        resumed = run(tmp_path)
    assert resumed.skipped_steps == earlier
    same(whole[2], resumed)


def test_no_flipped_bit_of_a_checkpoint_changes_an_answer(tmp_path, small_calls):
    """Every byte in turn: it is found, or it stands where nothing is read."""
    with stopped_after(2), pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    path = files(tmp_path)[-1]
    content, expected, found = path.read_bytes(), checkpoints._read(path), 0
    for at in range(0, len(content), 37):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        try:
            saved = checkpoints._read(path)
        except Exception:
            found += 1
            continue
        assert saved.settings == expected.settings
        jax.tree.map(np.testing.assert_array_equal, saved.runs.arrays(), expected.runs.arrays())
        jax.tree.map(np.testing.assert_array_equal, saved[2:], expected[2:])
    assert found > 100


def test_a_search_begins_anew_where_no_checkpoint_is_whole(tmp_path, small_calls, whole):
    run(tmp_path)
    for path in files(tmp_path):
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match="torn and passed over"):
        found = run(tmp_path)
    assert found.skipped_steps == 0
    same(found, whole["auto"])


@pytest.mark.parametrize("left", [b"", b"\0\0\0", b"\0" * 16 + b"\7"])
def test_a_journal_that_a_power_cut_left_is_read_as_far_as_it_goes(tmp_path, small_calls, whole, left):
    run(tmp_path)
    (tmp_path / "executed").write_bytes(left)
    found = run(tmp_path)
    assert (found.skipped_steps, found.redone_steps) == (ALL_STEPS, 0)
    same(found, whole["auto"])
    folder = checkpoints.Folder(tmp_path)
    folder.note_executed(2 * ALL_STEPS)
    folder.read()
    assert folder.redone == ALL_STEPS


def test_a_full_disk_is_a_warning_and_the_sweep_goes_on(tmp_path, small_calls, monkeypatch, whole):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.warns(UserWarning, match="No space left on device.*goes on without it"):
        found = run(tmp_path)
    same(found, whole["auto"])
    assert not files(tmp_path) and not list(tmp_path.glob("*.partial"))


def test_a_folder_deleted_midway_is_a_warning_and_the_sweep_goes_on(
    tmp_path, small_calls, monkeypatch, whole
):
    record = workers._record

    def deleting(*arguments):
        shutil.rmtree(tmp_path / "gone", ignore_errors=True)
        return record(*arguments)

    monkeypatch.setattr(workers, "_record", deleting)
    with pytest.warns(UserWarning, match="No checkpoint could be written"):
        found = run(tmp_path / "gone")
    same(found, whole["auto"])


SEARCH = """
import sys, numpy as np, jax.numpy as jnp, optax_lr as olr
def step(x, rate, batch, key): return x - rate * (x - batch), {"loss": (x - batch) ** 2}
if sys.argv[2] == "first":
    from optax_lr.engine import workers
    record = workers._record
    def waits(*arguments):
        print("runs", flush=True)
        sys.stdin.readline()
        return record(*arguments)
    workers._record = waits
rates = jnp.array([.1], jnp.float32)
olr.sweep(step, jnp.float32(1), rates, np.zeros(4, np.float32), num_steps=4, checkpoint=sys.argv[1])
print("ended")
"""


def test_a_second_process_in_the_folder_is_refused_in_one_sentence(tmp_path):
    command = [sys.executable, "-c", SEARCH, str(tmp_path)]
    with subprocess.Popen(
        [*command, "first"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout.readline() == "runs\n"
        second = subprocess.run([*command, "second"], capture_output=True, text=True)
        out, _ = first.communicate("\n" * 9)
    assert second.returncode == 1 and not second.stdout
    last = second.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: checkpoint=") and "is in use by another search: give each" in last
    assert out.endswith("ended\n") and first.returncode == 0
    # The lock goes with its process; what is resumed is said first, on stderr, and nothing on stdout.
    third = subprocess.run([*command, "third"], capture_output=True, text=True)
    assert third.stdout == "ended\n"
    assert third.stderr.splitlines()[0] == f"resumed from {tmp_path}: 4 steps skipped, 0 done again"


def test_a_folder_holds_what_it_says(tmp_path, small_calls):
    run(tmp_path)
    assert sorted(path.name.split("-")[0] for path in tmp_path.iterdir()) == [
        "checkpoint", "checkpoint", "executed", "lock",
    ]  # fmt: skip
    saved = checkpoints.Folder(tmp_path).read()
    assert saved.settings["num_steps"] == 30 and saved.settings["lanes_at_once"] is None
    assert saved.settings["devices"] == 1 and saved.steps == ALL_STEPS and not saved.under_way


def test_a_stream_that_is_shorter_than_asked_is_resumed(tmp_path):
    for _ in range(2):
        # Other numbers in the memory that the allocator hands out again.
        np.random.default_rng(1).normal(size=1000)
        found = run(tmp_path, batches=iter(BATCHES))
    assert found.skipped_steps == ALL_STEPS


def test_digests_tell_values_shapes_and_keys_apart():
    trees = [np.zeros(3), np.zeros((3, 1)), np.zeros(3, np.float32), {"a": np.zeros(3)}, jax.random.key(0)]
    assert len({checkpoints.digest(tree) for tree in trees}) == len(trees)
    assert checkpoints.digest_of_program("f at 0x1f") == checkpoints.digest_of_program("f at 0x2e")


def test_a_digest_in_parts_is_that_of_the_whole(monkeypatch):
    array = np.arange(1000, dtype=np.float32).reshape(50, 20)
    expected = checkpoints.digest(array)
    monkeypatch.setattr(checkpoints, "PART", 100)
    assert checkpoints.digest(array) == checkpoints.digest(array.T.copy().T) == expected
    assert checkpoints.digest(array[::-1]) != expected


def test_nothing_here_speaks_of_a_library_for_checkpoints():
    package = pathlib.Path(olr.__file__).parent
    assert not [path for path in package.rglob("*.py") if "orbax" in path.read_text()]
