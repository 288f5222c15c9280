"""Find a rate on a model of width 64, and use it at width 512: a small transformer on the characters of Python's
own documentation strings, trained at many rates as usual and with the multipliers of the width.

Writes out/transfer.png. By default widths to 256, few rates and 40 steps; `--full` goes to 512 in a few minutes.
"""

import argparse
import importlib
import inspect
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import optax_lr as olr

OUT = pathlib.Path("out")
CONTEXT, BASE = 32, 64
MODULES = "argparse collections datetime decimal difflib inspect logging pathlib statistics threading".split()
_items = [item for name in MODULES for item in vars(importlib.import_module(name)).values()]
_docs = dict.fromkeys(inspect.getdoc(item) or "" for item in _items)  # each once
TEXT = np.frombuffer("\n".join(_docs).encode("ascii", "replace"), np.uint8).astype(np.int32)
TRAIN, VALID = np.split(TEXT, [len(TEXT) * 9 // 10])


def batch_at(step, text=TRAIN, size=8):
    """What a step sees, whenever it is asked: windows one character longer than the context."""
    starts = np.random.default_rng(step).integers(len(text) - CONTEXT, size=size)
    return text[starts[:, None] + np.arange(CONTEXT + 1)]


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
        scale = (BASE / 4) ** 0.5 / q.shape[-1]  # 1 / size of a head, not 1 / sqrt(size); equal at the base
        logits = jnp.einsum("btnd,bsnd->bnts", q, k) * scale
        weights = jax.nn.softmax(jnp.where(jnp.tri(CONTEXT, dtype=bool), logits, -1e9))
        return self.mix(jnp.einsum("bnts,bsnd->btnd", weights, v).reshape(x.shape))


def drawn(width, key=0):
    return nnx.state(Transformer(width, nnx.Rngs(key)), nnx.Param)


SMALL = drawn(BASE)
LABELS = olr.label_by_width(SMALL)


def loss_at(width):
    structure = nnx.graphdef(Transformer(width, nnx.Rngs(0)))

    def loss_fn(params, batch):
        logits = nnx.merge(structure, params)(batch[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()

    return loss_fn


def adam(learning_rate, *middle):
    return optax.chain(optax.scale_by_adam(), *middle, olr.scale_by_learning_rate(learning_rate))


def widened(learning_rate):
    return adam(learning_rate, olr.scale_by_label(olr.width_multipliers("adam"), LABELS))


def sweep(width, batches, rates, multipliers=False):
    params = drawn(width)
    return olr.lr_sweep(
        loss_at(width),
        olr.rescale_init(params, SMALL) if multipliers else params,
        widened if multipliers else adam,
        batches,
        learning_rates=rates,
        schedule=lambda peak: olr.one_cycle_schedule(peak, len(batches)),
        eval_batch=VALIDATION,
        progress=False,
    )


def picture(ways, rate):
    """Loss over rate at each width: as usual on the left, with the multipliers on the right."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), sharex=True, sharey=True, layout="constrained")
    for panel, (title, curves) in zip(panels, ways.items(), strict=True):
        colors = plt.get_cmap("viridis")(np.linspace(0.3, 0.85, len(curves)))
        for color, (width, curve) in zip(colors, curves.items(), strict=True):
            losses = np.where(curve.stable, curve.eval_losses[:, :, -1].mean(axis=0), np.nan)
            panel.plot(curve.learning_rates, losses, ".-", color=color, label=f"width {width}")
            panel.plot(curve.learning_rates[np.nanargmin(losses)], np.nanmin(losses), "o", color=color)
        panel.axvline(rate, ls=":", color="gray")
        panel.set(xscale="log", title=title, xlabel="peak learning rate")
        panel.spines[["top", "right"]].set_visible(False)
    lowest = min(np.nanmin(line.get_ydata()) for panel in panels for line in panel.get_lines()[:-1])
    panels[0].set(ylabel="validation loss", ylim=(lowest - 0.05, lowest + 1.2))
    panels[0].annotate(
        f"found at width {BASE}", (rate, lowest + 1.1), xytext=(4, 0), textcoords="offset points"
    )
    panels[1].legend(frameon=False)
    OUT.mkdir(exist_ok=True)
    figure.savefig(OUT / "transfer.png", dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    full = parser.parse_args().full
    widths, steps, step = ((64, 128, 256, 512), 100, 1) if full else ((64, 128, 256), 40, 2)
    batches = np.stack([batch_at(index) for index in range(steps)])
    rates = 2.0 ** np.arange(-12, -3, step)
    base = sweep(BASE, batches, rates)
    found = olr.suggest.lowest_loss(base)
    print(f"Width {BASE}: {found.reason}\nThe rate is {found.learning_rate:.2g}.\n")
    print(olr.describe_labels(drawn(widths[-1]), LABELS, olr.width_multipliers("adam")), end="\n\n")
    ways = {"as usual": {BASE: base}, "with the multipliers of the width": {BASE: base}}
    for (name, curves), multipliers in zip(ways.items(), (False, True), strict=True):
        for width in widths[1:]:
            curve = curves[width] = sweep(width, batches, rates, multipliers)
            best = olr.suggest.lowest_loss(curve).learning_rate
            print(f"width {width}, {name}: the best rate is {best / found.learning_rate:.2g} times as large")
    picture(ways, found.learning_rate)
    print(f"\nPicture: {OUT / 'transfer.png'}\n")
    check = olr.check_width_transfer(
        lambda width: (loss_at(width), olr.rescale_init(drawn(width), SMALL)),
        widened(found.learning_rate / 4),
        batches[:20],
        widths=widths[1:],
    )
    print(f"{check}\n")
    scale = {"batch_size": 32, "base_batch_size": 8, "width": widths[-1], "base_width": BASE}
    print(olr.lr_transfer(found, horizon=10 * steps, **scale))


if __name__ == "__main__":
    main()
