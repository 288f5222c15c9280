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
from cases import INF, NAN, Case

STEPS = 6

# Fields that record something for readers begin so: setting one changes nothing, and its name says why.
RECORD = "last_"

# Labels by path, so that they hold on every tree that the laws use: lists have indices for names.
GROUPS = {r"bias|0|.*/bias": "first", r"kernel|1|.*/kernel": "second"}


@dataclass(frozen=True, eq=False)
class TransformationCase(Case):
    """A factory of transformations with arguments to try it at.

    `arguments` are its numeric arguments, each with a default and the lanes that `vmap` puts in its place;
    lanes must be valid alone (beside the others' defaults) and all together. `build(olr, **arguments)`
    makes the transformation; without it the factory is called with the arguments by name. An inner
    optimizer in it keeps its floats in float32, so that one law serves all. `extra` are the extra arguments
    that an update needs, each stacked over the `STEPS` updates of a run. `bad` lists, for each argument,
    values to be refused. `keeps_params` says that the state holds parameters, in their own dtype; `labeled` that
    it needs the paths of the parameters; `measures` is the part of paths in the state under which there are
    norms of the kernel, which see all of its values.
    """

    factory: str
    arguments: Mapping[str, tuple[Any, tuple[Any, Any]]]
    bad: Mapping[str, tuple[Any, ...]]
    build: Callable[..., optax.GradientTransformationExtraArgs] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    keeps_params: bool = False
    labeled: bool = False
    measures: str | None = None
    variant: str = ""

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


GAINS: dict[str, tuple] = {
    "increase": (0.05, (0.0, 0.3)),
    "decrease": (0.95, (0.5, 1.0)),
    "min_gain": (0.1, (0.5, 1.0)),
    "max_gain": (10.0, (1.1, 2.0)),
}
BAD_GAINS: dict[str, tuple] = {
    "increase": (-0.1, NAN, "more"),
    "decrease": (0.0, 1.5, NAN),
    "min_gain": (0.0, -1.0, 20.0, NAN),
    "max_gain": (0.05, 1e31, INF),
}
MOMENTUM: dict[str, tuple] = {"momentum": (0.9, (0.0, 0.5))}
BAD_MOMENTUM: dict[str, tuple] = {"momentum": (1.0, -0.1, NAN)}
RATE: dict[str, tuple] = {"learning_rate": (0.1, (0.0, 2.0))}
STEP_SIZES: dict[str, tuple] = {
    "decrease": (0.5, (0.1, 0.9)),
    "increase": (1.2, (1.5, 3.0)),
    "initial_step": (0.1, (0.05, 0.4)),
    "min_step": (1e-6, (0.01, 0.05)),
    "max_step": (50.0, (0.4, 0.5)),
}
BAD_STEP_SIZES: dict[str, tuple] = {
    "decrease": (0.0, 1.0, NAN),
    "increase": (1.0, 0.5, INF),
    "initial_step": (1e-7, 100.0, NAN),
    "min_step": (0.0, -1.0, 100.0),
    "max_step": (1e-9, INF, "far"),
}
VALUES: dict[str, tuple] = {"value": (3.0, 3.5, 2.0, 2.0, 2.5, 1.0)}
PLATEAU: dict[str, tuple] = {
    "factor": (0.5, (0.1, 0.9)),
    "patience": (0, (1, 2)),
    "rtol": (1e-4, (0.0, 0.3)),
    "atol": (0.0, (0.1, 0.6)),
    "cooldown": (0, (1, 2)),
    "min_scale": (0.0, (0.3, 0.6)),
    "accumulation_size": (1, (2, 3)),
    "max_scale": (1.0, (1.5, 4.0)),
}
RAISING: dict[str, tuple] = {
    "every": (1, (2, 3)),
    "raise_factor": (2.0, (1.5, 3.0)),
    "raise_patience": (3, (4, 5)),
    "raise_after_progress": (2, (1, 3)),
}


def momentum() -> optax.GradientTransformation:
    """An inner optimizer whose state is float32 and whose updates leave with their dtype, as ours do."""
    trace = optax.trace(0.9, accumulator_dtype=jnp.float32)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        moved, state = trace.update(updates, state, params)
        return jax.tree.map(lambda new, old: new.astype(jnp.result_type(old)), moved, updates), state

    return optax.GradientTransformation(trace.init, update)


