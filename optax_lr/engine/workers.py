"""Workers: rows to calls of the compiled programs. Host threads make them, or the calling thread alone.

A job is one row, or a grid of seeds and lanes, from the start or its last checkpoint to its end. It is cut into
calls by time, so that progress shows, state is saved and an interrupt is heard; a cut changes no bit. Workers get
executables and NumPy arrays, and trace nothing.
"""

import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from .checkpoints import UnderWay, as_saved
from .jobs import Feed, Job, Work
from .layout import ROWS
from .stops import TRACK


def run_jobs(work: Work, jobs: Sequence[Job], run: Callable[[Work, Job], None]) -> None:
    """Bring every job to its end, or to the end of a call once all are to stop; the first error ends all.

    `run` is `run_job`, or another.
    """
    todo, errors = deque(jobs), []
    x64 = bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]

    def work_off() -> None:
        while not work.layout.agree(work.stop.is_set()):
            with work.lock:
                job = todo.popleft() if todo else None
            if job is None:
                return
            run(work, job)

    def in_thread() -> None:
        try:
            # Floats of 64 bits as in the calling thread, and no alarm where a run rightly diverges.
            with enable_x64(x64), jax.debug_nans(False), jax.debug_infs(False), jax.transfer_guard("allow"):
                work_off()
        except BaseException as error:
            errors.append(error)
            work.stop.set()

    others = [threading.Thread(target=in_thread) for _ in range(min(work.layout.workers, len(jobs)) - 1)]
    for thread in others:
        thread.start()
    in_thread()
    for thread in others:
        thread.join()
    if errors:
        # Off the list: an error that a frame of its own traceback holds keeps all arrays of that frame.
        raise errors.pop(0)


def run_job(work: Work, job: Job) -> None:
    """Bring one job from its start, or from where it was saved, to its end; or to the end of a call."""
    layout, feed = work.layout, Feed(work, job)
    t, made, moving, track = _begun(work, job)
    over, stops, deposited = False, False, time.monotonic()
    while not (over or stops):
        count = layout.agree(work.pace.steps(min(layout.window, feed.boundary(t) - t)))
        batches, order = feed.window(t, count)
        begun = time.perf_counter()
        moving, track, reports = feed.train(moving, track, t, count, feed.end, batches, order)
        feed.send_ahead(t + count)
        seen, said = layout.get((track, reports))
        seconds = time.perf_counter() - begun
        grid = job.rows.shape
        call = _Call(
            begin=t,
            end=t + count,
            tracks=seen.reshape(*grid, TRACK),
            reports=said.reshape(*said.shape[:2], *grid),
            evals=_evaluated(work, job, feed, moving) if t + count in feed.eval_steps else None,
        )
        with work.lock:
            counted = _record(work, job, feed, call)
            over = counted.over
            if over:
                _close(work, job, call.tracks, feed.ends, moving)
        t, made = t + count, made + counted.made
        work.pace.tell(max(1, counted.longest), seconds)
        work.say(counted.made, float(np.min(call.tracks[..., 2])), counted.stopped, counted.skipped)
        stops = bool(layout.agree(work.stop.is_set()))
        every = work.deposit_every
        if every is not None and not over and (stops or layout.agree(time.monotonic() - deposited >= every)):
            deposited = time.monotonic()
            leaves = [np.array(leaf) for leaf in layout.get([*moving, track])]
            with work.lock:
                work.deposits[int(job.some[0])] = UnderWay(job.some, t, made, leaves)
        work.save_if_due()
    if over and layout.mesh is None:
        with work.lock:
            work.spares.append((moving, track))


def look_at_starts(work: Work, job: Job) -> None:
    """Evaluate what the rows of a job start from: a call of no steps, and an evaluation."""
    layout, feed = work.layout, Feed(work, job)
    _, _, moving, track = _begun(work, job)
    nothing = layout.put([np.zeros(layout.rows, np.int32)], ROWS)[0]
    moving, *_ = feed.train(moving, track, 0, 0, nothing, *feed.window(0, 1))
    evals = _evaluated(work, job, feed, moving)
    for row, place in _cells(job):
        for name, value in zip(work.names[1], evals, strict=True):
            work.runs.evals[name][row, 0] = value[place]
        work.runs.end(row, 1, -1, 0)


def _begun(work: Work, job: Job) -> tuple[int, int, list[Any], Any]:
    """The step that a job is at, the steps made, and what its program has moving: at step 0 mere memory."""
    shapes = [*work.programs.moving, jax.ShapeDtypeStruct((*work.layout.rows, TRACK), np.float32)]
    saved = work.deposits.get(int(job.some[0]))
    if saved is not None and np.array_equal(saved.rows, job.some):
        # Copies: what moves is donated, and the saved leaves stand in the next checkpoint, too.
        leaves = [np.array(as_saved(leaf, like)) for leaf, like in zip(saved.leaves, shapes, strict=True)]
        return saved.t, saved.made, *_moved(work, leaves)
    with work.lock:
        if work.spares:
            return 0, 0, *work.spares.pop()
    return 0, 0, *_moved(work, [np.zeros(leaf.shape, leaf.dtype) for leaf in shapes])


