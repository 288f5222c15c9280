"""Their names and ours, and the same values: the tables of the page for those who come from another library."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optax

import optax_lr as olr

ROOT = pathlib.Path(__file__).parents[2]
STEPS = (0, 5, 10, 20, 29)


def oracles() -> dict[str, Any]:
    """What PyTorch, timm, Hugging Face and others gave, by the name of the case."""
    tests = ROOT / "tests"
    return {
        name: oracle["lr"]
        for file in ("oracles.json", "torch_oracles.json")
        for name, oracle in json.loads((tests / file).read_text()).items()
    }


def values(call: str) -> np.ndarray:
    """The rates of a schedule, written as one types it, at the first steps."""
    schedule = eval(call, {"olr": olr, "optax": optax})
    return np.array([float(schedule(step)) for step in range(STEPS[-1] + 1)])


def difference(ours: str, theirs: str | Sequence[float]) -> float:
    """The largest difference between the rates of both, over their largest.

    Raises:
      ValueError: it is more than a few roundings of float32.
    """
    found = values(ours)
    wanted = values(theirs) if isinstance(theirs, str) else np.asarray(theirs)[: len(found)]
    gap = float(np.abs(found - wanted).max() / wanted.max())
    if len(wanted) != len(found) or gap > 2e-6:
        raise ValueError(f"{ours} differs from what it should be by {gap:.1e}.")
    return gap


def table(rows: Sequence[tuple[str, str, str | None]], known: Mapping[str, Any]) -> str:
    """A line for each (their call, our call, where their values are: a case, a call of Optax, or nowhere)."""
    steps = ", ".join(map(str, STEPS))
    lines = [f"| theirs, and ours below | rates at steps {steps} | largest difference |", "|---|---|---|"]
    for theirs, ours, where in rows:
        found = ", ".join(f"{values(ours)[step]:.3g}" for step in STEPS)
        gap = "" if where is None else f"{difference(ours, known.get(where, where)):.0e}"
        lines.append(f"| `{theirs}`<br>`{ours}` | {found} | {gap} |")
    return "\n".join(lines)


def names(rows: Mapping[str, str]) -> str:
    """Their name, and what we have for it."""
    return "\n".join(
        ["| theirs | ours |", "|---|---|", *(f"| {theirs} | {ours} |" for theirs, ours in rows.items())]
    )
