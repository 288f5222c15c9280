"""Flax NNX against plain loops: the finders, a rate inside `nnx.Optimizer`, filters of what is trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jaxtyping import install_import_hook
from lowerings import count_lowerings

import optax_lr as olr

with install_import_hook("optax_lr.nnx", "typecheck.check"):
    import optax_lr.nnx

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(12, 8, 3)).astype(np.float32)
TARGETS = np.tanh(INPUTS.sum(-1, keepdims=True))
BATCHES = (INPUTS, TARGETS)
VALIDATION = (INPUTS[-1], TARGETS[-1])
quiet = functools.partial(olr.nnx.lr_sweep, progress=False)


class Plain(nnx.Module):
    """Two layers without any state."""

    def __init__(self, rngs):
        self.body = nnx.Linear(3, 4, rngs=rngs)
        self.head = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, inputs):
        return self.head(jnp.tanh(self.body(inputs)))


class Stateful(Plain):
    """Batch statistics, dropout, a stream of its own and a count."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.25, rngs=rngs)
        self.noise = rngs.fork()
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, inputs):
        self.calls[...] += 1
        noisy = inputs + 0.1 * jax.random.normal(self.noise(), inputs.shape)
        return self.head(self.drop(self.norm(jnp.tanh(self.body(noisy)))))


def loss_fn(model, batch):
    return jnp.mean((model(batch[0]) - batch[1]) ** 2)


def loss_and_metrics(model, batch):
    error = model(batch[0]) - batch[1]
    return jnp.mean(error**2), {"worst": jnp.abs(error).max()}


def eval_fn(model, batch):
    loss, metrics = loss_and_metrics(model, batch)
    return {"loss": loss, **metrics}


def stateful():
    return Stateful(nnx.Rngs(0))


def variables(model):
    """Every variable and static attribute of a module, keys as numbers."""
    graphdef, state = nnx.split(model)
    arrays = nnx.to_pure_dict(nnx.as_pure(state))
    return graphdef, jax.tree.map(
        lambda x: np.asarray(
            jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        ).copy(),
        arrays,
    )


def assert_same(one, other):
    assert one[0] == other[0]
    jax.tree.map(np.testing.assert_array_equal, one[1], other[1])


ADAM = optax.chain(optax.scale_by_adam(), olr.scale_by_learning_rate(1.0))


@functools.cache
def own_step(wrt):
    """The training step of an NNX user, compiled once for models of one form and one transformation."""

    @nnx.jit
    def step(model, optimizer, batch):
        take = nnx.value_and_grad(loss_and_metrics, argnums=nnx.DiffState(0, wrt), has_aux=True)
        found, gradients = take(model, batch)
        optimizer.update(model, gradients)
        return found

    return step


def own_loop(model, rate, num_steps, *, wrt=nnx.Param):
    """The loop of an NNX user over the batches in order; the model, its optimizer, losses and metrics."""
    model = nnx.clone(model)
    optimizer = nnx.Optimizer(model, ADAM, wrt=wrt)
    olr.nnx.set_learning_rate(optimizer, rate)
    said = [own_step(wrt)(model, optimizer, (INPUTS[t], TARGETS[t])) for t in range(num_steps)]
    worst = [float(metrics["worst"]) for _, metrics in said]
    return model, optimizer, np.array([float(loss) for loss, _ in said]), np.array(worst)


def test_lr_find_gives_the_curve_of_the_plain_one():
    model = Plain(nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.as_pure(nnx.state(model, nnx.Param)))

    def plain_loss(params, batch):
        hidden = jnp.tanh(batch[0] @ params["body"]["kernel"] + params["body"]["bias"])
        return jnp.mean((hidden @ params["head"]["kernel"] + params["head"]["bias"] - batch[1]) ** 2)

    options = {"eval_batch": VALIDATION, "num_steps": 6, "seeds": 2, "progress": False}
    ours = olr.nnx.lr_find(loss_fn, model, optax.adam, BATCHES, **options)
    theirs = olr.lr_find(plain_loss, params, optax.adam, BATCHES, **options)
    np.testing.assert_allclose(ours.curve.losses, theirs.curve.losses, rtol=1e-6)
    np.testing.assert_allclose(ours.curve.eval_losses, theirs.curve.eval_losses, rtol=1e-6)
    np.testing.assert_allclose(ours.learning_rate, theirs.learning_rate, rtol=1e-6)


