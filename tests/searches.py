"""Every public search on a tiny problem: what the tests of flags, contexts, meshes and hosts go through."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import optax_lr as olr
import optax_lr.nnx

DRAW = np.random.default_rng(0)
BATCHES = DRAW.normal(size=(8, 8, 4)).astype(np.float32)
PARAMS = {"w": DRAW.normal(size=(4, 8)).astype(np.float32) / 2, "v": np.full(8, 0.1, np.float32)}
MODEL = nnx.Linear(4, 1, rngs=nnx.Rngs(0))


def loss_fn(params, x):
    return jnp.mean((jnp.tanh(x @ params["w"]) @ params["v"] - x.sum(-1)) ** 2)


def with_state(params, mean, x):
    new_mean = 0.9 * mean + 0.1 * jnp.mean(x)
    return loss_fn(params, x - new_mean), new_mean


def with_key(params, x, key):
    return loss_fn(params, x + 0.1 * jax.random.normal(key, x.shape))


def module_loss(model, x):
    return jnp.mean((model(x)[:, 0] - x.sum(-1)) ** 2)


def step(carry, rate, batch, key):
    return carry - rate * carry, {"loss": carry * carry}


FIND: dict[str, Any] = {"min_learning_rate": 0.01, "max_learning_rate": 0.1, "seeds": 1, "num_steps": 4}
RATES: dict[str, Any] = {"learning_rates": [0.01, 0.1, 0.3]}


def warm_up(peak):
    return optax.warmup_cosine_decay_schedule(0.0, peak, 2, 8)


def _plain(search: Callable, **fixed: Any) -> Callable:
    """A search of plain parameters, of which a test may replace each argument."""

    def run(**given: Any) -> Any:
        options = {
            "loss": loss_fn, "params": PARAMS, "batches": BATCHES, "eval_batch": BATCHES[0], **fixed, **given
        }  # fmt: skip
        loss, params, batches = (options.pop(name) for name in ("loss", "params", "batches"))
        return search(loss, params, optax.sgd, batches, progress=False, **options)

    return run


def _module(search: Callable, **fixed: Any) -> Callable:
    def run(**given: Any) -> Any:
        options = {"batches": BATCHES, "eval_batch": BATCHES[0], "progress": False, **fixed, **given}
        return search(module_loss, MODEL, optax.sgd, **options)

    return run


def _sweep(**given: Any) -> Any:
    options = {"num_steps": 4, "seeds": 2, "progress": False, **given}
    return olr.sweep(step, np.float32(1), np.float32([0.1, 0.3]), np.ones(3, np.float32), **options)


SEARCHES: dict[str, Callable[..., Any]] = {
    "lr_find": _plain(olr.lr_find, **FIND),
    "lr_find quick": _plain(olr.lr_find, horizon=8, **FIND),
    "lr_find scheduled": _plain(olr.lr_find, horizon=8, schedule=warm_up, finalists=1, **FIND),
    "lr_find by budget": _plain(
        olr.lr_find, horizon=8, budget=2, min_learning_rate=0.01, max_learning_rate=0.1
    ),
    "lr_sweep": _plain(olr.lr_sweep, seeds=2, **RATES),
    "lr_sweep with state": _plain(olr.lr_sweep, loss=with_state, model_state=np.float32(0), **RATES),
    "lr_range_test": _plain(olr.lr_range_test, num_steps=6, eval_batch=None),
    "lr_refind": _plain(olr.lr_refind, learning_rate=0.1, num_steps=4, seeds=1, num_rates=3),
    "lr_refind by budget": _plain(olr.lr_refind, learning_rate=0.1, horizon=8, budget=2),
    "sweep": _sweep,
    "nnx.lr_find": _module(olr.nnx.lr_find, **FIND),
    "nnx.lr_sweep": _module(olr.nnx.lr_sweep, **RATES),
    "nnx.lr_refind": _module(olr.nnx.lr_refind, learning_rate=0.1, num_steps=4, seeds=1, num_rates=3),
    "nnx.lr_range_test": _module(olr.nnx.lr_range_test, num_steps=6, eval_batch=None),
}


# Another kind of key draws other numbers, so this one is no row of the flags.
DRAWING: dict[str, Callable[..., Any]] = {
    "lr_sweep with key": _plain(olr.lr_sweep, loss=with_key, with_key=True, seeds=2, **RATES)
}


def public_searches() -> set[str]:
    """The public functions that train lanes: they take a loss or a step, and batches."""
    found = set()
    for prefix, module in {"": olr, "nnx.": olr.nnx}.items():
        for name in module.__all__:
            member = getattr(module, name)
            if inspect.isfunction(member):
                takes = inspect.signature(member).parameters
                if "batches" in takes and ("loss_fn" in takes or "step" in takes):
                    found.add(prefix + name)
    return found


def numbers(found: Any) -> dict[str, np.ndarray]:
    """What a search has found, as arrays."""
    if hasattr(found, "metrics") and hasattr(found, "carries"):
        return {"losses": found.metrics["loss"], "stopped": found.diverged_at}
    curve = getattr(found, "curve", found)
    validation = {} if curve.eval_losses is None else {"validation": curve.eval_losses}
    rate = {"rate": np.asarray(found.learning_rate)} if hasattr(found, "learning_rate") else {}
    return {"losses": curve.losses, "stopped": curve.diverged_at, **validation, **rate}


def assert_alike(one: Any, other: Any, rtol: float = 2e-5) -> None:
    """Two searches found the same lanes, stops and, where no run blew up, nearly the same losses."""
    ours, theirs = (_stable(numbers(found)) for found in (one, other))
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        np.testing.assert_allclose(values, theirs[name], rtol=rtol, atol=1e-6, err_msg=name)


def _stable(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A loss far above its run's first multiplies what rounding differs by: it is infinite here."""
    far = 100 * found["losses"][..., :1]
    blown = {
        name: np.where(found[name] > far, np.inf, found[name])
        for name in ("losses", "validation")
        if name in found
    }
    return {**found, **blown}
