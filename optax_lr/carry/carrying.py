"""An optimizer's state, carried into a changed optimizer: a run that is resumed under changed code."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import checks
from ..learning_rate import ScaleByLearningRateState, is_set
from ..snapshots.transformation import SnapshotAtCycleEndsState
from .counts import check_counts, late_counters
from .leaves import CODE, LATE, RATE, SCALE, SNAPSHOTS, Leaf, by_node, kinds, like, located, shown
from .numbers import changed_numbers, with_rates


@dataclass(frozen=True)
class CarriedState:
    """What `carry_state` returns; printed, it is a table of what became of the old state.

    Attributes:
      state: the state to go on with.
      kept: what the old state gave.
      reset: what starts anew, since the old state has nothing that fits.
      overridden: what the old state said, and the code says otherwise.
      dropped: what the old state has and the optimizer has no place for.
    """

    state: optax.OptState
    kept: tuple[str, ...]
    reset: tuple[str, ...]
    overridden: tuple[str, ...]
    dropped: tuple[str, ...]

    def __str__(self) -> str:
        parts = ("kept", "reset", "overridden", "dropped")
        return "\n".join(f"{part:<10}  {line}" for part in parts for line in getattr(self, part))


def carry_state(
    old_state: optax.OptState, optimizer: optax.GradientTransformation, params: optax.Params
) -> CarriedState:
    """The state of a run, carried into an optimizer whose code has changed. Not inside `jit`.

    One rule says who wins: *what training made comes from the old state, what is written in code comes from the
    optimizer.* Training makes moments, counts, averages, gains, the scale of a plateau, snapshots. Code says rates,
    schedules, multipliers, starts and hyperparameters. So a rate that was set by hand ends here: set it again.

    What fits is found by the kind of state, the field and the path of the parameter, in whatever chain, partition
    or wrapper it is. A count that the old state lacks, of a new schedule, starts at the run's step. Moments of
    a parameter that the old state lacks start at zero; if none of an optimizer's fit, so does their count. Else
    they come under the count of the others, and Adam's first updates of that parameter, a new head for instance,
    are up to six times what a fresh one's are: the table names it. `unfreeze_at(tx, {label: step}, labels)`, with
    the run's step, gives its label a count of its own. With fewer slots the newest snapshots stay. Non-finite
    values are carried as they are.

    No state holds a schedule, but visible rates and multipliers are recorded: the table names each that would
    have been another in the last update by the new code. (Not inside `MultiSteps`.) A label with a start has a
    count of its own, for its bias corrections; so a late label that has no start in the optimizer is refused.
    Labels go by name: where a name stands for other parameters than before, they get the count of those before.

    Args:
      old_state: the state of the optimizer as it was, for instance from a checkpoint: arrays of NumPy or JAX.
      optimizer: the optimizer to go on with.
      params: the parameters to go on with. The new state has the shardings that `optimizer.init(params)` gives it.

    Returns:
      A `CarriedState`.

    Raises:
      ValueError: nothing in `old_state` fits, it was restored as plain dicts, or it is traced; moments that have
        counts of their own (of a late label, of a group) would come under one count.

    >>> from optax_lr import get_learning_rate, visible
    >>> params = {"w": jnp.ones(2)}
    >>> old = optax.adam(optax.linear_schedule(1.0, 0.0, 4))
    >>> _, state = old.update(params, old.init(params))
    >>> longer = visible(optax.adam)(optax.linear_schedule(1.0, 0.0, 8))
    >>> carried = carry_state(state, longer, params)
    >>> print(carried)
    kept        rate ScaleByLearningRateState: count is the run's step 1
    kept        inner_state/0 ScaleByAdamState: count, mu, nu
    kept        inner_state/1 ScaleByScheduleState: count
    reset       rate ScaleByLearningRateState: learning_rate, written
    >>> float(get_learning_rate(carried.state))
    0.875
    """
    if any(map(checks.is_traced, jax.tree.leaves((old_state, params)))):
        raise ValueError("carry_state must be called outside jit: it looks at the numbers.")
    fresh = optimizer.init(params)
    old, new = list(located(_fitted_slots(old_state, fresh), params)), list(located(fresh, params))
    carried = _Carried(old, new)
    values = [carried.value_of(leaf, new) for leaf in new]
    taken = {id(leaf.value) for each in carried.found.values() for leaf in each.values()} | carried.taken
    report = carried.report
    for leaf in old:
        if id(leaf.value) not in taken and not leaf.is_clock and (leaf.kind, leaf.field) not in CODE:
            report["dropped"][leaf.node, leaf.kind].append(leaf.field)
    if old and not any(leaf.kind for leaf in old):
        raise ValueError(
            "old_state must have the NamedTuples of its optimizer, and has plain dicts or sequences: restore the "
            "checkpoint into the structure of old_optimizer.init(params)."
        )
    if new and not report["kept"]:
        raise ValueError(
            f"old_state must fit at least a part of the optimizer's state, which has {kinds(new)}, and has "
            f"{kinds(old)}."
        )
    check_counts(old, new, carried.found)
    state = jax.tree.unflatten(jax.tree.structure(fresh), values)
    at = {leaf.place: leaf for leaf in new}
    for place, line in changed_numbers(state, carried.recorded, optimizer, params):
        report["overridden"][at[place].node, at[place].kind].append(line)
    lines = {part: tuple(_lines(fields)) for part, fields in report.items()}
    return CarriedState(with_rates(state, carried.without_rate, optimizer, params), **lines)


class _Carried:
    """The values of the new state, leaf by leaf, and what became of each."""

    def __init__(self, old: list[Leaf], new: list[Leaf]) -> None:
        self.found, self.late_before = _sources(old, new), late_counters(old)
        self.step = max((leaf.value for leaf in old if leaf.is_clock), key=np.max, default=None)
        self.values: dict[tuple[str, ...], Any] = {}
        self.without_rate: list[str] = []
        self.taken: set[int] = set()  # counters of labels that go on
        self.recorded: dict[tuple[str, ...], str] = {}  # numbers of the last update, by place
        self.report: dict[str, dict[Any, list[str]]] = {
            part: defaultdict(list) for part in ("kept", "reset", "overridden", "dropped")
        }

    def value_of(self, leaf: Leaf, new: list[Leaf]) -> Any:
        part, line, value = self._chosen(leaf, new)
        self.report[part][leaf.node, leaf.kind].append(line)
        self.values[leaf.place] = value
        return value

    def _chosen(self, leaf: Leaf, new: list[Leaf]) -> tuple[str, str, Any]:
        found = self.found[leaf.node]
        source = found.get(leaf.name)
        if (leaf.kind, leaf.field) in CODE and not (source is not None and self._is_scheduled(leaf, new)):
            return self._code(leaf, source)
        if leaf.kind == RATE and leaf.field != "count" and source is not None:
            return self._rate(leaf, found)
        if leaf.kind == LATE and leaf.field == "late":
            return self._late(leaf, new)
        if source is not None:
            if leaf.kind == SCALE and leaf.field == "last_multipliers":
                self._record(leaf, source, f"the multiplier of {leaf.name[1]!r}")
            return "kept", leaf.field, like(source.value, leaf.value)
        if leaf.is_clock and self.step is not None and not _beside_moments(leaf, new):
            return "kept", f"{leaf.field} is the run's step {shown(self.step)}", like(self.step, leaf.value)
        if leaf.kind == RATE and leaf.field == "learning_rate":
            self.without_rate.append("/".join(leaf.node))
        return "reset", self._first(leaf, new), leaf.value

    def _first(self, leaf: Leaf, new: list[Leaf]) -> str:
        """What starts anew: of a parameter beside others that go on, with the count that it comes under."""
        kept = [each for each in new if each.node == leaf.node and each.name in self.found[leaf.node]]
        if leaf.kind == SNAPSHOTS or not leaf.is_moment or not any(each.is_moment for each in kept):
            return leaf.field
        counts = [self.found[leaf.node][each.name].value for each in kept if each.field == "count"]
        under = f" (zeros under the count {shown(counts[0])})" if counts else ""
        return f"{leaf.field} of {'/'.join(leaf.name[1:])}{under}"

    def _is_scheduled(self, leaf: Leaf, new: list[Leaf]) -> bool:
        """Whether an injected number follows a schedule: then the state's is the one of the last update."""
        schedule = (*leaf.node, "hyperparams_states", *leaf.name[1:])
        return leaf.field == "hyperparams" and any(each.node[: len(schedule)] == schedule for each in new)

    def _code(self, leaf: Leaf, source: Leaf | None) -> tuple[str, str, Any]:
        if leaf.name[1:] == ("learning_rate",):
            self.without_rate.append("/".join(leaf.node))
        if source is None or np.array_equal(source.value, leaf.value):
            return "reset" if source is None else "kept", leaf.field, leaf.value
        name = "/".join(leaf.name)
        return "overridden", f"{name} is {shown(leaf.value)}, was {shown(source.value)}", leaf.value

    def _rate(self, leaf: Leaf, found: dict[tuple[str, ...], Leaf]) -> tuple[str, str, Any]:
        """The rate of the last update, in both fields: so none is set."""
        old = ScaleByLearningRateState(*(found[name,].value for name in ScaleByLearningRateState._fields))
        value = like(old.learning_rate, leaf.value)
        if leaf.field == "learning_rate" and np.any(is_set(old)):
            line = f"the rate {shown(old.learning_rate)} was set by hand, and is again what the code says"
            return "overridden", line, value
        if leaf.field == "learning_rate":
            self._record(leaf, found[leaf.name], "the rate")
        return "kept", leaf.field, value

    def _record(self, leaf: Leaf, source: Leaf, what: str) -> None:
        # A number that was cast to half precision is not exact.
        if jnp.result_type(source.value).itemsize >= 4:
            self.recorded[leaf.place] = what

    def _late(self, leaf: Leaf, new: list[Leaf]) -> tuple[str, str, Any]:
        """A label's own counter: the one that it had in the old state, wherever the moments were.

        Where it had none: a schedule's is the steps since the start that the code says; a count of moments is the
        optimizer's, or 0 if the label is yet to begin.
        """
        inner = (*leaf.node, "inner")
        start = self.values[(*leaf.node, "clock", "starts", leaf.name[1])]
        place = (*inner, *leaf.name[2].split("/"))
        counter = next(each for each in new if each.place == place)
        taken = self.found[counter.node].get(counter.name)
        if taken is not None and leaf.name[1] in self.late_before[taken.place]:
            own = self.late_before[taken.place][leaf.name[1]]
            self.taken.add(id(own))
            return "kept", leaf.field, like(own, leaf.value)
        if counter.is_clock and self.step is not None and not _beside_moments(counter, new):
            since = np.maximum(np.asarray(self.step) - np.asarray(start), 0)
            return "kept", f"{leaf.field} of {leaf.name[1]!r} is {shown(since)}", like(since, leaf.value)
        begun = self.step is None or np.any(start < self.step)
        moments = [each for each in new if each.node[: len(inner)] == inner and each.is_moment]
        all_kept = all(each.name in self.found[each.node] for each in moments)
        if begun or all_kept:
            return "kept", leaf.field, like(self.values[place], leaf.value)
        return "reset", leaf.field, leaf.value


