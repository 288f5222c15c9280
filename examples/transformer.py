"""Train a small transformer on the characters of Python's own documentation strings: a found rate, warm-up, stable,
decay, halved where the validation loss stalls. Killed and run again, it goes on. Then, over five seeds, what the
found rate gains over the customary one.
"""

import functools
import importlib
import inspect
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import scipy.stats
from flax import nnx

import optax_lr as olr
import optax_lr.nnx

CONTEXT, WIDTH, BATCH, STEPS, EVERY = 32, 32, 8, 200, 40
MODULES = "argparse collections datetime decimal difflib inspect logging pathlib statistics threading".split()
_items = [item for name in MODULES for item in vars(importlib.import_module(name)).values()]
_docs = dict.fromkeys(inspect.getdoc(item) or "" for item in _items)  # each once
TEXT = np.frombuffer("\n".join(_docs).encode("ascii", "replace"), np.uint8).astype(np.int32)
TRAIN, VALID = np.split(TEXT, [len(TEXT) * 9 // 10])


def batch_at(step, text=TRAIN, size=BATCH):
    """What a step sees, whenever it is asked: windows one character longer than the context."""
    starts = np.random.default_rng(step).integers(len(text) - CONTEXT, size=size)
    return text[starts[:, None] + np.arange(CONTEXT + 1)]


VALIDATION = batch_at(0, VALID, 256)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(4, WIDTH, decode=False, rngs=rngs)
        self.wide = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.narrow = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm[0](x), mask=nnx.make_causal_mask(x[..., 0]))
        return x + self.narrow(jax.nn.gelu(self.wide(self.norm[1](x))))


class Transformer(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(128, WIDTH, rngs=rngs)
        self.place = nnx.Embed(CONTEXT, WIDTH, rngs=rngs)
        self.block = nnx.List([Block(rngs) for _ in range(2)])
        self.head = nnx.Linear(WIDTH, 128, rngs=rngs)

    def __call__(self, characters):
        x = self.embed(characters) + self.place(jnp.arange(CONTEXT))
        return self.head(self.block[1](self.block[0](x)))


def loss_fn(model, batch):
    """The cross-entropy of the next character, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(model(batch[:, :-1]), batch[:, 1:]).mean()


def schedule(peak):
    return olr.warmup_stable_decay_schedule(peak, warmup_steps=20, stable_steps=STEPS - 60, decay_steps=40)


def adam(learning_rate):
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(),
        olr.reduce_on_plateau(factor=0.5, patience=1, every=EVERY),
        olr.scale_by_learning_rate(learning_rate),
    )


@functools.partial(nnx.jit, donate_argnums=(0, 1))  # model and optimizer are updated in their own memory
def train_step(model, optimizer, batch, valid_loss):
    optimizer.update(model, nnx.grad(loss_fn)(model, batch), value=valid_loss)


def train(directory, peak, steps=STEPS):
    model = Transformer(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, adam(schedule(peak)), wrt=nnx.Param)
    with ocp.CheckpointManager(directory) as manager:
        if done := manager.latest_step() or 0:
            saved = manager.restore(done, args=ocp.args.StandardRestore(nnx.state((model, optimizer))))
            nnx.update((model, optimizer), saved)
        for start in range(done, steps, EVERY):
            valid_loss = loss_fn(model, VALIDATION)
            rate = olr.nnx.get_learning_rate(optimizer)
            print(f"step {start:>4}   rate {rate:.2g}   validation loss {valid_loss:.3f}", flush=True)
            for step in range(start, start + EVERY):
                train_step(model, optimizer, batch_at(step), valid_loss)
            manager.save(start + EVERY, args=ocp.args.StandardSave(nnx.state((model, optimizer))))
    return model, optimizer


def main(directory):
    batches = np.stack([batch_at(step) for step in range(STEPS)])
    run = {"batches": batches, "schedule": schedule, "eval_batch": VALIDATION}
    search = {"horizon": STEPS, "seeds": 1, "checkpoint": directory / "search"}
    found = olr.nnx.lr_find(loss_fn, Transformer(nnx.Rngs(0)), adam, **search, **run)
    print(found, end="\n\n")
    model, _ = train(directory / "run", found.learning_rate)
    print(f"step {STEPS:>4}{'':>16}validation loss {loss_fn(model, VALIDATION):.3f}\n")

    rates = [1e-3, found.learning_rate]
    curve = olr.nnx.lr_sweep(
        loss_fn, lambda key: Transformer(nnx.Rngs(key)), adam, learning_rates=rates, seeds=5, **run
    )
    customary, mine = curve.eval_losses[..., -1].T
    print("Validation loss, five seeds: mean, and 95% interval of the gain, seed by seed")
    half = scipy.stats.t.ppf(0.975, 4) * np.std(customary - mine, ddof=1) / 5**0.5
    print(f"  the customary 0.001  {customary.mean():.3f}")
    print(
        f"  the found {rates[1]:<10.2g} {mine.mean():.3f}   better by {(customary - mine).mean():.3f} ± {half:.3f}"
    )


if __name__ == "__main__":
    main(pathlib.Path(*(sys.argv[1:] or ["out/transformer"])).resolve())
