"""What `fine_tuning.py` stored, in a table and in words."""

from typing import Any, NamedTuple

import numpy as np
from scipy import stats

REGRESSION, BASE, PROBED = "logistic regression", "one rate for all", "linear probe, then fine-tune"
PER_DECADE = 3
# How far from the best a rate is good: in accuracy, in loss.
POINT, SHARE = 0.01, 0.02

Runs = dict[str, dict[str, dict[str, float]]]  # of a method: by place on the grid and seed


def rate_at(place: int) -> float:
    return float(10.0 ** (place / PER_DECADE))


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


class Row(NamedTuple):
    """What a method gave at its best rate; an interval is half of its width.

    Attributes:
      at_edge: whether a rate beside the best has not been run on all seeds.
      over_base: points of accuracy above one rate for all, paired.
      good_loss, good_accuracy: the factor between the lowest and the highest good rate, and whether its ends were
        seen.
      steps: training steps of a lane in a second (of a CPU: of one core), with its share of what evaluates and
        compiles.
    """

    rate: float
    at_edge: bool
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
    known = [name for name, runs in stored["runs"].items() if whole(runs, seeds)]
    base = best_of(stored, BASE)[1]["test_accuracy"] if BASE in known else np.full(seeds, np.nan)
    for name in known:
        best, columns = best_of(stored, name)
        curve, right = whole(stored["runs"][name], seeds), columns["test_accuracy"]
        took = [run[stored["clock"]] for each in stored["runs"][name].values() for run in each.values()]
        found[name] = Row(
            rate_at(best),
            best in (min(curve), max(curve)),
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
        more = "" if name == BASE else points(*row.over_base)
        best = f"{row.rate:.2g}{' (edge)' * row.at_edge}"
        rows[name] = [
            best, shares(*row.accuracy), more, numbers(*row.loss), *near, f"{row.steps:.3g}"
        ]  # fmt: skip
    return "\n".join([*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items())])


def said(stored: dict[str, Any]) -> str:
    """What the intervals tell, in sentences: which ways beat one rate for all, and whose bowl is the flattest."""
    every = rows_of(stored)
    rows = {name: row for name, row in every.items() if name != BASE}
    frozen = np.array([run["test_accuracy"] for run in stored[REGRESSION].values()])
    gains = {name: interval(best_of(stored, name)[1]["test_accuracy"] - frozen) for name in every}
    most = max(rows, key=lambda name: gains[name][0])
    above = [name for name, row in rows.items() if row.over_base[0] > row.over_base[1]]
    below = [name for name, row in rows.items() if row.over_base[0] < -row.over_base[1]]
    alike = [name for name in rows if name not in (*above, *below)]
    flat = max([*above, *alike], key=lambda name: rows[name].good_loss[0])
    return (
        f"Better than one rate for all by more than noise of the seeds: {listed(above)}. Worse: {listed(below)}. "
        f"Not to be told from it: {listed(alike)}. One rate for all has {points(*gains[BASE])} points over a "
        f"logistic regression on the frozen embeddings, {most} {points(*gains[most])}. By loss, {flat} has the "
        "flattest bowl of those that are not worse."
    )


def in_short(stored: dict[str, Any]) -> str:
    """The sentence of the README."""
    means = {name: row.accuracy[0] for name, row in rows_of(stored).items()}
    frozen = np.array([run["test_accuracy"] for run in stored[REGRESSION].values()])
    gain = interval(best_of(stored, PROBED)[1]["test_accuracy"] - frozen)
    return (
        f"On {stored['size']['shots']} labeled texts a class, each way at its own best rate, a pretrained encoder "
        f"gets to {means[BASE]:.1%} with one rate for all layers; {means['head alone']:.1%} with the head alone; "
        f"logistic regression on its frozen embeddings to {frozen.mean():.1%}, and fine-tuning that begins with "
        f"its head to {means[PROBED]:.1%}, {points(*gain)} points."
    )


def listed(names: list[str]) -> str:
    return "; ".join(names) or "none"


def shares(mean: float, half: float) -> str:
    return f"{mean:.1%} ± {half:.1%}"


def points(mean: float, half: float) -> str:
    return f"{100 * mean:+.1f} ± {100 * half:.1f}"


def numbers(mean: float, half: float) -> str:
    return f"{mean:.3f} ± {half:.3f}"
