"""Every curve rises from 0 to 1 and agrees with its float64 formula."""

import inspect

import jax
import numpy as np
import pytest
import references

import optax_lr as olr

PROGRESS = jax.numpy.linspace(0, 1, 257)

# A curve, or the maker of curves and its arguments.
CURVES = {
    "linear": [()],
    "cosine": [()],
    "sqrt": [()],
    "square": [()],
    "rex": [()],
    "power": [(0.3,), (1.0,), (4.0,)],
    "polynomial": [(0.5,), (1.0,), (3.0,)],
    "exponential": [(0.1,), (5.0,), (50.0,)],
    "k_decay": [(0.5,), (2.0,)],
    "tanh": [(), (-4.0, 4.0)],
}
CASES = [(name, arguments) for name, sets in CURVES.items() for arguments in sets]


def curve_of(room, name, arguments):
    curve = getattr(room, name)
    return curve(*arguments) if arguments or name == "tanh" else curve


def test_every_curve_has_a_case():
    public = {
        name
        for name, function in inspect.getmembers(olr.curves, inspect.isfunction)
        if function.__module__ == olr.curves.__name__
    }
    assert public == {*CURVES, "reverse"}


@pytest.mark.parametrize(("name", "arguments"), CASES)
@pytest.mark.parametrize("backwards", [False, True])
def test_curve(name, arguments, backwards):
    curve = curve_of(olr.curves, name, arguments)
    reference = curve_of(references, name, arguments)
    if backwards:
        curve, reference = olr.curves.reverse(curve), references.reverse(reference)
    weights = jax.jit(curve)(PROGRESS)
    np.testing.assert_allclose(weights, reference(np.asarray(PROGRESS, np.float64)), rtol=0, atol=5e-7)
    assert (np.diff(weights) >= 0).all()
    assert np.isfinite(jax.vmap(jax.grad(curve))(PROGRESS)).all()
    if name != "tanh":
        assert weights[0] == 0 and weights[-1] == 1


@pytest.mark.parametrize(("name", "arguments"), [case for case in CASES if case[1]])
def test_numbers_of_a_curve_may_be_traced(name, arguments):
    maker = getattr(olr.curves, name)
    traced = jax.jit(lambda numbers: maker(*numbers)(PROGRESS))(arguments)
    np.testing.assert_allclose(traced, maker(*arguments)(PROGRESS), rtol=0, atol=5e-7)
    slopes = jax.jacobian(lambda numbers: maker(*numbers)(PROGRESS))(tuple(map(np.float32, arguments)))
    assert all(np.isfinite(slope).all() for slope in slopes)


@pytest.mark.parametrize(
    ("name", "argument", "bad"),
    [
        ("power", "exponent", 0.0),
        ("polynomial", "exponent", -1.0),
        ("exponential", "rate", 0.0),
        ("k_decay", "k", float("nan")),
        ("tanh", "lower", 1.0),
    ],
)
def test_bad_numbers_are_refused_by_name(unhooked, name, argument, bad):
    with pytest.raises(ValueError, match=f"^{argument} must be a finite number .* got {bad}"):
        getattr(unhooked.curves, name)(bad)


# Every public function that takes a curve, called with one.
TAKERS = {
    "anneal_schedule": lambda olr, curve: olr.anneal_schedule(1.0, 0.0, 10, curve=curve),
    "one_cycle_schedule": lambda olr, curve: olr.one_cycle_schedule(1.0, 10, curve=curve),
    "one_cycle_momentum_schedule": lambda olr, curve: olr.one_cycle_momentum_schedule(10, curve=curve),
    "knot_schedule": lambda olr, curve: olr.knot_schedule({0: 0.0, 9: 1.0}, curve=curve),
    "cyclical_schedule": lambda olr, curve: olr.cyclical_schedule(0.0, 1.0, 5, curve=curve),
    "cyclical_momentum_schedule": lambda olr, curve: olr.cyclical_momentum_schedule(curve=curve),
    "sgdr_schedule": lambda olr, curve: olr.sgdr_schedule(1.0, 0.0, 5, curve=curve),
    "with_warmup": lambda olr, curve: olr.with_warmup(lambda step: 1.0, 10, curve=curve),
    "warmup_stable_decay_schedule": lambda olr, curve: olr.warmup_stable_decay_schedule(
        1.0, warmup_steps=3, stable_steps=3, decay_steps=3, decay_curve=curve
    ),
    "warmup of warmup_stable_decay_schedule": lambda olr, curve: olr.warmup_stable_decay_schedule(
        1.0, warmup_steps=3, stable_steps=3, decay_steps=3, warmup_curve=curve
    ),
    "curves.reverse": lambda olr, curve: olr.curves.reverse(curve),
}
EXPECTED = r"^\w*curve must be a rising curve, such as curves\.cosine or curves\.tanh\(\), got "


def test_every_taker_of_a_curve_is_tried():
    takers = {
        name
        for name in dir(olr)
        if inspect.isfunction(getattr(olr, name))
        and any(
            p.annotation == olr.types.Curve for p in inspect.signature(getattr(olr, name)).parameters.values()
        )
    }
    assert takers == {name for name in TAKERS if "." not in name and " " not in name}


@pytest.mark.parametrize("name", TAKERS)
def test_what_is_no_curve_is_refused_when_built(unhooked, name):
    for wrong, got in (
        ("cosine", r"'cosine'\.$"),
        (unhooked.curves.tanh, r"tanh, which must be called to make one\.$"),
        (unhooked.curves.power, r"power, which must be called to make one\.$"),
        (lambda progress: 1 - progress, r"one that goes from 1 to 0\.$"),
        (lambda progress: 0 * progress, r"one that goes from 0 to 0\.$"),
        (lambda progress: 100 * progress, r"one that goes from 0 to 100\.$"),
        (lambda progress: None, r"<function"),
        (lambda progress: jax.numpy.stack([progress, progress]), r"one whose weights have shape \(2,\)\.$"),
    ):
        with pytest.raises(ValueError, match=EXPECTED + got):
            TAKERS[name](unhooked, wrong)


@pytest.mark.parametrize("name", TAKERS)
def test_any_function_that_rises_is_a_curve(name):
    def smoothstep(progress):
        return progress**2 * (3 - 2 * progress)

    assert callable(TAKERS[name](olr, smoothstep))
    # Under a trace too, with a number of the curve traced or not.
    jax.jit(lambda exponent: [TAKERS[name](olr, c)(0) for c in (smoothstep, lambda p: p**exponent)])(2.0)


def test_a_curve_that_reaches_no_end_still_arrives():
    schedule = olr.anneal_schedule(1.0, 0.0, 10, curve=olr.curves.tanh())
    assert schedule(9) > 0 and schedule(10) == 0 and schedule(11) == 0


def test_gradients_stay_finite_under_a_curve_that_is_vertical_at_its_end():
    def vertical(progress):
        return 1 - jax.numpy.sqrt(1 - progress)

    slope = jax.grad(lambda end, t: olr.anneal_schedule(1.0, end, 10, curve=vertical)(t))
    assert slope(0.5, 10) == 1.0 and np.isfinite(slope(0.5, 9))
