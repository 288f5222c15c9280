"""The session of a search: it asks for rounds of runs, saves them, and goes on where a checkpoint ends."""

import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ..types import PyTree
from . import checkpoints
from .batches import Data, power_of_two
from .checkpoints import Folder, Saved, UnderWay, digest, digest_of_program
from .interrupts import Interrupts
from .jobs import Pace, Work, jobs_of
from .kept import Kept
from .layout import context
from .leaves import on_host
from .machine import Machine
from .opening import Opening
from .programs import ProgramsOf
from .progress import Bar
from .reference import Wanted, completed, plan_of
from .runs import Plan, Runs, edged
from .task import Task
from .workers import look_at_starts, run_job, run_jobs


class Session:
    """A search under way.

    Attributes:
      runs: its table, as saved or empty.
      stopped: whether Ctrl-C had asked it to end when it looked last; see `hears`.
      interrupts: what notes Ctrl-C.
      words: how its lanes are laid out.
      kept: by row, the carries that were kept, as flat lists of host arrays.
      skipped, redone: how many steps were read from a checkpoint, and how many made after it are made again.
    """

    def __init__(
        self, engine: Any, task: Task, data: Data, opening: Opening, folder: Folder | None, bar: Bar
    ):
        self.stopped, self.skipped, self.redone, self.interrupts = False, 0, 0, Interrupts()
        self._engine, self._task, self._data, self._opening = engine, task, data, opening
        self._folder, self._bar = folder, bar
        self._programs = ProgramsOf(task, data, opening.lane, power_of_two(opening.longest))
        saved = None if folder is None else folder.read()
        width = saved.settings.get("lanes_at_once") if saved and engine.lanes_at_once == "auto" else None
        self._machine = Machine(
            self._programs,
            data,
            opening,
            freeze=opening.keep == "all" or folder is not None,
            lanes_at_once=width or engine.lanes_at_once,
            mesh=engine.mesh,
        )
        self.form, self.words = self._programs.form, self._machine.words
        self.runs = Runs(self.form.metrics, self.form.evals)
        self.kept, self._pace, self._deposits = Kept(opening.keep), Pace(), dict[int, UnderWay]()
        self._lock, self._saving = threading.Lock(), threading.Lock()
        self._settings = {} if folder is None else self._all_settings()
        if saved is not None:
            self._resume(saved)
        self.runs.judgment = opening.judgment
        bar.write(self.words)

    def run(self, plan: Plan, description: str) -> None:
        """Ask for the rows of a plan and run them: a round; before it, what they would give without training."""
        if self.hears():
            return
        if self._opening.reference is not None and not self._observe(plan, self._opening.reference):
            return
        rows = self.runs.append(plan)
        self._save()
        self._finish(rows, description)

    def hears(self) -> bool:
        """Whether Ctrl-C has asked the search to end; the same on all hosts, which must ask together."""
        self.stopped = bool(self._machine.layout.agree(self.interrupts.heard))
        return self.stopped

    def finish(self, description: str) -> None:
        """Run the rows that were asked for before a kill, and have not ended; with the ceilings of their round."""
        if len(rows := self.runs.unfinished()):
            rounds = self.runs.columns["round"]
            self._finish(np.flatnonzero(rounds == rounds[rows[0]]), description)

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
            lane = form.lane.tree(self._machine.lane_leaves(self.runs, np.int64(row)))
            begun = jax.tree.leaves(self._task.begin(start, lane, np.int32(seed)))
            whole = [on_host(new) if leaf is None else leaf for leaf, new in zip(whole, begun, strict=True)]
        return form.carry.tree(whole)

    def _resume(self, saved: Saved) -> None:
        """Go on from a checkpoint.

        Raises:
          ValueError: it is of another search.
        """
        assert self._folder is not None
        found, path = saved.settings, self._folder.path
        self.skipped, self.redone = self._folder.skipped, self._folder.redone
        if differs := [name for name, value in self._settings.items() if found.get(name) != value]:
            raise ValueError(
                f"checkpoint={str(path)!r} is of another search: it differs in {', '.join(differs)}."
            )
        self.runs = saved.runs
        self._deposits.update({int(each.rows[0]): each for each in saved.under_way})
        self.kept.restore(saved.kept, self.form.own.bits())
        self._bar.write(
            f"resumed from {path}: {self.skipped} steps skipped, {self.redone} done again", always=True
        )

    def _all_settings(self) -> dict[str, Any]:
        """What the search depends on, by the name that an error says."""
        layout, data = self._machine.layout, self._data
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
                saved = Saved(
                    self._settings,
                    self.runs.take(np.arange(len(self.runs))),
                    list(self._deposits.values()),
                    self.kept.arrays(),
                )
            self._folder.save(saved)
            self._folder.saved_at = time.monotonic()
        finally:
            self._saving.release()

    def _observe(self, plan: Plan, wanted: Wanted) -> bool:
        """Complete the reference by the seeds of a plan; whether nothing interrupted it."""
        form, data, known = self.form, self._data, self.runs.reference
        missing, found = plan_of(known, plan, wanted, form, data), None
        if missing is not None:
            found = Runs(form.metrics, form.evals)
            found.append(missing)
            self._run_where_it_fits(functools.partial(self._run_still, found, wanted.of_starts(form)))
        if self.hears():
            return False
        self.runs.reference = completed(known, plan, found, wanted, form, data)
        return True

    def _run_still(self, found: Runs, of_starts: bool) -> None:
        """Run the rows of a table without training; where starts tell all, their evaluations."""
        layout, programs = self._machine.layout, self._machine.programs
        # A call of no steps leaves what began as it is; a lone step that nothing freezes does not.
        looks = of_starts and (layout.window > 1 or layout.freeze)
        if not looks:
            layout, programs = self._machine.looks()
        ceilings = np.broadcast_to(np.float32(np.inf), (len(found), self._machine.room))
        work = self._work(ceilings)._replace(
            layout=layout,
            programs=programs,
            runs=found,
            factor=np.float32(np.inf),
            pace=Pace(),
            deposits={},
            deposit_every=None,
            keep=lambda *_: None,
            say=lambda *_: None,
            save_if_due=lambda: None,
        )
        jobs = jobs_of(found, np.arange(len(found)), layout)
        with context(layout.mesh):
            run_jobs(work, jobs, look_at_starts if looks else run_job)

    def _finish(self, rows: np.ndarray, description: str) -> None:
        """Run the rows of a round to their ends, and hand them to whoever asked for them."""
        ceilings, told = self._ceilings_of(rows), self._engine.on_round
        self._run_where_it_fits(functools.partial(self._attempt, rows, description, ceilings))
        if not self.hears() and told is not None and jax.process_index() == 0:
            with self.interrupts.paused():
                told([{"description": description, **run} for run in self.runs.records(rows)])

    def _run_where_it_fits(self, attempt: Callable[[], None]) -> None:
        """Run some rows; anew, with half the lanes at once, whenever the device runs out of memory."""
        while not self._machine.fits(attempt):
            # Here, and not where the error is handled: it holds the arrays of the calls that it ended.
            self._machine.halve()
            self._deposits.clear()

    def _attempt(self, rows: np.ndarray, description: str, ceilings: np.ndarray) -> None:
        runs, layout = self.runs, self._machine.layout
        unfinished = set(runs.unfinished().tolist())
        jobs = [job for job in jobs_of(runs, rows, layout) if unfinished & set(job.some.tolist())]
        made = sum(each.made for each in self._deposits.values())
        steps = int(runs.columns["steps"][rows].sum())
        over = steps - int(runs.columns["steps"][list(unfinished & set(rows.tolist()))].sum())
        self._bar.expect(description, len(rows), steps, over + made)
        work = self._work(ceilings)
        try:
            with context(layout.mesh):
                run_jobs(work, jobs, run_job)
        finally:
            self._save()

    def _ceilings_of(self, rows: np.ndarray) -> np.ndarray:
        """A ceiling for every step of every row of the table; those of a round know the rounds before."""
        none, runs = np.broadcast_to(np.float32(np.inf), (len(self.runs), self._machine.room)), self.runs
        if self._opening.ceilings is None:
            return none
        before = runs.where(round=range(int(runs.columns["round"][rows[0]])))
        every = none.copy()
        every[rows] = edged(self._opening.ceilings(before, runs.take(rows)), self._machine.room)
        return every

    def _work(self, ceilings: np.ndarray) -> Work:
        return Work(
            layout=self._machine.layout,
            programs=self._machine.programs,
            runs=self.runs,
            data=self._data,
            arrays=self._machine.arrays,
            factor=np.float32(self._opening.stop_factor),
            ceilings=ceilings,
            names=(self.form.metrics, self.form.evals),
            lane_leaves=self._machine.lane_leaves,
            pace=self._pace,
            lock=self._lock,
            stop=self.interrupts.stop(),
            spares=[],
            deposits=self._deposits,
            deposit_every=None if self._folder is None else checkpoints.SECONDS_BETWEEN_SAVES / 2,
            keep=self.kept.offer,
            say=self._say,
            save_if_due=self._save_if_due,
        )

    def _say(self, made: int, lowest: float, stopped: int, skipped: int) -> None:
        self._bar.report(made, lowest, stopped, skipped)
        if self._folder is not None:
            self._folder.note_executed(made)

    def _save_if_due(self) -> None:
        folder = self._folder
        if folder and time.monotonic() - folder.saved_at >= checkpoints.SECONDS_BETWEEN_SAVES:
            self._save(wait=False)
