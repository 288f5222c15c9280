"""Learning rates for JAX and Optax: chosen, shaped over time, shaped over the network, adapted."""

from importlib.metadata import version as _version

from . import curves as curves
from .compose import clip_schedule as clip_schedule
from .compose import in_epochs as in_epochs
from .compose import join_schedules as join_schedules
from .compose import multiply_schedules as multiply_schedules
from .compose import rescale_for_batch as rescale_for_batch
from .compose import sample_schedule as sample_schedule
from .compose import scale_schedule as scale_schedule
from .compose import shift_schedule as shift_schedule
from .compose import with_warmup as with_warmup
from .cycles import Cycles as Cycles
from .cyclical import cyclical_momentum_schedule as cyclical_momentum_schedule
from .cyclical import cyclical_schedule as cyclical_schedule
from .cyclical import sgdr_schedule as sgdr_schedule
from .decays import exponential_decay_schedule as exponential_decay_schedule
from .decays import inverse_sqrt_schedule as inverse_sqrt_schedule
from .decays import inverse_time_schedule as inverse_time_schedule
from .decays import multistep_decay_schedule as multistep_decay_schedule
from .decays import polynomial_decay_schedule as polynomial_decay_schedule
from .decays import step_decay_schedule as step_decay_schedule
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
from .schedules import geometric_schedule as geometric_schedule
from .schedules import knot_schedule as knot_schedule
from .schedules import one_cycle_momentum_schedule as one_cycle_momentum_schedule
from .schedules import one_cycle_schedule as one_cycle_schedule
from .schedules import slanted_triangular_schedule as slanted_triangular_schedule
from .schedules import warmup_stable_decay_schedule as warmup_stable_decay_schedule

__version__ = _version("optax-lr")
