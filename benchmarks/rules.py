"""The rules of practitioners' texts, tried: figures to benchmarks/rules.json, and with them docs/rules.md.

Each rule is stored as soon as it is measured, and not measured again while it is stored; `--again` does. `--page`
writes the page alone: `benchmarks/rules_page.md` with the figures in it, where {rule.figure:format} stands.
"""

import argparse
import json
import pathlib
import re
import time
from typing import Any

HERE = pathlib.Path(__file__).parent
STORED, TEMPLATE, PAGE = HERE / "rules.json", HERE / "rules_page.md", HERE.parent / "docs" / "rules.md"


def page(template: str, stored: dict[str, Any]) -> str:
    """The template with the figures in it; what is not measured yet stays as it is."""

    def figure(match: re.Match) -> str:
        name, key, form = match.groups()
        return format(stored[name][key], form or "") if name in stored else match.group()

    return re.sub(r"\{(\w+)\.(\w+)(?::([^{}]*))?\}", figure, template)


def plain(value: Any) -> Any:
    """A number of NumPy or JAX as a Python one, to six digits."""
    number = value if isinstance(value, str) else value.item() if hasattr(value, "item") else value
    return float(f"{number:.6g}") if isinstance(number, float) else number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", help="only these rules")
    parser.add_argument("--again", action="store_true", help="measure what is stored, too")
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page")
    parser.add_argument("--print", action="store_true", help="measure and print, store nothing")
    arguments = parser.parse_args()
    stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    if not arguments.page:
        measure(stored, arguments)
    if not arguments.print:
        PAGE.write_text(page(TEMPLATE.read_text(), stored))


def measure(stored: dict[str, Any], arguments: argparse.Namespace) -> None:
    import taught_optimizers  # noqa: F401  # they register their rules
    import taught_rates  # noqa: F401
    from taught import RULES

    for name in arguments.only or RULES:
        if name in stored and not (arguments.again or arguments.print):
            continue
        began = time.perf_counter()
        figures = {key: plain(value) for key, value in RULES[name]().items()}
        print(f"{name}, {time.perf_counter() - began:.0f} s: {json.dumps(figures)}", flush=True)
        if not arguments.print:
            stored[name] = figures
            STORED.write_text(
                json.dumps({name: stored[name] for name in RULES if name in stored}, indent=1) + "\n"
            )


if __name__ == "__main__":
    main()
