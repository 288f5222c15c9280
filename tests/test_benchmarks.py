"""The scripts in benchmarks/ run, and each way that they compare trains the same runs (asserted by the scripts)."""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def run(*arguments: str) -> str:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


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


def test_compare_prints_both_winners_and_the_price() -> None:
    printed = run("benchmarks/compare.py", *"--problems 1 --steps 40".split())
    ((grid, again, found, verdict, share),) = re.findall(
        r"^\| digits, MLP \| (.*?) \| (.*?) \| (.*?) \| (same|(?:tie|other), \S+ \(.*?\)) \| (\d+)% \|",
        printed,
        re.M,
    )
    assert {grid, again, found} <= {line.split("  ")[0] for line in printed.splitlines()}
    assert (verdict == "same") == (grid == found)
    assert int(share) < 33
