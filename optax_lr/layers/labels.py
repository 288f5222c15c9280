"""Labels: groups of parameters, by path, by depth or by fan-in; and a multiplier for each group.

A parameter's path is its keys joined by "/", as in "encoder/block_3/mlp/kernel"; dictionary keys, indices and
attribute names all serve. Labels are matched to parameters by path, so a labelling made on one kind of tree
holds on another kind with the same paths, and on one that `optax.masked` has thinned out.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .. import checks
from ..types import Label, Labels, PyTree, ScalarLike

Leaves = Sequence[tuple[str, Any]]


class Labeler:
    """A rule that labels parameters; `resolve` applies it.

    It is no function, because `optax.inject_hyperparams` takes any callable argument for a schedule.

    Attributes:
      label_leaves: from the path and the array of every leaf, in order, to their labels. A leaf that is
        masked out is an `optax.MaskedNode`, which may stand for its own label where nothing tells that.
      label_path: where the rule looks at one path at a time, from a path to its label, None for none.
      known: every label that `label_path` may give.
    """

    def __init__(
        self,
        label_leaves: Callable[[Leaves], Sequence[Label | optax.MaskedNode]],
        label_path: Callable[[str], Label | None] | None = None,
        known: tuple[Label, ...] = (),
    ):
        self.label_leaves, self.label_path, self.known = label_leaves, label_path, known

    def resolve(self, params: PyTree) -> Labels:
        """The tree of labels: the structure of `params`, with a label at every leaf.

        Args:
          params: a tree of parameters, or of anything with their paths and shapes. Parts that `optax.masked`
            has masked out stay masked out.

        Raises:
          ValueError: the rule does not fit the parameters; the message names their paths.
        """
        return label_tree(self, params)[0]


def label_by_path(rules: Mapping[str, Label], *, default: Label | None = None) -> Labeler:
    """Label each parameter by the first rule that its whole path matches.

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
    patterns = _compiled("rules", rules)
    for name, label in [(f"rules[{pattern!r}]", label) for pattern, label in rules.items()]:
        _check_label(name, label)
    if default is not None:
        _check_label("default", default)

    labels = list(rules.values())

    def label_path(path: str) -> Label | None:
        match = _first_match(patterns, path)
        return labels[match[0]] if match else default

    def label_leaves(leaves: Leaves) -> list[Any]:
        matches = _first_matches("rules", patterns, leaves, complete=default is None)
        return [
            labels[match[0]] if match else leaf if _is_masked(leaf) else default
            for match, (_, leaf) in zip(matches, leaves, strict=True)
        ]

    every = [*labels, *([] if default is None else [default])]
    return Labeler(label_leaves, label_path, tuple(dict.fromkeys(every)))


def label_by_depth(patterns: Sequence[str]) -> Labeler:
    r"""Label each parameter by its depth: 0, 1, ... from the input to the output.

    A pattern without a group is one depth. A captured integer makes a depth of each number that is found,
    in the order of the numbers; several are compared from left to right.

    Args:
      patterns: regular expressions for whole paths, from input to output; the first that matches wins.

    Returns:
      A `Labeler` whose labels are integers without gaps.

    Raises:
      ValueError: there is no pattern or one does not compile; on `resolve`, a parameter matches no pattern, a
        pattern is the first match of none, or a group captures something else than an integer.

    >>> params = dict.fromkeys(["embed", "block_0", "block_10", "block_2", "head"], jnp.ones(2))
    >>> label_by_depth(["embed", r"block_(\d+)", "head"]).resolve(params)
    {'block_0': 1, 'block_10': 3, 'block_2': 2, 'embed': 0, 'head': 4}

    Source: layer ids as in ELECTRA (Clark et al. 2020, arXiv:2003.10555) and BEiT: embeddings 0,
    layer i at i + 1, the head last.
    """
    compiled = _compiled("patterns", patterns)

    def label_leaves(leaves: Leaves) -> list[Any]:
        matches = _first_matches("patterns", compiled, leaves, complete=True)
        if None in matches:
            raise ValueError(
                f"patterns cannot count depths where {leaves[matches.index(None)][0]!r} is masked out whole: "
                "resolve the labels on all parameters, and pass the tree."
            )
        order = [(match[0], _integers(patterns[match[0]], match[1])) for match in matches if match]
        depths = {place: depth for depth, place in enumerate(sorted(set(order)))}
        return [depths[place] for place in order]

    return Labeler(label_leaves)


