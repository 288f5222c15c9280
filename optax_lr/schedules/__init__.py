"""Over time: schedules, pure functions of the step.

Read `curves` (the shapes), `times` and `cycles` (where a step stands) and `pieces` (a phase along a curve) first.
Then the schedules: `phases` and `one_cycle` have an end, `tables` list values, `decays` and `cyclical` have none.
`compose` and `warmups` make schedules of schedules; `named` makes them print as the call that made them.

Any number may be a traced JAX value but what sizes a table: the steps of `knot_schedule`, the boundaries of
`piecewise_constant_schedule` and `piecewise_interpolate_schedule`, `Cycles.growth` (and `Cycles.first` where the
growth is not whole), and `num_steps` of `sample_schedule`.
"""

from . import curves as curves
from .compose import add_schedules as add_schedules
from .compose import clip_schedule as clip_schedule
from .compose import in_epochs as in_epochs
from .compose import join_schedules as join_schedules
from .compose import multiply_schedules as multiply_schedules
from .compose import rescale_for_batch as rescale_for_batch
from .compose import sample_schedule as sample_schedule
from .compose import scale_schedule as scale_schedule
from .compose import shift_schedule as shift_schedule
from .cycles import Cycles as Cycles
from .cyclical import cyclical_momentum_schedule as cyclical_momentum_schedule
from .cyclical import cyclical_schedule as cyclical_schedule
from .cyclical import sgdr_schedule as sgdr_schedule
from .decays import exponential_decay as exponential_decay
from .decays import inverse_sqrt_schedule as inverse_sqrt_schedule
from .decays import inverse_time_schedule as inverse_time_schedule
from .one_cycle import cosine_onecycle_schedule as cosine_onecycle_schedule
from .one_cycle import fastai_one_cycle_schedule as fastai_one_cycle_schedule
from .one_cycle import linear_onecycle_schedule as linear_onecycle_schedule
from .one_cycle import one_cycle_momentum_schedule as one_cycle_momentum_schedule
from .one_cycle import one_cycle_schedule as one_cycle_schedule
from .phases import anneal_schedule as anneal_schedule
from .phases import constant_schedule as constant_schedule
from .phases import cosine_decay_schedule as cosine_decay_schedule
from .phases import geometric_schedule as geometric_schedule
from .phases import linear_schedule as linear_schedule
from .phases import polynomial_schedule as polynomial_schedule
from .phases import slanted_triangular_schedule as slanted_triangular_schedule
from .phases import warmup_stable_decay_schedule as warmup_stable_decay_schedule
from .tables import knot_schedule as knot_schedule
from .tables import piecewise_constant_schedule as piecewise_constant_schedule
from .tables import piecewise_interpolate_schedule as piecewise_interpolate_schedule
from .tables import table_schedule as table_schedule
from .warmups import warmup_constant_schedule as warmup_constant_schedule
from .warmups import warmup_cosine_decay_schedule as warmup_cosine_decay_schedule
from .warmups import warmup_exponential_decay_schedule as warmup_exponential_decay_schedule
from .warmups import with_warmup as with_warmup

__all__ = [
    "Cycles",
    "add_schedules",
    "anneal_schedule",
    "clip_schedule",
    "constant_schedule",
    "cosine_decay_schedule",
    "cosine_onecycle_schedule",
    "curves",
    "cyclical_momentum_schedule",
    "cyclical_schedule",
    "exponential_decay",
    "fastai_one_cycle_schedule",
    "geometric_schedule",
    "in_epochs",
    "inverse_sqrt_schedule",
    "inverse_time_schedule",
    "join_schedules",
    "knot_schedule",
    "linear_onecycle_schedule",
    "linear_schedule",
    "multiply_schedules",
    "one_cycle_momentum_schedule",
    "one_cycle_schedule",
    "piecewise_constant_schedule",
    "piecewise_interpolate_schedule",
    "polynomial_schedule",
    "rescale_for_batch",
    "sample_schedule",
    "scale_schedule",
    "sgdr_schedule",
    "shift_schedule",
    "slanted_triangular_schedule",
    "table_schedule",
    "warmup_constant_schedule",
    "warmup_cosine_decay_schedule",
    "warmup_exponential_decay_schedule",
    "warmup_stable_decay_schedule",
    "with_warmup",
]
