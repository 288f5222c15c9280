"""What is trained of a Flax model, and the rate inside `nnx.Optimizer`: filters, labels, frozen layers."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.training.train_state import TrainState
from jaxtyping import install_import_hook
from lowerings import count_lowerings
from nnx_modules import (
    INPUTS,
    LABELS,
    VALIDATION,
    Convolutions,
    Deep,
    Plain,
    adapted,
    assert_same,
    loss_fn,
    state_bytes,
    stateful,
    train_step,
    variables,
)

import optax_lr as olr
from optax_lr.nnx.modules import pure

with install_import_hook("optax_lr.nnx", "typecheck.check"):
    import optax_lr.nnx


@pytest.mark.parametrize(
    ("build", "shape", "resolved"),
    [
        (lambda: Deep(nnx.Rngs(0), 64, 64), (32, 64), True),
        (lambda: Convolutions(nnx.Rngs(0)), (8, 8, 8, 1), False),
    ],
    ids=["mlp", "cnn"],
)
def test_a_frozen_backbone_costs_neither_state_nor_gradients(build, shape, resolved):
    inputs, model = jnp.ones(shape), build()
    before = variables(model)[1]
    tree = LABELS.resolve(nnx.state(model, nnx.Param))
    head = olr.nnx.trainable(tree if resolved else LABELS, "head")
    frozen = olr.fine_tune(optax.adam(0.1), {"head": 1.0}, tree, frozen="body")
    ways = {"all": (nnx.Param, optax.adam(0.1)), "wrt": (head, optax.adam(0.1)), "tx": (nnx.Param, frozen)}
    flops, kept = {}, {}
    for name, (wrt, tx) in ways.items():
        optimizer = nnx.Optimizer(model, tx, wrt=wrt)
        kept[name] = state_bytes(optimizer)
        flops[name] = train_step(wrt).lower(model, optimizer, inputs).compile().cost_analysis()["flops"]
    head_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(pure(nnx.state(model.head))))
    all_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(pure(nnx.state(model))))
    assert kept == {"all": 2 * all_bytes, "wrt": 2 * head_bytes, "tx": 2 * head_bytes}
    assert flops["wrt"] < 0.5 * flops["all"] and flops["tx"] < 0.5 * flops["all"]
    train_step(head)(model, nnx.Optimizer(model, optax.adam(0.1), wrt=head), inputs)
    after = variables(model)[1]
    moved = {name: not np.array_equal(after[name]["kernel"], before[name]["kernel"]) for name in after if
             "kernel" in after[name]}  # fmt: skip
    assert moved == {name: name == "head" for name in moved}


def test_unfreezing_five_groups_over_a_run_compiles_once():
    model = Deep(nnx.Rngs(0))
    labels = olr.label_by_depth([r"embed/.*", r"block/(\d+)/.*", r"head/.*"])
    starts = {3: 2, 2: 4, 1: 6, 0: 8}
    tx = olr.fine_tune(optax.adam(0.1), olr.geometric_multipliers(0.1, 1.0), labels, starts=starts)
    optimizer, step = nnx.Optimizer(model, tx, wrt=nnx.Param), train_step(nnx.Param)
    kernels = [model.embed, *model.block, model.head]
    start = [np.asarray(layer.kernel[...]) for layer in kernels]
    first_moved = [None] * 5
    with count_lowerings() as lowered:
        for t in range(10):
            step(model, optimizer, INPUTS[0])
            for group, layer in enumerate(kernels):
                if first_moved[group] is None and (np.asarray(layer.kernel[...]) != start[group]).any():
                    first_moved[group] = t
    assert first_moved == [8, 6, 4, 2, 0]
    assert len(lowered) == 1 and "step" in lowered[0]


def test_new_starts_take_effect_in_place_and_compile_nothing():
    model = Deep(nnx.Rngs(0))
    labels = olr.label_by_path({"head/.*": "head", ".*": "body"})
    tx = olr.fine_tune(optax.sgd(0.1), {"head": 1.0, "body": 1.0}, labels, starts={"body": 100})
    optimizer, step = nnx.Optimizer(model, tx, wrt=nnx.Param), train_step(nnx.Param)
    step(model, optimizer, INPUTS[0])
    start = np.asarray(model.embed.kernel[...])
    step(model, optimizer, INPUTS[0])
    assert np.array_equal(model.embed.kernel[...], start)
    with count_lowerings() as lowered:
        olr.nnx.set_unfreezing_steps(optimizer, {"body": 2})
        step(model, optimizer, INPUTS[0])
    assert lowered == [] and not np.array_equal(model.embed.kernel[...], start)


def test_adapters_have_labels_of_their_own():
    model = adapted()
    labels = olr.label_by_path({r".*/lora_a": "a", r".*/lora_b": "b"})
    tx = olr.fine_tune(optax.sgd(1.0), {"a": 1.0, "b": 16.0}, labels)  # LoRA+
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.LoRAParam)
    gradients = nnx.grad(loss_fn, argnums=nnx.DiffState(0, nnx.LoRAParam))(model, VALIDATION)
    before = jax.tree.map(np.array, pure(nnx.state(model, nnx.LoRAParam)))["body"]
    optimizer.update(model, gradients)
    after, slopes = pure(nnx.state(model, nnx.LoRAParam))["body"], pure(gradients)["body"]
    assert np.abs(slopes["lora_b"]).max() > 0
    for name, factor in (("lora_a", 1), ("lora_b", 16)):
        np.testing.assert_allclose(after[name] - before[name], -factor * slopes[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("freeze", [dict, flax.core.freeze], ids=["dict", "FrozenDict"])
def test_a_linen_train_state_is_fine_tuned_by_label(freeze):
    network = linen.Sequential([linen.Dense(4), jnp.tanh, linen.Dense(1)])
    params = freeze(network.init(jax.random.key(0), INPUTS[0])["params"])
    labels = olr.label_by_path({"layers_2/.*": "head", "layers_0/.*": "body"})
    tx = olr.fine_tune(optax.sgd(1.0), {"head": 1.0, "body": 0.5}, labels, starts={"body": 1})
    state = TrainState.create(apply_fn=network.apply, params=params, tx=tx)

    @jax.jit
    def step(state):
        grads = jax.grad(lambda params: jnp.mean(state.apply_fn({"params": params}, INPUTS[0]) ** 2))(
            state.params
        )
        return state.apply_gradients(grads=grads), grads

    shares = {"layers_0": [0.0, 0.5], "layers_2": [1.0, 1.0]}
    for t in range(2):
        before, (state, grads) = state.params, step(state)
        for layer, share in shares.items():
            expected = before[layer]["kernel"] - share[t] * grads[layer]["kernel"]
            np.testing.assert_allclose(state.params[layer]["kernel"], expected, rtol=1e-6)
    assert type(state.params) is type(params)
    sooner = state.replace(opt_state=olr.set_unfreezing_steps(state.opt_state, {"body": 5}))
    assert (step(sooner)[0].params["layers_0"]["kernel"] == state.params["layers_0"]["kernel"]).all()


def test_a_filter_leaves_out_what_has_no_labels():
    every = olr.nnx.trainable(LABELS, ["head", "body"])
    model = stateful()
    selected, params = (pure(nnx.state(model, wrt)) for wrt in (every, nnx.Param))
    assert jax.tree.structure(selected) == jax.tree.structure(params)


# The rate inside an optimizer.


@pytest.mark.parametrize(
    "make",
    [
        lambda: optax.chain(optax.scale_by_adam(), olr.scale_by_learning_rate(0.5)),
        lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.5),
        lambda: olr.fine_tune(
            optax.chain(optax.scale_by_adam(), olr.scale_by_learning_rate(0.5)),
            {"head": 1.0},
            LABELS,
            frozen="body",
        ),
    ],
    ids=["chain", "injected", "fine_tune"],
)
def test_the_rate_is_read_and_set_in_place_and_compiles_nothing(make):
    model = Deep(nnx.Rngs(0))
    optimizer, step = nnx.Optimizer(model, make(), wrt=nnx.Param), train_step(nnx.Param)
    step(model, optimizer, INPUTS[0])
    assert olr.nnx.get_learning_rate(optimizer) == 0.5
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), pure(optimizer.opt_state))
    with count_lowerings() as lowered:
        olr.nnx.set_learning_rate(optimizer, 0.0)
        before = variables(model)
        step(model, optimizer, INPUTS[0])
    assert lowered == [] and olr.nnx.get_learning_rate(optimizer) == 0.0
    assert_same(variables(model), before)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), pure(optimizer.opt_state)) == shapes


def test_a_schedule_rules_again_once_the_rate_is_cleared():
    model = Plain(nnx.Rngs(0))
    tx = olr.scale_by_learning_rate(lambda step: 1.0 / (1.0 + step))
    optimizer, step, seen = nnx.Optimizer(model, tx, wrt=nnx.Param), train_step(nnx.Param), []
    for t in range(4):
        if t == 1:
            olr.nnx.set_learning_rate(optimizer, 0.125)
        if t == 2:
            olr.nnx.clear_learning_rate(optimizer)
        step(model, optimizer, INPUTS[0])
        seen.append(float(olr.nnx.get_learning_rate(optimizer)))
    np.testing.assert_allclose(seen, [1.0, 0.125, 1 / 3, 1 / 4], rtol=1e-6)


def test_several_rates_go_by_path():
    model = Plain(nnx.Rngs(0))
    parts = {"head": olr.scale_by_learning_rate(0.5), "body": olr.scale_by_learning_rate(0.25)}
    tx = optax.partition(parts, lambda params: LABELS.resolve(params))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    body, head = "inner_states/body/inner_state", "inner_states/head/inner_state"
    assert olr.nnx.get_learning_rates(optimizer) == {body: 0.25, head: 0.5}
    olr.nnx.set_learning_rate(optimizer, {body: 1.0})
    assert olr.nnx.get_learning_rates(optimizer) == {body: 1.0, head: 0.5}


# Labels are looked at by the package as the tests import it: a `Labeler` is of one package.
TREE = {"head": {"kernel": "head"}, "body": {"kernel": "body"}}
CALLS = {
    "no such label": (
        lambda _: olr.nnx.trainable(LABELS, "haed"),
        "names has 'haed', a label of no parameter: did you mean 'head'?",
    ),
    "no such label in a tree": (
        lambda _: olr.nnx.trainable(TREE, ["haed"]),
        "names has 'haed', a label of no parameter: did you mean 'head'?",
    ),
    "no label": (lambda _: olr.nnx.trainable(LABELS, []), "names must have at least one label, got []."),
    "depths": (
        lambda _: olr.nnx.trainable(olr.label_by_depth(["body/.*", "head/.*"]), 1),
        "labels must be a tree where they come from all parameters at once: pass "
        "labels.resolve(nnx.state(model, nnx.Param)).",
    ),
    "a parameter without one": (
        lambda _: nnx.state(Plain(nnx.Rngs(0)), olr.nnx.trainable(TREE, "head")),
        "labels has nothing for 'body/bias'.",
    ),
    "no optimizer": (
        lambda nnx_: nnx_.set_learning_rate(optax.sgd(0.1).init(jnp.ones(2)), 0.1),
        "optimizer must be an nnx.Optimizer, got a tuple; for a state of Optax there are functions of the same "
        "name in optax_lr.",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_does_not_fit_is_refused_in_one_sentence(name, unhooked_nnx):
    act, sentence = CALLS[name]
    with pytest.raises(ValueError, match=r"\S") as refusal:
        act(unhooked_nnx)
    assert str(refusal.value) == sentence


def test_an_optimizer_without_a_visible_rate_names_the_replacement():
    optimizer = nnx.Optimizer(Plain(nnx.Rngs(0)), optax.adam(0.1), wrt=nnx.Param)
    with pytest.raises(ValueError, match=r"write optax_lr\.visible\(optax\.adam\)\(rate\) in place of"):
        olr.nnx.get_learning_rate(optimizer)


def test_the_plain_setters_refuse_an_optimizer_that_they_would_leave_as_it_is(unhooked):
    optimizer = nnx.Optimizer(Plain(nnx.Rngs(0)), unhooked.visible(optax.adam)(0.5), wrt=nnx.Param)
    for name, arguments in (("set_learning_rate", (0.1,)), ("clear_learning_rate", ())):
        with pytest.raises(ValueError, match=rf"use optax_lr\.nnx\.{name}\(optimizer"):
            getattr(unhooked, name)(optimizer, *arguments)
    assert unhooked.get_learning_rate(optimizer) == 0.5
