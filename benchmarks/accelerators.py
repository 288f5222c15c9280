"""What searches and updates cost on one accelerator: at most 8 minutes; `--short` in seconds, on a CPU too.

    python benchmarks/accelerators.py          # stores accelerators/CARD.json, which the pages show

1. Lane-steps per second of a sweep, warm, beside `jit(vmap(scan))` by hand, one jitted step looped over rates, and
   PyTorch's loop where it is installed: a small MLP, convolutions, and a transformer of 10 million parameters.
2. The lanes at once that "auto" chose, against half and twice as many, and the device's peak memory after each.
3. The step of 24 labels, 24 schedules, local gains and unfreezing over plain AdamW, at 100 million parameters.

Rounds take all ways in turn, and a figure is the median over them.
"""

import argparse
import json
import pathlib
import re
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_lr as olr

HERE = pathlib.Path(__file__).parent
LABELS = 24


class Size(NamedTuple):
    """How large a run of this script is."""

    rates: int
    steps: int
    rounds: int
    width: int
    depth: int
    batch: int
    leaves: int
    side: int


WHOLE = Size(rates=32, steps=100, rounds=3, width=384, depth=6, batch=16, leaves=96, side=1024)
SHORT = Size(rates=4, steps=4, rounds=1, width=16, depth=1, batch=4, leaves=24, side=8)


class Model(NamedTuple):
    """A loss, its parameters, and batches [steps, batch, ...]."""

    loss_fn: Callable[[Any, Any], jax.Array]
    params: Any
    batches: Any


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return values * np.float32(np.prod(shape[:-1], dtype=float) ** -0.5)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def mlp(params: Any, batch: Any) -> jax.Array:
    return cross_entropy(jax.nn.relu(batch[0] @ params[0]) @ params[1], batch[1])


def convolutions(params: Any, batch: Any) -> jax.Array:
    x = batch[0].reshape(len(batch[0]), 8, 8, 1)
    for kernel in params[:-1]:
        x = jax.nn.relu(
            jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        )
    return cross_entropy(x.mean(axis=(1, 2)) @ params[-1], batch[1])


def transformer(params: Any, tokens: jax.Array) -> jax.Array:
    x = params["embed"][tokens[:, :-1]]
    mask = np.tri(x.shape[1], dtype=bool)
    for block in params["blocks"]:
        query, key, value = jnp.split(x @ block["attend"], 3, axis=-1)
        scores = jnp.where(mask, query @ key.swapaxes(-1, -2) / x.shape[-1] ** 0.5, -1e9)
        x = x + jax.nn.softmax(scores) @ value @ block["mix"]
        x = x + jax.nn.gelu(x @ block["up"]) @ block["down"]
        x = (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-3)
    return cross_entropy(x @ params["embed"].T, tokens[:, 1:])


def models(size: Size) -> dict[str, Callable[[], Model]]:
    draw, n = np.random.default_rng(0), size.width
    images = draw.normal(size=(size.steps, 64, 64)).astype(np.float32), draw.integers(0, 10, (size.steps, 64))
    block = {"attend": (n, 3 * n), "mix": (n, n), "up": (n, 4 * n), "down": (4 * n, n)}
    tokens = draw.integers(0, 256, (size.steps, size.batch, 65), dtype=np.int32)
    return {
        "MLP, 64-128-10": lambda: Model(mlp, [normal(64, 128), normal(128, 10)], images),
        "convolutions": lambda: Model(
            convolutions, [normal(3, 3, 1, 16), normal(3, 3, 16, 32), normal(32, 10)], images
        ),
        f"transformer, {size.depth} layers of width {n}": lambda: Model(
            transformer,
            {
                "embed": normal(256, n),
                "blocks": [
                    {name: normal(*shape) for name, shape in block.items()} for _ in range(size.depth)
                ],
            },
            tokens,
        ),
    }


