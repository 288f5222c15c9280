"""What an answer costs: the excess loss of the rate that a budget buys, by `lr_find(budget=)` and by other ways.

    python benchmarks/price.py                     # from runs.json and finder_truth.json: minutes, no training
    python benchmarks/price.py --held-out --write  # the cases that nothing was tuned on; stores price.json

Every method is replayed on the stored runs of `runs.py`: the policy of `lr_find(budget=)` itself, asked round
by round; random search and a log grid over the bounds of a search, whole runs of one seed each, of which the
lowest last loss wins; random search with successive halving (Li et al. 2018, arXiv:1810.05934, by a factor of
two at an eighth, a quarter and a half of the run), which sees full runs on their way; a customary rate, for
nothing. Draws are shifts of the seeds. Losses of a length that is not stored are those of the nearest one, and
so are those of a rate: half octaves around the best. Far from it, where rates are two octaves apart, losses are
interpolated. The cases are those that `runs.json` holds.

Excess is that of `finder_accuracy.py`: over the best rate's mean loss, at most 9, which a lost run counts.
Price is in runs of 1000 steps.
"""

import argparse
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from finder_accuracy import CUSTOMARY, TRUTH, Truth
from runs import HORIZON, LENGTHS, LOOKS, held_out, load

from optax_lr.engine.runs import Plan, Reference, Runs
from optax_lr.finder import budget, tables
from optax_lr.finder.policies import Bounds

STORED = pathlib.Path(__file__).with_name("price.json")
BUDGETS = (0.3, 1.0, 3.0, 10.0)
BOUNDS = Bounds(1e-6, 10.0)
COLUMNS = ("median", "90th percentile", "worst", "within 2x", "interval holds it", "price")


class Table:
    """The stored runs of a case, seeds shifted by a draw."""

    def __init__(self, stored: Mapping, draw: int):
        self._octaves = {int(steps): np.array(values) for steps, values in stored["octaves"].items()}
        self._losses = {
            int(steps): np.roll(np.array(values, float), -draw, axis=1)
            for steps, values in stored["losses"].items()
        }
        # [rates, looks, seeds]
        self._looks = np.roll(np.array(stored["looks"], float), -draw, axis=2)
        self.untrained = self._losses[LENGTHS[0]][0]

    def loss(self, steps: int, octave: float, seed: int) -> float:
        """The last loss of a run."""
        length = min(LENGTHS, key=lambda known: abs(np.log(known / steps)))
        return _at(self._octaves[length], self._losses[length][:, seed], octave)

    def look(self, steps: int, octave: float, seed: int) -> float:
        """The loss of a full run on its way."""
        at = min(range(len(LOOKS) + 1), key=lambda at: abs([*LOOKS, HORIZON][at] - steps))
        return _at(self._octaves[HORIZON], self._looks[:, at, seed], octave)


def _at(octaves: np.ndarray, losses: np.ndarray, octave: float) -> float:
    """The loss at a rate: the nearest half octave's, or between coarse ones, in log-log."""
    nearest = int(np.abs(octaves - octave).argmin())
    right = int(np.clip(np.searchsorted(octaves, octave), 1, len(octaves) - 1))
    pair = losses[right - 1 : right + 1]
    inside = octaves[right - 1] < octave < octaves[right]
    if not inside or octaves[right] - octaves[right - 1] < 0.6 or not np.isfinite(pair).all():
        return float(losses[nearest])
    return float(np.exp(np.interp(octave, octaves[right - 1 : right + 1], np.log(pair))))


def by_budget(table: Table, price: float, draw: int) -> dict[str, float]:
    """`lr_find(budget=)`: its policy on the stored runs."""
    seeds = len(table.untrained)
    policy = budget.Budgeted(BOUNDS, budget.Spending(price, HORIZON), lambda steps: tables.one_cycle)
    runs = Runs(("loss",), ("loss",))
    reference = table.untrained[:, None].astype(np.float32)
    runs.reference = Reference(np.arange(seeds), {}, {"loss": reference}, (1,), 0)
    while (asked := policy.ask(runs)) is not None:
        _run(runs, asked.plan, table)
    found = policy.answer(runs)
    return {"rate": found.learning_rate, "low": found.low, "high": found.high, "price": runs.price / HORIZON}


