"""What a schedule costs to trace and compile, and how far it errs, beside Optax's."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_lr as olr

CYCLE = 100
FAR = np.array([10**6, 2**24 - 3, 2**24 + 3, 10**8, 2**31 - 1], np.int32)


def cost(make):
    """Seconds to build and trace, seconds to compile, equations and lines of the compiled program."""
    start = time.perf_counter()
    traced = jax.jit(make()).trace(jnp.int32(0))
    lowered = traced.lower()
    middle = time.perf_counter()
    text = lowered.compile().as_text()
    end = time.perf_counter()
    return middle - start, end - middle, len(traced.jaxpr.eqns), text.count(" = "), " while(" in text


def optax_sgdr(cycles):
    return optax.sgdr_schedule(
        [
            {"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 0, "decay_steps": CYCLE}
            for _ in range(cycles)
        ]
    )


def error(schedule):
    """The largest error of warm restarts, over the range, against float64."""
    expected = (1 + np.cos(np.pi * (FAR.astype(np.int64) % CYCLE) / CYCLE)) / 2
    return np.abs(np.asarray(jax.jit(jax.vmap(schedule))(FAR)) - expected).max()


def float_phase(step):
    """The same in floats from the start."""
    t = jnp.asarray(step, jnp.float32)
    return (1 + jnp.cos(jnp.pi * (t / CYCLE - jnp.floor(t / CYCLE)))) / 2


def main() -> None:
    cost(lambda: olr.anneal_schedule(1.0, 0.0, CYCLE))  # the first compilation of a process pays for start-up
    print("cycles  schedule              trace ms  compile ms  equations  instructions  while")
    totals = {}
    for cycles in (16, 64, 500):
        rows = {
            "optax.sgdr_schedule": lambda cycles=cycles: optax_sgdr(cycles),
            "olr.sgdr_schedule": lambda cycles=cycles: olr.sgdr_schedule(
                1.0, 0.0, olr.Cycles(CYCLE, limit=cycles)
            ),
            "olr.cyclical_schedule": lambda: olr.cyclical_schedule(0.0, 1.0, CYCLE),
        }
        for name, make in rows.items():
            runs = [cost(make) for _ in range(1 if name.startswith("optax") else 5)]
            trace, compile_, equations, instructions, loop = runs[
                np.argsort([r[0] + r[1] for r in runs])[len(runs) // 2]
            ]
            totals[name, cycles] = trace + compile_
            print(
                f"{cycles:6d}  {name:21s} {1e3 * trace:8.1f} {1e3 * compile_:11.1f} {equations:10d} "
                f"{instructions:13d}  {loop}"
            )
    ratio = totals["optax.sgdr_schedule", 500] / totals["olr.sgdr_schedule", 500]
    print(f"500 cycles: optax takes {ratio:.0f} times as long to trace and compile")
    ours = olr.sgdr_schedule(1.0, 0.0, olr.Cycles(CYCLE))
    print(f"largest error at steps {FAR.tolist()}: {error(ours):.1e}, in floats {error(float_phase):.1e}")


if __name__ == "__main__":
    main()
