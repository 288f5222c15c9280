"""What histories of losses say of the rates they were trained at: losses to a `Verdict` for every lane."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from ..types import Array
from .comparison import SEARCH_LEVEL, noise_threshold, untrained_loss
from .curve import LRCurve
from .histories import BLOCKS, History, curvature_noise, jump, of_evals, of_steps, share
from .losses import as_losses, judged_losses
from .verdict import Verdict

# Of NumPy or JAX, or lists of numbers.
Numbers: TypeAlias = np.ndarray | Array | Sequence[Any]

BLOW_UP, OPENING, UNDONE, STEADY, FALLING = 3.0, 0.05, 0.55, 1 / 7, 0.01
# Fewer validation losses do not show how the loss moved; they still show a gap that opens.
LEAST_EVALS = 5
# A validation loss has risen where it is above its lowest by so many deviations of its own noise.
RISEN = 1.5
# A lane of a curve ends clearly worse where it lost this share of the fall of the best.
CLEARLY = 0.1


def diagnose(losses: Numbers | LRCurve, eval_losses: Numbers | None = None) -> Verdict:
    """What each run's losses say of its learning rate: the first of these kinds that fits.

    Every measure is a share of what the loss itself moved, so it has no unit. A, B and C are the means of the
    three thirds of a history, `top` is where it came from: the mean of the first twentieth of the steps. All are
    means over running medians of three steps, so that a few bad batches or a heavy tail move none of them.

    1. *diverged*: a loss is not finite, or C - lowest > 3 max(|top|, |first|, |lowest|) and the validation loss,
       where there is one, has risen, too. The measure is the share of the run that came before the first such step.
    2. *overfitting*: the last tenth of the validation losses lies above their lowest by more than 5% of their range
       (the measure), which is at least a quarter of their rises since and stands out of their noise, while the
       training loss fell on.
    3. *solved*: the training losses, none of them negative, are 0 over the last third.
    4. *too high*: rises undid more than 55% of the falls: rises / (rises + max(top - C, 0)) (the measure). A loss
       that only falls has 0; one that swings and ends where it began has 1. What counts are rises of the validation
       loss, as many as 20 evaluations would show, and the highest jump of the training loss above its first
       value, up to one half, since it was made good; without five validation losses, that jump in full, and rises
       between 20 blocks of steps by more than three standard errors. A jump counts as far as it stands out of the
       other high steps: rare bad batches are no jumps.
    5. *too low*: still falling steadily, (B - C) / (top - C) > 1/7 (the measure; a straight line has 2/5, an
       exponential that has fallen to a 35th 1/7), or no fall at all that stands out of the noise (NaN). Of training
       and validation loss the larger share counts, which is 0 where its fall is lost in a noise that is small
       enough to tell. Where validation clearly fell no more, a training loss that falls on is no reason to raise
       the rate: that is *plateaued*.
    6. *plateaued*: that share is at most 1%; the measure is the share.
    7. *healthy*: falling, ever more slowly; the measure is the same share.

    To stand out is to exceed two standard errors of the noise of batches, read off the differences of successive
    steps. A validation loss on a fixed set has no such noise; on a random batch each time it has that of training
    (see `histories.of_evals`). A history that shows no fall at all is "too low" with a measure of NaN: whether it
    stands at an optimum, or the network is dead, a history alone cannot tell. For the same reason a short, noisy
    run needs `eval_losses` to be told apart from one that has converged.

    Of a curve, lanes are compared, by the metric that judges it: a lane above the best rate whose loss ends higher,
    by more than the noise and by a tenth of what the best fell from the untrained loss, is *too high*, one below it
    *too low* (the measure is the share of that fall that it lost). The others keep their verdict, but only a lane
    above the best rate is too high, and only one below it too low; the best itself where it is the lowest or the
    highest rate.

    Args:
      losses: training loss of each step, of any sign, at least 3 steps; [*lanes, steps]. Or an `LRCurve`, with
        lanes [seeds, lanes]; its validation losses count at every fifth of the run, however many there are.
      eval_losses: validation losses at even intervals over the run, at least 1; [*lanes, evals].

    Returns:
      A `Verdict`, whose arrays have the shape of the lanes. Printed, it says what to do about each lane.

    Raises:
      ValueError: not arrays of numbers, too few steps, other lanes in `eval_losses` than in `losses`, or
        `eval_losses` beside a curve.

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
    if isinstance(losses, LRCurve):
        if eval_losses is not None:
            raise ValueError("eval_losses must not be given beside a curve, which has its own.")
        return _compared(as_losses(losses))
    train, lanes = _lanes("losses", losses, 3)
    evals = None
    if eval_losses is not None:
        evals, eval_lanes = _lanes("eval_losses", eval_losses, 1)
        if eval_lanes != lanes:
            raise ValueError(
                f"eval_losses must have lanes of shape {lanes}, as losses have, got {eval_lanes}."
            )
    times = None if evals is None else np.arange(1, evals.shape[-1] + 1) / evals.shape[-1]
    kind, measure = _first(_kinds(train, evals, times))
    return Verdict(kind=kind.reshape(lanes), measure=measure.reshape(lanes))


