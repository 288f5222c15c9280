"""The coordinate check: whether each parameter's updates matter as much in a wide model as in a small one."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import checks
from ..types import Float, Int, PyTree
from .labels import is_integers, is_masked, leaves_by_path

LossFn: TypeAlias = Callable[[PyTree, Any], Any]

RISES, FALLS = 0.25, 0.4
"""Slopes above the one, or below the negative of the other, are named as wrong. Wrong labels and starts make slopes
of a half or more, of which training leaves some 0.3; where all is right, small widths make slopes below 0."""

# A parameter with a smaller share of the change at every width has no slope: what moves it is rounding.
NEGLIGIBLE = 1e-6


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class WidthCheck:
    """How much the updates of each parameter change the loss, over widths.

    Attributes:
      widths: int [widths]; increasing.
      changes: by path, the change of the loss that the updates of a parameter make, summed over the steps in
        absolute value, float [widths]; NaN where a loss was not finite.
      slopes: by path, by which power of the width that grows; near 0 where the label is right, 0 where next to
        nothing changes, NaN where a change is not finite.
    """

    widths: Int[np.ndarray, " widths"]
    changes: Mapping[str, Float[np.ndarray, " widths"]]
    slopes: Mapping[str, float]

    @property
    def wrong(self) -> list[str]:
        """The paths whose slope is above 0.25 or below -0.4, or not known; the worst first."""
        away = {path: abs(slope) if np.isfinite(slope) else np.inf for path, slope in self.slopes.items()}
        paths = [path for path, slope in self.slopes.items() if not -FALLS <= slope <= RISES]
        return sorted(paths, key=lambda path: -away[path])

    def plot(self, **options: Any) -> Any:
        """`plots.plot_width_check` of the check."""
        from .. import plots

        return plots.plot_width_check(self, **options)

    def __str__(self) -> str:
        head = ["parameter", *(f"width {width}" for width in self.widths), "slope"]
        rows = [
            [path, *(f"{change:.3g}" for change in self.changes[path]), f"{self.slopes[path]:+.2f}"]
            for path in self.changes
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0])]
                + [cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)]
            )
            for row in (head, *rows)
        ]
        said = f"not 0: {checks.listed(self.wrong)}" if self.wrong else "all near 0, as they should be"
        return "\n".join([*lines, f"Slopes are {said}."])

    __repr__ = __str__


def check_width_transfer(
    model: Callable[..., tuple[LossFn, PyTree]],
    optimizer: optax.GradientTransformation,
    batches: PyTree,
    *,
    widths: Sequence[int],
    seeds: int | None = None,
) -> WidthCheck:
    """Train models of several widths for a few steps, and compare what the updates of each parameter do.

    change(parameter) = sum over steps of |sum(gradient * update)|, the first-order change of the loss. Where the
    parametrization is right, it does not depend on the width. A parameter with a wrong label, or with a start of
    the wrong size, shows a slope: that of log change over log width. (The classic check compares activations.
    This one needs no model that hands them out, and names the parameter.)

    Args:
      model: from a width to `(loss_fn, params)`, with `loss_fn(params, batch)` a scalar, and `params` as they
        will be trained: from `rescale_init`. Output weights and queries that start at
        zero give the clearest slopes, as the authors' own package advises.
      optimizer: one for all widths, at the rate to be used: its labels are those of `label_by_width(base_params)`.
      batches: arrays [steps, ...]. Ten steps will do; attention needs more, since its queries and keys learn
        little before its values have.
      widths: at least two, increasing, all above the base model's.
      seeds: how many starts are averaged: `model(width, seed)` is then called for each; `model(width)` without.

    Returns:
      A `WidthCheck`: print it, `plot()` it, look at `wrong`.

    Raises:
      ValueError: `widths` does not increase, a leaf of `batches` has no leading axis, or models differ in paths.

    >>> def model(width):
    ...     params = {"w": {"kernel": jnp.ones((width, 1)) / width}}
    ...     return lambda params, batch: jnp.sum(params["w"]["kernel"]) * batch, params
    >>> check = check_width_transfer(model, optax.sgd(0.1), jnp.ones(2), widths=[8, 32])
    >>> print(check)
    parameter  width 8  width 32  slope
    w/kernel       1.6       6.4  +1.00
    Slopes are not 0: 'w/kernel'.

    Source: the coordinate check of Yang et al. 2022 (arXiv:2203.03466), on the change of the loss.
    """
    checks.not_traced("check_width_transfer", batches)
    sizes = [checks.size(f"widths[{index}]", width, unit="features") for index, width in enumerate(widths)]
    if len(sizes) < 2 or sizes != sorted(set(sizes)):
        raise ValueError(f"widths must be at least two, in increasing order, got {list(widths)!r}.")
    checks.leading_axis("batches", batches)
    starts = [()] if seeds is None else [(seed,) for seed in range(checks.size("seeds", seeds, unit="seeds"))]
    runs = [[_changes(*model(width, *start), optimizer, batches) for start in starts] for width in sizes]
    found = [{path: float(np.mean([run[path] for run in each])) for path in each[0]} for each in runs]
    for width, changes in zip(sizes, found, strict=True):
        if changes.keys() != found[0].keys():
            other = sorted(changes.keys() ^ found[0].keys())
            raise ValueError(
                f"model must give parameters with the same paths at each width, got others at {width}: "
                f"{checks.listed(other)}."
            )
    table = {path: np.array([changes[path] for changes in found]) for path in found[0]}
    slopes = {path: _slope(sizes, values, sum(table.values())) for path, values in table.items()}
    return WidthCheck(np.array(sizes), table, slopes)


def _changes(
    loss_fn: LossFn, params: PyTree, optimizer: optax.GradientTransformation, batches: PyTree
) -> dict[str, float]:
    paths = [
        path for path, leaf in leaves_by_path(params)[0] if not is_masked(leaf) and not is_integers(leaf)
    ]

    def step(carry: tuple[PyTree, Any], batch: PyTree) -> tuple[tuple[PyTree, Any], Any]:
        now, state = carry
        grads = jax.grad(loss_fn, allow_int=True)(now, batch)
        updates, after = optimizer.update(grads, state, now)
        pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(updates), jax.tree.leaves(now), strict=True)
        made = [
            jnp.abs(jnp.sum(grad.astype(jnp.float32) * update.astype(jnp.float32)))
            for grad, update, leaf in pairs
            if not is_integers(leaf)
        ]
        return (optax.apply_updates(now, updates), after), jnp.stack(made)

    @jax.jit
    def train(start: PyTree, batches: PyTree) -> Any:
        return jax.lax.scan(step, (start, optimizer.init(start)), batches)[1].sum(axis=0)

    return dict(zip(paths, np.asarray(train(params, batches), np.float64).tolist(), strict=True))


def _slope(widths: Sequence[int], changes: np.ndarray, total: Any) -> float:
    """The slope of a line through logs; 0 where nothing but rounding moves a parameter at any width."""
    if not changes.any() or (np.isfinite(changes) & (changes <= NEGLIGIBLE * total)).all():
        return 0.0
    if not (np.isfinite(changes) & (changes > 0)).all():
        return float("nan")
    return float(np.polyfit(np.log(widths), np.log(changes), 1)[0])
