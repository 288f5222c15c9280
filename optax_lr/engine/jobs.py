"""Jobs: the programs of a sweep and what they are fed with to the states that a `Store` holds.

A job is one lane of one seed, or one chunk of lanes, from its last checkpoint or from the start to its end. It is
cut into calls of its program, so that progress shows and is saved. Host threads take jobs as they come; where a
lane is over sooner than its call is made, a thread takes several and makes one call for them.
"""

import itertools
import math
import random
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..types import Array, PyTree
from .checkpoints import Store
from .lanes import LANES_PER_CALL, Form, Programs, Run, blank
from .placement import Place, is_key
from .progress import Bar

# A run is cut into calls of the program of this many steps, or of a twentieth of it.
STEPS_PER_CALL = 100
# A thread takes no more lanes at once than it trains in this time.
SECONDS_PER_CALL = 0.05


class Feed(NamedTuple):
    """What the programs of a sweep are fed with, on the host or as the user's own arrays."""

    carry: PyTree
    lanes: PyTree
    batches: PyTree
    eval_batch: PyTree
    orders: np.ndarray
    keys: np.ndarray


class Work(NamedTuple):
    """What all jobs of a sweep share.

    Attributes:
      jobs: seeds and lanes of each, as indices.
      data: the batches where the programs read them; None where they are sent for each call.
      num_steps, history_steps: how many steps a run has, and how many its program has room for.
      eval_steps: after how many steps runs are evaluated.
      at_once: whether a call may train several lanes, one after the other: nothing but their reports is wanted.
      spares: what calls returned and nobody needs, whose memory the next ones take.
    """

    jobs: list[tuple[Any, Any]]
    place: Place
    made: Programs
    form: Form
    feed: Feed
    data: PyTree
    eval_data: PyTree
    carry_per_seed: bool
    num_steps: int
    history_steps: int
    eval_steps: Sequence[int]
    at_once: bool
    store: Store
    bar: Bar
    spares: list[Run]


