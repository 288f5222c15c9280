"""A labeling in print: what has which label, and how much of the model that is."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from ..types import Label, Labels, PyTree
from .labels import INTEGERS, Labeler, is_masked, label_tree, labels_of, leaves_by_path, ordered
from .multipliers import Multipliers, multiplier_table


def describe_labels(params: PyTree, labels: Labeler | Labels, multipliers: Multipliers | None = None) -> str:
    """A table of a labeling: for each label its multiplier, leaves, parameters and share, and one path.

    An array of stacked layers counts as one leaf for each of its labels.

    Args:
      params: the tree of parameters.
      labels: a `Labeler` or a tree of labels.
      multipliers: from labels to numbers or schedules, of which the value at step 0 is shown; or a rule such as
        `layer_decay(0.75)`.

    Returns:
      The table as text, a line for each label: integers first and in order, then strings as they appear.

    Raises:
      ValueError: the labels do not fit the parameters, or the multipliers the labels.

    >>> from optax_lr import label_by_path
    >>> params = {"body": jnp.ones((3, 2)), "head": jnp.ones((2, 1))}
    >>> print(describe_labels(params, label_by_path({"body": 0, "head": 1}), {0: 0.1, 1: 1.0}))
    label  multiplier  leaves  parameters  share  for example
        0         0.1       1           6  75.0%  body
        1           1       1           2  25.0%  head
    """
    tree, known = label_tree(labels, params)
    table = {} if multipliers is None else multiplier_table(multipliers, tree, known)
    groups: dict[Label, list[tuple[str, int]]] = {label: [] for label in ordered(jax.tree.leaves(tree))}
    visible = [(path, leaf) for path, leaf in leaves_by_path(params)[0] if not is_masked(leaf)]
    for label, (path, leaf) in zip(jax.tree.leaves(tree), visible, strict=True):
        size = math.prod(jnp.shape(leaf))
        names = labels_of(label)
        if label == INTEGERS:
            groups.setdefault(INTEGERS, []).append((path, size))
        for name in dict.fromkeys(names):
            groups[name].append((path, size * names.count(name) // len(names)))
    total = sum(size for members in groups.values() for _, size in members)
    rows = [["label", "multiplier", "leaves", "parameters", "share", "for example"]]
    for label, members in groups.items():
        count = sum(size for _, size in members)
        share = f"{count / total:.1%}" if total else "-"
        shown = "-" if label == INTEGERS else _multiplier(table.get(label, 1.0))
        rows.append([str(label), shown, str(len(members)), str(count), share, members[0][0]])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False)] + row[-1:])
        for row in rows
    )


def _multiplier(multiplier: Any) -> str:
    """A number, or the first and the last of an array, as text."""
    value = jnp.asarray(multiplier(0) if callable(multiplier) else multiplier)
    return f"{float(value):g}" if value.ndim == 0 else f"{float(value[0]):g} to {float(value[-1]):g}"
