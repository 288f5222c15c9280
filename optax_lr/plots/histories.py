"""Losses over the steps of runs, training and validation."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.lines import Line2D

from .. import checks
from ..finder.curve import LRCurve
from ..finder.diagnose import diagnose
from .style import (
    MOST_ENTRIES,
    Axes,
    Color,
    accent,
    grid,
    legend,
    listed,
    loss_scale,
    muted,
    plt,
    sequential,
    short,
)

Losses: TypeAlias = Sequence[Any] | np.ndarray

USUAL_METRICS = ("loss", "error")
LABELS_ON_BAR = 12
# Runs of so many points or fewer have a dot at each.
FEW_POINTS = 50
# What blows up is cut off at so many times the largest first value, so that the runs that train fill the picture.
CEILING = 10.0


@dataclass(frozen=True, eq=False)
class _Run:
    """What is drawn of one run: metrics by name, [seeds, points], and after how many steps it was validated."""

    label: str
    color: int
    train: Mapping[str, np.ndarray]
    evals: Mapping[str, np.ndarray] = field(default_factory=dict)
    eval_steps: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    verdict: str = ""
    metric: str = "loss"
    mode: str = "min"

    @property
    def entry(self) -> str:
        return ", ".join(filter(None, (self.label, self.verdict)))

    @property
    def end(self) -> float:
        """What judges at the end, low for good, of validation if there is one; infinite for a run that diverged."""
        name, sign = self.metric, -1.0 if self.mode == "max" else 1.0
        last = sign * (self.evals[name][:, -1:] if name in self.evals else self.train[name])
        found = last[:, -max(1, last.shape[-1] // 4) :].mean()
        return float(found) if np.isfinite(found) and self.verdict != "diverged" else np.inf


def plot_histories(
    curve: LRCurve | Mapping[str, LRCurve | Losses] | Losses,
    *,
    metrics: str | Sequence[str] = USUAL_METRICS,
    steps_per_epoch: int | None = None,
    ax: Axes | Sequence[Axes] | None = None,
) -> Axes:
    """Loss and error over time, side by side: one color a run, training solid, validation dashed.

    A cross stands where a run diverged. The legend has the verdict of `diagnose` on each run: "diverged" if any
    seed did, else that of most seeds. If there are more than six entries, the legend has the best run and one of
    each other verdict, drawn thicker, and a color bar names all runs.

    Args:
      curve: what to draw, the mean over the seeds that still run. One of

        1. the curve of a sweep: its lanes, colored by the rate, or by what else varies
        2. a dict, one run a name, for instance of several optimizers: losses [steps] or [seeds, steps], or a
           curve, of which the lane of the lowest loss at the end is drawn
        3. the losses of one run, [steps], or a list of the losses of several runs
      metrics: what is drawn, a panel each: "loss", and names of what `has_aux` or `eval_fn` reported. Of the
        default ones, those that no run has are passed over; a metric that judges the curve is drawn, too.
      steps_per_epoch: average training over epochs of that many steps, and count epochs. By default every step
        is drawn.
      ax: the axes to draw on, one for each panel; a new figure by default.

    Returns:
      The axes of the first panel; `axes.figure.axes` are all of them.

    Raises:
      ValueError: no run has a metric, there are no losses, there are more panels than axes, or
        `steps_per_epoch` is below 1.

    >>> axes = plot_histories({"slow": [3.0, 2.9, 2.8, 2.7], "fast": [3.0, 1.5, 1.1, 1.0]})
    >>> [line.get_ydata()[-1].item() for line in axes.lines]
    [2.7, 1.0]
    >>> plt.close(axes.figure)
    """
    every = 1 if steps_per_epoch is None else checks.size("steps_per_epoch", steps_per_epoch)
    title, entries, runs = _runs(curve)
    names = _metrics(runs, metrics)
    panels = _panels(ax, len(names))
    cycle = plt.rcParams["axes.prop_cycle"].by_key().get("color", [])
    ordered = isinstance(curve, LRCurve) or len(entries) > len(cycle)
    colors = sequential(panels[0], len(entries)) if ordered else [accent(at) for at in range(len(entries))]
    both = any({*run.train} & {*names} and {*run.evals} & {*names} for run in runs)
    shown = _representatives(runs, MOST_ENTRIES - 2 * both)
    for name, axes in zip(names, panels, strict=True):
        for at, run in enumerate(runs):
            _draw(axes, run, name, every, colors[run.color], thick=at in shown, ceiling=_ceiling(runs, name))
        _label(axes, runs, name, every)
        axes.set_xlabel("step" if steps_per_epoch is None else "epoch")
    if len(shown) < len(runs):
        _color_bar(panels[-1], title, entries, colors)
    lines = [Line2D([], [], color=colors[runs[at].color], lw=2, label=runs[at].entry) for at in shown]
    # The largest value of a sweep on top, as in a color bar; a dict in its own order.
    handles = [line for line in (lines[::-1] if title else lines) if line.get_label()]
    if both:
        gray, solid = muted(panels[-1], 0.6), "training, mean of the epoch" if every > 1 else "training"
        handles += [
            Line2D([], [], color=gray, label=solid),
            Line2D([], [], color=gray, ls="--", label="validation"),
        ]
    if handles:
        few = len(shown) == len(runs)
        # Of two columns: one wider than its panel would push the color bar away.
        form: dict[str, Any] = {"title": title} if few else {"ncols": 2}
        legend(panels[-1], above=not few, inside="upper right", handles=handles, **form)
    return panels[0]


def _runs(curve: Any) -> tuple[str | None, list[str], list[_Run]]:
    """What colors stand for, the name of each color, and the runs."""
    if isinstance(curve, LRCurve):
        return _lanes(curve)
    if isinstance(curve, Mapping):
        runs = [_named(at, str(name), each) for at, (name, each) in enumerate(curve.items())]
    else:
        if not hasattr(curve, "__len__"):
            raise ValueError(f"curve must be a curve, a dict of histories, or losses, got {curve!r}.")
        every = list(curve) if len(curve) and np.ndim(curve[0]) else [curve]
        names = [""] if len(every) == 1 else [f"run {at}" for at in range(len(every))]
        runs = [_named(at, name, each) for at, (name, each) in enumerate(zip(names, every, strict=True))]
    if not runs:
        raise ValueError(f"curve must have at least one run, got {curve!r}.")
    return None, [run.label for run in runs], runs


def _named(color: int, name: str, history: LRCurve | Losses) -> _Run:
    """One run of a dict or a list: of a curve, its best lane."""
    if isinstance(history, LRCurve):
        _, _, lanes = _lanes(history)
        best = min(lanes, key=lambda run: run.end)
        label = f"{name}, {best.label}" if len(lanes) > 1 else name
        return replace(best, label=label, color=color)
    losses = np.asarray(history, np.float64)
    if losses.ndim not in (1, 2) or not losses.size:
        raise ValueError(
            f"losses must be of shape [steps] or [seeds, steps], got {losses.shape} for {name!r}."
        )
    table = np.atleast_2d(losses)
    verdict = _verdict(diagnose(table).kind) if table.shape[-1] >= 3 else ""
    return _Run(name, color, {"loss": table}, verdict=verdict)


def _verdict(kinds: np.ndarray) -> str:
    """One word for the seeds of a run."""
    seeds = kinds.tolist()
    return "diverged" if "diverged" in seeds else Counter(seeds).most_common(1)[0][0]


def _lanes(curve: LRCurve) -> tuple[str, list[str], list[_Run]]:
    """Each lane of a sweep, colored by the first hyperparameter that varies."""
    rates, *others = curve.axes
    varies = rates if len(np.unique(curve.lanes[rates])) > 1 or not others else others[0]
    values, colors = np.unique(curve.lanes[varies], return_inverse=True)
    columns = [short(curve.lanes[rates])]
    columns += [[f"{name} {value}" for value in short(curve.lanes[name])] for name in others]
    labels = [", ".join(words) for words in zip(*columns, strict=True)]
    verdicts = [""] * len(labels)
    if curve.losses.shape[-1] >= 3:
        verdicts = [_verdict(seeds) for seeds in diagnose(curve).kind.T]
    elif not curve.stable.all():
        verdicts = ["" if stable else "diverged" for stable in curve.stable]
    train = {"loss": curve.losses, **curve.metrics}
    evals = ({} if curve.eval_losses is None else {"loss": curve.eval_losses}) | dict(curve.eval_metrics)
    runs = [
        _Run(
            label,
            int(colors[lane]),
            {name: values[:, lane] for name, values in train.items()},
            {name: values[:, lane] for name, values in evals.items()},
            curve.eval_steps,
            verdicts[lane],
            curve.metric,
            curve.mode,
        )
        for lane, label in enumerate(labels)
    ]
    return varies.replace("_", " "), short(values), runs


def _metrics(runs: Sequence[_Run], metrics: str | Sequence[str]) -> list[str]:
    """The metrics to draw; the usual ones, and what judges, only if a run has them."""
    known = list(dict.fromkeys(name for run in runs for name in ("loss", *run.train, *run.evals)))
    wanted = [metrics] if isinstance(metrics, str) else list(metrics)
    if metrics is USUAL_METRICS:
        judging = [run.metric for run in runs]
        return [name for name in dict.fromkeys([*wanted, *judging]) if name in known]
    if not wanted:
        raise ValueError(f"metrics must name at least one metric; {checks.close_match('', known)}")
    for name in wanted:
        if name not in known:
            raise ValueError(f"metrics: the curve has no {name!r}; {checks.close_match(name, known)}")
    return wanted


def _panels(ax: Axes | Sequence[Axes] | None, count: int) -> list[Axes]:
    """Axes for each panel, side by side if they are new."""
    if ax is None:
        size = (2.5 + 5 * count, 4.6)
        return list(plt.subplots(1, count, figsize=size, layout="constrained", squeeze=False)[1][0])
    given = [ax] if isinstance(ax, Axes) else list(np.ravel(np.asarray(ax, object)))
    if len(given) != count:
        raise ValueError(f"ax must be one axes for each of {count} panels, got {len(given)}.")
    return given


def _representatives(runs: Sequence[_Run], most: int) -> list[int]:
    """The runs of the legend: all, or the best and of each other verdict the one nearest to it, at most so many."""
    if len(runs) <= most:
        return list(range(len(runs)))
    best = min(range(len(runs)), key=lambda at: runs[at].end)
    chosen = {runs[best].verdict: best}
    for at in sorted(range(len(runs)), key=lambda at: abs(at - best)):
        chosen.setdefault(runs[at].verdict, at)
    return sorted(list(chosen.values())[:most])


def _ceiling(runs: Sequence[_Run], name: str) -> float:
    histories = [each[name] for run in runs for each in (run.train, run.evals) if name in each]
    first = [np.abs(values[:, 0][np.isfinite(values[:, 0])]).max(initial=0) for values in histories]
    return CEILING * max(first, default=0.0) or np.inf


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean of the finite values of each column, [points]; NaN where there is none."""
    finite = np.isfinite(values)
    counts = finite.sum(axis=0)
    return np.where(counts > 0, np.where(finite, values, 0.0).sum(axis=0) / np.maximum(counts, 1), np.nan)


