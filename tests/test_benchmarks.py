"""The scripts in benchmarks/ run, and each way that they compare trains the same runs (asserted by the scripts)."""

import json
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_lr as olr

ROOT = pathlib.Path(__file__).parents[1]


def run(*arguments: str) -> str:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts can be imported by their names."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def test_sweep_speed_prints_a_row_cold_and_warm() -> None:
    small = "--only small_mlp --optimizers SGD --steps 3 --rounds 1 --rates 2".split()
    printed = run("benchmarks/sweep_speed.py", *small)
    assert "| cold, 2 rates | olr | loop | step | vmap" in printed
    assert "| warm, 2 rates | olr | step | vmap" in printed
    tables = printed[printed.index("| cold") :]
    assert tables.count("| small_mlp, SGD |") == 2


def test_diagnosis_prints_a_confusion_table_and_is_mostly_right() -> None:
    printed = run("benchmarks/diagnosis.py", *"--problems 1 --optimizers SGD --seen".split())
    rows = dict(re.findall(r"^\| ([a-z ]+) \|(.*)\|$", printed[: printed.index("losses alone")], re.M))
    assert list(rows) == [
        "made to be",
        "diverged",
        "too high",
        "too low",
        "plateaued",
        "overfitting",
        "healthy",
        "all",
    ]
    assert float(rows["all"].split()[-1].strip("%")) >= 70


def test_compare_prints_both_winners_and_the_price(tmp_path: pathlib.Path) -> None:
    few = [*"--problems 1 --steps 40 --file".split(), str(tmp_path / "compare.json")]
    printed = run("benchmarks/compare.py", *few)
    assert printed.endswith(run("benchmarks/compare.py", *few))  # what is stored is not run again
    ((grid, again, found, verdict, share),) = re.findall(
        r"^\| digits, MLP \| (.*?) \| (.*?) \| (.*?) \| (same|(?:tie|other), \S+ \(.*?\)) \| (\d+)% \|",
        printed,
        re.M,
    )
    assert {grid, again, found} <= {line.split("  ")[0] for line in printed.splitlines()}
    assert (verdict == "same") == (grid == found)
    assert int(share) < 33


def test_schedules_resumes_and_prints_both_tables(tmp_path) -> None:
    path = tmp_path / "schedules.json"
    small = ["--optimizers", "adam", "--steps", "140", "--seeds", "2", "--file", str(path)]
    printed = run("benchmarks/schedules.py", "--problems", "diabetes, linear", *small)
    assert printed.count("diabetes, linear, adam") == 2 and "| inverse square root |" in printed
    stored = path.read_bytes()
    again = run("benchmarks/schedules.py", "--problems", "diabetes, linear", *small)
    assert path.read_bytes() == stored and again.count("diabetes, linear, adam") == 1


def test_plateau_measures_again_what_it_stored(tmp_path) -> None:
    path, case = tmp_path / "plateau.json", "wine, MLP, momentum"
    printed = run("benchmarks/plateau.py", "--cases", case, "--file", str(path))
    stored = json.loads((ROOT / "benchmarks" / "plateau.json").read_text())
    others = json.loads((ROOT / "benchmarks" / "schedules.json").read_text())
    assert (stored["steps"], stored["seeds"]) == (others["steps"], others["seeds"])
    (measured,) = json.loads(path.read_text())["cases"].values()
    assert measured.keys() == stored["cases"][case].keys()
    for way, found in measured.items():
        assert found["peak"] == pytest.approx(stored["cases"][case][way]["peak"])
        assert found["losses"] == pytest.approx(stored["cases"][case][way]["losses"], rel=0.01)
    constant = np.mean(others["cases"][case]["constant"]["losses"])
    excess = np.mean(next(iter(measured.values()))["losses"]) / constant - 1
    assert f"| {case} | {excess:+.1%} |" in printed


@pytest.mark.usefixtures("scripts")
def test_plateau_reads_the_validation_loss_once_an_epoch() -> None:
    import plateau
    import problems

    target = np.array([1.0, -2.0], np.float32)
    problem = problems.Problem(lambda params, wanted: jnp.sum((params - wanted) ** 2), None, None, target)
    control = olr.reduce_on_plateau(factor=0.5, patience=0, rtol=0.5, every=plateau.EPOCH)
    tx = optax.chain(optax.sgd(0.01), plateau.on_validation(problem, control))
    params, update = jnp.zeros(2), jax.jit(tx.update)
    state = tx.init(params)
    at, scale, best = np.zeros(2), 1.0, np.inf
    for step in range(5 * plateau.EPOCH):
        if step and step % plateau.EPOCH == 0:
            loss = np.sum((at - target) ** 2)
            improved = loss < 0.5 * best
            best, scale = (loss, scale) if improved else (best, scale / 2)
        at = at - scale * 0.01 * 2 * (at - 0.9)  # trained on another target: the loss stalls
        updates, state = update(2 * (params - 0.9), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, at, rtol=1e-5)
    assert scale < 0.5


