"""Docstrings of the reference: a doctest is code and no quotation, arguments that share an entry have one each, and
what looks like a link in a formula is none."""

import re
from collections.abc import Iterator
from typing import Any

import griffe

DOCTEST = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", re.M)
SHARED = re.compile(r"^(?P<indent> +)(?P<names>\*{0,2}\w+(?:, \*{0,2}\w+)+): (?P<words>.*)$")
NO_LINK = re.compile(r"\](?=\((?!https?:|#))")


def fenced(words: str) -> str:
    """The docstring with each doctest, up to the next empty line, in a fence; elsewhere brackets are no links."""
    parts, at = [], 0
    for found in DOCTEST.finditer(words):
        parts += [NO_LINK.sub(r"\\]", words[at : found.start()]), f"```python\n{found.group()}\n```"]
        at = found.end()
    return "".join([*parts, NO_LINK.sub(r"\\]", words[at:])])


def one_each(words: str) -> str:
    """The docstring in which arguments that share an entry have one each, of the same words.

    >>> print(one_each("Args:\\n  low, high: the ends,\\n    above 0.\\n  key: a key."))
    Args:
      low: the ends,
        above 0.
      high: the ends,
        above 0.
      key: a key.
    """
    return "\n".join(_entries(words.split("\n")))


def _entries(lines: list[str]) -> Iterator[str]:
    section, at = False, 0
    while at < len(lines):
        line, at = lines[at], at + 1
        if line and not line.startswith(" "):
            section = line in ("Args:", "Attributes:")
        found = SHARED.match(line) if section else None
        if not found:
            yield line
            continue
        more = []
        while at < len(lines) and lines[at].startswith(found["indent"] + " "):
            more.append(lines[at])
            at += 1
        for name in found["names"].split(", "):
            yield f"{found['indent']}{name}: {found['words']}"
            yield from more


class Doctests(griffe.Extension):
    """Prepares every docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = one_each(fenced(obj.docstring.value))
