"""Labels, multipliers and starts by width, against Table 3 of Yang et al. 2022, worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from width_models import HIDDEN, KEY, MODELS, TABLE, haiku_like

import optax_lr as olr
from optax_lr.layers.labels import leaves_by_path


@pytest.mark.parametrize("name", MODELS)
def test_labels_and_rates_are_those_of_the_table(name):
    model, base, width, wanted = MODELS[name]
    params = model(width)
    labels = olr.label_by_width(model(base)).resolve(params)
    assert dict(leaves_by_path(labels)[0]) == wanted
    adam, lion, sgd, muon = (
        olr.width_multipliers(kind).resolve(labels) for kind in ("adam", "lion", "sgd", "muon")
    )
    assert adam == lion == {label: TABLE[label][0] for label in adam}
    assert sgd == {label: TABLE[label][1] for label in sgd}
    # An orthogonal update of spectral norm 1: hidden weights as they are; Adam's for all that Muon does not train.
    assert muon == {label: 1.0 if label == HIDDEN else TABLE[label][0] for label in muon}


def drawn(shapes, scale):
    """Numbers of a size of their own for each array."""
    leaves, treedef = jax.tree.flatten(shapes)
    keys = jax.random.split(KEY, len(leaves))
    made = [
        scale * (index + 1) * jax.random.normal(key, leaf.shape)
        for index, (key, leaf) in enumerate(zip(keys, leaves, strict=True))
    ]
    return jax.tree.unflatten(treedef, made)


def size(leaf):
    return float(jnp.sqrt(jnp.mean(leaf**2)))


@pytest.mark.parametrize("name", ["linen transformer", "linen stack", "nnx attention", "equinox stack"])
def test_the_start_has_the_size_of_the_table_whatever_it_was_drawn_with(name):
    model, base_width, width, wanted = MODELS[name]
    base = drawn(model(base_width), 0.1)
    for scale in (0.1, 0.02):
        params = drawn(model(width), scale)
        scaled = jax.jit(olr.rescale_init)(params, base)
        assert jax.tree.structure(scaled) == jax.tree.structure(params)
        before, after = dict(leaves_by_path(base)[0]), dict(leaves_by_path(scaled)[0])
        own = dict(leaves_by_path(params)[0])
        for path, label in wanted.items():
            expected = size(own[path]) if label == "fixed" else TABLE[label][2] * size(before[path])
            assert size(after[path]) == pytest.approx(expected, rel=1e-5), path


@pytest.mark.parametrize("name", ["equinox stack", "linen stack", "linen transformer", "nnx attention"])
def test_a_bias_that_is_masked_out_changes_no_label(name):
    model, base, width, wanted = MODELS[name]
    leaves, treedef = leaves_by_path(model(width))
    masked = [optax.MaskedNode() if path.endswith("bias") else leaf for path, leaf in leaves]
    labels = olr.label_by_width(model(base)).resolve(jax.tree.unflatten(treedef, masked))
    found = {path: label for path, label in leaves_by_path(labels)[0] if isinstance(label, str)}
    assert found == {path: label for path, label in wanted.items() if not path.endswith("bias")}


def test_zeros_dtypes_and_integers_stay():
    base = {
        "w": {"kernel": jnp.ones((4, 2), jnp.bfloat16), "bias": jnp.zeros(2)},
        "b": jnp.zeros(4),
        "n": jnp.zeros(3, int),
    }
    wide = {
        "w": {"kernel": jnp.ones((8, 2), jnp.bfloat16), "bias": jnp.zeros(2)},
        "b": jnp.zeros(8),
        "n": jnp.ones(3, int),
    }
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        scaled = olr.rescale_init(wide, base)
    assert scaled["w"]["kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(scaled["w"]["kernel"], jnp.full((8, 2), 0.5, jnp.bfloat16))
    np.testing.assert_array_equal(scaled["b"], jnp.zeros(8))
    np.testing.assert_array_equal(scaled["n"], wide["n"])


def test_seeds_are_scaled_under_vmap():
    base, keys = {"out": {"w": jnp.ones((4, 2))}}, jax.random.split(KEY, 3)

    def start(key):
        return olr.rescale_init({"out": {"w": jax.random.normal(key, (16, 2))}}, base)["out"]["w"]

    np.testing.assert_allclose(jax.vmap(start)(keys), jnp.stack([start(key) for key in keys]), rtol=1e-6)


def test_the_table_of_labels_and_a_fraction():
    base, wide = haiku_like(48), haiku_like(64)
    labels = olr.label_by_width(base)
    shown = olr.describe_labels(wide, labels, olr.width_multipliers("adam"))
    assert shown.splitlines()[0].split() == "label multiplier leaves parameters share for example".split()
    assert "hidden in x4/3 out x4/3        0.75       1        4096  91.4%  mid/w" in shown


FLAGS = {
    "x64": lambda: jax.enable_x64(True),
    "debug_nans": lambda: jax.debug_nans(True),
    "strict promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "tracer leaks": jax.checking_leaks,
    "disable_jit": jax.disable_jit,
}


@pytest.mark.parametrize("flag", FLAGS)
def test_starts_and_updates_are_the_same_under_any_flag(flag):
    base, wide = drawn(haiku_like(2), 0.1), drawn(haiku_like(8), 0.3)

    def results():
        start = olr.rescale_init(wide, base)
        scale = olr.scale_by_label(olr.width_multipliers("sgd"), olr.label_by_width(base))
        return start, updates_of(scale, start, wide)

    wanted = results()
    with FLAGS[flag]():
        found = results()
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-6)


def updates_of(optimizer, params, grads):
    return optimizer.update(grads, optimizer.init(params), params)[0]


def test_the_multipliers_scale_updates_and_hold_where_parts_are_masked_out():
    base, wide = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), (haiku_like(2), haiku_like(8)))
    labels = olr.label_by_width(base)
    scale = olr.scale_by_label(olr.width_multipliers("sgd"), labels)
    found = updates_of(scale, wide, wide)
    assert {path: float(leaf.ravel()[0]) for path, leaf in leaves_by_path(found)[0]} == {
        "in/w": 4.0,
        "in/b": 4.0,
        "mid/w": 1.0,
        "out/w": 0.25,
    }
    for part in ("in", "out"):
        masked = optax.masked(scale, {name: name == part for name in wide})
        for one, other in zip(
            jax.tree.leaves(updates_of(masked, wide, wide)[part]), jax.tree.leaves(found[part]), strict=True
        ):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("coupled", [False, True], ids=["decoupled, Adam", "coupled, SGD with momentum"])
def test_decay_placed_as_the_docstring_says_is_the_same_at_each_width(coupled):
    base, wide = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), (haiku_like(2), haiku_like(8)))
    scale = olr.scale_by_label(olr.width_multipliers("sgd" if coupled else "adam"), olr.label_by_width(base))
    decay, rate = optax.add_decayed_weights(0.1), olr.scale_by_learning_rate(0.5)
    before, after = (
        ([scale, decay, optax.trace(0.9)], [decay, scale, optax.trace(0.9)])
        if coupled
        else ([optax.scale_by_adam(), scale, decay], [optax.scale_by_adam(), decay, scale])
    )
    still = jax.tree.map(jnp.zeros_like, wide)
    for leaf in jax.tree.leaves(updates_of(optax.chain(*before, rate), wide, still)):
        np.testing.assert_allclose(leaf, -0.05, rtol=1e-6)
    misplaced = jax.tree.leaves(updates_of(optax.chain(*after, rate), wide, still))
    assert max(abs(float(leaf.ravel()[0]) + 0.05) for leaf in misplaced) > 0.01


def test_the_multipliers_of_sgd_are_the_same_before_and_after_momentum():
    base, wide = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), (haiku_like(2), haiku_like(8)))
    scale = olr.scale_by_label(olr.width_multipliers("sgd"), olr.label_by_width(base))
    results = []
    for order in ((scale, optax.trace(0.9)), (optax.trace(0.9), scale)):
        optimizer = optax.chain(*order)
        state = optimizer.init(wide)
        for index in range(3):
            updates, state = optimizer.update(jax.tree.map(lambda leaf, i=index: leaf * i, wide), state)
        results.append(updates)
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_muon_updates_have_the_spectral_norm_that_the_width_asks_for():
    def norms(width):
        base, params = (
            {"mid": {"w": jnp.ones((size, size))}, "out": {"w": jnp.ones((size, 2))}} for size in (8, width)
        )
        labels = olr.label_by_width(base)
        dimensions = {"mid": {"w": optax.contrib.MuonDimensionNumbers()}, "out": {"w": None}}
        optimizer = optax.chain(
            optax.contrib.muon(1.0, muon_weight_dimension_numbers=dimensions),
            olr.scale_by_label(olr.width_multipliers("muon"), labels),
        )
        updates = updates_of(optimizer, params, drawn(params, 1.0))
        return [float(jnp.linalg.norm(updates[name]["w"], 2)) for name in ("mid", "out")]

    narrow, wide = norms(16), norms(64)
    assert wide[0] == pytest.approx(narrow[0], rel=0.15)  # Newton and Schulz end near 1
    assert wide[1] / narrow[1] == pytest.approx(1 / 2, rel=0.2)  # Adam's +-1 / in on [in, 2]: sqrt(2 in) / in
