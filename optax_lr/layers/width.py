"""From a small model to a wide one: labels by what grows, multipliers of the rate, and the scale of the start."""

import math
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp

from .. import checks
from ..types import Label, PyTree, ScalarLike
from .growth import Growth, Reading, Shape, growth_as, in_words, is_table, readings_of
from .labels import INTEGERS, Labeler, Leaves, is_integers, is_masked, leaves_by_path
from .layouts import VECTOR, checked_layouts
from .multipliers import MultiplierRule
from .patterns import compiled_patterns, first_matches

OPTIMIZERS = ("adam", "lion", "sgd", "muon")
_ROLES = ("input", "output", "tied")
# By how much the inputs of Muon's weights may outgrow the outputs, or the reverse.
_ALIKE = Fraction(5, 4)


def label_by_width(base_params: PyTree, overrides: Mapping[str, str] | None = None) -> Labeler:
    """Label each parameter by how it has grown since a base model: which fan, and by what factor.

    The labels are "input out x4" (only the outputs grow), "hidden in x4 out x4", "output in x4" (only the inputs
    grow), "vector out x4" (a bias or a scale), "tied out x4" and "fixed" (nothing grows). Which axes are inputs
    is read off names, biases and shapes, as in `label_by_fan_in`; layers stacked along a first axis are seen, and
    experts in each of them. Two things cannot be seen: a transposed convolution with Flax's `transpose_kernel` and
    no bias has its outputs before its inputs, and a kernel over a width joined to inputs of a fixed size should be
    two arrays. An array of one axis is a bias or a scale by its name; under any other it may be a readout, too.

    Args:
      base_params: the parameters of the small model, or their shapes from `jax.eval_shape`: the same tree, with
        smaller axes.
      overrides: from regular expressions for whole paths to what shapes cannot tell; the first that matches wins.
        A word for each axis ("in", "out", "stack"); "vector"; "input" for a table that is looked up; "output"
        for what is read out; "tied" for a table that is both.

    Returns:
      A `Labeler`. `describe_labels(params, labeler)` shows what it found.

    Raises:
      ValueError: a pattern does not compile or a reading has another word; on `resolve`, the trees differ, an
        axis shrinks or none grows, or a parameter may be read in two ways: the message names both.

    >>> base = {"w1": {"kernel": jnp.ones((8, 64))}, "w2": {"kernel": jnp.ones((64, 64)), "bias": jnp.ones(64)}}
    >>> wide = {"w1": {"kernel": jnp.ones((8, 256))}, "w2": {"kernel": jnp.ones((256, 256)), "bias": jnp.ones(256)}}
    >>> label_by_width(base).resolve(wide)["w2"]
    {'bias': 'vector out x4', 'kernel': 'hidden in x4 out x4'}

    Source: the classes of weights of Yang et al. 2022 (arXiv:2203.03466), Table 3.
    """
    base = {path: leaf for path, leaf in leaves_by_path(base_params)[0] if not is_masked(leaf)}
    before = {path: jnp.shape(leaf) for path, leaf in base.items()}
    given = _checked_overrides(overrides or {})
    patterns = compiled_patterns("overrides", given) if given else []
    readings = list(given.values())

    def label_leaves(leaves: Leaves) -> list[Any]:
        seen = [(path, leaf) for path, leaf in leaves if not is_masked(leaf)]
        whole = len(seen) == len(leaves)
        shapes = {path: jnp.shape(leaf) for path, leaf in seen}
        _check_trees(before, shapes, whole)
        matches = (
            first_matches("overrides", patterns, leaves, complete=False) if given else [None] * len(leaves)
        )
        found: list[Any] = []
        for (path, leaf), match in zip(leaves, matches, strict=True):
            if is_masked(leaf) or is_integers(leaf):
                found.append(leaf if is_masked(leaf) else INTEGERS)
            elif match:
                found.append(_overridden(path, readings[match[0]], before[path], shapes[path]).label)
            else:
                found.append(_read(path, before, shapes).label)
        if whole:
            _check_tied(
                [(path, match) for (path, _), match in zip(leaves, matches, strict=True)],
                found,
                before,
                shapes,
            )
        return found

    shown = f", {dict(overrides)!r}" if overrides else ""
    return Labeler(label_leaves, f"label_by_width(<{len(base)} base shapes>{shown})")


