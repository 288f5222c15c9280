"""Choose: a loss, parameters, an optimizer and data to a learning rate.

`problem` is a loss as it is written, `optimizer` a factory and the form in which its rate reaches it, `tables` the
rate of every step; `training` makes a task of them, `inputs` checks and unpacks data, which `folds` parts. `curve`
and `suggestion` are results. `rules` read a rate off runs, `classic` off a ramp. `policy` says what decides which
runs come next: `constant`, `quick`, `finalists`, `budget` and `branches`, with `combinations` for more than the
rate; pure functions of the table. `search` is the one loop; `find` (whose `ways` choose the policy), `sweep`,
`range_test`, `refind` and `compare` are its users. `diagnose` reads histories, `transfer` carries a rate over to
longer runs, larger batches and wider models.
"""

from . import suggest as suggest
from .compare import compare as compare
from .compared import Comparison as Comparison
from .curvature import top_curvature as top_curvature
from .curve import LRCurve as LRCurve
from .diagnose import diagnose as diagnose
from .find import lr_find as lr_find
from .grids import grid as grid
from .problem import Problem as Problem
from .range_test import lr_range_test as lr_range_test
from .refind import lr_refind as lr_refind
from .suggestion import Suggestion as Suggestion
from .sweep import lr_sweep as lr_sweep
from .transfer import lr_transfer as lr_transfer
from .verdict import Verdict as Verdict

__all__ = [
    "Comparison",
    "LRCurve",
    "Problem",
    "Suggestion",
    "Verdict",
    "compare",
    "diagnose",
    "grid",
    "lr_find",
    "lr_range_test",
    "lr_refind",
    "lr_sweep",
    "lr_transfer",
    "suggest",
    "top_curvature",
]
