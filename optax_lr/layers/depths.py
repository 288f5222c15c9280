r"""Labels by depth: 0, 1, ... from the input to the output, however a model writes its layers.

The numbers of timm, for patterns of its ConvNeXt:

    [
        r"stem/.*",
        at_depth(r"stages/(\d+)/(?:downsample|blocks/(\d+))/.*", unmatched=0),  # joins block 0 of its stage
        at_depth(r"norm_pre/.*", joins_previous=True),                          # joins the last block
        r"head/.*",
    ]
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp

from .labels import INTEGERS, Labeler, Leaves, StackedLabel, is_integers, is_masked
from .patterns import Match, compiled_patterns, first_matches, without_group


class DepthPattern:
    """A pattern of paths for `label_by_depth` with more to say; `at_depth` makes it.

    Attributes:
      pattern: a regular expression for whole paths.
      unmatched: the number that stands for a group that matched nothing.
      joins_previous: whether these parameters have the depth of the layer before.
      stacked_axis: the axis along which layers are stacked in one array; None if they are not.
    """

    def __init__(self, pattern: str, unmatched: int, joins_previous: bool, stacked_axis: int | None):
        self.pattern, self.unmatched = pattern, unmatched
        self.joins_previous, self.stacked_axis = joins_previous, stacked_axis

    def __repr__(self) -> str:
        options = [
            f", unmatched={self.unmatched}" * (self.unmatched != -1),
            ", joins_previous=True" * self.joins_previous,
            f", stacked_axis={self.stacked_axis}" * (self.stacked_axis is not None),
        ]
        return f"at_depth({self.pattern!r}{''.join(options)})"


_Key: TypeAlias = tuple[int, ...]
Pattern: TypeAlias = str | DepthPattern
Ladder: TypeAlias = Sequence[Pattern | tuple[Sequence[Pattern], ...]]
"""Patterns from input to output; a tuple holds towers side by side, each with patterns of its own."""


def at_depth(
    pattern: str, *, unmatched: int = -1, joins_previous: bool = False, stacked_axis: int | None = None
) -> DepthPattern:
    r"""A pattern for `label_by_depth` whose layers are stacked, or join others.

    Args:
      pattern: a regular expression for whole paths.
      unmatched: the number that stands for an optional group that matched nothing. -1 comes before number 0;
        0 joins it, as timm's downsampling layers do.
      joins_previous: whether what matches has the depth of the layer before, as timm's final norm does.
      stacked_axis: the axis along which layers are stacked in each array, as `nn.scan` and `nnx.scan` do: 0
        there by default. Each has a depth of its own, as if it had its number in the path.

    Returns:
      A `DepthPattern`.

    Raises:
      ValueError: `stacked_axis` is no whole number, or given with `joins_previous`.

    >>> params = {"embed": jnp.ones((9, 4)), "blocks": jnp.ones((3, 4, 4)), "head": jnp.ones((4, 2))}
    >>> label_by_depth(["embed", at_depth("blocks", stacked_axis=0), "head"]).resolve(params)
    {'blocks': StackedLabel((1, 2, 3), axis=0), 'embed': 0, 'head': 4}

    Source: timm's `group_with_matcher`, where a number of 99999 joins the layer before.
    """
    if stacked_axis is not None and (joins_previous or isinstance(stacked_axis, bool)):
        raise ValueError(
            f"stacked_axis must be the axis of layers with depths of their own, got {stacked_axis!r}."
        )
    return DepthPattern(pattern, unmatched, joins_previous, stacked_axis)


def label_by_depth(patterns: Ladder) -> Labeler:
    r"""Label each parameter by its depth: 0, 1, ... from the input to the output.

    A pattern without a group is one depth. A group for an integer makes a depth of each number that is found,
    in the order of the numbers; several groups are compared from left to right, and an optional group that
    matches nothing comes before number 0. `at_depth` says more: stacked layers, or a layer that joins another.
    A tuple of lists holds towers side by side, as in CLIP: each has depths of its own, and all end together.
    Arrays of integers, such as a counter beside the parameters, need no pattern.

    Args:
      patterns: regular expressions for whole paths, from input to output; the first that matches wins.

    Returns:
      A `Labeler` whose labels are integers without gaps.

    Raises:
      ValueError: there is no pattern or one does not compile; on `resolve`, a parameter matches no pattern, a
        pattern is the first match of none, a group captures something else than an integer, a stacked array
        has no such axis, or nothing comes before what joins it.

    >>> params = dict.fromkeys(["embed", "block_0", "block_10", "block_2", "norm", "head"], jnp.ones(2))
    >>> label_by_depth(["embed", r"block_(\d+)", at_depth("norm", joins_previous=True), "head"]).resolve(params)
    {'block_0': 1, 'block_10': 3, 'block_2': 2, 'embed': 0, 'head': 4, 'norm': 3}

    Source: the layer numbers of timm (`param_groups_layer_decay`), as above; BEiT (Bao et al. 2021,
    arXiv:2106.08254) counts its norm with the head: r"norm|head".
    """
    if isinstance(patterns, str) or not patterns:
        raise ValueError(f"patterns must hold at least one regular expression, got {patterns!r}.")
    specs = [_spec(one) for element in patterns for one in _all_of(element)]
    compiled = compiled_patterns("patterns", [spec.pattern for spec in specs])
    numbers = iter(range(len(specs)))
    ladder = [_numbered(element, numbers) for element in patterns]

    def label_leaves(leaves: Leaves) -> list[Any]:
        matches = first_matches("patterns", compiled, leaves, complete=True)
        keys = [
            [] if match is None or is_integers(leaf) else _keys(specs[match[0]], match, path, leaf)
            for match, (path, leaf) in zip(matches, leaves, strict=True)
        ]
        if any(is_masked(leaf) and not mine for mine, (_, leaf) in zip(keys, leaves, strict=True)):
            hidden = next(path for mine, (path, leaf) in zip(keys, leaves, strict=True) if not mine)
            raise ValueError(
                f"patterns cannot count depths where {hidden!r} is masked out whole: resolve the labels on all "
                "parameters, and pass the tree."
            )
        found: dict[int, set[_Key]] = {index: set() for index in range(len(specs))}
        for match, mine in zip(matches, keys, strict=True):
            if match:
                found[match[0]].update(mine)
        depth_at, _ = _depths(ladder, specs, found)
        return [
            _label(specs[match[0]], [depth_at[match[0], key] for key in mine]) if match and mine else INTEGERS
            for match, mine in zip(matches, keys, strict=True)
        ]

    return Labeler(label_leaves, f"label_by_depth({list(patterns)!r})")


def _spec(pattern: Pattern) -> DepthPattern:
    return pattern if isinstance(pattern, DepthPattern) else DepthPattern(pattern, -1, False, None)


def _all_of(element: Pattern | tuple[Sequence[Pattern], ...]) -> list[Pattern]:
    return [one for tower in element for one in tower] if isinstance(element, tuple) else [element]


def _numbered(element: Any, numbers: Iterator[int]) -> Any:
    """An element of the ladder with each pattern replaced by its number."""
    if isinstance(element, tuple):
        return tuple([next(numbers) for _ in tower] for tower in element)
    return next(numbers)


def _keys(spec: DepthPattern, match: Match, path: str, leaf: Any) -> list[_Key]:
    """What orders a parameter among those of its pattern: one key, or one for each layer stacked in it."""
    place = tuple(_integer(spec, number, text) for number, text in enumerate(match[1]))
    if spec.stacked_axis is None:
        return [place]
    if is_masked(leaf):
        return []
    shape = jnp.shape(leaf)
    if not -len(shape) <= spec.stacked_axis < len(shape):
        raise ValueError(
            f"patterns has {spec!r}, but {path!r} has the shape {shape}: without such an axis it holds no stacked "
            "layers."
        )
    return [(*place, layer) for layer in range(shape[spec.stacked_axis])]


def _integer(spec: DepthPattern, number: int, text: str | None) -> int:
    if text is None:
        return spec.unmatched
    if not text.isdecimal():
        raise ValueError(
            f"patterns has {spec.pattern!r}, where a group holds {text!r}, which is no number. A group is for the "
            rf"number of a layer, as in 'block_(\d+)'; write {without_group(spec.pattern, number)!r} to give all "
            "that matches one depth."
        )
    return int(text)


def _depths(
    ladder: Sequence[Any], specs: Sequence[DepthPattern], found: Mapping[int, set[_Key]]
) -> tuple[dict[tuple[int, _Key], int], int]:
    """The depth of each key of each pattern, and how many depths there are."""
    depth_at: dict[tuple[int, _Key], int] = {}
    total = 0
    for element in ladder:
        if isinstance(element, tuple):
            towers = [_depths(tower, specs, found) for tower in element]
            highest = max(height for _, height in towers)
            for tower, height in towers:
                depth_at |= {place: total + highest - height + depth for place, depth in tower.items()}
            total += highest
        elif specs[element].joins_previous:
            if not total:
                raise ValueError(f"patterns has {specs[element]!r}, but no layer comes before it.")
            depth_at |= {(element, key): total - 1 for key in found[element]}
        else:
            depth_at |= {(element, key): total + rank for rank, key in enumerate(sorted(found[element]))}
            total += len(found[element])
    return depth_at, total


def _label(spec: DepthPattern, depths: list[int]) -> int | StackedLabel:
    return depths[0] if spec.stacked_axis is None else StackedLabel(depths, spec.stacked_axis)
