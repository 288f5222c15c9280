"""Whether searches hold on problems that they were not built on: 24 small ones of `wild_problems.py`.

    python benchmarks/wild.py                  # the table, from the stored results and what they lack
    python benchmarks/wild.py --table          # the table, of what is stored alone
    python benchmarks/wild.py --only tiny      # a part, such as one problem; parts may run side by side
    python benchmarks/wild.py --truth          # plain Optax runs at many rates, stored beside this file

Each problem is searched in five ways of `lr_find`: *constant* (100 steps), and for one cycle over 400 steps by
*default* (10,000 steps), by a *budget* of three runs, and by the recipes on three seeds, *quick* and *scheduled*;
and by `lr_refind` after 100 steps at a quarter of the best constant rate, for 50 more; with five keys.

The truth is plain Optax in a `lax.scan`: the validation loss at the end of such a run, above the problem's floor,
the mean over up to 64 seeds (starts, orders of batches, keys). A loss counts at most three times what it was before
training, a lost run so much. Rates are two octaves apart, then a half for three octaves on both sides of the best,
and then between the best and its neighbors as long as those differ by more than 1% and two standard errors.

An answer is run on the same seeds. Its *excess* is its loss over the best rate's, minus 1, less two standard errors
of the difference. Its interval *holds* where a rate in it is within 1%, or within two standard errors, of the best.
"""

import argparse
import itertools
import json
import pathlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from wild_parts import Wild
from wild_problems import PROBLEMS

import optax_lr as olr

HORIZON, CONSTANT_STEPS, REFIND_STEPS = 400, 100, 50
# What was trained before `lr_refind` is called, and at which share of the best constant rate.
BEFORE, SHARE = 100, 0.25
KEYS = 5
WAYS = ("constant", "default", "budget", "quick", "scheduled", "refind")
TRUTHS = {
    "constant": "constant",
    **dict.fromkeys(("default", "budget", "quick", "scheduled"), "one cycle"),
    "refind": "refind",
}
BUDGET, SEEDS = 3, 3
# The seeds of the truth are none of the searches'.
FIRST_SEED = 1000
WORST = 3.0
TRUTH = pathlib.Path(__file__).with_name("wild_truth.json")
RESULTS = pathlib.Path(__file__).with_name("wild_results.json")


def one_cycle(peak: Any) -> Callable:
    return olr.one_cycle_schedule(peak, HORIZON)


class Start(NamedTuple):
    """Where runs begin: with parameters (or a function that draws them) and a state of the optimizer, or None."""

    params: Any
    state: Any = None


