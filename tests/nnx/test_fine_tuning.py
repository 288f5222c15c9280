"""What fine-tuning meets in a module: batch norm and dropout in a frozen body, ties, several filters, adapters."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from nnx_modules import BATCHES, INPUTS, LABELS, VALIDATION, Plain, loss_fn, square

import optax_lr as olr
import optax_lr.nnx

HEAD = olr.nnx.trainable(LABELS, "head")
STEPS = 4


class Normed(Plain):
    """A body with batch norm and dropout, and a head behind dropout."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.body = nnx.Sequential(
            self.body, nnx.BatchNorm(4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs), jnp.tanh
        )
        self.drop = nnx.Dropout(0.25, rngs=rngs)

    def __call__(self, inputs):
        return self.head(self.drop(self.body(inputs)))


def sweep(model, optimizer=optax.sgd, **options):
    given = {"num_steps": STEPS, "progress": False, "wrt": HEAD} | options
    if "lanes" not in given:
        given["learning_rates"] = [0.1, 0.3]
    return olr.nnx.lr_sweep(loss_fn, model, optimizer, BATCHES, **given)


def by_hand(model, rate, wrt):
    """The losses of a plain loop, and the model after it."""
    model = nnx.clone(model)
    optimizer = nnx.Optimizer(model, optax.sgd(rate), wrt=wrt)
    losses = []
    for step in range(STEPS):
        take = nnx.value_and_grad(loss_fn, argnums=nnx.DiffState(0, wrt))
        loss, gradients = take(model, tuple(part[step] for part in BATCHES))
        optimizer.update(model, gradients)
        losses.append(float(loss))
    return losses, model


def statistics(model):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model, nnx.BatchStat))]


def test_statistics_of_a_frozen_body_move_unless_it_evaluates():
    """`trainable` freezes scales and biases; running statistics are no parameters, and `.eval()` holds them."""
    training, held = Normed(nnx.Rngs(0)), Normed(nnx.Rngs(0))
    held.body.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # dropout before the head goes on: nothing to warn of
        curves = [sweep(model) for model in (training, held)]
    for model, curve, moves in zip((training, held), curves, (True, False), strict=True):
        losses, after = by_hand(model, 0.1, HEAD)
        np.testing.assert_allclose(curve.losses[0, 0], losses, rtol=1e-5)
        same = [np.array_equal(*pair) for pair in zip(statistics(model), statistics(after), strict=True)]
        assert any(same) != moves
        np.testing.assert_array_equal(after.body.layers[1].scale[...], model.body.layers[1].scale[...])
    assert not np.allclose(curves[0].losses, curves[1].losses)


def test_lanes_of_a_seed_have_the_same_dropout_and_validation_has_none():
    lanes = {"learning_rate": [0.1, 0.1], "unread": [0.0, 1.0]}
    curve = sweep(
        Normed(nnx.Rngs(0)), lambda learning_rate, unread: optax.sgd(learning_rate), lanes=lanes, seeds=2,
        eval_batch=VALIDATION, eval_every=1,
    )  # fmt: skip
    np.testing.assert_array_equal(curve.losses[:, 0], curve.losses[:, 1])
    assert not np.isclose(
        curve.losses[0, 0, 0], curve.losses[1, 0, 0]
    )  # other masks, and another first batch
    _, after = by_hand(Normed(nnx.Rngs(0)), 0.1, HEAD)
    after.eval()
    assert curve.eval_losses[0, 0, -1] == pytest.approx(float(loss_fn(after, VALIDATION)), rel=1e-5)


