"""What the best rate of a small model costs a large one: of four and sixteen times its width, in the usual
parametrization and under `width_multipliers`; in a run of ten times its length; on batches four times as large.

Four families, each with Adam and with SGD and momentum, under one-cycle. They tell scikit-learn's digits under
noise, drawn anew for each batch, so that no loss comes near zero. The carried rate is trained as one more lane,
beside octaves around the best and half octaves next to it. The score is its loss over the lowest, minus 1.

Every run is stored as it ends (`--runs`), so that the script may be stopped and called again; `--table` trains
nothing, and `--picture PATH` draws it. It takes some ten minutes on one core.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import optax_lr as olr

STORE = pathlib.Path(__file__).with_name("transfer_runs.json")
SIZE = 8  # of a digit's side, and what grows in no family
TOKENS = 4
CLASSES = 10
NOISE = 0.5
# The best rate is sought among these octaves, at the base width first.
FIRST = {"Adam": (-8, -3), "momentum": (-6, 0)}
LOWEST, HIGHEST = -16, 6
WAYS = {"as usual": False, "multipliers": True}
# Rates that differ by less count as the same.
SAME = 0.02


@functools.cache
def data(steps: int, batch: int) -> tuple[Any, Any]:
    images, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x, y = (images[order] / 16).astype(np.float32).reshape(-1, SIZE, SIZE), classes[order].astype(np.int32)

    def noisy(chosen: Any, seed: int) -> tuple[Any, Any]:
        noise = np.random.default_rng(seed).standard_normal((*chosen.shape, SIZE, SIZE), np.float32)
        return x[chosen] + NOISE * noise, y[chosen]

    training = np.random.default_rng(1).integers(1400, size=(steps, batch))
    return noisy(training, 2), noisy(np.tile(np.arange(1400, len(x)), 4), 3)


def dense(params: Any, x: Any) -> Any:
    return x @ params["kernel"] + params["bias"]


def normalized(params: Any, x: Any) -> Any:
    centered = x - x.mean(axis=-1, keepdims=True)
    size = jnp.sqrt(jnp.square(centered).mean(axis=-1, keepdims=True) + 1e-6)
    return centered / size * params["scale"] + params["bias"]


def mlp(params: Any, x: Any, size: float) -> Any:
    x = x.reshape(len(x), -1)
    for name in ("first", "second"):
        x = jax.nn.relu(dense(params[name], x))
    return dense(params["head"], x)


def convolutions(params: Any, x: Any, size: float) -> Any:
    """Windows of 3 x 3 in steps of 2, as matrices: on a CPU nine times as fast as XLA's convolutions."""
    x = x[..., None]
    for name in ("first", "second"):
        side, padded = x.shape[1], jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        shifts = [padded[:, i : i + side : 2, j : j + side : 2] for i in range(3) for j in range(3)]
        kernel = params[name]["kernel"].reshape(-1, params[name]["kernel"].shape[-1])
        x = jax.nn.relu(jnp.concatenate(shifts, axis=-1) @ kernel + params[name]["bias"])
    return dense(params["head"], x.mean(axis=(1, 2)))


def transformer(params: Any, x: Any, size: float) -> Any:
    """Pairs of rows are tokens; `size` is the number by which attention divides its logits."""
    x = dense(params["first"], x.reshape(len(x), TOKENS, -1)) + params["place"]["embedding"]
    normal = normalized(params["before_attention"], x)
    queries, keys, values = (dense(params[name], normal) for name in ("queries", "keys", "values"))
    weights = jax.nn.softmax(queries @ keys.swapaxes(-1, -2) / size)
    x = x + dense(params["mix"], weights @ values)
    wide = jax.nn.relu(dense(params["wide"], normalized(params["before_wide"], x)))
    return dense(params["head"], normalized(params["last"], x + dense(params["narrow"], wide)).mean(axis=1))


def recurrent(params: Any, x: Any, size: float) -> Any:
    state = jnp.zeros((len(x), params["again"]["kernel"].shape[0]))
    for row in x.swapaxes(0, 1):
        state = jnp.tanh(dense(params["first"], row) + dense(params["again"], state))
    return dense(params["head"], state)


# By family: the function, the base width, and the shape of each kernel at a width.
FAMILIES: dict[str, tuple[Callable[..., Any], int, Callable[[int], dict[str, tuple[int, ...]]]]] = {
    "MLP": (mlp, 32, lambda n: {"first": (64, n), "second": (n, n), "head": (n, CLASSES)}),
    "convolutions": (
        convolutions,
        8,
        lambda n: {"first": (3, 3, 1, n), "second": (3, 3, n, n), "head": (n, CLASSES)},
    ),
    "transformer": (
        transformer,
        16,
        lambda n: {
            "first": (2 * SIZE, n),
            **dict.fromkeys(("queries", "keys", "values", "mix"), (n, n)),
            "wide": (n, 2 * n),
            "narrow": (2 * n, n),
            "head": (n, CLASSES),
        },
    ),
    "recurrent": (recurrent, 16, lambda n: {"first": (SIZE, n), "again": (n, n), "head": (n, CLASSES)}),
}


