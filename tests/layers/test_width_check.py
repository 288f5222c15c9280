"""The coordinate check: flat under right labels, a slope under wrong ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_lr as olr

BASE, WIDTHS = 32, (64, 128, 256)
INPUTS = jax.random.normal(jax.random.key(1), (6, 16, 5))
BATCHES = (INPUTS, jnp.sin(3 * INPUTS.sum(axis=-1, keepdims=True)))


def drawn(width, seed=0):
    """A multilayer perceptron with the usual start, of variance 1 / fan-in."""
    sizes = {"first": (5, width), "middle": (width, width), "last": (width, 1)}
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        name: {"kernel": jax.random.normal(key, shape) / shape[0] ** 0.5, "bias": jnp.zeros(shape[1])}
        for key, (name, shape) in zip(keys, sizes.items(), strict=True)
    }


def with_zero_outputs(params):
    last = {"kernel": jnp.zeros_like(params["last"]["kernel"]), "bias": params["last"]["bias"]}
    return {**params, "last": last}


def loss_fn(params, batch):
    x, y = batch
    for layer in (params["first"], params["middle"]):
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return jnp.mean((x @ params["last"]["kernel"] + params["last"]["bias"] - y) ** 2)


def check(kind, overrides=None, standard=False, widths=WIDTHS):
    base = with_zero_outputs(drawn(BASE))
    rules = {
        "adam": (optax.scale_by_adam(), 1e-3),
        "lion": (optax.scale_by_lion(), 3e-4),
        "sgd": (optax.trace(0.9), 0.02),
    }
    inner, rate = rules[kind]
    scale = olr.scale_by_label(olr.width_multipliers(kind), olr.label_by_width(base, overrides))
    optimizer = optax.chain(inner, *([] if standard else [scale]), olr.scale_by_learning_rate(rate))

    def model(width, seed):
        params = with_zero_outputs(drawn(width, seed))
        return loss_fn, params if standard else olr.rescale_init(params, base)

    return olr.check_width_transfer(model, optimizer, BATCHES, widths=widths, seeds=4)


@pytest.mark.parametrize("kind", ["adam", "lion", "sgd"])
def test_right_labels_have_no_slope(kind):
    found = check(kind)
    assert found.wrong == [], found
    assert str(found).endswith("Slopes are all near 0, as they should be.")


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_standard_parametrization_has_slopes(kind):
    # The output weights have n entries; neither their gradients nor Adam's updates fall with the width.
    assert check(kind, standard=True).slopes["last/kernel"] > 0.7


def residual(width, seed=0):
    """A table, a residual block behind a norm, and outputs that do not start at zero."""
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = {"block": (width, width), "head": (width, 9)}
    params = {
        name: {"kernel": jax.random.normal(key, shape) / width**0.5, "bias": jnp.zeros(shape[1])}
        for key, (name, shape) in zip(keys, shapes.items(), strict=False)
    }
    return {"embed": {"embedding": jax.random.normal(keys[2], (9, width))}, **params}


def residual_loss(params, tokens):
    x = params["embed"]["embedding"][tokens]
    block, head = params["block"], params["head"]
    x = x + jax.nn.relu(jax.nn.standardize(x, axis=-1) @ block["kernel"] + block["bias"])
    logits = x @ head["kernel"] + head["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, (2 * tokens + 1) % 9).mean()


@pytest.mark.parametrize("rescaled", [True, False])
def test_a_start_that_is_not_rescaled_shows(rescaled):
    base = residual(BASE)
    scale = olr.scale_by_label(olr.width_multipliers("adam"), olr.label_by_width(base))
    optimizer = optax.chain(optax.scale_by_adam(), scale, olr.scale_by_learning_rate(4e-3))

    def model(width, seed):
        params = residual(width, seed)
        return residual_loss, olr.rescale_init(params, base) if rescaled else params

    tokens = jax.random.randint(jax.random.key(2), (12, 32), 0, 9)
    found = olr.check_width_transfer(model, optimizer, tokens, widths=(64, 128, 256), seeds=2)
    assert (found.wrong == []) == rescaled, found


def test_a_wrong_label_shows_as_a_slope_of_its_parameter():
    found = check("adam", {"last/kernel": "input"})
    assert found.slopes["last/kernel"] > 0.7
    assert "last/kernel" in str(found).splitlines()[-1]


@pytest.mark.parametrize("divided", [True, False])
def test_a_tied_table_has_no_slope_if_the_logits_are_divided_by_the_width(divided):
    def start(width, seed=0):
        keys = jax.random.split(jax.random.key(seed))
        table, kernel = jax.random.normal(keys[0], (9, width)), jax.random.normal(keys[1], (width, width))
        return {"embed": {"embedding": table}, "middle": {"kernel": kernel / width**0.5}}

    base = start(BASE)
    labels = olr.label_by_width(base, {"embed/.*": "tied"})

    def model(width, seed):
        def loss(params, tokens):
            table = params["embed"]["embedding"]
            logits = jax.nn.relu(table[tokens] @ params["middle"]["kernel"]) @ table.T / BASE
            found = logits * BASE / width if divided else logits
            return optax.softmax_cross_entropy_with_integer_labels(found, (tokens + 1) % 9).mean()

        return loss, olr.rescale_init(start(width, seed), base, {"embed/.*": "tied"})

    scale = olr.scale_by_label(olr.width_multipliers("adam"), labels)
    optimizer = optax.chain(optax.scale_by_adam(), scale, olr.scale_by_learning_rate(3e-3))
    tokens = jax.random.randint(jax.random.key(2), (10, 16), 0, 9)
    found = olr.check_width_transfer(model, optimizer, tokens, widths=WIDTHS, seeds=2)
    assert (found.wrong == []) == divided, found


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_attention_has_no_slope_if_its_logits_are_divided_by_the_size_and_not_its_root(power):
    def start(width, seed=0):
        keys = jax.random.split(jax.random.key(seed))
        into, kernel = jax.random.normal(keys[0], (5, width)), jax.random.normal(keys[1], (width, width))
        queries = {"kernel": jnp.zeros((width, width))}
        return {"in": {"kernel": into}, "queries": queries, "keys": {"kernel": kernel / width**0.5}}

    base = start(BASE)

    def model(width, seed):
        def loss(params, tokens):
            x = tokens @ params["in"]["kernel"]
            logits = (x[0] @ params["queries"]["kernel"]) @ (x @ params["keys"]["kernel"]).T
            return optax.softmax_cross_entropy_with_integer_labels(logits / width**power, 3)

        return loss, olr.rescale_init(start(width, seed), base)

    scale = olr.scale_by_label(olr.width_multipliers("adam"), olr.label_by_width(base))
    optimizer = optax.chain(optax.scale_by_adam(), scale, olr.scale_by_learning_rate(1e-3))
    found = olr.check_width_transfer(model, optimizer, INPUTS, widths=WIDTHS, seeds=4)
    assert (found.wrong == []) == (power == 1.0), found


def test_what_does_not_learn_has_slope_0_and_what_diverges_none():
    def model(width):
        params = {"still": jnp.ones(width), "lost": jnp.ones(width)}
        return lambda params, batch: batch * jnp.sum(params["lost"]), params

    found = olr.check_width_transfer(model, optax.sgd(1.0), jnp.array([1.0, jnp.inf]), widths=(2, 4))
    assert found.slopes["still"] == 0.0 and np.isnan(found.slopes["lost"]) and found.wrong == ["lost"]


BAD = {
    "one width": ((8,), jnp.ones(2), "widths must be at least two, in increasing order, got [8]."),
    "widths that fall": (
        (8, 4),
        jnp.ones(2),
        "widths must be at least two, in increasing order, got [8, 4].",
    ),
    "no axis of steps": (
        (4, 8),
        jnp.ones(()),
        "batches must be arrays with one leading axis, at least 1 long, got ().",
    ),
    "other paths": (
        (4, 8),
        jnp.ones(2),
        "model must give parameters with the same paths at each width, got others at 8: 'w4', 'w8'.",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_sentence(name, unhooked):
    widths, batches, sentence = BAD[name]

    def model(width):
        return lambda params, batch: batch * params[f"w{width}"], {f"w{width}": jnp.ones(())}

    with pytest.raises(ValueError, match=r"\S") as refusal:
        unhooked.check_width_transfer(model, optax.sgd(1.0), batches, widths=widths)
    assert str(refusal.value) == sentence
