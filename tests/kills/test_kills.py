"""What is killed and run again ends with the bits of an undisturbed run: a sweep, many times; an example."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint
import pytest

VICTIM = pathlib.Path(__file__).with_name("victim.py")
KILLS = 20


RUNS, STEPS = 6 * 2, 400


def start(directory, log, result, lanes_at_once):
    command = [sys.executable, str(VICTIM), str(directory), str(log), str(result), lanes_at_once]
    with open(f"{log}.err", "w") as errors:
        return subprocess.Popen(command, stderr=errors)


def lives(log):
    """What each life of a sweep said when it began: how many steps it skips, how many it does again."""
    return [tuple(map(int, line.split())) for line in log.read_text().splitlines()] if log.exists() else []


def calls(log):
    """How many calls of steps all lives of a sweep have ended."""
    path = pathlib.Path(f"{log}.calls")
    return path.stat().st_size if path.exists() else 0


def wait_for(process, condition):
    """Wait until the condition holds or the process has ended."""
    while process.poll() is None and not condition():
        time.sleep(0.002)


def left_behind(directory):
    """What a killed sweep leaves: steps in its newest whole checkpoint, and steps it had executed."""
    numbers = [int(path.name) for path in directory.iterdir() if path.name.isdigit()]
    saved = 0
    if numbers:
        state = orbax.checkpoint.PyTreeCheckpointer().restore(directory / str(max(numbers)))
        saved = int(state["done"].sum()) * RUNS // len(state["done"])
    journal = directory / "executed"
    return saved, int(journal.read_text()) if journal.exists() else 0


@pytest.mark.parametrize("lanes_at_once", ["auto", "2", "6"])
def test_killed_and_resumed_equals_undisturbed(tmp_path, lanes_at_once):
    calm = start("none", tmp_path / "calm.log", tmp_path / "calm.npz", lanes_at_once)
    assert calm.wait() == 0, (tmp_path / "calm.log.err").read_text()
    expected = np.load(tmp_path / "calm.npz")
    # A moment is so many calls and a few milliseconds after the start: seconds alone would mean, on a slow machine,
    # that every kill comes before the first checkpoint.
    all_calls = calls(tmp_path / "calm.log")
    draw, kills, finished, resumed = random.Random(lanes_at_once), 0, 0, 0
    while kills < KILLS:
        directory, log = tmp_path / f"sweep{finished}", tmp_path / f"log{finished}"
        result = tmp_path / f"result{finished}.npz"
        while not result.exists():
            saved, executed = left_behind(directory) if directory.exists() else (0, 0)
            life, before = len(lives(log)), calls(log)
            process = start(directory, log, result, lanes_at_once)
            wait_for(process, lambda life=life, log=log: len(lives(log)) > life)
            assert len(lives(log)) > life, pathlib.Path(f"{log}.err").read_text()
            assert lives(log)[-1] == (saved, max(0, executed - saved))
            resumed += saved > 0
            if kills < KILLS:
                last = before + draw.randrange(all_calls)
                wait_for(process, lambda last=last, log=log: calls(log) >= last)
                time.sleep(draw.uniform(0.0, 0.1))
                process.kill()
            if process.wait() == -signal.SIGKILL:
                kills += 1
            else:
                assert process.returncode == 0, pathlib.Path(f"{log}.err").read_text()
        found = np.load(result)
        for name in ("loss", "speed", "evals", "x", "v"):
            np.testing.assert_array_equal(found[name], expected[name], err_msg=f"{name}, after {kills} kills")
        assert left_behind(directory)[0] == RUNS * STEPS
        finished += 1
    assert resumed >= KILLS // 4


EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
TRAIN = """
import sys, jax, numpy, transformer
from flax import nnx
found = transformer.train(sys.argv[1], 0.01)
numpy.savez(sys.argv[2], *jax.tree.leaves(nnx.as_pure(nnx.state(found))))
"""


def test_an_example_that_is_killed_goes_on_to_the_same_bits(tmp_path):
    paths = [str(EXAMPLES.parent), str(EXAMPLES)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}

    def command(name):
        return [sys.executable, "-c", TRAIN, str(tmp_path / name), str(tmp_path / f"{name}.npz")]

    subprocess.run(command("calm"), check=True, env=environment)
    with subprocess.Popen(command("killed"), env=environment) as victim:
        while victim.poll() is None and not (tmp_path / "killed" / "80").exists():
            time.sleep(0.005)
        victim.kill()
    assert victim.returncode == -signal.SIGKILL and not (tmp_path / "killed.npz").exists()
    again = subprocess.run(command("killed"), check=True, text=True, env=environment, stdout=subprocess.PIPE)
    first = int(again.stdout.split()[1])  # "step   80 ..."
    assert 80 <= first < 200
    calm, killed = (np.load(tmp_path / f"{name}.npz") for name in ("calm", "killed"))
    assert len(calm.files) > 50
    for name in calm.files:
        np.testing.assert_array_equal(killed[name], calm[name])
