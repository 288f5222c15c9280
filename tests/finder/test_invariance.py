"""Laws of every search: what the loss is measured in and how data and lanes are laid out moves no bit of an answer.

Losses are rounded to multiples of 2^-10, gradients are not, so a constant is added without a rounding. A product of
two numbers and a sum of two is all the arithmetic of a step, so lanes side by side compute what a lone one does.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_lr as olr

RNG = np.random.default_rng(5)
X = RNG.normal(size=(64, 1, 2)).astype(np.float32)
Y = (X @ np.array([1.0, -0.5], np.float32) + 0.5 * RNG.normal(size=(64, 1))).astype(np.float32)
VALIDATION = (X[:2, 0], Y[:2, 0])
HORIZON = 48


def squared_error(params, batch):
    x, y = batch
    errors = params[0] * x[:, 0] + params[1] * x[:, 1] - y
    return errors[0] * errors[0] if len(y) == 1 else (errors[0] * errors[0] + errors[1] * errors[1]) / 2


@functools.cache
def loss_of(scale=1.0, constant=0.0):
    def loss_fn(params, batch):
        loss = squared_error(params, batch)
        grid = jnp.round(jnp.minimum(loss, 256.0) * 1024) / 1024
        # The value is on the grid, the gradient is that of the loss.
        return loss_with_gradient(scale * grid + constant, scale * loss)

    return loss_fn


@jax.custom_jvp
def loss_with_gradient(value, loss):
    return value


loss_with_gradient.defjvp(lambda given, tangents: (given[0], tangents[1]))


def one_cycle(peak):
    return olr.one_cycle_schedule(peak, HORIZON)


def unscaled_adam(learning_rate):
    return optax.adam(learning_rate, eps=0.0)


def answer(found):
    return found.learning_rate, found.low, found.high, found.at_edge, found.lane_steps


def of_curve(rule, curve):
    found = rule(curve)
    return found.learning_rate, found.low, found.high, found.at_edge


FIND = {"min_learning_rate": 1e-3, "max_learning_rate": 10.0}
SEARCHES = {
    "constant": lambda *given, **options: answer(olr.lr_find(*given, num_steps=24, **FIND, **options)),
    "quick": lambda *given, **options: answer(
        olr.lr_find(*given, num_steps=16, horizon=HORIZON, **FIND, **options)
    ),
    "scheduled": lambda *given, **options: answer(
        olr.lr_find(*given, num_steps=16, horizon=HORIZON, schedule=one_cycle, **FIND, **options)
    ),
    "budget": lambda *given, **options: answer(
        olr.lr_find(*given, budget=8, horizon=HORIZON, **FIND, **options)
    ),
    "refind": lambda *given, **options: answer(
        olr.lr_refind(*given, num_steps=24, learning_rate=0.05, **options)
    ),
    "range test": lambda *given, **options: of_curve(
        olr.suggest.steepest,
        # The classic stop is a multiple of the loss itself, and smoothing rounds.
        olr.lr_range_test(*given, num_steps=48, smoothing=0.0, stop_factor=np.inf, **options),
    ),
    "sweep": lambda *given, **options: of_curve(
        olr.suggest.lowest_loss,
        olr.lr_sweep(*given, num_steps=32, seeds=3, learning_rates=np.geomspace(1e-3, 10, 9), **options),
    ),
}


@functools.cache
def searched(name, validated, scale=1.0, constant=0.0, optimizer=unscaled_adam):
    eval_batch = VALIDATION if validated else None
    return with_data(name, (X, Y), loss_of(scale, constant), optimizer, eval_batch=eval_batch)


def with_data(name, batches, loss_fn, optimizer=unscaled_adam, **options):
    return SEARCHES[name](loss_fn, jnp.zeros(2), optimizer, batches, progress=False, **options)


either = pytest.mark.parametrize("validated", [False, True], ids=["training", "validation"])
every_search = pytest.mark.parametrize("name", SEARCHES)
quiet = pytest.mark.filterwarnings("ignore:horizon without eval_batch", "ignore:No rate learned")


@quiet
@either
@every_search
@pytest.mark.parametrize("constant", [-1.0, 100.0])
def test_a_constant_added_to_the_loss_changes_no_bit(name, validated, constant):
    assert searched(name, validated, constant=constant) == searched(name, validated)


@quiet
@either
@every_search
@pytest.mark.parametrize("optimizer", [unscaled_adam, optax.sign_sgd])
@pytest.mark.parametrize("scale", [2.0**-12, 2.0**12])
def test_a_power_of_two_times_the_loss_changes_no_bit(name, validated, scale, optimizer):
    expected = searched(name, validated, optimizer=optimizer)
    assert searched(name, validated, scale=scale, optimizer=optimizer) == expected


@quiet
@every_search
def test_a_list_of_batches_is_an_array_of_them(name):
    listed = list(zip(X, Y, strict=True))
    assert with_data(name, listed, loss_of(), eval_batch=VALIDATION) == searched(name, validated=True)


@quiet
@every_search
@pytest.mark.parametrize("lanes_at_once", [1, 3])
def test_lanes_side_by_side_answer_as_lone_ones(name, lanes_at_once):
    found = with_data(name, (X, Y), loss_of(), eval_batch=VALIDATION, lanes_at_once=lanes_at_once)
    assert found == searched(name, validated=True)


def linear(params, batch):
    return jnp.mean((batch[0] @ params - batch[1]) ** 2)


def logistic(params, batch):
    return optax.sigmoid_binary_cross_entropy(batch[0] @ params, batch[1]).mean()


def stream(kind, size, seed):
    """A loss, parameters and 100 batches of data on which single batches say little."""
    draw = np.random.default_rng(seed)
    weights, x = draw.normal(size=6), draw.normal(size=(100, size, 6))
    z = x @ weights
    match kind:
        case "logistic":
            return logistic, 8 * weights, x, z + 0.2 * draw.normal(size=z.shape) > 0
        case "linear":
            return linear, 0 * weights, x, z + 0.3 * draw.normal(size=z.shape)
        case "heavy tails":
            return linear, 0 * weights, x, np.sin(z) + 0.5 * draw.standard_t(1.5, size=z.shape)
    bad = np.where(np.arange(100) % 50 == 25, 100.0, 1.0)[:, None]
    return linear, 0 * weights, x, bad * np.sin(z)


STREAMS = [
    *(("linear", size) for size in (1, 2, 4, 8)),
    *(("logistic", size) for size in (1, 2, 4, 8, 16)),
    ("heavy tails", 32),
    ("bad batches", 32),
]


@pytest.mark.parametrize("others", [[], [1e-3, 0.03]], ids=["alone", "beside rates that learn"])
@pytest.mark.parametrize(("kind", "size"), STREAMS)
def test_a_rate_that_moves_nothing_never_diverges(kind, size, others):
    called = 0
    for seed in range(10):
        loss_fn, start, *batches = stream(kind, size, seed)
        curve = olr.lr_sweep(
            loss_fn, np.float32(start), optax.sgd, tuple(np.float32(part) for part in batches),
            learning_rates=[1e-12, *others], seeds=100, progress=False,
        )  # fmt: skip
        called += (curve.diverged_at[:, 0] >= 0).sum()
    assert called == 0
