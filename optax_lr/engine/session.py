"""The session of a search: its table of runs, its compiled programs, its folder and its bar."""

import dataclasses
import functools
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import numpy as np

from ..types import PyTree
from . import checkpoints
from .arrays import edged, placed
from .batches import Data, power_of_two
from .checkpoints import Folder, Saved, UnderWay, as_saved, digest, digest_of_program
from .choose import choose, fitted
from .jobs import Pace, Work, jobs_of, streamed_batches
from .layout import Layout, context
from .leaves import on_host
from .program import Programs
from .programs import ProgramsOf
from .progress import Bar
from .reference import Wanted, completed, plan_of
from .runs import LOW_LOSS, Judgment, Plan, Runs
from .task import Task
from .workers import asked_to_stop, look_at_starts, run_job, run_jobs, settings_of_threads


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opening:
    """What a session must know before its first plan.

    Attributes:
      lane: an example of a lane, its tables included; [] of each number, [longest] of each table.
      lanes, seeds: how many of either the first plan has, about.
      longest: the steps of the longest run to come.
      stop_factor: how far a loss may rise before its run is stopped; see `sweep`.
      keep: whose carry is kept when its run has ended: "all", or a function `(runs, row) -> score` and then the row
        of the lowest, or None.
      reference: what is to be known of runs without training before others run, or None.
      ceilings: `(before, rows) -> float32 [rows, longest]`, from the rounds before and the rows of a round: a row
        stops where the average of its loss is above its own. None stops no row so.
      judgment: by what its runs are judged; the table holds it for rules and policies.
      settings: what the search depends on beside task and data, by the name that an error says.
      description: what the bar shows.
    """

    lane: PyTree
    lanes: int
    seeds: int
    longest: int
    stop_factor: float = float("inf")
    keep: Literal["all"] | Callable[[Runs, int], float] | None = None
    reference: Wanted | None = None
    ceilings: Callable[[Runs, Runs], np.ndarray] | None = None
    judgment: Judgment = LOW_LOSS
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    description: str = "sweep"


