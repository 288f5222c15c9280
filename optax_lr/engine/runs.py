"""The table of a search: what was asked, and what came out; one row a run, in NumPy alone.

A row is one lane of hyperparameters on one seed for so many steps. Rows stand in the order in which they were asked
for, and a row is never continued: another length is another row.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from ..types import Float, Int

# Why a run stopped before its last step: its loss was not finite, it rose too far, or it passed its ceiling.
WHY = ("", "not finite", "diverged", "above its ceiling")


class Plan(NamedTuple):
    """Rows to run.

    Attributes:
      lanes: by name, the value of each row, [rows, ...].
      seeds: int32 [rows], the seed of each row: it decides the start, the order of the batches and the random keys.
      steps: int32 [rows], the length of each run.
      eval_steps: after how many steps each row is evaluated, increasing; rows of one plan share them.
      tables: by name, numbers that change with the step, float32 [rows, steps]; a step reads a whole row of them.
      stage: which part of its search the plan belongs to; a policy finds its rows by it.
    """

    lanes: Mapping[str, np.ndarray]
    seeds: Int[np.ndarray, "rows"]
    steps: Int[np.ndarray, "rows"]
    eval_steps: tuple[int, ...] = ()
    tables: Mapping[str, np.ndarray] = {}
    stage: int = 0

    @property
    def longest(self) -> int:
        """The number of steps of the longest row."""
        return int(self.steps.max())


class Reference(NamedTuple):
    """What the runs of a search would report if nothing were trained; it grows by seeds.

    Attributes:
      seeds: int64 [seeds].
      metrics: by name, what training steps would report, float32 [seeds, longest]; none where evaluations judge.
      evals: by name, what each evaluation would report, float32 [seeds, evals]; none where training steps judge.
      eval_steps: after how many steps; of starts that are evaluated as they are, 1.
      passes: how many forward passes it took.
    """

    seeds: Int[np.ndarray, " seeds"]
    metrics: Mapping[str, np.ndarray]
    evals: Mapping[str, np.ndarray]
    eval_steps: tuple[int, ...]
    passes: int


class Judgment(NamedTuple):
    """By what the runs of a search are judged.

    Attributes:
      metric: the name of a report, of evaluations where there are any, else of training steps.
      mode: whether it is better when low, "min", or when high, "max".
      folds: on how many parts of the data, each left out of training in turn; 1 where all seeds share validation.
    """

    metric: str = "loss"
    mode: Literal["min", "max"] = "min"
    folds: int = 1


LOW_LOSS = Judgment()
NO_REFERENCE = Reference(np.zeros(0, np.int64), {}, {}, (), 0)
# How many forward passes cost as much as a training step.
PASSES_PER_STEP = 3


class Runs:
    """All rows of a search; it grows by a plan at a time, a *round*.

    Attributes:
      lanes, tables: as in `Plan`, [rows, ...].
      columns: int64 arrays [rows] by name: `seed`, `steps`, `stage`, `round`; `done`, how many steps were made;
        `stopped_at`, the step at which the run was stopped, or -1; `why`, an index of `WHY`.
      eval_steps: by row, after how many steps it is evaluated.
      metrics: by name, float32 [rows, longest]; NaN where no step was made.
      evals: by name, float32 [rows, most evaluations]; NaN where none was made.
      reference: what the same runs would report without training.
      judgment: by what they are judged.
    """

    def __init__(self, metrics: Sequence[str] = (), evals: Sequence[str] = ()):
        self.lanes: dict[str, np.ndarray] = {}
        self.tables: dict[str, np.ndarray] = {}
        self.columns = {name: np.zeros(0, np.int64) for name in _COLUMNS}
        self.eval_steps: list[tuple[int, ...]] = []
        self.metrics = {name: np.zeros((0, 0), np.float32) for name in metrics}
        self.evals = {name: np.zeros((0, 0), np.float32) for name in evals}
        self.reference, self.judgment = NO_REFERENCE, LOW_LOSS

    def __len__(self) -> int:
        return len(self.eval_steps)

    @property
    def rounds(self) -> int:
        """How many plans were asked for."""
        return int(self.columns["round"].max(initial=-1)) + 1

    @property
    def price(self) -> int:
        """The training steps of all rows, each counted up to its stop, however they were laid out.

        Three forward passes of the reference count as one.
        """
        return int(self.columns["done"].sum()) + -(-self.reference.passes // PASSES_PER_STEP)

    def append(self, plan: Plan) -> np.ndarray:
        """Ask for the rows of a plan; returns their indices."""
        count, before = len(plan.seeds), len(self)
        self.lanes = _below(self.lanes, plan.lanes, before)
        self.tables = _below(self.tables, plan.tables, before)
        asked: dict[str, Any] = {"seed": plan.seeds, "steps": plan.steps, "stage": plan.stage}
        asked |= {"round": self.rounds, "stopped_at": -1}
        for name, values in self.columns.items():
            new = np.broadcast_to(np.asarray(asked.get(name, 0)), (count,))
            self.columns[name] = np.concatenate([values, new.astype(np.int64)])
        self.eval_steps += [plan.eval_steps] * count
        for reported, width in ((self.metrics, plan.longest), (self.evals, len(plan.eval_steps))):
            for name, rows in reported.items():
                reported[name] = _padded(rows, before + count, width)
        return np.arange(before, before + count)

    def unfinished(self) -> np.ndarray:
        """The rows that were asked for and are neither stopped nor at their end."""
        return np.flatnonzero(
            (self.columns["done"] < self.columns["steps"]) & (self.columns["stopped_at"] < 0)
        )

    def closed(self) -> "Runs":
        """The rounds before the first that has an unfinished row."""
        open_rounds = self.columns["round"][self.unfinished()]
        return self.where(round=range(int(open_rounds.min(initial=self.rounds))))

    def where(self, **wanted: Any) -> "Runs":
        """The rows whose columns have these values, each a number or several."""
        chosen = np.ones(len(self), bool)
        for name, values in wanted.items():
            chosen &= np.isin(
                self.columns[name], np.atleast_1d(values if np.isscalar(values) else list(values))
            )
        return self.take(np.flatnonzero(chosen))

    def take(self, rows: np.ndarray) -> "Runs":
        """Some of the rows, as a table of their own."""
        some = Runs()
        for part in _PARTS:
            setattr(some, part, {name: values[rows] for name, values in getattr(self, part).items()})
        some.eval_steps = [self.eval_steps[row] for row in rows]
        some.reference, some.judgment = self.reference, self.judgment
        return some

    def record(self, row: int, begin: int, reports: Mapping[str, Float[np.ndarray, "count"]]) -> None:
        """Write what the steps from `begin` on reported."""
        for name, values in reports.items():
            self.metrics[name][row, begin : begin + len(values)] = values

    def end(self, row: int, done: int, stopped_at: int, why: int) -> None:
        """Note how far a row is, and whether it was stopped."""
        for name, value in (("done", done), ("stopped_at", stopped_at), ("why", why)):
            self.columns[name][row] = value

    def records(self, rows: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """A dict of plain numbers and words for each of some rows: what was asked, and what came out last."""

        def record(row: int) -> dict[str, Any]:
            asked = {name: int(self.columns[name][row]) for name in ("round", "seed", "steps", "done")}
            lane = {name: x[row].item() for name, x in self.lanes.items() if x.ndim == 1}
            trained = {name: float(x[row, max(asked["done"] - 1, 0)]) for name, x in self.metrics.items()}
            measured = {f"eval_{name}": _last_known(x[row]) for name, x in self.evals.items()}
            return {**asked, "stopped": WHY[self.columns["why"][row]], **lane, **trained, **measured}

        return [record(int(row)) for row in rows]

    def __str__(self) -> str:
        line, names = "{:>4} {:>5} {:>5} {:>4} {:>7} {:>7}  {}", ("round", "stage", "seed", "steps", "done")
        lines = [line.format("row", *names, "lane")]
        for row in range(len(self)):
            numbers = [int(self.columns[name][row]) for name in names]
            lane = ", ".join(
                f"{name}={values[row]:.4g}" for name, values in self.lanes.items() if values.ndim == 1
            )
            why = WHY[self.columns["why"][row]]
            lines.append(line.format(row, *numbers, f"{lane} ({why})" if why else lane))
        return "\n".join(lines)

    def arrays(self) -> dict[str, np.ndarray]:
        """All of the table as named arrays, for a file; `from_arrays` reads them."""
        arrays = {f"{part}/{name}": x for part in _PARTS for name, x in getattr(self, part).items()}
        known = self.reference
        for part, named in (("metrics", known.metrics), ("evals", known.evals)):
            arrays |= {f"reference/{part}/{name}": values for name, values in named.items()}
        arrays["reference/seeds"], arrays["reference/passes"] = known.seeds, np.array(known.passes)
        arrays["reference/eval_steps"] = np.array(known.eval_steps, np.int64)
        most = max(map(len, self.eval_steps), default=0)
        steps = [[*each, *[0] * (most - len(each))] for each in self.eval_steps]
        return {**arrays, "eval_steps": np.array(steps, np.int64).reshape(len(self), most)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Runs":
        """The table that `arrays` took apart."""
        runs = cls()
        known: dict[str, dict[str, np.ndarray]] = {"metrics": {}, "evals": {}}
        for path, values in arrays.items():
            part, _, name = path.partition("/")
            kind, _, metric = name.partition("/")
            if part == "reference" and metric:
                known[kind][metric] = values
            elif name and part != "reference":
                getattr(runs, part)[name] = values
        runs.reference = Reference(
            arrays["reference/seeds"],
            known["metrics"],
            known["evals"],
            tuple(arrays["reference/eval_steps"].tolist()),
            int(arrays["reference/passes"]),
        )
        runs.eval_steps = [tuple(step for step in row if step) for row in arrays["eval_steps"].tolist()]
        return runs


# What a table holds by name, each with an axis of rows.
_PARTS = ("lanes", "tables", "columns", "metrics", "evals")
_COLUMNS = ("seed", "steps", "stage", "round", "done", "stopped_at", "why")


def product(
    lanes: Mapping[str, np.ndarray], seeds: Sequence[int]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Every lane on every seed, seed by seed: the lanes and the seeds of a plan's rows."""
    count = len(next(iter(lanes.values())))
    return (
        {name: np.concatenate([values] * len(seeds)) for name, values in lanes.items()},
        np.repeat(np.array(seeds, np.int32), count),
    )


