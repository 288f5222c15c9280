"""Tables: the rate of every step of a run, on the host. Every schedule is one: constant, the user's, a ramp.

A schedule of the user's is called with concrete rates, so it may be any function of the step: Optax's, NumPy's, one
with an `if` in it.
"""

import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..engine.batches import power_of_two
from ..engine.runs import Plan, product
from ..schedules.one_cycle import one_cycle_schedule
from ..types import Float, Int, PeakToSchedule, Schedule
from .optimizer import TABLE

Rates = Float[np.ndarray, "rows"]
Table = Float[np.ndarray, "rows steps"]


def on_seeds(
    lanes: Mapping[str, np.ndarray],
    table: Table,
    seeds: Sequence[int],
    *,
    eval_steps: Sequence[int],
    stage: int = 0,
) -> Plan:
    """A plan of every lane on every seed, with its rate of every step."""
    rows, of_seeds = product({**lanes, TABLE: table}, seeds)
    by_step = rows.pop(TABLE)
    steps = np.full(len(of_seeds), table.shape[1], np.int32)
    return Plan(rows, of_seeds, steps, tuple(eval_steps), {TABLE: by_step}, stage)


def constant(rates: Rates, steps: int) -> Table:
    """The same rate at every step."""
    return np.broadcast_to(np.asarray(rates, np.float32)[:, None], (len(rates), steps))


def branch(rates: Rates, steps: int, share: float = 0.0) -> Table:
    """The same rate, and over the last share of the steps linearly to the zero of the step after the last."""
    left = (steps - np.arange(steps)) / max(share * steps, 1.0)
    return (np.asarray(rates)[:, None] * np.minimum(1.0, left)).astype(np.float32)


def one_cycle(rates: Rates, steps: int) -> Table:
    """One cycle over the whole run: what is assumed where no schedule is given."""
    return (np.asarray(rates)[:, None] * _one_cycle(steps)).astype(np.float32)


@functools.lru_cache(maxsize=64)
@jax.transfer_guard("allow")
def _one_cycle(steps: int) -> np.ndarray:
    room = power_of_two(steps)
    times, counts = np.arange(room, dtype=np.int32), np.full(room, steps, np.int32)
    # A traced number of steps is raised to the least that a cycle has.
    values = jax.vmap(lambda step, count: one_cycle_schedule(1.0, count)(step))(times, counts)
    return np.asarray(values, np.float64)[:steps]


def peaked(schedule: Any) -> PeakToSchedule:
    """The user's function of the peak to a schedule.

    Raises:
      ValueError: it is no function.
    """
    if not callable(schedule):
        raise _no_schedule(repr(schedule))
    return schedule


def of_peaks(schedule: PeakToSchedule | None, rates: Rates, steps: int, first: int) -> Table:
    """The user's schedule at each peak, or constant rates where there is none."""
    return constant(rates, steps) if schedule is None else of_schedule(peaked(schedule), rates, steps, first)


def of_schedule(schedule: PeakToSchedule, rates: Rates, steps: int, first: int = 0) -> Table:
    """The user's schedule at each peak, from step `first` on."""
    return np.stack([tabulated(schedule(float(rate)), first + np.arange(steps)) for rate in rates])


def compressed(schedule: PeakToSchedule, rates: Rates, steps: int, horizon: int) -> Table:
    """A schedule made for `horizon` steps, gone through in fewer: its first step first, its last one last."""
    last = max(steps - 1, 1)
    times = np.minimum(np.arange(steps, dtype=np.int64), last) * (horizon - 1) // last
    return np.stack([tabulated(schedule(float(rate)), times) for rate in rates])


@jax.transfer_guard("allow")
def tabulated(schedule: Schedule, times: Int[np.ndarray, "steps"]) -> Float[np.ndarray, "steps"]:
    """The values of a schedule at some steps; one that cannot be traced is called step by step.

    Raises:
      ValueError: the schedule is no function of a step to a finite number.
    """
    # Padded, so that another length below the same power of two compiles nothing.
    padded = np.pad(times, (0, power_of_two(len(times)) - len(times)), mode="edge").astype(np.int32)
    try:
        values = np.asarray(jax.vmap(lambda step: jnp.asarray(schedule(step), jnp.float32))(padded))[
            : len(times)
        ]
    except Exception:
        # What fails at a traced step may still be a function of Python numbers; what fails there, too, is an error.
        values = np.array([_called(schedule, int(step), int(times[-1])) for step in times], np.float32)
    if values.ndim != 1:
        raise _not_finite(f"an array of shape {values.shape[1:]}", times[0])
    if (wrong := ~np.isfinite(values)).any():
        raise _not_finite(values[wrong][0], times[wrong][0])
    return values


def warn_if_cut(schedule: Schedule, horizon: int, length: float | None) -> None:
    """Say where a run of `horizon` steps ends before its schedule has reached its peak, or has come down.

    `length` is the schedule's own, where it is known; else ten horizons are looked at.
    """
    beyond = math.ceil(length) if length is not None else 10 * horizon
    if beyond <= horizon:
        return
    times = np.unique(np.geomspace(1, beyond, 256).astype(np.int64)) - 1
    values = tabulated(schedule, np.append(times, horizon - 1))
    within, last = times < horizon, float(values[-1])
    seen, later = values[:-1][within].max(), values[:-1][~within]
    if later.max() > 1.05 * seen:
        at = int(times[~within][later.argmax()])
        warnings.warn(
            f"schedule reaches its peak near step {at}, beyond the horizon of {horizon} steps: within that it "
            f"rises to {seen / later.max():.0%} of it.",
            stacklevel=4,
        )
    elif last > 0.5 * seen and later.min() < 0.1 * seen:
        at = int(times[~within][later.argmin()])
        warnings.warn(
            f"schedule has not come down at the end of the horizon of {horizon} steps: it stands at "
            f"{last / seen:.0%} of its peak there, and falls to {later.min() / seen:.0%} at step {at}.",
            stacklevel=4,
        )


def _called(schedule: Any, step: int, last: int) -> float:
    if not callable(schedule):
        raise _no_schedule(f"one to {schedule!r}")
    try:
        value = schedule(step)
    except (LookupError, TypeError, ArithmeticError) as error:
        raise ValueError(
            f"schedule must give a finite number at every step up to {last}, and fails at step {step} with "
            f"{type(error).__name__}: {error}."
        ) from error
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise _not_finite(repr(value), step) from error


def _not_finite(got: object, step: int) -> ValueError:
    return ValueError(f"schedule must give a finite number at every step, got {got} at step {step}.")


def _no_schedule(got: str) -> ValueError:
    return ValueError(
        f"schedule must be a function of the peak to a function of the step, got {got}: "
        "lambda peak: optax.cosine_decay_schedule(peak, steps)."
    )
