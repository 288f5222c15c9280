"""Learning rates for JAX and Optax: chosen, shaped over time, shaped over the network, adapted."""

import importlib as _importlib
from typing import Any as _Any

from .adaptive import GainStatistics as GainStatistics
from .adaptive import gain_statistics as gain_statistics
from .adaptive import local_gains as local_gains
from .adaptive import reduce_on_plateau as reduce_on_plateau
from .adaptive import rprop as rprop
from .adaptive import scale_by_delta_bar_delta as scale_by_delta_bar_delta
from .adaptive import scale_by_local_gains as scale_by_local_gains
from .adaptive import scale_by_rprop as scale_by_rprop
from .carry import CarriedState as CarriedState
from .carry import carry_state as carry_state
from .effective import EffectiveRates as EffectiveRates
from .effective import TrackEffectiveRatesState as TrackEffectiveRatesState
from .effective import effective_rates as effective_rates
from .effective import track_effective_rates as track_effective_rates
from .in_force import describe_learning_rates as describe_learning_rates
from .in_force import learning_rates_in_force as learning_rates_in_force
from .layers import DepthPattern as DepthPattern
from .layers import FineTuneState as FineTuneState
from .layers import Labeler as Labeler
from .layers import MultiplierRule as MultiplierRule
from .layers import ScaleByLabelState as ScaleByLabelState
from .layers import StackedLabel as StackedLabel
from .layers import UnfreezeAtState as UnfreezeAtState
from .layers import WidthCheck as WidthCheck
from .layers import ZeroUntilState as ZeroUntilState
from .layers import at_depth as at_depth
from .layers import check_width_transfer as check_width_transfer
from .layers import describe_labels as describe_labels
from .layers import fan_in_multipliers as fan_in_multipliers
from .layers import fine_tune as fine_tune
from .layers import geometric_multipliers as geometric_multipliers
from .layers import label_by_depth as label_by_depth
from .layers import label_by_fan_in as label_by_fan_in
from .layers import label_by_path as label_by_path
from .layers import label_by_width as label_by_width
from .layers import layer_decay as layer_decay
from .layers import rescale_init as rescale_init
from .layers import scale_by_label as scale_by_label
from .layers import set_unfreezing_steps as set_unfreezing_steps
from .layers import train_only as train_only
from .layers import unfreeze_at as unfreeze_at
from .layers import width_multipliers as width_multipliers
from .layers import zero_until as zero_until
from .learning_rate import ScaleByLearningRateState as ScaleByLearningRateState
from .learning_rate import clear_learning_rate as clear_learning_rate
from .learning_rate import get_learning_rate as get_learning_rate
from .learning_rate import get_learning_rates as get_learning_rates
from .learning_rate import scale_by_learning_rate as scale_by_learning_rate
from .learning_rate import set_learning_rate as set_learning_rate
from .schedules import Cycles as Cycles
from .schedules import add_schedules as add_schedules
from .schedules import anneal_schedule as anneal_schedule
from .schedules import clip_schedule as clip_schedule
from .schedules import constant_schedule as constant_schedule
from .schedules import cosine_decay_schedule as cosine_decay_schedule
from .schedules import cosine_onecycle_schedule as cosine_onecycle_schedule
from .schedules import curves as curves
from .schedules import cyclical_momentum_schedule as cyclical_momentum_schedule
from .schedules import cyclical_schedule as cyclical_schedule
from .schedules import exponential_decay as exponential_decay
from .schedules import fastai_one_cycle_schedule as fastai_one_cycle_schedule
from .schedules import geometric_schedule as geometric_schedule
from .schedules import in_epochs as in_epochs
from .schedules import inverse_sqrt_schedule as inverse_sqrt_schedule
from .schedules import inverse_time_schedule as inverse_time_schedule
from .schedules import join_schedules as join_schedules
from .schedules import knot_schedule as knot_schedule
from .schedules import linear_onecycle_schedule as linear_onecycle_schedule
from .schedules import linear_schedule as linear_schedule
from .schedules import multiply_schedules as multiply_schedules
from .schedules import one_cycle_momentum_schedule as one_cycle_momentum_schedule
from .schedules import one_cycle_schedule as one_cycle_schedule
from .schedules import piecewise_constant_schedule as piecewise_constant_schedule
from .schedules import piecewise_interpolate_schedule as piecewise_interpolate_schedule
from .schedules import polynomial_schedule as polynomial_schedule
from .schedules import rescale_for_batch as rescale_for_batch
from .schedules import sample_schedule as sample_schedule
from .schedules import scale_schedule as scale_schedule
from .schedules import sgdr_schedule as sgdr_schedule
from .schedules import shift_schedule as shift_schedule
from .schedules import slanted_triangular_schedule as slanted_triangular_schedule
from .schedules import table_schedule as table_schedule
from .schedules import warmup_constant_schedule as warmup_constant_schedule
from .schedules import warmup_cosine_decay_schedule as warmup_cosine_decay_schedule
from .schedules import warmup_exponential_decay_schedule as warmup_exponential_decay_schedule
from .schedules import warmup_stable_decay_schedule as warmup_stable_decay_schedule
from .schedules import with_warmup as with_warmup
from .snapshots import EnsemblePrediction as EnsemblePrediction
from .snapshots import SnapshotAtCycleEndsState as SnapshotAtCycleEndsState
from .snapshots import Snapshots as Snapshots
from .snapshots import average_snapshots as average_snapshots
from .snapshots import ensemble_predict as ensemble_predict
from .snapshots import get_snapshots as get_snapshots
from .snapshots import refresh_batch_stats as refresh_batch_stats
from .snapshots import snapshot_at_cycle_ends as snapshot_at_cycle_ends
from .visible import VisibleState as VisibleState
from .visible import visible as visible

