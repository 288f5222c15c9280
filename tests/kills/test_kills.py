"""What is killed, interrupted or short of disk ends with the bits of an undisturbed run: a sweep; an example."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from optax_lr.engine import checkpoints

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
    folder = checkpoints.Folder(directory)
    saved = folder.read()
    return (saved.steps, saved.steps + folder.redone) if saved else (0, 0)


@pytest.fixture(scope="module", params=["auto", "2", "6"])
def calm(request, tmp_path_factory):
    """An undisturbed sweep: how many lanes ride at once, its result, and the calls that it made."""
    path = tmp_path_factory.mktemp("calm")
    process = start("none", path / "log", path / "result.npz", request.param)
    assert process.wait() == 0, (path / "log.err").read_text()
    return request.param, np.load(path / "result.npz"), calls(path / "log")


def assert_same(result, expected, words):
    found = np.load(result)
    for name in ("loss", "speed", "evals", "x", "v"):
        np.testing.assert_array_equal(found[name], expected[name], err_msg=f"{name}, {words}")


def begun(directory, log, result, lanes_at_once):
    """A life of the sweep that has said what it resumes, which is what was left behind."""
    saved, executed = left_behind(directory) if directory.exists() else (0, 0)
    life = len(lives(log))
    process = start(directory, log, result, lanes_at_once)
    wait_for(process, lambda: len(lives(log)) > life)
    assert len(lives(log)) > life, pathlib.Path(f"{log}.err").read_text()
    assert lives(log)[-1] == (saved, max(0, executed - saved))
    return process, saved


def test_killed_and_resumed_equals_undisturbed(tmp_path, calm):
    lanes_at_once, expected, all_calls = calm
    # A moment is so many calls and a few milliseconds after the start: seconds alone would mean, on a slow machine,
    # that every kill comes before the first checkpoint.
    draw, kills, finished, resumed = random.Random(lanes_at_once), 0, 0, 0
    while kills < KILLS:
        directory, log = tmp_path / f"sweep{finished}", tmp_path / f"log{finished}"
        result = tmp_path / f"result{finished}.npz"
        while not result.exists():
            before = calls(log)
            process, saved = begun(directory, log, result, lanes_at_once)
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
        assert_same(result, expected, f"after {kills} kills")
        assert left_behind(directory)[0] == RUNS * STEPS
        finished += 1
    assert resumed >= KILLS // 4


def test_interrupted_at_any_moment_stops_at_once_and_saves_all(tmp_path, calm):
    """Ctrl-C, in half of the lives twice: at most 2 s, no thread left, and no step is made again."""
    lanes_at_once, expected, all_calls = calm
    draw, interrupts = random.Random(lanes_at_once), 0
    directory, log, result = tmp_path / "sweep", tmp_path / "log", tmp_path / "result.npz"
    while not result.exists():
        before = calls(log)
        process, _ = begun(directory, log, result, lanes_at_once)
        assert lives(log)[-1][1] == 0
        # Inside a round: after its first call.
        last = before + draw.randrange(1, max(2, all_calls // 4))
        wait_for(process, lambda last=last: calls(log) >= last)
        time.sleep(draw.uniform(0.0, 0.05))
        asked = time.time()
        process.send_signal(signal.SIGINT)
        if interrupts % 2:
            time.sleep(draw.uniform(0.0, 0.01))
            process.send_signal(signal.SIGINT)
        status = process.wait()
        if status == 0:
            break
        assert status == 130, pathlib.Path(f"{log}.err").read_text()
        stopped = json.loads(pathlib.Path(f"{log}.stopped").read_text())
        assert stopped["at"] - asked < 2 and stopped["threads"] == ["MainThread"]
        interrupts += 1
    assert interrupts >= 3
    assert_same(result, expected, f"after {interrupts} interrupts")


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="the system has no limit for files")
def test_a_disk_that_fills_costs_the_checkpoint_alone(tmp_path, calm):
    """The limit for a file's size stands for a full disk: it comes up while a checkpoint is written."""
    lanes_at_once, expected, _ = calm
    directory, log, result = tmp_path / "sweep", tmp_path / "log", tmp_path / "result.npz"
    limited = (
        "import resource, signal, runpy, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "sys.argv = sys.argv[1:]; import numpy as np; savez = np.savez\n"
        "def full(file, **arrays):\n"
        "    limit = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "    if hasattr(file, 'write'): resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limit[1]))\n"
        "    try: savez(file, **arrays)\n"
        "    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limit)\n"
        "np.savez = full; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    arguments = [str(VICTIM), str(directory), str(log), str(result), lanes_at_once]
    first = subprocess.run([sys.executable, "-c", limited, *arguments], capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "No checkpoint could be written" in first.stderr and "the search goes on" in first.stderr
    assert_same(result, expected, "on a full disk")
    assert not list(directory.glob("*.partial"))
    # What could be written is whole: the same call resumes from it, or begins anew.
    result.unlink()
    process, _ = begun(directory, log, result, lanes_at_once)
    assert process.wait() == 0, pathlib.Path(f"{log}.err").read_text()
    assert_same(result, expected, "afterwards")


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
