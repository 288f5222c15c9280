"""What `import optax_lr` costs a program that has imported jax and optax; the median of fresh processes.

Bytecode is compiled before. The garbage collector is off: when jax and optax are imported it is about to look at
all of their objects, 50 ms that fall on whatever is imported next.
"""

import os
import statistics
import subprocess
import sys

PROCESSES = 15
PROGRAM = """
import gc, time
import jax, optax
gc.disable()
start = time.perf_counter()
import optax_lr
print(time.perf_counter() - start)
"""


def milliseconds() -> float:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True, env=environment
    )
    return 1e3 * float(done.stdout)


def main() -> None:
    milliseconds()
    taken = [milliseconds() for _ in range(PROCESSES)]
    low, _, high = statistics.quantiles(taken, n=4)
    print(f"import optax_lr: {statistics.median(taken):.0f} ms [{low:.0f}, {high:.0f}]")


if __name__ == "__main__":
    main()
