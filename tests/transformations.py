"""The one table of public factories of transformations that the laws run over. A row must stand for each."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from factories import INF, NAN

STEPS = 6


@dataclass(frozen=True, eq=False)
class TransformationCase:
    """A factory of transformations with arguments to try it at.

    `arguments` are its numeric arguments, each with a default and the lanes that `vmap` puts in its place;
    lanes must be valid alone (beside the others' defaults) and all together. `build(olr, **arguments)`
    makes the transformation; without it the factory is called with the arguments by name. An inner
    optimizer in it keeps its floats in float32, so that one law serves all. `extra` are the extra arguments
    that an update needs, each stacked over the `STEPS` updates of a run. `bad` lists, for each argument,
    values to be refused.
    """

    factory: str
    arguments: Mapping[str, tuple[Any, tuple[Any, Any]]]
    bad: Mapping[str, tuple[Any, ...]]
    build: Callable[..., optax.GradientTransformationExtraArgs] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    variant: str = ""

    @property
    def id(self) -> str:
        return f"{self.factory}{'-' if self.variant else ''}{self.variant}"

    @property
    def values(self) -> dict[str, Any]:
        return {name: value for name, (value, _) in self.arguments.items()}

    def make(self, olr: Any, **changes: Any) -> optax.GradientTransformationExtraArgs:
        """The transformation of package `olr` at the default arguments, but for `changes`."""
        values = {**self.values, **changes}
        return self.build(olr, **values) if self.build else getattr(olr, self.factory)(**values)

    def injectable(self, olr: Any) -> Callable[..., optax.GradientTransformationExtraArgs]:
        """A factory with the signature that `inject_hyperparams` reads."""
        factory = functools.partial(self.make, olr)
        names = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in self.values]
        factory.__signature__ = inspect.Signature(names)
        factory.__name__ = self.factory
        return factory


def parameters(dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    return {
        "bias": jnp.array([0.5, -1.0], dtype),
        "kernel": jnp.array([[1.0, -2.0], [0.25, 3.0], [-0.5, 0.75]], dtype),
    }


def gradients(dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    """One gradient a step for `parameters`, stacked; some are zero, and signs change."""
    normal = np.random.default_rng(4).normal
    kernel, bias = normal(size=(STEPS, 3, 2)), normal(size=(STEPS, 2))
    kernel[2], bias[3, 0] = 0.0, 0.0
    return {"bias": jnp.asarray(bias, dtype), "kernel": jnp.asarray(kernel, dtype)}


TRANSFORMATIONS = (
    TransformationCase(
        "scale_by_learning_rate",
        {"learning_rate": (0.1, (0.0, 2.0))},
        bad={"learning_rate": (-0.1, NAN, INF, "fast", (0.1, 0.2), None)},
    ),
    TransformationCase(
        "scale_by_learning_rate",
        {"init_value": (0.1, (0.0, 2.0)), "transition_steps": (4, (3, 9))},
        build=lambda olr, **numbers: olr.scale_by_learning_rate(
            olr.anneal_schedule(end_value=0.01, **numbers), flip_sign=False
        ),
        bad={},
        variant="schedule",
    ),
)
