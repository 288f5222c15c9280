"""How well cycles train between the bounds of `suggest.cyclical_bounds`, against the best peak, on small problems.

Each problem is trained for 400 steps under a triangular schedule with half-cycles of 50 steps, at peaks a factor of
1.58 apart (the base a tenth of the peak): that is the truth. The bounds are read off separate runs at constant
rates, and off range tests, alone and checked by short runs; a triangular schedule between them is then trained,
too. The score is its validation loss over that of the best peak, minus 1.

Each problem's scores are stored as they come, beside this file; `--only 3` trains one, `--anew` all of them.
"""

import argparse
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from diagnosis import OPTIMIZERS, Problem, batches_of, load, loss_of, model

import optax_lr as olr

STEPS, HALF_CYCLE, SEEDS = 400, 50, 3
RESULTS = pathlib.Path(__file__).with_suffix(".json")
PEAKS = np.geomspace(1e-4, 10, 26)
CASES = [
    (Problem("digits", "mlp"), "SGD"),
    (Problem("digits", "mlp"), "momentum"),
    (Problem("digits", "mlp"), "Adam"),
    (Problem("digits", "linear"), "SGD"),
    (Problem("wine", "mlp", batch=16), "momentum"),
    (Problem("wine", "linear", batch=16), "Adam"),
    (Problem("diabetes", "mlp", batch=16, squared=True), "SGD"),
    (Problem("diabetes", "linear", batch=16, squared=True), "momentum"),
    (Problem("breast_cancer", "mlp", batch=16), "Adam"),
    (Problem("digits", "deep"), "SGD"),
]


def triangular(base: Any, peak: Any) -> Callable:
    """From base to peak and back, without end."""
    return lambda step: base + (peak - base) * (1 - jnp.abs((step / HALF_CYCLE) % 2 - 1))


def scores(problem: Problem, optimizer: str) -> dict[str, float]:
    """By where the bounds were read off, how far their loss lies above that of the best peak."""
    train, valid, classes = load(problem)
    init, apply = model(problem.model, train[0].shape[1], classes or train[1].shape[1])
    arguments = loss_of(problem, classes, apply), init, OPTIMIZERS[optimizer]
    batches = batches_of(train, problem.batch, STEPS)

    def sweep(rates: Any, schedule: Callable | None, steps: int = STEPS) -> olr.LRCurve:
        return olr.lr_sweep(
            *arguments,
            batches,
            learning_rates=rates,
            schedule=schedule,
            eval_batch=valid,
            seeds=SEEDS,
            num_steps=steps,
            progress=False,
        )

    truth = sweep(PEAKS, lambda peak: triangular(peak / 10, peak))
    assert truth.eval_losses is not None
    best = np.nanmin(np.where(truth.stable, truth.eval_losses[..., -1].mean(axis=0), np.nan))
    ramp = {"progress": False}
    curves = {
        "runs of 200 steps": sweep(PEAKS, None, 200),
        "ramp of 100 steps": olr.lr_range_test(*arguments, batches, **ramp),
        "ramp of 400 steps": olr.lr_range_test(*arguments, batches, num_steps=400, smoothing=0.9, **ramp),
    }
    for count in (3, 5, 7):
        curves[f"ramp of 100 steps, {count} short runs"] = olr.lr_range_test(
            *arguments, batches, eval_batch=valid, check_runs=count, **ramp
        )
    found = {}
    for name, curve in curves.items():
        try:
            base, peak = olr.suggest.cyclical_bounds(curve)
        except ValueError:  # No fall stands out of the noise.
            found[name] = np.inf
            continue
        cycles = sweep([peak], lambda peak, base=base: triangular(base, peak))
        assert cycles.eval_losses is not None
        found[name] = float(cycles.eval_losses[..., -1].mean() / best - 1)
    return found


def stored(path: pathlib.Path) -> dict[str, dict[str, float]]:
    """The scores that are known, by problem; JSON's Infinity stands for a loss without a fall."""
    return json.loads(path.read_text()) if path.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", type=int, nargs="+", default=list(range(len(CASES))), help="which problems")
    parser.add_argument("--anew", action="store_true", help="train what is stored already, too")
    parser.add_argument("--file", type=pathlib.Path, default=RESULTS)
    chosen = parser.parse_args()
    cases = [CASES[at] for at in chosen.only]
    for problem, optimizer in cases:
        name = f"{problem.name}, {problem.model}, {optimizer}"
        if chosen.anew or name not in stored(chosen.file):
            both = {**stored(chosen.file), name: scores(problem, optimizer)}
            chosen.file.write_text(json.dumps(both, indent=1) + "\n")
    known = stored(chosen.file)
    found = [known[f"{problem.name}, {problem.model}, {optimizer}"] for problem, optimizer in cases]
    for (problem, optimizer), row in zip(cases, found, strict=True):
        said = ", ".join(
            f"{name} {score:+.0%}" if np.isfinite(score) else f"{name}: no fall seen"
            for name, score in row.items()
        )
        print(f"{problem.name}, {problem.model}, {optimizer}: {said}")
    print("\n| bounds read off | within 10% of the best peak | median | worst |\n|---|---|---|---|")
    for name in found[0]:
        column = np.array([row[name] for row in found])
        worst = np.max(column, where=np.isfinite(column), initial=0)
        good = f"{(column < 0.1).sum()} of {len(column)}"
        print(f"| {name} | {good} | {np.median(column):.0%} | {worst:.0%} |")


if __name__ == "__main__":
    main()
