"""Whether `compare` finds the winners of a grid of 13 rates on 5 seeds, and at which price.

On each problem optimizers and schedules are compared by `compare`, and by hand, each at its best of 13 rates.
If the two name different winners, the table says how far apart these are in the grid's own runs: the mean
difference over its seeds and its 95% interval. If 0 lies in it, they tie: the grid cannot tell them apart. What a
name is worth among ties is seen where the grid runs again: each candidate at the same rate, on five other seeds.

Each problem is stored in compare.json, beside this file, as soon as it is known, and is not run again then.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
import scipy.stats
from problems import Problem, problems

import optax_lr as olr

STEPS, SEEDS = 400, 5
GRID = np.geomspace(1e-5, 10.0, 13)
NAMES = ("digits, MLP", "breast cancer, MLP", "diabetes, linear")


def momentum(rate: Any) -> optax.GradientTransformation:
    return optax.sgd(rate, momentum=0.9)


def candidates(steps: int) -> dict[str, Any]:
    def one_cycle(peak: Any) -> Callable:
        return olr.one_cycle_schedule(peak, steps)

    return {
        "adam": optax.adam,
        "adam, one-cycle": (optax.adam, one_cycle),
        "momentum": momentum,
        "momentum, one-cycle": (momentum, one_cycle),
        "adagrad": optax.adagrad,
    }


def sweep(
    problem: Problem, candidate: Any, rates: np.ndarray, steps: int, key: jax.Array | None = None
) -> Any:
    """The final validation losses of a candidate, [seeds, rates]; NaN at rates where a seed diverged."""
    factory, schedule = candidate if isinstance(candidate, tuple) else (candidate, None)
    curve = olr.lr_sweep(
        problem.loss_fn, problem.init, factory, problem.batches, learning_rates=rates, schedule=schedule,
        num_steps=steps, seeds=SEEDS, eval_batch=problem.eval_batch, key=key, progress=False,
    )  # fmt: skip
    assert curve.eval_losses is not None
    return np.where(curve.stable, curve.eval_losses[..., -1], np.nan)


def by_hand(problem: Problem, steps: int) -> tuple[dict[str, np.ndarray], str, int]:
    """Every candidate's losses at its best rate of the grid, [seeds]; who wins on other seeds; the price."""
    losses, again = {}, {}
    for name, candidate in candidates(steps).items():
        ends = sweep(problem, candidate, GRID, steps)
        at = int(np.nanargmin(ends.mean(axis=0)))
        losses[name] = ends[:, at]
        repeated = sweep(problem, candidate, GRID[[at]], steps, jax.random.key(1))
        again[name] = np.nan_to_num(repeated.mean(), nan=np.inf)
    return losses, min(again, key=lambda name: again[name]), len(losses) * len(GRID) * SEEDS * steps


def apart(found: np.ndarray, winner: np.ndarray) -> tuple[str, bool]:
    """The mean difference of paired losses with its interval, in words, and whether 0 lies in it."""
    difference = found - winner
    half = scipy.stats.t.ppf(0.975, SEEDS - 1) * difference.std(ddof=1) / SEEDS**0.5
    mean = difference.mean()
    return f"{mean:+.4f} ({mean - half:+.4f} to {mean + half:+.4f})", bool(abs(mean) <= half)


def row(name: str, steps: int) -> list[str]:
    """What the grid and `compare` say of a problem, as a row of the table; the comparison is printed."""
    problem = problems()[name]()
    started = time.perf_counter()
    losses, again, price = by_hand(problem, steps)
    after = time.perf_counter()
    compared = olr.compare(
        problem.loss_fn, problem.init, candidates(steps), problem.batches,
        eval_batch=problem.eval_batch, horizon=steps, seeds=SEEDS, progress=False,
    )  # fmt: skip
    ended = time.perf_counter()
    print(f"{name}\n{compared}\n", flush=True)
    winner = min(losses, key=lambda name: losses[name].mean())
    said, tie = apart(losses[compared.best], losses[winner])
    verdict = "same" if compared.best == winner else f"{'tie' if tie else 'other'}, {said}"
    share, seconds = f"{compared.lane_steps / price:.0%}", f"{after - started:.0f} s, {ended - after:.0f} s"
    return [name, winner, again, compared.best, verdict, share, seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--problems", type=int, help="only so many problems")
    parser.add_argument("--steps", type=int, default=STEPS, help="the length of every run")
    parser.add_argument("--file", type=pathlib.Path, default=pathlib.Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    path = arguments.file
    rows = json.loads(path.read_text()) if path.exists() else {}
    names = NAMES[: arguments.problems]
    for name in names:
        key = f"{name}, {arguments.steps} steps"
        if key not in rows:
            rows[key] = row(name, arguments.steps)
            path.write_text(json.dumps(rows, indent=1) + "\n")
    header = [
        "problem",
        "winner of the grid",
        "on other seeds",
        "of compare",
        "winners",
        "of the grid's steps",
        "time",
    ]
    table = [header, ["---"] * len(header), *(rows[f"{name}, {arguments.steps} steps"] for name in names)]
    print("\n".join(f"| {' | '.join(each)} |" for each in table))


if __name__ == "__main__":
    main()
