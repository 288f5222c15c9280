"""Histories of losses, robustly: levels, blocks and jumps, each with the noise of batches.

Each loss is first replaced by the median of itself and its two neighbors: a steady fall stays as it is, and a bad
batch or a heavy tail shifts no mean. The noise of batches is read off the differences of every third of these,
which share no step: s^2 = mean(difference^2) / 2 (von Neumann 1941), which hardly sees a trend.
"""

from typing import NamedTuple

import numpy as np

from ..types import Float
from .comparison import MEDIAN_DIFFERENCE

BLOCKS = 20
# Shorter histories are read as they are.
LEAST_FOR_MEDIANS = 40
# A single high step counts only above so many times the next one: a heavy tail has several.
TAIL, TAIL_BESIDE = 3.0, 2.0
# Histories with fewer steps do not show whether training stood still.
LEAST_STILL = 100


class History(NamedTuple):
    """What a history shows, lane by lane.

    `top` is the level it fell from, `levels` are the means of its thirds, `path` is it in at most 20 blocks. Each
    has its standard error. `wide` is the error of a third by the noise of the last two thirds. `factor` makes the
    rises of a short path those of 20 points.
    """

    points: Float[np.ndarray, "lanes points"]
    top: Float[np.ndarray, "lanes"]
    top_error: Float[np.ndarray, "lanes"]
    levels: Float[np.ndarray, "3 lanes"]
    errors: Float[np.ndarray, "3 lanes"]
    wide: Float[np.ndarray, "lanes"]
    path: Float[np.ndarray, "lanes blocks"]
    path_errors: Float[np.ndarray, "lanes blocks"]
    factor: float


