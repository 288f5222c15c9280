"""Every Python block of the README runs as it stands, each in a namespace of its own."""

import importlib.util
import json
import pathlib
import re
import warnings

import numpy as np
import pytest

import optax_lr as olr

README = pathlib.Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[0][:40])
def test_block_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, str(README), "exec"), {"__name__": "__main__"})
    assert block.strip()


def test_the_figures_are_those_that_the_demo_stored():
    """`make demo` writes out/digits.json; docs/digits.json is a copy of it."""
    stored = json.loads((README.parent / "docs" / "digits.json").read_text())
    words = ("a tenth of the suggestion", "the suggestion", "ten times it")
    numbers = zip(words, stored["peaks"], stored["loss"], stored["test_error"], strict=True)
    said = [f"{loss:.3f}, {wrong:.1%} at {word}, {peak:.3g}" for word, peak, loss, wrong in numbers]
    text = README.read_text()
    assert [each for each in said if each not in " ".join(text.split())] == []
    known = " ".join([*said, sentence_of_fine_tuning(), table_of_budgets()])
    # No other figure stands in the words: a version of Python is none.
    words_alone = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)|Python 3\.11", "", text, flags=re.S)
    elsewhere = [figure for figure in re.findall(r"\d+\.\d+%?", words_alone) if figure not in known]
    assert elsewhere == [] and np.argmin(stored["loss"]) == np.argmin(stored["test_error"]) == 1
    assert stored["peaks"][1] == stored["found"]["learning_rate"]


def test_what_fine_tuning_gave_is_what_its_benchmark_stored():
    assert sentence_of_fine_tuning() in " ".join(README.read_text().split())


def test_what_a_budget_buys_is_what_its_benchmark_stored():
    price = script("price")
    number, rows = price.stored_rows("held out")
    text = README.read_text()
    assert table_of_budgets() in text and f"on {number} cases" in text
    assert [row[1] for row in rows if row[0] == price.OURS] == [0.1, 0.3, 1.0, 3.0, 10.0, 30.0]


def table_of_budgets():
    price = script("price")
    return price.in_short(price.stored_rows("held out")[1])


def sentence_of_fine_tuning():
    stored = json.loads((README.parent / "benchmarks" / "fine_tuning.json").read_text())
    return script("fine_tuning_table").in_short(stored["CPU"])


def script(name):
    """A script of benchmarks/ as a module; it finds the others there."""
    folder = README.parent / "benchmarks"
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        spec.loader.exec_module(module)
    return module


def test_length():
    assert len(README.read_text().splitlines()) <= 150


PAGES = [README, *sorted((README.parent / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_function_that_is_named_is_there():
    rows = [
        row for row in (README.parent / "docs" / "functions.md").read_text().splitlines() if row[:2] == "| "
    ]
    names = [name for row in rows[1:] for name in re.findall(r"`([\w.]+)", row.split("|")[2])]
    places = (olr, olr.suggest, olr.nnx)
    unknown = [name for name in names if not any(reached(place, name) for place in places)]
    assert len(names) > 60 and unknown == []


def reached(place, path):
    for name in path.split("."):
        place = getattr(place, name, None)
    return place is not None


RULES = README.parent / "docs" / "rules.md"


def test_the_page_of_rules_has_the_stored_figures():
    rules = script("rules")
    template, stored = rules.TEMPLATE.read_text(), json.loads(rules.STORED.read_text())
    shown = set(re.findall(r"\{(\w+)\.\w+(?::[^{}]*)?\}", template))
    assert shown == set(stored) and len(shown) > 20
    assert RULES.read_text() == rules.page(template, stored)


def test_the_lines_of_the_rules_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", RULES.read_text(), re.S)
    short = blocks[0].replace("steps = 600", "steps = 48").replace("(0.01, 3.0, 9)", "(0.03, 1.0, 3)")
    assert short.count("steps = 48") == 1 and len(blocks) > 25
    names = {"__name__": "__main__"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of runs that are too short to learn
        for block in [short, *blocks[1:]]:
            exec(compile(block, str(RULES), "exec"), names)
