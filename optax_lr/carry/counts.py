"""Whether moments keep the count that they were made under: a bias correction by another one is wrong."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .leaves import LATE, Leaf, by_node, shown

Place = tuple[str, ...]


def check_counts(old: list[Leaf], new: list[Leaf], found: Mapping[Place, Mapping[Place, Leaf]]) -> None:
    """Refuse to put moments of several counts under one.

    Args:
      old: the leaves of the old state.
      new: those of the optimizer's.
      found: for each node of the new state, the old leaf that each of its leaves takes.

    Raises:
      ValueError: a label had a start in the old state, or a group a count, and the optimizer has one count for
        those moments and others.
    """
    values, late_before = {leaf.place: leaf.value for leaf in old}, late_counters(old)
    late_after = late_counters(new)
    for node, leaves in by_node(new).items():
        moments = [leaf for leaf in leaves if leaf.is_moment and leaf.name in found[node]]
        for counter in (leaf for leaf in leaves if leaf.is_clock and leaf.name in found[node]):
            kept, own = found[node][counter.name].value, late_after[counter.place]
            for at, those in _by_source(moments, found[node]):
                place = (*at, *counter.name)
                if place in values and not np.array_equal(values[place], kept):
                    raise _of_groups(counter, values[place], kept)
                for label, count in late_before[place].items():
                    if label in own or np.array_equal(count, kept):
                        continue
                    # A label that had not begun has its first moments: where none is left, nor is the label.
                    begun = not np.array_equal(count, counter.value)
                    if begun or any(_is_first(leaf, found[node][leaf.name]) for leaf in those):
                        raise _of_label(label, counter, count, kept)


def late_counters(leaves: list[Leaf]) -> defaultdict[Place, dict[str, Any]]:
    """For each counter inside an `unfreeze_at`, those of its late labels."""
    counters: defaultdict[Place, dict[str, Any]] = defaultdict(dict)
    for leaf in leaves:
        if leaf.kind == LATE and leaf.field == "late":
            _, label, path = leaf.name
            counters[(*leaf.node, "inner", *path.split("/"))][label] = leaf.value
    return counters


def _by_source(moments: list[Leaf], found: Mapping[Place, Leaf]) -> Iterator[tuple[Place, list[Leaf]]]:
    """Moments by the old node that each is taken from."""
    sources: dict[Place, list[Leaf]] = {}
    for leaf in moments:
        sources.setdefault(found[leaf.name].node, []).append(leaf)
    yield from sources.items()


def _is_first(leaf: Leaf, source: Leaf) -> bool:
    return np.array_equal(leaf.value, source.value)


def _of_label(label: str, counter: Leaf, count: Any, kept: Any) -> ValueError:
    return ValueError(
        f"old_state counts the steps of the late label {label!r} apart ({shown(count)}, the others' "
        f"{shown(kept)}), and the optimizer has one count for both, {'/'.join(counter.place)}, under which the "
        f"label's first updates would be of a wrong size: keep its count by a start, as in unfreeze_at(..., "
        f"{{{label!r}: 0}}, labels)."
    )


def _of_groups(counter: Leaf, count: Any, kept: Any) -> ValueError:
    return ValueError(
        f"old_state has moments of {shown(count)} steps and of {shown(kept)}, and the optimizer has one count for "
        f"both, {'/'.join(counter.place)}, which would make updates of a wrong size: keep the groups apart, as in "
        "optax.partition."
    )
