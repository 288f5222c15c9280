"""Train a small transformer: a found rate, warm-up-stable-decay, smaller rates for earlier layers, halved where the
validation loss stalls. Killed and run again, it goes on. Then, over five seeds, what was gained.
"""

import functools
import pathlib
import sys

import numpy as np
import optax
import orbax.checkpoint as ocp
from characters import VALID, Transformer, batch_at, loss_fn
from flax import nnx
from gains import report

import optax_lr as olr
import optax_lr.nnx

STEPS, EVERY = 200, 40
LAYERS = olr.label_by_depth(["embed/.*|place/.*", r"block/(\d+)/.*", "head/.*"])
VALIDATION = batch_at(0, VALID, 256)


def schedule(peak):
    return olr.warmup_stable_decay_schedule(peak, warmup_steps=20, stable_steps=STEPS - 60, decay_steps=40)


def adam(learning_rate, decay=0.75):
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(),
        olr.scale_by_label({depth: decay ** (3 - depth) for depth in range(4)}, LAYERS),
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
    search = {"horizon": STEPS, "seeds": 2, "checkpoint": directory / "search"}
    found = olr.nnx.lr_find(loss_fn, Transformer(nnx.Rngs(0)), adam, **search, **run)
    print(found, end="\n\n")
    model, _ = train(directory / "run", found.learning_rate)
    print(f"step {STEPS:>4}{'':>16}validation loss {loss_fn(model, VALIDATION):.3f}\n")

    rates, decays = [1e-3, found.learning_rate, found.learning_rate], [1.0, 1.0, 0.75]
    curve = olr.nnx.lr_sweep(
        loss_fn,
        lambda key: Transformer(nnx.Rngs(key)),
        adam, lanes={"learning_rate": rates, "decay": decays}, seeds=5, **run,
    )  # fmt: skip
    names = ("the customary 0.001", "the found rate", "and layer decay")
    report("validation loss", dict(zip(names, curve.eval_losses[..., -1].T, strict=True)), sign=-1)


if __name__ == "__main__":
    main(pathlib.Path(*(sys.argv[1:] or ["out/transformer"])).resolve())