def trained(
    problem: Wild, start: Start, schedule: Callable, steps: int
) -> Callable[[Any, jax.Array], tuple[Any, Any, Any]]:
    """`(rate, seed) -> (losses before and after, parameters, optimizer's state)` in plain Optax."""
    batches, valid = jax.tree.map(jnp.asarray, (problem.batches, problem.eval_batch))
    count = len(jax.tree.leaves(batches)[0])
    measure_key = jax.random.key(FIRST_SEED - 1)

    def measure(params: Any) -> jax.Array:
        keys = (measure_key,) if problem.with_key and problem.eval_fn is None else ()
        return (problem.eval_fn or problem.loss_fn)(params, valid, *keys) - problem.floor

    def run(rate: Any, seed: jax.Array) -> tuple[Any, Any, Any]:
        begin, order, noise = jax.random.split(jax.random.key(FIRST_SEED + seed), 3)
        passes = [jax.random.permutation(k, count) for k in jax.random.split(order, -(-steps // count))]
        optimizer = problem.optimizer(schedule(rate))
        params = start.params(begin) if callable(start.params) else start.params

        def step(carry: Any, now: Any) -> tuple[Any, None]:
            params, state = carry
            batch = jax.tree.map(lambda x: x[now[0]], batches)
            keys = (jax.random.fold_in(noise, now[1]),) if problem.with_key else ()
            updates, state = optimizer.update(jax.grad(problem.loss_fn)(params, batch, *keys), state, params)
            return (optax.apply_updates(params, updates), state), None

        state = optimizer.init(params) if start.state is None else start.state
        orders = jnp.concatenate(passes)[:steps], jnp.arange(steps)
        ended, state = jax.lax.scan(step, (params, state), orders)[0]
        return jnp.stack([measure(params), measure(ended)]), ended, state

    return run


class Truth:
    """The losses of one problem after runs of one kind, by rate: computed when asked for."""

    def __init__(self, problem: Wild, start: Start, schedule: Callable, steps: int) -> None:
        run, seeds = trained(problem, start, schedule, steps), jnp.arange(problem.seeds)
        self._run = jax.jit(lambda rate: jax.vmap(lambda seed: run(rate, seed)[0])(seeds))
        self._known: dict[float, np.ndarray] = {}

    def __getitem__(self, rate: float) -> np.ndarray:
        """What each seed ends with, at most three times what it began with."""
        if rate not in self._known:
            before, after = np.asarray(self._run(jnp.float32(rate)), np.float64).T
            self._known[rate] = np.minimum(np.where(np.isfinite(after), after, np.inf), WORST * before)
        return self._known[rate]

    @property
    def best(self) -> float:
        """The best of the rates that were asked for."""
        return min(self._known, key=lambda rate: self[rate].mean())

    def refine(self) -> None:
        """Ask for rates until those beside the best are as good, or a 16th of an octave away."""
        for exponent in np.arange(-24.0, 10, 2):
            self[2.0**exponent]
        center = np.log2(self.best)
        for exponent in center + np.arange(-3, 3.5, 0.5):
            self[2.0**exponent]
        width = 0.25
        while width >= 1 / 16:
            best = self.best
            # Where the best moves, its new neighbors are as near as those of the old one.
            new = [r for r in (best * 2**-width, best * 2**width) if not self.near(r)]
            over = [excess(self[rate], self[best]) for rate in new]
            if all(abs(mean) < max(0.01, 2 * noise) for mean, noise in over) and width < 0.25:
                break
            width = width if self.best != best else width / 2

    def near(self, rate: float) -> bool:
        """Whether a rate was asked for."""
        return any(abs(np.log2(rate / known)) < 1e-3 for known in self._known)

    def stored(self) -> dict[str, Any]:
        """Best rate, its losses by seed, and of every rate the excess and its standard error."""
        best = self.best
        grid = [[rate, *(float(f"{x:.4g}") for x in excess(self[rate], self[best]))] for rate in self._known]
        losses = [float(f"{x:.8g}") for x in self[best]]
        return {"best": best, "losses": losses, "grid": sorted(grid)}


def excess(losses: np.ndarray, best: np.ndarray) -> tuple[float, float]:
    """How far a rate's losses are above the best's, as a share, and its standard error; seeds are paired."""
    difference = losses - best
    error = difference.std(ddof=1) / np.sqrt(len(best)) if len(best) > 1 else 0.0
    unit = max(float(best.mean()), 1e-30)
    return float(difference.mean()) / unit, float(error) / unit


def after(problem: Wild, best: float) -> tuple[Start, float]:
    """The state that `lr_refind` is given, and the rate that led there."""
    now = SHARE * best
    run = jax.jit(trained(problem, Start(problem.params), lambda rate: rate, BEFORE))
    _, params, state = run(jnp.float32(now), jnp.int32(-1))
    return Start(params, state), now


def truth_of(problem: Wild, kind: str, best: float | None = None) -> Truth:
    """The truth of a kind, nothing of it computed; that of `lr_refind` begins at the best constant rate."""
    if kind == "one cycle":
        return Truth(problem, Start(problem.params), one_cycle, HORIZON)
    if kind == "constant":
        return Truth(problem, Start(problem.params), lambda rate: rate, CONSTANT_STEPS)
    assert best is not None
    return Truth(problem, after(problem, best)[0], lambda rate: rate, REFIND_STEPS)


def searched(problem: Wild, way: str, key: int, best: float) -> olr.Suggestion:
    """One search."""
    common: dict[str, Any] = {
        "eval_batch": problem.eval_batch,
        "eval_fn": problem.eval_fn,
        "with_key": problem.with_key,
        "key": jax.random.key(key),
        "progress": False,
    }
    arguments = problem.loss_fn, problem.params, problem.optimizer, problem.batches
    match way:
        case "constant":
            return olr.lr_find(*arguments, **common)
        case "default":
            return olr.lr_find(*arguments, horizon=HORIZON, **common)
        case "budget":
            return olr.lr_find(*arguments, horizon=HORIZON, budget=BUDGET, **common)
        case "quick":
            return olr.lr_find(*arguments, horizon=HORIZON, seeds=SEEDS, **common)
        case "scheduled":
            return olr.lr_find(*arguments, horizon=HORIZON, schedule=one_cycle, seeds=SEEDS, **common)
    start, now = after(problem, best)
    return olr.lr_refind(
        problem.loss_fn,
        start.params,
        problem.optimizer,
        problem.batches,
        opt_state=start.state,
        learning_rate=now,
        num_steps=REFIND_STEPS,
        **common,
    )


def result(problem: Wild, way: str, key: int, truth: Truth, stored: Mapping[str, Any]) -> dict[str, Any]:
    """What a search answered, and how good that is."""
    known, constant = stored[TRUTHS[way]], stored["constant"]["best"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = searched(problem, way, key, constant)
        except Exception as error:
            return {"raised": f"{type(error).__name__}: {error}"}
    best = np.array(known["losses"])
    mean, error = excess(truth[found.learning_rate], best)
    inside = [x for rate, *x in known["grid"] if found.low <= rate <= found.high]
    # The ends are run where no rate between them is near the best.
    ends = (excess(truth[rate], best) for rate in (found.low, found.high))
    return {
        "rate": found.learning_rate,
        "low": found.low,
        "high": found.high,
        "excess": mean,
        "error": error,
        "holds": any(
            over <= max(0.01, 2 * noise) for over, noise in itertools.chain([(mean, error)], inside, ends)
        ),
        "at_edge": found.at_edge,
        "warnings": sorted({str(each.message) for each in caught}),
        "steps": found.lane_steps,
        "reason": found.reason,
    }


def beyond_noise(found: Mapping[str, Any]) -> float:
    """The excess of an answer that is beyond two standard errors of the truth."""
    return float(max(0.0, found["excess"] - 2 * found["error"]))


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """How much was searched, a row for each problem, and those of each way together, in Markdown."""
    every = {way: [found for name in PROBLEMS for _, found in of(results, name, way)] for way in WAYS}
    searches = [(name, way, key) for name in PROBLEMS for way in WAYS for key, _ in of(results, name, way)]
    problems, keys = len({name for name, _, _ in searches}), len({key for _, _, key in searches})
    rows = [
        f"{len(searches)} searches of {problems} problems, {keys} key{'s' if keys != 1 else ''} at most.",
        "",
    ]
    rows += ["| problem | " + " | ".join(WAYS) + " |", "|---|" + "---|" * len(WAYS)]
    for name in PROBLEMS:
        cells = [summary([found for _, found in of(results, name, way)]) for way in WAYS]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    ran = {way: found for way, found in every.items() if any("raised" not in one for one in found)}
    rows += ["", "| | " + " | ".join(ran) + " |", "|---|" + "---|" * len(ran)]
    columns = [totals(found) for found in ran.values()]
    for line in columns[0] if columns else ():
        rows.append(f"| {line} | {' | '.join(str(column[line]) for column in columns)} |")
    return "\n".join(rows)


def of(results: Mapping[str, Any], name: str, way: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The results of a problem and a way, by key."""
    for key in range(KEYS):
        if (found := results.get(f"{name} / {way} / {key}")) is not None:
            yield key, found


def summary(found: list[Mapping[str, Any]]) -> str:
    """The median excess, and the worst of several; how often it raised, missed with its interval, and warned."""
    answered = [one for one in found if "raised" not in one]
    over = [beyond_noise(one) for one in answered]
    said = [", ".join(f"{x:.0%}" for x in (np.median(over), max(over))[: len(over)])] if over else []
    missed = sum(not one["holds"] for one in answered)
    warned = sum(bool(one["warnings"]) for one in answered)
    counts = {"raised": len(found) - len(answered), "missed": missed, "warned": warned}
    return "; ".join(said + [f"{count} {word}" for word, count in counts.items() if count])


def totals(found: list[Mapping[str, Any]]) -> dict[str, Any]:
    """What searches are measured by."""
    answered = [one for one in found if "raised" not in one]
    over = np.array([beyond_noise(one) for one in answered])
    warned = np.array([bool(one["warnings"]) for one in answered])
    return {
        "searches": len(found),
        "raised": len(found) - len(answered),
        "median excess": f"{np.median(over):.1%}",
        "90th percentile": f"{np.percentile(over, 90):.1%}",
        "worst": f"{over.max():.0%}",
        "more than 10%": int((over > 0.1).sum()),
        "interval holds the best": f"{np.mean([one['holds'] for one in answered]):.0%}",
        "warned where within 10%": int((warned & (over <= 0.1)).sum()),
        "silent where off by 50%": int((~warned & (over > 0.5)).sum()),
        "training steps, median": int(np.median([one["steps"] for one in answered])),
    }


def make_truth(name: str) -> dict[str, Any]:
    """The three truths of a problem."""
    problem, found = PROBLEMS[name](), {}
    for kind in ("constant", "one cycle", "refind"):
        truth = truth_of(problem, kind, found["constant"]["best"] if found else None)
        truth.refine()
        found[kind] = truth.stored()
    return found


def read(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def store(path: pathlib.Path, new: Mapping[str, Any]) -> None:
    """Add to a file what is new; another process may have added to it in between."""
    both = dict(sorted({**read(path), **new}.items()))
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in both.items())
    beside = path.with_suffix(".new")
    beside.write_text(f"{{\n{lines}\n}}\n")
    beside.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--truth", action="store_true", help="make the truth anew, and no search")
    parser.add_argument("--table", action="store_true", help="what is stored, and no search")
    parser.add_argument("--only", nargs="+", default=list(PROBLEMS), choices=PROBLEMS, metavar="PROBLEM")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--keys", type=int, default=KEYS, help="how many keys")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS, help="where results are kept")
    chosen = parser.parse_args()
    for name in () if chosen.table else chosen.only:
        begun = time.perf_counter()
        if chosen.truth:
            store(TRUTH, {name: make_truth(name)})
            print(f"{name}: {time.perf_counter() - begun:.0f} s", flush=True)
            continue
        search_problem(name, chosen.ways, chosen.keys, chosen.results)
    if not chosen.truth:
        print(table(read(chosen.results)))


def search_problem(name: str, ways: list[str], keys: int, path: pathlib.Path) -> None:
    """Search one problem, but for what is known; each result is stored as it comes."""
    stored, done = read(TRUTH)[name], read(path)
    missing = [(w, k) for w in ways for k in range(keys) if f"{name} / {w} / {k}" not in done]
    if not missing:
        return
    problem = PROBLEMS[name]()
    for way in dict.fromkeys(way for way, _ in missing):
        truth = truth_of(problem, TRUTHS[way], stored["constant"]["best"])
        for key in (k for w, k in missing if w == way):
            store(path, {f"{name} / {way} / {key}": result(problem, way, key, truth, stored)})


if __name__ == "__main__":
    main()