def _run(runs: Runs, plan: Plan, table: Table) -> None:
    for row in map(int, runs.append(plan)):
        steps, seed = (int(runs.columns[name][row]) for name in ("steps", "seed"))
        loss = table.loss(
            steps, float(np.log2(runs.lanes["learning_rate"][row])), seed % len(table.untrained)
        )
        lost = not np.isfinite(loss)
        runs.evals["loss"][row, 0] = np.nan if lost else loss
        runs.metrics["loss"][row, :steps] = np.nan if lost else 1.0
        # A lost run costs its whole length here: the stored ones do not say when it was lost.
        runs.end(row, steps, steps - 1 if lost else -1, int(lost))


def random_search(table: Table, price: float, draw: int) -> dict[str, float] | None:
    """Whole runs at rates drawn over the bounds."""
    count = int(price)
    octaves = np.random.default_rng([7, draw]).uniform(*np.log2([BOUNDS.low, BOUNDS.high]), count)
    return _lowest(table, octaves)


def log_grid(table: Table, price: float, draw: int) -> dict[str, float] | None:
    """Whole runs at rates of one ratio, in the middles of equal parts of the bounds."""
    count, (low, high) = int(price), np.log2([BOUNDS.low, BOUNDS.high])
    return _lowest(table, low + (high - low) * (np.arange(count) + 0.5) / max(count, 1))


def _lowest(table: Table, octaves: np.ndarray) -> dict[str, float] | None:
    if not len(octaves):
        return None
    losses = [table.loss(HORIZON, octave, 0) for octave in octaves]
    return {"rate": float(2.0 ** octaves[int(np.argmin(losses))]), "price": float(len(octaves))}


def successive_halving(table: Table, price: float, draw: int) -> dict[str, float] | None:
    """Random search, asynchronous: a run goes on where it is in the better half of those that came as far."""
    rungs, seen = (125, 250, 500, HORIZON), {steps: list[float]() for steps in (125, 250, 500)}
    rng, left, best = np.random.default_rng([8, draw]), price * HORIZON, (np.inf, np.nan)
    while left >= HORIZON:
        octave, made = float(rng.uniform(*np.log2([BOUNDS.low, BOUNDS.high]))), 0
        for steps in rungs:
            left, made = left - (steps - made), steps
            loss = table.look(steps, octave, 0)
            if steps == HORIZON:
                best = min(best, (loss, octave))
            elif loss > np.median([*seen[steps], loss]):
                seen[steps].append(loss)
                break
            else:
                seen[steps].append(loss)
    return None if np.isnan(best[1]) else {"rate": 2.0 ** best[1], "price": price - left / HORIZON}


METHODS: dict[str, Callable[[Table, float, int], dict[str, float] | None]] = {
    "lr_find(budget=)": by_budget,
    "random search": random_search,
    "random search, successive halving": successive_halving,
    "log grid": log_grid,
}


def score(answers: list[tuple[Truth, Mapping[str, float]]]) -> list[float]:
    """The columns of a method at a budget on one draw."""
    excess = [truth.excess(found["rate"]) for truth, found in answers]
    within = [truth.within(found["rate"]) for truth, found in answers]
    held = [truth.held(found["low"], found["high"]) for truth, found in answers if "low" in found]
    price = max(found["price"] for _, found in answers)
    tail = float(np.percentile(excess, 90))
    return [float(np.median(excess)), tail, max(excess), float(np.mean(within)),
            float(np.mean(held)) if held else float("nan"), price]  # fmt: skip


