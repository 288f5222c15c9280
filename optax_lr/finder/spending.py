"""What a search by budget may cost, as it was given and as it is counted in steps."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import checks
from ..engine.runs import PASSES_PER_STEP, Runs
from ..types import ScalarLike

# A schedule that is squeezed into fewer steps than this does not reach its peak.
SHORTEST = 4
MOST_SEEDS = 8
# What a search costs by default: so many runs of the horizon, or so many steps where those are more, up to so many
# runs.
USUAL_RUNS, USUAL_STEPS, USUAL_AT_MOST = 3, 10_000, 30


def usual_budget(horizon: int) -> float:
    """What a search costs where nothing is said, in runs of the horizon: three, and more where runs are short."""
    return float(np.clip(USUAL_STEPS / horizon, USUAL_RUNS, USUAL_AT_MOST))


class Spending(NamedTuple):
    """What a search may cost.

    Attributes:
      budget: in runs of `horizon` steps.
      horizon: the steps of the run to come.
      tolerance: the expected excess at which the search ends.
      max_rounds: how many rounds there may be, or None.
      looks: whether the loss without training takes a forward pass for each step of the longest run.
    """

    budget: float
    horizon: int
    tolerance: float = 0.0
    max_rounds: int | None = None
    looks: bool = False

    @property
    def steps(self) -> int:
        """The training steps that the search may make."""
        return math.floor(self.budget * self.horizon)

    def price_of_looking(self, longest: int) -> int:
        """What the loss of a seed without training costs at most, where the longest run has so many steps."""
        return -(-longest // PASSES_PER_STEP) if self.looks else 0

    @property
    def most_seeds(self) -> int:
        """On how many seeds one rate may run."""
        return int(np.clip(math.ceil(self.budget / 2), 2, MOST_SEEDS))


def spending(
    budget: ScalarLike | None,
    tolerance: ScalarLike | None,
    max_rounds: int | None,
    horizon: int | None,
    combinations: int,
    left_out: Mapping[str, Any],
    fewest: int | None = None,
    *,
    looks: bool = False,
) -> Spending | None:
    """What each of several combinations may cost; None without a budget.

    It must buy `fewest` steps for each: without it two of the shortest runs, and a look at their loss without
    training.

    Raises:
      ValueError: a number is out of range, the budget has no horizon, or what it decides was given, too.
    """
    if budget is None:
        for name, value in (("tolerance", tolerance), ("max_rounds", max_rounds)):
            if value is not None:
                raise ValueError(
                    f"{name} needs a budget: it says when a search by budget ends, got {value!r}."
                )
        return None
    whole = checks.concrete("budget", budget, above=0)
    for name, given in left_out.items():
        if given is not None:
            raise ValueError(f"budget decides {name}: leave it out, got {given!r}.")
    if horizon is None:
        raise ValueError("budget needs horizon, the steps of the run to come: it counts such runs.")
    least = 0.0 if tolerance is None else checks.concrete("tolerance", tolerance, minimum=0)
    rounds = (
        None if max_rounds is None else int(checks.steps("max_rounds", max_rounds, whole=True, unit="rounds"))
    )
    found = Spending(whole / combinations, horizon, least, rounds, looks)
    fewest = 2 * SHORTEST + found.price_of_looking(SHORTEST) if fewest is None else fewest
    if found.steps < fewest:
        each, of = (" for each combination", f" for {combinations}") if combinations > 1 else ("", "")
        raise ValueError(
            f"budget must buy {fewest} steps of training or more{each}, got {budget!r} runs of {horizon} steps{of}."
        )
    return found


def spent(runs: Runs, last: int, horizon: int) -> tuple[float, float]:
    """The price and the chain of the rounds up to the last, in runs of the horizon, as `Round` has them."""
    made = runs.where(round=range(last + 1))
    rounds, steps = made.columns["round"], made.columns["steps"]
    chain = sum(int(steps[rounds == which].max()) for which in np.unique(rounds))
    return made.price / horizon, chain / horizon
