"""What a history of losses says of its learning rate: the kind, what it rests on, and what to do."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from ..types import Bool, Float, Shaped
from .display import aligned

# By kind of verdict: what its measure says, and what to do.
_VERDICTS = {
    "diverged": ("it blew up {:.0%} into the run", "lower the learning rate, tenfold at first"),
    "overfitting": (
        "validation gave back {:.0%} of its range",
        "stop at the lowest validation loss, or regularize",
    ),
    "too high": ("rises undid {:.0%} of the falls", "lower the learning rate threefold, or warm it up"),
    "solved": ("the training loss is 0", "stop: these batches teach no more; judge the model by validation"),
    "too low": ("{:.0%} of its fall came late", "raise the learning rate threefold to tenfold"),
    "plateaued": ("{:.0%} of its fall came late", "stop, or lower the learning rate"),
    "healthy": ("{:.0%} of its fall came late", "keep the learning rate"),
}

# Where lanes were compared, and where a history alone does not tell.
_COMPARED = {
    "too high": ("it lost {:.0%} of the fall of the best rate, which is lower", "lower the learning rate"),
    "too low": ("it lost {:.0%} of the fall of the best rate, which is higher", "raise the learning rate"),
    "healthy": ("no rate that was tried beside it ends clearly lower", "keep the learning rate"),
}
_UNTOLD = (
    "no fall stands out of the noise",
    "it cannot be told from an optimum or a dead network: compare a tenth and ten times the rate",
)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Verdict:
    """What histories of losses say of their learning rates, lane by lane; `diagnose` makes it.

    Attributes:
      kind: "diverged", "overfitting", "solved", "too high", "too low", "plateaued" or "healthy"; [*lanes].
      measure: the share that the kind rests on, as `diagnose` defines it for each; NaN where the kind is "too low"
        because nothing fell; [*lanes].
      compared: whether the kind comes from a comparison with the other lanes of a curve, or None; [*lanes].

    >>> verdict = Verdict(np.array(["healthy", "too low"]), np.array([0.04, np.nan]))
    >>> verdict.kind == "healthy"
    array([ True, False])
    >>> print(verdict[1])
    too low: no fall stands out of the noise; it cannot be told from an optimum or a dead network: \
compare a tenth and ten times the rate.
    """

    kind: Shaped[np.ndarray, "*lanes"]
    measure: Float[np.ndarray, "*lanes"]
    compared: Bool[np.ndarray, "*lanes"] | None = None

    @property
    def reason(self) -> np.ndarray:
        """What each verdict rests on, in words; [*lanes]."""
        return self._words(lambda words, measure: words[0].format(measure))

    @property
    def advice(self) -> np.ndarray:
        """What to do about each lane, in words; [*lanes]."""
        return self._words(lambda words, measure: words[1])

    def __getitem__(self, lanes: Any) -> "Verdict":
        """The verdicts of some lanes, as NumPy takes them."""
        compared = None if self.compared is None else np.asarray(self.compared[lanes])
        return Verdict(np.asarray(self.kind[lanes]), np.asarray(self.measure[lanes]), compared)

    def __str__(self) -> str:
        if not self.kind.ndim:
            return f"{self.kind}: {self.reason}; {self.advice}."
        words = zip(self.kind.flat, self.reason.flat, self.advice.flat, strict=True)
        lanes = (", ".join(map(str, lane)) for lane in np.ndindex(self.kind.shape))
        rows = [
            ("lane", "verdict", "because", "what to do"),
            *((lane, *row) for lane, row in zip(lanes, words, strict=True)),
        ]
        return "\n".join(aligned(rows))

    __repr__ = __str__

    def _words(self, words: Callable[[tuple[str, str], float], str]) -> np.ndarray:
        compared = np.zeros(self.kind.shape, bool) if self.compared is None else self.compared
        each = zip(self.kind.flat, self.measure.flat, compared.flat, strict=True)
        said = [words(_said(str(kind), measure, bool(other)), measure) for kind, measure, other in each]
        return np.array(said, np.str_).reshape(self.kind.shape)


def _said(kind: str, measure: float, compared: bool) -> tuple[str, str]:
    if compared:
        return _COMPARED[kind]
    return _UNTOLD if kind == "too low" and np.isnan(measure) else _VERDICTS[kind]
