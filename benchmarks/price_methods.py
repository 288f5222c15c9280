"""The methods of `price.py`, replayed on the stored runs of `runs.py`: what each answers for a budget.

Ours is the policy of `lr_find(budget=)` itself, asked round by round, and that of the quick search, three seeds a
rate, whose lengths follow from `num_steps`: its price is what it took. The others:

- one ramp of 100 steps, read by fastai's rules (`ramps.py`);
- random search and a log grid over the bounds of a search: whole runs, of which the lowest last loss wins. A log
  grid of ten has runs that share the budget, so short ones;
- random search with asynchronous successive halving (Li et al. 2018, arXiv:1810.05934), by a factor of two at an
  eighth, a quarter and a half of the run;
- Optuna's TPE with its pruners: successive halving from an eighth of the run on, by its factor of four, and
  Hyperband from the first look on, by two. These did best on ten design cases; the others were starts at 31, 62
  and 125 steps and factors of two to four. What is lost is pruned; the run that the budget cuts off ends there;
- a customary rate, for nothing.

They take one seed a rate, and those that halve see full runs on their way. Draws are shifts of the seeds, and seeds
of what is drawn. Losses of a length that is not stored are those of the nearest one, and so are those of a rate:
half octaves around the best. Far from it, where rates are two octaves apart, losses are interpolated.
"""

import functools
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from finder_accuracy import CUSTOMARY, RAMP_RULES
from ramps import STEPS as RAMP_STEPS
from ramps import STORED as RAMPS
from runs import HORIZON, LENGTHS, LOOKS, load

from optax_lr.engine.runs import Plan, Reference, Runs
from optax_lr.finder import tables
from optax_lr.finder.budget import Budgeted
from optax_lr.finder.policy import AllDivergedError, Bounds, Policy
from optax_lr.finder.quick import Quick, quick_lengths
from optax_lr.finder.spending import Spending

BUDGETS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
# What buys no whole run means nothing to those that make no shorter ones.
WHOLE = tuple(price for price in BUDGETS if price >= 1)
# Ten runs are whole ones from ten on.
SHORT = tuple(price for price in BUDGETS if price < 10)
BOUNDS = Bounds(1e-6, 10.0)
OCTAVES = (float(np.log2(BOUNDS.low)), float(np.log2(BOUNDS.high)))
Answer = dict[str, float]


class Table:
    """The stored runs of a case, seeds shifted by a draw."""

    def __init__(self, case: str, stored: Mapping, draw: int):
        self.case = case
        self._octaves = {int(steps): np.array(values) for steps, values in stored["octaves"].items()}
        self._losses = {
            int(steps): np.roll(np.array(values, float), -draw, axis=1)
            for steps, values in stored["losses"].items()
        }
        # [rates, looks, seeds]
        self._looks = np.roll(np.array(stored["looks"], float), -draw, axis=2)
        self.untrained = self._losses[LENGTHS[0]][0]

    def loss(self, steps: int, octave: float, seed: int) -> float:
        """The last loss of a run."""
        length = min(LENGTHS, key=lambda known: abs(np.log(known / steps)))
        return _at(self._octaves[length], self._losses[length][:, seed], octave)

    def look(self, steps: int, octave: float, seed: int) -> float:
        """The loss of a full run on its way."""
        at = min(range(len(LOOKS) + 1), key=lambda at: abs([*LOOKS, HORIZON][at] - steps))
        return _at(self._octaves[HORIZON], self._looks[:, at, seed], octave)


def _at(octaves: np.ndarray, losses: np.ndarray, octave: float) -> float:
    """The loss at a rate: the nearest half octave's, or between coarse ones, in log-log."""
    nearest = int(np.abs(octaves - octave).argmin())
    right = int(np.clip(np.searchsorted(octaves, octave), 1, len(octaves) - 1))
    pair = losses[right - 1 : right + 1]
    inside = octaves[right - 1] < octave < octaves[right]
    if not inside or octaves[right] - octaves[right - 1] < 0.6 or not np.isfinite(pair).all():
        return float(losses[nearest])
    return float(np.exp(np.interp(octave, octaves[right - 1 : right + 1], np.log(pair))))


def by_budget(table: Table, price: float, draw: int) -> Answer:
    """`lr_find(budget=)`: its policy on the stored runs."""
    # Nothing trains here, so nobody reads the rates of the steps: those of one cycle would be compiled by length.
    return _replayed(Budgeted(BOUNDS, Spending(price, HORIZON), lambda steps: tables.constant), table)


