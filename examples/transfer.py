"""Find a rate on a model of width 32, and use it at width 256: a small transformer on the characters of Python's
own documentation strings. At each width that rate and two smaller ones are trained, as usual and with the
multipliers of the width.
"""

import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import optax_lr as olr

CONTEXT, BASE, WIDTHS, STEPS = 32, 32, (64, 256), 40
MODULES = "argparse collections datetime decimal difflib inspect logging pathlib statistics threading".split()
_items = [item for name in MODULES for item in vars(importlib.import_module(name)).values()]
_docs = dict.fromkeys(inspect.getdoc(item) or "" for item in _items)  # each once
TEXT = np.frombuffer("\n".join(_docs).encode("ascii", "replace"), np.uint8).astype(np.int32)
TRAIN, VALID = np.split(TEXT, [len(TEXT) * 9 // 10])
SHARES = np.array([1 / 16, 1 / 4, 1])


def batch_at(step, text=TRAIN, size=8):
    """What a step sees, whenever it is asked: windows one character longer than the context."""
    starts = np.random.default_rng(step).integers(len(text) - CONTEXT, size=size)
    return text[starts[:, None] + np.arange(CONTEXT + 1)]


BATCHES = np.stack([batch_at(step) for step in range(STEPS)])
VALIDATION = batch_at(0, VALID, 64)


class Transformer(nnx.Module):
    """One block. Attention divides its logits by the size of a head: sqrt(BASE / 4) times that at any width."""

    def __init__(self, width, rngs):
        self.embed = nnx.Embed(128, width, rngs=rngs)
        self.place = nnx.Embed(CONTEXT, width, rngs=rngs)
        self.norm = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        # Queries start at zero: else the first logits would fall with the width.
        self.queries = nnx.Linear(width, width, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.keys, self.values, self.mix = (nnx.Linear(width, width, rngs=rngs) for _ in range(3))
        self.wide = nnx.Linear(width, 2 * width, rngs=rngs)
        self.narrow = nnx.Linear(2 * width, width, rngs=rngs)
        self.head = nnx.Linear(width, 128, rngs=rngs)

    def __call__(self, characters):
        x = self.embed(characters) + self.place(jnp.arange(CONTEXT))
        x = x + self.attention(self.norm[0](x))
        return self.head(x + self.narrow(jax.nn.gelu(self.wide(self.norm[1](x)))))

    def attention(self, x):
        q, k, v = (each(x).reshape(*x.shape[:-1], 4, -1) for each in (self.queries, self.keys, self.values))
        size = q.shape[-1]
        logits = (
            jnp.einsum("btnd,bsnd->bnts", q, k) * (BASE / 4) ** 0.5 / size
        )  # 1 / size, not 1 / sqrt(size)
        weights = jax.nn.softmax(jnp.where(jnp.tri(CONTEXT, dtype=bool), logits, -1e9))
        return self.mix(jnp.einsum("bnts,bsnd->btnd", weights, v).reshape(x.shape))


def drawn(width, key=0):
    return nnx.state(Transformer(width, nnx.Rngs(key)), nnx.Param)


STRUCTURES = {width: nnx.graphdef(Transformer(width, nnx.Rngs(0))) for width in (BASE, *WIDTHS)}
SMALL = drawn(BASE)
LABELS = olr.label_by_width(SMALL)


def loss_at(width):
    def loss_fn(params, batch):
        logits = nnx.merge(STRUCTURES[width], params)(batch[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()

    return loss_fn


def adam(learning_rate, *middle):
    return optax.chain(optax.scale_by_adam(), *middle, olr.scale_by_learning_rate(learning_rate))


def widened(learning_rate):
    return adam(learning_rate, olr.scale_by_label(olr.width_multipliers("adam"), LABELS))


def sweep(width, params, optimizer, rates):
    return olr.lr_sweep(
        loss_at(width),
        params,
        optimizer,
        BATCHES,
        learning_rates=rates,
        eval_batch=VALIDATION,
        progress=False,
    )


def main():
    rates = np.geomspace(1e-3, 6.4e-2, 7)
    found = olr.suggest.lowest_loss(sweep(BASE, SMALL, adam, rates))
    rate = found.learning_rate
    print(f"Width {BASE}: {found.reason[0].lower()}{found.reason[1:]}\nThe rate is {rate:.2g}.\n")
    wide = drawn(WIDTHS[-1])
    print(olr.describe_labels(wide, LABELS, olr.width_multipliers("adam")), end="\n\n")
    print(f"{'':<16}{'':<24}" + "".join(f"rate {each:<9.2g}" for each in SHARES * rate))
    for width in WIDTHS:
        params = drawn(width)
        ways = {"as usual": (params, adam), "with multipliers": (olr.rescale_init(params, SMALL), widened)}
        for name, (start, optimizer) in ways.items():
            row = sweep(width, start, optimizer, SHARES * rate).eval_losses[0, :, -1]
            shown = (f"{loss:.3f}" if np.isfinite(loss) else "diverged" for loss in row)
            print(f"width {width:<10}{name:<24}" + "".join(f"{loss:<14}" for loss in shown))
    check = olr.check_width_transfer(
        lambda width: (loss_at(width), olr.rescale_init(drawn(width), SMALL)),
        widened(rate / 4),
        BATCHES,
        widths=WIDTHS,
    )
    print(f"\n{check}\n")
    scale = {"batch_size": 32, "base_batch_size": 8, "width": WIDTHS[-1], "base_width": BASE}
    print(olr.lr_transfer(found, horizon=10 * STEPS, **scale))


if __name__ == "__main__":
    main()