def width_multipliers(optimizer: str = "adam") -> MultiplierRule:
    """Multipliers that keep the rate of the base model the best one at another width.

    With `in` and `out` the factors by which fan-in and fan-out have grown:

        adam, lion   1 / in               1 for input and vector, 1 / in for hidden and output
        sgd          out / in             out for input and vector, 1 for hidden, 1 / in for output
        muon         1                    for hidden; as Adam for all others

    They hold for a start as `rescale_init` makes it. Muon's own factor, sqrt(max(1, fan_out / fan_in)), does the
    rest for hidden weights whose inputs and outputs grow alike.

    Two changes belong into the model itself. Attention divides its logits by the size of a head, times a constant,
    in place of its square root: multiply the queries by sqrt(base size) / sqrt(size). And where a table of
    embeddings is read out as well ("tied"), divide the logits of the model by the factor of its width.

    Weight decay should not change with the width. Decoupled decay goes after the multipliers:
    `chain(scale_by_adam(), scale_by_label(...), add_decayed_weights(d), scale_by_learning_rate(rate))`. Decay that
    is coupled with SGD goes between them and the momentum:
    `chain(scale_by_label(...), add_decayed_weights(d), trace(0.9), scale_by_learning_rate(rate))`. Decay that is
    coupled with Adam does not carry over, since the gradients beside it change with the width. Gradients fall as
    the width grows, so Adam's `eps` must stay far below them.

    Args:
      optimizer: "adam" (for any that divides by the size of gradients), "lion", "sgd" (with or without
        momentum) or "muon": hidden weights by Muon, all others by Adam, as `optax.contrib.muon` does when its
        `muon_weight_dimension_numbers` name the hidden weights. Leave out its
        `consistent_rms`, which grows with the width.

    Returns:
      A `MultiplierRule` for the labels of `label_by_width`.

    Raises:
      ValueError: `optimizer` is none of these; when the rule is used, a label is none of `label_by_width`, or the
        inputs and outputs of Muon's weights grow by factors that differ by over a quarter.

    >>> width_multipliers("adam").resolve({"a": "input out x4", "b": "hidden in x4 out x4"})
    {'input out x4': 1.0, 'hidden in x4 out x4': 0.25}
    >>> width_multipliers("sgd").resolve({"a": "input out x4", "b": "hidden in x4 out x4"})
    {'input out x4': 4.0, 'hidden in x4 out x4': 1.0}

    Source: Yang et al. 2022 (arXiv:2203.03466), Table 3; a tied table as in Table 8. Muon: an update of spectral
    norm sqrt(out / in), the spectral condition of Yang, Simon & Bernstein 2023 (arXiv:2310.17813).
    """
    kind = checks.choice("optimizer", optimizer, OPTIMIZERS)

    def multiplier(growth: Growth) -> float:
        if growth.role == "fixed":
            return 1.0
        if kind == "sgd":
            return float(growth.fan_out / growth.fan_in)
        if kind == "muon" and growth.role == "hidden":
            if not 1 / _ALIKE <= growth.fan_out / growth.fan_in <= _ALIKE:
                raise ValueError(
                    "width_multipliers('muon') needs hidden weights whose inputs and outputs grow alike, got "
                    f"{growth.label!r}: Muon scales by the shape, too, so give their multipliers by hand."
                )
            return 1.0
        return float(1 / growth.fan_in)

    def of_labels(labels: list[Label]) -> dict[Label, ScalarLike]:
        return {label: multiplier(Growth.of_label(label)) for label in labels}

    return MultiplierRule(of_labels, f"width_multipliers({kind!r})")