def of_steps(values: np.ndarray) -> History:
    """Training losses, [lanes, steps]."""
    points, apart = medians(values), independent(values)
    steps, count = values.shape[-1], apart.shape[-1]
    first = max(1, steps // BLOCKS)
    late = noise(apart[:, count // 3 :])
    parts = np.array_split(apart, 3, axis=-1)
    noises = [robust_noise(parts[0]), *map(noise, parts[1:])] if count > 9 else [late] * 3
    blocks = np.array_split(points, max(1, min(BLOCKS, steps // 3)), axis=-1)
    edges = np.linspace(0, count, len(blocks) + 1).round().astype(int)
    around = [
        robust_noise(apart[:, edges[max(0, at - 1)] : edges[min(len(blocks), at + 2)]])
        for at in range(len(blocks))
    ]
    return History(
        points=points,
        top=points[:, :first].mean(axis=-1),
        top_error=noises[0] / np.sqrt(max(1, first * count / steps)),
        levels=np.stack([third.mean(axis=-1) for third in np.array_split(points, 3, axis=-1)]),
        errors=np.stack([s / np.sqrt(part.shape[-1]) for s, part in zip(noises, parts, strict=True)]),
        wide=late * np.sqrt(3 / count),
        path=np.stack([block.mean(axis=-1) for block in blocks], axis=-1),
        path_errors=np.stack(around, axis=-1) / np.sqrt(count / len(blocks)),
        factor=1.0,
    )


def of_evals(evals: np.ndarray, times: np.ndarray, values: np.ndarray, train: History) -> History:
    """Validation losses, [lanes, evals], at shares of the run: in 20 points, whatever their number.

    They came from where training did, where training fell and its top is clearly above the first of them. A fixed
    validation set has no noise of its own. Where training stood still and validation moved by no more than the
    noise of batches, and not with it, validation is on a random batch each time and has that noise, too.
    """
    fell = train.top - train.levels[2] > 2 * np.hypot(train.top_error, train.errors[2])
    fell |= train.levels[0] - train.levels[2] > 2 * np.hypot(train.errors[0], train.errors[2])
    came = fell & (train.top - evals[:, 0] > 2 * train.top_error)
    top = np.where(came, train.top, evals[:, 0])
    count = evals.shape[-1]
    if count > BLOCKS:
        parts = np.array_split(np.arange(count), BLOCKS)
        evals = np.stack([np.median(evals[:, part], axis=-1) for part in parts], axis=-1)
        times = np.array([times[part].mean() for part in parts])
    grid = np.arange(1, BLOCKS + 1) / BLOCKS
    # At even intervals, 20 points are the evaluations themselves.
    even = evals.shape[-1] == BLOCKS
    points = evals if even else np.stack([
        np.interp(grid, [0.0, *times], [start, *row]) for start, row in zip(top, evals, strict=True)
    ])  # fmt: skip
    deviation = noise(evals)
    sampled = np.where(_on_random_batches(evals, times, deviation, values, train), deviation, 0.0)
    late = noise(evals[:, evals.shape[-1] // 3 :]) if evals.shape[-1] > 3 else deviation
    error = late * np.sqrt(3 / evals.shape[-1])
    return History(
        points=evals,
        top=top,
        top_error=sampled,
        levels=np.stack([third.mean(axis=-1) for third in np.array_split(points, 3, axis=-1)]),
        errors=np.stack([error] * 3),
        wide=error,
        path=evals,
        path_errors=np.repeat(sampled[:, None], evals.shape[-1], axis=-1),
        factor=(BLOCKS - 1) / max(evals.shape[-1] - 1, 1),
    )


def jump(values: np.ndarray, beside: bool) -> np.ndarray:
    """The highest jump of single steps above the first one, beyond what the other steps show of their tail.

    Args:
      values: training losses, [lanes, steps].
      beside: whether a jump may last for a twentieth of the run; else it is a step or two.
    """
    above = values - values[:, :1]
    away = np.abs(np.arange(values.shape[-1]) - above.argmax(axis=-1)[:, None])
    width, tail = (max(1, values.shape[-1] // BLOCKS), TAIL_BESIDE) if beside else (2, TAIL)
    second = np.where(away > width, above, 0).max(axis=-1)
    return np.maximum(above.max(axis=-1) - tail * np.maximum(second, 0) - 4 * robust_noise(values), 0)


def medians(values: np.ndarray) -> np.ndarray:
    """The running median of three steps; the ends, and a short history, as they are."""
    if values.shape[-1] < LEAST_FOR_MEDIANS:
        return values
    inner = np.median([values[:, :-2], values[:, 1:-1], values[:, 2:]], axis=0)
    return np.concatenate([values[:, :1], inner, values[:, -1:]], axis=-1)


def independent(values: np.ndarray) -> np.ndarray:
    """Every third of the running medians, which share no step; a short history as it is."""
    return values if values.shape[-1] < LEAST_FOR_MEDIANS else medians(values)[:, 1:-1:3]


def noise(values: np.ndarray) -> np.ndarray:
    """The deviation of a point about its trend; 0 of a single point."""
    squares = np.diff(values) ** 2
    return np.sqrt(squares.mean(axis=-1) / 2) if squares.shape[-1] else np.zeros(values.shape[:-1])


def robust_noise(values: np.ndarray) -> np.ndarray:
    """The same by a median, which a few jumps do not move."""
    sizes = np.abs(np.diff(values))
    return np.median(sizes, axis=-1) / MEDIAN_DIFFERENCE if sizes.shape[-1] else np.zeros(values.shape[:-1])


def curvature_noise(values: np.ndarray) -> np.ndarray:
    """The deviation of a point about a line through its neighbors, by a median; of few points as `noise`."""
    bends = np.abs(np.diff(values, 2))
    return np.median(bends, axis=-1) / np.sqrt(6) / 0.6745 if values.shape[-1] >= 5 else noise(values)


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """A part over its whole; 0 where there is no whole."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _on_random_batches(
    evals: np.ndarray, times: np.ndarray, deviation: np.ndarray, values: np.ndarray, train: History
) -> np.ndarray:
    """Whether validation moves as batches do while training stands still."""
    steps = values.shape[-1]
    if steps < LEAST_STILL:
        return np.zeros(len(evals), bool)
    early, late = robust_noise(values[:, : steps // 5]), robust_noise(values[:, -(steps // 3) :])
    means, errors = [train.top, *train.levels], [train.top_error, *train.errors]
    still = (late < 1.6 * early) & (late > early / 1.6)
    for one, other in ((0, 3), (1, 2), (2, 3), (1, 3)):
        still &= np.abs(means[one] - means[other]) < 3 * np.hypot(errors[one], errors[other])
    # Swings of the parameters show in the training loss of the same step; the choice of a batch does not.
    at = (times * steps).astype(int)
    within = at < steps
    together = _correlation(evals[:, within], values[:, at[within]])
    enough = within.sum() >= 15
    limit = np.maximum(0.5 * share(deviation, late), 0.6) if enough else np.inf
    random = still & (deviation < 2 * early) & (together < limit)
    # Or training falls steadily in a noise that stays as it began, and that of validation is the same.
    falls = train.levels[0] - train.levels[1] > -2 * np.hypot(train.errors[0], train.errors[1])
    falls &= train.levels[1] - train.levels[2] > -2 * np.hypot(train.errors[1], train.errors[2])
    end = noise(evals[:, evals.shape[-1] // 2 :])
    same = (late < 1.25 * early) & (late > early / 1.5) & (end < 1.6 * late) & (end > 0.6 * late)
    return random | (falls & same & (together < (0.3 if enough else np.inf)))


def _correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of what is left of both after a running mean of three points."""

    def rest(values: np.ndarray) -> np.ndarray:
        wide = np.pad(values, ((0, 0), (1, 1)), mode="reflect" if values.shape[-1] > 1 else "edge")
        return values - (wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]) / 3

    a, b = rest(one), rest(other)
    return share((a * b).sum(axis=-1), np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1)))
