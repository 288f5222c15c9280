"""Whether `compare` finds the winners of a grid of 13 rates on 5 seeds, and at which price.

On each problem optimizers and schedules are compared by `compare`, and by hand, each at its best of 13 rates.
Winners agree where the grid's own winner is found, or one whose loss at its best rate is within the grid's noise (a
paired t-test at 95%) of the winner's.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

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


def by_hand(problem: Problem, steps: int) -> tuple[dict[str, np.ndarray], int]:
    """The losses of every candidate at the best rate of the grid, [seeds], and the steps of all runs."""
    losses, price = {}, 0
    for name, candidate in candidates(steps).items():
        factory, schedule = candidate if isinstance(candidate, tuple) else (candidate, None)
        curve = olr.lr_sweep(
            problem.loss_fn, problem.init, factory, problem.batches, learning_rates=GRID, schedule=schedule,
            num_steps=steps, seeds=SEEDS, eval_batch=problem.eval_batch, progress=False,
        )  # fmt: skip
        assert curve.eval_losses is not None
        ends = np.where(curve.stable, curve.eval_losses[..., -1], np.nan)
        losses[name] = ends[:, np.nanargmin(ends.mean(axis=0))]
        price += len(GRID) * SEEDS * steps
    return losses, price


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--problems", type=int, help="only so many problems")
    parser.add_argument("--steps", type=int, default=STEPS, help="the length of every run")
    arguments = parser.parse_args()
    rows = []
    for name in NAMES[: arguments.problems]:
        problem = problems()[name]()
        started = time.perf_counter()
        losses, price = by_hand(problem, arguments.steps)
        after = time.perf_counter()
        compared = olr.compare(
            problem.loss_fn, problem.init, candidates(arguments.steps), problem.batches,
            eval_batch=problem.eval_batch, horizon=arguments.steps, seeds=SEEDS, progress=False,
        )  # fmt: skip
        ended = time.perf_counter()
        print(f"{name}\n{compared}\n")
        winner = min(losses, key=lambda name: losses[name].mean())
        even = compared.best == winner or (
            scipy.stats.ttest_rel(losses[compared.best], losses[winner]).pvalue > 0.05
        )
        verdict = "same" if compared.best == winner else "within noise" if even else "other"
        share = f"{compared.lane_steps / price:.0%} | {after - started:.0f} s, {ended - after:.0f} s"
        rows.append(f"| {name} | {winner} | {compared.best} | {verdict} | {share} |")
    print("| problem | winner of the grid | of compare | winners | steps, of the grid's | time of both |")
    print("|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
