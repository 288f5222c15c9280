"""What a rate for each label costs: AdamW over 1000 leaves and 24 labels, beside `optax.partition`.

Trace and compile once each, without a compilation cache. Steps are interleaved, in an order that each round
draws, and all optimizers work in the same memory: where arrays and compiled code happen to lie is worth some
percent. So AdamW is compiled twice; a round's ratios are to the mean of both, and the two show what noise is.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_lr as olr

LEAVES, LABELS, SHAPE = 1000, 24, (64, 64)
ROUNDS, STEPS = 40, 2


def adamw(rate: Any, *middle: optax.GradientTransformation) -> optax.GradientTransformation:
    return optax.chain(
        optax.scale_by_adam(), optax.add_decayed_weights(1e-4), *middle, olr.scale_by_learning_rate(rate)
    )


def optimizers(labels: dict[str, int]) -> dict[str, optax.GradientTransformation]:
    factors = {label: 0.75 ** (LABELS - 1 - label) for label in range(LABELS)}
    restarts = {label: olr.sgdr_schedule(factors[label], 0.0, olr.Cycles(50 + label)) for label in factors}
    halves = {0: 10**6, 5: 10**5, 10: 10**4, 15: 10**3}
    return {
        "AdamW": adamw(1e-3),
        "AdamW, compiled once more": adamw(1e-3),
        "24 multipliers, scale_by_label": adamw(1e-3, olr.scale_by_label(factors, labels)),
        "24 schedules, scale_by_label": adamw(1e-3, olr.scale_by_label(restarts, labels)),
        "5 groups, unfreeze_at": olr.unfreeze_at(adamw(1e-3), halves, labels),
        "24 x AdamW, optax.partition": optax.partition(
            {label: adamw(1e-3 * factor) for label, factor in factors.items()}, labels
        ),
    }


def step_of(tx: optax.GradientTransformation) -> Callable:
    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


class Row:
    """One optimizer's compiled step, with its scalars; its matrices are lent to it for each turn."""

    def __init__(self, tx: optax.GradientTransformation, names: list[str], grads: Any):
        self.grads = grads
        params = {leaf: jnp.ones(SHAPE) for leaf in names}
        self.carry = (params, tx.init(params))
        start = time.perf_counter()
        traced = jax.jit(step_of(tx), donate_argnums=(0, 1)).trace(*self.carry, grads)
        seen = time.perf_counter()
        self.call = traced.lower().compile()
        self.equations = len(traced.jaxpr.eqns)
        self.trace, self.compile = seen - start, time.perf_counter() - seen

    def matrices(self) -> list[jax.Array]:
        return [leaf for leaf in jax.tree.leaves(self.carry) if leaf.shape == SHAPE]

    def seconds(self, matrices: list[jax.Array]) -> float:
        """Seconds a step, on matrices that it gives up for those that `matrices()` then returns."""
        lent = iter(matrices)
        carry = jax.tree.map(lambda leaf: next(lent) if leaf.shape == SHAPE else leaf, self.carry)
        start = time.perf_counter()
        for _ in range(STEPS):
            carry = self.call(*carry, self.grads)
        jax.block_until_ready(carry)
        self.carry = carry
        return (time.perf_counter() - start) / STEPS


def main() -> None:
    jax.config.update("jax_enable_compilation_cache", False)
    names = [f"layer_{index:04}" for index in range(LEAVES)]
    labels = {name: index * LABELS // LEAVES for index, name in enumerate(names)}
    grads = {name: jnp.full(SHAPE, 1e-3) for name in names}
    rows = {name: Row(tx, names, grads) for name, tx in optimizers(labels).items()}
    seconds = measure(list(rows.values()))
    base = next(iter(rows.values()))
    print(f"{LEAVES} leaves of {SHAPE}, {LABELS} labels, float32, {jax.devices()[0].device_kind}")
    print(f"{'':32}{'equations':>16}{'trace s':>9}{'compile s':>11}{'step ms':>9}{'of AdamW, quartiles':>22}")
    for (name, row), times, ratios in zip(rows.items(), seconds, seconds / seconds[:2].mean(0), strict=True):
        equations = f"{row.equations} ({row.equations / base.equations:.2f}x)"
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        print(
            f"{name:32}{equations:>16}{row.trace:9.2f}{row.compile:11.2f}{1e3 * np.median(times):9.2f}"
            f"{middle:7.2f}x [{low:.2f}, {high:.2f}]"
        )


def measure(rows: list[Row]) -> np.ndarray:
    """Seconds a step, [rows, rounds]; a first round is not counted."""
    matrices = rows[0].matrices()
    for row in rows[1:]:
        for leaf in row.matrices():
            leaf.delete()
    seconds = np.empty((len(rows), ROUNDS + 1))
    for turn in range(ROUNDS + 1):
        for index in np.random.default_rng(turn).permutation(len(rows)):
            seconds[index, turn] = rows[index].seconds(matrices)
            matrices = rows[index].matrices()
    return seconds[:, 1:]


if __name__ == "__main__":
    main()
