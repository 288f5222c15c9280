"""What fastai's rules say of one ramp: rates for every case of `finder_accuracy.py`, for `price.py` to score.

    python benchmarks/ramps.py     # goes on with `ramps.json`

A ramp is fastai's: 100 steps from 1e-7 to 10, the training loss smoothed, stopped where that is four times its
lowest. Its first tenth is cut off and the last five points that it reached, and a rule reads the rest. Each seed is
a ramp of its own, on the starts and batches of the same seed in `runs.json`.
"""

import argparse
import dataclasses
import json
import pathlib
import time

import jax
from finder_accuracy import RAMP_RULES
from problems import OPTIMIZERS, problems
from runs import KEY, SEEDS, cases, load

import optax_lr as olr

STORED = pathlib.Path(__file__).with_name("ramps.json")
STEPS = 100


def ramps_of(case: str) -> list[olr.LRCurve]:
    """A ramp for each seed, cut as fastai cuts it."""
    name, optimizer = case.rsplit(", ", 1)
    problem = problems()[name]()
    curve = olr.lr_range_test(
        problem.loss_fn,
        problem.init,
        OPTIMIZERS[optimizer],
        problem.batches,
        num_steps=STEPS,
        seeds=SEEDS,
        key=jax.random.key(KEY),
        progress=False,
    )
    return [_of_seed(curve, seed) for seed in range(SEEDS)]


def _of_seed(curve: olr.LRCurve, seed: int) -> olr.LRCurve:
    mine = slice(seed, seed + 1)
    alone = dataclasses.replace(
        curve,
        losses=curve.losses[mine],
        diverged_at=curve.diverged_at[mine],
        metrics={name: values[mine] for name, values in curve.metrics.items()},
        reference=None,
    )
    # The point at which it stopped was reached, too.
    reached = min(STEPS, int(alone.stable.sum()) + 1)
    return alone.take(slice(STEPS // 10, reached - 5))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--file", type=pathlib.Path, default=STORED)
    options = parser.parse_args()
    stored = load(options.file)
    scored = load()
    wanted = [case for case in cases() if options.only in case and case not in stored]
    # Those that can be scored come first.
    for case in sorted(wanted, key=lambda case: case not in scored):
        begin, curves = time.perf_counter(), ramps_of(case)
        stored[case] = {
            rule: [float(f"{getattr(olr.suggest, rule)(curve).learning_rate:.4g}") for curve in curves]
            for rule in RAMP_RULES
        }
        options.file.write_text(json.dumps(stored).replace("}, ", "},\n"))
        print(f"{case:45s} {time.perf_counter() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