class Tied(nnx.Module):
    """A table that is looked up and read out."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(7, 4, rngs=rngs)
        self.middle = nnx.Linear(4, 4, rngs=rngs)
        self.out = self.embed

    def __call__(self, tokens):
        return self.out.attend(jnp.tanh(self.middle(self.embed(tokens))))


def token_loss(model, tokens):
    return optax.softmax_cross_entropy_with_integer_labels(model(tokens), tokens[..., ::-1]).mean()


TOKENS = np.random.default_rng(0).integers(7, size=(STEPS, 3, 5))


def test_a_tied_table_is_one_parameter_with_one_label():
    """`label_by_path` sees it once, at the first of its places; its one rate is for the sum of both gradients."""
    model = Tied(nnx.Rngs(0))
    labels = olr.label_by_path({"embed/.*": "table", ".*": "rest"})
    tree = labels.resolve(nnx.state(model, nnx.Param))
    assert sorted(tree) == ["embed", "middle"]
    with pytest.raises(ValueError, match="'out/\\.\\*'"):
        olr.label_by_path({"out/.*": "head", ".*": "rest"}).resolve(nnx.state(model, nnx.Param))
    tx = olr.fine_tune(optax.sgd(1.0), {"table": 0.1, "rest": 1.0}, labels)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    before = model.embed.embedding[...]
    gradient = nnx.grad(token_loss)(model, TOKENS[0])
    optimizer.update(model, gradient)
    assert model.out.embedding is model.embed.embedding
    expected = before - 0.1 * gradient["embed"]["embedding"][...]
    np.testing.assert_allclose(model.embed.embedding[...], expected, rtol=1e-6)

    # Looked up and read out from two tables, the gradients are two, and add up to that of the one.
    def untied(looked_up, read_out):
        hidden = jnp.tanh(middle(looked_up[TOKENS[0]]))
        labels = TOKENS[0][..., ::-1]
        return optax.softmax_cross_entropy_with_integer_labels(hidden @ read_out.T, labels).mean()

    middle = Tied(nnx.Rngs(0)).middle
    both = jax.grad(untied, (0, 1))(before, before)
    np.testing.assert_allclose(gradient["embed"]["embedding"][...], sum(both), rtol=1e-4, atol=1e-6)


def test_a_search_keeps_a_tie():
    model = Tied(nnx.Rngs(0))
    curve = olr.nnx.lr_sweep(
        token_loss, model, optax.sgd, TOKENS, learning_rates=[0.5], progress=False, num_steps=STEPS
    )
    optimizer, losses = nnx.Optimizer(model, optax.sgd(0.5), wrt=nnx.Param), []
    for tokens in TOKENS:
        loss, gradients = nnx.value_and_grad(token_loss)(model, tokens)
        optimizer.update(model, gradients)
        losses.append(float(loss))
    np.testing.assert_allclose(curve.losses[0, 0], losses, rtol=1e-5)


def test_several_filters_are_one_optimizer_or_one_each():
    """A tuple of filters trains what any of them selects; optimizers of disjoint filters train side by side."""
    body = olr.nnx.trainable(LABELS, "body")
    both = (HEAD, body)
    np.testing.assert_array_equal(
        sweep(Plain(nnx.Rngs(0)), wrt=both).losses, sweep(Plain(nnx.Rngs(0)), wrt=nnx.Param).losses
    )
    side, one = Plain(nnx.Rngs(0)), Plain(nnx.Rngs(0))
    tx = olr.fine_tune(optax.sgd(0.1), {"head": 10.0, "body": 1.0}, LABELS)
    together = nnx.Optimizer(one, tx, wrt=both)
    rates = {"head": (HEAD, 1.0), "body": (body, 0.1)}
    optimizers = {
        name: nnx.Optimizer(side, olr.visible(optax.sgd)(rate), wrt=wrt)
        for name, (wrt, rate) in rates.items()
    }
    for inputs in INPUTS[:2]:
        gradients = nnx.grad(square, argnums=nnx.DiffState(0, both))(side, inputs)
        for name, optimizer in optimizers.items():
            optimizer.update(side, nnx.filter_state(gradients, rates[name][0]))
        together.update(one, nnx.grad(square, argnums=nnx.DiffState(0, both))(one, inputs))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        *(nnx.as_pure(nnx.state(each, nnx.Param)) for each in (side, one)),
    )
    olr.nnx.set_learning_rate(optimizers["head"], 0.5)
    assert [float(olr.nnx.get_learning_rate(each)) for each in optimizers.values()] == [
        0.5,
        pytest.approx(0.1),
    ]


def test_adapters_go_on_top_of_what_was_loaded():
    """The loaded weights move to `base_module` and stay as they are; patterns for the layer match both."""
    loaded = nnx.as_pure(nnx.state(Plain(nnx.Rngs(5)), nnx.Param))
    model = Plain(nnx.Rngs(0))
    nnx.update(model, loaded)
    before = model(INPUTS[0])
    model.body = nnx.LoRA(3, 2, 4, base_module=model.body, rngs=nnx.Rngs(1))
    np.testing.assert_allclose(model(INPUTS[0]), before, rtol=1e-6)
    depths = olr.label_by_depth(["body/.*", "head/.*"]).resolve(nnx.state(model, nnx.Param))
    assert depths["body"]["base_module"]["kernel"] == 0 and depths["body"]["lora_a"] == 0
    wrt = (nnx.LoRAParam, HEAD)
    losses, after = by_hand(model, 0.3, wrt)
    np.testing.assert_allclose(sweep(model, wrt=wrt).losses[0, 1], losses, rtol=1e-5)
    base = nnx.as_pure(nnx.state(after.body.base_module))
    jax.tree.map(np.testing.assert_array_equal, base, loaded["body"])
    assert np.abs(after.body.lora_b[...]).max() > 0
    # What is merged again is one layer: its kernel and the product of the adapters.
    kernel = after.body.base_module.kernel[...] + after.body.lora_a[...] @ after.body.lora_b[...]
    merged = INPUTS[0] @ kernel + after.body.base_module.bias[...]
    np.testing.assert_allclose(after.body(INPUTS[0]), merged, rtol=1e-4, atol=1e-6)
