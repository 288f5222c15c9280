"""How good a found learning rate is: the loss of the run that it was found for, over that of the best rate.

    python benchmarks/finder_accuracy.py           # the table
    python benchmarks/finder_accuracy.py --truth   # full runs over a fine grid of rates, stored beside this file

A case is a problem of `problems.py` with one of its optimizers; the run to come is 1000 steps under
`one_cycle_schedule`. The truth is the validation loss at its end, the mean of 3 seeds, at rates of ratio 2 and,
around the best, and from wherever the loss is within 10% of its own to the next rate where it is not, of ratio
2^(1/4). Rates of such a loss and those within a factor of 4 have 9 seeds; where these differ by more than 8%, such
rates and those within a factor of 2 have 27, and within one of 1.4, 81. What fewer seeds say is divided by what the
same seeds say of the best. The loss of a rate is the mean of its own and its two neighbors', and the best is the
lowest. Between rates of the grid losses are interpolated in log-log.

Columns: the median, the 90th percentile and the worst of the excess loss (a lost run counts ten times the best);
the share of cases within a factor of 2 of some rate whose loss is within 1% of the best; the share in which the
interval holds such a rate; training steps and seconds of a search, compilation included, in the median. Each is the
mean over draws of the searches' seeds, of which none is among the truth's, and where draws differ the worst has
their range behind it. The last row is the neighbor of the best rate on the grid: what noise leaves to be won.
"""

import argparse
import functools
import itertools
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
import optax
from problems import OPTIMIZERS, Problem, problems

import optax_lr as olr

HORIZON = 1000
SEEDS = 3
# How far from the best rate, in powers of two, which number of seeds is raised by how many more.
MORE_SEEDS = ((2, 3, 6), (1, 9, 18), (0.5, 27, 54))
# A rate whose loss is at most so many times the best's, on the seeds of both, is near it however far it is.
PLATEAU = 1.1
# Where the losses of the best rate's seeds differ by a smaller share of their mean, nine of them are enough.
AGREE = 0.08
TRUTH = pathlib.Path(__file__).with_name("finder_truth.json")


def schedule(peak):
    return olr.one_cycle_schedule(peak, HORIZON)


def full_runs(
    problem: Problem, optimizer: Callable[..., optax.GradientTransformation], rates, seeds: int, key: int
) -> np.ndarray:
    """Validation losses at the end, [rates, seeds]; infinite where a run was lost."""
    curve = olr.lr_sweep(
        problem.loss_fn,
        problem.init,
        optimizer,
        problem.batches,
        learning_rates=rates,
        num_steps=HORIZON,
        eval_batch=problem.eval_batch,
        schedule=schedule,
        seeds=seeds,
        key=jax.random.key(key),
        stop_factor=1e6,
        progress=False,
    )
    return np.nan_to_num(curve.eval_losses[..., -1].T.astype(np.float64), nan=np.inf, posinf=np.inf)


Runs = dict[float, np.ndarray]


def search_grid(run: Callable[..., np.ndarray]) -> Runs:
    """Losses by the exponents of rates: finer ones around the best, and worse ones far on both sides."""
    found: Runs = {}

    def add(exponents) -> float:
        new = [x for x in sorted(set(exponents)) if x not in found]
        if new:
            found.update(zip(new, run(2.0 ** np.array(new), SEEDS, key=1), strict=True))
        return min(found, key=lambda x: found[x].mean())

    best = add(np.arange(-16.0, 3.0, 2))
    while min(best - min(found), max(found) - best) < 4:
        best = add([min(found) - 2, max(found) + 2])
    best = add(best + np.array([-5, -3, -1, 1, 3]))
    best = add(best + np.arange(-2, 2.01, 0.25))
    add(best + np.arange(-1, 1.01, 0.25))
    return found


