"""Adaptively: by the sign of the gradient, or by a metric.

Read `signs` first, what gains and Rprop share; then `gains`, `rprop`, and `statistics`, which reads the states of
both. `plateau` stands alone: a metric to a scale of all updates.
"""

from .gains import local_gains as local_gains
from .gains import scale_by_delta_bar_delta as scale_by_delta_bar_delta
from .gains import scale_by_local_gains as scale_by_local_gains
from .plateau import reduce_on_plateau as reduce_on_plateau
from .rprop import rprop as rprop
from .rprop import scale_by_rprop as scale_by_rprop
from .statistics import GainStatistics as GainStatistics
from .statistics import gain_statistics as gain_statistics

__all__ = [
    "GainStatistics",
    "gain_statistics",
    "local_gains",
    "reduce_on_plateau",
    "rprop",
    "scale_by_delta_bar_delta",
    "scale_by_local_gains",
    "scale_by_rprop",
]
