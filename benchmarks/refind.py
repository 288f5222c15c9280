"""The rate to go on with: `lr_refind` in the middle of runs that began at ten times and a tenth of the best rate.

    python benchmarks/refind.py                    # the tables, from refind.json
    python benchmarks/refind.py --truth --answers  # trains, for some tens of minutes; truths that are stored stay

A run has 400 steps. It begins at ten times or at a tenth of the best constant rate (the lowest mean loss of 3
seeds, of half octaves), and after 10%, 25% or 50% of its steps `lr_refind` is asked for the rate of the rest, from
the state that each seed is in. Where ten times that rate diverges, the run begins at the highest half octave below
that does not. The rest goes on at the answer in two ways: at it to the end ("constant"), or at it for four fifths
of what is left and then linearly to zero ("decaying"). The score is the validation loss at the end, the mean of 3
seeds,

- over that of the best rate from there on, one for all seeds, of half octaves from 8 octaves below the present rate
  to 3 above (of a tenth: from 3 below to 8 above), minus 1: the *excess*;
- over that of going on at the present rate, minus 1: the *harm*.

Both are at most 9, which a lost run counts. Losses between the rates of the grid are interpolated in log-log, and
beyond its ends are those of the ends. The searches see the same rows of data in another order than the runs do.
Four of the eight problems, drawn by TEST before the first run, are only scored; all was chosen on the others.
"""

import argparse
import functools
import itertools
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from problems import BATCHES, OPTIMIZERS, problems

import optax_lr as olr

STORED = pathlib.Path(__file__).with_name("refind.json")
CASES = (
    ("digits, MLP", "momentum"),
    ("200 digits, MLP", "adam"),
    ("digits, deep MLP", "clipped adamw"),
    ("digits, autoencoder", "adam"),
    ("diabetes, linear", "momentum"),
    ("breast cancer, MLP", "lion"),
    ("wine, MLP", "clipped adamw"),
    ("digits, recurrence", "momentum"),
)
TEST = 29
STEPS, SEEDS = 400, 3
SHARES, FACTORS = (0.1, 0.25, 0.5), (10.0, 0.1)
# Half octaves: of the constant rates that a run may begin at, and around the present rate in its middle, most of
# them on the side of the best constant rate.
STARTS = np.arange(-16, 3.1, 0.5)
AROUND = {10.0: np.arange(-8, 3.1, 0.5), 0.1: np.arange(-3, 8.1, 0.5)}
# The share of the rest in which a decaying one falls to zero.
DECAY = 0.2
WORST = 9.0
# How many runs of a seed are trained side by side.
LANES = 24


