"""The public surface as a stranger depends on it: every name and its signature, as `surface.txt` has them.

`python tests/test_surface.py` writes the file anew, for a change that is meant.
"""

import inspect
import pathlib
import re

import optax_lr as olr

DECLARED = pathlib.Path(__file__).with_name("surface.txt")
PLACES = {
    "olr": olr,
    "olr.suggest": olr.suggest,
    "olr.curves": olr.curves,
    "olr.nnx": olr.nnx,
    "olr.plots": olr.plots,
}


def signature_of(value):
    """The names, kinds and defaults of a callable's parameters; annotations are for type checkers."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    # A function's address changes from run to run.
    return re.sub(r"<function (\w+) at 0x[0-9a-f]+>", r"\1", str(inspect.Signature(bare)))


def surface():
    lines = []
    for place, module in PLACES.items():
        for name in sorted(getattr(module, "__all__", None) or (n for n in vars(module) if n[0] != "_")):
            value = getattr(module, name)
            if inspect.isroutine(value) or inspect.isclass(value):
                lines.append(f"{place}.{name}{signature_of(value)}")
            elif place == "olr":
                lines.append(f"{place}.{name}")
    return lines


def test_names_and_signatures_are_as_declared(unhooked):
    assert unhooked.__all__ == olr.__all__
    assert surface() == DECLARED.read_text().splitlines()


if __name__ == "__main__":
    DECLARED.write_text("\n".join(surface()) + "\n")
