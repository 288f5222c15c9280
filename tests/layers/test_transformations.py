"""Layer-wise transformations against Optax's own and against fresh optimizers, and what they cost."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from lowerings import count_lowerings

import optax_lr as olr

STEPS = 50
LAYERS = ("embed", "block_0", "block_1", "head")
LABELS = olr.label_by_depth([r"embed/.*", r"block_(\d+)/.*", r"head/.*"])
MULTIPLIERS = {0: 0.0, 1: 0.25, 2: 0.5, 3: 2.0}
NORMAL = np.random.default_rng(0).normal


def tree(scale=1.0, lead=()):
    return {
        layer: {
            "kernel": jnp.asarray(scale * NORMAL(size=(*lead, 3, 2)), jnp.float32),
            "bias": jnp.asarray(scale * NORMAL(size=(*lead, 2)), jnp.float32),
        }
        for layer in LAYERS
    }


PARAMS, GRADS = tree(), tree(lead=(STEPS,))


def at(stacked, step):
    return jax.tree.map(lambda leaf: leaf[step], stacked)


def same(one, other):
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


def later(stacked, start):
    return jax.tree.map(lambda leaf: leaf[start:], stacked)


def run(tx, grads=GRADS, params=PARAMS):
    """The parameters after every step, and the last state."""

    @jax.jit
    def all_steps(params, state, grads):
        def step(carry, grads):
            updates, state = tx.update(grads, carry[1], carry[0])
            params = optax.apply_updates(carry[0], updates)
            return (params, state), params

        return jax.lax.scan(step, (params, state), grads)

    (_, state), path = all_steps(params, tx.init(params), grads)
    return path, state


def check_close(one, other, **tolerance):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, **{"rtol": 1e-5, "atol": 1e-6, **tolerance})


def test_scale_by_label_equals_an_optimizer_for_each_label():
    ours, _ = run(optax.chain(optax.adamw(0.1), olr.scale_by_label(MULTIPLIERS, LABELS)))
    each = {label: optax.adamw(0.1 * factor) for label, factor in MULTIPLIERS.items()}
    theirs, _ = run(optax.partition(each, LABELS.resolve(PARAMS)))
    check_close(ours, theirs)
    assert not same(ours["head"], ours["block_1"])


def test_scale_by_label_with_schedules_equals_scheduled_optimizers():
    rates = {label: olr.anneal_schedule(0.1 * (label + 1), 0.0, 40) for label in range(4)}
    ours, _ = run(optax.chain(optax.scale_by_adam(), olr.scale_by_label(rates, LABELS), optax.scale(-1.0)))
    each = {label: optax.adam(rate) for label, rate in rates.items()}
    check_close(ours, run(optax.partition(each, LABELS.resolve(PARAMS)))[0])


def test_a_multiplier_of_zero_gives_zeros_even_for_nan():
    bad = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), PARAMS)
    for zero in (0, jnp.float32(0.0), lambda count: jnp.float32(0.0)):
        tx = olr.scale_by_label(dict.fromkeys(range(4), zero), LABELS)
        updates, _ = jax.jit(tx.update)(bad, tx.init(PARAMS))
        assert not any(leaf.any() for leaf in jax.tree.leaves(updates))

    def first_update(multiplier):
        tx = olr.scale_by_label({"all": multiplier}, ["all"])
        return tx.update([jnp.float32(3.0)], tx.init([jnp.float32(3.0)]))[0][0]

    assert jax.grad(first_update)(0.0) == 3.0  # and the derivative by it is that of the product


def test_train_only_equals_partition_with_set_to_zero_and_stores_less():
    ours, state = run(olr.train_only(optax.adam(0.1), [2, 3], LABELS))
    parts = jax.tree.map(lambda label: "on" if label in (2, 3) else "off", LABELS.resolve(PARAMS))
    theirs, _ = run(optax.partition({"on": optax.adam(0.1), "off": optax.set_to_zero()}, parts))
    assert same(ours, theirs)
    assert same(at(ours, -1)["embed"], PARAMS["embed"])
    floats = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.ndim)
    trained = sum(leaf.nbytes for name in ("block_1", "head") for leaf in PARAMS[name].values())
    assert floats == 2 * trained  # two moments


def test_train_only_computes_no_gradient_of_what_it_does_not_train():
    sizes = [(64, 256), (256, 256), (256, 256), (256, 10)]
    params = {str(index): jnp.zeros(size) for index, size in enumerate(sizes)}
    inputs = jnp.zeros((128, 64))

    def loss(params):
        hidden = inputs
        for weights in params.values():
            hidden = jnp.tanh(hidden @ weights)
        return (hidden**2).sum()

    def flops(tx):
        def step(params, state):
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        return jax.jit(step).lower(params, tx.init(params)).compile().cost_analysis()["flops"]

    head, clip = ("head", olr.label_by_path({"3": "head"}, default="body")), optax.clip_by_global_norm(1.0)
    everything = flops(optax.chain(clip, optax.adam(0.1)))
    assert flops(olr.train_only(optax.chain(clip, optax.adam(0.1)), *head)) <= 0.5 * everything
    outside = flops(optax.chain(clip, olr.train_only(optax.adam(0.1), *head)))
    assert outside >= 0.95 * everything


STARTS = {0: 20, 1: 7, 2: 1}


def test_unfreezing_is_a_fresh_optimizer_from_its_start():
    tx = olr.unfreeze_at(optax.adam(0.1), STARTS, LABELS)
    path, _ = run(tx)
    for index, layer in enumerate(LAYERS):
        start = STARTS.get(index, 0)
        alone, _ = run(optax.adam(0.1), later(GRADS[layer], start), PARAMS[layer])
        check_close(later(path[layer], start), alone)
        if start:
            assert same(at(path, start - 1)[layer], PARAMS[layer])


def test_the_first_eager_update_is_that_of_a_fresh_optimizer():
    tx = olr.unfreeze_at(optax.adam(0.1), {1: 2}, LABELS)
    state = tx.init(PARAMS)
    for step in range(3):
        updates, state = tx.update(at(GRADS, step), state, PARAMS)
    fresh = optax.adam(0.1)
    wanted, _ = fresh.update(at(GRADS, 2)["block_0"], fresh.init(PARAMS["block_0"]), PARAMS["block_0"])
    check_close(updates["block_0"], wanted, rtol=2e-7, atol=0)


def test_a_frozen_state_does_not_move_whatever_the_gradient():
    bad = {**at(GRADS, 0), "block_0": jax.tree.map(lambda leaf: leaf * jnp.nan, PARAMS["block_0"])}
    tx = olr.unfreeze_at(optax.adam(0.1), {1: 2}, LABELS)
    first = tx.init(PARAMS)
    updates, state = tx.update(bad, first, PARAMS)
    assert state.late["1"] == first.late["1"]
    for moments in (state.inner[0].mu, state.inner[0].nu):
        assert same(moments["block_0"], first.inner[0].mu["block_0"])
    assert not any(leaf.any() for leaf in jax.tree.leaves(updates["block_0"]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))


def test_zero_until_keeps_frozen_gradients_out_of_the_norm():
    tx = optax.chain(olr.zero_until({0: 1, 1: 1, 2: 1}, LABELS), optax.clip_by_global_norm(1e-3))
    grads = at(GRADS, 0)
    updates, state = tx.update(grads, tx.init(PARAMS))
    alone, _ = optax.clip_by_global_norm(1e-3).update(grads["head"], optax.EmptyState())
    check_close(updates["head"], alone)
    updates, _ = tx.update(grads, state)
    check_close(updates, optax.clip_by_global_norm(1e-3).update(grads, optax.EmptyState())[0])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: tx,
        lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
        lambda tx: optax.apply_if_finite(tx, 3),
        lambda tx: optax.MultiSteps(tx, every_k_schedule=1).gradient_transformation(),
    ],
    ids=["alone", "chain", "apply_if_finite", "MultiSteps"],
)
def test_new_starts_take_effect_and_compile_nothing(wrap):
    tx = wrap(optax.chain(olr.zero_until({1: 10}, LABELS), olr.unfreeze_at(optax.sgd(1.0), {1: 10}, LABELS)))
    step = jax.jit(tx.update)
    updates, state = step(PARAMS, tx.init(PARAMS), PARAMS)
    _, state = step(PARAMS, state, PARAMS)
    assert not updates["block_0"]["bias"].any()
    with count_lowerings() as lowered:
        sooner = olr.set_unfreezing_steps(state, {1: 2})
        updates, _ = step(PARAMS, sooner, PARAMS)
    assert lowered == []
    assert updates["block_0"]["bias"].all()
    assert jax.tree.structure(sooner) == jax.tree.structure(state)


def test_fine_tune_is_its_parts():
    multipliers = {1: 0.25, 2: 0.5, 3: 1.0}
    ours, state = run(
        olr.fine_tune(
            optax.chain(optax.scale_by_adam(), olr.scale_by_learning_rate(0.1)),
            multipliers,
            LABELS,
            frozen=0,
            starts={1: 30},
        )
    )
    inner = optax.chain(
        olr.unfreeze_at(optax.adam(0.1), {1: 30}, LABELS), olr.scale_by_label(multipliers, LABELS)
    )
    theirs, _ = run(olr.train_only(inner, (1, 2, 3), LABELS))
    check_close(ours, theirs)
    assert same(at(ours, -1)["embed"], PARAMS["embed"])
    assert olr.get_learning_rate(state) == np.float32(0.1)
    changed = olr.set_learning_rate(olr.set_unfreezing_steps(state, {1: 5}), 0.3)
    assert olr.get_learning_rate(changed) == np.float32(0.3)
    everything, _ = run(olr.fine_tune(optax.adam(0.1), {0: 1.0, **multipliers}, LABELS))
    check_close(everything["head"], ours["head"])


class Network(nnx.Module):
    def __init__(self):
        self.block = nnx.List([nnx.Linear(3, 3, rngs=nnx.Rngs(index)) for index in range(2)])
        self.head = nnx.Linear(3, 1, rngs=nnx.Rngs(2))

    def __call__(self, inputs):
        for layer in self.block:
            inputs = jnp.tanh(layer(inputs))
        return self.head(inputs)


def test_an_nnx_optimizer_fine_tunes_by_depth():
    model, labels = Network(), olr.label_by_depth([r"block/(\d+)/.*", r"head/.*"])
    tx = olr.fine_tune(optax.adam(0.1), {1: 0.5, 2: 1.0}, labels, frozen=0, starts={1: 1})
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    kernels = [model.block[0].kernel, model.block[1].kernel, model.head.kernel]
    before = [np.asarray(kernel[...]) for kernel in kernels]

    @nnx.jit
    def step(model, optimizer):
        grads = nnx.grad(lambda model: (model(jnp.ones((4, 3))) ** 2).mean())(model)
        optimizer.update(model, grads)

    moved = []
    for _ in range(2):
        step(model, optimizer)
        moved.append([bool((np.asarray(k[...]) != b).any()) for k, b in zip(kernels, before, strict=True)])
    assert moved == [[False, False, True], [False, True, True]]


def test_labels_add_hardly_an_equation_to_adamw():
    params = {str(leaf): jax.ShapeDtypeStruct((4,), jnp.float32) for leaf in range(240)}
    labels = {str(leaf): leaf % 24 for leaf in range(240)}

    def equations(*extra):
        tx = optax.chain(
            optax.scale_by_adam(), optax.add_decayed_weights(1e-4), *extra, olr.scale_by_learning_rate(0.1)
        )

        def step(params, grads):
            updates, _ = tx.update(grads, tx.init(params), params)
            return optax.apply_updates(params, updates)

        return len(jax.make_jaxpr(step)(params, params).eqns)

    bare = equations()
    labelled = equations(olr.scale_by_label({label: 0.5 + 0.01 * label for label in range(24)}, labels))
    assert bare < labelled <= 1.1 * bare


REFUSALS = {
    "labels in the place of multipliers": (
        lambda olr: olr.fine_tune(optax.sgd(1.0), olr.label_by_path({".*": 0}), {0: 1.0}),
        "multipliers must be a mapping from labels or a rule such as layer_decay(), got label_by_path({'.*': 0}); "
        "labels come after it.",
    ),
    "labels in the place of starts": (
        lambda olr: olr.zero_until(olr.label_by_path({".*": 0}), {0: 1}),
        "starts must be a mapping from labels, got label_by_path({'.*': 0}); labels come after it.",
    ),
    "labels in the place of names": (
        lambda olr: olr.train_only(optax.sgd(1.0), olr.label_by_path({".*": 0}), 0),
        "names must be labels, got label_by_path({'.*': 0}); labels of parameters come after them.",
    ),
    "multiplier": (
        lambda olr: olr.scale_by_label({0: -1.0}, LABELS),
        "multipliers[0] must be a finite number of at least 0, got -1.0.",
    ),
    "no such label": (
        lambda olr: olr.scale_by_label({"head": 1.0, "haed": 1.0}, ["head"]).init([1.0]),
        "multipliers has 'haed', a label of no parameter: did you mean 'head'?",
    ),
    "no multiplier": (
        lambda olr: olr.scale_by_label({"haed": 1.0}, ["head", "haed"]).init([1.0, 2.0]),
        "multipliers has nothing for 'head', the label of '0': did you mean 'haed'?",
    ),
    "new parameters": (
        lambda olr: olr.scale_by_label({"a": 1.0}, {"a": "a"}).update(
            {"a": 1.0, "b": 1.0}, optax.EmptyState()
        ),
        "labels has nothing for 'b': there is 'a'.",
    ),
    "nothing to train": (
        lambda olr: olr.train_only(optax.sgd(1.0), (), ["head"]),
        "names must name at least one label, got ().",
    ),
    "unknown to train": (
        lambda olr: olr.train_only(optax.sgd(1.0), "haed", ["head"]).init([1.0]),
        "names has 'haed', a label of no parameter: did you mean 'head'?",
    ),
    "no start": (
        lambda olr: olr.unfreeze_at(optax.sgd(1.0), {}, ["head"]),
        "starts must have at least one label, got {}.",
    ),
    "two of one name": (
        lambda olr: olr.zero_until({1: 0, "1": 2}, [1, "1"]),
        "starts must have each label under another name, got [1, '1'].",
    ),
    "negative start": (
        lambda olr: olr.zero_until({"head": -3}, ["head"]),
        "starts['head'] must be a number of steps from 0 to 2^31 - 1, got -3.",
    ),
    "unknown start": (
        lambda olr: olr.unfreeze_at(optax.sgd(1.0), {"haed": 3}, ["head"]).init([1.0]),
        "starts has 'haed', a label of no parameter: did you mean 'head'?",
    ),
    "unknown new start": (
        lambda olr: olr.set_unfreezing_steps(olr.zero_until({"head": 3}, ["head"]).init([1.0]), {"haed": 1}),
        "starts has 'haed', a label of no parameter: did you mean 'head'?",
    ),
    "no state": (
        lambda olr: olr.set_unfreezing_steps(optax.EmptyState(), {"head": 1}),
        "opt_state holds no starts: they come from unfreeze_at, zero_until or fine_tune.",
    ),
    "frozen and starting": (
        lambda olr: olr.fine_tune(optax.sgd(1.0), {"head": 1.0}, ["head"], frozen="head", starts={"head": 1}),
        "starts has 'head', which frozen has too: take it out of one of them.",
    ),
    "unknown frozen": (
        lambda olr: olr.fine_tune(optax.sgd(1.0), {"head": 1.0}, ["head"], frozen="haed").init([1.0]),
        "frozen has 'haed', a label of no parameter: did you mean 'head'?",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_does_not_fit_is_refused_in_one_sentence(name, unhooked):
    act, sentence = REFUSALS[name]
    with pytest.raises(ValueError, match=r"\S") as refusal:
        act(unhooked)
    assert str(refusal.value) == sentence


def test_optax_finds_the_parameters_in_a_state():
    tx = olr.fine_tune(optax.adam(0.1), {1: 0.5, 2: 0.5, 3: 1.0}, LABELS, frozen=0, starts={1: 2})
    state = optax.tree_utils.tree_map_params(tx, lambda leaf: leaf + 1, tx.init(PARAMS))
    changed = [bool((leaf == 1).all()) for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert changed and all(changed)
