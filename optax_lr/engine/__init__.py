"""The engine: many training runs from one compiled program."""

from .results import SweepResult as SweepResult
from .sweep import sweep as sweep
