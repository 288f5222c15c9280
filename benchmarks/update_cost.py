"""What a rate for each label costs: AdamW over 1000 leaves and 24 labels, beside `optax.partition`.

Trace and compile once each, without a compilation cache; steps interleaved, medians of rounds.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_lr as olr

LEAVES, LABELS, SHAPE = 1000, 24, (64, 64)
ROUNDS, STEPS = 15, 3


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
        "24 multipliers, scale_by_label": adamw(1e-3, olr.scale_by_label(factors, labels)),
        "24 schedules, scale_by_label": adamw(1e-3, olr.scale_by_label(restarts, labels)),
        "5 groups, unfreeze_at": olr.unfreeze_at(adamw(1e-3), labels, halves),
        "24 x AdamW, optax.partition": optax.partition(
            {label: adamw(1e-3 * factor) for label, factor in factors.items()}, labels
        ),
    }


def step_of(tx: optax.GradientTransformation) -> Callable:
    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def main() -> None:
    jax.config.update("jax_enable_compilation_cache", False)
    names = [f"layer_{index:04}" for index in range(LEAVES)]
    labels = {name: index * LABELS // LEAVES for index, name in enumerate(names)}
    grads = {name: jnp.full(SHAPE, 1e-3) for name in names}
    rows: dict[str, dict[str, Any]] = {}
    for name, tx in optimizers(labels).items():
        params = {leaf: jnp.ones(SHAPE) for leaf in names}
        state = tx.init(params)
        start = time.perf_counter()
        traced = jax.jit(step_of(tx), donate_argnums=(0, 1)).trace(params, state, grads)
        seen = time.perf_counter()
        compiled = traced.lower().compile()
        rows[name] = {
            "equations": len(traced.jaxpr.eqns),
            "trace": seen - start,
            "compile": time.perf_counter() - seen,
            "call": compiled,
            "carry": (params, state),
            "times": [],
        }
    for _ in range(ROUNDS):
        for row in rows.values():
            start = time.perf_counter()
            for _ in range(STEPS):
                row["carry"] = row["call"](*row["carry"], grads)
            jax.block_until_ready(row["carry"])
            row["times"].append((time.perf_counter() - start) / STEPS)
    base = rows["AdamW"]
    print(f"{LEAVES} leaves of {SHAPE}, {LABELS} labels, float32, {jax.devices()[0].device_kind}")
    print(f"{'':32}{'equations':>16}{'trace s':>9}{'compile s':>11}{'step ms':>9}{'of AdamW':>10}")
    for name, row in rows.items():
        # Of each round's step to AdamW's in the same round: what else the machine does falls on both.
        ratio = statistics.median(own / bare for own, bare in zip(row["times"], base["times"], strict=True))
        equations = f"{row['equations']} ({row['equations'] / base['equations']:.2f}x)"
        print(
            f"{name:32}{equations:>16}{row['trace']:9.2f}{row['compile']:11.2f}"
            f"{1e3 * statistics.median(row['times']):9.2f}{ratio:9.2f}x"
        )


if __name__ == "__main__":
    main()