def test_the_range_test_gives_the_curve_of_the_plain_one():
    options = {"min_learning_rate": 1e-3, "max_learning_rate": 1.0, "num_steps": 8, "progress": False}
    ours = olr.nnx.lr_range_test(
        loss_fn, nnx.Linear(3, 1, use_bias=False, rngs=nnx.Rngs(0)), optax.sgd, BATCHES, **options
    )
    start = nnx.Linear(3, 1, use_bias=False, rngs=nnx.Rngs(0)).kernel[...]
    theirs = olr.lr_range_test(
        lambda w, batch: jnp.mean((batch[0] @ w - batch[1]) ** 2), start, optax.sgd, BATCHES, **options
    )
    np.testing.assert_allclose(ours.losses, theirs.losses, rtol=1e-6)


@pytest.mark.parametrize("lanes_at_once", ["auto", 2])
def test_dropout_batch_norm_streams_and_counts_equal_a_plain_loop(lanes_at_once):
    curve = quiet(
        loss_and_metrics, stateful(), optax.adam, BATCHES, learning_rates=[0.01, 0.1], num_steps=6, seeds=2,
        has_aux=True, eval_batch=VALIDATION, eval_every=3, lanes_at_once=lanes_at_once,
    )  # fmt: skip
    for lane, rate in enumerate(curve.learning_rates):
        model, _, losses, worst = own_loop(stateful(), rate, 6)
        np.testing.assert_allclose(curve.losses[0, lane], losses, rtol=0, atol=1e-6)
        np.testing.assert_allclose(curve.metrics["worst"][0, lane], worst, rtol=0, atol=2e-6)
        model.eval()
        measured = eval_fn(model, VALIDATION)
        np.testing.assert_allclose(curve.eval_losses[0, lane, 1], measured["loss"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(curve.eval_metrics["worst"][0, lane, 1], measured["worst"], atol=2e-6)
    assert not np.allclose(curve.losses[0], curve.losses[1])  # another order of the batches


def test_the_module_is_as_it_was():
    model = stateful()
    model(INPUTS[0])
    before = variables(model)
    assert before[1]["drop"]["rngs"]["count"] == before[1]["calls"] == 1
    options = {"eval_batch": VALIDATION, "progress": False, "num_steps": 3}
    olr.nnx.lr_find(
        loss_fn, model, optax.adam, BATCHES, horizon=4, schedule=lambda peak: lambda step: peak, seeds=1,
        min_learning_rate=1e-2, max_learning_rate=0.1, finalists=1, **options,
    )  # fmt: skip
    assert_same(variables(model), before)
    olr.nnx.lr_range_test(loss_fn, model, optax.adam, BATCHES, **options)
    assert_same(variables(model), before)
    assert not model.drop.deterministic and not model.norm.use_running_average
    model(INPUTS[0])  # and it still counts
    assert model.calls[...] == 2


def test_the_best_run_goes_back_into_the_model():
    model = stateful()
    found = olr.nnx.lr_find(
        loss_fn, model, optax.sgd, BATCHES, eval_fn=eval_fn, eval_batch=VALIDATION, horizon=5, num_steps=2,
        schedule=lambda peak: olr.anneal_schedule(peak, 0.0, 5), seeds=1, min_learning_rate=1e-2,
        max_learning_rate=0.1, progress=False,
    )  # fmt: skip
    nnx.update(model, found.params, found.model_state)
    assert model.calls[...] == 5 and model.drop.rngs.count[...] == 5
    assert isinstance(model.head.kernel, nnx.Param)
    model.eval()
    best = np.nanargmin(found.finalists.eval_losses[0, :, -1])
    np.testing.assert_allclose(
        loss_fn(model, VALIDATION), found.finalists.eval_losses[0, best, -1], rtol=1e-5
    )
    assert "worst" in found.finalists.eval_metrics


def test_every_seed_draws_its_own_start_where_the_model_is_a_function():
    drawn = {}

    def draw(key):
        model = Stateful(nnx.Rngs(key))
        drawn[np.asarray(jax.random.key_data(key)).tobytes()] = model
        return model

    curve = quiet(loss_fn, draw, optax.adam, BATCHES, learning_rates=[0.03], num_steps=4, seeds=3)
    models = list(drawn.values())
    assert len(models) == 4  # one for the form of the model, and then each seed's once
    first = [own_loop(model, 0.03, 4)[2] for model in models]
    np.testing.assert_allclose(curve.losses[0, 0], first[1], rtol=0, atol=1e-6)
    assert len(set(curve.losses[:, 0, 0].tolist())) == 3


def test_a_loss_may_take_a_key_and_may_sow():
    def loss(model, batch, key):
        model.sow(nnx.Intermediate, "inputs", batch[0])
        return loss_fn(model, batch) + jax.random.uniform(key)

    model, options = Plain(nnx.Rngs(0)), {"learning_rates": [1e-30], "num_steps": 3, "with_key": True}
    with pytest.warns(DeprecationWarning, match="sow"):
        curve = quiet(loss, model, optax.sgd, BATCHES, eval_batch=VALIDATION, eval_every=1, **options)
    keys = [jax.random.fold_in(jax.random.split(jax.random.key(0), 1)[0], t) for t in range(3)]
    noise = [jax.random.uniform(key) for key in keys]
    bare = own_loop(model, 1e-30, 3)[2]
    np.testing.assert_allclose(curve.losses[0, 0] - bare, noise, atol=1e-6)
    assert len(set(curve.eval_losses[0, 0].tolist())) == 1  # one key for all evaluations
    assert not nnx.state(model, nnx.Intermediate)


def test_a_search_goes_on_in_the_middle_of_an_nnx_run():
    def visible(rate):
        return optax.chain(optax.scale_by_adam(), olr.scale_by_learning_rate(rate))

    through = own_loop(stateful(), 0.03, 8)[2]
    model, optimizer, *_ = own_loop(stateful(), 0.03, 4)
    later = jax.tree.map(lambda leaf: leaf[4:], BATCHES)
    for opt_state in (optimizer, optimizer.opt_state, nnx.as_pure(optimizer.opt_state)):
        curve = quiet(loss_fn, model, visible, later, learning_rates=[0.03], num_steps=4, opt_state=opt_state)
        np.testing.assert_allclose(curve.losses[0, 0], through[4:], rtol=0, atol=1e-6)


def test_a_killed_search_of_a_module_is_read_back(tmp_path):
    traced = []

    def loss(model, batch):
        traced.append(1)
        return loss_fn(model, batch)

    options = {"learning_rates": [0.01, 0.1], "num_steps": 4, "checkpoint": tmp_path}
    one, two = (quiet(loss, stateful(), optax.adam, BATCHES, **options) for _ in range(2))
    np.testing.assert_array_equal(one.losses, two.losses)
    assert any(tmp_path.iterdir()) and traced


# What is trained: filters, labels, low-rank adapters.

LABELS = olr.label_by_path({"head/.*": "head", ".*": "body"})


class Deep(nnx.Module):
    """An embedding of the inputs, three blocks and a head: five groups."""

    def __init__(self, rngs, width=4, inputs=3):
        self.embed = nnx.Linear(inputs, width, rngs=rngs)
        self.block = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(3)])
        self.head = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, inputs):
        hidden = jnp.tanh(self.embed(inputs))
        for layer in self.block:
            hidden = jnp.tanh(layer(hidden))
        return self.head(hidden)