def _below(old: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
    """The columns of a plan below those that are there; tables are padded to the longest with their last value."""
    if not rows:
        return {name: np.array(values) for name, values in new.items()}
    return {
        name: np.concatenate(_of_one_width(values, np.asarray(new[name]))) for name, values in old.items()
    }


def _of_one_width(one: np.ndarray, other: np.ndarray) -> list[np.ndarray]:
    if one.ndim != 2:
        return [one, other]
    width = max(one.shape[1], other.shape[1])
    return [edged(one, width), edged(other, width)]


def _last_known(values: np.ndarray) -> float:
    """The last value that is not NaN; NaN if there is none."""
    known = values[~np.isnan(values)]
    return float(known[-1]) if len(known) else float("nan")


def edged(table: np.ndarray, steps: int) -> np.ndarray:
    """A table of so many steps; beyond its end its last value stands."""
    missing = [(0, 0)] * (table.ndim - 1) + [(0, steps - table.shape[-1])]
    return np.pad(table, missing, mode="edge")


def _padded(values: np.ndarray, rows: int, width: int) -> np.ndarray:
    """The values in an array with more rows and at least so many columns, NaN where there was nothing."""
    new = np.full((rows, max(values.shape[1], width)), np.nan, np.float32)
    new[: values.shape[0], : values.shape[1]] = values
    return new