def _moved(work: Work, leaves: list[np.ndarray]) -> tuple[list[Any], Any]:
    """Moving leaves and a track where the programs read them."""
    *moving, track = leaves
    if work.layout.placed:
        where = [like.sharding for like in work.programs.moving]
        return jax.device_put(moving, where), work.layout.put([track], ROWS)[0]
    return work.layout.put(moving, ROWS), work.layout.put([track], ROWS)[0]


def _cells(job: Job) -> Iterator[tuple[int, tuple[int, int]]]:
    """The rows of a job with their places in its grid."""
    for place in np.ndindex(job.rows.shape):
        if job.rows[place] >= 0:
            yield int(job.rows[place]), place


class _Call(NamedTuple):
    """What one call reported of the steps from `begin` to `end` of a job's grid.

    Attributes:
      tracks: [*grid, TRACK].
      reports: [window, metrics, *grid].
      evals: [evals, *grid], or None where the call did not end at an evaluation.
    """

    begin: int
    end: int
    tracks: np.ndarray
    reports: np.ndarray
    evals: np.ndarray | None


class _Counted(NamedTuple):
    """What a call did.

    Attributes:
      made, longest: the steps that all rows made, and those of the row with the most.
      stopped, skipped: how many rows stopped, and the steps that they will not make.
      over: whether all rows have ended.
    """

    made: int
    longest: int
    stopped: int
    skipped: int
    over: bool


def _last(tracks: np.ndarray, ends: np.ndarray, place: tuple[int, int]) -> int:
    """How many steps a row makes in all, as far as is known."""
    stop = tracks[place][3]
    return int(ends[place]) if stop < 0 else int(stop) + 1


def _record(work: Work, job: Job, feed: Feed, call: _Call) -> _Counted:
    """Write what a call reported into the table."""
    steps, stopped, skipped, over = [0], 0, 0, True
    for row, place in _cells(job):
        last, stop = _last(call.tracks, feed.ends, place), call.tracks[place][3]
        until = min(call.end, last)
        over &= until == last
        if call.evals is not None and stop < 0 and call.end <= last:
            at = feed.eval_steps.index(call.end)
            for name, value in zip(work.names[1], call.evals, strict=True):
                work.runs.evals[name][row, at] = value[place]
        if until <= call.begin:
            continue
        reports = call.reports[: until - call.begin]
        named = {name: reports[:, at][(..., *place)] for at, name in enumerate(work.names[0])}
        work.runs.record(row, call.begin, named)
        steps.append(until - call.begin)
        stopped += int(stop >= 0)
        skipped += int(feed.ends[place]) - last
    return _Counted(sum(steps), max(steps), stopped, skipped, over)


def _close(work: Work, job: Job, tracks: np.ndarray, ends: np.ndarray, moving: list[Any]) -> None:
    """Note that all rows of a job have ended, and offer their carries to whoever keeps them.

    All at once: a checkpoint has either a job under way, or its rows' ends and what is kept of them.
    """
    for row, place in _cells(job):
        work.runs.end(row, _last(tracks, ends, place), int(tracks[place][3]), int(tracks[place][4]))

    @functools.cache
    def fetched() -> list[np.ndarray]:
        return [np.array(leaf) for leaf in work.layout.get(moving)]

    def leaves_at(place: tuple[int, int]) -> list[np.ndarray]:
        if not work.layout.width:
            return fetched()
        at = place if work.layout.seeds > 1 else place[1]
        return [np.asarray(leaf[at]) for leaf in fetched()]

    for row, place in _cells(job):
        work.keep(work.runs, row, functools.partial(leaves_at, place))
    work.deposits.pop(int(job.some[0]), None)


def _evaluated(work: Work, job: Job, feed: Feed, moving: list[Any]) -> np.ndarray:
    """What is measured where the rows of a job stand, [evals, *grid]."""
    batch = work.arrays.eval_batch(job.seeds)
    said = work.layout.get(work.programs.evaluate(moving, feed.start, feed.of_evaluate, feed.lane, batch))
    return np.asarray(said).reshape(len(said), *job.rows.shape)


def enable_x64(wide: bool) -> Any:
    """`jax.enable_x64`, which JAX 0.7 has in `jax.experimental`."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(wide)
    from jax.experimental import enable_x64 as of_old  # type: ignore[attr-defined]

    return of_old(wide)
