"""Snapshots: the parameters at the ends of cycles, then one ensemble or one average of them.

Read `transformation` first: it keeps the parameters during training and reads them afterwards. Then
`ensemble`: it predicts with all snapshots, averages them, and refreshes running statistics.
"""

from .ensemble import EnsemblePrediction as EnsemblePrediction
from .ensemble import average_snapshots as average_snapshots
from .ensemble import ensemble_predict as ensemble_predict
from .ensemble import refresh_batch_stats as refresh_batch_stats
from .transformation import SnapshotAtCycleEndsState as SnapshotAtCycleEndsState
from .transformation import Snapshots as Snapshots
from .transformation import get_snapshots as get_snapshots
from .transformation import snapshot_at_cycle_ends as snapshot_at_cycle_ends

__all__ = [
    "EnsemblePrediction",
    "SnapshotAtCycleEndsState",
    "Snapshots",
    "average_snapshots",
    "ensemble_predict",
    "get_snapshots",
    "refresh_batch_stats",
    "snapshot_at_cycle_ends",
]
