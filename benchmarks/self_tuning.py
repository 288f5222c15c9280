"""Optimizers that tune themselves, at their papers' defaults, where `price.py` pays for a search.

    python benchmarks/self_tuning.py            # goes on with `self_tuning.json`, and prints the table
    python benchmarks/self_tuning.py --table    # the table alone

Each is trained for 1000 steps on problems of `problems.py`, on the starts and batches of the first three seeds of
`runs.json`, and judged by the validation loss at the end. Its excess is that of `finder_accuracy.py`: over the best
loss of its base optimizer, under one cycle at a tuned peak. What is built on Adam is compared with Adam; what is
gradient descent or has momentum, with momentum, the nearest that the benchmark knows. The problems are the cheap
ones of those whose case `runs.json` holds.

They have Optax's defaults, which follow their papers: Prodigy, D-Adaptation and Mechanic a rate of 1, which is
held, or falls to 0 as Optax's pages advise (along a line; for Mechanic after a warm-up, along a cosine);
schedule-free AdamW 0.0025, judged at its average; MoMo 1 at most and MoMo-Adam 0.01 at most; DoWG none. No rate is
searched: the price is one run, which is the run to come; that of a search is nothing.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from finder_accuracy import CUSTOMARY, HORIZON, LOST, TRUTH, Truth
from optax import contrib
from problems import Problem, problems
from runs import load, posed

STORED = pathlib.Path(__file__).with_name("self_tuning.json")
SEEDS = 3
# The problems that take seconds: linear, and MLPs.
PROBLEMS = (
    "diabetes, linear",
    "diabetes in its own unit, MLP",
    "breast cancer, MLP",
    "wine, MLP",
    "digits, MLP",
    "200 digits, MLP",
    "digits, deep MLP",
)
LINE = optax.linear_schedule(1.0, 0.0, HORIZON)
COSINE = optax.warmup_cosine_decay_schedule(0.0, 1.0, HORIZON // 20, HORIZON)


class Method(NamedTuple):
    """An optimizer, and that of the cases with which it is compared."""

    base: str
    optimizer: optax.GradientTransformation


METHODS: Mapping[str, Method] = {
    "Prodigy": Method("adam", contrib.prodigy()),
    "Prodigy, to 0": Method("adam", contrib.prodigy(LINE)),
    "D-Adaptation": Method("adam", contrib.dadapt_adamw()),
    "D-Adaptation, to 0": Method("adam", contrib.dadapt_adamw(LINE)),
    "Mechanic": Method("adam", contrib.mechanize(optax.adam(1.0))),
    "Mechanic, to 0": Method("adam", contrib.mechanize(optax.adam(COSINE))),
    "schedule-free AdamW": Method("adam", contrib.schedule_free_adamw()),
    "MoMo-Adam": Method("adam", contrib.momo_adam()),
    "MoMo": Method("momentum", contrib.momo()),
    "DoWG": Method("momentum", contrib.dowg()),
}


def evaluated_at(state: optax.OptState, params: Any) -> Any:
    """The parameters that are judged: the average of a schedule-free optimizer, else those that train."""
    averages = isinstance(state, contrib.ScheduleFreeState)
    return contrib.schedule_free_eval_params(state, params) if averages else params


def trained(
    problem: Problem, optimizer: optax.GradientTransformation, starts: Any, orders: jax.Array
) -> np.ndarray:
    """Validation losses at the end, [seeds], infinite where a run was lost; `orders` are [seeds, steps]."""
    told = optax.with_extra_args_support(optimizer)
    batches = jax.tree.map(jnp.asarray, problem.batches)

    def run(start: Any, order: jax.Array, batches: Any) -> jax.Array:
        def step(carry: tuple, at: jax.Array) -> tuple[tuple, None]:
            params, state = carry
            batch = jax.tree.map(lambda leaf: leaf[at], batches)
            loss, slopes = jax.value_and_grad(problem.loss_fn)(params, batch)
            updates, state = told.update(slopes, state, params, value=loss)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(step, (start, told.init(start)), order)
        return problem.loss_fn(evaluated_at(state, params), problem.eval_batch)

    losses = jax.jit(jax.vmap(run, in_axes=(0, 0, None)))(starts, orders, batches)
    return np.nan_to_num(np.asarray(losses, float), nan=np.inf, posinf=np.inf)


def start_of(case: str) -> tuple[Any, np.ndarray]:
    """The first seeds of the stored runs: what they start from, and the order of their batches."""
    whole = posed(case)
    starts = [whole.trainers[0].params(whole.data.start_of(seed)) for seed in range(SEEDS)]
    orders = np.stack([whole.data.order(seed, HORIZON) for seed in range(SEEDS)])
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts), orders


def cases_of(base: str) -> list[str]:
    """The cases with which optimizers of a base are compared."""
    return [f"{problem}, {base}" for problem in PROBLEMS]


def columns_of(each: Sequence[float]) -> list[float]:
    """The median, the 90th percentile and the worst."""
    return [float(np.median(each)), float(np.percentile(each, 90)), float(max(each))]


def scored(stored: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, tuple[int, list[float]]]:
    """By method: of how many cases, and the columns of the excess of its seeds' mean; a lost run counts LOST."""
    truths = {case: Truth(each) for case, each in json.loads(TRUTH.read_text()).items()}
    found = {}
    for name, losses in stored.items():
        each = [min(LOST, np.mean(seeds) / truths[case].best - 1) for case, seeds in losses.items()]
        found[name] = (len(each), columns_of(each))
    return found


