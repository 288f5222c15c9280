"""What other libraries have, as the one line that `compose` says it is."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_lr as olr
from optax_lr.schedules import compose

N, W, RATE, LOW, GAP, GAMMA, POWER = 100, 10, 0.5, 0.01, 0.4, 0.3, 1.7
FACTORS = [0.9 + 0.1 * math.sin(step) for step in range(1, N)]
KEY = jax.random.key(0)
LINES = dict(re.findall(r"^ {4}(\S.*?)  +(\S.*)$", compose.__doc__, re.M))


def s(step):
    return 0.5 / (1 + 0.01 * step)


def chained(first, factor):
    """PyTorch's recurrence: each value is the last one times a factor."""
    values = [first]
    for step in range(1, N):
        values.append(values[-1] * factor(step))
    return values


def warm_restarts(t):
    start, length = 0, 30
    while t >= start + length:
        start, length = start + length, 2 * length
    return LOW + (RATE - LOW) * (1 + math.cos(math.pi * (t - start) / length)) / 2


def hard_restarts(t):
    """Hugging Face's `get_cosine_with_hard_restarts_schedule_with_warmup`."""
    if t < W:
        return RATE * t / W
    progress = (t - W) / (N - W)
    return 0.0 if progress >= 1 else RATE * 0.5 * (1 + math.cos(math.pi * ((3 * progress) % 1.0)))


def triangle(t):
    cycle = math.floor(1 + t / 40)
    return max(0, 1 - abs(t / 20 - 2 * cycle + 1))


EXPECTED = {
    "LambdaLR": lambda t: RATE * 0.95**t,
    "MultiplicativeLR": chained(RATE, lambda step: FACTORS[step - 1]).__getitem__,
    "ConstantLR": lambda t: s(t) * (1 / 3 if t < 5 else 1),
    "LinearLR": lambda t: s(t) * (1 / 3 + (1 - 1 / 3) * min(5, t) / 5),
    "StepLR": chained(RATE, lambda step: GAMMA if step % 30 == 0 else 1).__getitem__,
    "MultiStepLR": chained(RATE, lambda step: GAMMA if step in (30, 80) else 1).__getitem__,
    "ExponentialLR": chained(RATE, lambda step: GAMMA).__getitem__,
    "PolynomialLR": lambda t: RATE * (1 - t / N) ** POWER,
    "CosineAnnealingLR": lambda t: LOW + (RATE - LOW) * (1 + math.cos(math.pi * t / N)) / 2,
    "WarmRestarts": warm_restarts,
    "CyclicLR": lambda t: LOW + GAP * triangle(t),
    "its scale by step": lambda t: LOW + GAP * triangle(t) * s(t),
    "hard restarts": hard_restarts,
    "WSD, rsqrt plateau": lambda t: (
        RATE * (t / W if t < W else math.sqrt(W / t)) * min(1, max(0, (N - t) / 20))
    ),
    "values from steps on": lambda t: RATE if t < 30 else LOW,
    "timm noise": lambda t: (
        s(t) * (1 + float(jax.random.uniform(jax.random.fold_in(KEY, t), minval=-0.67, maxval=0.67)))
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_line(name):
    known = {
        **{name: getattr(olr, name) for name in olr.__all__},
        "np": np, "s": s, "n": N, "w": W, "rate": RATE, "low": LOW, "gap": GAP, "gamma": GAMMA,
        "power": POWER, "factors": FACTORS, "factor": lambda step: 0.95**step, "key": KEY,
        "uniform": jax.random.uniform, "fold_in": jax.random.fold_in,
    }  # fmt: skip
    values = jax.vmap(eval(LINES[name], known))(np.arange(N))
    np.testing.assert_allclose(values, [EXPECTED[name](t) for t in range(N)], rtol=1e-5, atol=1e-7)


def test_every_line_is_tried():
    assert set(LINES) == set(EXPECTED)


@pytest.mark.parametrize("cycles", range(1, 8))
@pytest.mark.parametrize("steps", [90, 100, 997, 10_000])
def test_restarts_of_any_number_divide_a_run(cycles, steps):
    schedule = olr.sgdr_schedule(1.0, 0.0, olr.Cycles(steps / cycles, limit=cycles))
    t = np.arange(steps + 10)
    expected = np.where(t < steps, (1 + np.cos(np.pi * (t * cycles % steps) / steps)) / 2, 0)
    np.testing.assert_allclose(jax.vmap(schedule)(t), expected, atol=2e-6)


def test_both_bounds_of_warm_restarts_decay():
    schedule = olr.sgdr_schedule(1.0, 0.25, 10, peak_decay=0.5, end_decay=0.5, curve=olr.curves.linear)
    np.testing.assert_allclose(
        [schedule(t) for t in (0, 5, 10, 15, 20)], [1, 0.625, 0.5, 0.3125, 0.25], rtol=1e-6
    )


def test_restarts_may_come_sooner():
    peaks = olr.sgdr_schedule(1.0, 0.0, olr.Cycles(8, growth=0.5))
    assert [t for t in range(20) if peaks(t) == 1] == [0, 8, 12, 14, *range(15, 20)]
    held = olr.sgdr_schedule(1.0, 0.0, olr.Cycles(8, growth=0.5, limit=3))
    assert [float(held(t)) for t in (12, 14, 15, 100)] == [1.0, 0.0, 0.0, 0.0]


def test_fastai_has_its_numbers():
    """fastai's `fit_one_cycle`: peak / 25, peak at a quarter, peak / 1e5."""
    schedule = olr.fastai_one_cycle_schedule(0.1, 100)
    np.testing.assert_allclose([schedule(t) for t in (0, 25, 100)], [0.1 / 25, 0.1, 0.1 / 1e5], rtol=1e-6)
    np.testing.assert_allclose(
        [schedule(t) for t in range(100)],
        [optax.cosine_onecycle_schedule(100, 0.1, 0.25, 25.0, 1e5 / 25)(t) for t in range(100)],
        rtol=1e-4, atol=1e-7,
    )  # fmt: skip


def test_a_scheduled_momentum_is_injected():
    """`optax.sgd` takes no schedule as momentum; the line of `one_cycle_momentum_schedule` is SGD by hand."""
    rates, momenta = olr.one_cycle_schedule(0.1, 20), olr.one_cycle_momentum_schedule(20)
    params = {"w": jnp.array([1.0, -2.0])}
    unaware = optax.sgd(rates, momentum=momenta)
    with pytest.raises(TypeError, match=r"inject_hyperparams\(optax.sgd.*momentum=schedule\)"):
        unaware.update(params, unaware.init(params))
    adam = optax.adam(rates, b1=momenta)
    with pytest.raises(TypeError, match=r"^one_cycle_momentum_schedule\(transition_steps=20\) is a function"):
        adam.update(params, adam.init(params))
    tx = optax.inject_hyperparams(optax.sgd, hyperparam_dtype=float)(learning_rate=rates, momentum=momenta)
    state, expected, velocity = tx.init(params), np.array([1.0, -2.0]), np.zeros(2)
    for step in range(20):
        updates, state = tx.update(params, state)
        velocity = float(momenta(step)) * velocity + expected
        expected = expected - float(rates(step)) * velocity
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["w"], expected, rtol=1e-5)
