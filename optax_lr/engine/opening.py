"""What a session must know before its first plan."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from ..types import PyTree
from .reference import Wanted
from .runs import LOW_LOSS, Judgment, Runs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opening:
    """What a session must know before its first plan.

    Attributes:
      lane: an example of a lane, its tables included; [] of each number, [longest] of each table.
      lanes, seeds: how many of either the first plan has, about.
      longest: the steps of the longest run to come.
      stop_factor: how far a loss may rise before its run is stopped; see `sweep`.
      keep: whose carry is kept when its run has ended: "all", or a function `(runs, row) -> score` and then the row
        of the lowest, or None.
      reference: what is to be known of runs without training before others run, or None.
      ceilings: `(before, rows) -> float32 [rows, longest]`, from the rounds before and the rows of a round: a row
        stops where the average of its loss is above its own. None stops no row so.
      judgment: by what its runs are judged; the table holds it for rules and policies.
      settings: what the search depends on beside task and data, by the name that an error says.
      description: what the bar shows.
    """

    lane: PyTree
    lanes: int
    seeds: int
    longest: int
    stop_factor: float = float("inf")
    keep: Literal["all"] | Callable[[Runs, int], float] | None = None
    reference: Wanted | None = None
    ceilings: Callable[[Runs, Runs], np.ndarray] | None = None
    judgment: Judgment = LOW_LOSS
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    description: str = "sweep"
