"""Which axes of a parameter a layer sums over: its layout, by the names and shapes of known layers.

A layout is a word for each axis: "in" is summed over, "out" is not, "stack" counts layers stacked in one array.
The word "vector" alone says that nothing is summed over, as in a bias, a scale or a table of embeddings.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from .. import checks
from .labels import Leaves, is_integers, is_masked
from .patterns import compiled_patterns, first_match

VECTOR = ("vector",)
_WORDS = {"in", "out", "stack"}
# The arrays of Flax, Haiku and Equinox that no layer sums over, whatever their shape.
_VECTORS = {"bias", "b", "scale", "offset", "embedding", "embeddings"}
_OUTPUTS_LAST = {"kernel": "bias", "w": "b", "lora_a": "", "lora_b": ""}
_RECURRENT = {"weight_ih", "weight_hh"}  # of Equinox's cells, outputs first
_HEADS = {"query": ("in", "out", "out"), "key": ("in", "out", "out"), "value": ("in", "out", "out")}
_ATTENTION = {**_HEADS, "out": ("in", "in", "out")}


def checked_layouts(layouts: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Layouts in words as tuples.

    Raises:
      ValueError: one has another word, or nothing is in and nothing is out.
    """
    split = {pattern: tuple(words.split()) for pattern, words in layouts.items()}
    for pattern, words in split.items():
        if words != VECTOR and not (set(words) <= _WORDS and "in" in words and "out" in words):
            raise ValueError(
                f"layouts[{pattern!r}] must be 'vector', or a word for each axis (in, out, stack), with an in "
                f"and an out, got {layouts[pattern]!r}."
            )
    return split


def layouts_of(leaves: Leaves, layouts: Mapping[str, tuple[str, ...]]) -> list[tuple[str, ...] | None]:
    """The layout of every array: that of the first pattern, else that of a known layer; None if masked out.

    Raises:
      ValueError: an array has a layout of another number of axes, or none is known for it.
    """
    patterns = compiled_patterns("layouts", layouts) if layouts else []
    named = list(layouts.values())
    shapes = {path: jnp.shape(leaf) for path, leaf in leaves if not is_masked(leaf)}
    found: list[tuple[str, ...] | None] = []
    unknown = []
    for path, leaf in leaves:
        match = first_match(patterns, path)
        if is_masked(leaf):
            found.append(None)
        elif match:
            found.append(_fitting(patterns[match[0]].pattern, named[match[0]], path, shapes[path]))
        else:
            layout = VECTOR if is_integers(leaf) else known_layout(path, shapes)
            found.append(layout)
            if layout is None:
                unknown.append(f"{path} {shapes[path]}")
    if unknown:
        raise ValueError(
            f"No layout is known for {checks.listed(unknown)}: say which axes are summed over, as in "
            f"layouts={{{unknown[0].split(' ')[0]!r}: 'in out'}}, or 'vector' if none is."
        )
    return found


def size_of_axes(word: str, layout: Sequence[str], shape: tuple[int, ...]) -> int:
    """The product of the sizes of the axes with a word: of "in", the fan-in; of "out", the fan-out."""
    return math.prod(size for one, size in zip(layout, shape, strict=True) if one == word)


def _fitting(pattern: str, layout: tuple[str, ...], path: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    if layout != VECTOR and len(layout) != len(shape):
        raise ValueError(
            f"layouts[{pattern!r}] must have a word for each axis of {path!r}, which has the shape {shape}, got "
            f"{' '.join(layout)!r}."
        )
    return layout


def known_layout(path: str, shapes: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The layout of an array of a layer of Flax, Haiku or Equinox; None if its name and shape do not tell."""
    shape, (*above, name) = shapes[path], path.split("/")
    if len(shape) < 2 or name in _VECTORS:
        return VECTOR
    if name in _RECURRENT:
        return ("out", "in") if len(shape) == 2 else None
    if name == "weight":
        return _outputs_first(shape, shapes.get("/".join([*above, "bias"])))
    if name not in _OUTPUTS_LAST:
        return None
    bias = shapes.get("/".join([*above, _OUTPUTS_LAST[name]]))
    if bias is not None:
        outputs = len(bias)
        fits = 0 < outputs < len(shape) and shape[-outputs:] == bias
        return ("in",) * (len(shape) - outputs) + ("out",) * outputs if fits else None
    if len(shape) == 3:
        # A convolution over one axis and a kernel for several heads look alike.
        return _ATTENTION[above[-1]] if is_attention(path) else None
    return ("in",) * (len(shape) - 1) + ("out",)


def is_attention(path: str) -> bool:
    """Whether a kernel is one of Flax's attention, by the name of its layer."""
    return any(layer in _ATTENTION for layer in path.split("/")[-2:-1])


def _outputs_first(shape: tuple[int, ...], bias: tuple[int, ...] | None) -> tuple[str, ...] | None:
    """Equinox's layout, as PyTorch's; without a bias, a table of embeddings looks the same."""
    if bias is None:
        return None
    if bias == shape:
        return VECTOR  # a norm over several axes
    fits = bias[0] == shape[0] and all(size == 1 for size in bias[1:])
    return ("out",) + ("in",) * (len(shape) - 1) if fits else None
