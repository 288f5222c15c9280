"""What an answer costs: the excess loss of the rate that a budget buys, by `lr_find(budget=)` and by other ways.

    python benchmarks/price.py                     # from runs.json and finder_truth.json: minutes, no training
    python benchmarks/price.py --held-out --write  # the cases that nothing was tuned on; stores price.json
    python benchmarks/price.py --methods "lr_find(budget=)" --write     # its rows alone
    python benchmarks/price.py --picture           # docs/price.png, from what is stored

The methods are those of `price_methods.py`, replayed on the stored runs of `runs.py` and scored on their cases.
Optuna's rows stay as they are stored where Optuna is not installed (`optax-lr[bench]` has it).

Excess is that of `finder_accuracy.py`: over the best rate's mean loss, at most 9, which a lost run counts.
Price is in runs of 1000 steps: what was spent before the run to come.
"""

import argparse
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import self_tuning
from finder_accuracy import TRUTH, Truth
from price_methods import BUDGETS, METHODS, OURS, Answer, Table, runnable
from runs import held_out, load

STORED = pathlib.Path(__file__).with_name("price.json")
PICTURE = pathlib.Path(__file__).parents[1] / "docs" / "price.png"
COLUMNS = ("median", "90th percentile", "worst", "within 2x", "interval holds it", "price")
# Where the picture has what searches nothing, and the excess below which nothing is told apart.
NOTHING, LEAST = 0.025, 1e-3
TICKS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 9.0)
Rows = list[tuple[str, float, list[float]]]


class Scored(NamedTuple):
    """A method at a budget: the means of its columns over draws, and the excess of each draw and case."""

    method: str
    budget: float
    columns: list[float]
    excess: list[list[float]]


def score(answers: list[tuple[Truth, Answer]]) -> tuple[list[float], list[float]]:
    """The columns of a method at a budget on one draw, and the excess of each case."""
    excess = [truth.excess(found["rate"]) for truth, found in answers]
    within = [truth.within(found["rate"]) for truth, found in answers]
    held = [truth.held(found["low"], found["high"]) for truth, found in answers if "low" in found]
    covered = float(np.mean(held)) if held else float("nan")
    price = max(found["price"] for _, found in answers)
    return [*self_tuning.columns_of(excess), float(np.mean(within)), covered, price], excess


def measured(
    cases: list[str], methods: Sequence[str], draws: int, budgets: Sequence[float] | None
) -> Iterator[Scored]:
    """Methods at every budget that means something to them, on draws of the seeds."""
    stored, every = load(), json.loads(TRUTH.read_text())
    truths = {case: Truth(every[case]) for case in cases}
    tables = [{case: Table(case, stored[case], draw) for case in cases} for draw in range(draws)]
    for name in methods:
        method = METHODS[name]
        for price in method.budgets:
            if budgets is not None and price in BUDGETS and price not in budgets:
                continue
            each = [
                score([(truths[case], method.answer(table, price, draw)) for case, table in of_draw.items()])
                for draw, of_draw in enumerate(tables)
            ]
            columns = np.mean([columns for columns, _ in each], axis=0).tolist()
            yield Scored(name, price, columns, [excess for _, excess in each])


