"""Any optimizer of Optax with a learning rate that is in the state: it can be read and set."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec

import jax
import optax

from .learning_rate import ScaleByLearningRateState, as_schedule, first_rate, is_holder, next_rate
from .types import Schedule

Arguments = ParamSpec("Arguments")


class VisibleState(NamedTuple):
    """The state of an optimizer that `visible` made.

    Attributes:
      rate: the learning rate, read and set as that of `scale_by_learning_rate`.
      inner_state: the state of the optimizer itself, as `factory(schedule)` has it.
    """

    rate: ScaleByLearningRateState
    inner_state: optax.OptState


def visible(
    factory: Callable[Arguments, optax.GradientTransformation],
) -> Callable[Arguments, optax.GradientTransformationExtraArgs]:
    """A factory of optimizers, made to keep the learning rate in the state: `visible(optax.adam)(rate)`.

    update = factory(rate_now).update, where rate_now is the rate that was set, if any, else the number, or the
    schedule at the count of this optimizer's updates. `get_learning_rate` reads it, `set_learning_rate` and
    `optax.tree.set` set it. The updates are those of `factory(rate)`, and no kernel is added that touches a
    parameter.

    A non-finite gradient is `factory`'s. A schedule's non-finite value is passed on to the optimizer.

    Args:
      factory: a function that takes a learning rate (the argument `learning_rate`, else the first one), a schedule
        too, and returns a transformation: `optax.adam`, `optax.contrib.muon`, one of your own.

    Returns:
      A function with the arguments of `factory`. The rate is a finite number of at least 0, or a schedule. What it
      returns is an optimizer whose state is a `VisibleState`.

    Raises:
      ValueError: `factory` is no function or takes no argument; when called, a concrete rate is negative or not
        finite; on init or update, `factory` takes no schedule, does not read it (`optax.rprop`: a first step, no
        rate), or makes a visible rate itself.

    >>> import jax.numpy as jnp
    >>> from optax_lr import get_learning_rate, set_learning_rate
    >>> tx = visible(optax.sgd)(0.5, momentum=0.9)
    >>> state = set_learning_rate(tx.init(jnp.ones(2)), 0.25)
    >>> updates, state = tx.update(jnp.ones(2), state)
    >>> updates.tolist(), float(get_learning_rate(state))
    ([-0.25, -0.25], 0.25)

    Source: `optax.inject_hyperparams`, without its casts and with a schedule that can be set.
    """
    signature, name = _rate_of(factory)

    def make(*args: Arguments.args, **options: Arguments.kwargs) -> optax.GradientTransformationExtraArgs:
        rate_or_schedule: Any = signature.bind(*args, **options).arguments.get(name)
        schedule = as_schedule(rate_or_schedule)

        def optimizer(rate: Schedule) -> optax.GradientTransformationExtraArgs:
            given = signature.bind(*args, **options)
            given.arguments[name] = rate
            try:
                return optax.with_extra_args_support(factory(*given.args, **given.kwargs))
            except TypeError as error:
                raise _no_schedule(factory, name) from error

        optimizer(schedule)  # what the factory refuses, it refuses now

        def init(params: optax.Params) -> VisibleState:
            rate = first_rate(schedule)
            try:
                inner_state = optimizer(lambda count: rate.learning_rate).init(params)
            except TypeError as error:
                raise _no_schedule(factory, name) from error
            if any(map(is_holder, jax.tree.leaves(inner_state, is_leaf=is_holder))):
                raise ValueError(
                    "factory makes optimizers with a visible learning rate already: call it without visible."
                )
            return VisibleState(rate, inner_state)

        def update(
            updates: optax.Updates,
            state: VisibleState,
            params: optax.Params | None = None,
            **extra_args: Any,
        ) -> tuple[optax.Updates, VisibleState]:
            rate, asked = next_rate(schedule, state.rate), []

            def rate_now(count: Any) -> Any:
                asked.append(count)
                return rate.learning_rate

            moved, inner_state = optimizer(rate_now).update(updates, state.inner_state, params, **extra_args)
            if not asked:
                raise _no_schedule(factory, name)
            return moved, VisibleState(rate, inner_state)

        return optax.GradientTransformationExtraArgs(init, update)

    make.__signature__ = signature  # type: ignore[attr-defined]  # inject_hyperparams reads it
    make.__name__ = getattr(factory, "__name__", "optimizer")
    return make


def _rate_of(factory: Callable[..., Any]) -> tuple[inspect.Signature, str]:
    """The signature of a factory, and the name of its argument that is the rate."""
    if not callable(factory):
        raise ValueError(
            f"factory must be a function of the learning rate, got a {type(factory).__name__}: "
            "visible(optax.adam)(0.1) in place of visible(optax.adam(0.1))."
        )
    signature = inspect.signature(factory)
    names = list(signature.parameters)
    if not names:
        raise ValueError(f"factory must take a learning rate, and {factory!r} takes no argument.")
    return signature, "learning_rate" if "learning_rate" in names else names[0]


def _no_schedule(factory: Callable[..., Any], name: str) -> ValueError:
    which = getattr(factory, "__name__", factory)
    return ValueError(
        f"factory must read {name} as a schedule at each update, which {which} does not: use a factory that "
        "ends in optax.scale_by_learning_rate."
    )
