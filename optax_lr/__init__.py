"""Learning rates for JAX and Optax: chosen, shaped over time, shaped over the network, adapted."""

from importlib.metadata import version as _version

from . import curves as curves
from .gains import GainStatistics as GainStatistics
from .gains import gain_statistics as gain_statistics
from .gains import scale_by_delta_bar_delta as scale_by_delta_bar_delta
from .gains import scale_by_local_gains as scale_by_local_gains
from .plateau import reduce_on_plateau as reduce_on_plateau
from .resilient import scale_by_rprop as scale_by_rprop
from .schedules import anneal_schedule as anneal_schedule
from .schedules import one_cycle_schedule as one_cycle_schedule

__version__ = _version("optax-lr")
