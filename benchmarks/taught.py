"""What practitioners' texts teach about learning rates, tried: a function for each rule, which returns its figures.

`rules.py` runs them and writes docs/rules.md. Here is what they share: scikit-learn's digits (1,257 images to train
on, 540 to validate with) and a network of 64-64-10 with cross-entropy, in batches of 32.
"""

import functools
import importlib
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import optax_lr as olr

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))

STEPS, SEEDS = 600, 3
FINE = np.geomspace(0.003, 3.0, 25)  # a factor of 1.33


Figures: TypeAlias = dict[str, Any]

RULES: dict[str, Callable[[], Figures]] = {}


def rule(measure: Callable[[], Figures]) -> Callable[[], Figures]:
    """Registers a rule under the name of its function."""
    RULES[measure.__name__] = measure
    return measure


_images, _labels = load_digits(return_X_y=True)
TRAIN_X, VALID_X, TRAIN_Y, VALID_Y = train_test_split(
    np.float32(_images / 16), _labels, test_size=540, random_state=0, stratify=_labels
)
VALID = VALID_X, VALID_Y


def batches_of(rows: int = len(TRAIN_Y), size: int = 32, steps: int = STEPS, factor: float = 1.0) -> Any:
    """Shuffled epochs of the first rows, stacked."""
    order = np.concatenate(
        [np.random.default_rng(at).permutation(rows) for at in range(-(-steps * size // rows))]
    )
    order = order[: steps * size].reshape(steps, size)
    return factor * TRAIN_X[order], TRAIN_Y[order]


BATCHES = batches_of()


def init(key: jax.Array) -> Any:
    first, second = jax.random.split(key)
    return {
        "in": jax.random.normal(first, (64, 64)) * (2 / 64) ** 0.5,
        "out": jax.random.normal(second, (64, 10)) / 8,
        "bias": {"in": jnp.zeros(64), "out": jnp.zeros(10)},
    }


def logits_of(params: Any, images: Any) -> jax.Array:
    hidden = jax.nn.relu(images @ params["in"] + params["bias"]["in"])
    return hidden @ params["out"] + params["bias"]["out"]


def loss_fn(params: Any, batch: Any) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits_of(params, batch[0]), batch[1]).mean()


def eval_fn(params: Any, batch: Any) -> dict[str, jax.Array]:
    return {
        "loss": loss_fn(params, batch),
        "error": (logits_of(params, batch[0]).argmax(-1) != batch[1]).mean(),
    }


def momentum(rate: Any) -> optax.GradientTransformation:
    return optax.sgd(rate, momentum=0.9)


def one_cycle(peak: Any) -> Any:
    return olr.one_cycle_schedule(peak, STEPS)


def cosine(peak: Any) -> Any:
    return olr.anneal_schedule(peak, 0.0, STEPS)


PROBLEM = olr.Problem(loss_fn, eval_fn=eval_fn)
QUIET = {"progress": False}


def sweep(
    optimizer: Any = optax.sgd, rates: Any = FINE, batches: Any = BATCHES, **options: Any
) -> olr.LRCurve:
    """Full runs, three seeds of each lane, validated at the end unless the options say otherwise."""
    lanes = {} if "lanes" in options else {"learning_rates": rates}
    options = {"problem": PROBLEM, "params": init, "eval_batch": VALID, "seeds": SEEDS, **lanes, **options}
    return olr.lr_sweep(options.pop("problem"), options.pop("params"), optimizer, batches, **QUIET, **options)


def ends(curve: olr.LRCurve, name: str = "loss") -> np.ndarray:
    """The mean of the seeds of a measure at the end, [lanes]; infinite where one diverged."""
    values = curve.eval_losses if name == "loss" else curve.eval_metrics[name]
    return np.where(curve.stable, values[..., -1].mean(axis=0), np.inf)


def best(curve: olr.LRCurve) -> dict[str, float]:
    """The lane of the lowest validation loss: rate, loss and error."""
    at = int(ends(curve).argmin())
    return {"rate": curve.learning_rates[at], "loss": ends(curve)[at], "error": ends(curve, "error")[at]}


def at_rate(rate: float, optimizer: Any = optax.sgd, **options: Any) -> dict[str, float]:
    return best(sweep(optimizer, [rate], stop_factor=1e9, **options))


@functools.cache
def constant(optimizer: Any = optax.sgd) -> olr.LRCurve:
    return sweep(optimizer)


def by(curve: olr.LRCurve, name: str) -> Iterator[tuple[float, olr.LRCurve]]:
    """The curve of each value of a hyperparameter."""
    for value in np.unique(curve.lanes[name]):
        yield value, curve.take(curve.lanes[name] == value)


@functools.cache
def example(name: str) -> Any:
    """A module of examples/, whose pictures go to out/ as always."""
    module = importlib.import_module(name)
    module.OUT.mkdir(parents=True, exist_ok=True)
    return module