def find_truth(
    problem: Problem, optimizer: Callable[..., optax.GradientTransformation], stored: Mapping[str, list]
) -> dict[str, list]:
    """Rates and the losses of their seeds; what is `stored` of them is not run again."""
    run = functools.partial(full_runs, problem, optimizer)
    found = {
        round(4 * np.log2(rate)) / 4: np.array(losses, float)
        for rate, losses in zip(stored.get("rates", []), stored.get("losses", []), strict=True)
    } or search_grid(run)

    def best_rate() -> float:
        most = max(map(len, found.values()))
        return min(found, key=lambda x: found[x].mean() if len(found[x]) == most else np.inf)

    def on_plateau(x: float, best: float) -> bool:
        same = min(len(found[x]), len(found[best]))
        return found[x][:same].mean() <= PLATEAU * found[best][:same].mean()

    def around_best(near: float, few: int) -> list[float]:
        """Rates near the best that have so few seeds; none where the seeds of the best agree."""
        best = best_rate()
        if few > SEEDS and found[best].std() < AGREE * found[best].mean():
            return []
        return sorted(
            x for x in found if len(found[x]) == few and (abs(x - best) <= near or on_plateau(x, best))
        )

    def gaps() -> list[float]:
        """What a finer grid has between two neighbors of which one is near the best."""
        best = best_rate()
        pairs = [pair for pair in itertools.pairwise(sorted(found)) if any(on_plateau(x, best) for x in pair)]
        return [x for low, high in pairs for x in np.arange(low + 0.25, high, 0.25)]

    if between := gaps():
        found |= zip(between, run(2.0 ** np.array(between), SEEDS, key=1), strict=True)

    for key, (near, few, more) in enumerate(MORE_SEEDS, 2):
        while rates := around_best(near, few):
            ran = run(2.0 ** np.array(rates), more, key=key)
            found |= {x: np.append(found[x], losses) for x, losses in zip(rates, ran, strict=True)}
    exponents = sorted(found)
    return {
        "rates": [float(f"{2.0**x:.6g}") for x in exponents],
        "losses": [[float(f"{loss:.5g}") for loss in found[x]] for x in exponents],
    }


CUSTOMARY = {"momentum": 0.1, "adam": 1e-3, "lion": 1e-4, "clipped adamw": 1e-3}
RAMP_RULES = ("steepest", "valley", "slide", "minimum_over_ten", "before_rise")


def searches(problem: Problem, name: str, draw: int) -> dict[str, dict[str, float]]:
    """What every method says of a case on a draw of seeds, and what that cost."""
    key = jax.random.key(1000 * draw)
    arguments = (problem.loss_fn, problem.init, OPTIMIZERS[name], problem.batches)
    found = {}

    def timed(row: str, search: Callable[[], olr.Suggestion]) -> None:
        start = time.perf_counter()
        said = search()
        found[row] = {
            "rate": said.learning_rate,
            "low": said.low,
            "high": said.high,
            "steps": said.lane_steps,
            "seconds": time.perf_counter() - start,
        }

    options = {"eval_batch": problem.eval_batch, "horizon": HORIZON, "key": key, "progress": False}
    timed("default", lambda: olr.lr_find(*arguments, **options))
    for steps in (50, 100, 200):
        timed(
            f"quick, {steps} steps", lambda steps=steps: olr.lr_find(*arguments, num_steps=steps, **options)
        )
    timed("scheduled", lambda: olr.lr_find(*arguments, schedule=schedule, seeds=3, **options))
    start = time.perf_counter()
    ramp = olr.lr_range_test(*arguments, key=key, progress=False)
    seconds = time.perf_counter() - start
    # As fastai cuts it.
    curve = ramp.take(slice(10, -5))
    for rule in RAMP_RULES:
        row = f"ramp, {rule.replace('_', ' ')}"
        timed(row, lambda rule=rule: getattr(olr.suggest, rule)(curve))
        found[row].update(steps=ramp.lane_steps, seconds=seconds)
    found["a customary rate"] = {"rate": CUSTOMARY[name], "steps": 0, "seconds": 0.0}
    return found


def beside_the_best(truth: "Truth") -> dict[str, float]:
    """A rate of one who knows the truth, but for one step of its grid: what noise and rounding leave to be won."""
    return {"rate": truth.best_rate / 2**0.25, "steps": 0, "seconds": 0.0}


