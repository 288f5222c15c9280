"""An optimizer's state, carried into a changed optimizer: a run that is resumed under changed code."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import checks
from .learning_rate import ScaleByLearningRateState, get_learning_rates, is_holder, is_set
from .snapshots.transformation import SnapshotAtCycleEndsState
from .types import PyTree

_RATE, _LATE = "ScaleByLearningRateState", "UnfreezeAtState"
# What code says, and a state only repeats: kinds of state and their fields.
_CODE = {("ZeroUntilState", "starts"), ("InjectStatefulHyperparamsState", "hyperparams")}
_CLOCKS = ("count", "gradient_step")
# Kinds of state whose `count` is of something else than updates.
_OTHER_COUNTS = {"PlateauState", "ReduceLROnPlateauState"}
# Kinds of state whose numbers are by label or for all, and belong to no parameter whatever they are called.
_WITHOUT_MOMENTS = {_RATE, _LATE, "ScaleByLabelState", *(kind for kind, _ in _CODE)}


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


class _Leaf(NamedTuple):
    """An array of a state: in which node of which kind, and under which name there."""

    node: tuple[str, ...]
    kind: str
    name: tuple[str, ...]
    value: Any
    is_moment: bool  # whether it belongs to one parameter

    @property
    def field(self) -> str:
        return self.name[0]


def carry_state(
    old_state: optax.OptState, optimizer: optax.GradientTransformation, params: optax.Params
) -> CarriedState:
    """The state of a run, carried into an optimizer whose code has changed. Not inside `jit`.

    One rule says who wins: *what training made comes from the old state, what is written in code comes from the
    optimizer.* Training makes moments, counts, averages, gains, the scale of a plateau, snapshots. Code says rates,
    schedules, multipliers, starts and hyperparameters. So a rate that was set by hand ends here: set it again.

    What fits is found by the kind of state, the field and the path of the parameter, in whatever chain, partition
    or wrapper it is. A count that the old state lacks, of a new schedule, starts at the run's step. Moments of
    a parameter that the old state lacks start at zero; if none of an optimizer's fit, so does their count. With
    fewer slots the newest snapshots stay. Non-finite values are carried as they are. No state holds schedules or
    multipliers, so the table cannot name their changes.

    Args:
      old_state: the state of the optimizer as it was, for instance from a checkpoint: arrays of NumPy or JAX.
      optimizer: the optimizer to go on with.
      params: the parameters to go on with. The new state has the shardings that `optimizer.init(params)` gives it.

    Returns:
      A `CarriedState`.

    Raises:
      ValueError: nothing in `old_state` fits, it was restored as plain dicts, or it is traced.

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
    old, new = list(_located(_fitted_slots(old_state, fresh), params)), list(_located(fresh, params))
    step = max((leaf.value for leaf in old if _is_clock(leaf)), key=np.max, default=None)
    carried = _Carried(_sources(old, new), step)
    values = [carried.value_of(leaf, new) for leaf in new]
    taken = {id(leaf.value) for each in carried.found.values() for leaf in each.values()}
    report = carried.report
    for leaf in old:
        if id(leaf.value) not in taken and not _is_clock(leaf) and (leaf.kind, leaf.field) not in _CODE:
            report["dropped"][leaf.node, leaf.kind].append(leaf.field)
    if old and not any(leaf.kind for leaf in old):
        raise ValueError(
            "old_state must have the NamedTuples of its optimizer, and has plain dicts or sequences: restore the "
            "checkpoint into the structure of old_optimizer.init(params)."
        )
    if new and not report["kept"]:
        raise ValueError(
            f"old_state must fit at least a part of the optimizer's state, which has {_kinds(new)}, and has "
            f"{_kinds(old)}."
        )
    state = jax.tree.unflatten(jax.tree.structure(fresh), values)
    lines = {part: tuple(_lines(fields)) for part, fields in report.items()}
    return CarriedState(_with_rates(state, carried.without_rate, optimizer, params), **lines)


