"""How a parameter grows between two widths: which of its axes grow, and whether they are summed over.

A reading is a layout, as in `layouts`, with two words more: "window" for the axes of a convolution's window, and
"row" for the rows of a table of embeddings. These and "stack" have the same size at every width.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction

from ..types import Label
from .layouts import VECTOR, is_attention, known_layout

Shape = tuple[int, ...]
Reading = tuple[str, ...]

_FIXED_AXES = {"window", "row", "stack"}
_TABLES = {"embedding", "embeddings"}
_KERNELS = {"kernel", "w"}
_BIASES = {"kernel": "bias", "w": "b", "weight": "bias"}
# What layers call an array of one axis that they add or multiply by, and sum over no axis of.
_VECTOR_NAME = re.compile(r"b\d*|weight|gamma|beta|mean|var|.*(bias|scale|offset|embedding).*")
_LABEL = re.compile(r"(fixed|vector|input|hidden|output|tied)(?: in x([\d/]+))?(?: out x([\d/]+))?")


@dataclasses.dataclass(frozen=True)
class Growth:
    """What a label of `label_by_width` says.

    Attributes:
      role: "fixed", "vector", "input", "hidden", "output" or "tied".
      fan_in, fan_out: by what factor the inputs and the outputs have grown; 1 where they have not.
    """

    role: str
    fan_in: Fraction
    fan_out: Fraction

    @property
    def label(self) -> str:
        """The growth in words, as in "hidden in x4 out x4"."""
        factors = (("in", self.fan_in), ("out", self.fan_out))
        return " ".join([self.role, *(f"{word} x{factor}" for word, factor in factors if factor != 1)])

    @classmethod
    def of_label(cls, label: Label) -> "Growth":
        """The growth that a label has in words.

        Raises:
          ValueError: the label is none of `label_by_width`.
        """
        match = _LABEL.fullmatch(label) if isinstance(label, str) else None
        if not match:
            raise ValueError(
                f"width_multipliers needs the labels of label_by_width(), as 'hidden in x4 out x4', got {label!r}."
            )
        return cls(match[1], Fraction(match[2] or 1), Fraction(match[3] or 1))


def growth_as(reading: Reading, base: Shape, shape: Shape, vector: str = "vector") -> Growth:
    """How a shape has grown, if its axes are what a reading says; `vector` is the role of what no layer sums."""

    def factor(*words: str) -> Fraction:
        found = Fraction(1)
        for size, before, word in zip(shape, base, _spread(reading, len(base)), strict=True):
            if word in words and before:
                found *= Fraction(size, before)
        return found

    fan_in, fan_out = factor("in", "window"), factor("out", "vector")
    if fan_in > 1:
        role = "hidden" if fan_out > 1 else "output"
    elif fan_out > 1:
        role = vector if reading == VECTOR else "input"
    else:
        role = "fixed"
    return Growth(role, fan_in, fan_out)


def readings_of(path: str, base: Mapping[str, Shape], shapes: Mapping[str, Shape]) -> dict[Growth, Reading]:
    """Each way in which a parameter may have grown, and a reading of its axes that says so.

    Readings fit both shapes, and in none a stack, a window or the rows of a table grow. Those in which two axes
    of one kind grow count only if there is no other, and if the first axis is no stack that may have grown.
    """
    here, later = base[path], shapes[path]
    larger = [size != before for size, before in zip(later, here, strict=True)]
    if any(larger[:-1]) and _is_alone(path, base):
        return {}  # Named as a vector, it may be a kernel all the same, or stacked layers that grow in number.
    bias = _bias_of(path)
    # A bias that is masked out tells its layer by the base model alone.
    allowed = _readings(path, base) if bias in base and bias not in shapes else _readings(path, shapes)
    read = [reading for reading in _readings(path, base) if reading in allowed]
    fitting = [
        reading
        for reading in read
        if not any(
            grown and word in _FIXED_AXES
            for grown, word in zip(larger, _spread(reading, len(here)), strict=True)
        )
    ]

    def single(reading: Reading) -> bool:
        grown = [word for grown, word in zip(larger, _spread(reading, len(here)), strict=True) if grown]
        return reading == VECTOR or len(set(grown)) == len(grown)

    # A kernel of four axes or more whose first ones stay is a convolution's, even if it fits a dense layer, too.
    windows = [reading for reading in fitting if reading[:2] == ("window", "window")]
    clear = windows or list(filter(single, fitting))
    if not clear and any("stack" in reading for reading in read if reading not in fitting):
        return {}
    found: dict[Growth, Reading] = {}
    for reading in clear or fitting:
        found.setdefault(growth_as(reading, here, later), reading)
    return found


def is_table(path: str, shape: Shape) -> bool:
    """Whether a parameter is a table of embeddings, by its name."""
    return path.split("/")[-1] in _TABLES and len(shape) > 1


def _is_vector(path: str) -> bool:
    """Whether an array of one axis is no readout, by its name or that of its layer."""
    *layers, name = path.lower().split("/")
    return bool(_VECTOR_NAME.fullmatch(name)) or any("norm" in layer for layer in layers)


def _is_alone(path: str, shapes: Mapping[str, Shape]) -> bool:
    """Whether an array of several axes is a vector by its name alone, and no kernel stands beside it."""
    *above, name = path.split("/")
    beside = ("/".join([*above, kernel]) for kernel, bias in _BIASES.items() if bias == name)
    several = len(shapes[path]) > 1 and not is_table(path, shapes[path])
    return several and known_layout(path, shapes) == VECTOR and not any(each in shapes for each in beside)


def in_words(reading: Reading) -> str:
    """A reading as `overrides` takes it."""
    if "row" in reading:
        return "vector"
    if reading == ("in",):
        return "output"
    return " ".join("in" if word == "window" else word for word in reading)


def _spread(reading: Sequence[str], axes: int) -> Sequence[str]:
    """A word for each axis, of "vector" too."""
    return ("vector",) * axes if tuple(reading) == VECTOR else reading


def _bias_of(path: str) -> str:
    *above, name = path.split("/")
    return "/".join([*above, _BIASES.get(name, "")])


def _readings(path: str, shapes: Mapping[str, Shape], stackable: bool = True) -> list[Reading]:
    """The readings that a name, a shape and a bias allow; without a bias, one axis of stacked layers at most."""
    shape, name = shapes[path], path.split("/")[-1]
    if is_table(path, shape):
        return [("row",) * (len(shape) - 1) + ("out",)]
    known = known_layout(path, shapes)
    if known == VECTOR:
        unlike = shapes.get(_bias_of(path), shape) != shape
        plain = len(shape) == 1 and (unlike or not _is_vector(path))
        return [VECTOR, ("in",)] if plain else [VECTOR]
    bias_path = _bias_of(path)
    bias = shapes.get(bias_path)
    if known is None:
        found = _without_bias(name, len(shape)) if bias is None else []
    else:
        found = _general(path, len(shape)) if bias is None and len(shape) > 3 else [known]
    if len(shape) > 2 and (stackable if bias is None else len(bias) > 1 and bias[0] == shape[0]):
        one_layer = {path: shape[1:]} if bias is None else {path: shape[1:], bias_path: bias[1:]}
        inner = _readings(path, one_layer, stackable=False)
        found += [("stack", *_spread(reading, len(shape) - 1)) for reading in inner if reading != VECTOR]
    return found


def _general(path: str, axes: int) -> list[Reading]:
    """The readings of a kernel with four axes or more and no bias: a convolution, or a dense layer of many axes."""
    if is_attention(path):
        return []  # stacked layers
    dense = [("in",) * inputs + ("out",) * (axes - inputs) for inputs in range(1, axes)]
    return [("window",) * (axes - 2) + ("in", "out"), *dense]


def _without_bias(name: str, axes: int) -> list[Reading]:
    """The readings of an array whose layer no bias tells."""
    if name in _KERNELS:
        return [("window", "in", "out"), ("in", "out", "out"), ("in", "in", "out")]
    window = ("window",) * (axes - 2)
    if name == "weight":
        return [("out", "in", *window)] + ([("row", "out")] if axes == 2 else [])
    return [
        ("in",) * (axes - 1) + ("out",),
        ("out",) + ("in",) * (axes - 1),
        ("row",) * (axes - 1) + ("out",),
    ]