def test_accelerators_runs_in_short_and_stores_what_it_found(tmp_path) -> None:
    printed = run("benchmarks/accelerators.py", "--short", "--folder", str(tmp_path))
    (path,) = tmp_path.glob("*.json")
    found = json.loads(path.read_text())
    assert found["short"] and found["card"] in printed and path.name in printed
    for row in found["searches"].values():
        assert {"olr", "vmap of a scan", "one step, looped"} <= set(row["lane_steps_per_second"])
        assert all(rate > 0 for rate in row["lane_steps_per_second"].values()) and row["chunks"]["auto"] >= 1
    ratios = found["updates"]["over_adamw"]
    assert ratios["AdamW"] == 1 and {"24 labels", "24 schedules", "local gains, momentum"} <= set(ratios)


def test_cycles_learn_between_the_bounds_of_a_checked_ramp(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "bounds.json"
    printed = run("benchmarks/cyclical_bounds.py", "--only", "5", "--file", str(path))
    (name,) = measured = json.loads(path.read_text())
    stored = json.loads((ROOT / "benchmarks" / "cyclical_bounds.json").read_text())
    assert measured[name] == pytest.approx(stored[name], abs=0.02) and f"{name}: " in printed
    table = dict(re.findall(r"^\| (.*?) \| (\d+) of 10 \|", run("benchmarks/cyclical_bounds.py"), re.M))
    assert int(table["ramp of 100 steps, 5 short runs"]) >= 8 and int(table["runs of 200 steps"]) >= 8
    assert table == {key: str(sum(each[key] < 0.1 for each in stored.values())) for key in table}
    # Help and the page say so.
    said = re.sub(r"\s+", " ", olr.suggest.cyclical_bounds.__doc__ or "")
    words = "none one two three four five six seven eight nine ten".split()
    for key, sentence in (
        ("runs of 200 steps", "on {} where the bounds are read off runs of 200 steps"),
        ("ramp of 100 steps", "on {} off a ramp of 100"),
        ("ramp of 100 steps, 5 short runs", "on {} off that ramp where `check_runs=5`"),
    ):
        assert sentence.format(words[int(table[key])]) in said


def test_rules_measures_again_what_it_stored() -> None:
    printed = run("benchmarks/rules.py", *"--print --only blows_up saddles bounds_on_ten_problems".split())
    figures = dict(re.findall(r"^(\w+), \d+ s: (\{.*\})$", printed, re.M))
    stored = json.loads((ROOT / "benchmarks" / "rules.json").read_text())
    assert {name: json.loads(each) for name, each in figures.items()} == {
        name: stored[name] for name in ("blows_up", "saddles", "bounds_on_ten_problems")
    }


def test_wild_scores_a_search_by_its_closed_form(tmp_path: pathlib.Path) -> None:
    results = tmp_path / "results.json"
    few = ["--only", "quadratic", "--ways", "constant", "--keys", "1", "--results", str(results)]
    printed = run("benchmarks/wild.py", *few)
    assert re.search(r"^\| quadratic \| \d+%[^|]*\|  \|  \|  \|  \|  \|$", printed, re.M)
    (found,) = json.loads(results.read_text()).values()
    truth = json.loads((ROOT / "benchmarks/wild_truth.json").read_text())["quadratic"]["constant"]
    curvatures = np.geomspace(0.01, 100, 30)

    def after_100_steps(rate: float) -> float:
        return 0.5 * np.sum(curvatures * (1 - curvatures * rate) ** 200)

    assert after_100_steps(truth["best"]) == pytest.approx(truth["losses"][0], rel=1e-3)
    right = after_100_steps(found["rate"]) / truth["losses"][0] - 1
    assert found["excess"] == pytest.approx(right, rel=1e-2, abs=1e-3)
    # Stored results are not searched again.
    assert run("benchmarks/wild.py", *few) == printed


def test_wild_searches_hold_and_the_page_of_limits_has_their_table() -> None:
    stored = json.loads((ROOT / "benchmarks/wild_results.json").read_text())
    table = run("benchmarks/wild.py", "--table").strip()
    assert table in (ROOT / "docs" / "limits.md").read_text()
    assert table.startswith(f"{len(stored)} searches of ") and len(stored) >= 60
    assert not any("raised" in found for found in stored.values())
    over = np.array([found["excess"] - 2 * found["error"] for found in stored.values()])
    warned = np.array([bool(found["warnings"]) for found in stored.values()])
    assert np.median(over) <= 0.01 and np.mean(over > 0.1) <= 0.2
    assert 0.8 <= np.mean([found["holds"] for found in stored.values()]) <= 1
    # Each answer lies in its interval, and what the table counts is what is stored.
    assert all(found["low"] <= found["rate"] <= found["high"] for found in stored.values())
    counted = dict(re.findall(r"^\| ([a-z0-9 %]+) \|((?: \d+ \|)+)$", table, re.M))
    for line, flags in (
        ("searches", over < np.inf),
        ("more than 10%", over > 0.1),
        ("warned where within 10%", warned & (over <= 0.1)),
        ("silent where off by 50%", ~warned & (over > 0.5)),
    ):
        assert sum(map(int, re.findall(r"\d+", counted[line]))) == flags.sum()


def test_transfer_scores_the_stored_runs_within_what_is_asked() -> None:
    printed = run("benchmarks/transfer.py", "--table")
    header, *rows = re.findall(r"^\| (.*) \|$", printed, re.M)
    names = header.split(" | ")
    table = {row.split(" | ")[0]: [float(cell.strip("%")) for cell in row.split(" | ")[1:]] for row in rows}
    assert len(table) == 8 + len(("median", "worst"))
    median, worst = (dict(zip(names[1:], table[row], strict=True)) for row in ("median", "worst"))
    assert median["width x16, multipliers"] <= 2 and worst["width x16, multipliers"] <= 10
    assert median["steps x10"] <= 3 and worst["steps x10"] <= 15
    assert median["batch x4"] <= 3 and worst["batch x4"] <= 15
    assert worst["width x16, as usual"] > 10


def test_the_page_of_transfer_has_the_table_of_the_stored_runs() -> None:
    page = (ROOT / "docs" / "transfer.md").read_text()
    assert run("benchmarks/transfer.py", "--table").strip() in page


def test_transfer_stores_its_runs_and_trains_none_again(tmp_path: pathlib.Path) -> None:
    small = "--families MLP --optimizers Adam --steps 16 --seeds 1 --factors 4 --runs".split()
    stored = str(tmp_path / "runs.json")
    first = run("benchmarks/transfer.py", *small, stored)
    assert "MLP, Adam, width 128, 16 steps of 32, multipliers: " in first
    again = run("benchmarks/transfer.py", *small, stored, "--table")
    assert first.endswith(again) and again.startswith("| problem | width x4, as usual |")


@pytest.mark.usefixtures("scripts")
def test_runs_holds_every_length_and_a_third_back() -> None:
    import runs

    every, last = set(runs.cases()), runs.held_out()
    assert len(every) == 56 and len(last) == 18 and last < every
    stored = runs.load()
    assert len(set(stored) - last) >= 30 and set(stored) <= every
    for case in stored.values():
        assert [int(steps) for steps in case["losses"]] == list(runs.LENGTHS)
        for steps, losses in case["losses"].items():
            assert np.shape(losses) == (len(case["octaves"][steps]), runs.SEEDS)
        # What a full run ends with is the last look at it.
        np.testing.assert_array_equal(np.array(case["looks"])[:, -1], case["losses"]["1000"])


def test_price_keeps_to_its_budgets() -> None:
    few = ["--cases", "2", "--draws", "1", "--budgets", "1", "3"]
    few += ["--methods", "lr_find(budget=)", "log grid of ten", "random search, successive halving"]
    printed = run("benchmarks/price.py", *few)
    rows = re.findall(r"^\| ([^|]+) \| (\d+) \| ([\d.]+)% .*\| ([\d.]+) \|$", printed, re.M)
    assert len(rows) == 6
    for name, budget, _, price in rows:
        assert 0.5 * float(budget) < float(price) <= float(budget), name


@pytest.mark.usefixtures("scripts")
def test_price_stores_every_method_on_every_case() -> None:
    import price
    import runs

    stored, last = json.loads(price.STORED.read_text()), runs.held_out()
    for part in ("design", "held out"):
        cases = [case for case in runs.load() if (case in last) == (part == "held out")]
        assert stored[part]["cases"] == cases
        number, rows = price.stored_rows(part)
        asked = {(name, budget) for name, method in price.METHODS.items() for budget in method.budgets}
        known = {(name, budget): columns for name, budget, columns in rows}
        # A search at the largest budget takes a while to replay.
        assert asked - known.keys() <= ({(price.OURS, 30.0)} if part == "design" else set())
        assert known.keys() <= asked and number == len(cases)
        for (name, budget), columns in known.items():
            assert columns[-1] <= max(budget, 0.1)
            # The columns are those of the excess of each draw and case.
            each = np.array(stored[part]["excess"][f"{name}, {budget:g}"])
            assert each.shape == (3, number)
            parts = np.median(each, axis=1), np.percentile(each, 90, axis=1), each.max(axis=1)
            np.testing.assert_allclose([np.mean(part) for part in parts], columns[:3], atol=2e-4)
        others = ("random search", "log grid", "TPE, successive halving", "TPE, Hyperband")
        assert all(known[price.OURS, 3.0][0] < known[other, 3.0][0] for other in others)


@pytest.mark.usefixtures("scripts")
@pytest.mark.parametrize(("name", "missed"), [("constant", 0), ("quick", 1), ("scheduled", 1)])
def test_policies_find_the_best_rate_of_the_stored_runs(name: str, missed: int) -> None:
    import price_methods
    import runs

    from optax_lr.finder.constant import Constant
    from optax_lr.finder.finalists import Scheduled
    from optax_lr.finder.policy import Policy
    from optax_lr.finder.quick import Quick, quick_lengths
    from optax_lr.finder.tables import constant

    bounds, horizon, length = price_methods.BOUNDS, runs.HORIZON, 250 if name == "constant" else runs.HORIZON
    # Nothing trains here, so nobody reads the rates of the steps.
    first = Quick(bounds, tuple(quick_lengths(62, horizon)), horizon, 3, constant, refines=False)
    policy: Policy = {
        "constant": Constant(bounds, length, 3, constant, (length,)),
        "quick": Quick(bounds, tuple(quick_lengths(125, horizon)), horizon, 3, constant),
        "scheduled": Scheduled(first, (horizon,), 3, {horizon: constant}),
    }[name]
    last, every = runs.held_out(), runs.load()
    off = []
    for case in [case for case in every if case not in last][::6]:
        table = price_methods.Table(case, every[case], 0)
        made = price_methods.replay(policy, table)
        octaves = np.log2(made.lanes["learning_rate"]).round(6)
        rows = [octaves, made.columns["seed"], made.columns["steps"]]
        assert len(np.unique(np.stack(rows), axis=1).T) == len(made)
        for each in range(made.rounds):
            asked, again = made.where(round=[each]), policy.ask(made.where(round=range(each)))
            assert again is not None and set(asked.columns["stage"]) == {again.plan.stage}
            np.testing.assert_array_equal(asked.lanes["learning_rate"], again.plan.lanes["learning_rate"])
            np.testing.assert_array_equal(asked.columns["seed"], again.plan.seeds)
            np.testing.assert_array_equal(asked.columns["steps"], again.plan.steps)
        losses = np.mean(every[case]["losses"][str(length)], axis=1)
        best = every[case]["octaves"][str(length)][int(losses.argmin())]
        off.append(abs(np.log2(policy.answer(made).learning_rate) - best))
    assert len(off) >= 6 and np.sum(np.array(off) > 2) <= missed and np.median(off) < 1


@pytest.mark.usefixtures("scripts")
def test_optuna_spends_its_budget_and_finds_the_lowest_of_a_bowl() -> None:
    import price_methods
    import runs

    octaves = np.arange(-20.0, 4.1, 0.5)
    bowl = np.repeat(1 + 0.1 * (octaves[:, None] + 7) ** 2, runs.SEEDS, axis=1)
    case = {
        "octaves": dict.fromkeys(map(str, runs.LENGTHS), octaves),
        "losses": dict.fromkeys(map(str, runs.LENGTHS), bowl),
        "looks": np.stack([bowl] * (len(runs.LOOKS) + 1), axis=1),
    }
    table = price_methods.Table("a bowl", case, 0)
    for pruner in ("successive halving", "Hyperband"):
        found = price_methods.tpe(pruner, table, 20.0, 0)
        assert found == price_methods.tpe(pruner, table, 20.0, 0)
        assert abs(np.log2(found["rate"]) + 7) < 1 and found["price"] == 20


@pytest.mark.usefixtures("scripts")
def test_what_is_lost_is_never_the_answer() -> None:
    import price_methods
    import runs

    lost = {
        "octaves": {str(steps): [-20.0, -10.0, 0.0] for steps in runs.LENGTHS},
        "losses": {str(steps): [[1.0] * 4, [np.inf] * 4, [np.inf] * 4] for steps in runs.LENGTHS},
        "looks": [[[1.0] * 4] * 6, [[np.inf] * 4] * 6, [[np.inf] * 4] * 6],
    }
    table = price_methods.Table("an edge", lost, 0)
    spent = price_methods.Spent(table, 0.2)
    # A lost run costs what came before it was seen; a run that the budget cuts off costs the rest.
    assert [*spent.losses(0.0, (125, 250))] == [(125, np.inf)] and spent.left == 75
    assert [*spent.losses(-20.0, (62, 125))] == [(62, 1.0)] and spent.left == 0
    assert spent.answer() == {"rate": 2.0**-20, "price": 0.2}


def test_ramps_reads_again_what_it_stored(tmp_path: pathlib.Path) -> None:
    case, path = "diabetes, linear, adam", tmp_path / "ramps.json"
    run("benchmarks/ramps.py", "--only", case, "--file", str(path))
    stored = json.loads((ROOT / "benchmarks" / "ramps.json").read_text())
    (measured,) = json.loads(path.read_text()).values()
    assert len(stored) == 56 and measured.keys() == stored[case].keys()
    for rule, rates in measured.items():
        np.testing.assert_allclose(rates, stored[case][rule], rtol=0.2)


@pytest.mark.usefixtures("scripts")
def test_what_tunes_itself_is_trained_as_the_stored_runs_are() -> None:
    import jax
    import optax
    import runs
    import self_tuning
    from problems import problems

    problem, case = problems()["diabetes, linear"](), "diabetes, linear, adam"
    ours = self_tuning.trained(problem, optax.adam(0.01), *self_tuning.start_of(case))
    curve = olr.lr_sweep(
        problem.loss_fn, problem.init, optax.adam, problem.batches, learning_rates=[0.01], num_steps=1000,
        eval_batch=problem.eval_batch, seeds=3, key=jax.random.key(runs.KEY), progress=False,
    )  # fmt: skip
    np.testing.assert_allclose(ours, curve.eval_losses[:, 0, -1], rtol=1e-4)


@pytest.mark.usefixtures("scripts")
def test_self_tuning_measures_again_what_it_stored_and_scores_each_case(tmp_path: pathlib.Path) -> None:
    import self_tuning
    from finder_accuracy import TRUTH, Truth

    path = tmp_path / "self_tuning.json"
    few = ["--only", "diabetes, linear", "--methods", "DoWG", "schedule-free AdamW", "--file", str(path)]
    printed = run("benchmarks/self_tuning.py", *few)
    stored, truths = json.loads(self_tuning.STORED.read_text()), json.loads(TRUTH.read_text())
    for name, cases in json.loads(path.read_text()).items():
        ((case, losses),) = cases.items()
        np.testing.assert_allclose(losses, stored[name][case], rtol=1e-3)
        assert f"| {name} | 1 | {np.mean(losses) / Truth(truths[case]).best - 1:.1%} |" in printed
    assert stored.keys() == self_tuning.METHODS.keys()
    for name, cases in stored.items():
        assert set(cases) == set(self_tuning.cases_of(self_tuning.METHODS[name].base))


def test_refind_trains_scores_and_prints_what_it_stored(tmp_path) -> None:
    path = tmp_path / "refind.json"
    few = ["--truth", "--answers", "budget 1", "--only", "diabetes, linear", "--file", str(path)]
    printed = run("benchmarks/refind.py", *few)
    tables = printed[printed.index("problems to") :]
    assert tables == run("benchmarks/refind.py", "--file", str(path)).lstrip()
    rows = re.findall(r"^\| (go on|budget 1) \| .*? \| (\S+)% \| \S+ \| (\S+) \|$", tables, re.M)
    assert [name for name, *_ in rows] == ["go on", "budget 1"] * 2  # constant, decaying
    assert all(float(harm) == 0 == float(price) for name, harm, price in rows if name == "go on")
    assert all(0.5 < float(price) <= 1 for name, _, price in rows if name == "budget 1")
    stored = run("benchmarks/refind.py")
    kept = re.findall(r"^\| budget 3 \| .*? \| (\S+)% \| (\d+)% \| (\S+) \|$", stored, re.M)
    assert len(kept) == 4 and all(float(harm) <= 2 and float(price) <= 3 for harm, _, price in kept)
    assert all(int(share) == 0 for _, share, _ in kept)
