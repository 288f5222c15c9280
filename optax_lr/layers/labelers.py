"""Rules that label parameters: by path or by fan-in. By depth: see `depths`."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from ..types import Label
from .labels import INTEGERS, Labeler, Leaves, check_label, is_integers, is_masked
from .layouts import VECTOR, checked_layouts, layouts_of, size_of_axes
from .patterns import compiled_patterns, first_match, first_matches


def label_by_path(rules: Mapping[str, Label], *, default: Label | None = None) -> Labeler:
    """Label each parameter by the first rule that its whole path matches.

    Arrays of integers, such as a counter beside the parameters, need no rule. A variable that a Flax module holds
    in two places (a tied table) has one path, the first of them, and one label; two leaves of a plain tree are two
    parameters, tied or not.

    Args:
      rules: from regular expressions to labels, strings or integers; the first that matches wins.
      default: the label of parameters that no rule matches; without it, they are an error.

    Returns:
      A `Labeler`.

    Raises:
      ValueError: there is no rule, a pattern does not compile or a label is neither a string nor an
        integer; on `resolve`, a parameter matches no rule and there is no default, or a rule is the first
        match of none.

    >>> params = {"backbone": {"kernel": jnp.ones((3, 2))}, "head": {"kernel": jnp.ones((2, 1))}}
    >>> label_by_path({"head/.*": "new", ".*": "old"}).resolve(params)
    {'backbone': {'kernel': 'old'}, 'head': {'kernel': 'new'}}

    Source: the rules of big_vision's optimizer (github.com/google-research/big_vision): full match, the
    first wins.
    """
    patterns = compiled_patterns("rules", rules)
    for name, label in [(f"rules[{pattern!r}]", label) for pattern, label in rules.items()]:
        check_label(name, label)
    if default is not None:
        check_label("default", default)
    labels = list(rules.values())

    def label_path(path: str) -> Label | None:
        match = first_match(patterns, path)
        return labels[match[0]] if match else default

    def unmatched(leaf: Any) -> Any:
        if is_masked(leaf):
            return leaf
        return INTEGERS if is_integers(leaf) else default

    def label_leaves(leaves: Leaves) -> list[Any]:
        matches = first_matches("rules", patterns, leaves, complete=default is None)
        return [
            labels[match[0]] if match else unmatched(leaf)
            for match, (_, leaf) in zip(matches, leaves, strict=True)
        ]

    every = [*labels, *([] if default is None else [default])]
    described = f"label_by_path({dict(rules)!r}" + ("" if default is None else f", default={default!r}") + ")"
    return Labeler(label_leaves, described, label_path, tuple(dict.fromkeys(every)))


def label_by_fan_in(layouts: Mapping[str, str] | None = None) -> Labeler:
    """Label each matrix by its fan-in, the number of inputs that are summed into one output; else "vector".

    Known are the layers of Flax and Haiku, whose outputs are the last axes: `kernel` and `w` of dense layers,
    of convolutions and of attention `(in, heads, head_dim)`, told apart by their bias or by the names `query`,
    `key`, `value` and `out`; and those of Equinox, `weight`, whose outputs come first, where they have a bias.
    Biases, scales and tables of embeddings are "vector" whatever their shape. Others need a layout.

    Args:
      layouts: from regular expressions for whole paths to a word for each axis, the first that matches wins:
        "in" is summed over, "out" is not, "stack" counts stacked layers; or "vector" alone.

    Returns:
      A `Labeler` whose labels are integers, and "vector" for what has no fan-in.

    Raises:
      ValueError: a pattern does not compile or a layout has another word; on `resolve`, a layout has another
        number of axes than its parameter, or a parameter has none that is known.

    >>> query = {"kernel": jnp.ones((256, 8, 32)), "bias": jnp.ones((8, 32))}
    >>> label_by_fan_in().resolve({"query": query, "conv": {"kernel": jnp.ones((3, 3, 8, 16))}})
    {'conv': {'kernel': 72}, 'query': {'bias': 'vector', 'kernel': 256}}
    >>> label_by_fan_in({"weight": "out in"}).resolve({"weight": jnp.ones((10, 512))})
    {'weight': 512}

    Source: the fan-in of Yang et al. 2022 (arXiv:2203.03466), Table 3.
    """
    given = checked_layouts(layouts or {})
    if given:
        compiled_patterns("layouts", given)

    def label_leaves(leaves: Leaves) -> list[Any]:
        found = layouts_of(leaves, given)
        return [
            leaf
            if layout is None
            else "vector"
            if layout == VECTOR
            else size_of_axes("in", layout, jnp.shape(leaf))
            for layout, (_, leaf) in zip(found, leaves, strict=True)
        ]

    return Labeler(label_leaves, f"label_by_fan_in({dict(layouts)!r})" if layouts else "label_by_fan_in()")