def label_by_fan_in() -> Labeler:
    """Label each matrix by its fan-in, the product of all its dimensions but the last; the rest are "vector".

    A convolution's kernel in Flax's layout (height, width, in, out) has the fan-in height * width * in.

    Returns:
      A `Labeler` whose labels are integers, and "vector" for what has fewer than two dimensions.

    >>> params = {"conv": jnp.ones((3, 3, 8, 16)), "dense": jnp.ones((16, 4)), "bias": jnp.ones(4)}
    >>> label_by_fan_in().resolve(params)
    {'bias': 'vector', 'conv': 72, 'dense': 16}

    Source: the fan-in of Yang et al. 2022 (arXiv:2203.03466), Table 3.
    """

    def label_leaves(leaves: Leaves) -> list[Any]:
        return [
            leaf if _is_masked(leaf) else math.prod(jnp.shape(leaf)[:-1]) if jnp.ndim(leaf) > 1 else "vector"
            for _, leaf in leaves
        ]

    return Labeler(label_leaves)


def layer_decay(labels: Labels, decay: ScalarLike = 0.75) -> dict[Label, ScalarLike]:
    """Multipliers that fall by a factor from each layer to the one before it.

    multiplier(label) = decay^(last label - label)

    Args:
      labels: a resolved tree of integer labels, as `label_by_depth(...).resolve(params)` gives.
      decay: the factor, a finite number of at least 0.

    Returns:
      A dict from every label to its multiplier; 1 for the last.

    Raises:
      ValueError: the labels are not resolved or not integers, or a concrete `decay` is out of range.

    >>> layer_decay({"embed": 0, "block": 1, "head": 2}, 0.5)
    {0: 0.25, 1: 0.5, 2: 1.0}

    Source: Clark et al. 2020 (arXiv:2003.10555), layer-wise learning-rate decay; 0.75 is timm's
    default.
    """
    factor = checks.number("decay", decay, minimum=0)
    depths = _depths("layer_decay", labels)
    return {depth: factor ** (depths[-1] - depth) for depth in depths}


def geometric_multipliers(
    labels: Labels, low: ScalarLike | None, high: ScalarLike
) -> dict[Label, ScalarLike]:
    """Multipliers in even ratios from the first group to the last.

    multiplier(i-th of n groups) = low * (high / low)^(i / (n - 1)); without `low`, high / 10 for all but
    the last.

    Args:
      labels: a resolved tree of integer labels, as `label_by_depth(...).resolve(params)` gives.
      low: the first group's multiplier, above 0; or None.
      high: the last group's multiplier, above 0; that of the only group if there is one.

    Returns:
      A dict from every label to its multiplier.

    Raises:
      ValueError: the labels are not resolved or not integers, or a concrete number is not above 0.

    >>> geometric_multipliers({"embed": 0, "block": 1, "head": 2}, 0.25, 1.0)
    {0: 0.25, 1: 0.5, 2: 1.0}

    Source: discriminative learning rates (Howard & Ruder 2018, arXiv:1801.06146, section 3.2), spread as by
    fastai's `slice(low, high)` and `slice(high)`.
    """
    last = checks.number("high", high, above=0)
    first = None if low is None else checks.number("low", low, above=0)
    depths = _depths("geometric_multipliers", labels)
    gaps = max(len(depths) - 1, 1)
    before: dict[Label, ScalarLike] = {
        depth: last / 10 if first is None else first * (last / first) ** (index / gaps)
        for index, depth in enumerate(depths[:-1])
    }
    return {**before, depths[-1]: last}


def fan_in_multipliers(
    labels: Labels, *, base: ScalarLike, power: ScalarLike = 1.0
) -> dict[Label, ScalarLike]:
    """Multipliers that carry a rate tuned at one width over to another.

    multiplier(fan-in) = (base / fan-in)^power; 1 for vectors

    Args:
      labels: a resolved tree, as `label_by_fan_in().resolve(params)` gives.
      base: the fan-in at which the rate was tuned, above 0.
      power: 1 for Adam, as in the source; a finite number.

    Returns:
      A dict from every label to its multiplier.

    Raises:
      ValueError: the labels are not resolved or not fan-ins, or a concrete number is out of range.

    >>> fan_in_multipliers({"kernel": 256, "bias": "vector"}, base=64)
    {256: 0.25, 'vector': 1.0}

    Source: the hidden weights' Adam rate in Yang et al. 2022 (arXiv:2203.03466), Table 3; embeddings and
    the output keep rules of their own there: give those a multiplier by hand.
    """
    width = checks.number("base", base, above=0)
    exponent = checks.number("power", power)
    found = _found("fan_in_multipliers", labels)
    for label in found:
        if label != "vector" and (isinstance(label, str) or label < 1):
            raise ValueError(f"fan_in_multipliers needs the labels of label_by_fan_in(), got {label!r}.")
    return {label: 1.0 if label == "vector" else (width / int(label)) ** exponent for label in found}