def _draw(axes: Axes, run: _Run, name: str, every: int, color: Color, *, thick: bool, ceiling: float) -> None:
    """One metric of one run: a line for training and one for validation."""
    width, opacity = (1.6, 1.0) if thick else (0.8, 0.6)
    if name in run.train:
        train = run.train[name]
        epochs = np.array_split(train, range(every, train.shape[-1], every), axis=-1)
        means = np.concatenate([_mean(epoch.reshape(-1, 1)) for epoch in epochs])
        kept = np.flatnonzero(np.isfinite(means))
        x, y = kept + 1, np.minimum(means[kept], ceiling)
        dots = "o" if len(epochs) == 1 else "." if len(epochs) <= FEW_POINTS else None
        axes.plot(x, y, "-", marker=dots, ms=4, color=color, lw=width, alpha=opacity, label=run.entry or "_")
        if run.verdict == "diverged" and len(kept):
            axes.plot(x[-1:], y[-1:], "x", color=accent(3), ms=8, mew=2, zorder=3, clip_on=False)
    if name in run.evals:
        means = _mean(run.evals[name])
        kept = np.flatnonzero(np.isfinite(means))
        dots = "o" if len(kept) == 1 else None
        after, y = run.eval_steps[kept] / every, np.minimum(means[kept], ceiling)
        axes.plot(after, y, "--", marker=dots, ms=4, color=color, lw=width, alpha=opacity, label="_")


def _label(axes: Axes, runs: Sequence[_Run], name: str, every: int) -> None:
    trained, validated = (any(name in run.train for run in runs), any(name in run.evals for run in runs))
    kind = " ".join(["training"] * (not validated) + ["validation"] * (not trained) + [name])
    axes.set_ylabel(kind + (", mean of the epoch" if not validated and every > 1 else ""))
    loss_scale(axes, *(line.get_ydata() for line in axes.lines))
    grid(axes)


def _color_bar(axes: Axes, title: str | None, entries: Sequence[str], colors: Sequence[Color]) -> None:
    """The name of every color, or of every second and so on."""
    edges = np.arange(len(entries) + 1) - 0.5
    bar = axes.figure.colorbar(ScalarMappable(BoundaryNorm(edges, len(entries)), listed(colors)), ax=axes)
    step = -(-len(entries) // LABELS_ON_BAR) if title else 1
    bar.set_ticks(list(range(0, len(entries), step)), labels=list(entries)[::step])
    bar.ax.tick_params(which="both", length=0, labelsize=8)
    bar.ax.minorticks_off()
    if title:
        bar.set_label(title)