def _compared(curve: LRCurve) -> Verdict:
    """The verdicts on the runs of a curve, of each against those that differ in the rate alone."""
    seeds, lanes, steps = curve.losses.shape
    train, _ = _lanes("the losses of a curve", curve.losses, 3)
    evals, times = _at_fifths(curve)
    found = _kinds(train, None if evals is None else evals.reshape(seeds * lanes, -1), times)
    lost, sides = np.zeros((seeds, lanes)), np.zeros((2, seeds, lanes), bool)
    others = [curve.lanes[name] for name in curve.axes[1:]]
    for group in {tuple(values[lane] for values in others) for lane in range(lanes)}:
        alike = [values == value for values, value in zip(others, group, strict=True)]
        part = np.flatnonzero(np.all([np.ones(lanes, bool), *alike], axis=0))
        part = part[np.argsort(curve.learning_rates[part], kind="stable")]
        lost[:, part], sides[..., part] = _lost(curve.take(part))
    shares = lost.reshape(-1)
    worse = shares > CLEARLY
    own, _ = _first(found)
    for kind, side in zip(("too high", "too low"), sides.reshape(2, -1), strict=True):
        said, measure = found[kind]
        found[kind] = side & (said | worse), np.where(worse, shares, measure)
    for kind in ("overfitting", "solved"):
        found[kind] = found[kind][0] & ~worse, found[kind][1]
    stopped = curve.diverged_at.reshape(-1)
    blown, measure = found["diverged"]
    found["diverged"] = blown | (stopped >= 0), np.where(blown, measure, stopped / steps)
    kinds, measures = _first(found)
    judged = (worse & np.isin(kinds, ("too high", "too low"))) | ((kinds == "healthy") & (own != "healthy"))
    shape = (seeds, lanes)
    return Verdict(kinds.reshape(shape), measures.reshape(shape), judged.reshape(shape))


