"""Adaptively: by the sign of the gradient, or by a metric."""

from .gains import GainStatistics as GainStatistics
from .gains import gain_statistics as gain_statistics
from .gains import local_gains as local_gains
from .gains import scale_by_delta_bar_delta as scale_by_delta_bar_delta
from .gains import scale_by_local_gains as scale_by_local_gains
from .plateau import reduce_on_plateau as reduce_on_plateau
from .rprop import rprop as rprop
from .rprop import scale_by_rprop as scale_by_rprop
