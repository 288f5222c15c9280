"""Regular expressions over the whole paths of parameters: the first that matches wins, and none may be idle."""

import re
from collections.abc import Iterable

from .. import checks
from .labels import Leaves, is_integers, is_masked

Match = tuple[int, tuple[str | None, ...]]
"""Which pattern matched, and what its groups captured."""


def compiled_patterns(name: str, patterns: Iterable[str]) -> list[re.Pattern[str]]:
    """The patterns, compiled.

    Raises:
      ValueError: there is none, or one is no regular expression.
    """
    if isinstance(patterns, str) or not list(patterns):
        raise ValueError(f"{name} must hold at least one regular expression, got {patterns!r}.")
    compiled = []
    for pattern in patterns:
        try:
            compiled.append(re.compile(pattern))
        except (re.error, TypeError) as error:
            raise ValueError(f"{name} has {pattern!r}, which is no regular expression: {error}.") from error
    return compiled


def first_matches(
    name: str, patterns: list[re.Pattern[str]], leaves: Leaves, *, complete: bool
) -> list[Match | None]:
    """For each leaf the first pattern that matches its path, else None.

    With `complete` every leaf must have a match, but for masked parts and arrays of integers.

    Raises:
      ValueError: a leaf has no match, or a pattern is the first of none.
    """
    matches = [first_match(patterns, path) for path, _ in leaves]
    left = [leaf for match, leaf in zip(matches, leaves, strict=True) if not match]
    bare = [path for path, leaf in left if not is_masked(leaf) and not is_integers(leaf)]
    if complete and bare:
        raise ValueError(f"{name} must match every parameter, and match none of {checks.listed(bare)}.")
    # A part that is masked out whole, by a prefix of its paths, may hold what a pattern is for.
    if not any(is_masked(leaf) for _, leaf in left):
        for index in sorted(set(range(len(patterns))) - {match[0] for match in matches if match}):
            _refuse_idle(name, patterns[index], [path for path, _ in leaves])
    return matches


def first_match(patterns: list[re.Pattern[str]], path: str) -> Match | None:
    """The first pattern that matches a whole path, and what it captures; else None."""
    for index, pattern in enumerate(patterns):
        if match := pattern.fullmatch(path):
            return index, match.groups()
    return None


def without_group(pattern: str, number: int) -> str:
    """A pattern whose `number`-th group, from 0, captures nothing."""
    opened = [
        match.start()
        for match in re.finditer(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\((?!\?)|\(\?P<\w+>", pattern, re.S)
        if match[0].startswith("(")
    ]
    start = opened[number]
    return pattern[:start] + re.sub(r"^\((?:\?P<\w+>)?", "(?:", pattern[start:])


def _refuse_idle(name: str, pattern: re.Pattern[str], paths: list[str]) -> None:
    shadowed = [path for path in paths if pattern.fullmatch(path)]
    if shadowed:
        raise ValueError(
            f"{name} has {pattern.pattern!r}, but an earlier pattern takes all that it matches: "
            f"{checks.listed(shadowed)}. Under a filter, such as wrt, rules are for what it selects alone."
        )
    raise ValueError(
        f"{name} has {pattern.pattern!r}, which matches no parameter: "
        f"{checks.close_match(pattern.pattern, paths)}"
    )