def quick(num_steps: int, table: Table, price: float, draw: int) -> Answer:
    """`lr_find(num_steps=)` with a horizon: its policy on the stored runs; nothing where all diverged."""
    lengths = tuple(quick_lengths(num_steps, HORIZON))
    try:
        return _replayed(Quick(BOUNDS, lengths, HORIZON, 3, tables.constant), table)
    except AllDivergedError:
        return {"rate": float("inf"), "low": float("inf"), "high": float("inf"), "price": 0.0}


def _replayed(policy: Policy, table: Table) -> Answer:
    """What a policy answers on the stored runs."""
    runs = replay(policy, table)
    found = policy.answer(runs)
    return {"rate": found.learning_rate, "low": found.low, "high": found.high, "price": runs.price / HORIZON}


def replay(policy: Policy, table: Table) -> Runs:
    """The runs that a policy asks for, round by round, as they are stored."""
    seeds = len(table.untrained)
    runs = Runs(("loss",), ("loss",))
    reference = table.untrained[:, None].astype(np.float32)
    runs.reference = Reference(np.arange(seeds), {}, {"loss": reference}, (1,), 0)
    while (asked := policy.ask(runs)) is not None:
        _run(runs, asked.plan, table)
    return runs


def _run(runs: Runs, plan: Plan, table: Table) -> None:
    for row in map(int, runs.append(plan)):
        steps, seed = (int(runs.columns[name][row]) for name in ("steps", "seed"))
        loss = table.loss(
            steps, float(np.log2(runs.lanes["learning_rate"][row])), seed % len(table.untrained)
        )
        lost = not np.isfinite(loss)
        runs.evals["loss"][row, 0] = np.nan if lost else loss
        runs.metrics["loss"][row, :steps] = np.nan if lost else 1.0
        # A lost run costs its whole length here: the stored ones do not say when it was lost.
        runs.end(row, steps, steps - 1 if lost else -1, int(lost))


def random_search(table: Table, price: float, draw: int) -> Answer:
    """Whole runs at rates drawn over the bounds."""
    return _lowest(table, np.random.default_rng([7, draw]).uniform(*OCTAVES, int(price)), HORIZON)


def log_grid(table: Table, price: float, draw: int) -> Answer:
    """Whole runs at rates of one ratio, in the middles of equal parts of the bounds."""
    return _lowest(table, _middles(int(price)), HORIZON)