class Truth:
    """The stored runs of a case: the loss of each rate, infinite where a run was lost, and the best."""

    def __init__(self, stored: Mapping[str, list]):
        self.rates = np.array(stored["rates"])
        seeds = np.array([len(losses) for losses in stored["losses"]])
        means = np.array([np.mean(losses) for losses in stored["losses"]])
        # The few seeds of the other rates may all be harder than the rest: they are compared with their like.
        best = int(np.argmin(np.where(seeds == seeds.max(), means, np.inf)))
        around = [runs for runs in stored["losses"][best - 1 : best + 2] if np.isfinite(runs).all()]

        def first(n: int) -> float:
            return np.mean([np.mean(losses[:n]) for losses in around])

        each = means * first(seeds.max()) / np.array([first(n) for n in seeds])
        triples = np.lib.stride_tricks.sliding_window_view(each, 3).mean(axis=1)
        fine = (self.rates[2:] < 1.5 * self.rates[:-2]) & np.isfinite(triples)
        self.losses = np.append(np.append(each[0], np.where(fine, triples, each[1:-1])), each[-1])
        self.best = triples.min()
        self.best_rate = self.rates[1 + np.argmin(triples)]
        self.good = np.append(self.rates[self.losses <= 1.01 * self.best], self.best_rate)

    def excess(self, rate: float) -> float:
        """By how much the loss at a rate is above the best, as a share of it."""
        right = np.searchsorted(self.rates, rate)
        if right == len(self.rates):
            return LOST
        left = max(0, right - 1)
        if not np.isfinite(self.losses[[left, right]]).all():
            # Between a run and a lost one: the nearer of both.
            nearer = left if rate**2 < self.rates[left] * self.rates[right] else right
            loss = self.losses[nearer]
        else:
            loss = np.exp(np.interp(np.log(rate), np.log(self.rates), np.log(self.losses)))
        return min(LOST, loss / self.best - 1)

    def within(self, rate: float) -> bool:
        return bool((np.abs(np.log2(self.good / rate)) <= 1).any())

    def held(self, low: float, high: float) -> bool:
        return bool(((self.good >= low) & (self.good <= high)).any())


# A lost run counts ten times the best.
LOST = 9.0


def table(truths: Mapping[str, Mapping], results: Mapping[str, list[Mapping]]) -> list[str]:
    """The rows, as Markdown."""
    rows = [
        "| method | median | 90th percentile | worst | within 2x | interval holds it | steps | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    known = {case: Truth(truths[case]) for case in results}
    draws = min(map(len, results.values()))

    def columns_of(method: str, draw: int) -> list[float]:
        return scores(
            [(best, results[case][draw].get(method) or beside_the_best(best)) for case, best in known.items()]
        )

    for method in [*next(iter(results.values()))[0], "the best rate / 1.19"]:
        columns = np.array([columns_of(method, draw) for draw in range(draws)])
        median, tail, worst, within, held, steps, seconds = columns.mean(axis=0)
        low, high = (f"{end(columns[:, 2]):.0%}" for end in (np.min, np.max))
        ends = "" if low == high else f" ({low} to {high})"
        covered = "" if np.isnan(held) or "ramp" in method else f"{held:.0%}"
        rows.append(
            f"| {method} | {median:.1%} | {tail:.1%} | {worst:.0%}{ends} | {within:.0%} | {covered} | "
            f"{steps:,.0f} | {seconds:.1f} |"
        )
    return rows


def scores(each: Sequence[tuple[Truth, Mapping]]) -> list[float]:
    """The columns of one method and one draw; NaN where it gives no interval."""
    excess = [truth.excess(found["rate"]) for truth, found in each]
    within = np.mean([truth.within(found["rate"]) for truth, found in each])
    held = [truth.held(found["low"], found["high"]) for truth, found in each if "low" in found]
    steps, seconds = (np.median([found[name] for _, found in each]) for name in ("steps", "seconds"))
    tail = np.percentile(excess, 90)
    return [np.median(excess), tail, max(excess), within, np.mean(held) if held else np.nan, steps, seconds]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--truth", action="store_true", help="run what the score is measured against, again")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--draws", type=int, default=3, help="how many draws of seeds")
    parser.add_argument("--results", type=pathlib.Path, help="a file to go on from, and to add results to")
    options = parser.parse_args()
    stored = json.loads(TRUTH.read_text()) if TRUTH.exists() else {}
    results = json.loads(options.results.read_text()) if options.results and options.results.exists() else {}
    for optimizer in OPTIMIZERS:
        for name, make in problems().items():
            case = f"{name}, {optimizer}"
            if options.only not in case:
                continue
            if options.truth:
                stored[case] = find_truth(make(), OPTIMIZERS[optimizer], stored.get(case, {}))
                TRUTH.write_text(json.dumps(stored, indent=0))
            elif case in stored:
                for draw in range(len(results.setdefault(case, [])), options.draws):
                    results[case].append(searches(make(), optimizer, draw))
                    if options.results:
                        options.results.write_text(json.dumps(results))
            if case in stored:
                best = Truth(stored[case])
                first = results.get(case, [{}])[0]
                said = [f"{row['rate'] / best.best_rate:.2g}" for row in first.values()]
                print(f"{case:45s} {best.best_rate:.3g} {best.best:.4g} {' '.join(said)}", flush=True)
    if not options.truth:
        print(f"\n{len(results)} cases\n", *table(stored, results), sep="\n")


if __name__ == "__main__":
    main()
