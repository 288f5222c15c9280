"""Ways to fine-tune a pretrained text encoder of 22.7 million parameters on a few labeled texts, each at its own
best rate: from scratch, the head alone, one rate for all, the head at ten times, layer decay, discriminative rates
with gradual unfreezing, LoRA, biases alone.

All make the same number of Adam steps under one cycle; rates lie on one grid, a factor of 10^(1/3) apart. A seed
draws the labeled texts, their order, the head and what else is new; all ways see the same. The first seed finds the
region of the best rate, all seeds find the rate: that of the lowest mean validation loss, its neighbors tried, too.

    python benchmarks/fine_tuning.py             # what is missing in fine_tuning.json is run; then the tables
    python benchmarks/fine_tuning.py --table     # the tables of what is there

On a CPU it takes about an hour of one core (`taskset -c 0` keeps it there). On a GPU texts are longer, the rates of
a seed ride in one `vmap`, and it ends after 8 minutes. Each run is stored as it ends; the same command goes on from
there. Needs the extras `examples` and `minilm`.
"""

import argparse
import functools
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import fine_tuning_ways as ways
import jax
import numpy as np
import optax
from fine_tuning_ways import Data, Method, Size
from scipy import stats
from sklearn.linear_model import LogisticRegression

import optax_lr as olr
import optax_lr.nnx
from optax_lr.finder.search import EveryLaneDivergedError

STORED = pathlib.Path(__file__).with_suffix(".json")
SIZES = {"quick": Size(6, 4, 8, 1, 2), "CPU": Size(16, 8, 8, 4, 5), "GPU": Size(64, 16, 16, 6, 5)}
REGRESSION, BASE, PER_DECADE = "logistic regression", "one rate for all", 3
# How far from the best a rate is good: in accuracy, in loss. No more rates than these are tried on all seeds.
POINT, SHARE, MOST = 0.01, 0.02, 7


def loss_fn(model: Any, batch: Any) -> Any:
    inputs, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(model(inputs), labels).mean()


