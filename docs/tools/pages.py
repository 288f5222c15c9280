"""Builds the pages: their Python blocks run, and what they print and draw stands below them.

A hook of MkDocs. Every fence ```` ```python ```` of a page outside of `reference/` is run, in order, in one
namespace a page and in an empty folder. What follows the word `python` says how:

- nothing: shown, and what it prints stands below;
- `picture WORDS`: what it draws stands below, once for a light and once for a dark page; WORDS are its alternative;
- `drawing WORDS`: the same, and the code is not shown;
- `hidden`: not shown; what it prints is Markdown of the page;
- `shown`: not run.

`{{ expression }}` in the words of a page is its value at the end of the page. A page of the reference has a line
`::: folder` for all public names of a folder. Pages of the navigation that are not there are left out.
"""

import contextlib
import hashlib
import io
import os
import pathlib
import pickle
import re
import tempfile
import textwrap
import warnings
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).parents[2]
FENCE = re.compile(r"^```python(?P<how>[^\n]*)\n(?P<code>.*?)^```$", re.M | re.S)
VALUE = re.compile(r"\{\{ (.*?) \}\}")
# The colors behind the text of a light and of a dark page of the theme.
STYLES: dict[str, Any] = {
    "light": "default",
    "dark": ["dark_background", {"figure.facecolor": "#1e2129", "axes.facecolor": "#1e2129"}],
}
# How many letters of what is printed fit beside the navigation.
WIDTH = 84
CACHE = ROOT / ".cache" / "pages"
# Where files lie that pages name: scripts, and what they stored.
BESIDE = ("benchmarks", "docs/tools", "examples", "tests")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Leave out what the navigation names and nobody has written."""
    config.nav = _present(config.nav, pathlib.Path(config.docs_dir))
    return config


def _present(entries: list[Any], folder: pathlib.Path) -> list[Any]:
    kept = []
    for entry in entries:
        name, value = next(iter(entry.items())) if isinstance(entry, dict) else (None, entry)
        value = _present(value, folder) if isinstance(value, list) else value
        if isinstance(value, list) or (folder / value).exists():
            kept.append(value if name is None else {name: value})
    return kept


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with its blocks run."""
    source = page.file.src_uri
    if source.startswith("reference/"):
        return _with_names(markdown)
    if not FENCE.search(markdown):
        return markdown
    words, pictures = _cached(markdown, pathlib.PurePath(source).stem)
    for name, content in pictures.items():
        files.append(File.generated(config, f"pictures/{name}", content=content))
    return words


def _cached(markdown: str, stem: str) -> tuple[str, dict[str, bytes]]:
    """What `_ran` gives, kept while the page, the package, and the files that the page names are as they were."""
    beside = (
        path for folder in BESIDE for path in (ROOT / folder).glob("*.*") if path.suffix in (".py", ".json")
    )
    named = [path for path in beside if re.search(rf"\b{path.stem}\b", markdown)]
    digest = hashlib.sha256(markdown.encode())
    for path in sorted([*(ROOT / "optax_lr").rglob("*.py"), *named]):
        digest.update(path.read_bytes())
    stored = CACHE / f"{stem}-{digest.hexdigest()[:16]}.pickle"
    if not stored.exists():
        made = _ran(markdown, stem)
        stored.parent.mkdir(parents=True, exist_ok=True)
        stored.write_bytes(pickle.dumps(made))
    return pickle.loads(stored.read_bytes())


def _ran(markdown: str, stem: str) -> tuple[str, dict[str, bytes]]:
    """The page after its blocks, and its pictures by name."""
    namespace: dict[str, Any] = {"__name__": "__page__", "ROOT": ROOT}
    pictures: dict[str, bytes] = {}

    def below(found: re.Match[str]) -> str:
        how, _, words = found["how"].strip().partition(" ")
        shown = f"```python\n{found['code']}```\n"
        if how == "shown":
            return shown
        if how in ("picture", "drawing"):
            return shown * (how == "picture") + _drawn(
                found["code"], namespace, f"{stem}-{len(pictures)}", words, pictures
            )
        printed = _printed(found["code"], namespace)
        if how == "hidden":
            return printed
        printed = "".join(map(_folded, printed.splitlines(keepends=True)))
        if how:
            raise ValueError(
                f"{stem}: a block of Python is run, picture, drawing, hidden or shown, got {how!r}."
            )
        return shown + (f"\n```text\n{printed}```\n" if printed else "")

    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            words = FENCE.sub(below, markdown)
            return VALUE.sub(lambda found: str(eval(found[1], namespace)), words), pictures
        except Exception as error:
            raise RuntimeError(f"{stem}: {error!r}") from error
        finally:
            os.chdir(here)


def _printed(code: str, namespace: dict[str, Any]) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()), _strict():
        exec(compile(code, "page", "exec"), namespace)
    plt.close("all")
    return said.getvalue()


def _folded(line: str) -> str:
    """A line, in several where it is a long sentence; tables are left alone."""
    is_sentence = line.endswith(".\n") and "  " not in line
    return textwrap.fill(line, WIDTH) + "\n" if is_sentence and len(line) > WIDTH else line


@contextlib.contextmanager
def _strict() -> Any:
    """A warning that a reader would see is an error of the page."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def _drawn(code: str, namespace: dict[str, Any], name: str, words: str, pictures: dict[str, bytes]) -> str:
    """Links to both pictures of a block; the theme shows one of them."""
    lines = []
    for shade, style in STYLES.items():
        with plt.style.context(style), _strict():
            exec(compile(code, "page", "exec"), namespace)
            buffer = io.BytesIO()
            plt.gcf().savefig(buffer, format="png", dpi=110, bbox_inches="tight")
            plt.close("all")
        pictures[f"{name}-{shade}.png"] = buffer.getvalue()
        lines.append(f"![{words}](pictures/{name}-{shade}.png#only-{shade})")
    return "\n" + "\n".join(lines) + "\n"


def _with_names(markdown: str) -> str:
    """A directive for every public name in place of `::: folder`."""
    import importlib

    def directives(found: re.Match[str]) -> str:
        module = importlib.import_module(found[1])
        names = [name for name in module.__all__ if not _is_module(getattr(module, name))]
        home = {name: getattr(module, name) for name in names}
        return "\n\n".join(f"::: {_path(found[1], name, value)}" for name, value in home.items())

    return re.sub(r"^::: ([\w.]+) \*$", directives, markdown, flags=re.M)


def _is_module(value: Any) -> bool:
    return type(value).__name__ == "module"


def _path(module: str, name: str, value: Any) -> str:
    """Where a name is defined: what is re-exported has its page there."""
    home = getattr(value, "__module__", None) or module
    return f"{home if home.startswith('optax_lr') else module}.{name}"
