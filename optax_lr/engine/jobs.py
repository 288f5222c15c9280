"""Jobs: rows of a search as chains of calls, how long a call is, and what the programs are given for a job."""

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from .arrays import Arrays
from .batches import Data
from .checkpoints import UnderWay
from .layout import ALL, LANES, ROWS, SEEDS, Layout
from .program import Programs
from .runs import Runs

# A call makes as many steps as fit into this time, and at least one.
SECONDS_PER_CALL = 0.25


class Job(NamedTuple):
    """Rows that one chain of calls trains.

    Attributes:
      rows: their indices, [seeds, lanes]; -1 where the grid has no row.
      seeds: the seed of each line of the grid.
    """

    rows: np.ndarray
    seeds: tuple[int, ...]

    @property
    def some(self) -> np.ndarray:
        """The rows that there are."""
        return self.rows[self.rows >= 0]


def jobs_of(runs: Runs, rows: np.ndarray, layout: Layout) -> list[Job]:
    """Rows as jobs: single ones, or in grids whose lines are seeds and whose columns are lanes."""
    seeds = runs.columns["seed"]
    if not layout.width:
        return [Job(np.array([[row]]), (int(seeds[row]),)) for row in rows]
    lanes: dict[Any, dict[int, int]] = {}
    columns_of = [*runs.lanes.values(), *runs.tables.values()]
    for row in rows:
        numbers = b"|".join(values[row].tobytes() for values in columns_of)
        # Lanes that are alike are lanes of their own.
        which = next(key for i in itertools.count() if seeds[row] not in lanes.get(key := (numbers, i), {}))
        lanes.setdefault(which, {})[int(seeds[row])] = int(row)
    jobs, columns = [], list(lanes.values())
    every = sorted({seed for column in columns for seed in column})
    for first in range(0, len(every), layout.seeds):
        # The last grid of fewer seeds repeats one of them, without rows.
        of_job = (every[first : first + layout.seeds] * layout.seeds)[: layout.seeds]
        here = [column for column in columns if any(seed in column for seed in of_job)]
        for at in range(0, len(here), layout.width):
            chunk = here[at : at + layout.width]
            grid = np.full((layout.seeds, layout.width), -1)
            for line, seed in enumerate(every[first : first + layout.seeds]):
                grid[line, : len(chunk)] = [column.get(seed, -1) for column in chunk]
            jobs.append(Job(grid, tuple(of_job)))
    return jobs


class Pace:
    """How many steps a call may make, from how long the last ones took."""

    def __init__(self) -> None:
        self._count, self._seconds = 1, 0.0

    def steps(self, most: int) -> int:
        """The steps of the next call, at most `most`."""
        fit = int(SECONDS_PER_CALL / self._seconds) if self._seconds else 1
        return max(1, min(most, fit, 2 * self._count))

    def tell(self, steps: int, seconds: float) -> None:
        """So many steps took so long."""
        self._count, self._seconds = max(steps, self._count), seconds / steps


class Work(NamedTuple):
    """What all workers of a search share.

    Attributes:
      factor: how far a loss may rise before its run stops.
      names: of metrics and of evaluations, as the programs report them.
      lane_leaves: the lanes of some rows of the table, as the programs take them.
      keep: takes the table, a row that has ended, and a function to its moving leaves.
      lock: held while the table, deposits or what is kept change.
      stop: set where all workers are to end.
      deposits: by the first row of a job, its state as saved; a job that has one goes on from it.
      deposit_every: the seconds after which a job hands its state over for disk; None where none goes there.
      say: called after each call with what it reported.
    """

    layout: Layout
    programs: Programs
    runs: Runs
    data: Data
    arrays: Arrays
    factor: np.float32
    ceilings: np.ndarray
    names: tuple[Sequence[str], Sequence[str]]
    lane_leaves: Callable[[Runs, np.ndarray], list[np.ndarray]]
    pace: Pace
    lock: threading.Lock
    stop: threading.Event
    spares: list[tuple[list[Any], Any]]
    deposits: dict[int, UnderWay]
    deposit_every: float | None
    keep: Callable[[Runs, int, Callable[[], list[np.ndarray]]], None]
    say: Callable[[int, float, int, int], None]
    save_if_due: Callable[[], None]