def as_table(rows: Rows) -> str:
    """The rows as Markdown."""
    lines = [f"| method | budget | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name, price, (median, tail, worst, within, held, cost) in rows:
        covered = "" if np.isnan(held) else f"{held:.0%}"
        columns = f"{median:.1%} | {tail:.0%} | {worst:.0%} | {within:.0%} | {covered} | {cost:.2f}"
        lines.append(f"| {name} | {price:g} | {columns} |")
    return "\n".join(lines)


def stored_rows(part: str) -> tuple[int, Rows]:
    """How many cases a stored part has, and its rows."""
    found = json.loads(STORED.read_text())[part]
    rows = [
        (name, price, [float("nan") if x is None else x for x in columns])
        for name, price, *columns in found["rows"]
    ]
    return len(found["cases"]), rows


def in_short(rows: Rows) -> str:
    """What each budget buys, for the README: ours, and the lowest median of the others at no higher price."""
    lines = [
        "| budget, in runs | median | 90th percentile | worst | within 2x | best median of others |",
        "|---|---|---|---|---|---|",
    ]
    others = [(columns[-1], columns[0], name) for name, _, columns in rows if not name.startswith("lr_find")]
    for name, price, (median, tail, worst, within, *_) in rows:
        if name == OURS:
            least, which = min(each[1:] for each in others if each[0] <= price)
            ours = f"{median:.1%} | {tail:.0%} | {worst:.0%} | {within:.0%}"
            lines.append(f"| {price:g} | {ours} | {least:.1%} ({which}) |")
    return "\n".join(lines)


def on_cases(cases: Sequence[str], prices: Sequence[float]) -> dict[str, list[float]]:
    """The median, the 90th percentile and the worst of our excess on any stored cases, means over draws."""
    parts, found = json.loads(STORED.read_text()).values(), {}
    asked = [case in cases for part in parts for case in part["cases"]]
    for price in prices:
        each = np.hstack([part["excess"][f"{OURS}, {price:g}"] for part in parts])[:, asked]
        columns = [self_tuning.columns_of(of_draw) for of_draw in each]
        found[OURS.replace("=", f"={price:g}")] = np.mean(columns, axis=0).tolist()
    return found


def draw(rows: Rows, tuned: Mapping[str, tuple[int, Sequence[float]]], figure: Any) -> None:
    """Median and 90th percentile of the excess over the price, in logs; what tunes itself searches nothing."""
    panels = figure.subplots(1, 2, sharey=True)
    for at, (panel, title) in enumerate(zip(panels, COLUMNS, strict=False)):
        for label, style in {method.label: method.style for method in METHODS.values()}.items():
            mine = [(columns[-1], columns[at]) for name, _, columns in rows if METHODS[name].label == label]
            price, excess = np.array(sorted(mine)).T if mine else ([], [])
            line = "-" if len({*price}) > 1 else "none"
            panel.plot(
                np.maximum(price, NOTHING), np.maximum(excess, LEAST), linestyle=line, label=label, **style
            )
        excess = [columns[at] for _, columns in tuned.values()]
        spread = NOTHING * np.geomspace(1.25, 2.0, len(excess))
        panel.plot(
            spread,
            np.maximum(excess, LEAST),
            "x",
            color="tab:pink",
            label="self-tuning optimizers, other cases",
        )
        panel.set(
            xscale="log", yscale="log", title=title, xlabel="price of the search, in runs of 1000 steps"
        )
        panel.set_xticks([NOTHING * 1.4, *BUDGETS], ["none", *(f"{price:g}" for price in BUDGETS)])
        panel.set_xticks([], minor=True)
        panel.axvline(NOTHING * 2.4, color="gray", linewidth=0.8)
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("excess loss")
    panels[0].set_yticks(TICKS, [f"{tick:.1%}" if tick < 0.01 else f"{tick:.0%}" for tick in TICKS])
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)


def picture(path: pathlib.Path) -> None:
    """The held-out cases, as a file."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(9, 5.4), layout="constrained")
    draw(stored_rows("held out")[1], self_tuning.scored(load(self_tuning.STORED)), figure)
    figure.savefig(path, dpi=110)


def write(part: str, cases: list[str], found: Sequence[Scored]) -> None:
    """Put rows among those that are stored; all others must be of the same cases."""
    known = json.loads(STORED.read_text()) if STORED.exists() else {}
    same = part in known and known[part]["cases"] == cases
    rows = {(name, price): columns for name, price, *columns in known[part]["rows"]} if same else {}
    excess = known[part]["excess"] if same else {}
    for name, price, columns, each in found:
        rows[name, price] = [round(x, 4) for x in columns]
        excess[f"{name}, {price:g}"] = [[round(x, 4) for x in of_draw] for of_draw in each]
    # What a method is no longer asked goes.
    order = [
        (name, price) for name, method in METHODS.items() for price in method.budgets if (name, price) in rows
    ]
    known[part] = {
        "cases": cases,
        "rows": [[*key, *rows[key]] for key in order],
        "excess": {(label := f"{name}, {price:g}"): excess[label] for name, price in order},
    }
    text = json.dumps(known).replace("NaN", "null").replace("], [", "],\n[").replace("]], ", "]],\n")
    STORED.write_text(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--held-out", action="store_true", help="the cases for the final table alone")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--budgets", type=float, nargs="+", help="in runs of 1000 steps; all by default")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=runnable(), metavar="NAME")
    parser.add_argument("--cases", type=int, default=1000, help="of how many cases at most")
    parser.add_argument(
        "--write", action="store_true", help=f"store the rows in {STORED.name}, and the picture"
    )
    parser.add_argument("--picture", action="store_true", help="the picture alone, of what is stored")
    options = parser.parse_args()
    if not options.picture:
        last = held_out()
        cases = [case for case in load() if (case in last) == options.held_out][: options.cases]
        found = list(measured(cases, options.methods, options.draws, options.budgets))
        part = "held out" if options.held_out else "design"
        print(f"{len(cases)} {part} cases\n\n{as_table([each[:3] for each in found])}")
        if options.write:
            write(part, cases, found)
    if options.write or options.picture:
        picture(PICTURE)


if __name__ == "__main__":
    main()