class Convolutions(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.second = nnx.Conv(8, 16, (3, 3), rngs=rngs)
        self.head = nnx.Linear(16 * 64, 10, rngs=rngs)

    def __call__(self, images):
        features = jax.nn.relu(self.second(jax.nn.relu(self.first(images))))
        return self.head(features.reshape(len(images), -1))


def square(model, inputs):
    return jnp.mean(model(inputs) ** 2)


def train_step(wrt):
    @nnx.jit
    def step(model, optimizer, inputs):
        loss, gradients = nnx.value_and_grad(square, argnums=nnx.DiffState(0, wrt))(model, inputs)
        optimizer.update(model, gradients)
        return loss

    return step


def state_bytes(optimizer):
    """What an optimizer keeps of the parameters, counts left out."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.as_pure(optimizer.opt_state)) if leaf.ndim)


@pytest.mark.parametrize("labels", [LABELS, None], ids=["labeler", "tree"])
@pytest.mark.parametrize(
    ("build", "shape"),
    [(lambda: Deep(nnx.Rngs(0), 64, 64), (32, 64)), (lambda: Convolutions(nnx.Rngs(0)), (8, 8, 8, 1))],
    ids=["mlp", "cnn"],
)
def test_a_frozen_backbone_costs_neither_state_nor_gradients(build, shape, labels):
    inputs, model = jnp.ones(shape), build()
    before = variables(model)[1]
    tree = LABELS.resolve(nnx.state(model, nnx.Param))
    head = olr.nnx.trainable(labels or tree, "head")
    frozen = olr.fine_tune(optax.adam(0.1), tree, {"head": 1.0}, frozen="body")
    ways = {"all": (nnx.Param, optax.adam(0.1)), "wrt": (head, optax.adam(0.1)), "tx": (nnx.Param, frozen)}
    flops, kept = {}, {}
    for name, (wrt, tx) in ways.items():
        optimizer = nnx.Optimizer(model, tx, wrt=wrt)
        kept[name] = state_bytes(optimizer)
        flops[name] = train_step(wrt).lower(model, optimizer, inputs).compile().cost_analysis()["flops"]
    head_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.as_pure(nnx.state(model.head))))
    all_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.as_pure(nnx.state(model))))
    assert kept == {"all": 2 * all_bytes, "wrt": 2 * head_bytes, "tx": 2 * head_bytes}
    assert flops["wrt"] < 0.5 * flops["all"] and flops["tx"] < 0.5 * flops["all"]
    train_step(head)(model, nnx.Optimizer(model, optax.adam(0.1), wrt=head), inputs)
    after = variables(model)[1]
    moved = {name: not np.array_equal(after[name]["kernel"], before[name]["kernel"]) for name in after if
             "kernel" in after[name]}  # fmt: skip
    assert moved == {name: name == "head" for name in moved}


def test_unfreezing_five_groups_over_a_run_compiles_once():
    model = Deep(nnx.Rngs(0))
    labels = olr.label_by_depth([r"embed/.*", r"block/(\d+)/.*", r"head/.*"]).resolve(
        nnx.state(model, nnx.Param)
    )
    starts = {3: 2, 2: 4, 1: 6, 0: 8}
    tx = olr.fine_tune(optax.adam(0.1), labels, olr.geometric_multipliers(labels, 0.1, 1.0), starts=starts)
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
    tx = olr.fine_tune(optax.sgd(0.1), labels, {"head": 1.0, "body": 1.0}, starts={"body": 100})
    optimizer, step = nnx.Optimizer(model, tx, wrt=nnx.Param), train_step(nnx.Param)
    step(model, optimizer, INPUTS[0])
    start = np.asarray(model.embed.kernel[...])
    step(model, optimizer, INPUTS[0])
    assert np.array_equal(model.embed.kernel[...], start)
    with count_lowerings() as lowered:
        olr.nnx.set_unfreezing_steps(optimizer, {"body": 2})
        step(model, optimizer, INPUTS[0])
    assert lowered == [] and not np.array_equal(model.embed.kernel[...], start)


def adapted():
    """A network whose first layer has a low-rank adapter."""
    model = Plain(nnx.Rngs(0))
    model.body = nnx.LoRA(3, 2, 4, base_module=model.body, rngs=nnx.Rngs(1))
    return model


def test_low_rank_adapters_alone_are_trained():
    before = variables(adapted())[1]
    curve = quiet(
        loss_fn, adapted(), optax.adam, BATCHES, learning_rates=[0.1], num_steps=5, wrt=nnx.LoRAParam
    )
    model, optimizer, losses, _ = own_loop(adapted(), 0.1, 5, wrt=nnx.LoRAParam)
    np.testing.assert_allclose(curve.losses[0, 0], losses, rtol=0, atol=1e-6)
    assert state_bytes(optimizer) == 2 * 4 * (3 * 2 + 2 * 4)
    after = variables(model)[1]
    same = jax.tree.map(np.array_equal, after, before)
    assert same == {
        "body": {"base_module": {"bias": True, "kernel": True}, "lora_a": False, "lora_b": False},
        "head": {"bias": True, "kernel": True},
    }


def test_adapters_have_labels_of_their_own():
    model = adapted()
    labels = olr.label_by_path({r".*/lora_a": "a", r".*/lora_b": "b"})
    tx = olr.fine_tune(optax.sgd(1.0), labels, {"a": 1.0, "b": 16.0})  # LoRA+
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.LoRAParam)
    gradients = nnx.grad(loss_fn, argnums=nnx.DiffState(0, nnx.LoRAParam))(model, VALIDATION)
    updates = nnx.as_pure(optimizer.update(model, gradients))
    slopes = nnx.as_pure(gradients)
    np.testing.assert_allclose(updates["body"]["lora_b"], -16 * slopes["body"]["lora_b"], rtol=1e-6)
    np.testing.assert_allclose(updates["body"]["lora_a"], -slopes["body"]["lora_a"], rtol=1e-6)


def test_a_finder_fine_tunes_by_label_and_by_filter():
    model = Deep(nnx.Rngs(0))
    labels = LABELS.resolve(nnx.state(model, nnx.Param))

    def frozen(rate):
        return olr.fine_tune(optax.adam(rate), labels, {"head": 1.0}, frozen="body")

    by_label = quiet(loss_fn, model, frozen, BATCHES, learning_rates=[0.1], num_steps=5)
    by_filter = quiet(
        loss_fn, model, optax.adam, BATCHES, learning_rates=[0.1], num_steps=5,
        wrt=olr.nnx.trainable(labels, "head"),
    )  # fmt: skip
    np.testing.assert_allclose(by_label.losses, by_filter.losses, rtol=1e-6)
    everything = quiet(loss_fn, model, optax.adam, BATCHES, learning_rates=[0.1], num_steps=5)
    assert not np.allclose(by_label.losses, everything.losses)


def test_a_filter_leaves_out_what_has_no_labels():
    every = olr.nnx.trainable(LABELS, ["head", "body"])
    model = stateful()
    selected, params = (nnx.as_pure(nnx.state(model, wrt)) for wrt in (every, nnx.Param))
    assert jax.tree.structure(selected) == jax.tree.structure(params)


# The rate inside an optimizer.


@pytest.mark.parametrize(
    "make",
    [
        lambda: optax.chain(optax.scale_by_adam(), olr.scale_by_learning_rate(0.5)),
        lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.5),
        lambda: olr.fine_tune(
            optax.chain(optax.scale_by_adam(), olr.scale_by_learning_rate(0.5)),
            LABELS,
            {"head": 1.0},
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
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), nnx.as_pure(optimizer.opt_state))
    with count_lowerings() as lowered:
        olr.nnx.set_learning_rate(optimizer, 0.0)
        before = variables(model)
        step(model, optimizer, INPUTS[0])
    assert lowered == [] and olr.nnx.get_learning_rate(optimizer) == 0.0
    assert_same(variables(model), before)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), nnx.as_pure(optimizer.opt_state)) == shapes


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
    assert olr.nnx.get_learning_rate(optimizer) == {body: 0.25, head: 0.5}
    olr.nnx.set_learning_rate(optimizer, {body: 1.0})
    assert olr.nnx.get_learning_rate(optimizer) == {body: 1.0, head: 0.5}


# What is refused. (Labels are looked at by the package as the tests import it: a `Labeler` is of one package.)

TREE = {"head": {"kernel": "head"}, "body": {"kernel": "body"}}
TWO, THREE = "loss_fn must take (model, batch): ", "loss_fn must take (model, batch, key): "
SEARCHES = {
    "no module": ({"model": {}}, "model must be an nnx.Module or a function from a random key to one, got a dict."),
    "drawn is none": ({"model": lambda key: {}}, "model must return an nnx.Module, got a dict."),
    "a state beside it": (
        {"model_state": {}}, "model_state is what the module itself carries along: leave it out."
    ),
    "no batch": ({"loss_fn": lambda model: 0.0}, TWO + "too many positional arguments."),
    "no key": ({"with_key": True}, THREE + "too many positional arguments."),
    "nothing to train": (
        {"wrt": nnx.LoRAParam},
        "wrt must select variables of the model to train, and <class 'flax.nnx.nn.lora.LoRAParam'> selects none.",
    ),
    "logits beside it": (
        {"loss_fn": lambda model, batch: (loss_fn(model, batch), model(batch[0]))},
        "loss_fn must return one scalar, got ((), (8, 1)); what is beside it needs has_aux or model_state.",
    ),
    "logits as metrics": (
        {"loss_fn": lambda model, batch: (loss_fn(model, batch), model(batch[0])), "has_aux": True},
        "loss_fn must return its metrics as a dict of scalars, got (8, 1).",
    ),
    "no data to evaluate": ({"eval_fn": eval_fn}, "eval_fn needs eval_batch: the data that it is called with."),
}  # fmt: skip
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


@pytest.mark.parametrize("name", [*SEARCHES, *CALLS])
def test_what_does_not_fit_is_refused_in_one_sentence(name, unhooked_nnx):
    if name in CALLS:
        act, sentence = CALLS[name]
    else:
        changes, sentence = SEARCHES[name]
        arguments = {"loss_fn": loss_fn, "model": Plain(nnx.Rngs(0)), "learning_rates": [0.1], **changes}

        def act(nnx_):
            nnx_.lr_sweep(optimizer=optax.sgd, batches=BATCHES, progress=False, **arguments)

    with pytest.raises(ValueError, match=r"\S") as refusal:
        act(unhooked_nnx)
    assert str(refusal.value) == sentence


def test_an_optimizer_without_a_visible_rate_names_the_replacement():
    optimizer = nnx.Optimizer(Plain(nnx.Rngs(0)), optax.adam(0.1), wrt=nnx.Param)
    with pytest.raises(ValueError, match=r"put optax_lr\.scale_by_learning_rate\(rate\) in place of"):
        olr.nnx.get_learning_rate(optimizer)
