"""The finders of Flax NNX against plain loops, and what they refuse."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jaxtyping import install_import_hook
from nnx_modules import (
    BATCHES,
    INPUTS,
    LABELS,
    VALIDATION,
    Deep,
    Plain,
    Stateful,
    adapted,
    assert_same,
    eval_fn,
    loss_and_metrics,
    loss_fn,
    own_loop,
    state_bytes,
    stateful,
    variables,
)

import optax_lr as olr
from optax_lr.nnx.modules import pure

with install_import_hook("optax_lr.nnx", "typecheck.check"):
    import optax_lr.nnx

quiet = functools.partial(olr.nnx.lr_sweep, progress=False)


def test_lr_find_gives_the_curve_of_the_plain_one():
    model = Plain(nnx.Rngs(0))
    params = nnx.to_pure_dict(pure(nnx.state(model, nnx.Param)))

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
    model.seen = nnx.Intermediate(jnp.ones(2))  # left behind by an earlier call
    before = variables(model)
    assert before[1]["drop"]["rngs"]["count"] == before[1]["calls"] == 1
    olr.nnx.lr_find(
        loss_fn, model, optax.adam, BATCHES, eval_batch=VALIDATION, num_steps=2, horizon=3, seeds=1, finalists=1,
        schedule=lambda peak: lambda step: peak, min_learning_rate=1e-2, max_learning_rate=0.1, progress=False,
    )  # fmt: skip
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


class Counting(nnx.Module):
    """Warms up by a count of its calls, which is plain or a variable."""

    def __init__(self, count, scale=1.0):
        self.layer = nnx.Linear(3, 1, use_bias=False, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.0, rngs=nnx.Rngs(0))
        self.count, self.scale = count, scale

    def __call__(self, x):
        if isinstance(self.count, nnx.Variable):
            self.count[...] += 1
            count = self.count[...]
        else:
            self.count = count = self.count + 1
        return self.dropout(self.layer(x)) * self.scale * jnp.minimum(1.0, count / 4)


def test_plain_attributes_that_a_loss_changes_are_told():
    run = functools.partial(quiet, loss_fn, learning_rates=[1e-3], num_steps=3)
    with pytest.warns(
        UserWarning, match=r"changes plain attributes of the model, 'count': in a search each step"
    ):
        run(Counting(0), optax.sgd, BATCHES)
    held = Counting(nnx.Variable(jnp.array(0)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curve = run(held, optax.adam, BATCHES)
    np.testing.assert_allclose(curve.losses[0, 0], own_loop(held, 1e-3, 3)[2], rtol=1e-5)


def test_a_loss_that_sets_the_mode_is_not_told_so():
    def loss(model, batch):
        model.eval()
        evaluated = model(batch[0])
        model.train()
        return loss_fn(model, batch) + 0 * evaluated.sum()

    model = nnx.Sequential(nnx.Linear(3, 1, rngs=nnx.Rngs(0)), nnx.Dropout(0.1, rngs=nnx.Rngs(0)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for last in (loss, lambda model, batch: (loss(model, batch), model.eval())[0]):
            quiet(last, model, optax.sgd, BATCHES, learning_rates=[1e-3], num_steps=3)


def test_starts_of_a_function_differ_in_variables_alone(unhooked_nnx):
    def drawn(key):
        return Counting(nnx.Variable(jnp.array(0)), scale=float(jax.random.uniform(key)))

    with pytest.raises(
        ValueError, match=r"modules that differ in their variables alone, and .* 'scale' differ"
    ):
        unhooked_nnx.lr_sweep(loss_fn, drawn, optax.sgd, BATCHES, learning_rates=[1e-3], num_steps=3, seeds=2)


def test_a_loss_may_take_a_key_and_may_sow():
    def loss(model, batch, key):
        model.sow(nnx.Intermediate, "inputs", batch[0])
        return loss_fn(model, batch) + jax.random.uniform(key)

    model, options = Plain(nnx.Rngs(0)), {"learning_rates": [1e-30], "num_steps": 3, "with_key": True}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*sow", DeprecationWarning)  # of newer versions of Flax
        curve = quiet(loss, model, optax.sgd, BATCHES, eval_batch=VALIDATION, eval_every=1, **options)
    of_seed = jax.random.wrap_key_data(np.random.SeedSequence([0, 0], spawn_key=(0,)).generate_state(2))
    noise = [jax.random.uniform(jax.random.fold_in(of_seed, t)) for t in range(3)]
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
    for opt_state in (optimizer, optimizer.opt_state, pure(optimizer.opt_state)):
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


def test_a_finder_fine_tunes_by_label_and_by_filter():
    model = Deep(nnx.Rngs(0))
    labels = LABELS.resolve(nnx.state(model, nnx.Param))

    def frozen(rate):
        return olr.fine_tune(optax.adam(rate), {"head": 1.0}, labels, frozen="body")

    by_label = quiet(loss_fn, model, frozen, BATCHES, learning_rates=[0.1], num_steps=5)
    by_filter = quiet(
        loss_fn, model, optax.adam, BATCHES, learning_rates=[0.1], num_steps=5,
        wrt=olr.nnx.trainable(labels, "head"),
    )  # fmt: skip
    np.testing.assert_allclose(by_label.losses, by_filter.losses, rtol=1e-6)
    everything = quiet(loss_fn, model, optax.adam, BATCHES, learning_rates=[0.1], num_steps=5)
    assert not np.allclose(by_label.losses, everything.losses)


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


@pytest.mark.parametrize("name", SEARCHES)
def test_what_does_not_fit_is_refused_in_one_sentence(name, unhooked_nnx):
    changes, sentence = SEARCHES[name]
    arguments = {"loss_fn": loss_fn, "model": Plain(nnx.Rngs(0)), "learning_rates": [0.1], **changes}
    with pytest.raises(ValueError, match=r"\S") as refusal:
        unhooked_nnx.lr_sweep(optimizer=optax.sgd, batches=BATCHES, progress=False, **arguments)
    assert str(refusal.value) == sentence
