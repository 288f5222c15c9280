"""Labels: the name of a group for each parameter, matched to parameters by path.

A parameter's path is its keys joined by "/", as in "encoder/block_3/mlp/kernel"; dictionary keys, indices and
attribute names all serve. A tree of labels made on one kind of tree holds on another kind with the same paths,
and on one that `optax.masked` has thinned out.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import checks
from ..types import Label, Labels, PyTree

Leaves = Sequence[tuple[str, Any]]

INTEGERS = "(integers)"
"""The label of an array of integers that no rule names: nothing trains it, so it needs no multiplier."""


class StackedLabel:
    """The labels of one array that holds several layers, stacked along an axis.

    Attributes:
      labels: a label for each layer, in order.
      axis: the axis of the array along which the layers lie.
    """

    def __init__(self, labels: Sequence[Label], axis: int):
        self.labels, self.axis = tuple(labels), axis

    def __repr__(self) -> str:
        return f"StackedLabel({self.labels!r}, axis={self.axis})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StackedLabel) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.labels, self.axis))

    def along(self, values: Any, shape: tuple[int, ...]) -> Any:
        """One value a layer, so that it broadcasts against an array of some shape.

        Raises:
          ValueError: that has no such axis of layers.
        """
        layers = len(self.labels)
        if not -len(shape) <= self.axis < len(shape) or shape[self.axis] != layers:
            raise ValueError(
                f"An array of shape {shape} has no axis {self.axis} of {layers} stacked layers, as its parameter "
                "has: the optimizer keeps another shape for it, so use unstacked layers with it."
            )
        kept = [1] * len(shape)
        kept[self.axis] = layers
        return (values if isinstance(values, jax.Array) else np.asarray(values)).reshape(kept)


class Labeler:
    """A rule that labels parameters; `resolve` applies it.

    It is no function, because `optax.inject_hyperparams` takes any callable argument for a schedule.

    Attributes:
      label_leaves: from the path and the array of every leaf, in order, to their labels. A leaf that is masked
        out is an `optax.MaskedNode`, which stands for its own label if the rule cannot know that.
      description: what `repr` prints: the call that made the rule.
      label_path: for a rule that looks at one path at a time, from a path to its label, None for none.
      known: every label that `label_path` may give.
    """

    def __init__(
        self,
        label_leaves: Callable[[Leaves], Sequence[Any]],
        description: str,
        label_path: Callable[[str], Label | None] | None = None,
        known: tuple[Label, ...] = (),
    ):
        self.label_leaves, self.description = label_leaves, description
        self.label_path, self.known = label_path, known

    def __repr__(self) -> str:
        return self.description

    def resolve(self, params: PyTree) -> Labels:
        """The tree of labels: the structure of `params`, with a label at every leaf.

        Args:
          params: a tree of parameters, or of anything with their paths and shapes. Parts that `optax.masked`
            has masked out stay masked out.

        Raises:
          ValueError: the rule does not fit the parameters; the message names their paths.
        """
        return label_tree(self, params)[0]


def label_tree(labels: Labeler | Labels, tree: PyTree) -> tuple[Labels, list[Label] | None]:
    """The labels of a tree of parameters or updates, in its structure; and every label that there is.

    What `optax.masked` has masked out of the tree stays so, but its labels are among those that there are.
    These are None if the label of a masked part is unknown.

    Raises:
      ValueError: the labels do not fit the tree.
    """
    leaves, treedef = leaves_by_path(tree)
    if not leaves:  # Optax looks for what a state holds of the parameters by initializing with an empty tree.
        return tree, None
    by_rule = isinstance(labels, Labeler)
    found = labels.label_leaves(leaves) if by_rule else _by_path(labels, leaves)
    visible = [leaf if is_masked(leaf) else label for (_, leaf), label in zip(leaves, found, strict=True)]
    # A ready tree may have been made for more parameters than these.
    every = found if by_rule else jax.tree.leaves(labels, is_leaf=is_masked)
    unknown = by_rule and any(map(is_masked, every))
    return jax.tree.unflatten(treedef, visible), None if unknown else ordered(every)


def leaves_by_path(tree: PyTree) -> tuple[list[tuple[str, Any]], Any]:
    """Every leaf with its path, masked parts counted as leaves; and the structure.

    Raises:
      ValueError: two leaves have one path.
    """
    leaves = [("/".join(keys), leaf) for keys, leaf in leaves_by_keys(tree, is_leaf=is_masked)]
    paths = [path for path, _ in leaves]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(
            f"Two parameters have the path {twice!r}, so labels cannot tell them apart: rename a key of one."
        )
    return leaves, jax.tree.structure(tree, is_leaf=is_masked)


def leaves_by_keys(
    tree: PyTree, is_leaf: Callable[[Any], bool] = lambda node: False
) -> list[tuple[tuple[str, ...], Any]]:
    """Every leaf with its keys as strings, without the field in which Flax's boxes hold an array.

    `nnx.Optimizer` initializes with boxes and updates with arrays; both have the same keys here.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    whole = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: is_leaf(node) or _is_box(node))
    boxes = [
        len(keys) if _is_box(node) else None
        for keys, node in whole
        for _ in (jax.tree.leaves(node, is_leaf=is_leaf) if _is_box(node) else [node])
    ]
    return [
        (tuple(_shown(key) for index, key in enumerate(keys) if index != box), leaf)
        for (keys, leaf), box in zip(leaves, boxes, strict=True)
    ]