def rescale_init(params: PyTree, base_params: PyTree, overrides: Mapping[str, str] | None = None) -> PyTree:
    """The start of a wide model, scaled so that its rate is that of the base model.

    Each array that grows gets the root mean square that it has in the base model, times

        sqrt(1 / in) * min(1, sqrt(out / in))

    with the factors by which fan-in and fan-out have grown: 1 for input and vector, sqrt(1 / in) for hidden and
    1 / in for output. So it does not matter by which law the initializers follow the width. Zeros stay zeros,
    and an array that has not grown stays as it is. It works under `jit` and `vmap`.

    Args:
      params: the freshly drawn parameters of the wide model.
      base_params: those of the base model, drawn by the same initializers: arrays, not shapes.
      overrides: as for `label_by_width`.

    Returns:
      `params` with each array scaled; integers and masked parts as they were.

    Raises:
      ValueError: what `label_by_width` refuses, or `base_params` holds shapes.

    >>> base, wide = {"w": {"kernel": jnp.ones((64, 10))}}, {"w": {"kernel": jnp.ones((256, 10))}}
    >>> float(rescale_init(wide, base)["w"]["kernel"][0, 0])
    0.25

    Source: Yang et al. 2022 (arXiv:2203.03466), Table 3; for unlike factors Yang, Simon & Bernstein 2023
    (arXiv:2310.17813), its spectral parametrization.
    """
    base = dict(leaves_by_path(base_params)[0])
    abstract = [path for path, leaf in base.items() if isinstance(leaf, jax.ShapeDtypeStruct)]
    if abstract:
        raise ValueError(
            f"rescale_init needs the arrays of the base model, got only the shape of {checks.listed(abstract)}."
        )
    leaves, treedef = leaves_by_path(params)
    labels = label_by_width(base_params, overrides).label_leaves(leaves)
    scaled = [
        leaf if is_masked(leaf) or label == INTEGERS else _scaled(leaf, base[path], Growth.of_label(label))
        for (path, leaf), label in zip(leaves, labels, strict=True)
    ]
    return jax.tree.unflatten(treedef, scaled)


def _scaled(leaf: Any, base: Any, growth: Growth) -> Any:
    array = jnp.asarray(leaf)
    law = float(1 / growth.fan_in) ** 0.5 * min(1.0, float(growth.fan_out / growth.fan_in) ** 0.5)
    if growth.role == "fixed" or not array.size:
        return leaf
    now, then = (jnp.sqrt(jnp.mean(jnp.square(jnp.abs(each).astype(jnp.float32)))) for each in (array, base))
    factor = jnp.where(now > 0, law * then / jnp.where(now > 0, now, 1.0), 1.0)
    wide = array.astype(jnp.float32) if jnp.finfo(array.dtype).bits < 32 else array
    return (wide * factor.astype(wide.dtype)).astype(array.dtype)


def _checked_overrides(overrides: Mapping[str, str]) -> dict[str, str | Reading]:
    """Roles as they are, layouts in words as tuples."""
    checked: dict[str, str | Reading] = {}
    for pattern, words in overrides.items():
        if words in _ROLES:
            checked[pattern] = words
            continue
        try:
            checked.update(checked_layouts({pattern: words}))
        except (ValueError, AttributeError) as error:
            raise ValueError(
                f"overrides[{pattern!r}] must be one of 'vector', {', '.join(map(repr, _ROLES))}, or a word for "
                f"each axis (in, out, stack), with an in and an out, got {words!r}."
            ) from error
    return checked


def _overridden(path: str, reading: str | Reading, before: Shape, shape: Shape) -> Growth:
    if isinstance(reading, str):
        whole = growth_as(VECTOR, before, shape, reading)
        return Growth("output", whole.fan_out, Fraction(1)) if whole.role == "output" else whole
    if reading == VECTOR:
        return growth_as(reading, before, shape)
    if len(reading) != len(shape):
        raise ValueError(
            f"overrides must have a word for each axis of {path!r}, which has the shape {shape}, got "
            f"{' '.join(reading)!r}."
        )
    if any(word == "stack" and size != old for word, size, old in zip(reading, shape, before, strict=True)):
        raise ValueError(
            f"overrides says that layers are stacked in {path!r}, but their number grows: {before} to {shape}."
        )
    return growth_as(reading, before, shape)


