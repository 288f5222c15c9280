"""Training: a problem and an optimizer to the task of an engine.

Here is the only place that takes a gradient, or knows what a carry holds.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import checks
from ..engine.task import Task
from ..types import Array, Metrics, PyTree
from .optimizer import (
    Factory,
    Form,
    Lane,
    difference,
    transformation,
    updated,
    with_rate,
)
from .problem import Outcome, Problem, is_number

Carry = dict[str, PyTree]


class TakesNumbersOnlyError(Exception):
    """The optimizer cannot be handed a schedule; it is handed numbers instead."""


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The functions of a search, without its data.

    A carry holds parameters that are `trained`, those that are `kept`, the model's `state`, the state of the
    `optimizer`, and, where the run's own clock is read, a `clock`.

    Attributes:
      problem: the user's loss.
      optimizer: the user's factory, of a rate or, `by_name`, of a lane's numbers as keywords.
      form: how the rate reaches the optimizer.
      static: what is no array in the parameters and in the model's state, as structures and leaves.
    """

    problem: Problem
    optimizer: Factory
    by_name: bool
    form: Form
    static: tuple[tuple[Any, tuple], tuple[Any, tuple]]

    def task(self, *, evaluates: bool) -> Task:
        """The engine's view of these functions."""
        return Task(
            step=self.step,
            begin=self.begin,
            evaluate=self.evaluate if evaluates else None,
            still=still,
            functions=(*self.problem.functions, self.optimizer),
            static=(self.problem.static, self.by_name, self.form, _hashable(self.static)),
        )

    def params(self, carry: Mapping[str, PyTree]) -> PyTree:
        """The user's own parameters, whole again."""
        structure, leaves = self.static[0]
        return _combine(carry["trained"], _combine(carry["kept"], jax.tree.unflatten(structure, leaves)))

    def model_state(self, carry: Mapping[str, PyTree]) -> PyTree:
        """The user's own model state, whole again."""
        structure, leaves = self.static[1]
        return _combine(carry["state"], jax.tree.unflatten(structure, leaves))

    def value(self, carry: Mapping[str, PyTree], batch: PyTree, key: Array) -> Outcome:
        """The loss of a batch, the arrays of the new model state, the metrics, and what is trained."""
        found = self.problem(self.params(carry), self.model_state(carry), batch, key)
        state = arrays(found.state)
        if why := difference(carry["state"], state):
            raise ValueError(f"loss_fn must return a new model_state like the one it was given, {why}.")
        params = carry["trained"] if found.params is None else partition(found.params)[0]
        return Outcome(found.loss, state, found.metrics, params)

    def evaluate(self, carry: Carry, eval_data: tuple[PyTree, Array]) -> Metrics:
        """Validation; every lane, seed and step is given one and the same key."""
        return self.problem.measure(self.params(carry), self.model_state(carry), *eval_data)

    def begin(self, start: Carry, lane: Lane, seed: Any) -> Carry:
        """A carry ready to train: with a new optimizer state, or with the lane's rate inside the one it has."""
        clock = {} if self.form == "own clock" else {"clock": jnp.zeros((), jnp.int32)}
        tx, trained = self._transformation({**start, **clock}, lane), start["trained"]
        try:
            fresh = with_rate(start["optimizer"], tx, trained) if "optimizer" in start else tx.init(trained)
        except (TypeError, AttributeError) as error:
            if self.form == "number":
                raise
            raise TakesNumbersOnlyError from error
        model_state = self.model_state(start)
        state = start["state"] if model_state is None else arrays(self.problem.begun(model_state, seed))
        return {**start, **clock, "state": state, "optimizer": fresh}

    def step(self, carry: Carry, lane: Lane, batch: PyTree, key: Array) -> tuple[Carry, Metrics]:
        """One step of training."""

        def loss_of(trained: PyTree) -> tuple[Array, Outcome]:
            found = self.value({**carry, "trained": trained}, batch, key)
            return found.loss, found

        (loss, found), gradients = jax.value_and_grad(loss_of, has_aux=True)(carry["trained"])
        # A loss that writes to its parameters (weight normalization) has done so before the update.
        trained, tx = found.params, self._transformation(carry, lane)
        before, clock = carry["optimizer"], {}
        if "clock" in carry:
            before, clock = with_rate(before, tx, trained), {"clock": carry["clock"] + 1}
        try:
            extra = {"value": loss, "grad": gradients, "value_fn": lambda trained: loss_of(trained)[0]}
            updates, optimizer_state = updated(tx, settled(gradients), before, trained, extra)
        except Exception as error:
            if self.form != "number":
                raise TakesNumbersOnlyError from error
            if isinstance(error, checks.TRACER_ERRORS):
                raise ValueError(
                    "optimizer must be one that JAX can trace, and a schedule in it, or the optimizer, branches on "
                    "the step or on another traced number: use jnp.where or optax.join_schedules."
                ) from error
            raise
        after = {"trained": optax.apply_updates(trained, updates), "optimizer": optimizer_state}
        return {**carry, **after, **clock, "state": found.state}, {"loss": loss, **found.metrics}

    def _transformation(self, carry: Carry, lane: Lane) -> optax.GradientTransformationExtraArgs:
        try:
            return transformation(
                self.optimizer, self.by_name, self.form, lane, carry.get("clock"), carry["offset"]
            )
        except Exception as error:
            if self.form == "number":
                raise
            raise TakesNumbersOnlyError from error


def still(before: Carry, after: Carry) -> Carry:
    """What a step leaves behind where nothing is trained: the model's state goes on."""
    return {**before, "state": after["state"]}


def settled(gradients: PyTree) -> PyTree:
    """Gradients that are computed before they are read, on GPUs.

    There the update would otherwise be fused with the transposition of the gradient, which is then copied. On a TPU
    gradient and update are one fusion, and a barrier costs its bytes.
    """
    return jax.lax.platform_dependent(
        gradients,
        cuda=jax.lax.optimization_barrier,
        rocm=jax.lax.optimization_barrier,
        default=lambda tree: tree,
    )


def partition(params: PyTree) -> tuple[PyTree, PyTree, PyTree]:
    """Leaves that are trained, arrays that are carried along, and what is no array; None in each other's place."""

    def kind(leaf: Any) -> int:
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
            return 2
        return 0 if jnp.issubdtype(leaf.dtype, jnp.floating) else 1

    def part(wanted: int) -> PyTree:
        return jax.tree.map(lambda leaf: leaf if kind(leaf) == wanted else None, params)

    return part(0), part(1), part(2)


def arrays(tree: PyTree) -> PyTree:
    """A tree's arrays and numbers, as arrays; None in place of all else."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) if is_number(leaf) else None, tree)


def _hashable(static: Any) -> Any:
    """What is no array, as a key; leaves that cannot be hashed stand for themselves alone."""
    try:
        hash(static)
    except TypeError:
        return object()
    return static


def _combine(tree: PyTree, other: PyTree) -> PyTree:
    """The leaves of both trees, each of which has None where the other has a leaf."""
    return jax.tree.map(
        lambda one, two: two if one is None else one, tree, other, is_leaf=lambda leaf: leaf is None
    )
