"""Runs: a problem and lanes to the curve of their losses, and what is said where no lane survives."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from .. import checks
from ..engine.batches import batch_orders, root_bits
from ..engine.checkpoints import digest
from ..engine.results import SweepResult
from ..engine.sweep import Engine
from ..types import PyTree, ScalarLike, Schedule
from .curve import LRCurve
from .problem import RUN_STEPS, Problem, Timed, Trainer
from .suggest import best_lane

# How far beyond the given bounds a search goes on while the best rate lies at its edge.
WIDEST = 100.0


class Stage(NamedTuple):
    """A problem with the compiled programs of one length of run."""

    problem: Problem
    engine: Engine
    checkpoint: str | os.PathLike | None
    progress: bool

    def sweep(
        self,
        lanes: Mapping[str, np.ndarray],
        seeds: int,
        description: str,
        *,
        first_seed: int = 0,
        num_steps: int | None = None,
        return_carries: bool = False,
    ) -> SweepResult:
        """Train the lanes on so many seeds from a first on, for fewer steps than the stage has where asked."""
        # The sweeps of a search are told apart by what they are for and by their lanes.
        name = f"{description.replace(' ', '-')}-{digest(dict(lanes))}"
        starts = self.problem.starts
        return self.engine.run(
            jax.tree.map(lambda leaf: leaf[first_seed : first_seed + seeds], starts)
            if self.problem.drawn
            else starts,
            {
                name: np.asarray(x, np.float32 if x.dtype.kind == "f" else np.int32)
                for name, x in lanes.items()
            },
            self.problem.batches,
            num_steps=num_steps,
            seeds=seeds,
            first_seed=first_seed,
            key=self.problem.key,
            carry_per_seed=self.problem.drawn,
            eval_batch=self.problem.eval_data,
            return_carries=return_carries,
            stream=self.problem.stream,
            checkpoint=None if self.checkpoint is None else Path(self.checkpoint) / name,
            progress=self.progress,
            description=description,
        )

    def run(
        self, lanes: Mapping[str, np.ndarray], seeds: int, description: str, **options: Any
    ) -> tuple[LRCurve, PyTree]:
        """Train the lanes, as `sweep` does: their curve, and the final carries where asked."""
        result = self.sweep(lanes, seeds, description, **options)
        metrics = dict(result.metrics)
        evals = {name: np.asarray(x, np.float32) for name, x in result.evals.items()}
        taken = next(iter(evals.values())).shape[-1] if evals else 0
        curve = LRCurve(
            learning_rates=lanes["learning_rate"],
            losses=metrics.pop("loss"),
            eval_losses=evals.pop("loss", None),
            eval_steps=np.array(self.engine.eval_steps[:taken], np.int32),
            diverged_at=result.diverged_at,
            placement=result.placement,
            metrics=metrics,
            eval_metrics=evals,
            hyperparameters={
                name: x for name, x in lanes.items() if name not in ("learning_rate", RUN_STEPS)
            },
        )
        return curve, result.carries

    def run_rates(self, rates: np.ndarray, seeds: int, description: str) -> LRCurve:
        """Train one lane a rate."""
        return self.run({"learning_rate": rates}, seeds, description)[0]


def build_stage(
    problem: Problem,
    num_steps: int,
    eval_steps: Sequence[int],
    schedule: Callable[[ScalarLike], Schedule] | Timed | None = None,
    *,
    stop_factor: ScalarLike,
    lanes_at_once: int | Literal["auto"],
    mesh: Mesh | None,
    checkpoint: str | os.PathLike | None,
    progress: bool,
) -> Stage:
    """Runs of `num_steps` under a schedule, or at constant rates; compiled once for the same functions."""
    which = (
        problem.trainer,
        num_steps,
        tuple(eval_steps) if problem.eval_data is not None else (),
        schedule,
        checks.concrete("stop_factor", stop_factor, above=0),
        lanes_at_once,
        mesh,
    )
    try:
        hash(which)
    except TypeError:
        # A leaf of the model that is no array, or a function, cannot be recognized again.
        return Stage(problem, _engine(*which), checkpoint, progress)
    return Stage(problem, _kept_engine(*which), checkpoint, progress)


def _engine(
    trainer: Trainer,
    num_steps: int,
    eval_steps: Sequence[int],
    schedule: Callable[[ScalarLike], Schedule] | Timed | None,
    stop_factor: float,
    lanes_at_once: int | Literal["auto"],
    mesh: Mesh | None,
) -> Engine:
    return Engine(
        functools.partial(trainer.step, schedule=schedule),
        num_steps=num_steps,
        init=functools.partial(trainer.init, schedule=schedule),
        evaluate=trainer.evaluate,
        eval_steps=eval_steps,
        stop_factor=stop_factor,
        lanes_at_once=lanes_at_once,
        mesh=mesh,
    )


# A search that is called again with the same functions finds its programs, as a jitted function does.
_kept_engine = functools.lru_cache(maxsize=8)(_engine)


def refuse_if_all_diverged(curve: LRCurve, problem: Problem, num_steps: int) -> None:
    """Say at which rates all lanes diverged, and name the batch where it is to blame."""
    if curve.stable.any():
        return
    low, high = curve.learning_rates.min(), curve.learning_rates.max()
    sentence = f"Every lane diverged, at {len(curve.learning_rates)} rates from {low:.3g} to {high:.3g}"
    orders = batch_orders(
        len(jax.tree.leaves(problem.batches)[0]), num_steps, len(curve.diverged_at), root_bits(problem.key)[0]
    )
    # The lane that got farthest; a rate that is too high may fail earlier.
    step = int(curve.diverged_at[0].max())
    batch = int(orders[0, step])
    loss, *_ = problem.trainer.value(
        problem.start(), jax.tree.map(lambda leaf: leaf[batch], problem.batches), problem.key
    )
    if not jnp.isfinite(loss):
        raise RuntimeError(
            f"{sentence}, the last of them at step {step}; the loss of batch {batch} is {loss} before any "
            "training: look at its data, and at the parameters to start from."
        )
    raise RuntimeError(
        f"{sentence}; try a smaller min_learning_rate, and look at the loss of the first step."
    )


def bounds(low: Any, high: Any) -> tuple[float, float]:
    """The smallest and the largest rate of a search, refused where they are not positive and increasing."""
    lower = checks.concrete("min_learning_rate", low, above=0)
    upper = checks.concrete("max_learning_rate", high, above=0)
    if upper <= lower:
        raise ValueError(f"max_learning_rate must be above min_learning_rate={low!r}, got {high!r}.")
    return lower, upper


def widened(
    curve: LRCurve, ratio: float, bounds: tuple[float, float], run: Callable[[np.ndarray], LRCurve]
) -> LRCurve:
    """The curve with more rates at its edge while the best rate is there, within bounds."""
    while True:
        best, rates = best_lane(curve), curve.learning_rates
        lower, higher = rates[0] / ratio, rates[-1] * ratio
        if best == 0 and lower >= bounds[0]:
            curve = curve.merge(run(np.array([lower])))
        elif best == len(rates) - 1 and curve.stable[-1] and higher <= bounds[1]:
            curve = curve.merge(run(np.array([higher])))
        else:
            return curve
