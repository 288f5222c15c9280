"""What a step of local gains and of Rprop costs on this CPU, relative to a step of Adam in the same rounds.

Parameters and states are donated; rounds take every optimizer in an order that each draws, and the figure is
the median ratio. A second Adam shows what noise is.
PyTorch's optimizers, on the same shapes, are divided by its own Adam. Prints a table.
"""

import os
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_lr as olr

SHAPES = [(512, 512)] * 24 + [(512,)] * 24
ROUNDS, STEPS = 25, 6

OPTIMIZERS = {
    "optax.adam": optax.adam(1e-3),
    "optax.adam, once more": optax.adam(1e-3),
    "optax.sgd, momentum": optax.sgd(1e-3, 0.9),
    "local_gains": olr.local_gains(1e-3, momentum=None),
    "local_gains, momentum": olr.local_gains(1e-3, momentum=0.9),
    "local_gains, Nesterov": olr.local_gains(1e-3, momentum=0.9, nesterov=True),
    "delta-bar-delta": optax.chain(olr.scale_by_delta_bar_delta(), olr.scale_by_learning_rate(1e-3)),
    "rprop, iRprop-": olr.rprop(1e-3),
    "rprop, Rprop+": olr.rprop(1e-3, variant="Rprop+"),
    "optax.rprop": optax.rprop(1e-3),
}


class Lane:
    """One optimizer with its own parameters, its gradients and its compiled step."""

    def __init__(self, tx):
        keys = jax.random.split(jax.random.key(0), len(SHAPES))
        self.params = [jax.random.normal(key, shape) for key, shape in zip(keys, SHAPES, strict=True)]
        self.state = tx.init(self.params)
        flipped = [1.0, -1.0]
        self.grads = [[sign * jnp.roll(leaf, 1, 0) for leaf in self.params] for sign in flipped]

        def step(params, state, grads):
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        jitted = jax.jit(step, donate_argnums=(0, 1))
        self.step = jitted.lower(self.params, self.state, self.grads[0]).compile()

    def copies(self):
        """Copies of arrays in the compiled program."""
        return len(re.findall(r"\[\d[\d,]*\]\{[\d,]*\} copy\(", self.step.as_text()))

    def bytes_a_parameter(self):
        total = sum(leaf.nbytes for leaf in jax.tree.leaves(self.state))
        return round(total / sum(leaf.size for leaf in self.params))

    def seconds(self):
        start = time.perf_counter()
        for step in range(STEPS):
            self.params, self.state = self.step(self.params, self.state, self.grads[step % 2])
        jax.block_until_ready(self.params)
        return (time.perf_counter() - start) / STEPS


class TorchLane:
    """One of PyTorch's optimizers, its fastest implementation, on the same shapes."""

    def __init__(self, make):
        import torch

        torch.set_num_threads(2)
        self.params = [torch.randn(shape, requires_grad=True) for shape in SHAPES]
        self.grads = [[sign * torch.randn(shape) for shape in SHAPES] for sign in (1.0, -1.0)]
        self.optimizer = make(torch.optim, self.params)

    def seconds(self):
        start = time.perf_counter()
        for step in range(STEPS):
            for leaf, gradient in zip(self.params, self.grads[step % 2], strict=True):
                leaf.grad = gradient
            self.optimizer.step()
        return (time.perf_counter() - start) / STEPS


def measure(lanes):
    """Seconds a step, [lanes, rounds], interleaved, after one round that is not counted."""
    seconds = np.empty((len(lanes), ROUNDS + 1))
    for turn in range(ROUNDS + 1):
        for index in np.random.default_rng(turn).permutation(len(lanes)):
            seconds[index, turn] = lanes[index].seconds()
    return seconds[:, 1:]


def report(names, lanes):
    seconds = measure(lanes)
    for name, lane, mine in zip(names, lanes, seconds, strict=True):
        ratio = np.median(mine / seconds[0])
        low, high = np.quantile(mine / seconds[0], [0.25, 0.75])
        inside = f"{lane.bytes_a_parameter():>9}{lane.copies():>9}" if isinstance(lane, Lane) else ""
        print(f"{name:<24}{1e3 * np.median(mine):>8.2f} ms{ratio:>8.2f}  [{low:.2f}, {high:.2f}]{inside}")


def main():
    print(f"{sum(np.prod(shape) for shape in SHAPES):,} parameters, float32; ratio to Adam, quartiles")
    print(f"{'':<24}{'step':>11}{'ratio':>8}  {'':>12}{'B/param':>9}{'copies':>9}")
    report(OPTIMIZERS, [Lane(tx) for tx in OPTIMIZERS.values()])
    # Else PyTorch's threads spin while they wait, beside those of XLA.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import torch
    except ImportError:
        print("PyTorch is not installed: pip install 'optax-lr[bench]'")
        return
    print(f"PyTorch {torch.__version__}, ratio to its own Adam")
    makers = {
        "torch Adam, foreach": lambda optim, params: optim.Adam(params, 1e-3, foreach=True),
        "torch Adam, fused": lambda optim, params: optim.Adam(params, 1e-3, fused=True),
        "torch Rprop, foreach": lambda optim, params: optim.Rprop(params, 1e-3, foreach=True),
        "torch Rprop": lambda optim, params: optim.Rprop(params, 1e-3, foreach=False),
    }
    report(makers, [TorchLane(make) for make in makers.values()])


if __name__ == "__main__":
    main()
