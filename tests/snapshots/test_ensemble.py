"""Ensembles and averages of snapshots against NumPy, and refreshed statistics against the mean over batches."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import optax_lr as olr

# Five members of a linear model with three classes.
NORMAL = np.random.default_rng(9).normal
MEMBERS, INPUTS = NORMAL(size=(5, 4, 3)), NORMAL(size=(7, 4))
ENSEMBLE = olr.Snapshots({"w": jnp.asarray(MEMBERS, jnp.float32)}, jnp.arange(5))
WEIGHTS = np.array([1.0, 0.0, 2.0, 0.5, 3.0])


def at(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def apply(params, inputs):
    return inputs @ params["w"]


def expected(combine, weights):
    said = np.einsum("ni,mio->mno", INPUTS, MEMBERS)
    if combine == "probabilities":
        said = scipy.special.softmax(said, axis=-1)
    mean = np.average(said, axis=0, weights=weights)
    spread = np.sqrt(np.average((said - mean) ** 2, axis=0, weights=weights))
    return said if combine == "none" else mean, spread


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
@pytest.mark.parametrize("combine", ["probabilities", "logits", "none"])
def test_ensemble_is_numpys(combine, weights):
    def predict(inputs, weights):
        return olr.ensemble_predict(apply, ENSEMBLE, inputs, combine=combine, weights=weights)

    for got in (predict(INPUTS, weights), jax.jit(predict)(INPUTS, weights)):
        for one, other in zip(got, expected(combine, weights), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_seeds_and_lanes_of_a_sweep_are_members():
    def step(params, rate, batch, key):
        loss, grads = jax.value_and_grad(lambda params: jnp.mean((apply(params, batch) - 1) ** 2))(params)
        return jax.tree.map(lambda leaf, grad: leaf - rate * grad, params, grads), {"loss": loss}

    carry, rates = at(ENSEMBLE.params, slice(0, 2)), jnp.array([0.01, 0.1, 1e6])
    found = olr.sweep(
        step,
        carry,
        rates,
        jnp.asarray(INPUTS, jnp.float32)[None],
        num_steps=9,
        seeds=2,
        carry_per_seed=True,
        return_carries=True,
    )
    ended = np.where(found.diverged_at < 0, 8, found.diverged_at)
    members, alive = olr.Snapshots(found.carries, ended), found.diverged_at < 0
    predicted = olr.ensemble_predict(apply, members, INPUTS, combine="logits", weights=alive)
    said = np.einsum("ni,slio->slno", INPUTS, np.asarray(found.carries["w"], np.float64))
    assert alive.tolist() == [[True, True, False]] * 2
    np.testing.assert_allclose(predicted.outputs, said[alive].mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(predicted.spread, said[alive].std(0), rtol=1e-4, atol=1e-5)
    each = olr.ensemble_predict(apply, members, INPUTS, combine="none", weights=alive)
    assert each.outputs.shape == (2, 3, 7, 3)
    for lane, one in enumerate(jax.vmap(olr.average_snapshots, in_axes=1)(members)["w"]):
        np.testing.assert_allclose(one, found.carries["w"][:, lane].mean(0), rtol=1e-6)


def test_outputs_may_be_a_tree_in_bfloat16():
    half = ENSEMBLE._replace(params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), ENSEMBLE.params))

    def heads(params, inputs):
        return {"first": apply(params, inputs), "second": 2 * apply(params, inputs)}

    outputs, spread = olr.ensemble_predict(heads, half, jnp.asarray(INPUTS, jnp.bfloat16))
    for leaf in jax.tree.leaves((outputs, spread)):
        assert leaf.dtype == jnp.float32 and leaf.shape == (7, 3)
    np.testing.assert_allclose(outputs["second"].sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(outputs["first"], expected("probabilities", None)[0], atol=0.02)


def test_a_member_that_is_not_finite_has_no_part_where_its_weight_is_0():
    broken = ENSEMBLE._replace(params={"w": ENSEMBLE.params["w"].at[1].set(jnp.nan)})
    for combine in ("probabilities", "logits"):
        got = olr.ensemble_predict(apply, broken, INPUTS, combine=combine, weights=WEIGHTS)
        np.testing.assert_allclose(got.outputs, expected(combine, WEIGHTS)[0], rtol=1e-5, atol=1e-6)
        assert np.isfinite(got.spread).all()
    assert np.isnan(olr.ensemble_predict(apply, broken, INPUTS).outputs).all()
    np.testing.assert_allclose(
        olr.average_snapshots(broken, WEIGHTS)["w"], np.average(MEMBERS, 0, WEIGHTS), rtol=1e-5, atol=1e-6
    )


def test_derivatives_are_finite_where_members_agree_and_weights_are_0():
    twins = olr.Snapshots({"w": jnp.ones((2, 4, 3))}, jnp.arange(2))

    def total(params, weights, members):
        said = olr.ensemble_predict(apply, members._replace(params=params), INPUTS, weights=weights)
        return (said.outputs**2).sum() + said.spread.sum()

    for members, weights in ((twins, jnp.ones(2)), (ENSEMBLE, jnp.asarray(WEIGHTS))):
        slopes = jax.jit(jax.grad(total, argnums=(0, 1)))(members.params, weights, members)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
    assert slopes[1][1] != 0  # by the weight that is 0


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
def test_average_is_numpys_and_keeps_dtypes(weights):
    members = olr.Snapshots(
        {
            "w": ENSEMBLE.params["w"],
            "half": jnp.full(5, 2.0**-8, jnp.bfloat16) + 1,
            "count": jnp.arange(5),
            "key": jax.random.split(jax.random.key(0), 5),
        },
        jnp.arange(5),
    )
    got = jax.jit(olr.average_snapshots)(members, weights)
    np.testing.assert_allclose(got["w"], np.average(MEMBERS, 0, weights), rtol=1e-5, atol=1e-6)
    assert got["half"] == members.params["half"][0] and got["half"].dtype == jnp.bfloat16
    assert got["count"] == 4 and got["key"] == members.params["key"][4]
    # Of a linear model the average of the weights says what the average of the outputs says.
    outputs = olr.ensemble_predict(apply, ENSEMBLE, INPUTS, combine="logits", weights=weights).outputs
    np.testing.assert_allclose(apply(got, INPUTS), outputs, rtol=1e-4, atol=1e-5)


def test_bad_ensembles_are_refused(unhooked):
    members = unhooked.Snapshots(*ENSEMBLE)
    with pytest.raises(ValueError, match=r"weights must be .* of shape \(5,\), .* got the shape \(4,\)"):
        unhooked.average_snapshots(members, np.ones(4))
    for bad in ([1, 1, 1, 1, -1], [np.nan] * 5, [0] * 5):
        with pytest.raises(
            ValueError, match=rf"weights must be .*got {re.escape(str(list(map(float, bad))))}"
        ):
            unhooked.ensemble_predict(apply, members, INPUTS, weights=np.array(bad, float))
    for use in (unhooked.average_snapshots, lambda state: unhooked.ensemble_predict(apply, state, INPUTS)):
        with pytest.raises(ValueError, match=r"as get_snapshots\(opt_state\) returns, got a tuple"):
            use((members,))
    for bad in (
        members._replace(steps=np.arange(3)),
        members._replace(steps=np.int32(3)),
        at(members, slice(0)),
    ):
        with pytest.raises(ValueError, match="snapshots must have at least one member"):
            unhooked.average_snapshots(bad)
    with pytest.raises(ValueError, match="combine must be one of 'probabilities', 'logits', 'none'"):
        unhooked.ensemble_predict(apply, members, INPUTS, combine="mean")
    with pytest.raises(ValueError, match="softmax of logits, and the outputs of apply_fn already are prob"):
        unhooked.ensemble_predict(lambda *given: jax.nn.softmax(apply(*given)), members, INPUTS)
    with pytest.raises(ValueError, match=r"two classes .* got the shape \(7, 1\) .*combine='logits'"):
        unhooked.ensemble_predict(lambda *given: apply(*given)[:, :1], members, INPUTS)
    with pytest.raises(ValueError, match="apply_fn must be a function"):
        unhooked.ensemble_predict(members, apply, INPUTS)
    with pytest.raises(ValueError, match="batches must be arrays with one leading axis"):
        unhooked.refresh_batch_stats(apply, members.params, {"x": np.ones((3, 2)), "y": np.ones((2, 2))})


class Normalized(nn.Module):
    @nn.compact
    def __call__(self, inputs, use_running_average=False):
        hidden = nn.Dense(3, use_bias=False)(inputs)
        return nn.BatchNorm(use_running_average=use_running_average, momentum=0.0)(hidden)


def test_refreshed_statistics_are_the_mean_over_batches():
    model, batches = Normalized(), jnp.asarray(NORMAL(size=(6, 10, 4)), jnp.float32)
    variables = model.init(jax.random.key(0), batches[0])

    def batch_stats(params, batch):
        return model.apply({"params": params}, batch, mutable=["batch_stats"])[1]["batch_stats"]

    stats = olr.refresh_batch_stats(batch_stats, variables["params"], batches)
    hidden = np.asarray(batches, np.float64) @ np.asarray(variables["params"]["Dense_0"]["kernel"])
    found = stats["BatchNorm_0"]
    np.testing.assert_allclose(found["mean"], hidden.mean(1).mean(0), atol=1e-6)
    np.testing.assert_allclose(found["var"], hidden.var(1).mean(0), rtol=1e-5)
    assert jax.tree.structure(stats) == jax.tree.structure(variables["batch_stats"])
    fresh = {"params": variables["params"], "batch_stats": stats}
    said = model.apply(fresh, batches.reshape(60, 4), use_running_average=True)
    np.testing.assert_allclose(said.mean(0), 0, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_probabilities_are_averaged_as_they_are_or_refused(dtype, unhooked):
    def predict(params, inputs):
        return jax.nn.softmax(apply(params, inputs)).astype(dtype)

    with pytest.raises(ValueError, match="pass combine='logits', which averages outputs as they are"):
        unhooked.ensemble_predict(predict, unhooked.Snapshots(*ENSEMBLE), INPUTS)
    got = olr.ensemble_predict(predict, ENSEMBLE, INPUTS, combine="logits").outputs
    np.testing.assert_allclose(got, expected("probabilities", None)[0], atol=0.01)
    # The softmax of log-probabilities is what they are the logarithms of.
    log = olr.ensemble_predict(lambda *given: jnp.log(predict(*given)), ENSEMBLE, INPUTS).outputs
    np.testing.assert_allclose(log, expected("probabilities", None)[0], atol=0.01)


def test_what_a_softmax_would_mix_up_is_refused(unhooked):
    """Numbers without an axis of classes, and classes themselves: all were combined without a word."""
    members = unhooked.Snapshots(*ENSEMBLE)

    def binary(params, inputs):
        return apply(params, inputs)[:, 0]

    def classes(params, inputs):
        return apply(params, inputs).argmax(-1)

    with pytest.raises(ValueError, match=r"two classes or more on the last axis, got the shape \(7,\)"):
        unhooked.ensemble_predict(binary, members, INPUTS)
    assert unhooked.ensemble_predict(binary, members, INPUTS, combine="logits").outputs.shape == (7,)
    assert unhooked.ensemble_predict(apply, members, INPUTS[0]).outputs.shape == (3,)
    for combine in ("probabilities", "logits"):
        with pytest.raises(ValueError, match="must return floating-point numbers to combine, got int32"):
            unhooked.ensemble_predict(classes, members, INPUTS, combine=combine)
    votes = unhooked.ensemble_predict(classes, members, INPUTS, combine="none").outputs
    np.testing.assert_array_equal(votes, np.einsum("ni,mio->mno", INPUTS, MEMBERS).argmax(-1))


UNEQUAL = [NORMAL(size=(8, 4)), NORMAL(size=(8, 4)), NORMAL(size=(3, 4))]


class Loader:
    """As a data loader is: no list, no generator."""

    def __iter__(self):
        return iter(UNEQUAL)


LOADERS = {"list": lambda: UNEQUAL, "generator": lambda: (batch for batch in UNEQUAL), "loader": Loader}


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_statistics_take_any_loader_and_a_smaller_last_batch(make):
    def stats(scale, batch):
        return {"mean": scale * batch.mean(0), "var": batch.var(0), "count": jnp.int32(1)}

    got = olr.refresh_batch_stats(stats, 2.0, make())
    np.testing.assert_allclose(got["mean"], 2 * np.mean([each.mean(0) for each in UNEQUAL], 0), rtol=1e-5)
    np.testing.assert_allclose(got["var"], np.mean([each.var(0) for each in UNEQUAL], 0), rtol=1e-5)
    assert got["count"] == 1 and got["count"].dtype == jnp.int32


def test_statistics_of_pairs_stacked_and_one_by_one_are_the_same():
    inputs, labels = NORMAL(size=(5, 6, 4)), np.arange(30).reshape(5, 6)

    def stats(_, batch):
        return batch[0].mean() + batch[1].mean()

    stacked = olr.refresh_batch_stats(stats, None, (inputs, labels))
    listed = olr.refresh_batch_stats(stats, None, list(zip(inputs, labels, strict=True)))
    np.testing.assert_allclose(stacked, inputs.mean() + labels.mean(), rtol=1e-6)
    assert stacked == listed


def test_statistics_of_what_is_no_batches_are_refused(unhooked):
    refresh = unhooked.refresh_batch_stats
    with pytest.raises(ValueError, match="at least one batch, got an empty iterable"):
        refresh(apply, {}, iter([]))
    for bad, name in ((3, "int"), ({"x": [1, 2]}, "dict"), (("a", "b"), "tuple"), ("abc", "str")):
        with pytest.raises(ValueError, match=f"arrays or an iterable of batches, got a {name}"):
            refresh(apply, {}, bad)
    with pytest.raises(ValueError, match=r"one shape, got \(3, 4\) at batch 2 after \(8, 4\)"):
        refresh(lambda _, batch: batch, {}, UNEQUAL)
