"""The ways of `lr_find`: which policy a search follows, and what its session must know of that."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..engine.checkpoints import digest
from ..engine.opening import Opening
from ..engine.runs import Judgment, Runs
from ..types import PeakToSchedule
from . import ceilings, tables
from .budget import Budgeted
from .combinations import Combinations
from .constant import Constant
from .finalists import Scheduled
from .inputs import Posed
from .policy import Bounds, Policy, Tables
from .quick import Quick, quick_lengths
from .search import without_training
from .spending import Spending
from .views import final_loss


def policy_of(
    within: Bounds,
    axes: Mapping[str, np.ndarray],
    spend: Spending | None,
    steps: int,
    length: int | None,
    schedule: PeakToSchedule | None,
    seeds: int,
    finalists: int,
    longest: int,
    first: int,
) -> Policy:
    """The policy of a search whose runs begin at step `first` of their schedule."""
    alone: Policy
    lengths = tuple(quick_lengths(steps, length or steps))
    if spend is not None:
        alone = Budgeted(within, spend, functools.partial(_of_length, schedule, spend.horizon, first))
    elif length is None:
        alone = Constant(within, steps, seeds, tables.constant, lengths)
    elif schedule is None:
        alone = Quick(within, lengths, length, seeds, tables.one_cycle)
    else:
        alone = _scheduled(within, lengths, length, seeds, schedule, finalists, longest, first)
    return Combinations(alone, axes) if axes else alone


def _scheduled(
    within: Bounds,
    lengths: tuple[int, ...],
    horizon: int,
    seeds: int,
    schedule: PeakToSchedule,
    finalists: int,
    longest: int,
    first: int,
) -> Scheduled:
    """The policy of a search under a schedule, which begins at step `first` of it."""
    quick = Quick(within, lengths, horizon, seeds, _shorter(schedule, horizon, first), refines=False)
    finals = {horizon} if horizon <= longest else {-(-horizon // 10), -(-horizon // 5), -(-horizon // 2)}
    by_length = {steps: _of_length(schedule, horizon, first, steps) for steps in sorted(finals)}
    return Scheduled(quick, tuple(by_length), finalists, by_length)


def _shorter(schedule: PeakToSchedule, horizon: int, first: int) -> Tables:
    """The tables of runs that go through a schedule in fewer steps."""
    # A schedule of the user's begins where its state has counted to: compressed, it would begin at step 0.
    return tables.one_cycle if first else functools.partial(tables.compressed, schedule, horizon=horizon)


def _of_length(schedule: PeakToSchedule | None, horizon: int, first: int, steps: int) -> Tables:
    """The tables of runs of a length, that of the horizon under the schedule as it is."""
    if schedule is None:
        return tables.one_cycle
    whole = functools.partial(tables.of_schedule, schedule, first=first)
    return whole if steps == horizon else _shorter(schedule, horizon, first)


def opening_of(
    policy: Policy,
    lane: dict[str, Any],
    low: float,
    high: float,
    seeds: int,
    stop_factor: float,
    posed: Posed,
    judgment: Judgment,
) -> Opening:
    """What a search's session must know; the first plan and the tables stand for what they depend on."""
    asked = policy.ask(Runs())
    assert asked is not None
    kept, alone = None, policy.alone if isinstance(policy, Combinations) else policy
    if isinstance(alone, Scheduled | Budgeted):
        is_full = alone.is_finalist

        def kept(runs: Runs, row: int) -> float:
            return final_loss(runs, row) if is_full(int(runs.columns["stage"][row])) else float("inf")

    return Opening(
        lane=lane,
        lanes=len(asked.plan.seeds) // seeds,
        seeds=seeds,
        longest=policy.longest,
        ceilings=ceilings.of_search(stop_factor, scans=isinstance(alone, Budgeted)),
        keep=kept,
        reference=without_training(posed, policy.longest, policy.evals),
        judgment=judgment,
        settings={
            "search": type(alone).__name__,
            "learning_rates": [low, high],
            "seeds": seeds,
            "longest": policy.longest,
            **(alone.spend._asdict() if isinstance(alone, Budgeted) else {}),
            "stop factor": stop_factor,
            "first rates or schedules": digest(
                [asked.plan.lanes, asked.plan.tables, list(asked.plan.eval_steps)]
            ),
        },
        description="lr_find",
    )