def judged(model: Any, held: Any) -> dict[str, Any]:
    """Loss and accuracy on what is held out; a rate is chosen by "loss", that of the validation texts."""
    found = {}
    for part, (inputs, labels) in held.items():
        logits = model(inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        found[part] = losses.mean(), (logits.argmax(-1) == labels).mean()
    (loss, right), (test_loss, test_right) = found["valid"], found["test"]
    return {"loss": loss, "accuracy": right, "test_loss": test_loss, "test_accuracy": test_right}


def rate_at(place: int) -> float:
    return float(10.0 ** (place / PER_DECADE))


Runs = dict[str, dict[str, dict[str, float]]]  # of a method: by place on the grid and seed


def missing(runs: Runs, guess: int, seeds: int, stage: int) -> list[tuple[int, int]]:
    """The runs, by place and seed, that a stage still asks for; none if it has ended.

    1: the first seed at every other rate, until the lowest loss lies inside. 2: all seeds at the best rate and its
    neighbors, until the lowest mean lies inside. 3: further rates, as long as those at the edges are good.
    """

    def lacking(places: Any, count: int) -> list[tuple[int, int]]:
        return [
            (place, seed)
            for place in places
            for seed in range(count)
            if str(seed) not in runs.get(str(place), {})
        ]

    if first := lacking((guess - 2, guess, guess + 2), 1):
        return first
    coarse = {int(place): each["0"]["loss"] for place, each in runs.items() if (int(place) - guess) % 2 == 0}
    best = min(coarse, key=lambda place: coarse[place])
    if beside := lacking((best - 2, best + 2), 1):
        return beside
    if stage == 1:
        return []
    if near := lacking((best - 1, best, best + 1), seeds):
        return near
    curve = whole(runs, seeds)
    best, low, high = min(curve, key=lambda place: curve[place][0]), min(curve), max(curve)
    if best in (low, high):
        return lacking([best - 1 if best == low else best + 1], seeds)
    if stage == 2 or len(curve) >= MOST:
        return []
    good = [end for end in (low, high) if is_good(curve[end], curve[best])]
    return lacking([end - 1 if end == low else end + 1 for end in good], seeds)


def is_good(here: np.ndarray, best: np.ndarray) -> bool:
    return bool(here[0] < best[0] * (1 + SHARE) or here[1] > best[1] - POINT)


def whole(runs: Runs, seeds: int) -> dict[int, np.ndarray]:
    """Mean validation loss and test accuracy at the rates that all seeds have, beside one another."""
    means = {
        int(place): np.mean([(run["loss"], run["test_accuracy"]) for run in each.values()], axis=0)
        for place, each in runs.items()
        if len(each) == seeds
    }
    return dict(sorted(means.items()))


def trained(
    data: Data, method: Method, places: list[int], seed: int, together: bool
) -> Iterator[tuple[int, dict[str, float]]]:
    """The runs of a seed at some rates."""
    batches, held = data.of_seed(seed, method.on_features)
    begun, spent = time.perf_counter(), time.process_time()
    lost = {"loss": 1e9, "accuracy": 0.0, "test_loss": 1e9, "test_accuracy": 0.0, "train_loss": 1e9}
    try:
        curve = olr.nnx.lr_sweep(
            loss_fn,
            method.start(data, seed),
            method.optimizer,
            batches,
            learning_rates=[rate_at(place) for place in places],
            wrt=method.wrt,
            schedule=functools.partial(one_cycle, data.size.steps),
            eval_batch=held,
            eval_fn=judged,
            stop_factor=np.inf,
            lanes_at_once=len(places) if together else "auto",
            progress=False,
        )
        columns = {"loss": curve.eval_losses, **curve.eval_metrics, "train_loss": curve.losses}
        ends = [{name: float(each[0, at, -1]) for name, each in columns.items()} for at in range(len(places))]
    except EveryLaneDivergedError:
        ends = [lost] * len(places)
    cost = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - spent}
    of_each = {name: value / len(places) for name, value in cost.items()}
    for place, end in zip(places, ends, strict=True):
        kept = end if all(map(np.isfinite, end.values())) else lost
        yield place, {name: round(value, 5) for name, value in {**kept, **of_each}.items()}


def one_cycle(steps: int, peak: Any) -> Any:
    """The schedule of all runs."""
    return olr.one_cycle_schedule(peak, steps)


def regression(data: Data, seed: int) -> dict[str, float]:
    """A logistic regression on the frozen embeddings, its penalty chosen by validation loss."""
    (x, y), held = data.of_seed(seed, on_features=True)
    x, y = x.reshape(-1, ways.minilm.WIDTH), y.reshape(-1)
    fits = [LogisticRegression(C=c, max_iter=1000).fit(x, y) for c in 10.0 ** np.arange(-5, 2)]

    def judged_by(fit: Any, part: str) -> tuple[float, float]:
        inputs, labels = held[part]
        found = fit.predict_log_proba(inputs)[np.arange(len(labels)), labels]
        return float(-found.mean()), float(fit.score(inputs, labels))

    best = min(fits, key=lambda fit: judged_by(fit, "valid")[0])
    loss, right = judged_by(best, "test")
    return {"test_loss": round(loss, 5), "test_accuracy": round(right, 5)}


