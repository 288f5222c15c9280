"""A model of runs: what some runs at some rates, lengths and seeds say of all rates at the horizon.

Over the rate (in octaves, log2) and the length (in halvings, log2 of the horizon over it) the values of runs are a
Gaussian process plus a free offset for each length:

    k(a, b) = height^2 matern52(|u_a - u_b| / width) exp(-(halvings_a - halvings_b)^2 / (2 * 4^2)),
    u = octave - slope * halvings

so the curve of one length is that of another, moved by the drift of the best rate. Beyond the longest runs it goes
on by a slope of its own, which that between lengths tells only in part. Half of the noise is the seed's, shared by
all rates that ran on it. The slopes, `width`, `height` and `noise` are a mixture, weighed by evidence.

Lost runs have no value; their chance is logistic((octave - edge - fall * halvings) / softness), a mixture, too.

Source: Rasmussen and Williams 2006, "Gaussian Processes for Machine Learning", eq. 2.25, 2.26, 2.30 and 4.17.
"""

import copy
import itertools
from typing import NamedTuple

import numpy as np

from ..types import Bool, Float, Int

# By how many octaves the best rate rises where runs are half as long, the mean and the deviation of the prior.
SLOPES, SLOPE_MEAN, SLOPE_DEVIATION = (-0.4, 0.0, 0.4, 0.8, 1.2), 0.5, 0.4
# How much of what the slope between lengths differs from the mean goes on beyond the longest runs.
GOES_ON = 0.3
# How many octaves wide a bowl is, how high, and the noise.
WIDTHS, HEIGHTS, NOISES = (1.5, 3.0), (0.3, 1.0), (0.005, 0.02, 0.06, 0.2)
# Lengths that differ by so many halvings have curves of about one shape; the deviation of a free offset.
ALIKE_HALVINGS, OFFSET = 4.0, 10.0
# Of the variance of the noise, what all runs of one seed have in common.
SHARED = 0.5
# By how many octaves the edge of divergence falls where runs are twice as long; over how many it is crossed, and
# over how many where runs have no noise. How many octaves apart the edges are that may be, and those of the latter.
FALLS, SOFTNESSES, SHARP = (0.0, 0.25), (0.1, 0.3, 1.0), (0.02,)
APART, SHARP_APART = 0.25, 0.0625
# Members of less weight than this, relative to the best, are left out.
LEAST_WEIGHT = 1e-2


class Points(NamedTuple):
    """Runs that were made, or might be: rates in octaves, lengths in halvings, seeds; each [points]."""

    octaves: Float[np.ndarray, " points"]
    halvings: Float[np.ndarray, " points"]
    seeds: Int[np.ndarray, " points"]


def at_horizon(octaves: Float[np.ndarray, " points"]) -> Points:
    """Rates of runs of the whole horizon, of seed 0."""
    return Points(octaves, np.zeros(len(octaves)), np.zeros(len(octaves), int))


class Values:
    """The posterior of the values of all rates of a grid at the horizon, up to a constant.

    Attributes:
      weights: of the members of the mixture, [members].
      means: of the values, [members, points].
      covariances: [members, points, points].
    """

    def __init__(self, seen: Points, values: Float[np.ndarray, " rows"], grid: Float[np.ndarray, " points"]):
        every = np.array(list(itertools.product(SLOPES, WIDTHS, HEIGHTS, NOISES)))
        factor = np.linalg.cholesky(_observed(every, seen))
        white = np.linalg.solve(factor, np.broadcast_to(values[:, None], (len(every), len(values), 1)))
        self.evidence = -0.5 * (white[..., 0] ** 2).sum(1)
        self.evidence -= np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(1)
        slopes, beyond = every[:, :1], np.array(SLOPES)
        prior = (slopes - SLOPE_MEAN) ** 2 + (beyond - SLOPE_MEAN - GOES_ON * (slopes - SLOPE_MEAN)) ** 2
        logs = self.evidence[:, None] - 0.5 * prior / SLOPE_DEVIATION**2
        member, goes_on = np.nonzero(logs >= logs.max() + np.log(LEAST_WEIGHT))
        self.weights, self._grid = np.exp(logs[member, goes_on] - logs.max()), grid
        self.weights /= self.weights.sum()
        moved = (beyond[goes_on] - every[member, 0]) * seen.halvings.min()
        self._horizon = at_horizon(grid)._replace(octaves=grid + moved[:, None])
        self._know(every[member], factor[member], seen)
        self.means = (self._whitened.swapaxes(1, 2) @ white[member])[..., 0]

    def _know(self, members: np.ndarray, factor: np.ndarray, seen: Points) -> None:
        horizon = self._horizon
        self._members, self._factor, self._seen = members, factor, seen
        self._whitened = np.linalg.solve(factor, _smooth(members, seen, horizon))
        explained = self._whitened.swapaxes(1, 2) @ self._whitened
        self.covariances = _smooth(members, horizon, horizon) - explained

    def expecting(self, runs: Points) -> "Values":
        """The posterior when some further runs will have been made and have surprised nobody."""
        every = Points(*(np.concatenate(pair) for pair in zip(self._seen, runs, strict=True)))
        later = copy.copy(self)
        later._know(self._members, np.linalg.cholesky(_observed(self._members, every)), every)
        return later

    @property
    def mean(self) -> Float[np.ndarray, " points"]:
        """The mean over the members, [points]."""
        return self.weights @ self.means

    def moved_by(self, runs: Points) -> Float[np.ndarray, "members points runs"]:
        """By how much one more run moves each mean at the horizon, for a surprise of one deviation."""
        seen, members = self._seen, self._members
        cross = _smooth(members, seen, runs) + _common(members, seen, runs)
        whitened = np.linalg.solve(self._factor, cross)
        spread = _smooth(members, self._horizon, runs) - self._whitened.swapaxes(1, 2) @ whitened
        alone = members[:, 2] ** 2 + OFFSET**2 + members[:, 3] ** 2
        return spread / np.sqrt(alone[:, None] - (whitened**2).sum(1))[:, None, :]

    def draws(self, count: int, rng: np.random.Generator) -> Float[np.ndarray, "count points"]:
        """Curves at the horizon that may be."""
        jitter = 1e-6 * np.eye(len(self._grid))
        factors = np.linalg.cholesky(self.covariances + jitter)
        of = rng.choice(len(self.weights), count, p=self.weights)
        noise = rng.standard_normal((count, len(self._grid), 1))
        return self.means[of] + (factors[of] @ noise)[..., 0]