def drawn(family: str, width: int, key: Any) -> Any:
    """Starts of variance 1 / fan-in; outputs and queries of zero."""
    shapes = FAMILIES[family][2](width)
    params: dict[str, Any] = {}
    for one, (name, shape) in zip(jax.random.split(key, len(shapes)), shapes.items(), strict=True):
        scale = 0.0 if name in ("head", "queries") else np.prod(shape[:-1]) ** -0.5
        params[name] = {"kernel": scale * jax.random.normal(one, shape), "bias": jnp.zeros(shape[-1])}
    if family == "transformer":
        for name in ("before_attention", "before_wide", "last"):
            params[name] = {"scale": jnp.ones(width), "bias": jnp.zeros(width)}
        params["place"] = {"embedding": 0.1 * jax.random.normal(key, (TOKENS, width))}
    return params


class Runs:
    """The final losses of one way of training at any rates, kept in the store."""

    def __init__(
        self,
        store: pathlib.Path,
        family: str,
        optimizer: str,
        factor: int = 1,
        *,
        steps: int,
        seeds: int,
        batch: int = 32,
        multipliers: bool = False,
        table: bool = False,
    ):
        self.table = table
        self.path, self.family, self.optimizer = store, family, optimizer
        self.steps, self.seeds, self.batch, self.multipliers = steps, seeds, batch, multipliers
        self.width = factor * FAMILIES[family][1]
        how = ", multipliers" if multipliers else ""
        self.name = f"{family}, {optimizer}, width {self.width}, {steps} steps of {batch}{how}"
        self.losses: dict[float, list[float]] = {}
        for rate, losses in self._stored().get(self.name, {}).items():
            if len(losses) >= seeds:
                self.losses[float(rate)] = losses[:seeds]

    def _stored(self) -> Any:
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def at(self, rates: Any) -> None:
        """Train at the rates that are not stored yet."""
        new = sorted({float(f"{rate:.6g}") for rate in rates} - self.losses.keys())
        if not new:
            return
        if self.table:
            raise ValueError(f"{self.path} lacks {self.name} at {new}: run without --table.")
        try:
            curve = self.sweep(new)
            ends = np.where(curve.stable, np.asarray(curve.eval_losses)[:, :, -1], np.inf)
        except RuntimeError:  # every lane diverged
            ends = np.full((self.seeds, len(new)), np.inf)
        for rate, losses in zip(new, ends.T, strict=True):
            self.losses[rate] = [float(f"{loss:.6g}") for loss in losses]
        stored = self._stored()
        stored[self.name] = {str(rate): self.losses[rate] for rate in sorted(self.losses)}
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(runs)}" for name, runs in stored.items())
        self.path.write_text(f"{{\n{lines}\n}}\n")
        print(f"{self.name}: {len(new)} rates", flush=True)

    def sweep(self, rates: list[float]) -> olr.LRCurve:
        batches, valid = data(self.steps, self.batch)
        loss_fn, start, tx, schedule = parts(
            self.family, self.optimizer, self.width, self.multipliers, self.steps
        )
        return olr.lr_sweep(
            loss_fn,
            start,
            tx,
            batches,
            learning_rates=rates,
            schedule=schedule,
            eval_batch=valid,
            seeds=self.seeds,
            progress=False,
        )

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        rates = np.array(sorted(self.losses))
        return rates, np.array([np.mean(self.losses[rate]) for rate in rates])

    def best(self, low: float, high: float) -> float:
        """The rate of the lowest loss: octaves, further ones where the best is the last, and half octaves."""
        self.at(2.0 ** np.arange(low, high + 1))
        while True:
            rates, losses = self.means()
            on_grid = np.isclose(np.log2(rates) * 2 % 1, 0)  # carried rates may lie between
            best = float(np.log2(rates[on_grid][losses[on_grid].argmin()]))
            more = {np.round(best) + step for step in (-2, -1, 0, 1, 2)} | {best - 0.5, best + 0.5}
            before = len(self.losses)
            self.at(2.0**octave for octave in more if LOWEST <= octave <= HIGHEST)
            if len(self.losses) == before:
                return 2.0**best

    def curve(self) -> olr.LRCurve:
        """What is stored, as the searches' rules read it."""
        rates = sorted(self.losses)
        ends = np.array([self.losses[rate] for rate in rates], np.float32).T[..., None]
        lost = np.where(np.isfinite(ends[..., 0]), -1, 0).astype(np.int32)
        losses = np.broadcast_to(ends, (*ends.shape[:2], self.steps))
        untrained = np.full(self.seeds, np.log(CLASSES), np.float32)  # heads start at zero
        return olr.LRCurve(
            np.array(rates), losses, ends, np.array([self.steps], np.int32), lost, reference=untrained
        )

    def excess(self, rate: float) -> float:
        """The loss at a rate over the lowest, minus 1."""
        self.best(np.floor(np.log2(rate)) - 2, np.ceil(np.log2(rate)) + 2)
        if min(abs(np.log(rate / stored)) for stored in self.losses) > SAME:
            self.at([rate])
        rates, losses = self.means()
        return float(losses[np.abs(np.log(rates / rate)).argmin()] / losses.min() - 1)


