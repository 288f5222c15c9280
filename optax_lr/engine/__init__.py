"""The engine: a training step and lanes of hyperparameters to a table of runs; it knows no rate, loss or optimizer.

A search, and the order to read in: `batches` holds starts and data; `task` says what is trained. It is traced once,
to functions of flat lists of arrays (`traces`, `leaves`); `unchanged` finds the leaves that lanes share. `choose`
picks a `layout`: host threads, a grid of lanes, or a mesh of the user's. `builder` has the functions that train and
evaluate there, `stops` says when a run ends; `program` compiles them, and `programs` keeps them while the user's
function lives. A `machine` has them all, with the `arrays` that all calls read. A `session` is told by an `opening`
what it must know. It appends a plan's rows to the table (`runs`), after a look at them without training
(`reference`), and saves it (`checkpoints`) with the carries that are `kept`. `jobs` packs the rows into chains of
calls, and says how long a call is; `workers` make the calls, write what they report, and hear Ctrl-C. `progress` is
the bar. When all rows have ended, whoever asked reads the table and asks for more. `sweep` asks once.
"""

from .engine import Engine as Engine
from .lengths import Epochs as Epochs
from .results import SweepResult as SweepResult
from .sweep import sweep as sweep

__all__ = [
    "Engine",
    "Epochs",
    "SweepResult",
    "sweep",
]