def search(
    stored: dict[str, Any], only: list[str], together: bool, save: Callable[[], None], seconds: float
) -> None:
    """Run what is missing, the telling runs first, until all is there or the time is over."""
    size, runs = Size(**stored["size"]), stored["runs"]
    data, clock = Data(size), time.perf_counter if together else time.process_time
    last = clock() + seconds
    stored[REGRESSION] = {str(seed): regression(data, seed) for seed in range(size.seeds)}
    for stage in (1, 2, 3):
        left = {name: method for name, method in ways.methods(size.steps).items() if not only or name in only}
        while left:
            for name, method in list(left.items()):
                mine = runs.setdefault(name, {})
                asked = missing(mine, method.guess, size.seeds, stage)
                if not asked:
                    del left[name]
                elif together and not mine:
                    near = range(method.guess - MOST // 2, method.guess + MOST // 2 + 1)
                    asked = [(place, seed) for seed in range(size.seeds) for place in near]
                for seed in sorted({seed for _, seed in asked}):
                    if clock() > last:
                        return
                    places = sorted({place for place, one in asked if one == seed})
                    for place, run in trained(data, method, places, seed, together):
                        mine.setdefault(str(place), {})[str(seed)] = run
                        print(f"{name}, {rate_at(place):.2g}, seed {seed}: {run}", flush=True)
                    save()


class Row(NamedTuple):
    """What a method gave at its best rate; an interval is half of its width.

    Attributes:
      over_base: points of accuracy above one rate for all, paired.
      good_loss, good_accuracy: the factor between the lowest and the highest good rate, and whether its ends were
        seen.
      steps: training steps of a lane in a second, with its share of what evaluates and compiles.
    """

    rate: float
    accuracy: tuple[float, float]
    loss: tuple[float, float]
    over_base: tuple[float, float]
    good_loss: tuple[float, bool]
    good_accuracy: tuple[float, bool]
    steps: float


def interval(values: Any) -> tuple[float, float]:
    """Mean over seeds, and half of its 95% interval by Student's t."""
    count = len(values)
    half = stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / count**0.5
    return float(np.mean(values)), float(half)


def breadth(curve: dict[int, np.ndarray], best: int, column: int) -> tuple[float, bool]:
    """How far apart the rates next to the best are at which a column leaves what is good, in between by a line."""
    places = np.array(list(curve))
    values = np.array([each[column] for each in curve.values()])
    bad = values / values[best] - 1 - SHARE if column == 0 else values[best] - values - POINT
    ends, seen = [], True
    for step in (-1, 1):
        at = best
        while 0 <= at + step < len(bad) and bad[at + step] < 0:
            at += step
        inside = 0 <= at + step < len(bad)
        share = bad[at] / (bad[at] - bad[at + step]) if inside else 0.0
        ends.append(places[at] + step * share)
        seen &= inside
    return rate_at(ends[1] - ends[0]), seen


def best_of(stored: dict[str, Any], name: str) -> tuple[int, dict[str, np.ndarray]]:
    """The best rate of a method, and what all seeds gave there by name."""
    seeds = stored["size"]["seeds"]
    curve = whole(stored["runs"][name], seeds)
    best = min(curve, key=lambda place: curve[place][0])
    runs = [stored["runs"][name][str(best)][str(seed)] for seed in range(seeds)]
    return best, {key: np.array([run[key] for run in runs]) for key in ("test_accuracy", "test_loss")}


def rows_of(stored: dict[str, Any]) -> dict[str, Row]:
    """The methods that all seeds have, each at its best rate."""
    seeds, found = stored["size"]["seeds"], {}
    known = [name for name in ways.methods(stored["steps"]) if whole(stored["runs"].get(name, {}), seeds)]
    base = best_of(stored, BASE)[1]["test_accuracy"] if BASE in known else np.full(seeds, np.nan)
    for name in known:
        best, columns = best_of(stored, name)
        curve, right = whole(stored["runs"][name], seeds), columns["test_accuracy"]
        took = [run["seconds"] for each in stored["runs"][name].values() for run in each.values()]
        found[name] = Row(
            rate_at(best),
            interval(right),
            interval(columns["test_loss"]),
            interval(right - base),
            breadth(curve, list(curve).index(best), 0),
            breadth(curve, list(curve).index(best), 1),
            stored["steps"] / float(np.median(took)),
        )
    return found


def table(stored: dict[str, Any]) -> str:
    """The methods in Markdown."""
    names = (
        "way|best rate|test accuracy|over one rate|test loss|good rates by loss|by accuracy|steps a second"
    )
    lines = [f"| {' | '.join(names.split('|'))} |", "|---" * 8 + "|"]
    frozen = [
        interval([run[key] for run in stored[REGRESSION].values()]) for key in ("test_accuracy", "test_loss")
    ]
    rows = {f"{REGRESSION}, frozen embeddings": ["", shares(*frozen[0]), "", numbers(*frozen[1]), "", "", ""]}
    for name, row in rows_of(stored).items():
        near = [
            f"{'' if seen else 'over '}{factor:.2g}x" for factor, seen in (row.good_loss, row.good_accuracy)
        ]
        more = "" if name == BASE else "{:+.1f} ± {:.1f}".format(*(100 * part for part in row.over_base))
        rows[name] = [
            f"{row.rate:.2g}", shares(*row.accuracy), more, numbers(*row.loss), *near, f"{row.steps:.3g}"
        ]  # fmt: skip
    return "\n".join([*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items())])


