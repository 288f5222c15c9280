"""Grids: products of axes, and what is refused."""

import itertools

import pytest

import optax_lr as olr
from optax_lr.finder.grids import lanes_of


def test_a_grid_is_the_product_of_its_axes_the_last_fastest():
    axes = {"learning_rate": [0.3, 0.1], "momentum": [0.0, 0.9, 0.99], "start": [5, 6]}
    lanes = olr.grid(**axes)
    assert list(zip(*(values.tolist() for values in lanes.values()), strict=True)) == list(
        itertools.product(*axes.values())
    )
    assert list(lanes) == list(axes) and lanes["start"].dtype.kind == "i"


@pytest.mark.parametrize(
    ("axes", "sentence"),
    [
        ({}, "grid needs at least one axis"),
        (
            {"learning_rate": []},
            r"learning_rate must be a list of numbers, got an array of float64 of shape \(0,\)",
        ),
        ({"learning_rate": 0.1}, r"learning_rate must be a list of numbers, got .* of shape \(\)"),
        ({"decay": ["a"]}, "decay must be a list of numbers, got an array of <U1"),
        ({"decay": [0.0, float("nan")]}, r"decay must be finite numbers, got \[0\.0, nan\]"),
    ],
)
def test_a_wrong_axis_is_refused(unhooked, axes, sentence):
    with pytest.raises(ValueError, match=sentence):
        unhooked.grid(**axes)


@pytest.mark.parametrize(
    ("rates", "lanes", "sentence"),
    [
        (None, None, "learning_rates or lanes must be given, and not both"),
        ([0.1], {"learning_rate": [0.1]}, "learning_rates or lanes must be given, and not both"),
        (None, {"weight_decay": [0.1]}, r"lanes must have a \"learning_rate\", got \['weight_decay'\]"),
        (
            None,
            {"learning_rate": [0.1, 0.2], "weight_decay": [0.1]},
            r"one length, got \{'learning_rate': 2, 'weight_decay': 1\}; grid makes the product",
        ),
        (
            None,
            {"learning_rate": [0.2, 0.1], "decay": [1, 1]},
            r"must be positive, finite and increasing, got \[0\.2",
        ),
        (None, {"learning_rate": [0.0, 0.1], "decay": [1, 2]}, r"must be positive and finite, got \[0\.0"),
    ],
)
def test_wrong_lanes_are_refused(rates, lanes, sentence):
    with pytest.raises(ValueError, match=sentence):
        lanes_of(rates, lanes)


def test_rates_need_not_increase_where_another_axis_varies():
    assert lanes_of(None, {"learning_rate": [0.2, 0.1], "decay": [1, 2]})["learning_rate"].tolist() == [
        0.2,
        0.1,
    ]


def test_lanes_without_names_are_refused(unhooked):
    with pytest.raises(ValueError, match=r"lanes must be lists of numbers by name, .*, got \[1, 2\]\."):
        unhooked.lr_sweep(abs, 0.0, abs, [], lanes=[1, 2])
