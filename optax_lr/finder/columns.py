"""The numbers of a curve as columns of a table, for pandas."""

import importlib
from typing import Any

import numpy as np


def columns(curve: Any) -> dict[str, np.ndarray]:
    """Every number of an `LRCurve` by name, in rows of one seed, lane and step."""
    seeds, lanes, steps = curve.losses.shape
    evals = {} if curve.eval_losses is None else {"eval_loss": curve.eval_losses}
    evals |= {f"eval_{name}": values for name, values in curve.eval_metrics.items()}
    times = np.union1d(np.arange(steps), curve.eval_steps if evals else [])
    taken = {"loss": curve.losses, **curve.metrics}
    found = {name: np.full((seeds, lanes, len(times)), np.nan) for name in (*taken, *evals)}
    for name, values in taken.items():
        found[name][..., np.searchsorted(times, np.arange(steps))] = values
    for name, values in evals.items():
        found[name][..., np.searchsorted(times, curve.eval_steps)] = values
    seed, lane, step = np.indices((seeds, lanes, len(times)))
    stopped = curve.diverged_at[..., None]
    kept = (stopped < 0) | (times[step] <= stopped)
    named = {"seed": seed, "lane": lane, "step": times[step].astype(int)}
    named |= {name: np.asarray(values)[lane] for name, values in curve.lanes.items()}
    return {name: values[kept] for name, values in (named | found).items()}


def dataframe_of(curve: Any) -> Any:
    """The columns as a pandas `DataFrame`.

    Raises:
      ImportError: pandas is not installed.
    """
    try:
        pandas = importlib.import_module("pandas")
    except ImportError as error:
        raise ImportError("to_dataframe needs pandas: pip install pandas.") from error
    return pandas.DataFrame(columns(curve))
