"""What a sweep of learning rates costs, beside the ways in which it is done by hand; prints Markdown.

The same runs, from the same parameters through the same batches, are trained by

- `olr`: `optax_lr.lr_sweep` cold; warm, the second and later calls of one `optax_lr.sweep`, which is what a
  refinement meets;
- `loop`: a Python loop that builds optimizer and jitted step for each rate, and so compiles for each rate, again
  at every run: it has no warm figure. Its first rate is timed, then as many as `--loop-rates` says, and the others
  are taken to cost what those did;
- `step`: one jitted step with the rate as an argument, dispatched for each rate and step;
- `vmap`: `jit(vmap(scan))` over the rates;
- `torch`: PyTorch's training loop where it is installed, with its fused optimizers, on one thread or on as many as
  there are cores, whichever a short trial finds faster; that trial counts in its cold figure.

Cold: JAX's caches are cleared before, and tracing and compilation are included. There is no compilation cache on
disk. Warm: medians of rounds that take every way in turn, but for a way that takes more than 20 seconds, which has
one. Ratios above 1 say how many times as long as `olr`. `--early-exit` measures instead what a lane that diverges
saves.
"""

import argparse
import asyncio
import functools
import gc
import importlib.util
import inspect
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import optax_lr as olr

BATCH, WIDTH, HEADS, CONTEXT, VOCABULARY = 64, 64, 4, 64, 128
OPTIMIZERS = {"Adam": optax.adam, "SGD": optax.sgd}
# Rates at which nothing diverges, so that all ways do the same work.
BOUNDS = {"Adam": (1e-4, 3e-3), "SGD": (1e-3, 1e-1)}
# Seconds of a run after which a way is timed only once.
SLOW = 20.0

Way = Callable[[], np.ndarray]


class Problem(NamedTuple):
    """A model and its data: `batches` has leading axis [steps]; both losses take (params, batch)."""

    name: str
    params: Any
    loss: Callable[[Any, Any], Any]
    torch_loss: Callable[[Any, Any], Any]
    batches: tuple[np.ndarray, np.ndarray]


# The data.


