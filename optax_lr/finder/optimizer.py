"""The user's optimizer: a factory of the learning rate to a transformation whose rate is a row of a table.

The optimizer gets the table as a schedule and reads it by its own clock, as it will in the user's training: under
`MultiSteps` or `apply_if_finite`, after a warm-up of its own, at half the rate. A factory that takes numbers alone
gets the number of the run's step.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import checks
from ..learning_rate import is_holder, with_rates_of
from ..types import Array, PyTree
from .problem import does_not_take

Lane = Mapping[str, Any]
Factory = Callable[..., optax.GradientTransformation]

# The lane's entry that holds the rate of every step.
TABLE = "learning_rate_by_step"
# How the rate reaches the optimizer: as a schedule of its own clock, as one of the run's clock, or as a number.
Form = Literal["own clock", "run's clock", "number"]


def transformation(
    factory: Factory, by_name: bool, form: Form, lane: Lane, clock: Any, offset: Any
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of a lane.

    Args:
      by_name: whether the factory takes all entries of the lane as keywords, or the rate alone.
      clock: how many steps the run has made.
      offset: how many steps the optimizer's own clock had counted before the run.
    """
    table = jnp.asarray(lane[TABLE])

    def at(step: Any) -> Array:
        index = jnp.clip(jnp.asarray(step).astype(jnp.int32), 0, table.shape[0] - 1)
        return jax.lax.dynamic_index_in_dim(table, index, keepdims=False)

    rates: dict[str, Any] = {
        "own clock": lambda step: at(step - offset),
        "run's clock": lambda step: at(clock),
        "number": None if form != "number" else at(clock),
    }
    given = {name: value for name, value in lane.items() if name != TABLE}
    return made(factory, by_name, {**given, "learning_rate": rates[form]})


def made(factory: Factory, by_name: bool, lane: Lane) -> optax.GradientTransformationExtraArgs:
    """What the user's factory makes of a lane; what it cannot do is said in one sentence."""
    try:
        found = factory(**lane) if by_name else factory(lane["learning_rate"])
    except checks.TRACER_ERRORS as error:
        raise ValueError(
            "optimizer must not branch on the value of the learning rate, which is traced: use jnp.where."
        ) from error
    if not (hasattr(found, "init") and hasattr(found, "update")):
        raise ValueError(f"optimizer must return an optax.GradientTransformation, got {found!r}.")
    return optax.with_extra_args_support(found)


def updated(
    tx: optax.GradientTransformationExtraArgs,
    gradients: PyTree,
    opt_state: PyTree,
    trained: PyTree,
    extra: Mapping[str, Any],
) -> tuple[PyTree, PyTree]:
    """The updates and the new state, with those of the extra arguments that all parts of the optimizer take.

    Optax hands them to every part that may take some, and `sam`, for one, refuses those that it does not name.

    Raises:
      ValueError: one part needs what another refuses.
    """
    try:
        return tx.update(gradients, opt_state, trained, **extra)
    except TypeError as error:
        refused = [name for name in extra if f"unexpected keyword argument {name!r}" in str(error)]
        if not refused:
            raise
        try:
            taken = {name: value for name, value in extra.items() if name not in refused}
            return updated(tx, gradients, opt_state, trained, taken)
        except TypeError as other:
            raise ValueError(
                f"optimizer must have parts that take the same extra arguments, but {error}, and {other}."
            ) from other


def check_factory(factory: Any, lane: Lane, by_name: bool) -> None:
    """Refuse what is no factory, and one that does not take a lane's names."""
    if not callable(factory):
        raise ValueError(
            "optimizer must be a function of the learning rate, such as optax.adam or "
            f"lambda rate: optax.chain(...), got a {type(factory).__name__}."
        )
    if by_name and (why := does_not_take(factory, **lane)):
        raise ValueError(f"optimizer must take the names of lanes as keywords, {', '.join(lane)}: {why}.")


def forms_of(factory: Factory, by_name: bool, lane: Lane, trained: PyTree, opt_state: PyTree) -> list[Form]:
    """The forms in which the rate may reach the optimizer, the best first.

    A state of the user's decides between a schedule and a number: it is as one of them makes it.

    Raises:
      ValueError: the state is as neither makes it.
    """
    if opt_state is None:
        return ["own clock", "number"]
    schedule: Form = "own clock" if len(_counts(opt_state)) == 1 else "run's clock"
    differences = {
        form: _difference_to(form, factory, by_name, lane, trained, opt_state)
        for form in (schedule, "number")
    }
    fitting: list[Form] = [form for form, difference in differences.items() if not difference]
    if fitting:
        return fitting
    shown = any(map(is_holder, jax.tree.leaves(opt_state, is_leaf=is_holder)))
    hint = " (it keeps the rate: optimizer must do so, too, as visible(optax.adam) does)" if shown else ""
    raise ValueError(
        f"opt_state must be as optimizer(learning_rate).init(params) makes it, {differences['number']}{hint}."
    )


def _difference_to(
    form: Form, factory: Factory, by_name: bool, lane: Lane, trained: PyTree, opt_state: PyTree
) -> str:
    def init(lane: Lane, trained: PyTree) -> PyTree:
        zero = jnp.zeros((), jnp.int32)
        return transformation(factory, by_name, form, lane, zero, zero).init(trained)

    try:
        return difference(jax.eval_shape(init, dict(lane), trained), opt_state)
    except Exception as error:
        # A factory that takes no schedule has no state under one, and says so in its own way.
        return f"but it takes no {form}: {error}"


def count_of(opt_state: PyTree) -> int:
    """How many steps the clock of a state has counted; 0 where it has none, or several that differ."""
    counts = _counts(opt_state)
    return counts.pop() if len(counts) == 1 else 0


def _counts(opt_state: PyTree) -> set[int]:
    """The different numbers of steps that the counters of a state have counted."""
    found = optax.tree.get_all_with_path(opt_state, "count")
    return {int(np.max(np.asarray(count))) for _, count in found if np.size(count)}


def with_rate(opt_state: PyTree, tx: optax.GradientTransformationExtraArgs, trained: PyTree) -> PyTree:
    """A state with the rate of a transformation in it, wherever it holds one."""
    return with_rates_of(opt_state, tx.init(trained))


def difference(expected: PyTree, given: PyTree) -> str:
    """Where a tree of arrays first differs from the expected one, in words; empty where it does not."""
    ours, theirs = (
        {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (expected, given)
    )
    if lacking := [path for path in ours if path not in theirs]:
        return f"but it lacks {lacking[0]}"
    if beside := [path for path in theirs if path not in ours]:
        return f"but it also has {beside[0]}"
    for path, leaf in ours.items():
        found = theirs[path]
        if (leaf.shape, leaf.dtype) != (found.shape, found.dtype):
            return f"but it has {_described(found)} at {path} in place of {_described(leaf)}"
    one, two = jax.tree.structure(expected), jax.tree.structure(given)
    return "" if str(one) == str(two) else f"but its structure is {two} in place of {one}"


def _described(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"
