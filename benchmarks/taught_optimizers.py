"""Rules on optimizers, batches, inputs, losses and fine-tuning; see taught.py."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from taught import (
    FINE,
    TRAIN_X,
    TRAIN_Y,
    VALID_X,
    VALID_Y,
    Figures,
    batches_of,
    best,
    by,
    constant,
    ends,
    eval_fn,
    example,
    init,
    logits_of,
    loss_fn,
    momentum,
    rule,
    sweep,
)  # fmt: skip

import optax_lr as olr


@rule
def momentum_damps() -> Figures:
    found = example("landscapes").valley()
    return {
        f"{name}_{momentum:g}".replace(".", ""): each[name]
        for momentum, each in found.items()
        for name in ("rate", "crossings", "loss")
    }


@rule
def momentum_and_steps() -> Figures:
    """The best rate at each momentum, and that rate over (1 - momentum)."""
    momenta, rates = (0.0, 0.5, 0.9, 0.99), np.geomspace(0.0005, 3, 20)
    curve = sweep(
        lambda learning_rate, momentum: optax.sgd(learning_rate, momentum),
        lanes=olr.grid(learning_rate=rates, momentum=momenta),
    )
    found = [olr.suggest.lowest_loss(part).learning_rate for _, part in by(curve, "momentum")]
    names = ("0", "05", "09", "099")
    share = {f"share_{name}": rate / (1 - m) for name, rate, m in zip(names, found, momenta, strict=True)}
    return dict(zip((f"rate_{name}" for name in names), found, strict=True)) | share


@rule
def small_batches() -> Figures:
    """The best rate with batches of 8, 32 and 128, over twelve epochs each."""
    rates = {}
    for size in (8, 32, 128):
        steps = 12 * (len(TRAIN_Y) // size)
        curve = sweep(rates=np.geomspace(0.005, 5, 16), batches=batches_of(size=size, steps=steps))
        rates[size] = olr.suggest.lowest_loss(curve).learning_rate
    return {"b8": rates[8], "b32": rates[32], "b128": rates[128], "low": rates[32] / rates[8],
            "high": rates[128] / rates[32]}  # fmt: skip


@rule
def standardized_inputs() -> Figures:
    """Pixels from 0 to 1, and from 0 to 16."""
    raw = sweep(
        rates=np.geomspace(1e-4, 1, 17), batches=batches_of(factor=16.0), eval_batch=(16 * VALID_X, VALID_Y)
    )
    return {"scaled": best(constant())["rate"], "raw": best(raw)["rate"], "scaled_loss": best(constant())["loss"],
            "raw_loss": best(raw)["loss"]}  # fmt: skip


@rule
def customary_rates() -> Figures:
    adam = sweep(optax.adam, np.sort([3e-4, *np.geomspace(1e-3, 0.1, 9)]))
    at = {name: np.abs(FINE - rate).argmin() for name, rate in {"r001": 0.01, "r01": 0.1}.items()}
    losses = {name: ends(constant())[lane] for name, lane in at.items()}
    return losses | {"best": best(constant())["loss"], "best_rate": best(constant())["rate"], "adam": ends(adam)[0],
                     "adam_best": best(adam)["loss"], "adam_rate": best(adam)["rate"]}  # fmt: skip


@rule
def adaptive_methods() -> Figures:
    """Mini-batches; each optimizer at its best of 16 rates by validation loss, and all at 0.01."""
    rates = np.geomspace(1e-4, 100, 19)
    makes = {"sgd": optax.sgd, "momentum": momentum, "adagrad": optax.adagrad, "rmsprop": optax.rmsprop,
             "adadelta": optax.adadelta, "adam": optax.adam}  # fmt: skip
    curves = {name: sweep(make, rates) for name, make in makes.items()}
    common = int(np.abs(np.log(rates / 0.01)).argmin())
    own = {name: best(curve)["loss"] for name, curve in curves.items()}
    shared = {f"{name}_common": ends(curve)[common] for name, curve in curves.items()}
    orders = {
        "order": own,
        "order_common": {name.removesuffix("_common"): loss for name, loss in shared.items()},
    }
    return own | shared | {key: ", ".join(sorted(each, key=each.get)) for key, each in orders.items()}


@rule
def adagrad_vanishes() -> Figures:
    return example("effective_rates").main()


@rule
def rare_features() -> Figures:
    """Logistic regression on 300 features, of which the k-th occurs in a share of about 1 / k of the examples."""
    draw, features, steps = np.random.default_rng(0), 300, 1000
    share = 1 / np.arange(2, features + 2)
    truth = draw.normal(size=features) * 3

    def sample(*shape: int) -> tuple[np.ndarray, np.ndarray]:
        x = (draw.random((*shape, features)) < share).astype(np.float32)
        return x, (draw.random(shape) < 1 / (1 + np.exp(-x @ truth))).astype(np.float32)

    def logistic(weights: Any, batch: Any) -> jax.Array:
        return optax.sigmoid_binary_cross_entropy(batch[0] @ weights, batch[1]).mean()

    batches, valid, losses = sample(steps, 16), sample(5000), {}
    for name, make in {"sgd": optax.sgd, "adagrad": optax.adagrad, "adam": optax.adam}.items():
        curve = sweep(make, np.geomspace(1e-3, 30, 19), batches, problem=logistic, params=jnp.zeros(features),
                      eval_batch=valid)  # fmt: skip
        losses[name] = ends(curve).min()
    return losses


@rule
def one_gain_a_weight() -> Figures:
    names = {"plain descent": "plain", "momentum": "momentum", "local gains": "gains"}
    valleys = example("landscapes").gains()
    found = {f"{names[name]}_{at}": value for name, pair in valleys.items()
             for at, value in zip(("straight", "turned"), pair, strict=True)}  # fmt: skip
    return found | example("local_gains").main()


@rule
def rprop_and_batches() -> Figures:
    """Errors at the best rate: on mini-batches, on all images at once, and plain descent on mini-batches."""
    rates = np.geomspace(1e-4, 1, 13)
    whole = np.broadcast_to(TRAIN_X, (150, *TRAIN_X.shape)), np.broadcast_to(TRAIN_Y, (150, len(TRAIN_Y)))
    errors = {"batches": best(sweep(olr.rprop, rates)), "full": best(sweep(olr.rprop, rates, whole))}
    return {name: each["error"] for name, each in errors.items()} | {"sgd": best(constant())["error"]}


@functools.cache
def _fine_tuned() -> dict[str, np.ndarray]:
    return example("fine_tune").main()


@rule
def faster_head() -> Figures:
    names = {"one rate": "one", "head x 10": "ten", "head x 100": "hundred", "head alone": "alone",
             "body from step 40": "later", "from scratch": "scratch"}  # fmt: skip
    found = {names[name]: values[:, -1] for name, values in _fine_tuned().items()}
    gain = found["ten"] - found["one"]
    half = 2.201 * gain.std(ddof=1) / len(gain) ** 0.5  # Student's t of 11 degrees of freedom
    return {name: values.mean() for name, values in found.items()} | {"gain": gain.mean(), "half": half}


@rule
def fine_tuning_is_faster() -> Figures:
    """Accuracies on the way, and where fine-tuning is first as good as training from scratch ends."""
    tuned, scratch = (_fine_tuned()[name].mean(axis=0) for name in ("head x 10", "from scratch"))
    return {"tuned": tuned[2], "scratch": scratch[2], "end": scratch[-1], "tuned_10": tuned[0],
            "scratch_10": scratch[0], "reached": 10 * (1 + int((tuned >= scratch[-1]).argmax()))}  # fmt: skip


@rule
def cross_entropy() -> Figures:
    """Against the squared error of the softmax, each at its best rate; gradients at the start."""

    def squared(params: Any, batch: Any) -> jax.Array:
        wrong = jax.nn.softmax(logits_of(params, batch[0])) - jax.nn.one_hot(batch[1], 10)
        return jnp.mean(jnp.sum(wrong**2, axis=-1))

    curve = sweep(rates=np.geomspace(0.03, 30, 19), problem=olr.Problem(squared, eval_fn=eval_fn))
    errors = np.where(curve.stable, curve.eval_metrics["error"][..., -1].mean(axis=0), np.inf)
    whole, params = (TRAIN_X, TRAIN_Y), init(jax.random.key(0))
    first, second = (optax.tree.norm(jax.grad(loss)(params, whole)) for loss in (loss_fn, squared))
    cross = ends(constant(), "error")
    return {"cross": cross.min(), "squared": errors.min(), "cross_rate": FINE[cross.argmin()],
            "squared_rate": curve.learning_rates[errors.argmin()], "times": float(first / second)}  # fmt: skip