def as_table(stored: Mapping[str, Mapping], others: Mapping[str, Mapping[str, list[float]]]) -> str:
    """Markdown: the methods of each base, and others on the same cases: their columns by name, by base."""
    lines = [
        "| base | method | cases | median | 90th percentile | worst |",
        "|---|---|---|---|---|---|",
    ]
    found = scored(stored)
    for base in dict.fromkeys(method.base for method in METHODS.values()):
        mine = {name: each for name, each in found.items() if METHODS[name].base == base}
        most = max(count for count, _ in mine.values())
        rows = mine | {name: (most, columns) for name, columns in others[base].items()}
        for name, (count, (median, tail, worst)) in rows.items():
            lines.append(f"| {base} | {name} | {count} | {median:.1%} | {tail:.0%} | {worst:.0%} |")
    return "\n".join(lines)


def customary(base: str) -> list[float]:
    """The columns of a customary rate, under one cycle, on the same cases."""
    truths = json.loads(TRUTH.read_text())
    return columns_of([Truth(truths[case]).excess(CUSTOMARY[base]) for case in cases_of(base)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="only these")
    parser.add_argument("--table", action="store_true", help="train nothing")
    parser.add_argument("--file", type=pathlib.Path, default=STORED)
    options = parser.parse_args()
    stored = load(options.file)
    if not options.table:
        for base in ("adam", "momentum"):
            for case in [case for case in cases_of(base) if options.only in case]:
                asked = [name for name in options.methods if METHODS[name].base == base]
                train(case, [name for name in asked if case not in stored.get(name, {})], stored)
                options.file.write_text(json.dumps(stored).replace("}, ", "},\n"))
    bases = {method.base for method in METHODS.values()}
    print(as_table(stored, {base: {"a customary rate": customary(base)} for base in bases}))


def train(case: str, names: Sequence[str], stored: dict[str, dict[str, list[float]]]) -> None:
    """Add the losses of methods on a case to what is stored."""
    if not names:
        return
    problem, (starts, orders) = problems()[case.rsplit(", ", 1)[0]](), start_of(case)
    for name in names:
        begin = time.perf_counter()
        losses = trained(problem, METHODS[name].optimizer, starts, orders)
        stored.setdefault(name, {})[case] = [float(f"{loss:.5g}") for loss in losses]
        print(f"{case:45s} {name:28s} {np.mean(losses):.4g}, {time.perf_counter() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