def held_out() -> set[str]:
    """Half of the cases."""
    every = [", ".join(case) for case in CASES]
    return set(np.random.default_rng(TEST).permutation(every)[: len(every) // 2].tolist())


def constant(rates: np.ndarray, steps: int) -> np.ndarray:
    return np.broadcast_to(rates[:, None], (len(rates), steps))


def decaying(rates: np.ndarray, steps: int, share: float = DECAY) -> np.ndarray:
    """Constant, then linearly to zero: after the last step the rate would be 0."""
    left = steps - np.arange(steps)
    return rates[:, None] * np.minimum(1.0, left / max(1.0, share * steps))


WAYS: Mapping[str, Callable[[np.ndarray, int], np.ndarray]] = {"constant": constant, "decaying": decaying}


class Case:
    """A problem, its runs and their states; every run is a loop over steps of this file's own."""

    def __init__(self, name: str, optimizer: str):
        self.problem, self.optimizer = problems()[name](), OPTIMIZERS[optimizer]
        params = jax.vmap(self.problem.init)(jax.random.split(jax.random.key(7), SEEDS))
        # The state of an optimizer whose rate is a number: none of these keeps it.
        self.start = params, jax.vmap(self.optimizer(0.1).init)(params)

    def order(self, seed: int) -> np.ndarray:
        """Which batches a run reads."""
        return np.random.default_rng([seed, 1]).permutation(BATCHES)[:STEPS]

    def train(self, start: Any, tables: np.ndarray, begin: int) -> tuple[Any, np.ndarray]:
        """The states [seeds, lanes, ...] and validation losses [lanes, seeds] after runs from step `begin` on."""
        steps, parts = tables.shape[1], []
        orders = np.stack([np.roll(self.order(seed), -begin) for seed in range(SEEDS)])
        for first in range(0, len(tables), LANES):
            some = tables[first : first + LANES]
            wide = np.pad(some, ((0, LANES - len(some)), (0, STEPS - steps)), mode="edge").astype(np.float32)
            parts.append(
                self._trained(start, wide, orders, steps, self.problem.batches, self.problem.eval_batch)
            )
        # The last part was filled up.
        whole = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1)[:, : len(tables)], *parts)
        carry, losses = whole
        return carry, np.nan_to_num(losses.astype(np.float64), nan=np.inf, posinf=np.inf).T

    @functools.cached_property
    def _trained(self) -> Callable[..., tuple[Any, jax.Array]]:
        """Compiled once: the number of steps is data."""

        def run(start, table, order, steps, batches, eval_batch):
            def step(at, carry):
                params, state = carry
                batch = jax.tree.map(lambda leaf: leaf[order[at]], batches)
                slopes = jax.grad(self.problem.loss_fn)(params, batch)
                updates, state = self.optimizer(table[at]).update(slopes, state, params)
                return optax.apply_updates(params, updates), state

            carry = jax.lax.fori_loop(0, steps, step, start)
            return carry, self.problem.loss_fn(carry[0], eval_batch)

        lanes = jax.vmap(run, (None, 0, None, None, None, None))
        return jax.jit(jax.vmap(lanes, (0, None, 0, None, None, None)))

    @functools.cached_property
    def first_losses(self) -> np.ndarray:
        """Losses of whole runs at constant rates, [STARTS, seeds]."""
        return self.train(self.start, constant(2.0**STARTS, STEPS), 0)[1]

    @functools.cached_property
    def best(self) -> float:
        """The octave of the best constant rate."""
        return float(STARTS[self.first_losses.mean(axis=1).argmin()])

    def present(self, factor: float) -> float:
        """The octave of the rate that a run begins at."""
        wanted = self.best + np.log2(factor)
        octaves = wanted - 0.5 * np.arange(20)
        if factor < 1:
            return float(wanted)
        survive = np.isfinite(self.train(self.start, constant(2.0**octaves, STEPS // 2), 0)[1]).all(axis=1)
        return float(octaves[int(survive.argmax())])

    def middle(self, octave: float, share: float) -> tuple[Any, int]:
        """The states [seeds, ...] of runs at a rate after a share of their steps, and after how many."""
        begin = round(share * STEPS)
        carry, _ = self.train(self.start, constant(np.array([2.0**octave]), begin), 0)
        return jax.tree.map(lambda leaf: leaf[:, 0], carry), begin


def spots() -> list[tuple[float, float]]:
    """The factors that runs begin at, and the shares after which they are asked."""
    return [(factor, share) for factor in FACTORS for share in SHARES]


def truth_of(case: Case) -> dict[str, Any]:
    """Losses at the end over the rates of the rest, by spot."""
    found: dict[str, Any] = {"best": case.best, "present": [case.present(factor) for factor in FACTORS]}
    for factor, share in spots():
        octave = found["present"][FACTORS.index(factor)]
        state, begin = case.middle(octave, share)
        rates = 2.0 ** (octave + AROUND[factor])
        found[spot_name(factor, share)] = {
            way: [
                [float(f"{loss:.5g}") for loss in of_rate]
                for of_rate in case.train(state, table(rates, STEPS - begin), begin)[1]
            ]
            for way, table in WAYS.items()
        }
    return found


def spot_name(factor: float, share: float) -> str:
    return f"{factor:g} at {share:.0%}"


METHODS: Mapping[str, Callable[[int], dict[str, Any]]] = {
    "50 steps": lambda left: {},
    **{f"budget {b}": lambda left, b=b: {"horizon": left, "budget": b} for b in (1, 3)},
    "budget 3, half decays": lambda left: {"horizon": left, "budget": 3, "decay_steps": left // 2},
}


def answers_of(case: Case, method: Callable[[int], dict[str, Any]]) -> dict[str, list]:
    """By spot, the rate that is found from the state of each seed, its interval's ends and its price in runs."""
    found: dict[str, list] = {}
    for factor, share in spots():
        octave = case.present(factor)
        (params, state), begin = case.middle(octave, share)
        for seed in range(SEEDS):
            mine = jax.tree.map(lambda leaf, seed=seed: leaf[seed], (params, state))
            order = np.random.default_rng([seed, 2]).permutation(BATCHES)[:STEPS]
            batches = jax.tree.map(lambda leaf, order=order: leaf[order], case.problem.batches)
            again = olr.lr_refind(
                case.problem.loss_fn, mine[0], case.optimizer, batches, learning_rate=2.0**octave,
                opt_state=mine[1], eval_batch=case.problem.eval_batch, **method(STEPS - begin),
            )  # fmt: skip
            numbers = again.learning_rate, again.low, again.high, again.lane_steps / (STEPS - begin)
            found.setdefault(spot_name(factor, share), []).append([float(f"{x:.5g}") for x in numbers])
    return found


def loss_at(octaves: np.ndarray, losses: np.ndarray, rate: float) -> float:
    """The loss of a seed at a rate, interpolated in log-log; beside a lost one that of the nearest."""
    octave = float(np.clip(np.log2(rate), octaves[0], octaves[-1]))
    right = int(np.clip(np.searchsorted(octaves, octave), 1, len(octaves) - 1))
    if not np.isfinite(losses[right - 1 : right + 1]).all():
        return float(losses[np.abs(octaves - octave).argmin()])
    return float(np.exp(np.interp(octave, octaves, np.log(np.where(np.isfinite(losses), losses, 1.0)))))


def score(truth: Mapping[str, Any], spot: str, way: str, rates: Sequence[float]) -> tuple[float, float]:
    """The excess and the harm of rates, one for each seed."""
    factor = float(spot.split()[0])
    octaves = truth["present"][FACTORS.index(factor)] + AROUND[factor]
    losses = np.array(truth[spot][way])
    mine = np.mean([loss_at(octaves, losses[:, seed], rate) for seed, rate in enumerate(rates)])
    means = losses.mean(axis=1)
    going_on = means[np.flatnonzero(AROUND[factor] == 0)[0]]
    if not np.isfinite(mine):
        return WORST, WORST if np.isfinite(going_on) else 0.0
    return min(float(mine / means.min() - 1), WORST), min(float(mine / going_on - 1), WORST)


def load(path: pathlib.Path = STORED) -> dict[str, Any]:
    """What is stored: the truths and the answers of each method, by case."""
    return json.loads(path.read_text()) if path.exists() else {"truth": {}, "answers": {}}


COLUMNS = ("median excess", "90th percentile", "worst", "within 10%", "worst harm", "harm above 2%", "price")


def rows_of(stored: Mapping[str, Any], test: bool, way: str) -> list[tuple[str, list[float]]]:
    """By method, the columns over all spots of half of the problems; the price is the highest."""
    found = []
    for method in METHODS:
        answers = {
            case: of_case
            for case, of_case in stored["answers"].get(method, {}).items()
            if (case in held_out()) == test
        }
        pairs = [(case, spot, rows) for case, spots in answers.items() for spot, rows in spots.items()]
        if set(answers) != {case for case in stored["truth"] if (case in held_out()) == test}:
            continue  # others have been asked on other problems
        scores = [
            score(stored["truth"][case], spot, way, [row[0] for row in rows]) for case, spot, rows in pairs
        ]
        price = max(row[3] for _, _, rows in pairs for row in rows)
        found.append((method, columns(scores, price)))
    return found


def references(stored: Mapping[str, Any], test: bool, way: str) -> list[tuple[str, list[float]]]:
    """The columns of going on at the present rate, and of half an octave beside the best one: what noise leaves."""
    found: dict[str, list[tuple[float, float]]] = {"go on": [], "beside the best": []}
    for case, truth in stored["truth"].items():
        for factor, share in spots() if (case in held_out()) == test else ():
            spot, present = spot_name(factor, share), truth["present"][FACTORS.index(factor)]
            best = int(np.mean(truth[spot][way], axis=1).argmin())
            beside = [at for at in (best - 1, best + 1) if 0 <= at < len(AROUND[factor])]
            scores = [
                score(truth, spot, way, [2.0 ** (present + octave)] * SEEDS)
                for octave in (0.0, *AROUND[factor][beside])
            ]
            found["go on"].append(scores[0])
            found["beside the best"].append(tuple(np.mean(scores[1:], axis=0).tolist()))
    return [(name, columns(scores, 0.0)) for name, scores in found.items()]


def columns(scores: Sequence[tuple[float, float]], price: float) -> list[float]:
    """What is shown of the excess and harm of many answers."""
    excess, harm = np.array(scores).T
    tail, within = np.percentile(excess, 90), (excess <= 0.1).mean()
    shown = [np.median(excess), tail, excess.max(), within, harm.max(), (harm > 0.02).mean(), price]
    return [float(each) for each in shown]


def as_table(stored: Mapping[str, Any], test: bool, way: str) -> str:
    """The rows as Markdown."""
    lines = [f"| method | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for method, shown in [*references(stored, test, way), *rows_of(stored, test, way)]:
        median, tail, worst, within, harm, above, price = shown
        lines.append(
            f"| {method} | {median:.1%} | {tail:.0%} | {worst:.0%} | {within:.0%} | {harm:.1%} | {above:.0%} | "
            f"{price:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--truth", action="store_true", help="train over the grid of rates where none is stored"
    )
    parser.add_argument("--answers", nargs="*", metavar="METHOD", help="ask these methods again, or all")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--file", type=pathlib.Path, default=STORED)
    options = parser.parse_args()
    stored = load(options.file)
    asked = list(METHODS) if options.answers == [] else options.answers or []
    for name, optimizer in CASES if options.truth or asked else ():
        which = f"{name}, {optimizer}"
        if options.only not in which:
            continue
        begin, case = time.perf_counter(), Case(name, optimizer)
        if options.truth and which not in stored["truth"]:
            stored["truth"][which] = truth_of(case)
        for method in asked:
            stored["answers"].setdefault(method, {})[which] = answers_of(case, METHODS[method])
        options.file.write_text(json.dumps(stored).replace("}, ", "},\n"))
        print(f"{which:45s} {time.perf_counter() - begin:.0f} s", flush=True)
    known = [test for test in (False, True) if {case in held_out() for case in stored["truth"]} >= {test}]
    for test, way in itertools.product(known, WAYS):
        part = "problems to be scored alone" if test else "problems to choose on"
        print(f"\n{part}, {way}\n\n{as_table(stored, test, way)}")


if __name__ == "__main__":
    main()
