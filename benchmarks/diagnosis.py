"""Verdicts on real runs that were made to be what they are, as a confusion table.

Every problem is trained at rates a factor of two apart, and again at the best of them. The kinds come from how a
run was made, and from what other runs show of it; `diagnose` sees neither.

- healthy: the rate of the lowest validation loss (at the end, mean of seeds), where a run still gains in its second
  half a fiftieth of its fall;
- too low: that rate over 128, 256 and 512;
- too high: the highest rate that does not diverge, of those that end higher than the run at a quarter of the rate,
  by a tenth of what that one fell;
- diverged: the lowest rate from which on all diverge, times 1, 2 and 4;
- plateaued: the best rate, cut to a ten-thousandth after a quarter of the run, or convergence long before the end;
- overfitting: few training samples, a fifth with a wrong label, trained four times as long, and a validation loss
  that ends a tenth above its lowest.

The thresholds of `diagnose` were chosen while looking at runs of the problems in `SEEN`. Those in `HELD_OUT` were
not looked at before; they differ in data, architecture or task.
"""

import argparse
import contextlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets

import optax_lr as olr
from optax_lr.finder.search import EveryLaneDivergedError

KINDS = ("diverged", "too high", "too low", "plateaued", "overfitting", "healthy")
SEEDS, EVALS = 3, 20
RATES = 2.0 ** np.arange(-20, 10)
OPTIMIZERS: dict[str, Callable] = {
    "SGD": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, 0.9),
    "Adam": optax.adam,
}


class Problem(NamedTuple):
    """Data, a model of it and how it is trained; the epochs end before the best rate has converged."""

    name: str
    model: str
    batch: int = 32
    epochs: int = 8
    few: int = 40
    squared: bool = False


class Run(NamedTuple):
    """One run and what it was made to be."""

    kind: str
    name: str
    losses: np.ndarray
    eval_losses: np.ndarray


SEEN = [
    Problem("digits", "linear", few=100),
    Problem("digits", "mlp", few=100),
    Problem("digits", "deep", few=100),
    Problem("digits", "autoencoder", squared=True),
    Problem("digits", "convolution", few=100),
    Problem("digits", "recurrent", few=100),
    Problem("diabetes", "linear", batch=16, epochs=3, few=20, squared=True),
    Problem("diabetes", "mlp", batch=16, epochs=3, squared=True),
    Problem("diabetes", "deep", batch=16, epochs=5, squared=True),
    Problem("breast_cancer", "linear", batch=16, epochs=3, squared=True),
    Problem("breast_cancer", "mlp", batch=16, epochs=3),
    Problem("wine", "mlp", batch=16, epochs=5, few=30),
    Problem("wine", "linear", batch=16, epochs=5, few=30),
    Problem("iris", "mlp", batch=16, epochs=5, few=30),
]
HELD_OUT = [
    Problem("digits", "attention", few=100),
    Problem("digits", "mlp", batch=64, few=60, squared=True),
    Problem("breast_cancer", "deep", batch=32, few=60),
    Problem("breast_cancer", "autoencoder", batch=32, squared=True),
    Problem("wine", "deep", batch=8, epochs=4, few=30),
    Problem("diabetes", "mlp", batch=32, epochs=6, few=60, squared=True),
    Problem("wine", "autoencoder", batch=16, epochs=6, few=20, squared=True),
    Problem("iris", "deep", batch=8, epochs=5, few=30),
]


def load(problem: Problem) -> tuple[Any, Any, int]:
    """Training and validation data, every feature (every target) at mean 0 and deviation 1, and the classes."""
    found = getattr(datasets, f"load_{problem.name}")()
    x, y = found.data.astype(np.float32), found.target
    x = (x - x.mean(0)) / (x.std(0) + 1e-6) if problem.name != "digits" else x / 16
    classes = 0 if problem.squared else len(np.unique(y))
    if not classes:
        y = x if problem.model == "autoencoder" else ((y - y.mean()) / y.std()).astype(np.float32)[:, None]
    order = np.random.default_rng(0).permutation(len(x))
    third = len(x) // 3
    return (x[order[third:]], y[order[third:]]), (x[order[:third]], y[order[:third]]), classes


def dense(key: Any, inputs: int, outputs: int, gain: float = 1.0) -> dict[str, Any]:
    weights = jax.random.normal(key, (inputs, outputs)) * (gain / inputs) ** 0.5
    return {"w": weights, "b": jnp.zeros(outputs)}


