"""How results show themselves: rows as lines of text, and the picture in a notebook."""

from collections.abc import Sequence
from typing import Any


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows of a table as lines, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def png(result: Any) -> bytes | None:
    """The picture that a notebook shows; none where there is nothing to draw, or nothing to draw with."""
    try:
        from .. import plots

        return plots.png(result.plot())
    except (ImportError, ValueError):
        return None