def digits(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Batches of 8 x 8 images, [steps, batch, 8, 8], and their labels."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).integers(len(labels), size=(steps, BATCH))
    return images[order].reshape(steps, BATCH, 8, 8).astype(np.float32) / 16, labels[order].astype(np.int32)


def text(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Batches of a piece of Python's standard library as ASCII codes, and of the codes that follow each."""
    codes = np.frombuffer(inspect.getsource(asyncio.base_events).encode("ascii", "replace"), np.uint8)
    starts = np.random.default_rng(0).integers(len(codes) - CONTEXT - 1, size=(steps, 16, 1))
    windows = codes[starts + np.arange(CONTEXT + 1)].astype(np.int32)
    return windows[..., :-1], windows[..., 1:]


# The models, in JAX and in PyTorch. Parameters are one flat dict; kernels are [inputs, outputs].


def normal(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Kernels scaled by their fan-in; biases of zeros."""
    draw = np.random.default_rng(1)
    return {
        name: (
            draw.normal(size=shape) * np.prod(shape[:-1]) ** -0.5 if len(shape) > 1 else np.zeros(shape)
        ).astype(np.float32)
        for name, shape in shapes.items()
    }


def cross_entropy(logits: Any, labels: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def torch_cross_entropy(logits: Any, labels: Any) -> Any:
    from torch.nn import functional

    return functional.cross_entropy(logits.flatten(0, -2), labels.flatten())


def mlp(name: str, sizes: tuple[int, ...], batches: tuple[np.ndarray, np.ndarray]) -> Problem:
    layers = range(len(sizes) - 1)
    shapes = {f"w{i}": (sizes[i], sizes[i + 1]) for i in layers} | {f"b{i}": (sizes[i + 1],) for i in layers}

    def logits(params: Any, x: Any) -> Any:
        for i in layers:
            x = (x if i == 0 else x.clip(0)) @ params[f"w{i}"] + params[f"b{i}"]
        return x

    return Problem(
        name,
        normal(**shapes),
        lambda params, batch: cross_entropy(logits(params, batch[0]), batch[1]),
        lambda params, batch: torch_cross_entropy(logits(params, batch[0]), batch[1]),
        batches,
    )


def small_mlp(steps: int) -> Problem:
    """64-128-10: a step is over in tens of microseconds."""
    images, labels = digits(steps)
    return mlp("small_mlp", (64, 128, 10), (images.reshape(steps, BATCH, 64), labels))


def large_mlp(steps: int) -> Problem:
    """784-256-256-10, on digits enlarged to 28 x 28."""
    images, labels = digits(steps)
    enlarged = images.repeat(4, -2).repeat(4, -1)[..., 2:30, 2:30]
    return mlp("large_mlp", (784, 256, 256, 10), (enlarged.reshape(steps, BATCH, 784), labels))


def cnn(steps: int) -> Problem:
    """Two convolutions of 3 x 3, to 16 and to 32 channels, the second of stride 2, and a dense layer."""
    images, labels = digits(steps)

    def loss(params: Any, batch: Any) -> Any:
        def convolve(x: Any, name: str, stride: int) -> Any:
            dimensions = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(
                x, params[f"{name}_w"], (stride, stride), [(1, 1), (1, 1)], dimension_numbers=dimensions
            )
            return jax.nn.relu(x + params[f"{name}_b"])

        x = convolve(convolve(batch[0], "first", 1), "second", 2)
        return cross_entropy(x.reshape(len(x), -1) @ params["head_w"] + params["head_b"], batch[1])

    def torch_loss(params: Any, batch: Any) -> Any:
        from torch.nn import functional

        def convolve(x: Any, name: str, stride: int) -> Any:
            kernel = params[f"{name}_w"].permute(3, 2, 0, 1)
            return functional.conv2d(x, kernel, params[f"{name}_b"], stride, padding=1).relu()

        x = convolve(convolve(batch[0].permute(0, 3, 1, 2), "first", 1), "second", 2)
        x = x.permute(0, 2, 3, 1).flatten(1)
        return torch_cross_entropy(x @ params["head_w"] + params["head_b"], batch[1])

    params = normal(
        first_w=(3, 3, 1, 16),
        first_b=(16,),
        second_w=(3, 3, 16, 32),
        second_b=(32,),
        head_w=(512, 10),
        head_b=(10,),
    )
    return Problem("cnn", params, loss, torch_loss, (images[..., None], labels))


def transformer(steps: int) -> Problem:
    """Two pre-norm layers of width 64, four heads, on 16 windows of 64 characters."""
    layers = range(2)
    shapes: dict[str, tuple[int, ...]] = {"embed": (VOCABULARY, WIDTH), "place": (CONTEXT, WIDTH)}
    for i in layers:
        shapes |= {f"qkv{i}": (WIDTH, 3 * WIDTH), f"out{i}": (WIDTH, WIDTH)}
        shapes |= {f"up{i}": (WIDTH, 4 * WIDTH), f"down{i}": (4 * WIDTH, WIDTH)}
    shapes |= {"head": (WIDTH, VOCABULARY)}

    def logits(params: Any, tokens: Any, attend: Callable, norm: Callable, gelu: Callable) -> Any:
        x = params["embed"][tokens] + params["place"]
        for i in layers:
            split = (*x.shape[:2], 3, HEADS, WIDTH // HEADS)
            qkv = (norm(x) @ params[f"qkv{i}"]).reshape(split)
            x = x + attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]).reshape(x.shape) @ params[f"out{i}"]
            x = x + gelu(norm(x) @ params[f"up{i}"]) @ params[f"down{i}"]
        return norm(x) @ params["head"]

    def loss(params: Any, batch: Any) -> Any:
        attend = functools.partial(jax.nn.dot_product_attention, is_causal=True)
        norm = functools.partial(jax.nn.standardize, axis=-1, epsilon=1e-5)
        return cross_entropy(logits(params, batch[0], attend, norm, jax.nn.gelu), batch[1])

    def torch_loss(params: Any, batch: Any) -> Any:
        from torch.nn import functional

        def attend(*heads: Any) -> Any:
            heads = (x.transpose(1, 2) for x in heads)
            return functional.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2)

        gelu = functools.partial(functional.gelu, approximate="tanh")
        out = logits(params, batch[0], attend, lambda x: functional.layer_norm(x, (WIDTH,)), gelu)
        return torch_cross_entropy(out, batch[1])

    return Problem("transformer", normal(**shapes), loss, torch_loss, text(steps))


PROBLEMS = {make.__name__: make for make in (small_mlp, large_mlp, cnn, transformer)}


# The ways. Each is built from (problem, optimizer's name, rates); calling what was built trains all rates and
# returns their losses, [rates, steps].


def training_step(problem: Problem, make: Callable[[Any], optax.GradientTransformation]) -> Callable:
    def step(params: Any, state: Any, rate: Any, batch: Any) -> tuple[Any, Any, Any]:
        loss, gradients = jax.value_and_grad(problem.loss)(params, batch)
        updates, state = make(rate).update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    return step


def olr_cold(problem: Problem, optimizer: str, rates: np.ndarray) -> Way:
    def loss(params: Any, batch: Any) -> Any:
        """A function that no search has seen: what was traced of another is not kept for it."""
        return problem.loss(params, batch)

    def run() -> np.ndarray:
        curve = olr.lr_sweep(
            loss,
            problem.params,
            OPTIMIZERS[optimizer],
            problem.batches,
            learning_rates=rates,
            num_steps=len(problem.batches[0]),
            progress=False,
        )
        return curve.losses[0]

    return run


def sweep_of(problem: Problem, optimizer: str) -> Callable[[np.ndarray], olr.SweepResult]:
    """A sweep of a problem, whose second call compiles nothing."""
    make = OPTIMIZERS[optimizer]
    train = training_step(problem, make)

    def init(params: Any, rate: Any) -> Any:
        return params, make(rate).init(params)

    def step(carry: Any, rate: Any, batch: Any, key: Any) -> tuple[Any, Any]:
        params, state, loss = train(*carry, rate, batch)
        return (params, state), {"loss": loss}

    def run(rates: np.ndarray) -> olr.SweepResult:
        return olr.sweep(
            step,
            problem.params,
            rates,
            problem.batches,
            num_steps=len(problem.batches[0]),
            init=init,
            progress=False,
        )

    return run


def olr_warm(problem: Problem, optimizer: str, rates: np.ndarray) -> Way:
    run = sweep_of(problem, optimizer)
    return lambda: run(rates).metrics["loss"][0]


def train_by_hand(problem: Problem, step: Callable, state: Any) -> list[Any]:
    """The losses of one run, dispatched step by step; the buffers of the last step are given to the next."""
    params = jax.tree.map(jnp.array, problem.params)
    losses = []
    for batch in zip(*problem.batches, strict=True):
        params, state, loss = step(params, state, batch)
        losses.append(loss)
    return jax.device_get(losses)


def loop(problem: Problem, optimizer: str, rates: np.ndarray) -> Way:
    def run() -> np.ndarray:
        losses = []
        for rate in rates.tolist():
            chain = OPTIMIZERS[optimizer](rate)
            train = training_step(problem, lambda _, chain=chain: chain)
            step = jax.jit(
                lambda params, state, batch, train=train: train(params, state, None, batch),
                donate_argnums=(0, 1),
            )
            losses.append(train_by_hand(problem, step, chain.init(problem.params)))
        return np.array(losses)

    return run


def step(problem: Problem, optimizer: str, rates: np.ndarray) -> Way:
    train = jax.jit(training_step(problem, OPTIMIZERS[optimizer]), donate_argnums=(0, 1))
    init = jax.jit(lambda params: OPTIMIZERS[optimizer](0.0).init(params))

    def run() -> np.ndarray:
        losses = []
        for rate in rates:
            at_rate = functools.partial(lambda rate, *carry: train(*carry[:2], rate, carry[2]), rate)
            losses.append(train_by_hand(problem, at_rate, init(problem.params)))
        return np.array(losses)

    return run


def vmap(problem: Problem, optimizer: str, rates: np.ndarray) -> Way:
    make = OPTIMIZERS[optimizer]
    train = training_step(problem, make)

    def run_one(params: Any, rate: Any, batches: Any) -> Any:
        def body(carry: Any, batch: Any) -> tuple[Any, Any]:
            params, state, loss = train(*carry, rate, batch)
            return (params, state), loss

        return jax.lax.scan(body, (params, make(rate).init(params)), batches)[1]

    run_all = jax.jit(jax.vmap(run_one, (None, 0, None)))
    return lambda: np.asarray(run_all(problem.params, rates, problem.batches))


def torch(problem: Problem, optimizer: str, rates: np.ndarray) -> Way:
    import torch

    make = functools.partial(getattr(torch.optim, optimizer), fused=True)
    inputs, labels = (torch.from_numpy(data) for data in problem.batches)
    batches = list(zip(inputs.long() if inputs.dtype == torch.int32 else inputs, labels.long(), strict=True))

    def train(rate: float, batches: list[Any]) -> np.ndarray:
        params = {name: torch.tensor(x, requires_grad=True) for name, x in problem.params.items()}
        chain, history = make(list(params.values()), lr=rate), []
        for batch in batches:
            chain.zero_grad()
            loss = problem.torch_loss(params, batch)
            loss.backward()
            chain.step()
            history.append(loss.detach())
        return torch.stack(history).numpy()

    def trial(threads: int) -> float:
        torch.set_num_threads(threads)
        train(float(rates[0]), batches[:2])
        return seconds_of(lambda: train(float(rates[0]), batches[:6]))[0]

    # Its threads wait busily for each other: more of them are slower where the model is small or cores are taken.
    def run() -> np.ndarray:
        torch.set_num_threads(threads)
        return np.array([train(rate, batches) for rate in rates.tolist()])

    threads = min((1, len(os.sched_getaffinity(0))), key=trial)
    return run


COLD: dict[str, Callable[..., Way]] = {"olr": olr_cold, "loop": loop, "step": step, "vmap": vmap}
WARM: dict[str, Callable[..., Way]] = {"olr": olr_warm, "step": step, "vmap": vmap}


# Measuring and printing.


def seconds_of(call: Callable[[], Any]) -> tuple[float, Any]:
    gc.collect()
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def cold_seconds(make: Callable[..., Way], *of: Any) -> tuple[float, np.ndarray]:
    jax.clear_caches()
    return seconds_of(lambda: make(*of)())


def cold_loop_seconds(
    problem: Problem, optimizer: str, rates: np.ndarray, timed: int
) -> tuple[float, np.ndarray]:
    """`cold_seconds` of `loop`, at most `timed` rates after the first; the first also compiles what all share."""
    first, losses = cold_seconds(loop, problem, optimizer, rates[:1])
    others, more = seconds_of(loop(problem, optimizer, rates[1 : 1 + timed]))
    return first + others / len(more) * (len(rates) - 1), np.concatenate([losses, more])


def measure(
    problem: Problem, optimizer: str, rates: np.ndarray, given: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of every way, cold and warm, {way: [rounds]}; all ways must have trained the same runs."""
    of = (problem, optimizer, rates)
    cold: dict[str, list[float]] = {way: [] for way in COLD}
    expected = None
    for _ in range(given.cold_rounds):
        for way, make in COLD.items():
            once = cold_loop_seconds(*of, given.loop_rates) if way == "loop" else cold_seconds(make, *of)
            cold[way].append(once[0])
            expected = once[1] if expected is None else expected
            # Rounding grows with the steps: compare only the first.
            some = expected[: len(once[1]), :10]
            np.testing.assert_allclose(once[1][:, :10], some, rtol=1e-2, err_msg=f"{problem.name}, {way}")
            assert np.isfinite(once[1]).all(), f"a lane of {problem.name} diverged; lower BOUNDS"
    built = {way: make(*of) for way, make in WARM.items()}
    # The first run compiles. Of a way that takes minutes, one more must do.
    rounds = {way: 1 if seconds_of(run)[0] > SLOW else given.rounds for way, run in built.items()}
    warm: dict[str, list[float]] = {way: [] for way in WARM}
    for turn in range(given.rounds):
        for way, run in built.items():
            if turn < rounds[way]:
                warm[way].append(seconds_of(run)[0])
    return cold, warm


def row(label: str, seconds: dict[str, list[float]]) -> str:
    """Median seconds of `olr` and its quartiles' distance; of the others the median ratio in the same round."""
    own = seconds["olr"]
    low, high = np.quantile(own, [0.25, 0.75])
    cells = [f"{statistics.median(own):.3g} s (± {50 * (high - low) / statistics.median(own):.0f}%)"]
    for way, theirs in seconds.items():
        if way != "olr":
            ratio = statistics.median(t / o for t, o in zip(theirs, own, strict=False))
            cells.append(f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}")
    return f"| {label} | " + " | ".join(cells) + " |"


def compare(problems: list[Problem], given: argparse.Namespace) -> None:
    rows: list[list[str]] = [[], []]
    for problem in problems:
        for optimizer in given.optimizers.split(","):
            rates = np.geomspace(*BOUNDS[optimizer], given.rates).astype(np.float32)
            measured = measure(problem, optimizer, rates, given)
            for table, seconds in zip(rows, measured, strict=True):
                table.append(row(f"{problem.name}, {optimizer}", seconds))
                print(table[-1], flush=True)
    for title, ways, table in zip(("cold", "warm"), (COLD, WARM), rows, strict=True):
        others = [way for way in ways if way != "olr"]
        print(f"\n| {title}, {given.rates} rates | olr | {' | '.join(others)} |")
        print("|---|---|" + "---|" * len(others), *table, sep="\n")


def early_exit(problems: list[Problem], num_rates: int, rounds: int) -> None:
    """Time of sweeps in which some lanes diverge over that of one in which none does, and over the steps taken."""
    print(
        "| SGD | lanes that diverge | steps executed | time | time / steps executed |\n|---|---|---|---|---|"
    )
    for problem in problems:
        run, steps = sweep_of(problem, "SGD"), len(problem.batches[0])
        stable = np.geomspace(*BOUNDS["SGD"], num_rates).astype(np.float32)

        # None, and the highest quarter, half and three quarters of the rates, far above what trains.
        lost = [np.arange(num_rates) >= num_rates * (4 - k) // 4 for k in (1, 2, 3)]
        sets = [stable] + [np.where(which, 1e3, stable) for which in lost]
        stops = [run(rates.astype(np.float32)).diverged_at[0] for rates in sets]
        seconds = np.array(
            [[seconds_of(lambda r=r, run=run: run(r))[0] for r in sets] for _ in range(rounds)]
        )
        for at, taken in zip(stops, (seconds / seconds[:, :1]).T, strict=True):
            executed = np.where(at < 0, steps, at + 1).mean() / steps
            ratio = statistics.median(taken)
            print(
                f"| {problem.name} | {(at >= 0).sum()} of {num_rates} | {executed:.3f} | {ratio:.3f} "
                f"| {ratio / executed:.3f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(PROBLEMS), help=f"some of {','.join(PROBLEMS)}")
    parser.add_argument("--optimizers", default=",".join(OPTIMIZERS))
    parser.add_argument("--rounds", type=int, default=7, help="warm rounds")
    parser.add_argument("--cold-rounds", type=int, default=1)
    parser.add_argument(
        "--loop-rates", type=int, default=3, help="how many rates of `loop` are timed after one"
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rates", type=int, default=32)
    parser.add_argument("--early-exit", action="store_true", help="what a diverging lane saves")
    given = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    for known, asked in ((PROBLEMS, given.only), (OPTIMIZERS, given.optimizers)):
        if unknown := set(asked.split(",")) - set(known):
            parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
    if given.rates < 2 or min(given.rounds, given.cold_rounds, given.loop_rates, given.steps) < 1:
        parser.error("--rates must be at least 2, all other numbers at least 1")
    problems = [PROBLEMS[name](given.steps) for name in given.only.split(",")]
    print(
        f"{given.rates} rates x {given.steps} steps, jax {jax.__version__}, {jax.devices()[0].device_kind}\n"
    )
    if given.early_exit:
        early_exit(problems, given.rates, given.rounds)
        return
    if importlib.util.find_spec("torch"):
        COLD["torch"] = WARM["torch"] = torch
    else:
        print("PyTorch is not installed, its column is left out: pip install 'optax-lr[bench]'\n")
    compare(problems, given)


if __name__ == "__main__":
    main()
