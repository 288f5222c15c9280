"""Over the network: parameter paths to labels, and labels to rates."""

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
