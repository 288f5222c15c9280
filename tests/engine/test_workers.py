"""Workers: how long calls are, which rows share one, and what Ctrl-C does to them."""

import itertools
import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_lr as olr
from optax_lr.engine import checkpoints, jobs, workers
from optax_lr.engine.jobs import SECONDS_PER_CALL, Pace, jobs_of
from optax_lr.engine.layout import Layout
from optax_lr.engine.runs import Plan, Runs, product

BATCHES = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
RATES = np.array([0.05, 0.1, 0.2], np.float32)


def step(x, rate, batch, key):
    return x - rate * (x - batch.mean()), {"loss": x**2}


def search(**options):
    return olr.sweep(step, jnp.float32(1), RATES, BATCHES, num_steps=30, progress=False, **options)


@pytest.mark.parametrize("seconds", [1e-6, 1e-3, 0.02, 0.2, 3.0])
def test_calls_grow_to_their_time_and_not_beyond(seconds):
    pace, counts = Pace(), []
    for _ in range(30):
        counts.append(pace.steps(512))
        pace.tell(counts[-1], counts[-1] * seconds)
    assert counts[0] == 1 and all(after <= 2 * before for before, after in itertools.pairwise(counts))
    assert counts[-1] == max(1, min(512, int(SECONDS_PER_CALL / seconds)))
    # Steps that become slower cut the next call at once.
    pace.tell(counts[-1], counts[-1] * 10.0)
    assert pace.steps(512) == 1 and pace.steps(0) == 1


def table(rates, seeds, steps=4):
    runs = Runs(("loss",))
    lanes, of_seeds = product({"rate": np.array(rates, np.float32)}, seeds)
    runs.append(Plan(lanes, of_seeds, np.full(len(of_seeds), steps, np.int32)))
    return runs


@pytest.mark.parametrize(
    "layout", [Layout(), Layout(width=2), Layout(width=2, seeds=2), Layout(width=4, seeds=3)]
)
@pytest.mark.parametrize("rates", [[0.1], [0.1, 0.2, 0.3], [0.1, 0.1, 0.1, 0.2]])
@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_every_row_is_in_one_job_beside_its_own_lane_and_seed(layout, rates, seeds):
    runs = table(rates, seeds)
    jobs = jobs_of(runs, np.arange(len(runs)), layout)
    assert sorted(row for job in jobs for row in job.some.tolist()) == list(range(len(runs)))
    for job in jobs:
        assert job.rows.shape == (layout.seeds, max(1, layout.width)) and len(job.seeds) == layout.seeds
        for (line, column), row in np.ndenumerate(job.rows):
            if row >= 0:
                assert runs.columns["seed"][row] == job.seeds[line]
                others = job.rows[:, column]
                assert len(set(runs.lanes["rate"][others[others >= 0]].tolist())) == 1


@pytest.fixture
def interrupting(monkeypatch):
    """Ctrl-C in the sixth call, twice; how many steps all calls have made."""
    monkeypatch.setattr(jobs.Pace, "steps", lambda self, most: min(most, 4))
    made, record = [], workers._record

    def interrupted(work, *arguments):
        counted = record(work, *arguments)
        made.append(counted.made)
        if len(made) == 6:
            os.kill(os.getpid(), signal.SIGINT)
            # It is the main thread that hears it.
            work.stop.wait(0.5)
            os.kill(os.getpid(), signal.SIGINT)
        return counted

    monkeypatch.setattr(workers, "_record", interrupted)
    return made


@pytest.mark.parametrize("cores", [1, 2])
def test_two_ctrl_c_end_a_search_with_all_its_work_saved(tmp_path, monkeypatch, interrupting, cores):
    monkeypatch.setattr("optax_lr.engine.choose.cores", lambda: cores)
    before, handler = threading.active_count(), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        search(checkpoint=tmp_path)
    assert threading.active_count() == before and signal.getsignal(signal.SIGINT) is handler
    # Every worker ended its call and handed over what it had.
    assert 6 <= len(interrupting) <= 6 + 2 * cores
    assert checkpoints.Folder(tmp_path).read().steps == sum(interrupting)
    resumed = search(checkpoint=tmp_path)
    assert resumed.skipped_steps > 0 and resumed.redone_steps == 0
    jax.tree.map(np.testing.assert_array_equal, resumed[:3], search()[:3])


def test_a_search_in_another_thread_leaves_ctrl_c_alone():
    handler, seen = signal.getsignal(signal.SIGINT), []

    def searched():
        seen.append(search().metrics["loss"])

    thread = threading.Thread(target=searched)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is handler
    np.testing.assert_array_equal(seen[0], search().metrics["loss"])


def test_an_interrupt_that_is_ignored_stays_ignored(interrupting):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        found = search()
    finally:
        signal.signal(signal.SIGINT, before)
    assert np.isfinite(found.metrics["loss"]).all()
