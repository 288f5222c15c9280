"""The finder on small real problems: what it says, what it leaves alone, and what it refuses."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_lr as olr
from optax_lr.finder.classic import CLASSIC_RULES

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(40, 16, 3)).astype(np.float32)
TARGETS = INPUTS @ np.array([1.0, -2.0, 0.5], np.float32) + 0.1 * RNG.normal(size=(40, 16)).astype(np.float32)
BATCHES = (INPUTS, TARGETS)
VALIDATION = (INPUTS[-1], TARGETS[-1])
RATES = [0.01, 0.1, 0.3]


def loss_fn(params, batch):
    return jnp.mean((batch[0] @ params["w"] + params["b"] - batch[1]) ** 2)


def start():
    return {"w": jnp.zeros(3), "b": jnp.zeros(())}


def plain_loop(rate, num_steps, params=None, loss=loss_fn, factory=optax.adam, batches=BATCHES):
    params = start() if params is None else params
    optimizer = optax.with_extra_args_support(factory(rate))
    state, losses = optimizer.init(params), []
    for t in range(num_steps):
        batch = jax.tree.map(lambda leaf, t=t: leaf[t], batches)
        value, gradients = jax.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(gradients, state, params, value=value)
        params = optax.apply_updates(params, updates)
        losses.append(value)
    return params, np.array(losses)


@pytest.fixture(scope="module")
def curve():
    return olr.lr_sweep(
        loss_fn,
        start(),
        optax.adam,
        BATCHES,
        learning_rates=RATES,
        num_steps=12,
        eval_batch=VALIDATION,
        eval_every=5,
        seeds=2,
        progress=False,
    )


def test_a_sweep_equals_plain_loops(curve):
    assert curve.losses.shape == (2, 3, 12) and curve.eval_steps.tolist() == [5, 10, 12]
    for lane, rate in enumerate(RATES):
        params, losses = plain_loop(rate, 12)
        np.testing.assert_allclose(curve.losses[0, lane], losses, rtol=2e-5)
        np.testing.assert_allclose(curve.eval_losses[0, lane, 2], loss_fn(params, VALIDATION), rtol=2e-5)
        early, _ = plain_loop(rate, 5)
        np.testing.assert_allclose(curve.eval_losses[0, lane, 0], loss_fn(early, VALIDATION), rtol=2e-5)
    assert not np.allclose(curve.losses[0], curve.losses[1])


@pytest.mark.parametrize(
    ("name", "batches"),
    [
        ("list", [(x, y) for x, y in zip(*BATCHES, strict=True)]),
        ("generator", ((x, y) for x, y in zip(*BATCHES, strict=True))),
        ("endless", ((INPUTS[i % 40], TARGETS[i % 40]) for i in iter(int, 1) for i in range(40))),
        ("jax arrays", tuple(map(jnp.asarray, BATCHES))),
    ],
)
def test_batches_come_in_any_form(curve, name, batches):
    found = olr.lr_sweep(
        loss_fn, start(), optax.adam, batches, learning_rates=RATES, num_steps=12, progress=False
    )
    np.testing.assert_allclose(found.losses[0], curve.losses[0], rtol=1e-6, err_msg=name)


def test_a_generator_is_read_no_further_than_needed():
    reads = []

    def endless():
        while True:
            reads.append(len(reads))
            yield INPUTS[0], TARGETS[0]

    olr.lr_sweep(loss_fn, start(), optax.sgd, endless(), learning_rates=[0.1], num_steps=4, progress=False)
    assert len(reads) == 4


def test_quick_finds_the_rate_of_the_lowest_validation_loss():
    found = olr.lr_find(
        loss_fn, start(), optax.sgd, BATCHES, eval_batch=VALIDATION, num_steps=40, progress=False
    )
    grid = np.geomspace(0.003, 1, 60)
    fine = olr.lr_sweep(
        loss_fn,
        start(),
        optax.sgd,
        BATCHES,
        learning_rates=grid,
        num_steps=40,
        eval_batch=VALIDATION,
        seeds=3,
        progress=False,
    )
    lowest = np.nanmin(fine.eval_losses[..., -1].mean(axis=0))
    reached = loss_fn(plain_loop(found.learning_rate, 40, factory=optax.sgd)[0], VALIDATION)
    assert reached <= 1.1 * lowest
    assert found.low <= found.learning_rate <= found.high and not found.at_edge
    assert set(found.rules) == set(CLASSIC_RULES)
    assert found.lane_steps == found.curve.lane_steps < 25 * 3 * 40
    assert "validation loss is lowest" in found.reason
    assert (~found.curve.stable).any() and found.params is None


def test_scheduled_runs_finalists_for_the_whole_horizon():
    found = olr.lr_find(
        loss_fn,
        start(),
        optax.adam,
        BATCHES,
        eval_batch=VALIDATION,
        horizon=60,
        schedule=lambda peak: olr.one_cycle_schedule(peak, 60),
        num_steps=10,
        progress=False,
    )
    full = found.finalists
    # Seeds differ by more than rates do, so all rates have as many again.
    assert full.losses.shape[0] == 6 and full.losses.shape[2] == 60 and len(full.learning_rates) >= 3
    # Three or more at ratio 3, and at most two more half way between.
    exponents = np.log(full.learning_rates / full.learning_rates[0]) / np.log(3.0)
    assert (np.abs(exponents - exponents.round()) > 1e-5).sum() <= 2 and exponents[-1].round() >= 2
    best = np.nanmin(full.eval_losses[..., -1].mean(axis=0))
    assert full.learning_rates[0] <= found.learning_rate <= full.learning_rates[-1]
    # The best finalist's parameters: seed 0 is a plain loop over the batches, gone through again.
    lane = int(np.nanargmin(full.eval_losses[..., -1].mean(axis=0)))
    assert np.isclose(loss_fn(found.params, VALIDATION), np.nanmin(full.eval_losses[..., -1]), rtol=1e-5)
    schedule = olr.one_cycle_schedule(np.float32(full.learning_rates[lane]), 60)
    looped = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), BATCHES)
    _, losses = plain_loop(schedule, 60, batches=looped)
    np.testing.assert_allclose(full.losses[0, lane], losses, rtol=1e-3, atol=1e-6)
    assert best <= full.eval_losses[..., -1].mean(axis=0)[full.stable].min() + 1e-12
    assert found.lane_steps == sum(part.lane_steps for part in (*found.shorter, found.curve, full))
    assert "full runs" in found.reason


def test_finalists_that_noise_leaves_undecided_have_as_many_seeds_again():
    schedule = lambda peak: olr.one_cycle_schedule(peak, 20)  # noqa: E731
    noisy_start = lambda key: jax.tree.map(lambda x: x + jax.random.normal(key, x.shape), start())  # noqa: E731
    options = {"eval_batch": VALIDATION, "schedule": schedule, "progress": False}
    of = (loss_fn, noisy_start, optax.adam, BATCHES)
    found = olr.lr_find(*of, horizon=20, seeds=2, **options)
    full = found.finalists
    again = olr.lr_sweep(*of, learning_rates=full.learning_rates, num_steps=20, seeds=4, **options)
    np.testing.assert_allclose(full.losses, again.losses, rtol=1e-5)
    np.testing.assert_allclose(full.eval_losses, again.eval_losses, rtol=1e-5)
    assert found.lane_steps == sum(part.lane_steps for part in (*found.shorter, found.curve, full))
    best = np.nanmin(full.eval_losses[..., -1])
    assert np.isclose(loss_fn(found.params, VALIDATION), best, rtol=1e-5)


def test_a_horizon_moves_the_rate_and_says_so():
    found = olr.lr_find(
        loss_fn,
        start(),
        optax.adam,
        BATCHES,
        eval_batch=VALIDATION,
        num_steps=20,
        horizon=500,
        progress=False,
    )
    assert "carried on to 500 steps" in found.reason
    with pytest.warns(UserWarning, match="horizon without eval_batch"):
        olr.lr_find(loss_fn, start(), optax.adam, BATCHES, num_steps=4, horizon=50, progress=False)


def test_the_search_goes_on_beyond_its_bounds():
    found = olr.lr_find(
        loss_fn,
        start(),
        optax.sgd,
        BATCHES,
        eval_batch=VALIDATION,
        num_steps=20,
        min_learning_rate=1e-4,
        max_learning_rate=1e-3,
        progress=False,
    )
    assert found.learning_rate > 1e-2 and found.curve.learning_rates[-1] <= 0.1 * (1 + 1e-9)


def test_nothing_passed_in_is_changed_and_the_same_key_gives_the_same_result():
    params, batches = start(), jax.tree.map(np.copy, BATCHES)
    kept = jax.tree.map(np.array, (params, batches))
    runs = [
        olr.lr_sweep(
            loss_fn, params, optax.adam, batches, learning_rates=RATES, seeds=3, key=jax.random.key(5),
            num_steps=5, progress=False,
        ).losses
        for _ in range(2)
    ]  # fmt: skip
    np.testing.assert_array_equal(*runs)
    jax.tree.map(np.testing.assert_array_equal, kept, (params, batches))


def test_every_seed_draws_its_own_start_where_params_is_a_function():
    def draw(key):
        return {"w": jax.random.normal(key, (3,)), "b": jnp.zeros(())}

    curve = olr.lr_sweep(
        loss_fn, draw, optax.sgd, BATCHES, learning_rates=[0.01], seeds=3,
        num_steps=1, progress=False,
    )  # fmt: skip
    assert len(set(curve.losses[:, 0, 0].tolist())) == 3


def test_an_equinox_module_is_a_pytree_of_parameters():
    model = eqx.nn.MLP(3, "scalar", 8, 1, key=jax.random.key(0))

    def loss(model, batch):
        return jnp.mean((jax.vmap(model)(batch[0]) - batch[1]) ** 2)

    curve = olr.lr_sweep(loss, model, optax.adam, BATCHES, learning_rates=[0.01], num_steps=3, progress=False)
    trained, static = eqx.partition(model, eqx.is_inexact_array)
    _, losses = plain_loop(0.01, 3, trained, lambda part, batch: loss(eqx.combine(part, static), batch))
    np.testing.assert_allclose(curve.losses[0, 0], losses, rtol=1e-5)


def test_arrays_that_are_not_floats_are_carried_along():
    params = {"w": jnp.zeros(3), "index": jnp.array([2, 1, 0]), "name": "linear"}

    def loss(params, batch):
        assert params["name"] == "linear"
        return jnp.mean((batch[0] @ params["w"][params["index"]] - batch[1]) ** 2)

    curve = olr.lr_sweep(loss, params, optax.sgd, BATCHES, learning_rates=[0.1], num_steps=4, progress=False)
    straight = olr.lr_sweep(
        loss,
        {**params, "index": jnp.arange(3)},
        optax.sgd,
        BATCHES,
        learning_rates=[0.1],
        num_steps=4,
        progress=False,
    )
    np.testing.assert_allclose(curve.losses, straight.losses, rtol=1e-6)


def test_bfloat16_parameters_and_a_plateau_that_reads_the_loss():
    def factory(rate):
        return optax.chain(optax.sgd(rate), optax.contrib.reduce_on_plateau())

    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), start())
    half = olr.lr_sweep(
        loss_fn, params, optax.adam, BATCHES, learning_rates=[0.1], num_steps=5, progress=False
    )
    assert half.stable.all() and half.losses.dtype == np.float32
    plateau = olr.lr_sweep(
        loss_fn, start(), factory, BATCHES, learning_rates=[0.1], num_steps=5, progress=False
    )
    np.testing.assert_allclose(plateau.losses[0, 0], plain_loop(0.1, 5, factory=factory)[1], rtol=1e-5)


def refusals():
    nan_at_3 = np.where(np.arange(40)[:, None, None] == 3, np.nan, INPUTS).astype(np.float32)
    ragged = [(INPUTS[0], TARGETS[0]), (INPUTS[1, :5], TARGETS[1, :5])]
    return [
        (
            {"learning_rates": [0.1, 0.1]},
            ValueError,
            "learning_rates must be positive, finite and increasing",
        ),
        ({"learning_rates": [-0.1, 0.1]}, ValueError, r"increasing, got \[-0\.1, 0\.1\]"),
        ({"learning_rates": []}, ValueError, r"learning_rates must be a list of numbers, got .* \(0,\)"),
        ({"batches": []}, ValueError, "at least one batch, got an empty iterable"),
        ({"batches": 3}, ValueError, "batches must be arrays or an iterable of batches, got a int"),
        ({"batches": ragged}, ValueError, r"one shape, got \(\(5, 3\), \(5,\)\) at batch 1 after"),
        ({"num_steps": 0}, ValueError, "num_steps must be"),
        ({"seeds": 0}, ValueError, "seeds must be"),
        ({"eval_every": 0}, ValueError, "eval_every must be"),
        ({"optimizer": optax.adam(0.1)}, ValueError, "optimizer must be a function of the learning rate"),
        ({"optimizer": lambda rate: rate}, ValueError, "must return an optax.GradientTransformation"),
        (
            {"optimizer": lambda rate: optax.sgd(rate) if rate > 1 else optax.adam(rate)},
            ValueError,
            "must not branch on the value of the learning rate",
        ),
        ({"params": {"w": jnp.arange(3)}}, ValueError, "params must have a leaf that is an array of floats"),
        ({"loss_fn": lambda p, b: b[1] * p["b"]}, ValueError, r"one scalar, got \(16,\)"),
        ({"loss_fn": lambda p, b: (p["b"], {})}, ValueError, "loss_fn must return one scalar"),
        (
            {"batches": (nan_at_3, TARGETS)},
            RuntimeError,
            r"at step 3; the loss of batch 3 is nan before",
        ),
        (
            {"params": {"w": jnp.zeros(3), "b": jnp.float32(np.inf)}},
            RuntimeError,
            "at step 0; the loss of batch 0 is inf before any training",
        ),
        ({"learning_rates": [1e9, 1e10]}, RuntimeError, r"2 rates from 1e\+09 to 1e\+10; try a smaller"),
    ]


@pytest.mark.parametrize(("changes", "kind", "sentence"), refusals())
def test_wrong_input_gets_one_sentence(unhooked, changes, kind, sentence):
    arguments = {
        "loss_fn": loss_fn,
        "params": start(),
        "optimizer": optax.sgd,
        "batches": BATCHES,
        "learning_rates": RATES,
        "progress": False,
    } | changes
    with pytest.raises(kind, match=sentence) as refusal:
        unhooked.lr_sweep(**arguments)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"min_learning_rate": 0.0}, "min_learning_rate must be a finite number above 0"),
        ({"max_learning_rate": 1e-7}, "max_learning_rate must be above min_learning_rate=1e-06"),
        ({"schedule": lambda peak: peak}, "schedule needs horizon"),
        ({"horizon": 0}, "horizon must be"),
        ({"finalists": 0}, "finalists must be"),
        ({"num_steps": 0}, "num_steps must be"),
        ({"seeds": 0}, "seeds must be"),
    ],
)
def test_lr_find_refuses_wrong_input(unhooked, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        unhooked.lr_find(loss_fn, start(), optax.sgd, BATCHES, progress=False, **changes)


def test_an_iterables_own_error_surfaces():
    def breaks():
        yield INPUTS[0], TARGETS[0]
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        olr.lr_sweep(loss_fn, start(), optax.sgd, breaks(), learning_rates=RATES, progress=False)


def test_no_bar_where_there_is_no_terminal(capfd):
    with warnings.catch_warnings():
        olr.lr_sweep(loss_fn, start(), optax.sgd, BATCHES, learning_rates=[0.1], num_steps=2)
    assert capfd.readouterr().err == ""


def test_a_search_that_is_called_again_goes_on_from_its_checkpoint(tmp_path):
    options = {
        "eval_batch": VALIDATION,
        "horizon": 40,
        "schedule": lambda peak: olr.one_cycle_schedule(peak, 40),
        "num_steps": 10,
        "seeds": 2,
        "progress": False,
    }
    plain = olr.lr_find(loss_fn, start(), optax.adam, BATCHES, **options)
    calls = []

    def counted(params, batch):
        calls.append(1)
        return loss_fn(params, batch)

    for _ in range(2):
        found = olr.lr_find(counted, start(), optax.adam, BATCHES, checkpoint=tmp_path, **options)
        np.testing.assert_array_equal(found.curve.losses, plain.curve.losses)
        np.testing.assert_array_equal(found.finalists.losses, plain.finalists.losses)
        assert found.learning_rate == plain.learning_rate
    with pytest.raises(
        ValueError, match="is of another search: it differs in seeds, first rates or schedules"
    ):
        olr.lr_find(counted, start(), optax.adam, BATCHES, checkpoint=tmp_path, **(options | {"seeds": 3}))
