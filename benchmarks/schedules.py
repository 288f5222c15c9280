"""Which schedule? Ten of them, each at its own best peak, on the problems of `problems.py` with two optimizers.

    python benchmarks/schedules.py            # what is missing in schedules.json is run; then the tables
    python benchmarks/schedules.py --tables   # the tables of what is there

A case is a problem with an optimizer. Every schedule spans the whole run. Its peak is looked for on a grid of ratio
4, one seed each, and then of ratio 2^(1/2) around the best, three seeds each, until the best is no edge. Its score
is the mean validation loss at the end of the run at its best peak, over that of the case's best schedule, minus 1.
All schedules have the same seeds, and so the same starts and batches.
"""

import argparse
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import scipy.stats
from problems import OPTIMIZERS, Problem, problems

import optax_lr as olr

HERE = pathlib.Path(__file__).parent
STEPS, SEEDS = 420, 3
COARSE = 4.0 ** np.arange(-10, 2)
FINE = 2.0 ** (np.arange(-4, 5) / 2)
CHOSEN = ("momentum", "adam")


def schedules(steps: int) -> Mapping[str, Callable[[Any], Callable]]:
    """By name, functions from a peak to a schedule over a whole run; `steps` is a multiple of 140."""
    twentieth = steps // 20
    return {
        "constant": olr.constant_schedule,
        "step decay": lambda peak: olr.piecewise_constant_schedule(
            peak, {steps // 2: 0.1, 3 * steps // 4: 0.1}
        ),
        "cosine": lambda peak: olr.cosine_decay_schedule(peak, steps),
        "linear to zero": lambda peak: olr.linear_schedule(peak, 0.0, steps),
        "one-cycle": lambda peak: olr.one_cycle_schedule(peak, steps),
        "warmup-stable-decay": lambda peak: olr.warmup_stable_decay_schedule(
            peak, warmup_steps=twentieth, stable_steps=15 * twentieth, decay_steps=4 * twentieth
        ),
        "triangular cycles": lambda peak: olr.cyclical_schedule(peak / 10, peak, steps // 10),
        "SGDR": lambda peak: olr.sgdr_schedule(peak, 0.0, olr.Cycles(steps // 7, growth=2)),
        "inverse square root": lambda peak: olr.inverse_sqrt_schedule(peak, twentieth),
        "REX": lambda peak: olr.anneal_schedule(peak, 0.0, steps, curve=olr.curves.rex),
    }


def swept(problem: Problem, factory: Callable, schedule: Callable, rates: Any, steps: int, seeds: int) -> Any:
    """The curve of some peaks; `factory` goes from a rate to an optimizer."""
    return olr.lr_sweep(
        problem.loss_fn,
        problem.init,
        factory,
        problem.batches,
        learning_rates=rates,
        schedule=schedule,
        num_steps=steps,
        eval_batch=problem.eval_batch,
        seeds=seeds,
        progress=False,
    )


def means(curve: olr.LRCurve) -> np.ndarray:
    """The loss of each peak at the end, [lanes]; infinite where a seed diverged."""
    if not curve.stable.any():
        return np.full(len(curve.stable), np.inf)
    losses = olr.suggest.final_losses(curve)
    return np.where(curve.stable & np.isfinite(losses).all(axis=0), losses.mean(axis=0), np.inf)


def at_best_peak(
    problem: Problem, factory: Callable, schedule: Callable, steps: int, seeds: int
) -> dict[str, Any]:
    """The best peak of a schedule and the losses of its seeds."""
    coarse = swept(problem, factory, schedule, COARSE, steps, 1)
    center = coarse.learning_rates[int(np.argmin(means(coarse)))]
    curve = swept(problem, factory, schedule, center * FINE, steps, seeds)
    for _ in range(3):
        best = int(np.argmin(means(curve)))
        edge = curve.learning_rates[best]
        if 0 < best < len(curve.learning_rates) - 1:
            break
        beyond = FINE[FINE > 1] if best else 1 / FINE[FINE > 1][::-1]
        curve = curve.merge(swept(problem, factory, schedule, edge * beyond, steps, seeds))
    best = int(np.argmin(means(curve)))
    losses = olr.suggest.final_losses(curve)[:, best]
    return {"peak": float(curve.learning_rates[best]), "losses": [float(loss) for loss in losses]}


def each_schedule(problem: Problem, optimizer: str, steps: int, seeds: int) -> dict[str, Any]:
    """Every schedule at its best peak."""
    return {
        name: at_best_peak(problem, OPTIMIZERS[optimizer], schedule, steps, seeds)
        for name, schedule in schedules(steps).items()
    }


def run(path: pathlib.Path, cases: list[str], steps: int, seeds: int, measure: Callable) -> None:
    """Run the cases that the file does not have; it is written after each."""
    stored = json.loads(path.read_text()) if path.exists() else {"steps": steps, "seeds": seeds, "cases": {}}
    if (stored["steps"], stored["seeds"]) != (steps, seeds):
        raise SystemExit(f"{path} has runs of {stored['steps']} steps and {stored['seeds']} seeds.")
    for case in cases:
        if case in stored["cases"]:
            continue
        name, _, optimizer = case.rpartition(", ")
        stored["cases"][case] = measure(problems()[name](), optimizer, steps, seeds)
        path.write_text(json.dumps(stored, indent=1) + "\n")
        print(f"{case}: {winner(stored['cases'][case])}", flush=True)
        jax.clear_caches()


def excess(case: Mapping[str, Any]) -> dict[str, float]:
    """By schedule, its mean loss over the lowest, minus 1."""
    losses = {name: float(np.mean(found["losses"])) for name, found in case.items()}
    return {name: loss / min(losses.values()) - 1 for name, loss in losses.items()}


def winner(case: Mapping[str, Any]) -> str:
    scores = excess(case)
    return min(scores, key=lambda name: scores[name])


def beside_winner(case: Mapping[str, Any]) -> list[str]:
    """The schedules that a paired t-test at 95%, seed by seed, does not tell from the best; the best among them."""
    best = np.array(case[winner(case)]["losses"])
    same = []
    for name, found in case.items():
        gap = np.array(found["losses"]) - best
        spread = gap.std(ddof=1) / len(gap) ** 0.5
        if name == winner(case) or gap.mean() <= scipy.stats.t.ppf(0.95, len(gap) - 1) * spread:
            same.append(name)
    return same


def summary(cases: Mapping[str, Any]) -> str:
    """The table of schedules: what each costs over the best of all, and how often it is the best."""
    table = {case: excess(found) for case, found in cases.items()}
    rows = []
    for name in next(iter(table.values())):
        costs = np.array([scores[name] for scores in table.values()])
        wins = sum(winner(found) == name for found in cases.values())
        near = sum(name in beside_winner(found) for found in cases.values())
        cells = [f"{np.median(costs):.1%}", f"{np.quantile(costs, 0.9):.0%}", f"{costs.max():.0%}"]
        rows.append((np.median(costs), f"| {name} | {' | '.join(cells)} | {wins} | {near} of {len(cases)} |"))
    head = "| schedule | median | 90th percentile | worst | best | best, or not told from it |\n" + "|---" * 6
    return "\n".join([head + "|", *(line for _, line in sorted(rows))])


def winners(cases: Mapping[str, Any]) -> str:
    """The table of cases: the best schedule, and what the three usual choices cost."""
    usual = ("constant", "cosine", "linear to zero", "one-cycle", "step decay")
    lines = [f"| case | best | {' | '.join(usual)} |", "|---" * (2 + len(usual)) + "|"]
    for case, found in cases.items():
        scores = excess(found)
        cells = " | ".join(f"{scores[name]:.1%}" for name in usual)
        lines.append(f"| {case} | {winner(found)} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", nargs="*", default=list(problems()), choices=list(problems()))
    parser.add_argument("--optimizers", nargs="*", default=list(CHOSEN), choices=list(OPTIMIZERS))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--file", type=pathlib.Path, default=HERE / "schedules.json")
    parser.add_argument("--tables", action="store_true", help="run nothing")
    given = parser.parse_args()
    if not given.tables:
        cases = [f"{name}, {optimizer}" for name in given.problems for optimizer in given.optimizers]
        run(given.file, cases, given.steps, given.seeds, each_schedule)
    cases = json.loads(given.file.read_text())["cases"]
    print(summary(cases), winners(cases), sep="\n\n")


if __name__ == "__main__":
    main()