class _Carried:
    """The values of the new state, leaf by leaf, and what became of each."""

    def __init__(self, found: dict[tuple[str, ...], dict[tuple[str, ...], _Leaf]], step: Any) -> None:
        self.found, self.step = found, step
        self.values: dict[tuple[str, ...], Any] = {}
        self.without_rate: list[str] = []
        self.report: dict[str, dict[Any, list[str]]] = {
            part: defaultdict(list) for part in ("kept", "reset", "overridden", "dropped")
        }

    def value_of(self, leaf: _Leaf, new: list[_Leaf]) -> Any:
        part, line, value = self._chosen(leaf, new)
        self.report[part][leaf.node, leaf.kind].append(line)
        self.values[(*leaf.node, *leaf.name)] = value
        return value

    def _chosen(self, leaf: _Leaf, new: list[_Leaf]) -> tuple[str, str, Any]:
        found = self.found[leaf.node]
        source = found.get(leaf.name)
        if (leaf.kind, leaf.field) in _CODE and not (source is not None and self._is_scheduled(leaf, new)):
            return self._code(leaf, source)
        if leaf.kind == _RATE and leaf.field != "count" and source is not None:
            return self._rate(leaf, found)
        if source is not None:
            return "kept", leaf.field, _like(source.value, leaf.value)
        if leaf.kind == _LATE and leaf.field == "late":
            return self._late(leaf, new)
        if _is_clock(leaf) and self.step is not None and not _beside_moments(leaf, new):
            return "kept", f"{leaf.field} is the run's step {_shown(self.step)}", _like(self.step, leaf.value)
        if leaf.kind == _RATE and leaf.field == "learning_rate":
            self.without_rate.append("/".join(leaf.node))
        return "reset", leaf.field, leaf.value

    def _is_scheduled(self, leaf: _Leaf, new: list[_Leaf]) -> bool:
        """Whether an injected number follows a schedule: then the state's is the one of the last update."""
        schedule = (*leaf.node, "hyperparams_states", *leaf.name[1:])
        return leaf.field == "hyperparams" and any(each.node[: len(schedule)] == schedule for each in new)

    def _code(self, leaf: _Leaf, source: _Leaf | None) -> tuple[str, str, Any]:
        if leaf.name[1:] == ("learning_rate",):
            self.without_rate.append("/".join(leaf.node))
        if source is None or np.array_equal(source.value, leaf.value):
            return "reset" if source is None else "kept", leaf.field, leaf.value
        name = "/".join(leaf.name)
        return "overridden", f"{name} is {_shown(leaf.value)}, was {_shown(source.value)}", leaf.value

    def _rate(self, leaf: _Leaf, found: dict[tuple[str, ...], _Leaf]) -> tuple[str, str, Any]:
        """The rate of the last update, in both fields: so none is set."""
        old = ScaleByLearningRateState(*(found[name,].value for name in ScaleByLearningRateState._fields))
        value = _like(old.learning_rate, leaf.value)
        if leaf.field == "learning_rate" and np.any(is_set(old)):
            line = f"the rate {_shown(old.learning_rate)} was set by hand, and is again what the code says"
            return "overridden", line, value
        return "kept", leaf.field, value

    def _late(self, leaf: _Leaf, new: list[_Leaf]) -> tuple[str, str, Any]:
        """A label's own counter that the old state lacks: the optimizer's, or 0 if the label is yet to begin."""
        inner = (*leaf.node, "inner")
        begun = self.step is None or np.any(
            self.values[(*leaf.node, "clock", "starts", leaf.name[1])] < self.step
        )
        moments = [each for each in new if each.node[: len(inner)] == inner and each.is_moment]
        all_kept = all(each.name in self.found[each.node] for each in moments)
        if begun or all_kept:
            return "kept", leaf.field, _like(self.values[(*inner, *leaf.name[2].split("/"))], leaf.value)
        return "reset", leaf.field, leaf.value


def _sources(old: list[_Leaf], new: list[_Leaf]) -> dict[tuple[str, ...], dict[tuple[str, ...], _Leaf]]:
    """For each node of the new state, the old leaf for each name in it, where one fits."""
    before, after = _by_node(old), _by_node(new)
    return {node: _source(leaves, before, after) for node, leaves in after.items()}


def _source(
    leaves: list[_Leaf], old: dict[tuple[str, ...], list[_Leaf]], new: dict[tuple[str, ...], list[_Leaf]]
) -> dict[tuple[str, ...], _Leaf]:
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


