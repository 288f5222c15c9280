"""Learning rates for JAX and Optax: chosen, shaped over time, shaped over the network, adapted."""

from importlib.metadata import version as _version

from . import curves as curves
from . import suggest as suggest
from .finder import lr_find as lr_find
from .finder import lr_sweep as lr_sweep
from .results import LRCurve as LRCurve
from .results import Suggestion as Suggestion
from .results import SweepResult as SweepResult
from .schedules import anneal_schedule as anneal_schedule
from .schedules import one_cycle_schedule as one_cycle_schedule
from .sweep import sweep as sweep

__version__ = _version("optax-lr")