def _sources(old: list[Leaf], new: list[Leaf]) -> dict[tuple[str, ...], dict[tuple[str, ...], Leaf]]:
    """For each node of the new state, the old leaf for each name in it, where one fits."""
    before, after = by_node(old), by_node(new)
    return {node: _source(leaves, before, after) for node, leaves in after.items()}


def _source(
    leaves: list[Leaf], old: dict[tuple[str, ...], list[Leaf]], new: dict[tuple[str, ...], list[Leaf]]
) -> dict[tuple[str, ...], Leaf]:
    node, kind = leaves[0].node, leaves[0].kind
    alike = [each for each in old.values() if each[0].kind == kind]
    peers = [each for each in new.values() if each[0].kind == kind]
    shapes = {leaf.name: np.shape(leaf.value) for leaf in leaves}
    fits = {
        each[0].node: {leaf.name: leaf for leaf in each if shapes.get(leaf.name) == np.shape(leaf.value)}
        for each in alike
    }

    def rank(each: tuple[str, ...]) -> tuple[Any, ...]:
        ends = sum(1 for a, b in zip(reversed(each), reversed(node), strict=False) if a == b)
        place = [one[0].node for one in alike].index(each)
        same_place = len(alike) == len(peers) and place == [one[0].node for one in peers].index(node)
        return len(fits[each]), each == node, same_place, ends, -place

    ranked = sorted(fits, key=rank, reverse=True)
    if not ranked:
        return {}
    moments = {name: leaf for each in reversed(ranked) for name, leaf in fits[each].items() if leaf.is_moment}
    if not moments and any(leaf.is_moment for leaf in leaves):
        return {}
    return {**fits[ranked[0]], **moments}


