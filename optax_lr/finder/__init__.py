"""Choose: a loss, parameters, an optimizer and data to a learning rate."""

from . import suggest as suggest
from .curve import LRCurve as LRCurve
from .diagnose import Verdict as Verdict
from .diagnose import diagnose as diagnose
from .find import lr_find as lr_find
from .find import lr_sweep as lr_sweep
from .grids import grid as grid
from .range_test import lr_range_test as lr_range_test
from .refind import lr_refind as lr_refind
from .suggestion import Suggestion as Suggestion
