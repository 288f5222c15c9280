"""Searches: stages of runs to a suggestion. Which rates are tried next, for how many steps, and when to stop."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ..schedules.phases import one_cycle_schedule
from ..types import Array, PyTree, ScalarLike, Schedule
from . import suggest
from .curve import LRCurve
from .problem import RUN_STEPS
from .runs import WIDEST, Stage, refuse_if_all_diverged, widened
from .suggestion import Suggestion

COARSE_LANES_PER_DECADE = 2
FINE_LANES = 10
# The last lanes of a quick search are so many times as long as its `num_steps`: a few such tell more of a long run
# than many short ones.
LAST_LENGTH = 4
FINALIST_RATIO = 3.0
REFINEMENTS = 2


def squeezed(
    lane: Mapping[str, ScalarLike], step: Array, schedule: Callable[[ScalarLike], Schedule], horizon: int
) -> ScalarLike:
    """The rate of a lane whose run goes through a schedule made for `horizon` steps in its own RUN_STEPS."""
    # First and last step fall on first and last; horizon times step may not fit into an integer.
    last = jnp.maximum(lane[RUN_STEPS] - 1, 1)
    stride, rest = jnp.divmod(horizon - 1, last)
    t = jnp.minimum(step, last)
    return schedule(lane["learning_rate"])(t * stride + t * rest // last)


def one_cycle(lane: Mapping[str, ScalarLike], step: Array) -> ScalarLike:
    """What a run is taken to do of which nothing but its length is known."""
    return one_cycle_schedule(lane["learning_rate"], lane[RUN_STEPS])(step)


def constant_lanes(stage: Stage, low: float, high: float, seeds: int) -> Suggestion:
    """Lanes at constant rates: coarse ones over the bounds, and beyond them while needed, then fine ones."""
    coarse = _coarse(stage, low, high, lambda rates: stage.run_rates(rates, seeds, "coarse lanes"))
    best = suggest.best_lane(coarse)
    around = coarse.learning_rates[max(0, best - 1) : best + 2]
    fine = np.geomspace(around[0], around[-1], FINE_LANES + 2)[1:-1]
    curve = coarse.merge(stage.run_rates(fine, seeds, "fine lanes"))
    return dataclasses.replace(suggest.lowest_loss(curve), rules=suggest.classic(curve))


def quick_lengths(num_steps: int, horizon: int) -> list[int]:
    """After how many steps the runs of a quick search end: of many over the bounds, then of few and longer ones."""
    longest = min(LAST_LENGTH * num_steps, horizon)
    return sorted({-(-min(num_steps, horizon) // 4), -(-longest // 2), longest})


def by_length(
    stage: Stage, lengths: Sequence[int], horizon: int, low: float, high: float, seeds: int
) -> Suggestion:
    """Runs of several lengths, each under the whole of its schedule: the shortest search the bounds."""
    run = functools.partial(_run_squeezed, stage, seeds, "lanes")
    curves = [_coarse(stage, low, high, functools.partial(run, lengths[0]))]
    for steps in lengths[1:]:
        center = suggest.for_horizon(curves, steps).learning_rate
        begun = run(steps, center * suggest.BESIDE ** np.arange(-1.0, 2.0))
        curves.append(_surrounded(begun, (low / WIDEST, high * WIDEST), functools.partial(run, steps)))
        refuse_if_all_diverged(curves[-1], stage.problem, steps)
    return dataclasses.replace(suggest.for_horizon(curves, horizon), rules=suggest.classic(curves[0]))


def _run_squeezed(stage: Stage, seeds: int, kind: str, steps: int, rates: np.ndarray) -> LRCurve:
    lanes = {"learning_rate": rates, RUN_STEPS: np.full(len(rates), steps, np.int32)}
    return stage.run(lanes, seeds, f"{kind} of {steps} steps", num_steps=steps)[0]


def _coarse(stage: Stage, low: float, high: float, run: Callable[[np.ndarray], LRCurve]) -> LRCurve:
    """Two lanes a decade over the bounds, and more beyond them while the best is at the edge."""
    count = max(2, round(COARSE_LANES_PER_DECADE * np.log10(high / low)) + 1)
    coarse = run(np.geomspace(low, high, count))
    refuse_if_all_diverged(coarse, stage.problem, coarse.losses.shape[-1])
    ratio = float(coarse.learning_rates[1] / coarse.learning_rates[0])
    return widened(coarse, ratio, (low / WIDEST, high * WIDEST), run)


def _surrounded(curve: LRCurve, bounds: tuple[float, float], run: Callable[[np.ndarray], LRCurve]) -> LRCurve:
    """The curve with lanes on either side of the best, within bounds, up to such as can be told from it."""
    while wanted := [rate for rate in suggest.rates_beside(curve) if bounds[0] <= rate <= bounds[1]]:
        curve = curve.merge(run(np.array(wanted)))
    return curve


def shortened_finals(
    stage: Stage,
    quick: Suggestion,
    ratios: np.ndarray,
    lengths: Sequence[int],
    horizon: int,
    seeds: int,
    bounds: tuple[float, float],
) -> Suggestion:
    """Finalists of a horizon too long for full runs: shorter ones, and the drift of their best carried on."""
    curves: list[LRCurve] = []
    for steps in lengths:
        run = functools.partial(_run_squeezed, stage, seeds, "finalists", steps)
        # The quick search's own runs and its drift say where to begin.
        known = [quick.curve, *quick.shorter, *curves]
        center = suggest.for_horizon(known, steps).learning_rate
        curves.append(_refined(widened(run(center * ratios), FINALIST_RATIO, bounds, run), run))
    refuse_if_all_diverged(curves[-1], stage.problem, lengths[-1])
    found = suggest.for_horizon(curves, horizon)
    return _concluded(quick, found, curves[-1], "where runs went through the whole schedule in fewer steps")


def full_finals(
    stage: Stage, quick: Suggestion, ratios: np.ndarray, seeds: int, bounds: tuple[float, float]
) -> Suggestion:
    """The best of full runs around a quick suggestion, widened while the best of them is at an edge.

    Where noise leaves rates that may be better they have as many seeds again.
    """
    ends: dict[float, list[PyTree]] = {}

    def run(rates: np.ndarray, first_seed: int = 0) -> LRCurve:
        kind = "finalists on more seeds" if first_seed else "finalists"
        lanes = {"learning_rate": rates}
        curve, carries = stage.run(lanes, seeds, kind, first_seed=first_seed, return_carries=True)
        for i, rate in enumerate(rates):
            ends.setdefault(rate, []).extend(
                jax.tree.map(lambda x, at=(seed, i): x[at], carries) for seed in range(seeds)
            )
        return curve

    curve = widened(run(quick.learning_rate * ratios), FINALIST_RATIO, bounds, run)
    refuse_if_all_diverged(curve, stage.problem, stage.engine.num_steps)
    curve = _refined(curve, run)
    if suggest.undecided(curve):
        curve = curve.merge_seeds(run(curve.learning_rates, seeds))
        refuse_if_all_diverged(curve, stage.problem, stage.engine.num_steps)
    final, best = suggest.lowest_loss(curve), suggest.best_lane(curve)
    seed = int(np.argmin(suggest.final_losses(curve)[:, best]))
    params, model_state = stage.problem.ended(ends[curve.learning_rates[best]][seed])
    found = _concluded(quick, final, curve, f"in full runs under their own schedule at {len(ends)} peaks")
    return dataclasses.replace(found, params=params, model_state=model_state)


def _concluded(quick: Suggestion, found: Suggestion, finalists: LRCurve, how: str) -> Suggestion:
    """What was found among the finalists, with the curves of the quick search that led to them."""
    return dataclasses.replace(
        found,
        reason=f"{found.reason[:-1]}, {how}.",
        curve=quick.curve,
        shorter=quick.shorter,
        rules=quick.rules,
        finalists=finalists,
        lane_steps=quick.lane_steps + found.lane_steps,
    )


def _refined(curve: LRCurve, run: Callable[[np.ndarray], LRCurve]) -> LRCurve:
    """Finalists with up to two more beside the best: optima are often sharper than their ratio."""
    for _ in range(REFINEMENTS):
        rate = suggest.next_rate(curve)
        if rate is None:
            return curve
        curve = curve.merge(run(np.array([rate])))
    return curve


def noting_bounds(found: Suggestion, low: float, high: float) -> Suggestion:
    """The suggestion; where the search went on beyond the given bounds, or ended at an edge, it says so."""
    note = ""
    if not low <= found.learning_rate <= high:
        name, bound = ("min", low) if found.learning_rate < low else ("max", high)
        note = f"; the search was widened beyond {name}_learning_rate={bound:.3g}"
    if found.at_edge:
        note += "; the best rate lies at the edge of those that could be tried"
    return dataclasses.replace(found, reason=f"{found.reason[:-1]}{note}.")