# For type checkers alone, which know the name. What is named here loads when it is first used: the finder and its
# engine, that `import optax_lr` is quick, and `nnx` and `plots`, which import Flax and matplotlib.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import nnx as nnx
    from . import plots as plots
    from .engine import Engine as Engine
    from .engine import Epochs as Epochs
    from .engine import SweepResult as SweepResult
    from .engine import sweep as sweep  # type: ignore[no-redef]
    from .finder import Comparison as Comparison
    from .finder import LRCurve as LRCurve
    from .finder import Problem as Problem
    from .finder import Suggestion as Suggestion
    from .finder import Verdict as Verdict
    from .finder import compare as compare  # type: ignore[no-redef]
    from .finder import diagnose as diagnose  # type: ignore[no-redef]
    from .finder import grid as grid
    from .finder import lr_find as lr_find
    from .finder import lr_range_test as lr_range_test
    from .finder import lr_refind as lr_refind
    from .finder import lr_sweep as lr_sweep
    from .finder import lr_transfer as lr_transfer
    from .finder import suggest as suggest
    from .finder import top_curvature as top_curvature

_LATE = {
    "engine": (
        "Engine",
        "Epochs",
        "SweepResult",
        "sweep",
    ),
    "finder": (
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
    ),
}

__version__ = "0.2.0"

__all__ = [
    "CarriedState",
    "Comparison",
    "Cycles",
    "DepthPattern",
    "EffectiveRates",
    "Engine",
    "EnsemblePrediction",
    "Epochs",
    "FineTuneState",
    "GainStatistics",
    "LRCurve",
    "Labeler",
    "MultiplierRule",
    "Problem",
    "ScaleByLabelState",
    "ScaleByLearningRateState",
    "SnapshotAtCycleEndsState",
    "Snapshots",
    "StackedLabel",
    "Suggestion",
    "SweepResult",
    "TrackEffectiveRatesState",
    "UnfreezeAtState",
    "Verdict",
    "VisibleState",
    "WidthCheck",
    "ZeroUntilState",
    "add_schedules",
    "anneal_schedule",
    "at_depth",
    "average_snapshots",
    "carry_state",
    "check_width_transfer",
    "clear_learning_rate",
    "clip_schedule",
    "compare",
    "constant_schedule",
    "cosine_decay_schedule",
    "cosine_onecycle_schedule",
    "curves",
    "cyclical_momentum_schedule",
    "cyclical_schedule",
    "describe_labels",
    "describe_learning_rates",
    "diagnose",
    "effective_rates",
    "ensemble_predict",
    "exponential_decay",
    "fan_in_multipliers",
    "fastai_one_cycle_schedule",
    "fine_tune",
    "gain_statistics",
    "geometric_multipliers",
    "geometric_schedule",
    "get_learning_rate",
    "get_learning_rates",
    "get_snapshots",
    "grid",
    "in_epochs",
    "inverse_sqrt_schedule",
    "inverse_time_schedule",
    "join_schedules",
    "knot_schedule",
    "label_by_depth",
    "label_by_fan_in",
    "label_by_path",
    "label_by_width",
    "layer_decay",
    "learning_rates_in_force",
    "linear_onecycle_schedule",
    "linear_schedule",
    "local_gains",
    "lr_find",
    "lr_range_test",
    "lr_refind",
    "lr_sweep",
    "lr_transfer",
    "multiply_schedules",
    "nnx",
    "one_cycle_momentum_schedule",
    "one_cycle_schedule",
    "piecewise_constant_schedule",
    "piecewise_interpolate_schedule",
    "plots",
    "polynomial_schedule",
    "reduce_on_plateau",
    "refresh_batch_stats",
    "rescale_for_batch",
    "rescale_init",
    "rprop",
    "sample_schedule",
    "scale_by_delta_bar_delta",
    "scale_by_label",
    "scale_by_learning_rate",
    "scale_by_local_gains",
    "scale_by_rprop",
    "scale_schedule",
    "set_learning_rate",
    "set_unfreezing_steps",
    "sgdr_schedule",
    "shift_schedule",
    "slanted_triangular_schedule",
    "snapshot_at_cycle_ends",
    "suggest",
    "sweep",
    "table_schedule",
    "top_curvature",
    "track_effective_rates",
    "train_only",
    "unfreeze_at",
    "visible",
    "warmup_constant_schedule",
    "warmup_cosine_decay_schedule",
    "warmup_exponential_decay_schedule",
    "warmup_stable_decay_schedule",
    "width_multipliers",
    "with_warmup",
    "zero_until",
]


def __getattr__(name: str) -> _Any:
    if name in ("nnx", "plots"):
        return _importlib.import_module(f".{name}", __name__)
    for folder, names in _LATE.items():
        if name in names:
            found = getattr(_importlib.import_module(f".{folder}", __name__), name)
            globals()[name] = found
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
