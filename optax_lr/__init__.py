"""Learning rates for JAX and Optax: chosen, shaped over time, shaped over the network, adapted."""

from importlib.metadata import version as _version

from . import curves as curves
from . import suggest as suggest
from .finder import lr_find as lr_find
from .finder import lr_sweep as lr_sweep
from .gains import GainStatistics as GainStatistics
from .gains import gain_statistics as gain_statistics
from .gains import local_gains as local_gains
from .gains import scale_by_delta_bar_delta as scale_by_delta_bar_delta
from .gains import scale_by_local_gains as scale_by_local_gains
from .learning_rate import ScaleByLearningRateState as ScaleByLearningRateState
from .learning_rate import clear_learning_rate as clear_learning_rate
from .learning_rate import get_learning_rate as get_learning_rate
from .learning_rate import scale_by_learning_rate as scale_by_learning_rate
from .learning_rate import set_learning_rate as set_learning_rate
from .plateau import reduce_on_plateau as reduce_on_plateau
from .resilient import rprop as rprop
from .resilient import scale_by_rprop as scale_by_rprop
from .results import LRCurve as LRCurve
from .results import Suggestion as Suggestion
from .results import SweepResult as SweepResult
from .schedules import anneal_schedule as anneal_schedule
from .schedules import one_cycle_schedule as one_cycle_schedule
from .sweep import sweep as sweep

__version__ = _version("optax-lr")
