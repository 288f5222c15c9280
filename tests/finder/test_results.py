"""Results print, save and load, and merge."""

import dataclasses
import errno
import json
import pickle
import sys
import types

import numpy as np
import pytest

from optax_lr import LRCurve, Suggestion, Verdict
from optax_lr.finder.suggestion import Round


def curve_of(rates, evals=True):
    lanes = len(rates)
    losses = np.arange(2 * lanes * 3, dtype=np.float32).reshape(2, lanes, 3)
    losses[1, 0, 2] = np.nan
    stops = np.full((2, lanes), -1, np.int32)
    stops[1, 0] = 1
    return LRCurve(
        learning_rates=np.array(rates),
        losses=losses,
        eval_losses=losses[..., 2:] if evals else None,
        eval_steps=np.array([3] if evals else [], np.int32),
        diverged_at=stops,
        placement="2 lanes",
        metrics={"error": 2 * losses, "a/b": losses},
        eval_metrics={"error": 3 * losses[..., 2:]} if evals else {},
        hyperparameters={"weight_decay": 10 * np.array(rates), "start": np.arange(lanes)},
    )


def same(one, other):
    for name in ("learning_rates", "losses", "eval_losses", "eval_steps", "diverged_at"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.placement == other.placement
    for name in ("metrics", "eval_metrics", "hyperparameters"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert list(mine) == list(theirs)
        for key, values in mine.items():
            np.testing.assert_array_equal(values, theirs[key])
            assert values.dtype == theirs[key].dtype


@pytest.mark.parametrize("evals", [True, False])
def test_a_curve_survives_its_file(tmp_path, evals):
    curve = curve_of([0.1, 0.2], evals)
    curve.save(tmp_path / "curve")
    same(LRCurve.load(tmp_path / "curve"), curve)
    assert (tmp_path / "curve.npz").exists()


def test_a_suggestion_survives_its_file(tmp_path):
    curve = curve_of([0.1, 0.2])
    for finalists in (None, curve_of([0.3])):
        found = Suggestion(
            0.15,
            0.1,
            0.2,
            "a reason",
            curve,
            True,
            12,
            {"valley": 0.05},
            finalists,
            {"w": 1},
            shorter=(curve_of([0.4]), curve_of([0.5])),
        )
        found.save(tmp_path / "found.npz")
        back = Suggestion.load(tmp_path / "found.npz")
        assert (back.learning_rate, back.low, back.high, back.reason) == (0.15, 0.1, 0.2, "a reason")
        assert (back.at_edge, back.lane_steps, back.rules, back.params) == (True, 12, {"valley": 0.05}, None)
        same(back.curve, curve)
        assert (back.finalists is None) == (finalists is None)
        for ours, theirs in zip(back.shorter, found.shorter, strict=True):
            same(ours, theirs)
    same(back.finalists, finalists)


def test_a_file_of_something_else_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", a=1)
    with pytest.raises(ValueError, match="holds no curve: it lacks learning_rates"):
        LRCurve.load(tmp_path / "other.npz")
    with pytest.raises(ValueError, match="holds no suggestion: it lacks learning_rate"):
        Suggestion.load(tmp_path / "other.npz")


class Trap:
    """An object that tells when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("The file was unpickled.",))


def damaged(folder):
    """Files that hold no result, by what is wrong with them."""
    curve_of([0.1, 0.2]).save(folder / "whole")
    whole = (folder / "whole.npz").read_bytes()
    middle = len(whole) // 2
    contents = {
        "cut short": whole[:middle],
        "cut within an array": whole[:200] + whole[260:],
        "flipped bytes": whole[:300] + bytes(255 - byte for byte in whole[300:340]) + whole[340:],
        "text": b"learning rate 0.1",
        "empty": b"",
        "a pickle": pickle.dumps(Trap()),
    }
    for name, content in contents.items():
        (folder / f"{name}.npz").write_bytes(content)
    np.save(folder / "an array.npy", np.ones(3))
    np.savez(folder / "objects.npz", learning_rates=np.array([Trap()], object))
    return [*(f"{name}.npz" for name in contents), "objects.npz", "an array.npy"]


def test_a_damaged_file_is_refused_in_one_sentence_with_its_path(tmp_path):
    for name in damaged(tmp_path):
        for kind, writer in ((LRCurve, "LRCurve.save"), (Suggestion, "Suggestion.save")):
            with pytest.raises(ValueError, match=writer) as refusal:
                kind.load(tmp_path / name)
            said = str(refusal.value)
            assert str(tmp_path / name) in said and said.count(".npz file") == 1 and "\n" not in said, said
    with pytest.raises(FileNotFoundError, match=r"missing\.npz"):
        LRCurve.load(tmp_path / "missing")


@pytest.mark.parametrize("old", [curve_of([0.1, 0.2]), Suggestion(0.1, 0.1, 0.1, "old", curve_of([0.1]))])
def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path, monkeypatch, old):
    old.save(tmp_path / "result")
    before = (tmp_path / "result.npz").read_bytes()

    def full(file, **arrays):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space left"):
        old.save(tmp_path / "result")
    assert (tmp_path / "result.npz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["result.npz"]


def test_a_link_and_the_rights_of_a_file_are_kept(tmp_path):
    (tmp_path / "link.npz").symlink_to(tmp_path / "real.npz")
    curve_of([0.1]).save(tmp_path / "link.npz")
    assert (tmp_path / "link.npz").is_symlink() and (tmp_path / "real.npz").is_file()
    (tmp_path / "plain").touch()
    assert (tmp_path / "real.npz").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_suggestion_is_a_dict_of_plain_numbers():
    found = Suggestion(
        np.float64(0.15), 0.1, 0.2, "a reason", curve_of([0.1]), rules={"valley": np.float64(1)}
    )
    said = found.to_dict()
    assert json.loads(json.dumps(said)) == said
    assert said == {
        "learning_rate": 0.15, "low": 0.1, "high": 0.2, "reason": "a reason", "at_edge": False,
        "lane_steps": 0, "rules": {"valley": 1.0}, "hyperparameters": {},
    }  # fmt: skip
    known = Round(np.float32(0.5), np.float64(0.25), 1.0, 0.01, 2.0, 1.0)
    budgeted = dataclasses.replace(found, horizon=100, trace=(known,)).to_dict()
    assert json.loads(json.dumps(budgeted)) == budgeted
    assert (budgeted.pop("horizon"), budgeted.pop("trace")) == (100, [known._asdict()])
    assert budgeted == said


def test_a_curve_is_a_frame_of_one_row_a_seed_lane_and_step(monkeypatch):
    curve = curve_of([0.1, 0.2])
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=dict))
    frame = curve.to_dataframe()
    # The first lane of the second seed diverged at step 1: its steps 0 and 1 remain of 0 to 3.
    assert {len(column) for column in frame.values()} == {3 * 4 + 2}
    rows = [dict(zip(frame, row, strict=True)) for row in zip(*frame.values(), strict=True)]
    assert [(row["seed"], row["step"]) for row in rows if row["lane"] == 0] == [
        *((0, step) for step in range(4)), (1, 0), (1, 1),
    ]  # fmt: skip
    for row in rows:
        at = (row["seed"], row["lane"], row["step"])
        assert (
            row["learning_rate"] == curve.learning_rates[at[1]]
            and row["weight_decay"] == 10 * row["learning_rate"]
        )
        if row["step"] < 3:
            assert row["loss"] == curve.losses[at] and row["a/b"] == curve.metrics["a/b"][at]
            assert np.isnan(row["eval_loss"])
        else:
            assert row["eval_loss"] == curve.eval_losses[(*at[:2], 0)] and np.isnan(row["loss"])
            assert row["eval_error"] == 3 * row["eval_loss"]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="to_dataframe needs pandas: pip install pandas"):
        curve.to_dataframe()


def test_lane_steps_count_what_was_executed():
    assert curve_of([0.1, 0.2]).lane_steps == 3 + 3 + 2 + 3
    assert curve_of([0.1, 0.2]).stable.tolist() == [False, True]


def test_merged_lanes_are_in_order_of_their_rate():
    merged = curve_of([0.1, 0.4]).merge(curve_of([0.2, 0.3]))
    assert merged.learning_rates.tolist() == [0.1, 0.2, 0.3, 0.4]
    np.testing.assert_array_equal(merged.losses[:, [0, 3]], curve_of([0.1, 0.4]).losses)
    assert merged.diverged_at[1].tolist() == [1, 1, -1, -1] and merged.eval_losses.shape == (2, 4, 1)


def test_merged_seeds_are_those_of_the_same_lanes():
    one = curve_of([0.1, 0.4])
    both = one.merge_seeds(one)
    assert both.learning_rates.tolist() == [0.1, 0.4] and both.lane_steps == 2 * one.lane_steps
    for part in (slice(0, 2), slice(2, 4)):
        np.testing.assert_array_equal(both.losses[part], one.losses)
        np.testing.assert_array_equal(both.diverged_at[part], one.diverged_at)
    with pytest.raises(ValueError, match=r"same learning_rate of lanes, got \[0.1, 0.4\] and \[0.1, 0.3\]"):
        one.merge_seeds(curve_of([0.1, 0.3]))


def test_everything_by_name_is_merged_and_taken_along():
    one, two = curve_of([0.1, 0.4]), curve_of([0.2, 0.3])
    merged = one.merge(two)
    assert merged.hyperparameters["weight_decay"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert merged.hyperparameters["start"].tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(merged.metrics["error"], 2 * merged.losses)
    np.testing.assert_array_equal(merged.eval_metrics["error"], 3 * merged.eval_losses)
    same(merged.take([0, 3]), one)
    same(merged.take(merged.learning_rates == 0.2), merged.take(slice(1, 2)))
    assert merged.take([1]).losses.shape == (2, 1, 3)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"losses": np.zeros((2, 1, 4), np.float32)}, "same steps, got 3 and 4"),
        ({"losses": np.zeros((1, 1, 3), np.float32)}, "same seeds, got 2 and 1"),
        ({"eval_losses": None}, r"same evaluations, got \[3\] and None"),
        ({"metrics": {}}, r"same metrics, got \['a/b', 'error'\] and \[\]"),
        ({"eval_metrics": {}}, r"same validation metrics, got \['error'\] and \[\]"),
        ({"hyperparameters": {}}, r"same hyperparameters, got .* and \['learning_rate'\]"),
    ],
)
def test_curves_that_do_not_fit_are_not_merged(unhooked, changes, sentence):
    curve = curve_of([0.1])
    fields = {field.name: getattr(curve, field.name) for field in dataclasses.fields(curve)}
    one, other = unhooked.LRCurve(**fields), unhooked.LRCurve(**fields | changes)
    with pytest.raises(ValueError, match=sentence):
        one.merge(other)


def test_results_print_as_tables():
    assert str(curve_of([0.1, 0.2])).startswith(
        "LRCurve: 2 lanes of learning_rate x weight_decay x start, from 0.1 to 0.2, 2 seed(s)"
    )
    curve = dataclasses.replace(curve_of([0.1, 0.2]), hyperparameters={"weight_decay": np.array([1.0, 1.0])})
    head = "LRCurve: 2 rates from 0.1 to 0.2, 2 seed(s), 3 steps, 1 lane(s) diverged, 11 lane-steps"
    assert repr(curve) == head
    assert str(curve).splitlines() == [
        head,
        "The validation loss is lowest at learning_rate 0.2: 8.",
        "learning_rate  validation loss",
        "0.1            diverged at step 1",
        "0.2            8",
    ]
    # The table of many lanes would be a page.
    rates = np.linspace(0.1, 0.5, 17)
    assert str(curve_of(rates)).splitlines()[1:] == [
        "The validation loss is lowest at learning_rate 0.125, weight_decay 1.25, start 1: 30.5."
    ]
    lost = dataclasses.replace(curve, diverged_at=np.ones((2, 2), np.int32))
    assert str(lost).splitlines()[1:] == ["Every lane diverged."]
    lines = str(
        Suggestion(0.15, 0.1, 0.2, "A reason.", curve, lane_steps=1200, rules={"valley": 0.05})
    ).splitlines()
    assert lines == [
        "learning rate   0.15",
        "interval        0.1 to 0.2",
        "lanes diverged  1 of 2",
        "lane-steps      1,200",
        "common rules    of the runs of 3 steps",
        "  valley        0.05",
        "A reason.",
    ]


def test_verdicts_print_as_a_table():
    kinds = [["diverged", "overfitting", "too high"], ["too low", "plateaued", "healthy"]]
    verdict = Verdict(np.array(kinds), np.array([[0.125, 0.3, 0.8], [np.nan, 0.004, 0.04]]))
    assert verdict.reason.shape == verdict.advice.shape == (2, 3)
    assert str(verdict).splitlines()[::3] == [
        "lane  verdict      because                                what to do",
        "0, 2  too high     rises undid 80% of the falls           lower the learning rate threefold, "
        "or warm it up",
        "1, 2  healthy      4% of its fall came late               keep the learning rate",
    ]
    late = ["0% of its fall came late", "4% of its fall came late"]
    assert verdict.reason[1].tolist() == ["no fall stands out of the noise", *late]
    assert (verdict.kind[1] == "healthy").tolist() == [False, False, True]
    assert str(verdict[1, 2]) == "healthy: 4% of its fall came late; keep the learning rate."
    assert verdict[0].kind.tolist() == kinds[0] and len(str(verdict[:, 1]).splitlines()) == 3