def run_jobs(work: Work) -> None:
    """Bring every job to its end; the first error of one ends all."""
    todo = deque(job for job in _shuffled(work) if work.store.done[job] < work.num_steps)
    lock, workers = threading.Lock(), max(1, min(work.place.workers, len(todo)))
    errors: list[BaseException] = []

    def take(most: int) -> list[int]:
        with lock:
            some = list(itertools.islice(todo, max(1, min(most, len(todo) // (2 * workers)))))
            taken = [job for job in some if work.jobs[job][0] == work.jobs[some[0]][0]]
            for _ in taken:
                todo.popleft()
            return taken

    def work_off() -> None:
        most = 1
        while taken := take(most):
            begun = time.perf_counter()
            _run_at_once(work, taken) if work.at_once else _run(work, taken[0])
            if work.at_once:
                pace = (time.perf_counter() - begun) / len(taken)
                most = min(LANES_PER_CALL, math.ceil(SECONDS_PER_CALL / pace))

    def work_or_stop() -> None:
        try:
            work_off()
        except BaseException as error:
            errors.append(error)
            work.bar.stop()

    with work.bar:
        others = [threading.Thread(target=work_or_stop) for _ in range(workers - 1)]
        for thread in others:
            thread.start()
        work_or_stop()
        for thread in others:
            thread.join()
        if errors:
            raise errors[0]


def _shuffled(work: Work) -> list[int]:
    """The jobs, lanes that share a call in no order: those that are soon lost are often neighbors.

    (A thread that takes several lanes takes some of either kind, and is not left with all of the long ones.)
    """
    jobs = list(range(len(work.jobs)))
    if work.at_once:
        random.Random(0).shuffle(jobs)
        jobs.sort(key=lambda job: work.jobs[job][0])
    return jobs


def _start(work: Work, of_seed: Any) -> PyTree:
    return take(work.feed.carry, of_seed) if work.carry_per_seed else work.feed.carry


def _memory(work: Work) -> Run:
    return work.spares.pop() if work.spares else blank(work.form, work.history_steps, reports=work.at_once)


def _run_at_once(work: Work, jobs: list[int]) -> None:
    """Train lanes of one seed from their start to their end, one after the other, in one call."""
    of_seed, count, end = work.jobs[jobs[0]][0], np.int32(len(jobs)), np.int32(work.num_steps)
    ((_, *data),) = _segments(work, of_seed, 0)
    # Always as many lanes: the last is repeated.
    of_lanes = [work.jobs[job][1] for job in jobs] + [work.jobs[jobs[-1]][1]] * (LANES_PER_CALL - len(jobs))
    lanes, key = take(work.feed.lanes, np.array(of_lanes)), work.feed.keys[of_seed]
    seen = work.made.train_lanes(_memory(work), _start(work, of_seed), count, end, lanes, *data, key)
    reports = work.place.get(seen)
    work.spares.append(seen)
    for i, job in enumerate(jobs):
        work.store.put(job, work.num_steps, take(reports, i), {}, None)
    work.bar.report(take(reports, slice(len(jobs))), work.num_steps, last=True)


def _run(work: Work, job: int) -> None:
    """Bring one job from its last checkpoint, or from the start, to its end."""
    place, store, made = work.place, work.store, work.made
    (of_seed, of_lane), begin = work.jobs[job], int(store.done[job])
    start = _start(work, of_seed)
    lane = place.put(take(work.feed.lanes, of_lane), split=True)
    batched_start = place.put(start) if place.layout.batched else start
    run = _memory(work) if place.alone else made.start(batched_start, lane)
    if begin:
        run = _restored(run, store, job)
    key = place.put(work.feed.keys[of_seed])
    eval_data = take(work.eval_data, of_seed) if place.layout.per_seed else work.eval_data
    for end, data, order in _segments(work, of_seed, begin):
        feed, span = (lane, data, order, key), (np.int32(begin), np.int32(end))
        if place.stepwise:
            run = _step_by_step(work.made, run, begin, end, feed)
        elif place.alone:
            run = made.train_alone(run, start, *span, *feed)
        else:
            run = made.train(run, *span, *feed)
        at = work.eval_steps.index(end) if end in work.eval_steps else None
        evals = {} if at is None else place.get(made.measure(run, eval_data))
        seen = place.get(run._replace(carry=None))
        over = work.num_steps if np.all(seen.diverged_at >= 0) else end
        if store.wants_carry(over):
            seen = seen._replace(carry=place.get(run.carry))
        store.put(job, over, seen, evals, at)
        work.bar.report(seen, over - begin, last=over == work.num_steps)
        if over == work.num_steps:
            break
        begin = end
    if place.alone:
        work.spares.append(run)


def _segments(work: Work, of_seed: Any, begin: int) -> Iterator[tuple[int, PyTree, Any]]:
    """The ends of the calls after `begin`, each with its batches and the order they are read in.

    Batches that stay on the host are sent for one call, while the call before it computes.
    """
    # Those of the longest run: a shorter one is fed with arrays of the same shape.
    ends = call_ends(work.history_steps, work.eval_steps)
    todo = sorted({min(end, work.num_steps) for end in ends if end > begin})
    if work.data is not None:
        data = take(work.data, of_seed) if work.place.layout.per_seed else work.data
        order = work.place.put(work.feed.orders[of_seed])
        yield from ((end, data, order) for end in todo)
        return
    orders, longest = work.feed.orders[of_seed], max(np.diff([0, *ends]))

    def send(first: int, last: int) -> tuple[PyTree, Any]:
        steps = np.minimum(np.arange(first, first + longest), last - 1)
        rows = orders[:, steps]
        local = np.zeros_like(orders)
        local[:, steps] = np.arange(rows.size).reshape(rows.shape)
        return work.place.put(take(work.feed.batches, rows.ravel())), work.place.put(local)

    ahead = send(begin, todo[0])
    for end, following in itertools.zip_longest(todo, todo[1:]):
        here, ahead = ahead, send(end, following) if following else ahead
        yield end, *here


def call_ends(num_steps: int, eval_steps: Sequence[int]) -> list[int]:
    """After how many steps the calls of a run end."""
    stride = max(STEPS_PER_CALL, -(-num_steps // 20))
    return sorted({*range(stride, num_steps, stride), *eval_steps, num_steps})


def _step_by_step(made: Programs, run: Run, begin: int, end: int, feed: tuple) -> Run:
    """What `train` does, with one dispatch a step."""
    for t in range(begin, end):
        if np.asarray(run.diverged_at) >= 0:
            break
        run = made.train_once(run, np.int32(t), *feed)
    return run


def _restored(run: Run, store: Store, job: int) -> Run:
    """The state of a job as it was saved, laid out as a fresh run is."""

    def placed(like: Any, saved: Any) -> Array:
        if is_key(like):
            saved = jax.random.wrap_key_data(jnp.asarray(saved), impl=jax.random.key_impl(like))
        return jax.device_put(saved, getattr(like, "sharding", None))

    history = {name: values[job] for name, values in store.history.items()}
    carry = jax.tree.unflatten(jax.tree.structure(run.carry), store.carries[job])
    return jax.tree.map(placed, run, Run(carry, store.track[job], history))


def take(tree: PyTree, index: Any) -> PyTree:
    """The entries of every leaf along its leading axis."""
    return jax.tree.map(lambda leaf: leaf[index], tree)