def check_known(name: str, given: Iterable[Any], known: list[Label] | None) -> None:
    """Refuse labels in an argument that no parameter has.

    Raises:
      ValueError: one of `given` is not among the known labels; the message has the closest of them.
    """
    for label in given:
        if known is not None and label not in known:
            raise ValueError(
                f"{name} has {label!r}, a label of no parameter: {checks.close_match(label, known)}"
            )


def check_mapping(name: str, given: Any, *, or_else: str = "") -> None:
    """Refuse what is no mapping from labels, such as labels in its place.

    Raises:
      ValueError: `given` is none.
    """
    if not isinstance(given, Mapping):
        raise ValueError(
            f"{name} must be a mapping from labels{or_else}, got {given!r}; labels come after it."
        )


def check_label(name: str, label: Any) -> None:
    """Refuse what is no label.

    Raises:
      ValueError: `label` is neither a string nor an integer.
    """
    if isinstance(label, bool) or not isinstance(label, str | int):
        raise ValueError(f"{name} must be a string or an integer, got {label!r}.")


def by_name(argument: str, values: dict[Label, Any]) -> dict[str, Any]:
    """A mapping from labels with the labels as strings, which a checkpoint can hold.

    Raises:
      ValueError: two labels are the same string, as 1 and "1" are.
    """
    named = {str(label): value for label, value in values.items()}
    if len(named) < len(values):
        raise ValueError(f"{argument} must have each label under another name, got {list(values)}.")
    return named


def is_masked(node: Any) -> bool:
    """Whether `optax.masked` has put this in the place of a part of a tree."""
    return isinstance(node, optax.MaskedNode)


def labels_of(label: Label | StackedLabel) -> tuple[Label, ...]:
    """The labels at one leaf: several if layers are stacked in it, none if nothing trains it."""
    if isinstance(label, StackedLabel):
        return label.labels
    return () if label == INTEGERS else (label,)


def ordered(labels: Iterable[Any]) -> list[Label]:
    """Each label once: integers in order, then strings as they appear."""
    every = (one for label in labels if not is_masked(label) for one in labels_of(label))
    once = list(dict.fromkeys(every))
    return sorted(label for label in once if not isinstance(label, str)) + [
        label for label in once if isinstance(label, str)
    ]


def is_integers(leaf: Any) -> bool:
    """Whether a leaf is an array of integers or booleans, such as a counter beside the parameters."""
    return hasattr(leaf, "dtype") and not jnp.issubdtype(leaf.dtype, jnp.inexact)


def _is_box(node: Any) -> bool:
    """Whether a node is a variable of Flax, or another box of Flax with one array in a field `value`."""
    names = {(kind.__module__.split(".")[0], kind.__name__) for kind in type(node).__mro__}
    return bool(names & {("flax", "Variable"), ("flax", "AxisMetadata")})


def _shown(key: Any) -> str:
    return jax.tree_util.keystr((key,), simple=True)


def _by_path(labels: Labels, leaves: Leaves) -> list[Any]:
    """The label in a ready tree for each path."""
    ready, _ = leaves_by_path(labels)
    for path, label in ready:
        if not is_masked(label) and not isinstance(label, StackedLabel):
            check_label(f"labels must be a Labeler or a tree of labels: the one at {path!r}", label)
    label_at = dict(ready)
    bare = [path for path, leaf in leaves if path not in label_at and not is_masked(leaf)]
    if bare:
        raise ValueError(
            f"labels has nothing for {checks.listed(bare)}: {checks.close_match(bare[0], label_at)}"
        )
    return [label_at.get(path, leaf) for path, leaf in leaves]
