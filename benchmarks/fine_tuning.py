"""Ways to fine-tune a pretrained text encoder of 22.7 million parameters on a few labeled texts, each at its own
best rate: from scratch, the head alone, one rate for all, the same from the head of a logistic regression, the head
at ten times, layer decay, discriminative rates with gradual unfreezing, LoRA, biases alone.

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
from typing import Any

import fine_tuning_ways as ways
import jax
import numpy as np
import optax
from fine_tuning_table import (
    BASE,
    PROBED,
    REGRESSION,
    Runs,
    in_short,
    is_good,
    rate_at,
    rows_of,
    said,
    table,
    whole,
)
from fine_tuning_ways import Data, Method, Size

import optax_lr as olr
import optax_lr.nnx
from optax_lr.finder.search import EveryLaneDivergedError

STORED = pathlib.Path(__file__).with_suffix(".json")
SIZES = {"quick": Size(6, 4, 8, 1, 2), "CPU": Size(16, 8, 8, 4, 5), "GPU": Size(64, 16, 16, 6, 5)}
# No more rates than these are tried on all seeds, and none is farther from the first guess: four decades.
MOST, FARTHEST = 7, 12


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
            if abs(place - guess) <= FARTHEST and str(seed) not in runs.get(str(place), {})
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
    """What the logistic regression on the frozen embeddings gives on the test texts."""
    loss, right = ways.judged(ways.probe(data, seed), data.of_seed(seed, on_features=True)[1]["test"])
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
    clock = "cpu_seconds" if on_cpu else "seconds"  # others may use the processor, too
    fresh = {"size": size._asdict(), "steps": size.steps, "clock": clock, "runs": {}}
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
    if "CPU" in kept and {BASE, "head alone", PROBED} <= rows_of(kept["CPU"]).keys():
        print(f"\n{said(kept['CPU'])}\n\n{in_short(kept['CPU'])}")


if __name__ == "__main__":
    main()
