"""The one loop of every search, and what is said where no run survives."""

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np
from jax.sharding import Mesh

from .. import checks
from ..engine.batches import power_of_two
from ..engine.engine import Engine
from ..engine.opening import Opening
from ..engine.reference import Wanted
from ..engine.runs import Judgment, Plan, Runs
from ..engine.session import Session
from ..engine.task import Form
from ..types import PyTree
from .curve import LRCurve
from .inputs import Posed
from .optimizer import TABLE
from .outcomes import nothing_learned
from .policy import AllDivergedError, Policy
from .problem import Problem, problem_of
from .suggestion import Suggestion
from .training import TakesNumbersOnlyError, Trainer


class Options(TypedDict, total=False):
    """What every finder takes beside its own arguments: the form of the loss, see `Problem`, and where the search
    runs, see `Engine`; each by itself, or all of one kind in a value (`Problem` in place of the loss, `engine`)."""

    with_key: bool
    has_aux: bool
    eval_fn: Callable[..., Any] | None
    engine: Engine
    lanes_at_once: int | Literal["auto"]
    mesh: Mesh | None
    checkpoint: str | os.PathLike | None
    progress: bool
    on_round: Callable[[list[dict[str, Any]]], object] | None


_OF_PROBLEM = ("with_key", "has_aux", "eval_fn")
_OF_ENGINE = ("lanes_at_once", "mesh", "checkpoint", "progress", "on_round")


def given(
    loss_fn: Callable[..., Any] | Problem, with_state: bool, options: Mapping[str, Any]
) -> tuple[Problem, Engine]:
    """The problem and the engine that a finder was given.

    Raises:
      TypeError: an option is unknown.
      ValueError: one stands beside a value that holds it.
    """
    checks.not_traced("a search")
    for name in options:
        if name not in Options.__annotations__:
            known = Options.__annotations__
            raise TypeError(f"there is no option {name!r}: {checks.close_match(name, known)}")
    of_problem = {name: value for name, value in options.items() if name in _OF_PROBLEM}
    of_engine = {name: value for name, value in options.items() if name in _OF_ENGINE}
    engine = options.get("engine")
    if engine is not None and of_engine:
        raise ValueError(f"engine holds where a search runs: leave out {', '.join(sorted(of_engine))}.")
    return problem_of(loss_fn, with_state, of_problem), engine or Engine(**of_engine)


def judgment_of(metric: str, mode: Literal["min", "max"], folds: int | None = None) -> Judgment:
    """By what runs are judged, as a finder was given it.

    Raises:
      ValueError: `mode` is neither "min" nor "max".
    """
    checks.choice("mode", mode, ("min", "max"))
    return Judgment(metric, mode, folds or 1)


def _refuse_unknown(metric: str, form: Form, problem: Problem) -> None:
    """Refuse a metric that nobody reports where runs are judged."""
    known = form.evals or form.metrics
    if metric not in known:
        judge = "validation (eval_fn)" if problem.eval_fn else "validation, which is loss_fn without eval_fn"
        who = judge if form.evals else "the loss (has_aux)"
        raise ValueError(f"metric={metric!r} is not reported by {who}: {checks.close_match(metric, known)}")


class EveryLaneDivergedError(RuntimeError):
    """No run of a search survived; XLA's own errors are of another kind."""


class Ended(NamedTuple):
    """A search that has ended.

    Attributes:
      runs: the rounds that were finished.
      placement: how lanes were laid out, in words.
      best: parameters and model state of the run that was kept, or None.
    """

    runs: Runs
    placement: str
    best: tuple[PyTree, PyTree] | None


def searched(posed: Posed, engine: Engine, opening: Opening, drive: Callable[[Session], None]) -> Ended:
    """Open a session and drive it. An optimizer that takes no schedule is handed numbers.

    Raises:
      KeyboardInterrupt: Ctrl-C before any round was finished.
    """
    *schedules, numbers = posed.trainers
    for trainer in schedules:
        with contextlib.suppress(TakesNumbersOnlyError):
            return _driven(trainer, posed, engine, opening, drive)
    return _driven(numbers, posed, engine, opening, drive)


def _driven(
    trainer: Trainer, posed: Posed, engine: Engine, opening: Opening, drive: Callable[[Session], None]
) -> Ended:
    task = trainer.task(evaluates=posed.data.eval_batch is not None)
    with engine.open(task, posed.data, opening) as session:
        _refuse_unknown(opening.judgment.metric, session.form, trainer.problem)
        session.finish(opening.description)
        drive(session)
        runs = session.runs.closed()
        if session.stopped and not len(runs):
            raise KeyboardInterrupt
        rows = list(session.kept)
        best = posed.carried(session.carry(rows[0])) if rows else None
        return Ended(runs, session.words, best)


