"""Multipliers of the learning rate for each label, and rules that make them of the labels."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax

from .. import checks
from ..types import ArrayLike, Label, Labels, ScalarLike, Schedule
from .labels import check_known, check_label, is_masked, labels_of, leaves_by_path, ordered


class MultiplierRule:
    """A rule from labels to multipliers; it is accepted wherever a mapping of multipliers is.

    It is no function, because `optax.inject_hyperparams` takes any callable argument for a schedule.

    Attributes:
      of_labels: from every label that there is, integers first and in order, to a multiplier for each.
      description: what `repr` prints: the call that made the rule.
    """

    def __init__(self, of_labels: Callable[[list[Label]], dict[Label, ScalarLike]], description: str):
        self.of_labels, self.description = of_labels, description

    def __repr__(self) -> str:
        return self.description

    def resolve(self, labels: Labels) -> dict[Label, ScalarLike]:
        """The multiplier of each label in a resolved tree of labels.

        Args:
          labels: a tree of labels, as `labeler.resolve(params)` gives.

        Raises:
          ValueError: the labels are not resolved, or the rule has no multiplier for one.
        """
        leaves = jax.tree.leaves(labels)
        if not leaves:
            raise ValueError(f"{self} needs a tree of labels, got one without any: {labels!r}.")
        for leaf in leaves:
            for label in labels_of(leaf) if hasattr(leaf, "labels") else (leaf,):
                check_label(f"{self} needs a resolved tree, as labeler.resolve(params) gives: a label", label)
        return self.of_labels(ordered(leaves))


Multipliers: TypeAlias = Mapping[Label, ArrayLike | Schedule] | MultiplierRule
"""A finite number of at least 0, an array of them or a schedule for each label; or a rule that gives numbers."""


def layer_decay(decay: ScalarLike = 0.75) -> MultiplierRule:
    """Multipliers that fall by a factor from each layer to the one before it.

    multiplier(label) = decay^(last label - label)

    Args:
      decay: the factor, a finite number of at least 0.

    Returns:
      A `MultiplierRule` for integer labels, as `label_by_depth` gives; 1 for the last.

    Raises:
      ValueError: a concrete `decay` is out of range; when the rule is used, a label is no integer.

    >>> layer_decay(0.5).resolve({"embed": 0, "block": 1, "head": 2})
    {0: 0.25, 1: 0.5, 2: 1.0}

    Source: layer-wise learning-rate decay as in BEiT (Bao et al. 2021, arXiv:2106.08254) and timm, whose
    default is 0.75. ELECTRA (Clark et al. 2020, arXiv:2003.10555), which had it first, leaves a gap of one
    factor more between the head and the last layer.
    """
    factor = checks.number("decay", decay, minimum=0)

    def of_labels(labels: list[Label]) -> dict[Label, ScalarLike]:
        depths = _depths("layer_decay", labels)
        return {depth: factor ** (depths[-1] - depth) for depth in depths}

    return MultiplierRule(of_labels, f"layer_decay({_shown(decay)})")


def geometric_multipliers(low: ScalarLike | None, high: ScalarLike) -> MultiplierRule:
    """Multipliers in even ratios from the first group to the last.

    multiplier(i-th of n groups) = low * (high / low)^(i / (n - 1)); without `low`, high / 10 for all but
    the last.

    Args:
      low: the first group's multiplier, above 0; or None.
      high: the last group's multiplier, above 0; that of the only group if there is one.

    Returns:
      A `MultiplierRule` for integer labels, as `label_by_depth` gives.

    Raises:
      ValueError: a concrete number is not above 0; when the rule is used, a label is no integer.

    >>> geometric_multipliers(0.25, 1.0).resolve({"embed": 0, "block": 1, "head": 2})
    {0: 0.25, 1: 0.5, 2: 1.0}

    Source: discriminative learning rates (Howard & Ruder 2018, arXiv:1801.06146, section 3.2), spread as by
    fastai's `slice(low, high)` and `slice(high)`.
    """
    last = checks.number("high", high, above=0)
    first = None if low is None else checks.number("low", low, above=0)

    def of_labels(labels: list[Label]) -> dict[Label, ScalarLike]:
        depths = _depths("geometric_multipliers", labels)
        gaps = max(len(depths) - 1, 1)
        before: dict[Label, ScalarLike] = {
            depth: last / 10 if first is None else first * (last / first) ** (index / gaps)
            for index, depth in enumerate(depths[:-1])
        }
        return {**before, depths[-1]: last}

    return MultiplierRule(of_labels, f"geometric_multipliers({_shown(low)}, {_shown(high)})")


def fan_in_multipliers(*, base: ScalarLike, power: ScalarLike = 1.0) -> MultiplierRule:
    """Multipliers that carry a rate tuned at one width over to another.

    multiplier(fan-in) = (base / fan-in)^power; 1 for vectors

    Args:
      base: the fan-in at which the rate was tuned, above 0.
      power: 1 for Adam, as in the source; a finite number.

    Returns:
      A `MultiplierRule` for the labels of `label_by_fan_in`.

    Raises:
      ValueError: a concrete number is out of range; when the rule is used, a label is no fan-in.

    >>> fan_in_multipliers(base=64).resolve({"kernel": 256, "bias": "vector"})
    {256: 0.25, 'vector': 1.0}

    Source: the hidden weights' Adam rate in Yang et al. 2022 (arXiv:2203.03466), Table 3. The output layer
    has a rule of its own there: give it a label and a multiplier by hand.
    """
    width = checks.number("base", base, above=0)
    exponent = checks.number("power", power)

    def of_labels(labels: list[Label]) -> dict[Label, ScalarLike]:
        for label in labels:
            if label != "vector" and (isinstance(label, str) or label < 1):
                raise ValueError(f"fan_in_multipliers needs the labels of label_by_fan_in(), got {label!r}.")
        return {label: 1.0 if label == "vector" else (width / int(label)) ** exponent for label in labels}

    return MultiplierRule(of_labels, f"fan_in_multipliers(base={_shown(base)}, power={_shown(power)})")


def multiplier_table(multipliers: Multipliers, tree: Labels, known: list[Label] | None) -> dict[Label, Any]:
    """The multiplier of every label of a resolved tree, those of a rule and those of a mapping alike.

    Raises:
      ValueError: a multiplier is for a label that does not exist, a label has none, or a concrete number is
        negative or not finite.
    """
    labelled = [(path, label) for path, label in leaves_by_path(tree)[0] if not is_masked(label)]
    if isinstance(multipliers, MultiplierRule):
        found = ordered(label for _, label in labelled) if known is None else known
        return multipliers.of_labels(found) if found else {}
    check_known("multipliers", multipliers, known)
    bare = [(path, one) for path, label in labelled for one in labels_of(label) if one not in multipliers]
    if bare:
        missing = ordered([label for _, label in bare])
        raise ValueError(
            f"multipliers has nothing for {checks.listed(missing)}, the label of "
            f"{checks.listed(dict.fromkeys(path for path, _ in bare))}: "
            f"{checks.close_match(missing[0], multipliers)}"
        )
    return dict(multipliers)


def _depths(name: str, labels: list[Label]) -> list[int]:
    for label in labels:
        if isinstance(label, str):
            raise ValueError(f"{name} needs integer labels, as label_by_depth gives, got {label!r}.")
    return [int(label) for label in labels]


def _shown(value: Any) -> str:
    """A number as it was written; a traced one has no value to show."""
    return "traced" if checks.is_traced(value) else repr(value)
