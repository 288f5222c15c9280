"""Curves that the pictures are drawn from; all figures are closed after each test."""

import dataclasses

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

import optax_lr as olr
from optax_lr import LRCurve

mpl.use("agg")
RATES = np.geomspace(1e-3, 1, 7)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def curve():
    losses = np.geomspace(3, 1, 12)[None, None] * (1 + np.log(RATES / 0.1) ** 2)[None, :, None]
    losses = np.concatenate([losses, 1.1 * losses]).astype(np.float32)
    stops = np.full((2, 7), -1, np.int32)
    losses[1, 6, 5:], stops[1, 6] = np.nan, 4
    return LRCurve(RATES, losses, losses[..., -1:], np.array([12], np.int32), stops)


@pytest.fixture
def with_error(curve):
    """A curve with an error rate, which is 0 in places, in training and validation at four times."""
    evals = curve.losses[..., 2::3]
    return dataclasses.replace(
        curve,
        eval_losses=evals,
        eval_steps=np.array([3, 6, 9, 12], np.int32),
        metrics={"error": np.clip(curve.losses - 2, 0, 1), "norm": curve.losses},
        eval_metrics={"error": np.clip(evals - 2, 0, 1), "recall": evals},
    )


@pytest.fixture
def grid():
    """3 rates by 2 decays by 2 seeds; the loss is lowest at 0.1 and 0.01, and the largest rate fails at 0.01."""
    lanes = olr.grid(learning_rate=[0.01, 0.1, 1.0], weight_decay=[0.0, 0.01])
    losses = np.array([4.0, 3.0, 2.0, 1.0, 5.0, np.nan], np.float32)[None, :, None] * np.array(
        [[[1]], [[1.5]]]
    )
    stops = np.full((2, 6), -1, np.int32)
    stops[:, 5] = 0
    rates = lanes.pop("learning_rate")
    return LRCurve(
        rates, losses.astype(np.float32), None, np.array([], np.int32), stops, hyperparameters=lanes
    )
