"""The benchmark of ways to fine-tune: it finds the best rate of a known bowl, says how broad it is, and goes on."""

import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from scipy import stats

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "fine_tuning.py"
sys.path.append(str(ROOT / "benchmarks"))
spec = importlib.util.spec_from_file_location("fine_tuning", SCRIPT)
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)
ways = bench.ways
import fine_tuning_table as tables  # noqa: E402


def bowl(place, seed, bottom):
    """A run at a place of the grid: its loss rises by a tenth a place squared, and differs from seed to seed."""
    loss = 1 + 0.1 * (place - bottom) ** 2 + 0.01 * seed
    return {
        "loss": loss,
        "test_loss": loss,
        "test_accuracy": 0.9 - 0.03 * abs(place - bottom),
        "seconds": 2.0,
    }


def searched(bottom, guess, stage=3, seeds=5):
    runs = {}
    for step in range(1, stage + 1):
        while asked := bench.missing(runs, guess, seeds, step):
            for place, seed in asked:
                assert str(seed) not in runs.get(str(place), {})
                runs.setdefault(str(place), {})[str(seed)] = bowl(place, seed, bottom)
    return runs


@pytest.mark.parametrize("bottom", [-14, -9.3, -8, -7.7, 1])
def test_the_best_rate_lies_inside_what_all_seeds_have(bottom):
    runs = searched(bottom, guess=-8)
    curve = tables.whole(runs, 5)
    best = min(curve, key=lambda place: curve[place][0])
    assert best == round(bottom)
    assert list(curve) == list(range(min(curve), max(curve) + 1))
    assert not any(tables.is_good(curve[end], curve[best]) for end in (min(curve), max(curve)))


def test_the_first_seed_alone_looks_far_away():
    assert all(list(each) == ["0"] for each in searched(-8, guess=-8, stage=1).values())
    assert set(searched(-8, guess=-8, stage=1)) == {"-10", "-8", "-6"}


def test_a_broad_bowl_is_not_followed_for_ever():
    runs, asked = {}, True
    for stage in (1, 2, 3):
        while asked := bench.missing(runs, 0, 3, stage):
            for place, seed in asked:
                run = {"loss": 1 + 1e-4 * place**2, "test_accuracy": 0.5}
                runs.setdefault(str(place), {})[str(seed)] = run
    assert len(tables.whole(runs, 3)) == bench.MOST


def test_a_loss_that_falls_with_every_lower_rate_is_not_followed_for_ever():
    runs = searched(-1000, guess=0)
    assert min(map(int, runs)) == -bench.FARTHEST


def test_how_broad_a_bowl_is():
    curve = tables.whole(searched(-8, guess=-8), 5)
    best = list(curve).index(-8)
    # By the line between the best and its neighbors: 2% of 1.02 is 0.204 of a place, a point of accuracy a third.
    for column, half in ((0, 0.02 * 1.02 / 0.1), (1, 1 / 3)):
        factor, seen = tables.breadth(curve, best, column)
        assert seen and factor == pytest.approx(10 ** (2 * half / 3))
    factor, seen = tables.breadth({place: curve[place] for place in (-8, -7)}, 0, 0)
    assert not seen and factor == pytest.approx(10 ** (0.02 * 1.02 / 0.1 / 3))