def describe_labels(
    params: PyTree, labels: Labeler | Labels, multipliers: Mapping[Label, Any] | None = None
) -> str:
    """A table of a labelling: for each label its multiplier, leaves, parameters and share, and one path.

    Args:
      params: the tree of parameters.
      labels: a `Labeler` or a tree of labels.
      multipliers: from labels to numbers or schedules, of which the value at step 0 is shown.

    Returns:
      The table as text, a line for each label: integers first and in order, then strings as they appear.

    Raises:
      ValueError: the labels do not fit the parameters, or the multipliers the labels.

    >>> params = {"body": jnp.ones((3, 2)), "head": jnp.ones((2, 1))}
    >>> print(describe_labels(params, label_by_path({"body": 0, "head": 1}), {0: 0.1, 1: 1.0}))
    label  multiplier  leaves  parameters  share  for example
        0         0.1       1           6  75.0%  body
        1           1       1           2  25.0%  head
    """
    tree, known = label_tree(labels, params)
    if multipliers is not None:
        check_multipliers(multipliers, tree, known)
    groups: dict[Label, list[tuple[str, int]]] = {label: [] for label in _ordered(jax.tree.leaves(tree))}
    sizes = [
        (path, math.prod(jnp.shape(leaf))) for path, leaf in leaves_by_path(params)[0] if not _is_masked(leaf)
    ]
    for label, leaf in zip(jax.tree.leaves(tree), sizes, strict=True):
        groups[label].append(leaf)
    total = sum(size for _, size in sizes)
    rows = [["label", "multiplier", "leaves", "parameters", "share", "for example"]]
    for label, members in groups.items():
        multiplier = 1.0 if multipliers is None else multipliers[label]
        value = multiplier(0) if callable(multiplier) else multiplier
        count = sum(size for _, size in members)
        share = f"{count / total:.1%}" if total else "-"
        rows.append([str(label), f"{float(value):g}", str(len(members)), str(count), share, members[0][0]])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False)] + row[-1:])
        for row in rows
    )


def label_tree(labels: Labeler | Labels, tree: PyTree) -> tuple[Labels, list[Label] | None]:
    """The labels of a tree of parameters or updates, in its structure; and every label that there is.

    What `optax.masked` has masked out of the tree stays so, but its labels are among those that there are;
    these are None where nothing tells the label of a masked part.

    Raises:
      ValueError: the labels do not fit the tree.
    """
    leaves, treedef = leaves_by_path(tree)
    if not leaves:  # Optax looks for what a state holds of the parameters by initialising with an empty tree.
        return tree, None
    by_rule = isinstance(labels, Labeler)
    found = labels.label_leaves(leaves) if by_rule else _by_path(labels, leaves)
    visible = [leaf if _is_masked(leaf) else label for (_, leaf), label in zip(leaves, found, strict=True)]
    # A ready tree may have been made for more parameters than these.
    every = found if by_rule else jax.tree.leaves(labels)
    return jax.tree.unflatten(treedef, visible), None if any(map(_is_masked, every)) else _ordered(every)


