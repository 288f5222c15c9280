"""What histories of losses say of the rates they were trained at: losses to a `Verdict` for every lane."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ..types import Array, Float, Shaped

# Of NumPy or JAX, or lists of numbers.
Numbers: TypeAlias = np.ndarray | Array | Sequence[Any]

BLOW_UP, OPENING, UNDONE, STEADY, FALLING = 3.0, 0.05, 0.55, 1 / 7, 0.01
# Fewer validation losses do not show how the loss moved; they still show a gap that opens.
LEAST_EVALS = 6
BLOCKS = 20
# Of normal noise, the median of |difference of two values| over the deviation of one.
MEDIAN_DIFFERENCE = 0.954


# By kind of verdict: what its measure says, and what to do.
_VERDICTS = {
    "diverged": ("it blew up {:.0%} into the run", "lower the learning rate, tenfold at first"),
    "overfitting": (
        "validation gave back {:.0%} of its range",
        "stop at the lowest validation loss, or regularize",
    ),
    "too high": ("rises undid {:.0%} of the falls", "lower the learning rate threefold, or warm it up"),
    "too low": ("{:.0%} of its fall came late", "raise the learning rate threefold to tenfold"),
    "plateaued": ("{:.0%} of its fall came late", "stop, or lower the learning rate"),
    "healthy": ("{:.0%} of its fall came late", "keep the learning rate"),
}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Verdict:
    """What histories of losses say of their learning rates, lane by lane; `diagnose` makes it.

    Attributes:
      kind: "diverged", "overfitting", "too high", "too low", "plateaued" or "healthy"; [*lanes].
      measure: the share that the kind rests on, as `diagnose` defines it for each; NaN where the kind is "too low"
        because nothing fell; [*lanes].

    >>> verdict = Verdict(np.array(["healthy", "too low"]), np.array([0.04, np.nan]))
    >>> verdict.kind == "healthy"
    array([ True, False])
    >>> print(verdict[1])
    too low: no fall stands out of the noise; raise the learning rate threefold to tenfold.
    """

    kind: Shaped[np.ndarray, "*lanes"]
    measure: Float[np.ndarray, "*lanes"]

    @property
    def reason(self) -> np.ndarray:
        """What each verdict rests on, in words; [*lanes]."""
        return self._words(_basis)

    @property
    def advice(self) -> np.ndarray:
        """What to do about each lane, in words; [*lanes]."""
        return self._words(lambda kind, measure: _VERDICTS[kind][1])

    def __getitem__(self, lanes: Any) -> "Verdict":
        """The verdicts of some lanes, as NumPy takes them."""
        return Verdict(np.asarray(self.kind[lanes]), np.asarray(self.measure[lanes]))

    def __str__(self) -> str:
        if not self.kind.ndim:
            return f"{self.kind}: {self.reason}; {self.advice}."
        words = zip(self.kind.flat, self.reason.flat, self.advice.flat, strict=True)
        lanes = (", ".join(map(str, lane)) for lane in np.ndindex(self.kind.shape))
        rows = [
            ("lane", "verdict", "because", "what to do"),
            *((lane, *row) for lane, row in zip(lanes, words, strict=True)),
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )

    __repr__ = __str__

    def _words(self, words: Callable[[str, float], str]) -> np.ndarray:
        each = zip(self.kind.ravel().tolist(), self.measure.ravel().tolist(), strict=True)
        return np.array([words(*verdict) for verdict in each], np.str_).reshape(self.kind.shape)


def _basis(kind: str, measure: float) -> str:
    nothing = kind == "too low" and np.isnan(measure)
    return "no fall stands out of the noise" if nothing else _VERDICTS[kind][0].format(measure)


class _History(NamedTuple):
    """Finite losses, and the level that they fall from with its standard error."""

    values: Float[np.ndarray, "lanes points"]
    top: Float[np.ndarray, "lanes"]
    error: Float[np.ndarray, "lanes"]


def diagnose(losses: Numbers, eval_losses: Numbers | None = None) -> Verdict:
    """What each run's losses say of its learning rate: the first of these kinds that fits.

    Every measure is a share of what the loss itself moved, so it has no unit. A, B and C are the means of the
    three thirds of a history, `top` is where it came from: the mean of the first twentieth of the steps.

    1. *diverged*: a loss is not finite, or, as a sweep stops a lane, C - lowest > 3 max(|top|, |lowest|). The
       measure is the share of the run that came before the first such step.
    2. *overfitting*: the last tenth of the validation losses lies above their lowest by more than 5% of their range
       (the measure), which is at least a quarter of their rises since, while the training loss fell on.
    3. *too high*: rises undid more than 55% of the falls: rises / (rises + max(top - C, 0)) (the measure). A loss
       that only falls has 0; one that swings and ends where it began has 1. What counts are rises of the validation
       loss, which the choice of batches does not shake, and the highest jump of the training loss above its first
       value, up to one half, since it was made good; without six validation losses, that jump in full, and rises
       between 20 blocks of steps by more than three standard errors.
    4. *too low*: still falling steadily, (B - C) / (top - C) > 1/7 (the measure; a straight line has 2/5, an
       exponential that has fallen to a 35th 1/7), or no fall at all that stands out of the noise (NaN). Of training
       and validation loss the larger share counts, which is 0 where its fall is lost in a noise that is small
       enough to tell.
    5. *plateaued*: that share is at most 1%; the measure is the share.
    6. *healthy*: falling, ever more slowly; the measure is the same share.

    The noise of batches is read off the differences of successive steps, s^2 = mean(difference^2) / 2 (von Neumann
    1941), which hardly see a trend; to stand out is to exceed two standard errors. The share of variance in
    those differences does not itself tell a rate that is too high: noisy batches swing as much from step to step
    at the best rate. For the same reason a short, noisy run needs `eval_losses` to be told apart from one that has
    converged. A verdict sees its own lane alone; what a curve says of all of them is in `suggest`.

    Args:
      losses: training loss of each step, of any sign, at least 3 steps; [*lanes, steps].
      eval_losses: validation losses at even intervals over the run, at least 1; [*lanes, evals].

    Returns:
      A `Verdict`, whose arrays have shape [*lanes]. Printed, it says what to do about each lane.

    Raises:
      ValueError: not arrays of numbers, too few steps, or other lanes in `eval_losses` than in `losses`.

    Non-finite values: a lane that has one in either loss has diverged; no other lane sees it. A factor on both
    losses changes nothing; neither does a constant added to both, but for finite losses that blow up.

    >>> import optax_lr as olr
    >>> steps = np.arange(100)
    >>> print(olr.diagnose(np.stack([np.exp(-steps / 20), 3 - steps / 1000, np.exp(-steps / 3), 2.0**steps])))
    lane  verdict    because                     what to do
    0     healthy    8% of its fall came late    keep the learning rate
    1     too low    41% of its fall came late   raise the learning rate threefold to tenfold
    2     plateaued  0% of its fall came late    stop, or lower the learning rate
    3     diverged   it blew up 5% into the run  lower the learning rate, tenfold at first

    Source: Smith 2018 (arXiv:1803.09820), section 3, reads the same clues off the same curves by eye.
    """
    train, lanes = _lanes("losses", losses, 3)
    evals = None
    if eval_losses is not None:
        evals, eval_lanes = _lanes("eval_losses", eval_losses, 1)
        if eval_lanes != lanes:
            raise ValueError(
                f"eval_losses must have lanes of shape {lanes}, as losses have, got {eval_lanes}."
            )
    finite = np.isfinite(train).all(axis=-1)
    if evals is not None:
        finite &= np.isfinite(evals).all(axis=-1)
        evals = np.where(finite[:, None], evals, 0.0)
    history = _of_steps(np.where(finite[:, None], train, 0.0))
    beyond = np.where(finite[:, None], train > _limit(history)[:, None], ~np.isfinite(train))
    moved = history if evals is None or evals.shape[-1] < LEAST_EVALS else _of_evals(evals, history)

    late, fell = _late_fall(history)
    late_moved, fell_moved = _late_fall(moved)
    fell, late = fell | fell_moved, np.maximum(np.maximum(late, late_moved), 0)
    opening = np.zeros(len(train)) if evals is None else _opening(evals, history)
    undone = _undone(moved, history)
    found = {
        "diverged": (
            ~finite | (_thirds(history.values)[2] > _limit(history)),
            np.where(beyond.any(axis=-1), beyond.argmax(axis=-1) / train.shape[-1], 1.0),
        ),
        "overfitting": (opening > OPENING, opening),
        "too high": (undone > UNDONE, undone),
        "too low": (~fell | (late > STEADY), np.where(fell, late, np.nan)),
        "plateaued": (late <= FALLING, late),
        "healthy": (np.ones(len(train), bool), late),
    }
    conditions, measures = zip(*found.values(), strict=True)
    return Verdict(
        kind=np.select(conditions, list(found), "").reshape(lanes),
        measure=np.select(conditions, measures).reshape(lanes),
    )


def _lanes(name: str, values: Numbers, least: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """The losses in float64, [lanes, points], and the shape of the lanes."""
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of numbers, got {values!r}.") from error
    if not array.ndim or array.shape[-1] < least or not array.size:
        expected = f"[*lanes, {'steps' if name == 'losses' else 'evals'}], at least {least} of them"
        raise ValueError(f"{name} must be of shape {expected}, got {array.shape}.")
    return array.reshape(-1, array.shape[-1]), array.shape[:-1]


def _of_steps(values: np.ndarray) -> _History:
    count = max(1, values.shape[-1] // BLOCKS)
    return _History(values, values[:, :count].mean(axis=-1), _noise(values) / np.sqrt(count))


def _of_evals(evals: np.ndarray, train: _History) -> _History:
    """Validation losses; they came from where training did, where that is clearly above the first of them."""
    first = evals[:, 0]
    return _History(evals, np.where(train.top - first > 2 * train.error, train.top, first), 0 * first)


def _thirds(values: np.ndarray) -> list[np.ndarray]:
    return [third.mean(axis=-1) for third in np.array_split(values, 3, axis=-1)]


def _noise(values: np.ndarray) -> np.ndarray:
    """The deviation of a value about its trend; the first third, where losses fall fast, is left out."""
    differences = np.diff(values[:, values.shape[-1] // 3 :])
    return np.sqrt((differences**2).mean(axis=-1) / 2)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _limit(train: _History) -> np.ndarray:
    """Where a finite loss has blown up: so far above its lowest level."""
    lowest = np.min([train.top, *_thirds(train.values)], axis=0)
    return lowest + BLOW_UP * np.maximum(np.abs(train.top), np.abs(lowest))


def _late_fall(history: _History) -> tuple[np.ndarray, np.ndarray]:
    """(B - C) / (top - C), or 0 where it is lost in the noise; and whether there is a fall at all that is not."""
    first, middle, last = _thirds(history.values)
    error = _noise(history.values) * np.sqrt(3 / history.values.shape[-1])
    clear = 2 * np.sqrt(2) * error
    fell = (history.top - last > 2 * np.hypot(history.error, error)) | (first - last > clear)
    lost = (middle - last <= clear) & (clear < STEADY * (history.top - last))
    return np.where(lost, 0.0, _share(middle - last, history.top - last)), fell


def _undone(moved: _History, train: _History) -> np.ndarray:
    """The share of the falls that rises undid."""
    steps = train.values.shape[-1]
    # A median, which a few jumps do not move: they are what is looked for.
    noise = np.median(np.abs(np.diff(train.values)), axis=-1) / MEDIAN_DIFFERENCE
    jump = np.maximum(train.values.max(axis=-1) - train.values[:, 0] - 4 * noise, 0)
    if moved is train:
        blocks = np.array_split(train.values, min(BLOCKS, steps // 3), axis=-1)
        path = np.stack([block.mean(axis=-1) for block in blocks], axis=-1)
        ignored = 3 * noise * np.sqrt(2 * len(blocks) / steps)
    else:
        path, ignored = moved.values, 0 * noise
    kept = np.maximum(moved.top - _thirds(moved.values)[2], 0) + ignored
    swings = np.maximum(np.diff(path) - ignored[:, None], 0).sum(axis=-1)
    rises = swings + (jump if moved is train else np.minimum(jump, kept + swings))
    return _share(rises, rises + kept)


def _opening(evals: np.ndarray, train: _History) -> np.ndarray:
    """How far validation rose from its lowest, as a share of its range; 0 where training has not fallen since."""
    (lanes, count), steps = evals.shape, train.values.shape[-1]
    best, lowest = evals.argmin(axis=-1), evals.min(axis=-1)
    rise = evals[:, -max(1, count // 10) :].mean(axis=-1) - lowest
    later = np.arange(count - 1) >= best[:, None]
    rises = np.where(later, np.maximum(np.diff(evals), 0), 0).sum(axis=-1)
    steady = rise > rises / 4

    # The level of training at the lowest validation loss and at the end, each the mean of a twentieth of the run.
    width = max(1, steps // BLOCKS)
    sums = np.cumsum(np.pad(train.values, ((0, 0), (1, 0))), axis=-1)
    at = np.maximum((best + 1) * steps // count, width)
    every = np.arange(lanes)
    fall = (sums[every, at] - sums[every, at - width] - sums[:, -1] + sums[:, -1 - width]) / width
    clear = 2 * _noise(train.values) * np.sqrt(2 / width)
    still_falls = fall > np.maximum(clear, FALLING * (train.top - _thirds(train.values)[2]))
    spread = np.maximum(_of_evals(evals, train).top, evals.max(axis=-1)) - lowest
    return np.where(steady & still_falls, _share(rise, spread), 0.0)