def medians(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of each way, the median of rounds that take all in turn; each is called once before, to compile."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    for call in ways.values():
        jax.block_until_ready(call())
    for _ in range(rounds):
        for name, call in ways.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            took[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in took.items()}


def swept(model: Model, rates: np.ndarray, **options: Any) -> olr.LRCurve:
    return olr.lr_sweep(
        model.loss_fn,
        model.params,
        optax.adam,
        model.batches,
        learning_rates=rates,
        stop_factor=1e9,
        progress=False,
        **options,
    )


def by_hand(model: Model, rates: np.ndarray) -> dict[str, Callable[[], Any]]:
    """The same runs as one writes them: all lanes in one program, and one jitted step over and over."""

    def step(carry: Any, rate: Any, batch: Any) -> tuple[Any, Any]:
        params, state = carry
        loss, slopes = jax.value_and_grad(model.loss_fn)(params, batch)
        updates, state = optax.scale_by_adam().update(slopes, state, params)
        return (jax.tree.map(lambda p, u: p - rate * u, params, updates), state), loss

    def whole(rate: Any) -> Any:
        start = (model.params, optax.scale_by_adam().init(model.params))
        return jax.lax.scan(lambda carry, batch: step(carry, rate, batch), start, batches)[1]

    batches = jax.tree.map(jnp.asarray, model.batches)
    lanes, jitted = jax.jit(jax.vmap(whole)), jax.jit(step, donate_argnums=0)

    def looped() -> Any:
        for rate in rates:
            carry = jax.tree.map(jnp.array, (model.params, optax.scale_by_adam().init(model.params)))
            for at in range(len(jax.tree.leaves(model.batches)[0])):
                carry, loss = jitted(carry, rate, jax.tree.map(lambda leaf, at=at: leaf[at], batches))
        return loss

    return {"vmap of a scan": lambda: lanes(jnp.asarray(rates, jnp.float32)), "one step, looped": looped}


def in_torch(model: Model, rates: np.ndarray) -> dict[str, Callable[[], Any]]:
    """PyTorch's loop for the MLP, where it is installed."""
    try:
        import torch
    except ImportError:
        return {}
    if model.loss_fn is not mlp:
        return {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images, labels = (torch.tensor(leaf, device=device) for leaf in model.batches)

    def looped() -> float:
        for rate in rates:
            params = [torch.tensor(leaf, device=device, requires_grad=True) for leaf in model.params]
            optimizer = torch.optim.Adam(params, lr=float(rate), fused=True)
            for batch, wanted in zip(images, labels, strict=True):
                loss = torch.nn.functional.cross_entropy(torch.relu(batch @ params[0]) @ params[1], wanted)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return float(loss)

    return {"PyTorch, looped": looped}


def peak_memory() -> int | None:
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def lanes_at_once(model: Model, rates: np.ndarray, rounds: int) -> dict[str, Any]:
    """What "auto" chose, and the seconds and the peak memory with half, as many, and twice as many lanes."""
    words = swept(model, rates).placement
    chosen = re.search(r"(\d+) at once", words)
    each = int(chosen[1]) if chosen else 1
    found: dict[str, Any] = {"auto": each, "words": words, "seconds": {}, "peak_bytes": {}}
    for count in sorted({max(each // 2, 1), each, 2 * each}):
        ways = {str(count): lambda count=count: swept(model, rates, lanes_at_once=count).losses}
        found["seconds"] |= medians(ways, rounds)
        found["peak_bytes"][str(count)] = peak_memory()
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    return {**found, "bytes_limit": limit}


def searches(size: Size) -> dict[str, Any]:
    rates, rows = np.geomspace(1e-5, 1e-2, size.rates), {}
    for name, make in models(size).items():
        model = make()
        ways = {
            "olr": lambda model=model: swept(model, rates).losses,
            **by_hand(model, rates),
            **in_torch(model, rates),
        }
        seconds = medians(ways, size.rounds)
        steps = size.rates * size.steps
        rows[name] = {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.params)),
            "lane_steps_per_second": {way: steps / took for way, took in seconds.items()},
            "chunks": lanes_at_once(model, rates, size.rounds),
        }
        jax.clear_caches()
    return rows


def optimizers(labels: Mapping[str, int]) -> dict[str, Callable[[], optax.GradientTransformation]]:
    factors = {label: 0.75 ** (LABELS - 1 - label) for label in range(LABELS)}
    cycles = {label: olr.sgdr_schedule(factors[label], 0.0, olr.Cycles(50 + label)) for label in factors}

    def adamw(*middle: optax.GradientTransformation) -> optax.GradientTransformation:
        decay = optax.add_decayed_weights(1e-4)
        return optax.chain(optax.scale_by_adam(), decay, *middle, olr.scale_by_learning_rate(1e-3))

    return {
        "AdamW": adamw,
        "AdamW, again": adamw,
        "24 labels": lambda: adamw(olr.scale_by_label(factors, labels)),
        "24 schedules": lambda: adamw(olr.scale_by_label(cycles, labels)),
        "5 groups, unfrozen later": lambda: olr.unfreeze_at(adamw(), {0: 10**6, 5: 10**5, 10: 10**4}, labels),
        "local gains, momentum": lambda: olr.local_gains(1e-3),
    }


def updates(size: Size) -> dict[str, Any]:
    """The step of each optimizer over that of AdamW; every one has the memory for itself in its turn."""
    names = [f"layer{at}" for at in range(size.leaves)]
    labels = {name: at * LABELS // size.leaves for at, name in enumerate(names)}
    shape = (size.side, size.side)
    took: dict[str, list[float]] = {}
    for _ in range(size.rounds):
        for name, make in optimizers(labels).items():
            tx = make()
            params = {leaf: jnp.ones(shape) for leaf in names}
            carry = (params, tx.init(params), jax.tree.map(lambda leaf: leaf * 1e-3, params))

            def step(carry: Any, tx: Any = tx) -> Any:
                params, state, slopes = carry
                change, state = tx.update(slopes, state, params)
                return optax.apply_updates(params, change), state, slopes

            jitted = jax.jit(step, donate_argnums=0)
            # Copied: a state that has just begun may name one array twice, which cannot be donated.
            carry = jax.block_until_ready(jitted(jax.tree.map(jnp.array, carry)))
            start = time.perf_counter()
            for _ in range(size.steps // 2):
                carry = jitted(carry)
            jax.block_until_ready(carry)
            took.setdefault(name, []).append((time.perf_counter() - start) / (size.steps // 2))
            del carry, params
    seconds = {name: statistics.median(each) for name, each in took.items()}
    ratios = {name: one / seconds["AdamW"] for name, one in seconds.items()}
    return {"parameters": size.leaves * size.side**2, "adamw_seconds": seconds["AdamW"], "over_adamw": ratios}


def table(found: Mapping[str, Any]) -> str:
    """What was found on one device, in Markdown."""
    ways = list(
        dict.fromkeys(way for row in found["searches"].values() for way in row["lane_steps_per_second"])
    )
    lines = [f"| lane-steps per second | {' | '.join(ways)} |", "|---" * (1 + len(ways)) + "|"]
    for name, row in found["searches"].items():
        cells = [row["lane_steps_per_second"].get(way) for way in ways]
        lines.append(f"| {name} | {' | '.join('' if cell is None else f'{cell:,.0f}' for cell in cells)} |")
    lines += ["", "| lanes at once | auto | seconds with so many | peak memory, MiB |", "|---|---|---|---|"]
    for name, row in found["searches"].items():
        chunks = row["chunks"]
        seconds = ", ".join(f"{count}: {took:.3g}" for count, took in chunks["seconds"].items())
        peaks = ", ".join(
            f"{count}: {peak / 2**20:,.0f}" for count, peak in chunks["peak_bytes"].items() if peak
        )
        lines.append(f"| {name} | {chunks['auto']} | {seconds} | {peaks} |")
    parameters = found["updates"]["parameters"] / 1e6
    lines += ["", f"| step over AdamW's, {parameters:.3g} million parameters | |", "|---|---|"]
    lines += [f"| {name} | {ratio:.2f} |" for name, ratio in found["updates"]["over_adamw"].items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="a few seconds, on tiny models")
    parser.add_argument("--folder", type=pathlib.Path, default=HERE / "accelerators")
    given = parser.parse_args()
    size, card = (SHORT if given.short else WHOLE), jax.devices()[0].device_kind
    versions = {"jax": jax.__version__, "optax": optax.__version__, "optax_lr": olr.__version__}
    found = {
        "card": card,
        **versions,
        "short": given.short,
        "searches": searches(size),
        "updates": updates(size),
    }
    given.folder.mkdir(parents=True, exist_ok=True)
    path = given.folder / f"{re.sub(r'[^A-Za-z0-9]+', '-', card).strip('-').lower()}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{card}\n\n{table(found)}\n\nStored in {path.name}")


if __name__ == "__main__":
    main()
