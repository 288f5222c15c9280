"""Every page in a browser: no error in its console, no broken image, no dead link, nothing wider than a phone."""

import functools
import pathlib
import sys
import urllib.parse

import pytest
from conftest import SITE

sys.path.insert(0, str(SITE.parent / "docs" / "tools"))

import doctests
import pages

PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
each_page = pytest.mark.parametrize("page", PAGES)

LINKS = """return [...document.querySelectorAll('a[href]')].map(a => a.href)"""
# Both pictures of a pair are in the page, and the theme shows one. What lies far down loads when it is asked for.
BROKEN = """
const images = [...document.querySelectorAll('img')];
images.forEach(image => image.loading = 'eager');
return Promise.all(images.map(image => image.decode().then(() => null, () => image.src)))
    .then(found => found.filter(Boolean))
"""
WIDER = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"


@functools.cache
def anchors(path):
    """The places in a page that a link may name."""
    import re

    return set(re.findall(r'\b(?:id|name)="?([^\s">]+)', path.read_text()))


def leads_nowhere(link, address):
    """Whether a link within the pages names no file, or no place in it. Other links are not followed."""
    parts = urllib.parse.urlsplit(link)
    if f"{parts.scheme}://{parts.netloc}" != address:
        return False
    path = SITE / urllib.parse.unquote(parts.path).strip("/")
    path = path / "index.html" if path.is_dir() else path
    place = urllib.parse.unquote(parts.fragment)
    return not path.exists() or bool(place and path.suffix == ".html" and place not in anchors(path))


def test_there_are_pages():
    named = {
        "index.html",
        "find.html",
        "over_time.html",
        "over_the_network.html",
        "adapt.html",
        "coming_from.html",
    }
    assert named | {"limits.html", "errors.html", "reference/schedules.html"} <= set(PAGES)


@each_page
def test_page(page, browser, address):
    browser.set_window_size(1280, 900)
    browser.get(f"{address}/{page}")
    said = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert said == []
    assert browser.execute_script(BROKEN) == []
    words = browser.execute_script("return document.body.textContent")
    assert not [how for how in ("shown", "hidden", "picture", "drawing") if f"python {how}" in words]
    links = set(browser.execute_script(LINKS))
    assert [link for link in sorted(links) if leads_nowhere(link, address)] == []
    outside = [link for link in browser.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
    ) if not link.startswith((address, "data:", "blob:"))]  # fmt: skip
    assert outside == []
    browser.set_window_size(390, 844)
    assert browser.execute_script(WIDER) <= 0, "wider than a phone"


def test_what_is_broken_is_seen(browser, address, tmp_path):
    broken = SITE / "broken-for-the-test.html"
    broken.write_text(
        "<img src=none.png><a href='find.html#none'>x</a><a href='find.html'>y</a><script>none()</script>"
    )
    try:
        browser.get(f"{address}/{broken.name}")
        assert any("none" in entry["message"] for entry in browser.get_log("browser"))
        assert browser.execute_script(BROKEN) == [f"{address}/none.png"]
        nowhere = [link for link in browser.execute_script(LINKS) if leads_nowhere(link, address)]
        assert nowhere == [f"{address}/find.html#none"]
    finally:
        broken.unlink()


def test_search_finds_a_function(browser, address):
    browser.set_window_size(1280, 900)
    browser.get(f"{address}/index.html?q=warmup_cosine_decay_schedule")
    found = browser.execute_async_script("""
        const done = arguments[0];
        const look = () => {
            const items = [...document.querySelectorAll('.md-search-result__item a')].map(a => a.href);
            items.length ? done(items) : setTimeout(look, 100);
        };
        look();
    """)
    assert any("reference/schedules.html" in link for link in found)


def test_doctests_of_the_reference_are_code():
    words = (
        "A line.\n\n>>> 1 + 1\n2\n\nThe c[i](t).\n\nArgs:\n  low, high: the ends,\n    above 0.\n  key: one."
    )
    assert doctests.one_each(doctests.fenced(words)) == (
        "A line.\n\n```python\n>>> 1 + 1\n2\n```\n\nThe c[i\\](t).\n\nArgs:\n  low: the ends,\n    above 0.\n"
        "  high: the ends,\n    above 0.\n  key: one."
    )
    html = (SITE / "reference" / "schedules.html").read_text()
    assert "&gt;&gt;&gt;" in html and "<blockquote>" not in html


def test_blocks_run_in_one_namespace_and_errors_name_the_page():
    page = "```python\nx = 2\nprint(x)\n```\n{{ x + 1 }}\n```python hidden\nprint('*x*')\n```\n"
    page += "```python shown\n1 / 0\n```\n"
    words, pictures = pages._ran(page, "page")
    assert (
        words == "```python\nx = 2\nprint(x)\n```\n\n```text\n2\n```\n\n3\n*x*\n\n```python\n1 / 0\n```\n\n"
    )
    assert pictures == {}
    with pytest.raises(RuntimeError, match="page: ZeroDivisionError"):
        pages._ran("```python\n1 / 0\n```\n", "page")
    with pytest.raises(RuntimeError, match="page: UserWarning"):
        pages._ran("```python\nimport warnings; warnings.warn('x')\n```\n", "page")


def test_a_picture_is_drawn_for_light_and_for_dark():
    page = "```python picture A line\nimport matplotlib.pyplot as plt\nplt.plot([1, 2])\n```\n"
    words, pictures = pages._ran(page, "page")
    assert words.count("![A line](pictures/page-0-") == 2
    assert set(pictures) == {"page-0-light.png", "page-0-dark.png"}
    assert pictures["page-0-light.png"] != pictures["page-0-dark.png"]


def test_the_navigation_leaves_out_what_is_not_written(tmp_path):
    pathlib.Path(tmp_path / "here.md").touch()
    nav = [{"Here": "here.md"}, {"Folder": [{"Gone": "gone.md"}, "here.md"]}]
    assert pages._present(nav, tmp_path) == [{"Here": "here.md"}, {"Folder": ["here.md"]}]
