"""Every Python block of the README runs as it stands, each in a namespace of its own."""

import pathlib
import re

import pytest

import optax_lr as olr

README = pathlib.Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[0][:40])
def test_block_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, str(README), "exec"), {"__name__": "__main__"})
    assert block.strip()


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
