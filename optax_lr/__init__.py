"""Learning rates for JAX and Optax: chosen, shaped over time, shaped over the network, adapted."""

from importlib.metadata import version as _version

from . import curves as curves
from .learning_rate import ScaleByLearningRateState as ScaleByLearningRateState
from .learning_rate import clear_learning_rate as clear_learning_rate
from .learning_rate import get_learning_rate as get_learning_rate
from .learning_rate import scale_by_learning_rate as scale_by_learning_rate
from .learning_rate import set_learning_rate as set_learning_rate
from .schedules import anneal_schedule as anneal_schedule
from .schedules import one_cycle_schedule as one_cycle_schedule

__version__ = _version("optax-lr")