def said(stored: dict[str, Any]) -> str:
    """What the intervals tell, in sentences: which ways beat one rate for all, and which bowl is the flattest."""
    rows = {name: row for name, row in rows_of(stored).items() if name != BASE}
    frozen = np.array([run["test_accuracy"] for run in stored[REGRESSION].values()])
    gain = interval(best_of(stored, BASE)[1]["test_accuracy"] - frozen)
    above = [name for name, row in rows.items() if row.over_base[0] > row.over_base[1]]
    below = [name for name, row in rows.items() if row.over_base[0] < -row.over_base[1]]
    flat = max(rows, key=lambda name: rows[name].good_loss[0])
    counts = [
        f"{len(above)} are better than one rate for all by more than the noise of the seeds ({listed(above)})",
        f"{len(below)} are worse ({listed(below)})",
        f"and {len(rows) - len(above) - len(below)} cannot be told from it",
    ]
    return (
        f"Of {len(rows)} ways {', '.join(counts)}. One rate for all has {100 * gain[0]:+.1f} ± {100 * gain[1]:.1f} "
        f"points over a logistic regression on the frozen embeddings. The flattest bowl by loss is that of {flat}."
    )


def listed(names: list[str]) -> str:
    return "; ".join(names) or "none"


def shares(mean: float, half: float) -> str:
    return f"{mean:.1%} ± {half:.1%}"


def numbers(mean: float, half: float) -> str:
    return f"{mean:.3f} ± {half:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument(
        "--only", type=lambda names: names.split("; "), default=[], help="ways, parted by '; '"
    )
    parser.add_argument("--file", type=pathlib.Path, default=STORED)
    parser.add_argument(
        "--minutes", type=float, help="then it ends: of the processor, or on a GPU of the clock"
    )
    parser.add_argument(
        "--together", action="store_true", help="all rates of a seed in one vmap, as on a GPU"
    )
    parser.add_argument("--table", action="store_true", help="print what is stored, and run nothing")
    given = parser.parse_args()
    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    size = SIZES["quick" if given.quick else "CPU" if on_cpu else "GPU"]
    kept = json.loads(given.file.read_text()) if given.file.exists() else {}
    fresh = {"size": size._asdict(), "steps": size.steps, "runs": {}}
    stored = kept.setdefault("CPU" if on_cpu else device.device_kind, fresh)
    if stored["size"] != size._asdict():
        raise SystemExit(
            f"{given.file} holds runs of {stored['size']}, not of {fresh['size']}: name another --file"
        )

    def save() -> None:
        beside = given.file.with_suffix(".part")
        beside.write_text(json.dumps(kept, indent=1) + "\n")
        beside.replace(given.file)

    if not given.table:
        minutes = given.minutes or (60 if on_cpu else 8)
        search(stored, given.only, given.together or not on_cpu, save, 60 * minutes)
    for name, of_machine in kept.items():
        if of_machine["runs"]:
            print(f"\n{name}, {of_machine['steps']} steps:\n\n{table(of_machine)}")


if __name__ == "__main__":
    main()