def short_grid(table: Table, price: float, draw: int) -> Answer:
    """A log grid of ten runs as long as the budget allows; of fewer where they would be shorter than any stored."""
    count = min(10, int(price * HORIZON) // LENGTHS[0])
    return _lowest(table, _middles(count), int(price * HORIZON) // count)


def _middles(count: int) -> np.ndarray:
    low, high = OCTAVES
    return low + (high - low) * (np.arange(count) + 0.5) / count


def _lowest(table: Table, octaves: np.ndarray, steps: int) -> Answer:
    losses = [table.loss(steps, octave, 0) for octave in octaves]
    return {"rate": float(2.0 ** octaves[int(np.argmin(losses))]), "price": len(octaves) * steps / HORIZON}


class Spent:
    """Runs that are looked at on their way, within a budget; which of them is best."""

    def __init__(self, table: Table, price: float):
        self._table, self.whole = table, round(price * HORIZON)
        self.left = self.whole
        # Of the runs that came farthest, the lowest.
        self._best = (0, np.inf, np.nan)

    def losses(self, octave: float, looks: tuple[int, ...]) -> Iterator[tuple[int, float]]:
        """How far a run is and its loss there, until it is lost, whole, or the budget spent."""
        made, loss = 0, 0.0
        while made < looks[-1] and np.isfinite(loss):
            steps = next(look for look in looks if look > made)
            if steps - made > self.left:
                self.left = 0
                return
            self.left, made = self.left - (steps - made), steps
            loss = self._table.look(steps, octave, 0)
            if np.isfinite(loss):
                self._best = min(self._best, (-steps, loss, octave))
            yield steps, loss

    def answer(self) -> Answer:
        return {"rate": 2.0 ** self._best[2], "price": (self.whole - self.left) / HORIZON}


def successive_halving(table: Table, price: float, draw: int) -> Answer:
    """Random search, asynchronous: a run goes on where it is in the better half of those that came as far."""
    looks = (125, 250, 500, HORIZON)
    seen = {steps: list[float]() for steps in looks}
    rng, spent = np.random.default_rng([8, draw]), Spent(table, price)
    while spent.left:
        for steps, loss in spent.losses(float(rng.uniform(*OCTAVES)), looks):
            seen[steps].append(loss)
            if loss > np.median(seen[steps]):
                break
    return spent.answer()


def tpe(pruner: str, table: Table, price: float, draw: int) -> Answer:
    """Optuna's TPE over the log of the rate, with a pruner of Optuna's."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    prune = {
        "successive halving": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=HORIZON // 8),
        "Hyperband": lambda: optuna.pruners.HyperbandPruner(LOOKS[0], HORIZON, reduction_factor=2),
    }[pruner]()
    # Hyperband draws its brackets by the name of the study.
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=draw), pruner=prune, study_name=f"draw {draw}"
    )
    spent, looks = Spent(table, price), (*LOOKS, HORIZON)
    while spent.left:
        trial, steps, loss = study.ask(), 0, np.inf
        for steps, loss in spent.losses(trial.suggest_float("octave", *OCTAVES), looks):
            trial.report(loss, steps)
            if steps < HORIZON and trial.should_prune():
                break
        if steps == HORIZON and np.isfinite(loss):
            study.tell(trial, loss)
        else:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    return spent.answer()


def ramp(rule: str, table: Table, price: float, draw: int) -> Answer:
    """One ramp of 100 steps, read by a rule."""
    rates = _ramps()[table.case][rule]
    return {"rate": rates[draw % len(rates)], "price": RAMP_STEPS / HORIZON}


@functools.cache
def _ramps() -> Mapping[str, Mapping]:
    return load(RAMPS)


def customary(table: Table, price: float, draw: int) -> Answer:
    """What people set."""
    return {"rate": CUSTOMARY[table.case.rsplit(", ", 1)[1]], "price": 0.0}


class Method(NamedTuple):
    """What answers, the budgets at which it is asked, and how the picture names and draws it."""

    answer: Callable[[Table, float, int], Answer]
    budgets: tuple[float, ...]
    label: str
    style: Mapping[str, Any]


OURS = "lr_find(budget=)"
METHODS: Mapping[str, Method] = {
    OURS: Method(by_budget, BUDGETS, OURS, {"color": "tab:blue", "marker": "o", "linewidth": 3, "zorder": 3}),
    **{
        f"lr_find(num_steps={steps})": Method(
            functools.partial(quick, steps), (price,), "lr_find, three seeds a rate",
            {"color": "tab:blue", "marker": "x"},
        )
        for steps, price in ((62, 11.0), (125, 20.0))
    },
    "TPE, successive halving": Method(
        functools.partial(tpe, "successive halving"), WHOLE, "Optuna's TPE, successive halving",
        {"color": "tab:orange", "marker": "s"},
    ),
    "TPE, Hyperband": Method(
        functools.partial(tpe, "Hyperband"), WHOLE, "Optuna's TPE, Hyperband", {"color": "tab:brown", "marker": "s"}
    ),
    "random search": Method(random_search, WHOLE, "random search", {"color": "tab:gray", "marker": "v"}),
    "random search, successive halving": Method(
        successive_halving, WHOLE, "random search, successive halving", {"color": "tab:green", "marker": "^"}
    ),
    "log grid": Method(log_grid, WHOLE, "log grid", {"color": "tab:red", "marker": "D"}),
    "log grid of ten": Method(
        short_grid, SHORT, "log grid of ten, short runs", {"color": "tab:purple", "marker": "d"}
    ),
    **{
        f"ramp, {rule.replace('_', ' ')}": Method(
            functools.partial(ramp, rule), (RAMP_STEPS / HORIZON,), "one ramp, five rules",
            {"color": "tab:olive", "marker": "P"},
        )
        for rule in RAMP_RULES
    },
    "a customary rate": Method(customary, (0.0,), "a customary rate", {"color": "tab:cyan", "marker": "*"}),
}  # fmt: skip


def runnable() -> list[str]:
    """The methods that can be replayed here: Optuna need not be installed."""
    known = importlib.util.find_spec("optuna") is not None
    return [name for name in METHODS if known or not name.startswith("TPE")]