def search(posed: Posed, policy: Policy, engine: Engine, opening: Opening) -> Suggestion:
    """Run a policy to its answer; interrupted, it answers from the rounds that were finished.

    Raises:
      RuntimeError: every run of a stage diverged.
      KeyboardInterrupt: Ctrl-C before there was an answer.
    """
    stopped: list[bool] = []

    def drive(session: Session) -> None:
        while not session.stopped and (asked := policy.ask(session.runs)) is not None:
            session.run(asked.plan, asked.description)
        stopped.append(session.hears())

    try:
        ended = searched(posed, engine, opening, drive)
        found = policy.answer(ended.runs)
    except AllDivergedError as error:
        raise every_lane_diverged(error.args[0], posed, policy.smaller) from None
    if nothing_learned(found.deciding):
        warnings.warn(found.reason, stacklevel=3)
    if stopped[-1]:
        warnings.warn(
            f"The search was interrupted: its answer is that of {ended.runs.rounds} finished rounds.",
            stacklevel=3,
        )
    params, model_state = ended.best or (None, None)
    curve = dataclasses.replace(found.curve, placement=ended.placement)
    return dataclasses.replace(
        found, curve=curve, params=params, model_state=model_state, lane_steps=ended.runs.price
    )


def run_all(
    posed: Posed, engine: Engine, opening: Opening, next_plan: Callable[[Runs], Plan | None]
) -> Ended:
    """Run one plan after the other, until there is none; what has ended by then decides the next.

    Raises:
      KeyboardInterrupt: Ctrl-C before all of them ended.
    """

    def drive(session: Session) -> None:
        while not session.stopped and (plan := next_plan(session.runs)) is not None:
            session.run(plan, opening.description)
        if session.hears():
            raise KeyboardInterrupt

    return searched(posed, engine, opening, drive)


def with_a_survivor(curve: LRCurve, posed: Posed) -> LRCurve:
    """The curve, unless every lane diverged.

    Raises:
      RuntimeError: every lane diverged.
    """
    if not curve.stable.any():
        raise every_lane_diverged(curve, posed)
    return curve


def every_lane_diverged(
    curve: LRCurve, posed: Posed, smaller: str = Policy.smaller
) -> EveryLaneDivergedError:
    """The error that says at which rates all runs diverged, and names the data that are to blame."""
    low, high = curve.learning_rates.min(), curve.learning_rates.max()
    sentence = f"Every lane diverged, at {len(curve.learning_rates)} rates from {low:.3g} to {high:.3g}"
    # The run that got farthest; a rate that is too high may fail earlier.
    step = max(int(curve.diverged_at[0].max()), 0)
    batch = int(posed.data.order(0, step + 1)[step])
    loss = posed.loss_of_batch(batch)
    if not np.isfinite(loss):
        return EveryLaneDivergedError(
            f"{sentence}, the last of them at step {step}; the loss of batch {batch} is {loss} before any "
            "training: look at its data, and at the parameters to start from."
        )
    if posed.data.eval_batch is not None and not np.isfinite(judged := posed.evaluation(curve.metric)):
        return EveryLaneDivergedError(
            f"{sentence}; the {curve.judged_by} is {judged} before any training: look at "
            "eval_batch and eval_fn."
        )
    return EveryLaneDivergedError(
        f"{sentence}; try a smaller {smaller}: the rates destroy it, not the data, since without training "
        f"the loss of batch {batch} is {loss:.4g}."
    )


def without_training(posed: Posed, longest: int, evals: Sequence[int]) -> Wanted:
    """The reference of a search: of what judges its runs, of all lengths that they may have."""
    judge: Literal["metrics", "evals"] = "metrics" if posed.data.eval_batch is None else "evals"
    return Wanted(judge, longest, tuple(sorted(set(evals))) if judge == "evals" else ())


def example_lane(lanes: Mapping[str, Any], longest: int) -> dict[str, Any]:
    """A lane as the engine sees it, with a table of the longest run's room."""
    numbers = {
        name: np.asarray(value, np.float32 if np.asarray(value).dtype.kind == "f" else np.int32)
        for name, value in lanes.items()
    }
    return {**numbers, TABLE: np.zeros(power_of_two(longest), np.float32)}


def bounds(low: Any, high: Any) -> tuple[float, float]:
    """The smallest and the largest rate of a search, refused where they are not positive and increasing."""
    lower = checks.concrete("min_learning_rate", low, above=0)
    upper = checks.concrete("max_learning_rate", high, above=0)
    if upper <= lower:
        raise ValueError(f"max_learning_rate must be above min_learning_rate={low!r}, got {high!r}.")
    return lower, upper


def noting_bounds(found: Suggestion, low: float, high: float) -> Suggestion:
    """The suggestion; where the search went on beyond the given bounds, or ended at an edge, it says so."""
    note = ""
    if not low <= found.learning_rate <= high:
        name, bound = ("min", low) if found.learning_rate < low else ("max", high)
        note = f"; the search was widened beyond {name}_learning_rate={bound:.3g}"
    if found.at_edge:
        note += "; the best rate lies at the edge of those that could be tried"
    return dataclasses.replace(found, reason=f"{found.reason[:-1]}{note}.")
