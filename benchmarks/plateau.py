"""Plateau control beside schedules that are set beforehand, each at its own best rate.

    python benchmarks/plateau.py            # what is missing in plateau.json is run; then the tables
    python benchmarks/plateau.py --tables   # the tables of what is there

The cases, their length, their seeds and the way to the best rate are those of `schedules.py`, and so are the runs
that it is compared with. A check reads the loss of the whole validation set, each `EPOCH` steps. The score is the
loss on the same set at the end.
"""

import argparse
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import schedules as bench
from problems import OPTIMIZERS, Problem

import optax_lr as olr

HERE = pathlib.Path(__file__).parent
EPOCH = 20
BESIDE = ("constant", "step decay", "cosine", "one-cycle")
# By name, the arguments of `reduce_on_plateau`.
WAYS: Mapping[str, Mapping[str, Any]] = {
    "plateau, x 0.5, patience 2": {"factor": 0.5, "patience": 2},
    "plateau, x 0.1, patience 5": {"factor": 0.1, "patience": 5},
}


class _State(NamedTuple):
    inner: Any
    loss: jax.Array
    step: jax.Array


def on_validation(
    problem: Problem, inner: optax.GradientTransformationExtraArgs
) -> optax.GradientTransformationExtraArgs:
    """`inner` with the validation loss as its `value`, measured anew each `EPOCH` steps, before the step."""

    def init(params: Any) -> _State:
        return _State(inner.init(params), jnp.float32(jnp.inf), jnp.int32(0))

    def update(updates: Any, state: _State, params: Any = None, **_: Any) -> tuple[Any, _State]:
        loss = jax.lax.cond(
            (state.step > 0) & (state.step % EPOCH == 0),
            lambda: jnp.float32(problem.loss_fn(params, problem.eval_batch)),
            lambda: state.loss,
        )
        scaled, after = inner.update(updates, state.inner, params, value=loss)
        return scaled, _State(after, loss, state.step + 1)

    return optax.GradientTransformationExtraArgs(init, update)


def under_control(problem: Problem, optimizer: str, steps: int, seeds: int) -> dict[str, Any]:
    """Every way at its best first rate."""

    def best(options: Mapping[str, Any]) -> dict[str, Any]:
        plateau = on_validation(problem, olr.reduce_on_plateau(**options, every=EPOCH))
        factory = lambda rate: optax.chain(OPTIMIZERS[optimizer](rate), plateau)  # noqa: E731
        return bench.at_best_peak(problem, factory, olr.constant_schedule, steps, seeds)

    return {way: best(options) for way, options in WAYS.items()}


def beside(cases: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """The cases with the runs of the schedules beside those under plateau control."""
    return {case: {**{name: others[case][name] for name in BESIDE}, **found} for case, found in cases.items()}


def against(cases: Mapping[str, Any]) -> str:
    """The table of cases: what plateau control costs over schedules, and its first rate over the constant one."""
    usual = ("constant", "cosine", "one-cycle")
    columns = [f"{way.split(', ')[1]}: over {name}" for way in WAYS for name in usual]
    lines = [f"| case | {' | '.join(columns)} | first rates |"]
    lines.append("|---" * (len(columns) + 2) + "|")
    for case, found in cases.items():
        loss = {name: float(np.mean(runs["losses"])) for name, runs in found.items()}
        cells = [f"{loss[way] / loss[name] - 1:+.1%}" for way in WAYS for name in usual]
        rates = ", ".join(f"{found[way]['peak'] / found['constant']['peak']:.2g}" for way in WAYS)
        lines.append(f"| {case} | {' | '.join(cells)} | {rates} |")
    return "\n".join(lines)


def main() -> None:
    schedules = json.loads((HERE / "schedules.json").read_text())
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--cases", nargs="*", default=list(schedules["cases"]), choices=list(schedules["cases"])
    )
    parser.add_argument("--file", type=pathlib.Path, default=HERE / "plateau.json")
    parser.add_argument("--tables", action="store_true", help="run nothing")
    given = parser.parse_args()
    if not given.tables:
        bench.run(given.file, given.cases, schedules["steps"], schedules["seeds"], under_control)
    cases = beside(json.loads(given.file.read_text())["cases"], schedules["cases"])
    print(bench.summary(cases), against(cases), sep="\n\n")


if __name__ == "__main__":
    main()
