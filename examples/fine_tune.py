"""Fine-tune for the digits 5-9 on 25 labeled images, after pretraining on 0-4: one rate, or a rate for each layer?

All ways take the same steps, each at ten rates and from ten seeds, each with weights and labeled images of its own.
"""

import functools

import few_labels as data
import jax
import optax
from flax import nnx

import optax_lr as olr
import optax_lr.nnx


class Network(nnx.Module):
    def __init__(self, rngs):
        self.block = nnx.List([nnx.Linear(*size, rngs=rngs) for size in ((9, 16), (36 * 16, 64), (64, 64))])
        self.head = nnx.Linear(64, 5, rngs=rngs)
        self.labeled = nnx.Variable(jax.random.permutation(rngs(), data.POOL)[: data.SHOTS])  # this seed's

    def __call__(self, rows):
        features = jax.nn.relu(self.block[0](data.INPUTS[rows])).reshape(len(rows), -1)
        return self.head(jax.nn.relu(self.block[2](jax.nn.relu(self.block[1](features)))))


def loss_fn(model, rows):
    return optax.softmax_cross_entropy_with_integer_labels(model(rows), data.LABELS[rows]).mean()


def eval_fn(model, eval_batch):
    valid, test = eval_batch
    right = model(test).argmax(-1) == data.LABELS[test]
    return {"loss": loss_fn(model, valid), "accuracy": right.mean()}


@functools.partial(nnx.jit, donate_argnums=(0, 1))  # model and optimizer are updated in their own memory
def pretrain_step(model, optimizer):
    optimizer.update(model, nnx.grad(loss_fn)(model, data.OLD))


@functools.cache
def pretrained(seed, steps=60):
    optimizer = nnx.Optimizer(model := Network(nnx.Rngs(seed)), ADAM, wrt=nnx.Param)
    for _ in range(steps):
        pretrain_step(model, optimizer)
    model.head = nnx.Linear(64, 5, rngs=nnx.Rngs(seed))
    return model


def frozen_epoch_then_half(rate):
    half = olr.one_cycle_schedule(rate / 2, data.STEPS - EPOCH, div_factor=5.0)
    return olr.join_schedules([olr.one_cycle_schedule(rate, EPOCH, pct_start=0.99), half], [EPOCH])


def sweep(multipliers, starts=None, schedule=lambda rate: olr.one_cycle_schedule(rate, data.STEPS), steps=60):
    tx = olr.fine_tune(optax.scale_by_adam(), multipliers, LAYERS, starts=starts)
    curve = olr.nnx.lr_sweep(
        lambda model, batch: loss_fn(model, model.labeled[batch]),
        lambda key: pretrained(int(jax.random.randint(key, (), 0, 10**9)), steps),
        lambda rate: optax.chain(tx, olr.scale_by_learning_rate(schedule(rate))),
        data.ORDER, learning_rates=data.RATES, seeds=10, stop_factor=1e9,
        eval_fn=eval_fn, eval_batch=(data.VALID, data.TEST),
    )  # fmt: skip
    return curve.eval_losses[..., -1], curve.eval_metrics["accuracy"][..., -1]


ADAM, EPOCH = optax.adam(3e-3), data.EPOCH
LAYERS = olr.label_by_depth([r"block/(\d+)/.*", "head/.*"])
EVEN, SPREAD = {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0}, olr.geometric_multipliers(0.01, 1.0)
found = {
    "one rate for all": sweep(EVEN),
    "head x 10": sweep({0: 0.1, 1: 0.1, 2: 0.1, 3: 1.0}),
    "gradual unfreezing": sweep(olr.layer_decay(1 / 2.6), {2: EPOCH, 1: 2 * EPOCH, 0: 3 * EPOCH}),
    "fastai's recipe": sweep(SPREAD, {0: EPOCH, 1: EPOCH, 2: EPOCH}, frozen_epoch_then_half),
    "one rate, from scratch": sweep(EVEN, steps=0),
}
data.report(found, "fine_tune.png")
