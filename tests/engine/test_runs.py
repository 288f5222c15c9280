"""The table of a search: what is asked, what came out, and what is found in it."""

import numpy as np
import pytest

from optax_lr.engine.runs import Plan, Runs, product


def plan_of(rates, seeds, steps, **options):
    lanes, of_seeds = product({"rate": np.array(rates, np.float32)}, seeds)
    return Plan(lanes, of_seeds, np.full(len(of_seeds), steps, np.int32), **options)


@pytest.fixture
def runs():
    """Two rounds: three rates on two seeds for four steps, then one rate for six."""
    runs = Runs(("loss", "norm"), ("accuracy",))
    runs.append(plan_of([0.1, 0.2, 0.3], (0, 1), 4, eval_steps=(2, 4), stage=0))
    runs.append(plan_of([0.15], (2,), 6, eval_steps=(6,), stage=3))
    return runs


def test_rows_stand_in_the_order_in_which_they_were_asked_for(runs):
    assert len(runs) == 7 and runs.rounds == 2
    assert runs.columns["seed"].tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert runs.columns["steps"].tolist() == [4] * 6 + [6]
    assert runs.columns["stage"].tolist() == [0] * 6 + [3]
    assert runs.columns["round"].tolist() == [0] * 6 + [1]
    assert runs.columns["done"].tolist() == [0] * 7 and runs.columns["stopped_at"].tolist() == [-1] * 7
    np.testing.assert_array_equal(runs.lanes["rate"], np.float32([0.1, 0.2, 0.3, 0.1, 0.2, 0.3, 0.15]))
    assert runs.eval_steps == [(2, 4)] * 6 + [(6,)]
    assert runs.append(plan_of([1.0, 2.0], (0,), 3)).tolist() == [7, 8]


def test_what_was_not_made_is_nan_in_columns_as_wide_as_the_longest_row(runs):
    assert {name: values.shape for name, values in runs.metrics.items()} == {"loss": (7, 6), "norm": (7, 6)}
    assert runs.evals["accuracy"].shape == (7, 2)
    runs.record(4, 1, {"loss": np.float32([5, 6])})
    expected = np.full((7, 6), np.nan)
    expected[4, 1:3] = 5, 6
    np.testing.assert_array_equal(runs.metrics["loss"], expected)
    # A longer round widens the columns and keeps what stands in them.
    runs.append(plan_of([1.0], (0,), 9))
    assert runs.metrics["loss"].shape == (8, 9)
    np.testing.assert_array_equal(runs.metrics["loss"][:7, :6], expected)
    assert np.isnan(runs.metrics["loss"][:, 6:]).all()


def test_a_shorter_table_goes_on_with_its_last_value():
    runs = Runs(("loss",))
    runs.append(plan_of([0.1], (0,), 2, tables={"factor": np.float32([[1, 2]])}))
    runs.append(plan_of([0.1], (0,), 4, tables={"factor": np.float32([[3, 4, 5, 6]])}))
    np.testing.assert_array_equal(runs.tables["factor"], [[1, 2, 2, 2], [3, 4, 5, 6]])


def test_the_price_counts_steps_up_to_each_stop(runs):
    assert runs.price == 0
    runs.end(0, 4, -1, 0)
    runs.end(1, 2, 1, 2)
    assert runs.price == 6
    assert runs.unfinished().tolist() == [2, 3, 4, 5, 6]


def test_closed_ends_before_the_first_round_with_an_unfinished_row(runs):
    assert len(runs.closed()) == 0
    for row in range(5):
        runs.end(row, 4, -1, 0)
    runs.end(6, 6, -1, 0)
    assert len(runs.closed()) == 0
    # Stopped at its first step is ended, too.
    runs.end(5, 1, 0, 1)
    assert len(runs.closed()) == 7 and not len(runs.unfinished())
    runs.append(plan_of([0.4], (0,), 2))
    assert len(runs.closed()) == 7 and runs.closed().rounds == 2


def test_where_finds_rows_by_their_columns(runs):
    assert runs.where(seed=1).lanes["rate"].tolist() == np.float32([0.1, 0.2, 0.3]).tolist()
    assert len(runs.where(stage=[0, 3])) == 7 and len(runs.where(stage=0, seed=(1, 2))) == 3
    found = runs.where(stage=3)
    assert found.eval_steps == [(6,)] and found.columns["steps"].tolist() == [6]
    assert len(runs.where(seed=9)) == 0


def test_a_part_of_the_table_is_a_copy(runs):
    some = runs.take(np.array([0, 6]))
    some.record(0, 0, {"loss": np.float32([1])})
    some.end(0, 4, -1, 0)
    assert np.isnan(runs.metrics["loss"]).all() and runs.price == 0


def test_the_table_comes_back_from_its_arrays(runs):
    runs.append(plan_of([0.4], (5,), 2, tables={}, eval_steps=()))
    runs.record(0, 0, {"loss": np.float32([3, np.inf])})
    runs.end(0, 2, 1, 1)
    arrays = runs.arrays()
    assert all(isinstance(array, np.ndarray) and array.dtype != object for array in arrays.values())
    back = Runs.from_arrays(arrays)
    assert back.eval_steps == runs.eval_steps and back.rounds == 3 and str(back) == str(runs)
    other = back.arrays()
    assert other.keys() == arrays.keys()
    for name, array in arrays.items():
        assert other[name].dtype == array.dtype
        np.testing.assert_array_equal(other[name], array)
    assert len(Runs.from_arrays(Runs(("loss",)).arrays())) == 0


def test_an_empty_table_takes_tables_and_lanes_of_any_shape():
    runs = Runs(("loss",))
    lanes = {"matrix": np.zeros((2, 3, 4), np.float32), "count": np.array([1, 2], np.int32)}
    for _ in range(2):
        runs.append(Plan(lanes, np.zeros(2, np.int32), np.array([3, 5], np.int32)))
    assert runs.lanes["matrix"].shape == (4, 3, 4) and runs.lanes["count"].dtype == np.int32
    assert runs.metrics["loss"].shape == (4, 5)
    assert runs.columns["steps"].tolist() == [3, 5, 3, 5]


def test_it_prints_a_line_for_each_row(runs):
    runs.end(1, 2, 1, 2)
    head, *lines = str(runs).splitlines()
    assert head.split() == ["row", "round", "stage", "seed", "steps", "done", "lane"] and len(lines) == 7
    assert lines[1].split() == ["1", "0", "0", "0", "4", "2", "rate=0.2", "(diverged)"]


def test_a_product_goes_seed_by_seed():
    lanes, seeds = product({"rate": np.array([1.0, 2.0])}, (3, 5))
    assert lanes["rate"].tolist() == [1, 2, 1, 2] and seeds.tolist() == [3, 3, 5, 5]
