"""A table of runs for policies to be tried on: every case of `finder_accuracy.py` at many rates, lengths and seeds.

    python benchmarks/runs.py                    # goes on with `runs.json`
    python benchmarks/runs.py --only adam --cases 3

A run is one-cycle of so many steps at a peak of 2^octave; its number is the validation loss at its end, infinite
where it was lost. Short runs have all half octaves of a search's bounds. Long ones have every second octave there,
and half octaves around the best rate, which `finder_truth.json` knows. Full runs are evaluated on their way, too:
what a pruner sees. The seeds are none of the truth's.

Two thirds of the cases are for design: policies and their priors are chosen on these. The others, drawn by HELD_OUT
before the first run, are only scored.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Mapping

import jax
import numpy as np
from finder_accuracy import HORIZON, TRUTH, Truth
from problems import OPTIMIZERS, problems

from optax_lr.engine.engine import Engine
from optax_lr.engine.opening import Opening
from optax_lr.engine.runs import Runs
from optax_lr.engine.session import Session
from optax_lr.finder import tables
from optax_lr.finder.inputs import Posed, pose
from optax_lr.finder.policy import rows_of
from optax_lr.finder.problem import problem_of
from optax_lr.finder.search import example_lane, searched

STORED = pathlib.Path(__file__).with_name("runs.json")
HELD_OUT = 21
LENGTHS = (16, 31, 62, 125, 250, 500, HORIZON)
# Up to this length runs have every rate.
SHORT = 62
SEEDS = 4
# Of the starts and the order of batches.
KEY = 5000
# The halves of octaves of a search's bounds and some beyond.
LOWEST, HIGHEST = -20.0, 4.0
# How far from the best rate long runs have half octaves.
AROUND = 4.0
LOOKS = (31, 62, 125, 250, 500)
LANE = example_lane({"learning_rate": 0.1}, HORIZON)


def cases() -> list[str]:
    return [f"{name}, {optimizer}" for optimizer in OPTIMIZERS for name in problems()]


def held_out() -> set[str]:
    """A third of the cases."""
    every = sorted(cases())
    return set(np.random.default_rng(HELD_OUT).permutation(every)[: len(every) // 3].tolist())


def octaves(steps: int, best: float) -> np.ndarray:
    """Where runs of a length are made."""
    if steps <= SHORT:
        return np.arange(LOWEST, HIGHEST + 0.1, 0.5)
    near = round(2 * np.log2(best)) / 2 + np.arange(-AROUND, AROUND + 0.1, 0.5)
    return np.union1d(near, np.arange(LOWEST, HIGHEST + 0.1, 2.0))


def posed(case: str) -> Posed:
    """A case with all of its data: starts and orders of batches by seed."""
    name, optimizer = case.rsplit(", ", 1)
    problem = problems()[name]()
    return pose(
        problem_of(problem.loss_fn, False, {}), problem.init, OPTIMIZERS[optimizer], problem.batches,
        model_state=None, opt_state=None, eval_batch=problem.eval_batch, lane=LANE, read=HORIZON, seeds=SEEDS,
        key=jax.random.key(KEY),
    )  # fmt: skip


def run_case(case: str, best: float) -> dict:
    """All runs of a case: losses [octaves][seeds] by length, and what full runs pass through."""
    opening = Opening(lane=LANE, lanes=40, seeds=SEEDS, longest=HORIZON, description=case)

    def drive(session: Session) -> None:
        for steps in LENGTHS:
            looks = (*LOOKS, steps) if steps == HORIZON else (steps,)
            rates = 2.0 ** octaves(steps, best)
            plan = rows_of(rates, range(SEEDS), steps, tables.one_cycle, stage=steps, eval_steps=looks)
            session.run(plan, f"{steps} steps")

    return _stored(searched(posed(case), Engine(progress=False), opening, drive).runs)


def _stored(runs: Runs) -> dict:
    found: dict = {"octaves": {}, "losses": {}}
    for steps in LENGTHS:
        rows = runs.where(stage=steps)
        count = len(rows) // SEEDS
        losses = rows.evals["loss"].astype(np.float64)
        losses[rows.columns["stopped_at"] >= 0] = np.inf
        each = np.nan_to_num(losses, nan=np.inf).reshape(SEEDS, count, -1)
        found["octaves"][steps] = np.log2(rows.lanes["learning_rate"][:count]).round(2).tolist()
        last = len(rows.eval_steps[0]) - 1
        found["losses"][steps] = [_short(of_rate) for of_rate in each[..., last].T]
        if last:
            found["looks"] = [[_short(of_look) for of_look in of_rate.T] for of_rate in each.swapaxes(0, 1)]
    return found


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def load(path: pathlib.Path = STORED) -> dict[str, Mapping]:
    """What is stored, by case."""
    return json.loads(path.read_text()) if path.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--cases", type=int, default=1000, help="how many more at most")
    parser.add_argument("--file", type=pathlib.Path, default=STORED)
    options = parser.parse_args()
    stored, last = load(options.file), held_out()
    truths = json.loads(TRUTH.read_text())
    wanted = [case for case in cases() if options.only in case and case not in stored]
    # Text is dear.
    for case in sorted(wanted, key=lambda case: (case in last, "text" in case))[: options.cases]:
        begin = time.perf_counter()
        stored[case] = run_case(case, Truth(truths[case]).best_rate)
        options.file.write_text(json.dumps(stored, separators=(",", ":")))
        print(f"{case:45s} {time.perf_counter() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
