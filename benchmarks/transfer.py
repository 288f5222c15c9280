"""What the best rate of a small model costs a large one: of four and sixteen times its width, under the usual
parametrization and under `width_multipliers`; in a run of ten times its length; on batches four times as large.

Four families on scikit-learn's digits, each with Adam and with SGD and momentum, under one-cycle. The truth is a
grid of rates a factor of 2 apart, three seeds; the score is the validation loss at the carried rate, interpolated
in log-log, over that of the best rate, minus 1.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import optax_lr as olr

SIZE = 8  # of a digit's side, and what grows in no family
RATES = {"Adam": 2.0 ** np.arange(-13, 0), "momentum": 2.0 ** np.arange(-11, 3)}


def data() -> tuple[Any, Any]:
    images, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x, y = (images[order] / 16).astype(np.float32).reshape(-1, SIZE, SIZE), classes[order].astype(np.int32)
    return (x[:1400], y[:1400]), (x[1400:], y[1400:])


def dense(params: Any, x: Any) -> Any:
    return x @ params["kernel"] + params["bias"]


def mlp(params: Any, x: Any, size: int) -> Any:
    x = x.reshape(len(x), -1)
    for name in ("first", "second"):
        x = jax.nn.relu(dense(params[name], x))
    return dense(params["head"], x)


def convolutions(params: Any, x: Any, size: int) -> Any:
    x = x[..., None]
    for name in ("first", "second"):
        x = jax.lax.conv_general_dilated(
            x, params[name]["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + params[name]["bias"])
    return dense(params["head"], x.mean(axis=(1, 2)))


def transformer(params: Any, x: Any, size: int) -> Any:
    """Rows are tokens; `size` is the number by which attention divides its logits."""
    x = dense(params["first"], x) + params["place"]["embedding"]
    queries, keys, values = (dense(params[name], x) for name in ("queries", "keys", "values"))
    weights = jax.nn.softmax(queries @ keys.swapaxes(-1, -2) / size)
    x = x + dense(params["mix"], weights @ values)
    x = x + dense(params["narrow"], jax.nn.relu(dense(params["wide"], x)))
    return dense(params["head"], x.mean(axis=1))


def recurrent(params: Any, x: Any, size: int) -> Any:
    state = jnp.zeros((len(x), params["again"]["kernel"].shape[0]))
    for row in x.swapaxes(0, 1):
        state = jnp.tanh(dense(params["first"], row) + dense(params["again"], state))
    return dense(params["head"], state)


# By family: the function, the base width, and the shape of each kernel at a width.
FAMILIES: dict[str, tuple[Callable, int, Callable[[int], dict[str, tuple[int, ...]]]]] = {
    "MLP": (mlp, 16, lambda n: {"first": (64, n), "second": (n, n), "head": (n, 10)}),
    "convolutions": (
        convolutions,
        4,
        lambda n: {"first": (3, 3, 1, n), "second": (3, 3, n, n), "head": (n, 10)},
    ),
    "transformer": (
        transformer,
        16,
        lambda n: {
            "first": (SIZE, n),
            **dict.fromkeys(("queries", "keys", "values", "mix"), (n, n)),
            "wide": (n, 2 * n),
            "narrow": (2 * n, n),
            "head": (n, 10),
        },
    ),
    "recurrent": (recurrent, 16, lambda n: {"first": (SIZE, n), "again": (n, n), "head": (n, 10)}),
}


def drawn(family: str, width: int, key: Any) -> Any:
    """Starts of variance 1 / fan-in; outputs and queries of zero."""
    shapes = FAMILIES[family][2](width)
    params: dict[str, Any] = {}
    for one, (name, shape) in zip(jax.random.split(key, len(shapes)), shapes.items(), strict=True):
        scale = 0.0 if name in ("head", "queries") else np.prod(shape[:-1]) ** -0.5
        params[name] = {"kernel": scale * jax.random.normal(one, shape), "bias": jnp.zeros(shape[-1])}
    if family == "transformer":
        params["place"] = {"embedding": 0.1 * jax.random.normal(key, (SIZE, width))}
    return params


def curve(
    family: str,
    optimizer: str,
    width: int,
    *,
    steps: int,
    seeds: int,
    batch: int = 32,
    multipliers: bool = False,
) -> olr.LRCurve:
    """The losses of all rates at a width, in the usual parametrization or relative to the base width."""
    apply, base, _ = FAMILIES[family]
    # Attention as usual divides by the square root; both agree at the base width.
    size = width / base**0.5 if multipliers else width**0.5
    (x, y), valid = data()
    chosen = np.random.default_rng(1).integers(len(x), size=(steps, batch))
    wide = multipliers and width > base

    def loss_fn(params: Any, data: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(apply(params, data[0], size), data[1]).mean()

    def start(key: Any) -> Any:
        params = drawn(family, width, key)
        return olr.rescale_init(params, drawn(family, base, key)) if wide else params

    def tx(learning_rate: Any) -> optax.GradientTransformation:
        kind, inner = ("adam", optax.scale_by_adam()) if optimizer == "Adam" else ("sgd", optax.trace(0.9))
        labels = olr.label_by_width(drawn(family, base, jax.random.key(0)))
        scale = [olr.scale_by_label(olr.width_multipliers(kind), labels)] if wide else []
        return optax.chain(inner, *scale, olr.scale_by_learning_rate(learning_rate))

    return olr.lr_sweep(
        loss_fn,
        start,
        tx,
        (x[chosen], y[chosen]),
        learning_rates=RATES[optimizer],
        schedule=lambda peak: olr.one_cycle_schedule(peak, steps),
        eval_batch=valid,
        seeds=seeds,
        progress=False,
    )


def excess(truth: olr.LRCurve, rate: float) -> float:
    """The loss at a rate over the lowest, minus 1; infinite beside a rate that diverged."""
    losses = np.full(len(truth.stable), np.inf)
    losses[truth.stable] = olr.suggest.final_losses(truth)[:, truth.stable].mean(axis=0)
    x = np.log(truth.learning_rates)
    above = int(np.clip(np.searchsorted(x, np.log(rate)), 1, len(x) - 1))
    share = np.clip((np.log(rate) - x[above - 1]) / (x[above] - x[above - 1]), 0, 1)
    ends = [losses[at] for at, weight in ((above - 1, 1 - share), (above, share)) if weight > 0]
    weights = [weight for weight in (1 - share, share) if weight > 0]
    return float(np.exp(np.dot(weights, np.log(ends))) / losses.min() - 1)


def scores(family: str, optimizer: str, steps: int, seeds: int, factors: list[int]) -> dict[str, float]:
    base = FAMILIES[family][1]
    run = {"steps": steps, "seeds": seeds}
    small = curve(family, optimizer, base, **run)
    shorter = tuple(curve(family, optimizer, base, steps=steps // part, seeds=seeds) for part in (4, 2))
    found = olr.suggest.for_horizon([*shorter, small], steps)
    rate = olr.suggest.lowest_loss(small).learning_rate
    kind = "adam" if optimizer == "Adam" else "sgd"
    result = {}
    for factor in factors:
        for name, multipliers in (("as usual", False), ("multipliers", True)):
            wide = curve(family, optimizer, factor * base, multipliers=multipliers, **run)
            result[f"width x{factor}, {name}"] = excess(wide, rate)
    longer = olr.lr_transfer(found, horizon=10 * steps, optimizer=kind).learning_rate
    result["horizon x10"] = excess(curve(family, optimizer, base, steps=10 * steps, seeds=seeds), longer)
    larger = olr.lr_transfer(found, batch_size=128, base_batch_size=32, optimizer=kind).learning_rate
    result["batch x4"] = excess(curve(family, optimizer, base, batch=128, **run), larger)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--optimizers", nargs="*", default=list(RATES), choices=list(RATES))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--factors", type=int, nargs="*", default=[4, 16])
    given = parser.parse_args()
    rows = {}
    for family in given.families:
        for optimizer in given.optimizers:
            rows[f"{family}, {optimizer}"] = scores(
                family, optimizer, given.steps, given.seeds, given.factors
            )
            if len(rows) == 1:
                names = list(rows[f"{family}, {optimizer}"])
                print(f"| problem | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
            name, row = list(rows.items())[-1]
            print(f"| {name} | {' | '.join(f'{score:.1%}' for score in row.values())} |", flush=True)
    table = np.array([list(row.values()) for row in rows.values()])
    for name, values in (("median", np.median(table, axis=0)), ("worst", table.max(axis=0))):
        print(f"| {name} | {' | '.join(f'{score:.1%}' for score in values)} |")


if __name__ == "__main__":
    main()