def _fitted_slots(old_state: optax.OptState, fresh: optax.OptState) -> optax.OptState:
    """The old state with its snapshots, oldest first, in as many slots as the new one has."""
    is_snapshots = lambda node: isinstance(node, SnapshotAtCycleEndsState)  # noqa: E731
    wanted = [node for node in jax.tree.leaves(fresh, is_leaf=is_snapshots) if is_snapshots(node)]

    def fit(node: Any) -> Any:
        if not is_snapshots(node) or not wanted or np.ndim(node.num_snapshots):
            return node
        before, after = len(node.snapshots), len(wanted[0].snapshots)
        taken, steps = int(node.num_snapshots), np.asarray(node.snapshot_steps)
        if before == after:
            return node
        stay = [number % before for number in range(max(0, taken - min(before, after)), taken)]
        padded = np.full(after, -1, np.int32)
        padded[: len(stay)] = steps[stay]
        return SnapshotAtCycleEndsState(
            node.count,
            jnp.asarray(len(stay), jnp.int32),
            jnp.asarray(padded),
            tuple(node.snapshots[slot] for slot in stay),
        )

    return jax.tree.map(fit, old_state, is_leaf=is_snapshots)


def _beside_moments(leaf: Leaf, new: list[Leaf]) -> bool:
    """Whether a count is that of moments; that of `MultiSteps` is beside accumulated gradients, but the run's."""
    return leaf.field != "gradient_step" and any(each.node == leaf.node and each.is_moment for each in new)


def _lines(fields: dict[Any, list[str]]) -> Iterator[str]:
    for (node, kind), names in fields.items():
        where = " ".join(filter(None, ["/".join(node), kind]))
        yield f"{where}: {', '.join(dict.fromkeys(names))}"