class Edge:
    """The posterior of the chance that a run is lost, which rises with its rate; where it is `sharp`, at one."""

    def __init__(
        self,
        seen: Points,
        lost: Bool[np.ndarray, " rows"],
        grid: Float[np.ndarray, " points"],
        *,
        sharp: bool = False,
    ):
        edges = np.arange(grid[0] - 4, grid[-1] + 8, SHARP_APART if sharp else APART)
        every = np.meshgrid(edges, FALLS, SHARP if sharp else SOFTNESSES, indexing="ij")
        self._edge, self._fall, self._softness = map(np.ravel, every)
        chance = np.clip(self._chances(seen), 1e-6, 1 - 1e-6)
        logs = np.where(lost, np.log(chance), np.log1p(-chance)).sum(1)
        left = logs >= logs.max() + np.log(LEAST_WEIGHT) - np.log(len(edges))
        self._edge, self._fall, self._softness = self._edge[left], self._fall[left], self._softness[left]
        self.weights = np.exp(logs[left] - logs.max())
        self.weights /= self.weights.sum()

    def chance(self, runs: Points) -> Float[np.ndarray, " points"]:
        """The chance that each of some runs is lost, [points]."""
        return self.weights @ self._chances(runs)

    def draws(self, runs: Points, count: int, rng: np.random.Generator) -> Float[np.ndarray, "count points"]:
        """The chances that runs are lost, where each of its members may be the right one."""
        return self._chances(runs)[rng.choice(len(self.weights), count, p=self.weights)]

    def after(
        self, grid: Float[np.ndarray, " points"], runs: Points
    ) -> tuple[Float[np.ndarray, "points runs"], Float[np.ndarray, "points runs"]]:
        """The chances at the horizon after each of some further runs, where it was lost and where it was not."""
        ours, theirs = self._chances(at_horizon(grid)), self._chances(runs)
        weighed = self.weights[:, None] * ours
        most = self.chance(runs)
        lost, kept = weighed.T @ theirs, weighed.T @ (1 - theirs)
        return lost / np.maximum(most, 1e-12), kept / np.maximum(1 - most, 1e-12)

    def _chances(self, runs: Points) -> Float[np.ndarray, "members points"]:
        above = runs.octaves - self._edge[:, None] - self._fall[:, None] * runs.halvings
        return 1 / (1 + np.exp(np.clip(-above / self._softness[:, None], -60, 60)))


def _smooth(members: np.ndarray, one: Points, other: Points) -> Float[np.ndarray, "members one other"]:
    """The covariance of the curves, offsets and noise aside."""
    slope, width, height = (members[:, at, None, None] for at in range(3))
    apart = one.halvings[:, None] - other.halvings
    octaves = np.abs(one.octaves[..., :, None] - other.octaves[..., None, :] - slope * apart)
    scaled = np.sqrt(5) * octaves / width
    along = np.exp(-0.5 * (apart / ALIKE_HALVINGS) ** 2)
    return height**2 * (1 + scaled + scaled**2 / 3) * np.exp(-scaled) * along


def _common(members: np.ndarray, one: Points, other: Points) -> Float[np.ndarray, "members one other"]:
    """What runs of one length have in common, and those of one seed of it."""
    length = one.halvings[:, None] == other.halvings
    seed = length & (one.seeds[:, None] == other.seeds)
    return OFFSET**2 * length + SHARED * members[:, 3, None, None] ** 2 * seed


def _observed(members: np.ndarray, seen: Points) -> Float[np.ndarray, "members rows rows"]:
    own = (1 - SHARED) * members[:, 3, None, None] ** 2 * np.eye(len(seen.octaves))
    return _smooth(members, seen, seen) + _common(members, seen, seen) + own
