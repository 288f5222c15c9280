"""What a release says of itself: one version, one date, one set of lower bounds, and the same checks everywhere."""

import datetime
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
import yaml

import optax_lr as olr

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_version_and_date_are_one():
    version, date = re.search(r"^## (\S+) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text(), re.M).groups()
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert version == olr.__version__ == cited["version"]
    assert datetime.date.fromisoformat(date) == cited["date-released"]
    assert cited["license"] == PROJECT["license"]
    assert [author["name"] for author in cited["authors"]] == [
        author["name"] for author in PROJECT["authors"]
    ]


def test_the_lowest_versions_that_are_tried_are_those_that_are_allowed():
    options = PROJECT["optional-dependencies"]
    allowed = dict(word.split(">=") for word in PROJECT["dependencies"] + options["flax"] + options["plots"])
    tried = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / ".ci" / "lowest.txt").read_text(), re.M))
    padded = {name: version + ".0" * (2 - version.count(".")) for name, version in allowed.items()}
    assert padded == {name: tried[name] for name in allowed}


def test_the_tests_under_the_lowest_versions_are_there():
    chosen = (ROOT / ".ci" / "lowest_tests.txt").read_text().split()
    assert len(chosen) > 5 and [path for path in chosen if not (ROOT / path).exists()] == []


def test_a_checkout_without_metadata_imports(tmp_path):
    # As if the package were not installed: its metadata are hidden.
    (tmp_path / "hidden.py").write_text(
        "import importlib.metadata as m, sys\n"
        "found = m.distribution\n"
        "def blocked(name):\n"
        "    if name.replace('_', '-') == 'optax-lr': raise m.PackageNotFoundError(name)\n"
        "    return found(name)\n"
        "m.distribution = blocked\n"
        "import optax_lr; print(optax_lr.__version__, optax_lr.__file__)\n"
    )
    done = subprocess.run(
        [sys.executable, tmp_path / "hidden.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [olr.__version__, str(ROOT / "optax_lr" / "__init__.py")], done.stderr


def test_the_workflow_calls_what_must_pass():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert {"run": ".ci/run"} in workflow["jobs"]["check"]["steps"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("name", ["bug", "idea"])
def test_issue_templates_are_forms(name):
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
    assert {"name", "description", "body"} <= set(form)
    assert all({"type", "id", "attributes"} <= set(part) for part in form["body"])


def test_security_says_in_ten_lines_what_a_file_can_do():
    said = (ROOT / "SECURITY.md").read_text()
    assert len(said.splitlines()) <= 10 and "Nothing is unpickled" in said and "Suggestion.load" in said