def test_the_table_has_means_and_paired_intervals():
    size = bench.SIZES["CPU"]
    runs = {tables.BASE: searched(-10, guess=-10), "LoRA, rank 8": searched(-7, guess=-8)}
    for seed, run in runs["LoRA, rank 8"]["-7"].items():
        run["test_accuracy"] += 0.01 + 0.002 * int(seed)
    frozen = {str(seed): {"test_accuracy": 0.6, "test_loss": 1.0} for seed in range(5)}
    stored = {"size": size._asdict(), "steps": size.steps, "clock": "seconds", "runs": runs}
    stored[tables.REGRESSION] = frozen
    row = tables.rows_of(stored)["LoRA, rank 8"]
    gains = 0.01 + 0.002 * np.arange(5)
    low, high = stats.t.interval(0.95, 4, gains.mean(), stats.sem(gains))
    np.testing.assert_allclose(row.over_base, ((low + high) / 2, (high - low) / 2))
    assert row.rate == pytest.approx(10 ** (-7 / 3)) and row.steps == size.steps / 2
    assert "| LoRA, rank 8 | 0.0046 | 91.4% ± 0.4% | +1.4 ± 0.4 | 1.020 ± 0.020 |" in tables.table(stored)
    assert "noise of the seeds: LoRA, rank 8. Worse: none. Not to be told from it: none." in tables.said(
        stored
    )
    assert (
        "One rate for all has +30.0 ± 0.0 points over a logistic regression on the frozen embeddings, "
        "LoRA, rank 8 +31.4 ± 0.4." in tables.said(stored)
    )
    assert "| logistic regression, frozen embeddings |  | 60.0% ± 0.0% |  |" in tables.table(stored)


def test_runs_are_stored_and_none_is_trained_again(tmp_path):
    path = tmp_path / "runs.json"
    few = ["--quick", "--together", "--only", "head alone", "--file", str(path)]

    def run():
        done = subprocess.run([sys.executable, SCRIPT, *few], check=True, capture_output=True, text=True)
        return done.stdout

    first, stored = run(), path.read_bytes()
    (found,) = json.loads(stored).values()
    assert first.count(", seed ") == sum(len(each) for way in found["runs"].values() for each in way.values())
    assert list(found["runs"]) == ["head alone"] and first.count("| head alone |") == 1
    again = run()
    assert again.count(", seed ") == 0 and path.read_bytes() == stored and first.endswith(again)


def test_the_hardest_way_trains_as_optax_alone_does():
    """One Adam for each group, which begins at the group's start; its updates times the group's multiplier."""
    data = ways.Data(bench.SIZES["quick"])
    method, steps = ways.methods(data.size.steps)["discriminative, unfrozen in turn"], data.size.steps
    ((_, found),) = bench.trained(data, method, [-9], 1, together=False)
    graphdef, params = nnx.split(method.start(data, 1))
    batches, held = data.of_seed(1, on_features=False)
    leaves, structure = jax.tree.flatten(params)
    depth = [depth_of(jax.tree_util.keystr(path)) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    starts, rate, adam = (
        [steps * (7 - d) // 14 for d in depth],
        bench.one_cycle(steps, 1e-3),
        optax.scale_by_adam(),
    )

    @jax.jit
    def slopes_of(leaves, batch):
        params = jax.tree.unflatten(structure, leaves)
        loss, slopes = jax.value_and_grad(lambda p: bench.loss_fn(nnx.merge(graphdef, p), batch))(params)
        return loss, jax.tree.leaves(slopes)

    states = [adam.init(leaf) for leaf in leaves]
    for at in range(steps):
        loss, slopes = slopes_of(leaves, jax.tree.map(lambda leaf, at=at: leaf[at], batches))
        for which, slope in enumerate(slopes):
            if at >= starts[which]:
                moved, states[which] = adam.update(slope, states[which])
                leaves[which] = leaves[which] - rate(at) * 2.6 ** (depth[which] - 7) * moved
    assert found["train_loss"] == pytest.approx(float(loss), rel=1e-4)
    judged = bench.judged(nnx.merge(graphdef, jax.tree.unflatten(structure, leaves)), held)
    assert {name: found[name] for name in judged} == pytest.approx(jax.tree.map(float, judged), rel=1e-3)


def test_the_head_begins_as_the_regression():
    data = ways.Data(bench.SIZES["quick"])
    (_, held), fit = data.of_seed(1, on_features=False), ways.probe(data, 1)
    model = ways.methods(data.size.steps)["linear probe, then fine-tune"].start(data, 1)
    features = data.of_seed(1, on_features=True)[1]["valid"][0]
    expected = fit.predict_log_proba(features)
    found = jax.nn.log_softmax(model(held["valid"][0]))
    np.testing.assert_allclose(found, expected, atol=2e-3)


def depth_of(path):
    block = re.search(r"block.*?(\d)", path)
    return 7 if "head" in path else 0 if block is None else 1 + int(block[1])
