"""How long `lr_find(budget=)` takes, over as many whole runs of an expert's loop: one jitted step, dispatched step
by step, its buffers donated. Small MLP of `sweep_speed.py`, Adam, one cycle of 1000 steps; in turn, medians.

    python benchmarks/price_time.py             # a budget of 3, five rounds; half a minute
    python benchmarks/price_time.py --budget 10

Cold is the first search of a process, against the first of the runs, both with tracing and compilation and without
a compilation cache on disk. Warm are the second and later ones.
"""

import argparse
import functools
import statistics

import jax
import numpy as np
import optax
from sweep_speed import seconds_of, small_mlp, train_by_hand, training_step

import optax_lr as olr

HORIZON, RATE = 1000, 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    problem, schedule = small_mlp(HORIZON), olr.one_cycle_schedule(RATE, HORIZON)
    chain = optax.adam(schedule)
    train = training_step(problem, lambda _: chain)
    step = jax.jit(lambda params, state, batch: train(params, state, None, batch), donate_argnums=(0, 1))

    def runs() -> None:
        for _ in range(max(1, round(given.budget))):
            assert np.isfinite(train_by_hand(problem, step, chain.init(problem.params))).all()

    search = functools.partial(
        olr.lr_find, problem.loss, problem.params, optax.adam, problem.batches,
        horizon=HORIZON, budget=given.budget, progress=False,
    )  # fmt: skip
    rounds = [(seconds_of(search), seconds_of(runs)) for _ in range(1 + given.rounds)]
    spent = rounds[0][0][1].lane_steps / HORIZON
    ratios = [ours / theirs for (ours, _), (theirs, _) in rounds]
    print(f"budget {given.budget:g}: {spent:.2f} runs of {HORIZON} steps")
    warm = statistics.median(theirs for _, (theirs, _) in rounds[1:])
    print(f"the runs by hand: {rounds[0][1][0]:.2f} s cold, {warm:.2f} s warm")
    print(f"lr_find over them: {ratios[0]:.2f} cold, {statistics.median(ratios[1:]):.2f} warm")


if __name__ == "__main__":
    main()