def measured(
    cases: list[str], stored: Mapping[str, Mapping], draws: int, budgets: Sequence[float]
) -> Iterator[tuple[str, float, list[float]]]:
    """The columns of every method at every budget, means over draws of the seeds."""
    truths = {case: Truth(json.loads(TRUTH.read_text())[case]) for case in cases}
    for name, method in METHODS.items():
        for price in budgets:
            rows = []
            for draw in range(draws):
                found = {case: method(Table(stored[case], draw), price, draw) for case in cases}
                known = [(truths[case], answer) for case, answer in found.items() if answer is not None]
                rows += [score(known)] if len(known) == len(cases) else []
            if rows:
                yield name, price, np.mean(rows, axis=0).tolist()
    customary = [
        (truth, {"rate": CUSTOMARY[case.rsplit(", ", 1)[1]], "price": 0.0}) for case, truth in truths.items()
    ]
    yield "a customary rate", 0.0, score(customary)


def as_table(rows: list[tuple[str, float, list[float]]]) -> str:
    """The rows as Markdown."""
    lines = [f"| method | budget | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name, price, (median, tail, worst, within, held, cost) in rows:
        covered = "" if np.isnan(held) else f"{held:.0%}"
        columns = f"{median:.1%} | {tail:.0%} | {worst:.0%} | {within:.0%} | {covered} | {cost:.2f}"
        lines.append(f"| {name} | {price:g} | {columns} |")
    return "\n".join(lines)


def stored_rows(part: str) -> tuple[int, list[tuple[str, float, list[float]]]]:
    """How many cases a stored part has, and its rows."""
    found = json.loads(STORED.read_text())[part]
    rows = [
        (name, price, [float("nan") if x is None else x for x in columns])
        for name, price, *columns in found["rows"]
    ]
    return len(found["cases"]), rows


def draw(rows: Sequence[tuple[str, float, list[float]]], axes: Any) -> None:
    """The median (a line) and the 90th percentile (dashed) of the excess over the price, both logarithmic."""
    for at, name in enumerate(METHODS):
        mine = [(columns[-1], columns[0], columns[1]) for which, _, columns in rows if which == name]
        if not mine:
            continue
        price, median, tail = np.maximum(np.array(mine), 1e-3).T
        axes.plot(price, median, "o-", color=f"C{at}", label=name)
        axes.plot(price, tail, ".--", color=f"C{at}", alpha=0.6)
    axes.set(xscale="log", yscale="log", xlabel="price, in runs of 1000 steps", ylabel="excess loss")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, title="median; dashed: 90th percentile", title_fontsize=8)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--held-out", action="store_true", help="the cases for the final table alone")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS, help="in runs of 1000 steps")
    parser.add_argument("--cases", type=int, default=1000, help="of how many cases at most")
    parser.add_argument("--write", action="store_true", help=f"store the rows in {STORED.name}")
    options = parser.parse_args()
    stored, last = load(), held_out()
    cases = [case for case in stored if (case in last) == options.held_out][: options.cases]
    rows = list(measured(cases, stored, options.draws, options.budgets))
    print(f"{len(cases)} {'held-out' if options.held_out else 'design'} cases\n\n{as_table(rows)}")
    if options.write:
        known = json.loads(STORED.read_text()) if STORED.exists() else {}
        part = known.setdefault("held out" if options.held_out else "design", {"rows": []})
        rerun = {(name, price) for name, price, _ in rows}
        old = [row for row in part["rows"] if (row[0], row[1]) not in rerun]
        every = [[name, price, *[round(x, 4) for x in columns]] for name, price, columns in rows]
        part |= {
            "cases": cases,
            "rows": sorted(
                old + every,
                key=lambda row: ([*METHODS, ""].index(row[0] if row[0] in METHODS else ""), row[1]),
            ),
        }
        STORED.write_text(json.dumps(known).replace("NaN", "null").replace("], [", "],\n["))


if __name__ == "__main__":
    main()
