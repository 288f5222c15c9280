"""Learning rates for JAX and Optax: chosen, shaped over time, shaped over the network, adapted."""

from importlib.metadata import version as _version

from . import curves as curves
from .labels import Labeler as Labeler
from .labels import describe_labels as describe_labels
from .labels import fan_in_multipliers as fan_in_multipliers
from .labels import geometric_multipliers as geometric_multipliers
from .labels import label_by_depth as label_by_depth
from .labels import label_by_fan_in as label_by_fan_in
from .labels import label_by_path as label_by_path
from .labels import layer_decay as layer_decay
from .layerwise import ScaleByLabelState as ScaleByLabelState
from .layerwise import UnfreezeAtState as UnfreezeAtState
from .layerwise import ZeroUntilState as ZeroUntilState
from .layerwise import fine_tune as fine_tune
from .layerwise import scale_by_label as scale_by_label
from .layerwise import set_unfreezing_steps as set_unfreezing_steps
from .layerwise import train_only as train_only
from .layerwise import unfreeze_at as unfreeze_at
from .layerwise import zero_until as zero_until
from .learning_rate import ScaleByLearningRateState as ScaleByLearningRateState
from .learning_rate import clear_learning_rate as clear_learning_rate
from .learning_rate import get_learning_rate as get_learning_rate
from .learning_rate import scale_by_learning_rate as scale_by_learning_rate
from .learning_rate import set_learning_rate as set_learning_rate
from .schedules import anneal_schedule as anneal_schedule
from .schedules import one_cycle_schedule as one_cycle_schedule

__version__ = _version("optax-lr")
