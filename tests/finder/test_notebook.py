"""The example notebook, run by a real kernel: one bar a search, pictures once, on stdout only what is printed."""

import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = pathlib.Path(__file__).parents[2] / "examples" / "notebook.ipynb"
WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(scope="module")
def notebook():
    read = nbformat.read(NOTEBOOK, nbformat.current_nbformat)
    nbformat.validate(read)
    client = NotebookClient(read, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}})
    return client.execute()


def cell_with(notebook, text):
    (cell,) = (each for each in notebook.cells if each.cell_type == "code" and text in each.source)
    return cell


def shown(cell, kind):
    """The outputs of a cell that hold data of a kind."""
    return [each for each in cell.outputs if kind in each.get("data", {})]


def widgets(notebook, kind):
    """The last state of all widgets of a kind."""
    state = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
    return [each["state"] for each in state.values() if each["model_name"] == kind]


def test_it_is_stored_without_outputs():
    stored = nbformat.read(NOTEBOOK, nbformat.current_nbformat)
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in stored.cells)


def test_a_search_of_several_stages_has_one_bar_that_ends_full(notebook):
    searches = [cell_with(notebook, name) for name in ("olr.lr_find(", "olr.lr_sweep(")]
    assert [len(shown(cell, WIDGET)) for cell in searches] == [1, 1]
    bars = widgets(notebook, "FloatProgressModel")
    assert len(bars) == 2 and all(bar["value"] == bar["max"] > 0 for bar in bars)
    words = " ".join(each["value"] for each in widgets(notebook, "HTMLModel"))
    assert "best" in words and "alive" in words


def test_stdout_holds_what_cells_print_and_stderr_a_line_a_search(notebook):
    streams = {"stdout": [], "stderr": []}
    for cell in notebook.cells:
        for each in cell.get("outputs", []):
            if each.output_type == "stream":
                streams[each.name].append((cell.source, each.text))
    ((source, text),) = streams["stdout"]
    assert source == "print(found)" and text.startswith("learning rate")
    lines = [line for _, text in streams["stderr"] for line in text.splitlines() if line.strip()]
    assert len(lines) == 2 and all("lanes x" in line for line in lines)


def test_each_picture_is_shown_once(notebook):
    pictures = {
        cell.source: len(shown(cell, "image/png")) for cell in notebook.cells if cell.cell_type == "code"
    }
    assert {source: count for source, count in pictures.items() if count} == {
        "found": 1,
        "axes = olr.plots.plot_histories(curve)": 1,
    }
