"""The example of a long run, as it stands: killed, resumed, and equal to a loop by hand in plain Optax."""

import importlib.util
import math
import pathlib

import numpy as np
import pytest

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "mixed_precision.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("mixed_precision", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def lives(example, tmp_path_factory):
    """The lines that both lives of the run have logged."""
    with pytest.MonkeyPatch.context() as patch:
        directory = tmp_path_factory.mktemp("run")
        patch.chdir(directory)  # the two lives write below it
        patch.setattr(example, "OUT", directory / example.OUT)
        example.two_lives()
        yield example.logged_by("first"), example.logged_by("second")


def test_it_was_killed_and_went_on_from_its_checkpoint(example, lives):
    first, second = lives
    saved = example.KILLED_AT // example.SAVE_EVERY * example.SAVE_EVERY
    assert [line["call"] for line in first] == list(range(example.KILLED_AT + 1))
    assert [line["call"] for line in second] == list(range(saved, example.LONG))
    assert first[-1]["skipped"] > 0 and len({line["scale"] for line in second}) > 1


def test_the_log_tells_the_rates_in_force(example, lives):
    """Warm-up and cosine in float64, times multiplier and plateau, at the optimizer's own steps."""
    saved, skipped, cuts = lives[1][0]["call"], 0, []
    for line in [*lives[0][:saved], *lives[1]]:
        was_skipped, skipped = line["skipped"] > skipped, line["skipped"]
        step, steps = line["call"] - skipped, example.SHORT if line["call"] < saved else example.LONG
        if was_skipped or step < 1:
            continue
        progress = (step - example.WARMUP) / (steps - example.WARMUP)
        warming = step < example.WARMUP
        rate = example.PEAK * (step / example.WARMUP if warming else 0.5 * (1 + math.cos(math.pi * progress)))
        cuts.append(-math.log2(line["rates"]["head"] / rate))
        for label, multiplier in example.MULTIPLIERS.items():
            awake = step >= example.STARTS.get(label, 0)
            wanted = line["rates"]["head"] * multiplier * awake
            assert line["rates"][label] == pytest.approx(wanted, rel=1e-5)
    # The plateau has halved all rates, a whole number of times.
    np.testing.assert_allclose(cuts, np.round(cuts), atol=1e-4)
    assert round(cuts[0]) == 0 and round(cuts[-1]) >= 1 and (np.diff(np.round(cuts)) >= 0).all()


def test_it_equals_the_loop_by_hand(example, lives):
    found = example.differences()
    # The same steps: what is left is rounding, which bfloat16 makes larger.
    assert found["losses"][:60].max() < 1e-5
    assert (
        found["losses"].max() < 2e-3 and found["parameters"].max() < 2e-3 and found["snapshots"].max() < 2e-3
    )


def test_the_comparison_can_fail(example, lives, monkeypatch):
    monkeypatch.setattr(example, "STARTS", {"body": 15, "embed": 31})
    assert example.differences()["parameters"].max() > 1e-2
