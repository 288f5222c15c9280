"""Over the network: parameter paths to labels, and labels to learning rates.

Read `labels` (what a label is), then how labels are made: `patterns`, `layouts`, `labelers` and `depths`.
`multipliers` are for labels, and `tables` print both. What acts on updates: `scaling`, `freezing`, and
`unfreezing`, which builds on `per_label` and `optimizer_steps`. `fine_tuning` puts all of it together. From a small
model to a wide one: `growth` (which axes have grown), `width` and `width_check`.
"""

from .depths import DepthPattern as DepthPattern
from .depths import at_depth as at_depth
from .depths import label_by_depth as label_by_depth
from .fine_tuning import FineTuneState as FineTuneState
from .fine_tuning import fine_tune as fine_tune
from .freezing import ZeroUntilState as ZeroUntilState
from .freezing import set_unfreezing_steps as set_unfreezing_steps
from .freezing import train_only as train_only
from .freezing import zero_until as zero_until
from .labelers import label_by_fan_in as label_by_fan_in
from .labelers import label_by_path as label_by_path
from .labels import Labeler as Labeler
from .labels import StackedLabel as StackedLabel
from .multipliers import MultiplierRule as MultiplierRule
from .multipliers import fan_in_multipliers as fan_in_multipliers
from .multipliers import geometric_multipliers as geometric_multipliers
from .multipliers import layer_decay as layer_decay
from .scaling import ScaleByLabelState as ScaleByLabelState
from .scaling import scale_by_label as scale_by_label
from .tables import describe_labels as describe_labels
from .unfreezing import UnfreezeAtState as UnfreezeAtState
from .unfreezing import unfreeze_at as unfreeze_at
from .width import label_by_width as label_by_width
from .width import rescale_init as rescale_init
from .width import width_multipliers as width_multipliers
from .width_check import WidthCheck as WidthCheck
from .width_check import check_width_transfer as check_width_transfer

__all__ = [
    "DepthPattern",
    "FineTuneState",
    "Labeler",
    "MultiplierRule",
    "ScaleByLabelState",
    "StackedLabel",
    "UnfreezeAtState",
    "WidthCheck",
    "ZeroUntilState",
    "at_depth",
    "check_width_transfer",
    "describe_labels",
    "fan_in_multipliers",
    "fine_tune",
    "geometric_multipliers",
    "label_by_depth",
    "label_by_fan_in",
    "label_by_path",
    "label_by_width",
    "layer_decay",
    "rescale_init",
    "scale_by_label",
    "set_unfreezing_steps",
    "train_only",
    "unfreeze_at",
    "width_multipliers",
    "zero_until",
]