def model(kind: str, features: int, outputs: int) -> tuple[Callable, Callable]:
    """`init(key)` and `apply(params, x)` of a small network."""

    def init(key: Any) -> dict[str, Any]:
        one, two = jax.random.split(key)
        match kind:
            case "linear":
                return {"out": dense(one, features, outputs)}
            case "mlp":
                return {"hidden": dense(one, features, 32, 2.0), "out": dense(two, 32, outputs)}
            case "convolution":
                kernel = jax.random.normal(one, (3, 3, 1, 8)) * (2 / 9) ** 0.5
                return {"kernel": kernel, "out": dense(two, 9 * 8, outputs)}
            case "deep":
                sizes = [features, 32, 32, 32]
                keys = jax.random.split(one, 3)
                layers = [dense(*each) for each in zip(keys, sizes[:-1], sizes[1:], strict=True)]
                return {"layers": layers, "out": dense(two, 32, outputs)}
            case "autoencoder":
                return {"code": dense(one, features, 16), "out": dense(two, 16, outputs)}
            case "attention":
                keys = jax.random.split(one, 4)
                names = ("embed", "query", "key", "value")
                parts = {
                    name: dense(key, 8 if name == "embed" else 16, 16)
                    for name, key in zip(names, keys, strict=True)
                }
                return {**parts, "places": jnp.zeros((8, 16)), "out": dense(two, 16, outputs)}
            case _:
                return {"cell": dense(one, 8 + 24, 24), "out": dense(two, 24, outputs)}

    def apply(params: Any, x: Any) -> Any:
        match kind:
            case "linear":
                last = x
            case "mlp":
                last = jax.nn.relu(x @ params["hidden"]["w"] + params["hidden"]["b"])
            case "convolution":
                images = x.reshape(-1, 8, 8, 1)
                maps = jax.lax.conv_general_dilated(
                    images, params["kernel"], (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
                )
                last = jax.nn.relu(maps).reshape(len(x), -1)
            case "deep":
                last = x
                for layer in params["layers"]:
                    last = jnp.tanh(last @ layer["w"] + layer["b"])
            case "autoencoder":
                last = jnp.tanh(x @ params["code"]["w"] + params["code"]["b"])
            case "attention":
                rows = x.reshape(-1, 8, 8) @ params["embed"]["w"] + params["places"]
                query, key, value = (
                    rows @ params[name]["w"] + params[name]["b"] for name in ("query", "key", "value")
                )
                weights = jax.nn.softmax(query @ jnp.swapaxes(key, 1, 2) / 4, axis=-1)
                last = (rows + weights @ value).mean(axis=1)
            case _:
                last = jnp.zeros((len(x), 24))
                for row in jnp.moveaxis(x.reshape(-1, 8, 8), 1, 0):
                    both = jnp.concatenate([last, row], axis=-1)
                    last = jnp.tanh(both @ params["cell"]["w"] + params["cell"]["b"])
        return last @ params["out"]["w"] + params["out"]["b"]

    return init, apply


def batches_of(data: Any, size: int, steps: int) -> Any:
    """Shuffled batches, epoch after epoch: [steps, batch, ...]."""
    x, y = data
    draw, each = np.random.default_rng(1), max(1, len(x) // size)
    passes = -(-steps // each)
    order = np.concatenate([draw.permutation(len(x))[: each * size] for _ in range(passes)])
    order = order.reshape(passes * each, -1)[:steps]
    return x[order], y[order]


def spoiled(data: Any, few: int, classes: int) -> Any:
    """The first few samples, a fifth of them with a random label."""
    x, y = data[0][:few], data[1][:few].copy()
    if classes:
        y[: few // 5] = np.random.default_rng(2).integers(classes, size=few // 5)
    return x, y


def loss_of(problem: Problem, classes: int, apply: Callable) -> Callable:
    """Cross-entropy, or the mean square."""

    def loss_fn(params: Any, batch: Any) -> Any:
        x, y = batch
        found = apply(params, x)
        if classes:
            return optax.softmax_cross_entropy_with_integer_labels(found, y).mean()
        return jnp.mean((found - y) ** 2)

    return loss_fn


def over_rates(curve: olr.LRCurve) -> tuple[int, list[tuple[str, int, int]]]:
    """The lane of the best rate, and of each kind that comes from one sweep its seeds and lanes."""
    assert curve.eval_losses is not None
    valid, quarter = curve.eval_losses.mean(0), EVALS // 4
    end = np.where(curve.stable, valid[:, -quarter:].mean(1), np.inf)
    best = int(end.argmin())
    start = curve.losses[:, best, 0]
    halves = curve.eval_losses[:, best, -2 * quarter :]
    gained = halves[:, :quarter].mean(1) - halves[:, quarter:].mean(1)
    final = curve.losses[..., -(curve.losses.shape[-1] // 4) :].mean(-1)
    found = []
    for seed in range(SEEDS):
        if gained[seed] > 0.02 * (start.mean() - end[best]):
            found.append(("healthy", seed, best))
        found.append(("too low", seed, best - 7 - seed))
        edge = int(np.flatnonzero(curve.diverged_at[seed] < 0).max()) + 1
        lost = (final[seed, 2:] - final[seed, :-2]) / (start[seed] - final[seed, :-2])
        high = [lane for lane in range(best + 1, edge) if lost[lane - 2] > 0.1]
        if high:
            found.append(("too high", seed, high[-1]))
        if edge + seed < len(RATES):
            found.append(("diverged", seed, edge + seed))
    return best, found


def runs_of(problem: Problem, optimizer: str) -> list[Run]:
    """All runs of one problem under one optimizer, of every kind that it can be made to be."""
    train, valid, classes = load(problem)
    init, apply = model(problem.model, train[0].shape[1], classes or train[1].shape[1])

    def sweep(data: Any, steps: int, rates: np.ndarray, **options: Any) -> olr.LRCurve:
        return olr.lr_sweep(
            loss_of(problem, classes, apply),
            init,
            OPTIMIZERS[optimizer],
            batches_of(data, min(problem.batch, len(data[0])), steps),
            learning_rates=rates,
            eval_batch=valid,
            eval_every=max(1, steps // EVALS),
            seeds=SEEDS,
            progress=False,
            **options,
        )

    def run(kind: str, curve: olr.LRCurve, seed: int, lane: int) -> Run:
        name = f"{problem.name}, {problem.model}, {optimizer}, {curve.learning_rates[lane]:.2g}"
        assert curve.eval_losses is not None
        losses, evals = curve.losses[seed, lane].copy(), curve.eval_losses[seed, lane].copy()
        if (lost := curve.diverged_at[seed, lane]) >= 0:
            # The history of a run that was lost ends there.
            losses[lost + 1 :], evals[curve.eval_steps > lost + 1] = np.nan, np.nan
        return Run(kind, name, losses, evals)

    steps = problem.epochs * (len(train[0]) // problem.batch)
    curve = sweep(train, steps, RATES)
    best, found = over_rates(curve)
    only = RATES[best : best + 1]

    def step_down(rate: Any) -> Callable:
        return lambda step: jnp.where(step < steps, rate, rate / 10_000)

    # Least squares without a hidden layer converges by itself.
    converges = problem.squared and problem.model == "linear"
    made = [run(kind, curve, seed, lane) for kind, seed, lane in found]
    # The best rate of some is lost in a longer run.
    with contextlib.suppress(EveryLaneDivergedError):
        flat = sweep(train, 4 * steps, only, schedule=None if converges else step_down)
        made += [run("plateaued", flat, seed, 0) for seed in range(SEEDS)]
    with contextlib.suppress(EveryLaneDivergedError):
        long = sweep(spoiled(train, problem.few, classes), 4 * steps, only)
        assert long.eval_losses is not None
        rising = long.eval_losses[:, 0, -1] > 1.1 * long.eval_losses[:, 0].min(axis=-1)
        made += [run("overfitting", long, seed, 0) for seed in np.flatnonzero(rising)]
    return made


def confusion(runs: list[Run], *, with_evals: bool) -> str:
    """A row for what runs were made to be, a column for what was said of them, in Markdown."""
    said = [str(olr.diagnose(run.losses, run.eval_losses if with_evals else None).kind) for run in runs]
    kinds = [kind for kind in KINDS if with_evals or kind != "overfitting"]
    rows = [f"| made to be | runs | {' | '.join(kinds)} | right |", "|---|" + "---|" * (len(kinds) + 2)]
    right = total = 0
    for kind in kinds:
        verdicts = [verdict for verdict, run in zip(said, runs, strict=True) if run.kind == kind]
        right, total = right + verdicts.count(kind), total + len(verdicts)
        counts = [str(verdicts.count(other)) for other in kinds]
        share = verdicts.count(kind) / max(1, len(verdicts))
        rows.append(f"| {kind} | {len(verdicts)} | {' | '.join(counts)} | {share:.0%} |")
    rows.append(f"| all | {total} {'| ' * (len(kinds) + 1)}| {right / max(1, total):.1%} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seen", action="store_true", help="the problems that the thresholds were chosen on")
    parser.add_argument("--problems", type=int, help="only so many problems")
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS), choices=OPTIMIZERS)
    parser.add_argument("--errors", action="store_true", help="list the runs whose verdict is another")
    chosen = parser.parse_args()
    start = time.perf_counter()
    problems = (SEEN if chosen.seen else HELD_OUT)[: chosen.problems]
    runs = [run for problem in problems for name in chosen.optimizers for run in runs_of(problem, name)]
    for with_evals in (True, False):
        print(f"\nTraining {'and validation losses' if with_evals else 'losses alone'}:\n")
        print(confusion(runs, with_evals=with_evals))
    for run in runs if chosen.errors else []:
        verdict = olr.diagnose(run.losses, run.eval_losses)
        if verdict.kind != run.kind:
            print(f"{run.name}, made to be {run.kind}: {verdict}")
    print(f"\n{len(runs)} runs of {len(problems)} problems, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
