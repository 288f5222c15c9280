"""Pictures: the only room that imports matplotlib. Every function draws on `ax`, or on new axes, and returns it."""

import contextlib
import io
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from . import checks
from .finder import suggest
from .finder.curve import LRCurve
from .finder.diagnose import diagnose
from .finder.suggestion import Suggestion
from .schedules.compose import sample_schedule
from .types import ScalarLike, Schedule

# Without its brightest tenth, which is hard to see on white.
COLORS = ListedColormap(plt.get_cmap("viridis")(np.linspace(0, 0.9, 256)))
ACCENT = "#d62728"
LANES_IN_LEGEND = 14
DASHES = ("--", "-.", ":", (0, (1, 3)), (0, (8, 3)), (0, (3, 1, 1, 1, 1, 1)))
LABELS_ON_AXIS = 12
USUAL_METRICS = ("loss", "error")


def plot_lr_curve(
    curve: LRCurve, *, suggestion: Suggestion | None = None, rules: bool = False, ax: Axes | None = None
) -> Axes:
    """Loss against learning rate: the mean over the seeds, their range as a band, and where lanes diverged.

    Args:
      curve: the curve of a sweep.
      suggestion: drawn as a line, its interval as a shaded span, its shorter runs as gray curves.
      rules: whether the common rules are drawn as lines, too.
      ax: where to draw; new axes by default.

    Raises:
      ValueError: every rate diverged.
    """
    axes = ax or plt.subplots(figsize=(7.5, 4.6), layout="constrained")[1]
    losses = suggest.final_losses(curve)
    kept = np.isfinite(losses).all(axis=0)
    rates, values = curve.learning_rates, losses[:, kept]
    steps = curve.losses.shape[-1]
    kind = "training" if curve.eval_losses is None else "validation"
    length = f"{steps} steps" if steps > 1 else "one step a rate"
    axes.plot(rates[kept], values.mean(axis=0), "o-", color="black", ms=4, lw=1.4, label=length, zorder=3)
    if len(losses) > 1:
        band = (values.min(axis=0), values.max(axis=0))
        axes.fill_between(rates[kept], *band, color="black", alpha=0.15, lw=0, label="range of seeds")
    shorter = () if suggestion is None else suggestion.shorter
    for shade, short in zip(np.linspace(0.75, 0.5, len(shorter)), shorter, strict=True):
        means, length = suggest.final_losses(short).mean(axis=0), f"{short.losses.shape[-1]} steps"
        axes.plot(short.learning_rates, means, ".-", color=str(shade), ms=4, lw=1, label=length)
    lost = np.unique(np.concatenate([each.learning_rates[~each.stable] for each in (*shorter, curve)]))
    if len(lost):
        top = np.full(len(lost), 0.97)
        crosses = axes.plot(lost, top, "x", color=ACCENT, ms=7, mew=1.8, label="diverged")
        crosses[0].set_transform(axes.get_xaxis_transform())
    if suggestion is not None and suggestion.finalists is not None:
        full = suggestion.finalists
        ends = suggest.final_losses(full).mean(axis=0)
        label = f"full runs, {full.losses.shape[-1]} steps"
        axes.plot(full.learning_rates, ends, "s-", color=COLORS(0.4), ms=6, lw=1.4, label=label, zorder=3)
    if suggestion is not None:
        span = f"interval {suggestion.low:.2g} to {suggestion.high:.2g}"
        axes.axvspan(suggestion.low, suggestion.high, color=COLORS(0.6), alpha=0.25, lw=0, label=span)
        label = f"suggestion {suggestion.learning_rate:.3g}"
        axes.axvline(suggestion.learning_rate, color=COLORS(0.4), lw=2, label=label)
    if rules:
        said = (suggestion and suggestion.rules) or suggest.classic(curve)
        for (name, rate), dashes in zip(said.items(), itertools.cycle(DASHES), strict=False):
            axes.axvline(rate, color="gray", lw=1.2, ls=dashes, label=f"{name} {rate:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel=f"{kind} loss" + " at the end" * (steps > 1))
    if (values > 0).all():
        axes.set_yscale("log")
        _log_ticks(axes.yaxis)
    axes.grid(alpha=0.25)
    return _legend_outside(axes)


def plot_histories(
    curve: LRCurve,
    *,
    metrics: str | Sequence[str] = USUAL_METRICS,
    steps_per_epoch: int | None = None,
    ax: Axes | Sequence[Axes] | None = None,
) -> Axes:
    """Loss and error over time, side by side: one color a rate, training solid, validation dashed.

    A cross stands where a run was stopped. The legend gives the verdict of `diagnose` on each lane: "diverged"
    where any seed did, else what it says of most seeds.

    Args:
      curve: the curve of a sweep; the mean over the seeds that are still running is drawn.
      metrics: what is drawn, a panel each: "loss", and names of what `has_aux` or `eval_fn` reported. Of the
        default ones, those that the curve lacks are passed over.
      steps_per_epoch: average training over epochs of that many steps, and count epochs; by default every step is
        drawn.
      ax: where to draw, one for each panel; a new figure by default.

    Returns:
      The axes of the first panel; `axes.figure.axes` are all of them.

    Raises:
      ValueError: the curve lacks a metric, there are more panels than axes, or `steps_per_epoch` is below 1.

    >>> curve = LRCurve(np.array([0.1, 0.2]), np.full((1, 2, 9), np.arange(9, 0, -1), np.float32), None,
    ...                 np.array([], np.int32), np.full((1, 2), -1, np.int32))
    >>> axes = plot_histories(curve)
    >>> [text.get_text() for text in axes.get_legend().get_texts()]
    ['0.2, too low', '0.1, too low']
    >>> plt.close(axes.figure)
    """
    names = _metrics(curve, metrics)
    every = 1 if steps_per_epoch is None else checks.size("steps_per_epoch", steps_per_epoch)
    panels = _panels(ax, len(names))
    rates, labels = curve.learning_rates, _labels(curve)
    norm = LogNorm(rates.min(), rates.max() if rates.max() > rates.min() else rates.min() * 1.01)
    colors = [COLORS(norm(rate)) for rate in rates]
    last = panels[-1]
    # Drawn first, since the legend is read from the last to the first.
    if any(values is not None for name in names for values in _history(curve, name)[1:]):
        averaged = "training, mean of the epoch" if every > 1 else "training"
        for style, kind in (("--", "validation"), ("-", averaged)):
            last.plot([], [], style, color="gray", lw=1.4, label=kind)
    for name, axes in zip(names, panels, strict=True):
        _draw_histories(axes, curve, name, every, colors, labels)
        axes.set_xlabel("step" if steps_per_epoch is None else "epoch")
    if len(rates) > LANES_IN_LEGEND:
        last.figure.colorbar(ScalarMappable(norm, COLORS), ax=last, label="learning rate")
    else:
        _legend_outside(last, title="learning rate", reverse=True)
    return panels[0]


def plot_grid(curve: LRCurve, *, ax: Axes | None = None) -> Axes:
    """The loss at the end over two hyperparameters, as a heat map: the mean over the seeds, one cell a lane.

    The best cell is framed, and a cross stands where any seed diverged.

    Args:
      curve: the curve of a sweep over lanes in which two hyperparameters vary, as `grid` makes them.
      ax: where to draw; new axes by default.

    Returns:
      The axes, with the first hyperparameter to the right and the second one upward, in equal steps.

    Raises:
      ValueError: not two hyperparameters vary, or two lanes have the same two values.

    >>> import optax_lr as olr
    >>> lanes = olr.grid(learning_rate=[0.1, 0.3], weight_decay=[0.0, 0.01, 0.1])
    >>> losses = np.arange(1, 7, dtype=np.float32).reshape(1, 6, 1)
    >>> curve = LRCurve(lanes.pop("learning_rate"), losses, None, np.array([], np.int32),
    ...                 np.full((1, 6), -1, np.int32), hyperparameters=lanes)
    >>> axes = plot_grid(curve)
    >>> axes.get_xlabel(), axes.get_ylabel()
    ('learning_rate', 'weight_decay')
    >>> plt.close(axes.figure)
    """
    varying = {name: values for name, values in curve.lanes.items() if len(np.unique(values)) > 1}
    if len(varying) != 2:
        found = ", ".join(varying) or "none does"
        raise ValueError(
            f"plot_grid needs a curve in which two hyperparameters vary, got {len(varying)}: {found}."
        )
    ticks, places = zip(*(np.unique(values, return_inverse=True) for values in varying.values()), strict=True)
    cells = np.full([len(values) for values in ticks], np.nan)
    counts = Counter(zip(*places, strict=True))
    if counts.most_common(1)[0][1] > 1:
        raise ValueError(
            "plot_grid needs one lane for each pair of values, got several; curve.take picks some."
        )
    for lane, place in enumerate(zip(*places, strict=True)):
        with contextlib.suppress(ValueError):  # It diverged.
            cells[place] = suggest.final_losses(curve.take([lane])).mean()
    axes = ax or plt.subplots(figsize=(7.5, 4.6), layout="constrained")[1]
    positive = np.nanmin(cells, initial=np.inf) > 0 and np.isfinite(cells).any()
    mesh = axes.pcolormesh(
        cells.T, cmap=COLORS.reversed(), norm="log" if positive else None, ec="white", lw=1
    )
    kind = "training" if curve.eval_losses is None else "validation"
    bar = axes.figure.colorbar(mesh, ax=axes, label=f"{kind} loss at the end")
    if positive:
        _log_ticks(bar.ax.yaxis)
    lost = np.array([place for place in counts if np.isnan(cells[place])]).reshape(-1, 2) + 0.5
    if len(lost):
        axes.plot(*lost.T, "x", color=ACCENT, ms=8, mew=2, label="diverged")
    if np.isfinite(cells).any():
        best = divmod(int(np.nanargmin(cells)), cells.shape[1])
        values = ", ".join(f"{values[at]:.3g}" for values, at in zip(ticks, best, strict=True))
        frame = Rectangle(
            best,
            1,
            1,
            fill=False,
            ec=ACCENT,
            lw=2.5,
            clip_on=False,
            label=f"best, {cells[best]:.3g} at {values}",
        )
        axes.add_patch(frame)
    for axis, values, name in zip((axes.xaxis, axes.yaxis), ticks, varying, strict=True):
        shown = np.arange(0, len(values), -(-len(values) // LABELS_ON_AXIS))
        axis.set_ticks(shown + 0.5, [f"{value:.3g}" for value in values[shown]])
        axis.set_label_text(name)
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.01), borderaxespad=0, frameon=False, ncols=2, fontsize=9
    )
    return axes


def plot_schedules(
    schedules: Mapping[str, Schedule],
    num_steps: int,
    *,
    steps_per_epoch: ScalarLike | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Schedules over the steps of a run, one line each.

    Args:
      schedules: schedule by name, at least one; names stand in the legend.
      num_steps: how many steps are drawn, from 0 on, at least 1.
      steps_per_epoch: where given, the axis counts epochs. The schedules still read steps.
      ax: where to draw; None for a new figure.

    Returns:
      The axes, for the caller to show or save: `ax.figure.savefig("schedules.png")`.

    Raises:
      ValueError: there is no schedule, one is not a function, or a number is out of its range.

    >>> import optax_lr as olr
    >>> ax = plot_schedules({"cosine": olr.anneal_schedule(0.1, 0.0, 100)}, 100)
    >>> ax.get_xlabel(), len(ax.lines)
    ('step', 1)
    >>> plt.close(ax.figure)
    """
    if not isinstance(schedules, Mapping) or not schedules:
        raise ValueError(f"schedules must be a dict with at least one name and schedule, got {schedules!r}.")
    epoch = 1 if steps_per_epoch is None else checks.steps("steps_per_epoch", steps_per_epoch)
    lines = {name: np.asarray(sample_schedule(part, num_steps)) for name, part in schedules.items()}
    axes = ax or plt.subplots(figsize=(7.5, 4.2), layout="constrained")[1]
    for name, values in lines.items():
        axes.plot(np.arange(len(values)) / np.asarray(epoch), values, lw=1.8, label=name)
    axes.set(xlabel="step" if steps_per_epoch is None else "epoch", ylabel="value")
    axes.grid(alpha=0.25)
    return _legend_outside(axes)


def png(axes: Axes) -> bytes:
    """The picture as a PNG file. The figure is closed, so that a notebook shows it once."""
    buffer = io.BytesIO()
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.savefig(buffer, format="png", bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()


def _metrics(curve: LRCurve, metrics: str | Sequence[str]) -> list[str]:
    """The metrics to draw; the usual ones only where the curve has them."""
    known = ["loss", *dict.fromkeys([*curve.metrics, *curve.eval_metrics])]
    wanted = [metrics] if isinstance(metrics, str) else list(metrics)
    if metrics is USUAL_METRICS:
        return [name for name in wanted if name in known]
    if not wanted:
        raise ValueError(f"metrics must name at least one metric; {checks.close_match('', known)}")
    for name in wanted:
        if name not in known:
            raise ValueError(f"metrics: the curve has no {name!r}; {checks.close_match(name, known)}")
    return wanted


def _panels(ax: Axes | Sequence[Axes] | None, count: int) -> list[Axes]:
    """Axes for each panel, side by side where they are new."""
    if ax is None:
        return list(
            plt.subplots(1, count, figsize=(2.5 + 5 * count, 4.6), layout="constrained", squeeze=False)[1][0]
        )
    given = [ax] if isinstance(ax, Axes) else list(np.ravel(np.asarray(ax, object)))
    if len(given) != count:
        raise ValueError(f"ax must be one axes for each of {count} panels, got {len(given)}.")
    return given


def _history(curve: LRCurve, name: str) -> tuple[np.ndarray | None, np.ndarray | None]:
    """A metric in training and in validation, [seeds, lanes, points]; None where it was not taken."""
    if name == "loss":
        return curve.losses, curve.eval_losses
    return curve.metrics.get(name), curve.eval_metrics.get(name)


def _labels(curve: LRCurve) -> list[str]:
    """For each lane its hyperparameters and, where there are steps enough, its verdict."""
    rates, *others = curve.axes
    columns = [[f"{value:.2g}" for value in curve.lanes[rates]]]
    columns += [[f"{name} {value:.2g}" for value in curve.lanes[name]] for name in others]
    if curve.losses.shape[-1] >= 3:
        kinds = diagnose(curve.losses, curve.eval_losses).kind
        columns.append(
            [
                "diverged" if "diverged" in seeds else Counter(seeds).most_common(1)[0][0]
                for seeds in kinds.T.tolist()
            ]
        )
    return [", ".join(words) for words in zip(*columns, strict=True)]


def _draw_histories(
    axes: Axes, curve: LRCurve, name: str, every: int, colors: Sequence[Any], labels: Sequence[str]
) -> None:
    """One metric over time: a line for training and one for validation in the color of each lane."""
    history = [
        None if values is None else np.where(np.isfinite(values), values, np.nan)
        for values in _history(curve, name)
    ]
    train, evals = history
    # What blows up is cut off, so that the rates that train fill the picture.
    first = [np.nanmax(np.abs(values[..., 0]), initial=0) for values in history if values is not None]
    ceiling = 10 * max(first) or np.inf
    for lane, (color, label) in enumerate(zip(colors, labels, strict=True)):
        if train is not None:
            epochs = np.array_split(train[:, lane], range(every, train.shape[-1], every), axis=-1)
            kept = [at for at, epoch in enumerate(epochs) if np.isfinite(epoch).any()]
            x, y = np.array(kept) + 1, np.minimum([np.nanmean(epochs[at]) for at in kept], ceiling)
            style, width = (".-", 1.4) if len(epochs) <= 50 else ("-", 0.9)
            axes.plot(x, y, style, ms=4, color=color, lw=width, label=label)
            if (curve.diverged_at[:, lane] >= 0).any() and kept:
                axes.plot(x[-1], y[-1], "x", color=ACCENT, ms=8, mew=2, zorder=3, clip_on=False)
        if evals is not None:
            taken = np.isfinite(evals[:, lane]).any(axis=0)
            means = np.minimum(np.nanmean(evals[:, lane][:, taken], axis=0), ceiling)
            shown = "_" + label if train is not None else label
            axes.plot(curve.eval_steps[taken] / every, means, "--", color=color, lw=1.4, label=shown)
    kind = " ".join(["training"] * (evals is None) + ["validation"] * (train is None) + [name])
    axes.set_ylabel(kind + (", mean of the epoch" if evals is None and every > 1 else ""))
    drawn = np.concatenate([np.asarray(line.get_ydata()) for line in axes.lines])
    if (drawn > 0).all() and len(drawn):
        axes.set_yscale("log")
        _log_ticks(axes.yaxis)
    axes.grid(alpha=0.25)


def _log_ticks(axis: Axis) -> None:
    """Numbers at 1, 2 and 5 of each decade: a loss often spans less than one."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _legend_outside(axes: Axes, **options: Any) -> Axes:
    """A legend beside the axes, where it covers no data."""
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, frameon=False, fontsize=9, **options
    )
    return axes