def _read(path: str, before: dict[str, Shape], shapes: dict[str, Shape]) -> Growth:
    if before[path] == shapes[path]:
        return growth_as(VECTOR, before[path], shapes[path])
    found = readings_of(path, before, shapes)
    if len(found) == 1:
        return next(iter(found))
    grown = f"{path!r} grows from {before[path]} to {shapes[path]}"
    if not found:
        raise ValueError(
            f"{grown}, in an axis that no width should change, or its layout is unknown: say which axes are summed "
            f"over, as in overrides={{{path!r}: 'in out'}}, or 'vector' if none is."
        )
    both = " or as ".join(f"{in_words(reading)!r} ({growth.label})" for growth, reading in found.items())
    raise ValueError(f"{grown}, which may be read as {both}: say which in overrides={{{path!r}: ...}}.")


def _check_trees(before: dict[str, Shape], shapes: dict[str, Shape], whole: bool) -> None:
    new = [path for path in shapes if path not in before]
    gone = [path for path in before if path not in shapes] if whole else []
    if new or gone:
        where, paths = ("the base model lacks", new) if new else ("only the base model has", gone)
        raise ValueError(
            f"label_by_width needs two models with the same tree: {where} {checks.listed(paths)}."
        )
    axes = [path for path in shapes if len(shapes[path]) != len(before[path])]
    if axes:
        path = axes[0]
        raise ValueError(
            f"label_by_width needs the same number of axes in both models, got {before[path]} and {shapes[path]} "
            f"for {path!r}."
        )
    pairs = {path: list(zip(before[path], shapes[path], strict=True)) for path in shapes}
    shrunk = [path for path in shapes if any(new < old for old, new in pairs[path])]
    grown = [path for path in shapes if any(new > old for old, new in pairs[path])]
    if shrunk:
        path = shrunk[0]
        shown = f"{path!r} is {before[path]} there and {shapes[path]} here"
        if grown:
            raise ValueError(f"label_by_width needs axes that grow or stay, but one shrinks: {shown}.")
        raise ValueError(f"label_by_width needs a base model that is smaller, got a larger one: {shown}.")
    deeper = [path for path in grown if _is_deeper(pairs[path])]
    if whole and grown and deeper == grown and any(len(pairs[path]) > 2 for path in deeper):
        path = max(deeper, key=lambda path: len(pairs[path]))
        raise ValueError(
            "label_by_width needs a width that grows, but only first axes do, as the number of stacked layers: "
            f"{path!r} is {before[path]} there and {shapes[path]} here."
        )
    if whole and not grown:
        raise ValueError(
            "label_by_width needs an axis that grows, got two models of the same shapes: at the base width every "
            "multiplier is 1, so leave them out."
        )


def _is_deeper(pairs: list[tuple[int, int]]) -> bool:
    """Whether the first axis of several grows, and no other."""
    return len(pairs) > 1 and [new > old for old, new in pairs] == [True] + [False] * (len(pairs) - 1)


def _check_tied(
    matches: list[tuple[str, Any]], found: list[Any], before: dict[str, Shape], shapes: dict[str, Shape]
) -> None:
    """Refuse a table of embeddings that may be read out: the model has no other output."""
    names = [re.sub(r"\d+", "#", path) for path, _ in matches]
    outputs = []
    for (path, _), label, name in zip(matches, found, names, strict=True):
        if label.startswith("tied"):
            return
        if label.startswith("output"):
            still = [new for old, new in zip(before[path], shapes[path], strict=True) if old == new]
            # Routers, low ranks and keys of few heads stand in each layer, or in an array of stacked ones.
            inner = names.count(name) > 1 or len(shapes[path]) == 3 or name.endswith("lora_a")
            outputs.append((max(still, default=1), inner))
    for (path, match), label in zip(matches, found, strict=True):
        if match is None and label.startswith("input") and is_table(path, shapes[path]):
            rows = math.prod(shapes[path][:-1])
            if all(inner and size < rows for size, inner in outputs):
                raise ValueError(
                    f"{path!r} is a table of embeddings in a model without an output, which may be read as 'input' "
                    f"(only looked up) or as 'tied' (read out, too): say which in overrides={{{path!r}: ...}}."
                )