def _snapshots(olr, first, burn_in, learning_rate, max_snapshots=2):
    """Snapshots after a rate, so that there is a value to differentiate by."""
    return optax.chain(
        olr.scale_by_learning_rate(learning_rate),
        olr.snapshot_at_cycle_ends(olr.Cycles(first, growth=2), max_snapshots, burn_in=burn_in),
    )


TRANSFORMATIONS = (
    TransformationCase(
        "visible",
        {"learning_rate": (0.1, (0.0, 2.0))},
        build=lambda olr, learning_rate: olr.visible(
            lambda rate: optax.chain(momentum(), optax.scale_by_learning_rate(rate))
        )(learning_rate),
        bad={"learning_rate": (-0.1, NAN, INF, "fast", None)},
    ),
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
    TransformationCase("scale_by_local_gains", GAINS, bad=BAD_GAINS | BAD_MOMENTUM),
    *(
        TransformationCase(
            "scale_by_local_gains",
            MOMENTUM,
            bad={},
            build=functools.partial(
                lambda olr, nesterov, **numbers: olr.scale_by_local_gains(nesterov=nesterov, **numbers),
                nesterov=nesterov,
            ),
            variant="nesterov" if nesterov else "momentum",
        )
        for nesterov in (False, True)
    ),
    *(
        TransformationCase(
            factory,
            {"increase": numbers["increase"], "decrease": numbers["decrease"]},
            bad={},
            build=functools.partial(
                lambda olr, factory, **numbers: getattr(olr, factory)(keep_sign=True, **numbers),
                factory=factory,
            ),
            variant="keep_sign",
        )
        for factory, numbers in (("scale_by_local_gains", GAINS), ("scale_by_rprop", STEP_SIZES))
    ),
    TransformationCase(
        "scale_by_delta_bar_delta",
        GAINS | {"average_decay": (0.7, (0.0, 0.9))},
        bad=BAD_GAINS | {"average_decay": (1.0, -0.1, NAN)},
    ),
    TransformationCase("local_gains", RATE | MOMENTUM, bad=BAD_GAINS | BAD_MOMENTUM),
    TransformationCase(
        "scale_by_rprop", STEP_SIZES, bad=BAD_STEP_SIZES | {"variant": ("irprop-", "Rprop", None)}
    ),
    *(
        TransformationCase(
            "scale_by_rprop",
            {"decrease": (0.5, (0.1, 0.9))},
            bad={},
            build=functools.partial(
                lambda olr, variant, **numbers: olr.scale_by_rprop(variant=variant, **numbers),
                variant=variant,
            ),
            extra=VALUES if variant == "iRprop+" else {},
            variant=variant,
        )
        for variant in ("iRprop+", "Rprop+", "Rprop-")
    ),
    TransformationCase("rprop", RATE | {"initial_step": (0.1, (0.05, 0.4))}, bad=BAD_STEP_SIZES),
    TransformationCase(
        "reduce_on_plateau",
        PLATEAU,
        bad={
            "factor": (0.0, 1.0, NAN),
            "patience": (-1, INF, 0.5),
            "rtol": (-1e-4, NAN),
            "atol": (-1e-4, INF),
            "cooldown": (-1, NAN),
            "min_scale": (-0.1, 1.5),
            "accumulation_size": (0, -2),
            "every": (0, 0.1, NAN),
            "max_scale": (0.5, INF),
            "raise_factor": (2.0,),
            "raise_patience": (0, -1, NAN),
            "raise_after_progress": (0, NAN),
            "mode": ("low", None),
            "non_finite": ("skip",),
        },
        extra=VALUES,
    ),
    TransformationCase(
        "reduce_on_plateau",
        RAISING,
        bad={"raise_factor": (1.0, 0.5, NAN)},
        build=lambda olr, **numbers: olr.reduce_on_plateau(
            patience=1, max_scale=8.0, mode="max", non_finite="reduce", **numbers
        ),
        extra=VALUES,
        variant="raising",
    ),
    TransformationCase(
        "reduce_on_plateau",
        {"factor": (0.5, (0.1, 0.9)), "accumulation_size": (2, (3, 4))},
        bad={},
        build=lambda olr, **numbers: olr.reduce_on_plateau(patience=0, **numbers),
        extra=VALUES,
        variant="mean",
    ),
    TransformationCase(
        "scale_by_label",
        {"first": (0.5, (0.0, 2.0)), "second": (1.0, (0.0, 0.25))},
        build=lambda olr, first, second: olr.scale_by_label(
            {"first": first, "second": second}, olr.label_by_path(GROUPS)
        ),
        bad={"first": (-0.5, NAN, INF, "half"), "second": (-1, None)},
        labeled=True,
    ),
    TransformationCase(
        "scale_by_label",
        {"init_value": (0.5, (0.0, 2.0)), "transition_steps": (4, (3, 9))},
        build=lambda olr, **numbers: olr.scale_by_label(
            {"first": olr.anneal_schedule(end_value=0.25, **numbers), "second": 0.5},
            olr.label_by_path(GROUPS),
        ),
        bad={},
        variant="schedule",
        labeled=True,
    ),
    TransformationCase(
        "train_only",
        {"learning_rate": (0.1, (0.0, 2.0))},
        build=lambda olr, learning_rate: olr.train_only(
            optax.chain(momentum(), olr.scale_by_learning_rate(learning_rate)),
            "second",
            olr.label_by_path(GROUPS),
        ),
        bad={"learning_rate": (-0.1,)},
        labeled=True,
    ),
    TransformationCase(
        "zero_until",
        {"first": (2, (0, 5)), "second": (0, (1, 3))},
        build=lambda olr, first, second: olr.zero_until(
            {"first": first, "second": second}, olr.label_by_path(GROUPS)
        ),
        bad={"first": (-1, NAN, "late"), "second": (2**31, None)},
        labeled=True,
    ),
    TransformationCase(
        "unfreeze_at",
        {"first": (2, (0, 5))},
        build=lambda olr, first: olr.unfreeze_at(momentum(), {"first": first}, olr.label_by_path(GROUPS)),
        bad={"first": (-1, NAN, INF)},
        labeled=True,
    ),
    TransformationCase(
        "fine_tune",
        {"multiplier": (0.5, (0.0, 2.0)), "start": (2, (0, 5)), "learning_rate": (0.1, (0.0, 2.0))},
        build=lambda olr, multiplier, start, learning_rate: olr.fine_tune(
            optax.chain(momentum(), olr.scale_by_learning_rate(learning_rate)),
            {"second": multiplier},
            olr.label_by_path(GROUPS),
            frozen="first",
            starts={"second": start},
        ),
        bad={"multiplier": (-1.0, NAN), "start": (-1, NAN), "learning_rate": (INF,)},
        labeled=True,
    ),
    TransformationCase(
        "track_effective_rates",
        {"learning_rate": (0.1, (0.0, 2.0)), "every": (2, (1, 3))},
        build=lambda olr, learning_rate, every: olr.track_effective_rates(
            olr.scale_by_learning_rate(learning_rate), olr.label_by_path(GROUPS), every=every
        ),
        bad={"learning_rate": (-0.1,), "every": (0, -1, 0.5, 1.5, NAN, INF, "often", None)},
        measures="second",
        labeled=True,
    ),
    TransformationCase(
        "track_effective_rates",
        {"learning_rate": (0.1, (0.0, 2.0))},
        build=lambda olr, learning_rate: olr.track_effective_rates(
            olr.scale_by_learning_rate(learning_rate), olr.label_by_path(GROUPS)
        ),
        bad={},
        measures="second",
        labeled=True,
        variant="every step",
    ),
    TransformationCase(
        "snapshot_at_cycle_ends",
        {"first": (1, (1, 2)), "burn_in": (0, (0, 1)), "learning_rate": (0.1, (0.0, 2.0))},
        build=_snapshots,
        bad={
            "first": (0, 0.5, NAN, None),
            "max_snapshots": (0, 1.5, NAN, "many"),
            "burn_in": (-1, 0.5, INF),
        },
        keeps_params=True,
    ),
)