def leaves_by_path(tree: PyTree) -> tuple[list[tuple[str, Any]], Any]:
    """Every leaf with its path, masked parts counted as leaves; and the structure."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_masked)
    return [(_path(keys), leaf) for keys, leaf in leaves], treedef


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


def check_multipliers(multipliers: Mapping[Label, Any], tree: Labels, known: list[Label] | None) -> None:
    """Refuse multipliers for labels that do not exist, and labels without a multiplier.

    Raises:
      ValueError: either is the case; the message names labels, and paths that have them.
    """
    check_known("multipliers", multipliers, known)
    labelled = [(path, label) for path, label in leaves_by_path(tree)[0] if not _is_masked(label)]
    bare = [(path, label) for path, label in labelled if label not in multipliers]
    if bare:
        missing = _ordered([label for _, label in bare])
        raise ValueError(
            f"multipliers has nothing for {checks.listed(missing)}, the label of "
            f"{checks.listed(path for path, _ in bare)}: {checks.close_match(missing[0], multipliers)}"
        )


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _path(keys: tuple[Any, ...]) -> str:
    # `nnx.Optimizer` initialises with variables, whose array is an attribute, and updates with arrays.
    variable = (
        len(keys) > 1
        and isinstance(keys[-2], jax.tree_util.DictKey)
        and keys[-1] == jax.tree_util.GetAttrKey("value")
    )
    return jax.tree_util.keystr(keys[:-1] if variable else keys, simple=True, separator="/")


def _compiled(name: str, patterns: Iterable[str]) -> list[re.Pattern[str]]:
    if isinstance(patterns, str) or not list(patterns):
        raise ValueError(f"{name} must hold at least one regular expression, got {patterns!r}.")
    compiled = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern))
        except (re.error, TypeError) as error:
            raise ValueError(f"{name} has {pattern!r}, which is no regular expression: {error}.") from error
    return compiled


def _first_matches(
    name: str, patterns: list[re.Pattern[str]], leaves: Leaves, *, complete: bool
) -> list[tuple[int, tuple[str | None, ...]] | None]:
    """For each leaf, which pattern is the first to match its path, and what that captures; else None."""
    matches = [_first_match(patterns, path) for path, _ in leaves]
    left = [leaf for match, leaf in zip(matches, leaves, strict=True) if not match]
    bare = [path for path, leaf in left if not _is_masked(leaf)]
    if complete and bare:
        raise ValueError(f"{name} must match every parameter, and match none of {checks.listed(bare)}.")
    # A part that is masked out whole, by a prefix of its paths, may hold what a pattern is for.
    if len(bare) == len(left):
        for index in sorted(set(range(len(patterns))) - {match[0] for match in matches if match}):
            _refuse_idle(name, patterns[index], [path for path, _ in leaves])
    return matches


def _first_match(patterns: list[re.Pattern[str]], path: str) -> tuple[int, tuple[str | None, ...]] | None:
    for index, pattern in enumerate(patterns):
        if match := pattern.fullmatch(path):
            return index, match.groups()
    return None


def _integers(pattern: str, captured: tuple[str | None, ...]) -> tuple[int, ...]:
    for text in captured:
        if text is None or not text.isdecimal():
            raise ValueError(f"patterns has {pattern!r}, which captures {text!r} in place of an integer.")
    return tuple(int(text) for text in captured if text)


def _refuse_idle(name: str, pattern: re.Pattern[str], paths: list[str]) -> None:
    shadowed = [path for path in paths if pattern.fullmatch(path)]
    if shadowed:
        raise ValueError(
            f"{name} has {pattern.pattern!r}, but an earlier pattern takes all that it matches: "
            f"{checks.listed(shadowed)}."
        )
    raise ValueError(
        f"{name} has {pattern.pattern!r}, which matches no parameter: "
        f"{checks.close_match(pattern.pattern, paths)}"
    )


def _by_path(labels: Labels, leaves: Leaves) -> list[Any]:
    """The label in a ready tree for each path."""
    ready, _ = leaves_by_path(labels)
    for path, label in ready:
        if not _is_masked(label):
            _check_label(f"labels must be a Labeler or a tree of labels: the one at {path!r}", label)
    label_at = dict(ready)
    bare = [path for path, leaf in leaves if path not in label_at and not _is_masked(leaf)]
    if bare:
        raise ValueError(
            f"labels has nothing for {checks.listed(bare)}: {checks.close_match(bare[0], label_at)}"
        )
    return [label_at.get(path, leaf) for path, leaf in leaves]


def _check_label(name: str, label: Any) -> None:
    if isinstance(label, bool) or not isinstance(label, str | int):
        raise ValueError(f"{name} must be a string or an integer, got {label!r}.")


def _ordered(labels: Iterable[Any]) -> list[Label]:
    """Each label once: integers in order, then strings as they appear."""
    once = list(dict.fromkeys(label for label in labels if not _is_masked(label)))
    return sorted(label for label in once if not isinstance(label, str)) + [
        label for label in once if isinstance(label, str)
    ]


def _found(name: str, labels: Labels) -> list[Label]:
    leaves = jax.tree.leaves(labels)
    if not leaves:
        raise ValueError(f"{name} needs a tree of labels, got one without any: {labels!r}.")
    for label in leaves:
        _check_label(f"{name} needs a resolved tree, as labeler.resolve(params) gives: a label", label)
    return _ordered(leaves)


def _depths(name: str, labels: Labels) -> list[int]:
    found = _found(name, labels)
    for label in found:
        if isinstance(label, str):
            raise ValueError(f"{name} needs integer labels, as label_by_depth gives, got {label!r}.")
    return [int(label) for label in found]
