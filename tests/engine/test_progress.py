"""Progress: one bar for a search, all words on stderr, the best loss within 80 columns."""

import os
import re
import subprocess
import sys
import threading

import jax.numpy as jnp
import numpy as np
import pytest

import optax_lr as olr
from optax_lr.engine.progress import Bar

SEARCH = """
import json, numpy as np, jax.numpy as jnp, optax, optax_lr as olr
x = np.random.default_rng(0).normal(size=(30, 8, 4)).astype(np.float32)
loss_fn = lambda w, x: jnp.mean((x @ w - x.sum(-1)) ** 2)
found = olr.lr_find(
    loss_fn, jnp.zeros(4), optax.sgd, x, eval_batch=x[0], horizon=30, num_steps=30, seeds=2,
    schedule=lambda peak: olr.one_cycle_schedule(peak, 30),
)
print(json.dumps({"rate": found.learning_rate > 0}))
"""


def in_terminal(script, columns):
    """What a script writes to stdout, and what to a terminal of so many columns as stderr."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=theirs, text=True
    ) as run:
        os.close(theirs)
        parts = []
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:
                break
            if not part:
                break
            parts.append(part)
        out, _ = run.communicate()
    os.close(ours)
    return out, b"".join(parts).decode()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal")
def test_words_go_to_stderr_and_the_best_loss_is_seen_at_80_columns():
    out, written = in_terminal(SEARCH, 80)
    assert out == '{"rate": true}\n'
    drawn = [line for line in written.replace("\r", "\n").split("\n") if " steps" in line or "best" in line]
    assert all(len(line) <= 80 for line in drawn)
    reported = [line for line in drawn if "best" in line]
    assert reported and all(re.search(r"best [-+.e0-9]+, alive \d+/\d+ \|", line) for line in reported)
    # What stands when all is over: words, and one bar, though the search has several stages.
    stands = [line.split("\r")[-1].strip() for line in written.split("\r\n")]
    stands = [line for line in stands if line]
    assert len(stands) == 2 and "lanes x 2 seeds" in stands[0] and " 100%, best " in stands[1]
    assert len({line.split("%")[0].rstrip("0123456789 ") for line in drawn}) > 2


def test_without_a_terminal_nothing_is_said():
    run = subprocess.run([sys.executable, "-c", SEARCH], capture_output=True, text=True)
    assert run.stdout == '{"rate": true}\n' and run.stderr == ""


class Terminal:
    """A stream that says it is a terminal."""

    def __init__(self):
        self.written = []

    def isatty(self):
        return True

    def write(self, words):
        self.written.append(words)

    def flush(self):
        pass


def test_a_search_has_one_bar_whose_total_grows(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    threads = threading.active_count()
    with Bar("search", True) as bar:
        bar.expect("first stage", 4, 40)
        bar.report(10, 0.5, 0, 0)
        bar.report(5, 0.25, 1, 5)
        bar.report(20, 0.7, 0, 0)
        bar.expect("second stage", 2, 20, made=6)
        bar.report(14, 0.6, 0, 0)
        assert (bar._bar.n, bar._bar.total) == (60, 60)
        assert "best 0.25, alive 5/6" in str(bar._bar) and "second stage" in str(bar._bar)
        assert threading.active_count() == threads
    assert "60/60 steps" in "".join(terminal.written)


def test_no_bar_where_none_is_wanted(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Bar("search", False) as bar:
        bar.write("words", always=True)
        bar.expect("stage", 4, 40)
        bar.report(10, 0.5, 0, 0)
    assert not terminal.written


def test_a_resumed_search_says_so_first(tmp_path, monkeypatch):
    def step(x, rate, batch, key):
        return x - rate * (x - batch), {"loss": (x - batch) ** 2}

    def search(**options):
        rates, batches = np.array([0.1], np.float32), np.zeros(4, np.float32)
        olr.sweep(step, jnp.float32(1), rates, batches, num_steps=4, checkpoint=tmp_path, **options)

    search()
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    search()
    lines = [
        line.strip() for line in "".join(terminal.written).replace("\r", "\n").split("\n") if line.strip()
    ]
    words = [line for line in lines if "%" not in line]
    assert words[0] == f"resumed from {tmp_path}: 4 steps skipped, 0 done again"
    assert "1 lanes x 1 seeds" in words[1]
    terminal.written.clear()
    search(progress=False)
    assert not terminal.written