@functools.cache
def parts(family: str, optimizer: str, width: int, multipliers: bool, steps: int) -> tuple[Any, ...]:
    """The loss, the start, the optimizer and the schedule."""
    apply, base, _ = FAMILIES[family]
    # Attention as usual divides by the square root; both agree at the base width.
    size = width / base**0.5 if multipliers else width**0.5

    def loss_fn(params: Any, data: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(apply(params, data[0], size), data[1]).mean()

    def start(key: Any) -> Any:
        params = drawn(family, width, key)
        return olr.rescale_init(params, drawn(family, base, key)) if multipliers else params

    def tx(learning_rate: Any) -> optax.GradientTransformation:
        kind, inner = ("adam", optax.scale_by_adam()) if optimizer == "Adam" else ("sgd", optax.trace(0.9))
        labels = olr.label_by_width(drawn(family, base, jax.random.key(0)))
        scale = [olr.scale_by_label(olr.width_multipliers(kind), labels)] if multipliers else []
        return optax.chain(inner, *scale, olr.scale_by_learning_rate(learning_rate))

    return loss_fn, start, tx, lambda peak: olr.one_cycle_schedule(peak, steps)


def found_at_the_base(small: Runs, shorter: list[Runs]) -> olr.Suggestion:
    """The rate of the lowest loss, and the shorter runs off which its drift is read."""
    for runs in (small, *shorter):
        runs.best(*FIRST[small.optimizer])
    found = olr.suggest.lowest_loss(small.curve())
    return dataclasses.replace(found, shorter=tuple(runs.curve() for runs in shorter))


def scores(given: argparse.Namespace, family: str, optimizer: str) -> dict[str, float]:
    steps = given.steps
    make = functools.partial(Runs, given.runs, family, optimizer, seeds=given.seeds, table=given.table)
    small = make(steps=steps)
    found = found_at_the_base(small, [make(steps=steps // part) for part in (4, 2)])
    kind = "adam" if optimizer == "Adam" else "sgd"
    rate = found.learning_rate
    result = {}
    for factor in given.factors:
        for name, multipliers in WAYS.items():
            runs = make(factor, steps=steps, multipliers=multipliers)
            result[f"width x{factor}, {name}"] = runs.excess(rate)
    longer = olr.lr_transfer(found, horizon=10 * steps, optimizer=kind).learning_rate
    result["steps x10"] = make(steps=10 * steps).excess(longer)
    larger = olr.lr_transfer(found, batch_size=128, base_batch_size=32, optimizer=kind).learning_rate
    result["batch x4"] = make(steps=steps, batch=128).excess(larger)
    return result


def picture(given: argparse.Namespace) -> None:
    """Loss over rate at each width, under Adam: as usual above, with the multipliers below; of what is stored."""
    figure, rows = plt.subplots(2, len(given.families), figsize=(11, 5.4), sharex="col", layout="constrained")
    for (name, multipliers), panels in zip(WAYS.items(), rows, strict=True):
        for family, panel in zip(given.families, panels, strict=True):
            for color, factor in zip((0.3, 0.6, 0.85), (1, 4, 16), strict=True):
                runs = Runs(
                    given.runs,
                    family,
                    "Adam",
                    factor,
                    steps=given.steps,
                    seeds=given.seeds,
                    multipliers=multipliers and factor > 1,
                )
                rates, losses = runs.means()
                style = {"color": plt.get_cmap("viridis")(color)}
                panel.plot(rates, losses, ".-", label=f"width {runs.width}", **style)
                panel.plot(rates[losses.argmin()], losses.min(), "o", **style)
                if factor == 1:
                    panel.axvline(rates[losses.argmin()], ls=":", color="gray")
                    panel.set(xscale="log", ylim=(0.7 * losses.min(), 1.6 * losses.min()))
            panel.set_title(f"{family}, {name}", fontsize="medium")
            panel.spines[["top", "right"]].set_visible(False)
    for panel in rows[1]:
        panel.set_xlabel("peak learning rate")
        panel.legend(frameon=False, fontsize="small")
    for panel in rows[:, 0]:
        panel.set_ylabel("validation loss")
    figure.savefig(given.picture, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--optimizers", nargs="*", default=list(FIRST), choices=list(FIRST))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--factors", type=int, nargs="*", default=[4, 16])
    parser.add_argument("--runs", type=pathlib.Path, default=STORE)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--picture", type=pathlib.Path)
    given = parser.parse_args()
    rows = {}
    for family in given.families:
        for optimizer in given.optimizers:
            rows[f"{family}, {optimizer}"] = scores(given, family, optimizer)
    names = list(next(iter(rows.values())))
    print(f"| problem | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(f'{score:.1%}' for score in row.values())} |")
    table = np.array([list(row.values()) for row in rows.values()])
    for name, values in (("median", np.median(table, axis=0)), ("worst", table.max(axis=0))):
        print(f"| {name} | {' | '.join(f'{score:.1%}' for score in values)} |")
    if given.picture:
        picture(given)


if __name__ == "__main__":
    main()
