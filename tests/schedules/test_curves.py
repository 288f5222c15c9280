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
        if not name.startswith("_")
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


def test_a_curve_that_reaches_no_end_still_arrives():
    schedule = olr.anneal_schedule(1.0, 0.0, 10, curve=olr.curves.tanh())
    assert schedule(9) > 0 and schedule(10) == 0 and schedule(11) == 0


def test_gradients_stay_finite_under_a_curve_that_is_vertical_at_its_end():
    def vertical(progress):
        return 1 - jax.numpy.sqrt(1 - progress)

    slope = jax.grad(lambda end, t: olr.anneal_schedule(1.0, end, 10, curve=vertical)(t))
    assert slope(0.5, 10) == 1.0 and np.isfinite(slope(0.5, 9))
