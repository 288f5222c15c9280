"""Flax NNX: a module to the finders, an optimizer and its rate. The only room that imports flax.

In a training loop:

    found = olr.nnx.lr_find(loss_fn, model, optax.adam, batches)  # the model stays as it is
    optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)
    olr.nnx.set_learning_rate(optimizer, 1e-4)  # in place; nothing is compiled again

Read `modules`, then `finders`; `optimizers` stands alone.
"""

from .finders import lr_find as lr_find
from .finders import lr_range_test as lr_range_test
from .finders import lr_refind as lr_refind
from .finders import lr_sweep as lr_sweep
from .optimizers import clear_learning_rate as clear_learning_rate
from .optimizers import get_learning_rate as get_learning_rate
from .optimizers import get_learning_rates as get_learning_rates
from .optimizers import set_learning_rate as set_learning_rate
from .optimizers import set_unfreezing_steps as set_unfreezing_steps
from .optimizers import trainable as trainable

__all__ = [
    "clear_learning_rate",
    "get_learning_rate",
    "get_learning_rates",
    "lr_find",
    "lr_range_test",
    "lr_refind",
    "lr_sweep",
    "set_learning_rate",
    "set_unfreezing_steps",
    "trainable",
]


def __dir__() -> list[str]:
    return __all__