class Session:
    """A search under way.

    Attributes:
      runs: its table, as saved or empty.
      stopped: whether Ctrl-C has asked it to end.
      words: how its lanes are laid out.
      kept: by row, the carries that were kept, as flat lists of host arrays.
    """

    def __init__(
        self, engine: Any, task: Task, data: Data, opening: Opening, folder: Folder | None, bar: Bar
    ):
        self.stopped = False
        self.kept: dict[int, list[np.ndarray]] = {}
        self._engine, self._task, self._data, self._opening = engine, task, data, opening
        self._folder, self._bar = folder, bar
        self._room = power_of_two(opening.longest)
        self._programs = ProgramsOf(task, data, opening.lane, self._room)
        self.form = self._programs.form
        saved = None if folder is None else folder.read()
        width = saved.settings.get("lanes_at_once") if saved and engine.lanes_at_once == "auto" else None
        self._choice = choose(
            self.form,
            data,
            lanes=opening.lanes,
            seeds=opening.seeds,
            longest=self._room,
            freeze=opening.keep == "all" or folder is not None,
            lanes_at_once=width or engine.lanes_at_once,
            mesh=engine.mesh,
        )
        self._fit()
        self._place()
        self.words = self._choice.words(opening.lanes, opening.seeds, self.form)
        self.runs = Runs(self.form.metrics, self.form.evals)
        self._under_way: dict[int, UnderWay] = {}
        self._best, self._pace, self._deposits = (np.inf, -1), Pace(), dict[int, UnderWay]()
        self._lock, self._saving = threading.Lock(), threading.Lock()
        self._settings = {} if folder is None else self._all_settings()
        if saved is not None:
            self._resume(saved)
        self.runs.judgment = opening.judgment
        bar.write(self.words)

    @property
    def skipped(self) -> int:
        """How many steps were read from a checkpoint."""
        return self._folder.skipped if self._folder else 0

    @property
    def redone(self) -> int:
        """How many steps that had been made after the checkpoint are made again."""
        return self._folder.redone if self._folder else 0

    def run(self, plan: Plan, description: str) -> None:
        """Ask for the rows of a plan and run them: a round; before it, what they would give without training."""
        if self._opening.reference is not None and not self._observe(plan, self._opening.reference):
            return
        rows = self.runs.append(plan)
        self._save()
        self._finish(rows, description)
        self._tell(rows, description)

    def finish(self, description: str) -> None:
        """Run the rows that were asked for before a kill, and have not ended; with the ceilings of their round."""
        if len(rows := self.runs.unfinished()):
            rounds = self.runs.columns["round"]
            every = np.flatnonzero(rounds == rounds[rows[0]])
            self._finish(every, description)
            self._tell(every, description)

    def carry(self, row: int) -> PyTree:
        """A carry that was kept, whole, on the host; random keys as their bits."""
        own, form, seed = iter(self.kept[row]), self.form, int(self.runs.columns["seed"][row])
        start = self._data.start_of(seed)
        leaves = jax.tree.leaves(start)
        whole: list[Any] = [
            next(own) if moves else None if source is None else on_host(leaves[source])
            for moves, source in zip(form.moving, form.sources, strict=True)
        ]
        if any(leaf is None for leaf in whole) and self._task.begin:
            # What all lanes share and no leaf of the start holds.
            lane = form.lane.tree(self._lane_leaves(self.runs, np.int64(row)))
            begun = jax.tree.leaves(self._task.begin(start, lane, np.int32(seed)))
            whole = [on_host(new) if leaf is None else leaf for leaf, new in zip(whole, begun, strict=True)]
        return form.carry.tree(whole)

    def _fit(self) -> None:
        """Compile the programs of the widest layout that fits."""
        row = sum(leaf.nbytes for leaf in jax.tree.leaves(self._data.batches)) // self._data_rows

        def compiled(layout: Layout) -> Programs:
            return self._programs.of(layout, self._rows_read(layout))

        extra = 0 if self._choice.resident else row * self._rows_read(self._choice.layout)
        self._choice, self._made = fitted(self._choice, self._opening.lanes, compiled, extra)

    @property
    def _data_rows(self) -> int:
        return int(jax.tree.leaves(self._data.batches)[0].shape[0])

    def _rows_read(self, layout: Layout) -> int:
        return self._data_rows if self._choice.resident else streamed_batches(self._data, layout)

    def _place(self) -> None:
        """Arrays that all calls read, where the programs read them."""
        self._arrays = placed(
            self._choice.layout, self._data, self._programs.constants, self._choice.resident
        )

    def _resume(self, saved: Saved) -> None:
        """Go on from a checkpoint.

        Raises:
          ValueError: it is of another search.
        """
        assert self._folder is not None
        found, path = saved.settings, self._folder.path
        if differs := [name for name, value in self._settings.items() if found.get(name) != value]:
            raise ValueError(
                f"checkpoint={str(path)!r} is of another search: it differs in {', '.join(differs)}."
            )
        self.runs = saved.runs
        self._under_way = {int(each.rows[0]): each for each in saved.under_way}
        self._deposits.update(self._under_way)
        self._take_kept(saved.kept)
        self._bar.write(
            f"resumed from {path}: {self.skipped} steps skipped, {self.redone} done again", always=True
        )

    def _all_settings(self) -> dict[str, Any]:
        """What the search depends on, by the name that an error says."""
        layout, data = self._choice.layout, self._data
        return {
            **self._opening.settings,
            "metric": list(self._opening.judgment),
            "start": digest(data.start),
            "batches": digest(data.batches),
            "eval_batch": digest(data.eval_batch),
            "key": digest(data.bits),
            "step": digest_of_program(self._programs.text()) + digest(self._programs.constants),
            "stop_factor": float(self._opening.stop_factor),
            "lanes_at_once": layout.width // layout.devices or None,
            "devices": layout.devices,
        }

    def _save(self, *, wait: bool = True) -> None:
        """Write a checkpoint of one moment; without `wait` not while another thread writes one."""
        if self._folder is None or not self._saving.acquire(wait):
            return
        try:
            with self._lock:
                kept = {
                    f"{row}/{i}": leaf for row, leaves in self.kept.items() for i, leaf in enumerate(leaves)
                }
                saved = Saved(
                    self._settings,
                    self.runs.take(np.arange(len(self.runs))),
                    list(self._deposits.values()),
                    {**kept, "best": np.array(self._best)},
                )
            self._folder.save(saved)
            self._folder.saved_at = time.monotonic()
        finally:
            self._saving.release()

    def _take_kept(self, kept: Mapping[str, np.ndarray]) -> None:
        score, of_row = kept["best"].tolist()
        self._best, shapes = (score, int(of_row)), self.form.own.bits()
        for name in sorted(kept.keys() - {"best"}, key=lambda name: [int(part) for part in name.split("/")]):
            row, at = map(int, name.split("/"))
            self.kept.setdefault(row, []).append(as_saved(kept[name], shapes[at]))

    def _lane_leaves(self, runs: Runs, rows: Any) -> list[np.ndarray]:
        """The lanes of some rows, as the programs take them."""
        tables = {name: edged(values[rows], self._room) for name, values in runs.tables.items()}
        named = {**{name: values[rows] for name, values in runs.lanes.items()}, **tables}
        leaves = [named[name] for name in self._names]
        return [
            np.asarray(leaf, like.dtype) for leaf, like in zip(leaves, self.form.lane.shapes, strict=True)
        ]

    @functools.cached_property
    def _names(self) -> list[str]:
        """The names of the lane's leaves in the order in which JAX flattens a dict."""
        return sorted(self._opening.lane)

    def _keep(self, row: int, leaves: Callable[[], list[np.ndarray]]) -> None:
        if self._opening.keep is None:
            return
        if self._opening.keep == "all":
            self.kept[row] = leaves()
            return
        # Of equal ones the first row: which ended first depends on a clock.
        scored = (self._opening.keep(self.runs, row), row)
        if scored < self._best:
            self._best, self.kept = scored, {row: [np.array(leaf) for leaf in leaves()]}

    def _tell(self, rows: np.ndarray, description: str) -> None:
        """Hand a round that has ended to whoever asked for it."""
        told = self._engine.on_round
        if told is not None and not self.stopped and jax.process_index() == 0:
            told([{"description": description, **run} for run in self.runs.records(rows)])

    def _observe(self, plan: Plan, wanted: Wanted) -> bool:
        """Complete the reference by the seeds of a plan; whether nothing interrupted it."""
        form, data, known = self.form, self._data, self.runs.reference
        missing, found = plan_of(known, plan, wanted, form, data), None
        if missing is not None:
            found = Runs(form.metrics, form.evals)
            found.append(missing)
            while not self._fits(functools.partial(self._run_still, found, wanted.of_starts(form))):
                self._halve()
        if not self.stopped:
            self.runs.reference = completed(known, plan, found, wanted, form, data)
        return not self.stopped

    def _run_still(self, found: Runs, of_starts: bool) -> None:
        """Run the rows of a table without training; where starts tell all, their evaluations."""
        layout, programs, stop = self._choice.layout, self._made, threading.Event()
        # A call of no steps leaves what began as it is; a lone step that nothing freezes does not.
        looks = of_starts and (layout.window > 1 or layout.freeze)
        if not looks:
            layout = layout._replace(width=layout.devices if layout.width else 0)
            programs = self._programs.looks(layout, self._rows_read(layout))
        ceilings = np.broadcast_to(np.float32(np.inf), (len(found), self._room))
        work = self._work(stop, ceilings)._replace(
            layout=layout,
            programs=programs,
            runs=found,
            factor=np.float32(np.inf),
            lane_leaves=functools.partial(self._lane_leaves, found),
            pace=Pace(),
            deposits={},
            deposit_every=None,
            keep=lambda row, leaves: None,
            say=lambda *_: None,
            save_if_due=lambda: None,
        )
        jobs = jobs_of(found, np.arange(len(found)), layout)
        with asked_to_stop(stop), context(layout.mesh):
            run_jobs(work, jobs, {}, settings_of_threads(), look_at_starts if looks else run_job)
        self.stopped = bool(layout.agree(stop.is_set()))

    def _finish(self, rows: np.ndarray, description: str) -> None:
        ceilings = self._ceilings_of(rows)
        while not self._fits(functools.partial(self._attempt, rows, description, ceilings)):
            # Here, and not where the error is handled: it holds the arrays of the calls that it ended.
            self._halve()

    def _fits(self, run: Callable[[], None]) -> bool:
        """Run some rows; whether the device had memory for it."""
        try:
            run()
        except jax.errors.JaxRuntimeError as error:
            layout = self._choice.layout
            if "RESOURCE_EXHAUSTED" not in str(error) or layout.width <= layout.devices:
                raise
            return False
        return True

    def _halve(self) -> None:
        layout = self._choice.layout
        each = layout.width // layout.devices // 2
        warnings.warn(f"The device ran out of memory: {each} lanes at once from here on.", stacklevel=2)
        self._choice = self._choice._replace(layout=layout._replace(width=each * layout.devices))
        self._fit()
        self._deposits.clear()
        self._under_way.clear()

    def _attempt(self, rows: np.ndarray, description: str, ceilings: np.ndarray) -> None:
        runs, layout = self.runs, self._choice.layout
        unfinished = set(runs.unfinished().tolist())
        jobs = [job for job in jobs_of(runs, rows, layout) if unfinished & set(job.some.tolist())]
        made = sum(each.made for each in self._under_way.values())
        steps = int(runs.columns["steps"][rows].sum())
        over = steps - int(runs.columns["steps"][list(unfinished & set(rows.tolist()))].sum())
        self._bar.expect(description, len(rows), steps, over + made)
        stop = threading.Event()
        work = self._work(stop, ceilings)
        with asked_to_stop(stop):
            try:
                with context(layout.mesh):
                    run_jobs(work, jobs, self._under_way, settings_of_threads(), run_job)
            finally:
                self._under_way = {}
                self._save()
        self.stopped = bool(layout.agree(stop.is_set()))

    def _ceilings_of(self, rows: np.ndarray) -> np.ndarray:
        """A ceiling for every step of every row of the table; those of a round know the rounds before."""
        none, runs = np.broadcast_to(np.float32(np.inf), (len(self.runs), self._room)), self.runs
        if self._opening.ceilings is None:
            return none
        before = runs.where(round=range(int(runs.columns["round"][rows[0]])))
        every = none.copy()
        every[rows] = edged(self._opening.ceilings(before, runs.take(rows)), self._room)
        return every

    def _work(self, stop: threading.Event, ceilings: np.ndarray) -> Work:
        return Work(
            layout=self._choice.layout,
            programs=self._made,
            runs=self.runs,
            data=self._data,
            arrays=self._arrays,
            factor=np.float32(self._opening.stop_factor),
            ceilings=ceilings,
            names=(self.form.metrics, self.form.evals),
            lane_leaves=functools.partial(self._lane_leaves, self.runs),
            pace=self._pace,
            lock=self._lock,
            stop=stop,
            spares=[],
            deposits=self._deposits,
            deposit_every=None if self._folder is None else checkpoints.SECONDS_BETWEEN_SAVES / 2,
            keep=self._keep,
            say=self._say,
            save_if_due=self._save_if_due,
        )

    def _say(self, made: int, lowest: float, stopped: int, skipped: int) -> None:
        self._bar.report(made, lowest, stopped, skipped)
        if self._folder is not None:
            self._folder.note_executed(made)

    def _save_if_due(self) -> None:
        due = self._folder is not None and (
            time.monotonic() - self._folder.saved_at >= checkpoints.SECONDS_BETWEEN_SAVES
        )
        if due:
            self._save(wait=False)
