"""The reference of a search: the losses of a lane that trains nothing, at the price of forward passes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optax_lr as olr
import optax_lr.nnx
from optax_lr.engine.layout import Layout
from optax_lr.engine.programs import ProgramsOf
from optax_lr.engine.runs import PASSES_PER_STEP, Runs
from optax_lr.finder.inputs import pose
from optax_lr.finder.judging import with_lost_runs
from optax_lr.finder.problem import Problem
from optax_lr.finder.search import example_lane

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(20, 16, 3)).astype(np.float32)
TARGETS = INPUTS @ np.array([1.0, -2.0, 0.5], np.float32)
VALIDATION = (INPUTS[0], TARGETS[0])


def plain(params, batch):
    return jnp.mean((batch[0] @ params - batch[1]) ** 2)


def with_state(params, mean, batch):
    return jnp.mean((batch[0] @ params - batch[1] - mean) ** 2), 0.9 * mean + 0.1


def with_key(params, batch, key):
    return jnp.mean((batch[0] @ params - batch[1] + jax.random.normal(key)) ** 2)


def drawn(key):
    return jax.random.normal(key, (3,))


FORMS = {
    "plain": (plain, jnp.zeros(3), {}),
    "drawn starts": (plain, drawn, {}),
    "state": (with_state, jnp.zeros(3), {"model_state": jnp.zeros(())}),
    "key": (with_key, jnp.zeros(3), {"with_key": True}),
}


def swept(form, **options):
    """A lane that moves nothing in float32 and one that does, whose optimizer decays and counts."""
    loss, params, extra = FORMS[form]
    return olr.lr_sweep(
        loss, params, lambda rate: optax.adamw(rate, weight_decay=0.1), (INPUTS, TARGETS),
        learning_rates=[1e-25, 0.1], seeds=3, progress=False, **extra, **options,
    )  # fmt: skip


@pytest.mark.parametrize("num_steps", [12, 50])  # fewer than there are batches, and more
@pytest.mark.parametrize("eval_batch", [None, VALIDATION])
@pytest.mark.parametrize("form", FORMS)
def test_the_reference_is_a_lane_that_trains_nothing(form, eval_batch, num_steps):
    curve = swept(form, num_steps=num_steps, eval_batch=eval_batch, eval_every=5)
    lane = curve.losses[:, 0] if eval_batch is None else curve.eval_losses[:, 0]
    np.testing.assert_array_equal(curve.reference, lane)


@pytest.mark.parametrize("options", [{"lanes_at_once": 2}, {"lanes_at_once": 1}])
@pytest.mark.parametrize("eval_batch", [None, VALIDATION])
def test_lanes_in_a_vmap_have_the_same_reference(eval_batch, options):
    for form in ("drawn starts", "state"):
        alone = swept(form, num_steps=12, eval_batch=eval_batch)
        together = swept(form, num_steps=12, eval_batch=eval_batch, **options)
        np.testing.assert_allclose(together.reference, alone.reference, rtol=1e-6)


def test_convolutions_run_step_by_step_have_one_too():
    def loss(params, batch):
        image = batch[0].reshape(1, 1, 6, 8)
        return jnp.mean(jax.lax.conv(image, params["w"], (1, 1), "SAME") ** 2) - jnp.mean(batch[1])

    params = {"w": jnp.ones((1, 1, 3, 3))}
    for eval_batch in (None, VALIDATION):
        curve = olr.lr_sweep(
            loss, params, optax.sgd, (INPUTS, TARGETS), learning_rates=[1e-25, 1e-3], num_steps=6, seeds=2,
            eval_batch=eval_batch, progress=False,
        )  # fmt: skip
        lane = curve.losses[:, 0] if eval_batch is None else curve.eval_losses[:, 0]
        np.testing.assert_allclose(curve.reference, lane, rtol=1e-6)


def test_a_module_with_dropout_and_batch_norm_has_the_same_masks_and_averages():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.dense, self.norm = nnx.Linear(3, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
            self.drop, self.out = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(4, 1, rngs=rngs)

        def __call__(self, x):
            return self.out(self.drop(nnx.relu(self.norm(self.dense(x)))))[..., 0]

    def loss(model, batch):
        return jnp.mean((model(batch[0]) - batch[1]) ** 2)

    for eval_batch in (None, VALIDATION):
        curve = olr.nnx.lr_sweep(
            loss, Model(nnx.Rngs(0)), optax.sgd, (INPUTS, TARGETS), learning_rates=[1e-25, 0.01], num_steps=6,
            seeds=2, eval_batch=eval_batch, eval_every=3, progress=False,
        )  # fmt: skip
        lane = curve.losses[:, 0] if eval_batch is None else curve.eval_losses[:, 0]
        np.testing.assert_allclose(curve.reference, lane, rtol=1e-5)


@pytest.mark.parametrize(
    ("form", "eval_batch", "passes"),
    [
        # Each batch once; of starts that differ once each; drawn keys and states at each step; starts as they are.
        ("plain", None, 20),
        ("drawn starts", None, 3 * 20),
        ("key", None, 3 * 50),
        ("state", VALIDATION, 3 * 50),
        ("drawn starts", VALIDATION, 0),
    ],
)
def test_it_costs_forward_passes(monkeypatch, form, eval_batch, passes):
    seen = []
    closed = Runs.closed
    monkeypatch.setattr(Runs, "closed", lambda runs: seen.append(runs) or closed(runs))
    swept(form, num_steps=50, eval_batch=eval_batch)
    assert seen[0].reference.passes == passes
    assert seen[0].price == 2 * 3 * 50 + -(-passes // PASSES_PER_STEP)


def test_the_backward_pass_is_left_out():
    def loss(params, batch):
        return jnp.mean(jnp.tanh(batch @ params["w"]) @ params["v"])

    posed = pose(
        Problem(loss), {"w": jnp.ones((64, 64)), "v": jnp.ones((64, 64))}, optax.sgd, jnp.ones((2, 8, 64)),
        model_state=None, opt_state=None, eval_batch=None, lane=example_lane({"learning_rate": 0.1}, 4), read=2,
        seeds=1, key=None,
    )  # fmt: skip
    programs = ProgramsOf(
        posed.trainers[0].task(evaluates=False), posed.data, example_lane({"learning_rate": 0.1}, 4), 4
    )
    trains, looks = (
        compiled(Layout(window=1), 2).train.cost_analysis()["flops"]
        for compiled in (programs.of, programs.looks)
    )
    assert looks < 0.45 * trains


def ends_of(starts, ends, rates=(0.01, 0.1, 1.0)):
    """A curve of rates of which the middle one ends so, the first moves little and the last nothing."""
    starts, ends = np.float32(starts), np.float32(ends)
    losses = np.stack([starts - 0.01, ends, starts], axis=1)[..., None]
    return olr.LRCurve(
        np.array(rates), np.repeat(starts[:, None, None], len(rates), 1), losses, np.array([1], np.int32),
        np.full((len(starts), len(rates)), -1, np.int32), reference=starts,
    )  # fmt: skip


def test_starts_that_differ_and_end_alike_have_learned():
    found = olr.suggest.lowest_loss(ends_of([400.0, 2.0, 9.0], [0.5, 0.6, 0.55]))
    assert found.learning_rate == pytest.approx(0.1, rel=0.5) and "No rate learned" not in found.reason


@pytest.mark.parametrize("ends", [[39.0, 1.9, 9.5], [39.0, 2.1, 8.9]])
def test_ends_as_far_apart_as_starts_or_above_their_own_have_not(ends):
    assert "No rate learned" in olr.suggest.lowest_loss(ends_of([40.0, 2.0, 9.0], ends)).reason


@pytest.mark.parametrize("rates", [(0.1,), (0.01, 0.1, 1.0)])
def test_a_seed_that_began_well_and_lost_some_of_that_has_not_diverged(rates):
    starts = np.float32([2.0, 1.5, 1.2, 1.0, 0.5] * 3)
    ends = np.float32(0.9 + 0.02 * RNG.normal(size=15))
    curve = ends_of(starts, ends, (0.01, 0.1, 1.0)).take(np.isin([0.01, 0.1, 1.0], rates))
    assert with_lost_runs(curve).stable.all()
    # One that ends above all starts has.
    ends[0] = 3.0
    curve = ends_of(np.full(15, 2.0), ends, (0.01, 0.1, 1.0)).take(np.isin([0.01, 0.1, 1.0], rates))
    assert (with_lost_runs(curve).diverged_at >= 0).sum() == 1


def test_a_search_of_starts_that_differ_widely_has_learned(recwarn):
    def start(key):
        return 10.0 ** (2 * jax.random.normal(key)) * jnp.ones(3)

    found = olr.lr_find(
        lambda params, batch: jnp.mean(params**2) + jnp.mean(batch), start, optax.sgd, np.zeros((50, 1)),
        num_steps=50, progress=False,
    )  # fmt: skip
    assert found.learning_rate > 0.1 and not recwarn.list