class Feed:
    """The arguments of the programs for one job."""

    def __init__(self, work: Work, job: Job):
        layout, runs = work.layout, work.runs
        rows, some = job.rows, job.some
        self._work, self._job = work, job
        self.ends = np.where(rows >= 0, runs.columns["steps"][rows], 0).astype(np.int32)
        self.eval_steps = runs.eval_steps[some[0]] if work.names[1] else ()
        first_rows = rows.max(axis=0)
        lanes = np.where(first_rows >= 0, first_rows, some[0])
        self.lane = layout.put(work.lane_leaves(runs, lanes if layout.width else lanes[0]), LANES)
        self.start = work.arrays.start(job.seeds)
        self.of_train = [work.arrays.constants["begin"], work.arrays.constants["step"]]
        self.of_evaluate = [work.arrays.constants["begin"], work.arrays.constants["evaluate"]]
        ceilings = np.where((rows >= 0)[..., None], work.ceilings[rows], np.float32(np.inf))
        self.end = layout.put([self.ends.reshape(layout.rows)], ROWS)[0]
        self.ceiling = layout.put([ceilings.reshape(*layout.rows, -1)], ROWS)[0]
        self.key = self._of_seeds(work.arrays.keys(job.seeds))
        self.seed = self._of_seeds(np.array(job.seeds, np.int32))
        self.factor = self.number(work.factor)
        self.orders = work.arrays.orders(job.seeds, int(self.ends.max()))
        self._ahead: tuple[int, list[Any], np.ndarray] | None = None

    def number(self, value: Any) -> Any:
        """A scalar where the programs read it."""
        number = value if isinstance(value, np.float32) else np.int32(value)
        return self._work.layout.put([number], ALL)[0]

    def _of_seeds(self, values: np.ndarray) -> Any:
        """What each seed has, where the programs read it; a lone seed has no axis."""
        layout = self._work.layout
        return layout.put([values if layout.seeds > 1 else values[0]], SEEDS)[0]

    def train(
        self, moving: list[Any], track: Any, t: int, count: int, end: Any, batches: list[Any], order: Any
    ) -> tuple[list[Any], Any, Any]:
        """Make `count` steps from step `t` on; see `Programs.train`."""
        trained: tuple[list[Any], Any, Any] = self._work.programs.train(
            moving, track, self.start, self.of_train, self.lane, self.number(t), self.number(count), end,
            self.factor, batches, order, self.ceiling, self.key, self.seed,
        )  # fmt: skip
        return trained

    def boundary(self, t: int) -> int:
        """The step at which the call after step `t` ends at the latest: an evaluation, or a window of a stream."""
        ends = [step for step in self.eval_steps if step > t] + [int(self.ends.max())]
        if self._work.arrays.batches is None:
            window = self._work.layout.window
            ends.append((t // window + 1) * window)
        return min(ends)

    def window(self, t: int, count: int) -> tuple[list[Any], Any]:
        """The batches that the steps from `t` on read, and which of them each reads."""
        layout = self._work.layout
        order = np.zeros((len(self.orders), layout.window), np.int32)
        if self._work.arrays.batches is not None:
            batches, local = self._work.arrays.batches, self.orders[:, t : t + count]
        else:
            batches, of_window = self._streamed(t // layout.window)
            begin = t % layout.window
            local = of_window[:, begin : begin + count]
        order[:, : local.shape[1]] = local
        return batches, self._of_seeds(order)

    def send_ahead(self, t: int) -> None:
        """Send the window that step `t` begins, while the call before it computes."""
        if self._work.arrays.batches is None and t % self._work.layout.window == 0 and t < self.ends.max():
            self._streamed(t // self._work.layout.window)

    def _streamed(self, window: int) -> tuple[list[Any], np.ndarray]:
        if self._ahead is None or self._ahead[0] != window:
            size, layout = self._work.layout.window, self._work.layout
            steps = self.orders[:, window * size : (window + 1) * size]
            each, local = np.unique(steps, return_inverse=True)
            rows = np.resize(each, streamed_batches(self._work.data, layout))
            leaves = jax.tree.leaves(self._work.data.batches)
            self._ahead = window, layout.put([leaf[rows] for leaf in leaves], ALL), local.reshape(steps.shape)
        return self._ahead[1:]


def streamed_batches(data: Data, layout: Layout) -> int:
    """How many batches are sent for a window: each once."""
    return min(data.rows, layout.window * layout.seeds)