def _located(tree: PyTree, params: optax.Params) -> Iterator[_Leaf]:
    """The leaves of a state, each with the innermost state that it is in; NamedTuples of parameters are none."""
    of_params = {type(node).__name__ for node in _named_tuples(params)}
    shapes = {_names(keys): np.shape(leaf) for keys, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for keys, value in jax.tree_util.tree_leaves_with_path(tree):
        names = _names(keys)
        here, kind, start = tree, "", 0
        for depth, key in enumerate(keys):
            if hasattr(here, "_fields") and type(here).__name__ not in of_params:
                kind, start = type(here).__name__, depth
            here = _child(here, key)
        name = names[start:] or ("",)
        of_parameter = any(name[at:] in shapes for at in range(1, len(name))) or shapes.get(()) == np.shape(
            value
        )
        yield _Leaf(names[:start], kind, name, value, of_parameter and kind not in _WITHOUT_MOMENTS)


def _names(keys: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in keys)


def _child(node: Any, key: Any) -> Any:
    if isinstance(node, dict):
        return node[key.key]
    if isinstance(node, tuple | list):
        return getattr(node, key.name) if hasattr(key, "name") else node[key.idx]
    return None  # a module or another tree of parameters, in which there is no state


def _named_tuples(tree: PyTree) -> Iterator[Any]:
    is_named = lambda node: hasattr(node, "_fields")  # noqa: E731
    for node in jax.tree.leaves(tree, is_leaf=is_named):
        if is_named(node):
            yield node
            yield from _named_tuples(tuple(node))


def _by_node(leaves: list[_Leaf]) -> dict[tuple[str, ...], list[_Leaf]]:
    nodes: dict[tuple[str, ...], list[_Leaf]] = {}
    for leaf in leaves:
        nodes.setdefault(leaf.node, []).append(leaf)
    return nodes


def _is_clock(leaf: _Leaf) -> bool:
    return len(leaf.name) == 1 and leaf.field in _CLOCKS and leaf.kind not in _OTHER_COUNTS


def _beside_moments(leaf: _Leaf, new: list[_Leaf]) -> bool:
    """Whether a count is that of moments; that of `MultiSteps` is beside accumulated gradients, but the run's."""
    return leaf.field != "gradient_step" and any(each.node == leaf.node and each.is_moment for each in new)


def _like(value: Any, leaf: Any) -> Any:
    """A copy of the value, of the dtype and in the place of a leaf."""
    if not isinstance(leaf, jax.Array):
        return np.array(value, np.result_type(leaf))
    if leaf.committed:
        return jax.device_put(jnp.array(value, leaf.dtype), leaf.sharding)
    on_host = value if jnp.issubdtype(leaf.dtype, jax.dtypes.extended) else np.asarray(value)
    return jnp.array(on_host, leaf.dtype)


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


def _with_rates(
    state: optax.OptState, paths: list[str], optimizer: optax.GradientTransformation, params: optax.Params
) -> optax.OptState:
    """The state, showing at some paths the rate of the next update, of which the old state knew nothing."""
    full = optax.with_extra_args_support(optimizer)

    @jax.jit
    def next_rates(state: optax.OptState, params: optax.Params) -> dict[str, Any]:
        still = jax.tree.map(jnp.zeros_like, params)
        return get_learning_rates(full.update(still, state, params, value=jnp.zeros(()))[1])

    rates = next_rates(state, params) if paths else {}

    def put(path: tuple[Any, ...], node: Any) -> Any:
        rate = rates.get("/".join(_names(path)))
        if rate is None or "/".join(_names(path)) not in paths:
            return node
        if isinstance(node, ScaleByLearningRateState):
            return node._replace(
                learning_rate=_like(rate, node.learning_rate), written=_like(rate, node.written)
            )
        shown = {"learning_rate": _like(rate, node.hyperparams["learning_rate"])}
        return node._replace(hyperparams={**node.hyperparams, **shown})

    return jax.tree_util.tree_map_with_path(put, state, is_leaf=is_holder)


def _lines(fields: dict[Any, list[str]]) -> Iterator[str]:
    for (node, kind), names in fields.items():
        where = " ".join(filter(None, ["/".join(node), kind]))
        yield f"{where}: {', '.join(dict.fromkeys(names))}"


def _kinds(leaves: list[_Leaf]) -> str:
    return checks.listed(dict.fromkeys(leaf.kind for leaf in leaves)) or "nothing"


def _shown(value: Any) -> str:
    return str(np.asarray(value).tolist()) if np.ndim(value) else f"{np.asarray(value).item():g}"
