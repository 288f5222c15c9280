"""`compare`: which optimizer, which schedule, and does it matter here. Each candidate at its own found rate."""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, Unpack

import jax
import numpy as np

from .. import checks
from ..engine.batches import read_batches
from ..engine.engine import Engine
from ..engine.lengths import Epochs, steps_of
from ..schedules.named import length_of
from ..schedules.phases import constant_schedule
from ..types import Array, PeakToSchedule, PyTree
from .compared import Comparison, metric_at_end
from .curve import LRCurve
from .find import lr_find
from .losses import judged_losses
from .optimizer import Factory
from .problem import Problem
from .search import EveryLaneDivergedError, Options, given
from .suggestion import Suggestion
from .sweep import lr_sweep

Peaked: TypeAlias = PeakToSchedule
Candidate: TypeAlias = Factory | tuple[Factory, Peaked]

# A run is looked at so many times; the `num_steps` of a search are this part of the horizon, and no more than MOST.
EVALUATIONS, PART, MOST = 20, 20, 50
# So often a peak is halved at which a seed diverges.
HALVINGS = 3


def compare(
    loss_fn: Callable[..., Any] | Problem,
    params: PyTree | Callable[[Array], PyTree],
    candidates: Mapping[str, Candidate],
    batches: PyTree | Iterable[PyTree],
    *,
    eval_batch: PyTree = None,
    horizon: int | Epochs | None = None,
    seeds: int = 5,
    metric: str | None = None,
    target: float | None = None,
    eval_every: int | None = None,
    search: Mapping[str, Any] | None = None,
    key: Array | None = None,
    model_state: PyTree | Callable[[Array], PyTree] = None,
    **options: Unpack[Options],
) -> Comparison:
    """Compare optimizers and schedules, each at its own found learning rate, over equal steps and paired seeds.

    For each candidate `lr_find` finds the peak for a run of `horizon` steps under its schedule; then `lr_sweep`
    trains that peak on `seeds` seeds. Seed by seed, all candidates begin at the same parameters and read the same
    batches, so differences are paired: their interval is Student's t over the seeds. At one common rate the order
    of optimizers says which of them that rate suits, and no more.

    A candidate costs 10 to 15 runs of the whole length: its search on one seed 5 to 10, then `seeds` runs at the
    peak. A grid of 13 rates on five seeds costs 65. `search={"seeds": 3}` finds the peak among noisy losses more
    surely, at 15 to 35 runs more. Where a seed diverges at the peak, the peak is halved, three times at most. An
    interval holds for one difference; among many candidates the lowest owes something to luck.

    Args:
      loss_fn, params, batches, eval_batch, key, model_state, options: as in `lr_find`. Batches that come one by one
        are read once. A `checkpoint` holds a folder for each search.
      candidates: by name an optimizer factory, `learning_rate -> optax.GradientTransformation`, trained at a
        constant rate; or `(factory, schedule)`, with `schedule` from a peak to a function of the step. The others
        are compared with the first that does not diverge.
      horizon: how many steps each run has, or `Epochs`; by default the length of the schedules, where all that know
        their own agree.
      seeds: how many runs each candidate has at its peak, at least 2.
      metric: a name that `eval_fn` or `has_aux` reports, shown beside the loss.
      target: the loss whose first step is told; by default what the first candidate ends with.
      eval_every: after how many steps the validation loss is taken; by default twenty times a run.
      search: further arguments of `lr_find`, such as `budget`, `finalists`, `num_steps`, `min_learning_rate`.
        Without a budget `num_steps` is a twentieth of the horizon, but at most 50, and `seeds` is 1.

    Returns:
      A `Comparison`: `.best`, `.difference(name)`, `.plot()`, `.to_dict()`; printed, a table.

    Raises:
      ValueError: wrong input, in one sentence.
      RuntimeError: all candidates diverged.

    >>> import jax.numpy as jnp
    >>> import optax
    >>> x = np.linspace(-1, 1, 64).reshape(16, 4)
    >>> cosine = lambda peak: optax.cosine_decay_schedule(peak, 16)
    >>> compared = compare(lambda w, x: jnp.mean((w * x - 3 * x) ** 2), jnp.zeros(()),
    ...                    {"sgd": optax.sgd, "cosine": (optax.sgd, cosine)}, x,
    ...                    eval_batch=x[0], horizon=16, seeds=2, progress=False)
    >>> compared.names, compared.best in compared.names
    (['sgd', 'cosine'], True)
    >>> print(str(compared).splitlines()[0].split("  ")[-1])
    difference to sgd

    Source: each method at its own tuned rate, after Choi et al. 2019 (arXiv:1910.05446).
    """
    parts = _parts(candidates)
    runs = _several("seeds", seeds)
    steps = _steps(horizon, parts, batches)
    every = max(1, steps // EVALUATIONS) if eval_every is None else eval_every
    problem, engine = given(loss_fn, model_state is not None, options)
    stacked = _read(batches, steps)
    shared: dict[str, Any] = {"eval_batch": eval_batch, "key": key, "model_state": model_state}
    searching = _searching(steps, search or {})
    found: dict[str, Suggestion | None] = {}
    trained: dict[str, LRCurve | None] = {}
    price, failure = 0, None
    for at, (name, (factory, schedule)) in enumerate(parts.items()):
        arguments = problem, params, factory, stacked
        found[name] = trained[name] = None

        def sweep(
            peak: float, part: str, arguments: Any = arguments, schedule: Peaked = schedule, at: int = at
        ) -> LRCurve:
            return lr_sweep(
                *arguments, learning_rates=[peak], num_steps=steps, schedule=schedule, eval_every=every, seeds=runs,
                engine=_placed(engine, f"{at}-{part}"), **shared,
            )  # fmt: skip

        try:
            with _naming(name):
                suggestion = lr_find(
                    *arguments, horizon=steps, schedule=schedule, engine=_placed(engine, f"{at}-find"),
                    **{**shared, **searching},
                )  # fmt: skip
                found[name] = suggestion
                curve, halved = _at_peak(sweep, suggestion.learning_rate)
        except EveryLaneDivergedError as error:
            failure = error
            continue
        trained[name] = curve
        price += suggestion.lane_steps + (1 + halved) * runs * steps
        if metric is not None:
            metric_at_end(curve, metric)
    if failure is not None and all(curve is None for curve in trained.values()):
        raise failure
    compared = Comparison(found, trained, np.nan, metric, price)
    reach = compared.losses(compared.first).mean() if target is None else checks.concrete("target", target)
    return dataclasses.replace(compared, target=float(reach))


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Has warnings of this package begin with a candidate's name, at the line that called `compare`."""
    package = __name__.partition(".")[0]
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            # One line warns for every candidate; Python shows it once. What others warn of is the user's to filter.
            warnings.filterwarnings("always", module=rf"{package}\.")
            yield
    finally:
        for each in caught:
            if Path(each.filename).is_relative_to(Path(__file__).parents[1]):
                warnings.warn(f"candidate {name!r}: {each.message}", each.category, stacklevel=4)
            else:
                warnings.showwarning(each.message, each.category, each.filename, each.lineno)


def _searching(steps: int, search: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of each search: short runs on one seed, unless a budget decides."""
    recipe = {} if "budget" in search else {"num_steps": min(MOST, -(-steps // PART)), "seeds": 1}
    return {**recipe, **search}


def _several(name: str, value: Any) -> int:
    """A number of at least two, so that there is an interval."""
    count = checks.size(name, value)
    if count < 2:
        raise ValueError(f"{name} must be at least 2, so that there is an interval, got {value!r}.")
    return count


def _read(batches: PyTree | Iterable[PyTree], steps: int) -> PyTree:
    """Batches that are read once for all candidates; a stream's array has room for more than were read."""
    array, count = read_batches(batches, steps)
    return jax.tree.map(lambda leaf: leaf if len(leaf) == count else leaf[:count], array)


def _at_peak(sweep: Callable[[float, str], LRCurve], peak: float) -> tuple[LRCurve, int]:
    """The runs at a peak, or at the first of its halves where no seed diverges; and how often it was halved."""
    for halved in range(HALVINGS + 1):
        try:
            curve = sweep(peak / 2**halved, f"runs-{halved}")
        except EveryLaneDivergedError:
            continue
        if np.isfinite(judged_losses(curve)[-1][1]).all():
            return curve, halved
    raise EveryLaneDivergedError(f"Every lane diverged, at the found rate {peak:.3g} and at halves of it.")


def _parts(candidates: Mapping[str, Candidate]) -> dict[str, tuple[Factory, Peaked]]:
    """Each candidate as a factory and its schedule."""
    if not isinstance(candidates, Mapping) or not candidates:
        raise ValueError(f"candidates must be a dict with at least one optimizer, got {candidates!r}.")
    parts = {}
    for name, candidate in candidates.items():
        given: Any = candidate
        # A transformation is a tuple of two functions, too.
        paired = isinstance(given, tuple) and not hasattr(given, "init") and len(given) == 2
        factory, schedule = given if paired else (given, constant_schedule)
        if not (callable(factory) and callable(schedule)):
            raise ValueError(
                f"candidates[{name!r}] must be a function of the learning rate, such as optax.adam, or a pair of "
                f"it and a function of the peak to a schedule, got a {type(candidate).__name__}."
            )
        parts[str(name)] = (factory, schedule)
    return parts


def _steps(horizon: Any, parts: Mapping[str, tuple[Factory, Peaked]], batches: Any) -> int:
    """The length of the runs: as given, or as the schedules know."""
    if horizon is not None:
        return steps_of("horizon", horizon, batches)
    known = {name: length_of(schedule(1.0)) for name, (_, schedule) in parts.items()}
    lengths = {name: length for name, length in known.items() if length is not None}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"horizon must be given where schedules do not agree on it, got lengths {lengths}.")
    return checks.size("horizon", int(np.ceil(next(iter(lengths.values())))))


def _placed(engine: Engine, folder: str) -> Engine:
    """The engine with a folder of its own for the checkpoints of one search."""
    if engine.checkpoint is None:
        return engine
    return dataclasses.replace(engine, checkpoint=Path(engine.checkpoint) / folder)
