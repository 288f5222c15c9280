"""Whether `compare` finds the winners of a grid of 13 rates on 5 seeds, and at which price.

On each problem optimizers and schedules are compared by `compare`, and by hand, each at its best of 13 rates.
If the two name different winners, the table says how far apart these are in the grid's own runs: the mean
difference over its seeds and its 95% interval. If 0 lies in it, they tie: the grid cannot tell them apart. What a
name is worth among ties is seen where the grid runs again: each candidate at the same rate, on five other seeds.
"""

import argparse
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--problems", type=int, help="only so many problems")
    parser.add_argument("--steps", type=int, default=STEPS, help="the length of every run")
    arguments = parser.parse_args()
    rows = []
    for name in NAMES[: arguments.problems]:
        problem = problems()[name]()
        started = time.perf_counter()
        losses, again, price = by_hand(problem, arguments.steps)
        after = time.perf_counter()
        compared = olr.compare(
            problem.loss_fn, problem.init, candidates(arguments.steps), problem.batches,
            eval_batch=problem.eval_batch, horizon=arguments.steps, seeds=SEEDS, progress=False,
        )  # fmt: skip
        ended = time.perf_counter()
        print(f"{name}\n{compared}\n")
        winner = min(losses, key=lambda name: losses[name].mean())
        said, tie = apart(losses[compared.best], losses[winner])
        verdict = "same" if compared.best == winner else f"{'tie' if tie else 'other'}, {said}"
        share = f"{compared.lane_steps / price:.0%} | {after - started:.0f} s, {ended - after:.0f} s"
        rows.append(f"| {name} | {winner} | {again} | {compared.best} | {verdict} | {share} |")
    print(
        "| problem | winner of the grid | on other seeds | of compare | winners | steps of the grid's | time |"
    )
    print("|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