def _at_fifths(curve: LRCurve) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The validation losses at every fifth of the run, so that their number changes no verdict."""
    if curve.eval_losses is None:
        return None, None
    times = curve.eval_steps / curve.losses.shape[-1]
    if len(times) < LEAST_EVALS:
        return curve.eval_losses.astype(np.float64), times
    fifths = np.arange(1, 6) / 5
    rows = curve.eval_losses.reshape(-1, len(times)).astype(np.float64)
    return np.stack([np.interp(fifths, times, row) for row in rows]), fifths


def _lost(curve: LRCurve) -> tuple[np.ndarray, np.ndarray]:
    """Which share of the fall of the best lane each lost, where noise does not explain it, and its sides.

    The sides are above and below the best rate. The best itself is on one where no lane lies beyond it.
    """
    losses = judged_losses(curve)[-1][1]
    means, lanes = losses.mean(axis=0), np.arange(losses.shape[1])
    if np.isnan(means).all():
        return np.zeros(losses.shape), np.ones((2, *losses.shape), bool)
    best = int(np.nanargmin(means))
    ends = lanes == best
    sides = np.stack([(lanes > best) | (ends & (best == 0)), (lanes < best) | (ends & (best == lanes[-1]))])
    above = means - means[best]
    untrained = untrained_loss(curve).value
    fall = np.full_like(means, untrained - means[best])
    lost = np.where(
        above > noise_threshold(losses - untrained, SEARCH_LEVEL, folds=curve.folds), share(above, fall), 0.0
    )
    return np.broadcast_to(lost, losses.shape), np.broadcast_to(sides[:, None], (2, *losses.shape))


def _kinds(
    train: np.ndarray, evals: np.ndarray | None, times: np.ndarray | None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each kind whether a history is of it, and its measure; the first that fits is the verdict."""
    finite = np.isfinite(train).all(axis=-1)
    if evals is not None:
        finite &= np.isfinite(evals).all(axis=-1)
        evals = np.where(finite[:, None], evals, 0.0)
    values = np.where(finite[:, None], train, 0.0)
    history = of_steps(values)
    moved = history
    if evals is not None and times is not None and evals.shape[-1] >= LEAST_EVALS:
        moved = of_evals(evals, times, values, history)
    limit = _limit(history, values[:, 0])
    beyond = np.where(finite[:, None], train > limit[:, None], ~np.isfinite(train))
    blown = history.levels[2] > limit
    if evals is not None:
        blown &= np.median(evals[:, -max(1, evals.shape[-1] // 3) :], axis=-1) > evals[:, 0]

    late, fell, _ = _late_fall(history)
    late_moved, fell_moved, told = _late_fall(moved)
    larger = np.maximum(np.maximum(late, late_moved), 0)
    flat = fell_moved & told & (late_moved <= FALLING) & (larger > STEADY)
    late = larger if moved is history else np.where(flat, np.maximum(late_moved, 0), larger)
    fell |= fell_moved
    opening = np.zeros(len(train)) if evals is None else _opening(evals, moved, history, values.shape[-1])
    undone = _undone(moved, history, values)
    end = values[:, -(-2 * values.shape[-1] // 3) :]
    return {
        "diverged": (
            ~finite | blown,
            np.where(beyond.any(axis=-1), beyond.argmax(axis=-1) / train.shape[-1], 1.0),
        ),
        "overfitting": (opening > OPENING, opening),
        "solved": ((values >= 0).all(axis=-1) & (end == 0).all(axis=-1), late),
        "too high": (undone > UNDONE, undone),
        "too low": (~fell | (late > STEADY), np.where(fell, late, np.nan)),
        "plateaued": (late <= FALLING, late),
        "healthy": (np.ones(len(train), bool), late),
    }


def _first(found: dict[str, tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    conditions, measures = zip(*found.values(), strict=True)
    return np.select(conditions, list(found), ""), np.select(conditions, measures)


def _lanes(name: str, values: Numbers, least: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """The losses in float64, [lanes, points], and the shape of the lanes."""
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of numbers, got {values!r}.") from error
    if not array.ndim or array.shape[-1] < least or not array.size:
        expected = f"[*lanes, {'evals' if name == 'eval_losses' else 'steps'}], at least {least} of them"
        raise ValueError(f"{name} must be of shape {expected}, got {array.shape}.")
    return array.reshape(-1, array.shape[-1]), array.shape[:-1]


def _limit(train: History, first: np.ndarray) -> np.ndarray:
    """Where a finite loss has blown up: so far above its lowest level."""
    lowest = np.min([train.top, *train.levels], axis=0)
    return lowest + BLOW_UP * np.max(np.abs([train.top, first, lowest]), axis=0)


def _late_fall(history: History) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(B - C) / (top - C), or 0 where it is lost in the noise.

    And whether there is a fall at all that is not, and whether the noise is small enough to see a hundredth of it.
    """
    first, middle, last = history.levels
    errors = history.errors
    # A noisy start may lie below the first third.
    whole = np.maximum(history.top, first) - last
    fell = (whole > 2 * np.hypot(history.top_error, errors[2])) | (
        first - last > 2 * np.hypot(errors[0], errors[2])
    )
    clear = 2 * np.sqrt(2) * history.wide
    # The top itself is known to its error only.
    sure = whole - 2 * np.hypot(history.top_error, errors[2])
    lost = (middle - last <= clear) & (clear < STEADY * sure)
    told = 2 * np.hypot(errors[1], errors[2]) < FALLING * whole
    return np.where(lost, 0.0, share(middle - last, whole)), fell, told


def _undone(moved: History, train: History, values: np.ndarray) -> np.ndarray:
    """The share of the falls that rises undid."""
    ignored = 3 * np.hypot(moved.path_errors[:, 1:], moved.path_errors[:, :-1])
    kept = np.maximum(moved.top - moved.levels[2], 0) + ignored.max(axis=-1, initial=0)
    swings = np.maximum(np.diff(moved.path) - ignored, 0).sum(axis=-1) * moved.factor
    jumped = jump(values, beside=moved is not train)
    rises = swings + (jumped if moved is train else np.minimum(jumped, kept + swings))
    return share(rises, rises + kept)


def _opening(evals: np.ndarray, moved: History, train: History, steps: int) -> np.ndarray:
    """How far validation rose from its lowest, as a share of its range; 0 where training has not fallen since."""
    lanes, count = evals.shape
    best, lowest = evals.argmin(axis=-1), evals.min(axis=-1)
    rise = evals[:, -max(1, count // 10) :].mean(axis=-1) - lowest
    later = np.arange(count - 1) >= best[:, None]
    rises = np.where(later, np.maximum(np.diff(evals), 0), 0).sum(axis=-1)
    clear = curvature_noise(moved.path) if moved is not train else 0.0
    steady = (rise > rises / 4) & (rise > RISEN * clear)

    # The level of training at the lowest validation loss and at the end, each the mean of a twentieth of the run.
    width = max(1, steps // BLOCKS)
    sums = np.cumsum(np.pad(train.points, ((0, 0), (1, 0))), axis=-1)
    at = np.maximum((best + 1) * steps // count, width)
    every = np.arange(lanes)
    fall = (sums[every, at] - sums[every, at - width] - sums[:, -1] + sums[:, -1 - width]) / width
    # `wide` is the error of a third of the run.
    error = 2 * train.wide * np.sqrt(2 * max(1, steps / 3 / width))
    still_falls = fall > np.maximum(error, FALLING * (train.top - train.levels[2]))
    top = np.maximum(train.top, evals[:, 0]) if moved is train else moved.top
    spread = np.maximum(top, evals.max(axis=-1)) - lowest
    return np.where(steady & still_falls, share(rise, spread), 0.0)
