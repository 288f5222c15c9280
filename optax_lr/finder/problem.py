"""Training: a user's loss, parameters and optimizer to the `init`, `step` and `evaluate` of an engine, and back.

Between `sweep`, which knows neither losses nor optimizers and serves any step, and `finder`, which decides which
lanes are run and how long: here is the only place that takes a gradient, calls the optimizer's factory, or knows
what a carry holds. A *lane* is a dict of traced numbers, `learning_rate` among them.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .. import checks
from ..engine.batches import is_stacked, read_batches, root_key
from ..engine.placement import is_key
from ..learning_rate import with_rates_of
from ..types import Array, Metrics, PyTree, ScalarLike, Schedule

Lane = Mapping[str, ScalarLike]

# The number of a lane that says how many steps its run has, where a `Timed` rate asks; the optimizer is not told.
RUN_STEPS = "run_steps"

# Where keys of starts and of evaluations come from; the engine's own are numbered by seed, from 0.
_START_STREAM, _EVAL_STREAM = 2**32 - 1, 2**32 - 2

_TRACER_ERRORS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)

# What a loss returns, by whether it has a model state and whether it has metrics.
_LOSS_FORMS = {
    (False, False): "one scalar",
    (False, True): "(loss, metrics), the loss one scalar",
    (True, False): "(loss, new_state), the loss one scalar",
    (True, True): "(loss, (new_state, metrics)), the loss one scalar",
}


class Loss(NamedTuple):
    """A user's loss, and which form it has; see `lr_find`."""

    loss_fn: Callable[..., Any]
    eval_fn: Callable[..., Any] | None
    with_key: bool
    with_state: bool
    has_aux: bool

    def arguments(self, params: PyTree, model_state: PyTree, batch: PyTree, key: Array) -> dict[str, Any]:
        """What `loss_fn` takes, by the name that the documentation uses, in order."""
        state = {"model_state": model_state} if self.with_state else {}
        return {"params": params, **state, "batch": batch, **({"key": key} if self.with_key else {})}

    def __call__(
        self, params: PyTree, model_state: PyTree, batch: PyTree, key: Array
    ) -> tuple[Array, PyTree, Metrics]:
        """The loss, the new model state and the metrics, whatever the form."""
        found = self.loss_fn(*self.arguments(params, model_state, batch, key).values())
        form = bool(self.with_state), bool(self.has_aux)
        match *form, found:
            case False, False, loss if _is_scalar(loss):
                return jnp.asarray(loss), None, {}
            case False, True, (loss, metrics) if _is_scalar(loss):
                return jnp.asarray(loss), None, _scalars("loss_fn", metrics, without="loss")
            case True, False, (loss, state) if _is_scalar(loss):
                return jnp.asarray(loss), state, {}
            case True, True, (loss, (state, metrics)) if _is_scalar(loss):
                return jnp.asarray(loss), state, _scalars("loss_fn", metrics, without="loss")
        hint = "; what is beside it needs has_aux or model_state" if form == (False, False) else ""
        beside = hint if isinstance(found, tuple) else ""
        raise ValueError(f"loss_fn must return {_LOSS_FORMS[form]}, got {checks.shapes(found)}{beside}.")

    def measure(self, params: PyTree, model_state: PyTree, eval_batch: PyTree, key: Array) -> Metrics:
        """What is reported of validation data, "loss" among it."""
        if self.eval_fn is None:
            loss, _, metrics = self(params, model_state, eval_batch, key)
            return {"loss": loss, **metrics}
        found = self.eval_fn(params, *((model_state,) if self.with_state else ()), eval_batch)
        measured = _scalars("eval_fn", found if isinstance(found, Mapping) else {"loss": found})
        if "loss" not in measured:
            raise ValueError(f'eval_fn must return a loss or a dict with "loss", got {sorted(measured)}.')
        return measured


class Timed(NamedTuple):
    """A rate that the search itself moves, by a clock of its own: `rate(lane, step, *given)`, a number.

    So it serves optimizers that take no schedule, and states that have counted steps before.
    """

    rate: Callable[..., ScalarLike]
    given: tuple = ()


class Trainer(NamedTuple):
    """The functions of a search, without its data; equal where they come from the same functions of the user's.

    Attributes:
      loss: the user's loss.
      optimizer: the user's factory, of a rate or, `by_name`, of a lane's numbers as keywords; the learning rate
        may be a schedule.
      steady: whether a constant rate goes to the optimizer as a schedule, because the state to start from is
        that of a schedule.
      static: what is no array in the parameters and in the model's state, as structures and leaves.
    """

    loss: Loss
    optimizer: Callable[..., optax.GradientTransformation]
    by_name: bool
    steady: bool
    static: tuple[tuple[Any, tuple], tuple[Any, tuple]]

    def params(self, carry: Mapping[str, PyTree]) -> PyTree:
        """The user's own parameters, whole again."""
        structure, leaves = self.static[0]
        return _combine(carry["trained"], _combine(carry["kept"], jax.tree.unflatten(structure, leaves)))

    def model_state(self, carry: Mapping[str, PyTree]) -> PyTree:
        """The user's own model state, whole again."""
        structure, leaves = self.static[1]
        return _combine(carry["state"], jax.tree.unflatten(structure, leaves))

    def value(self, carry: Mapping[str, PyTree], batch: PyTree, key: Array) -> tuple[Array, PyTree, Metrics]:
        """The loss of a batch, the arrays of the new model state, and the metrics."""
        loss, new_state, metrics = self.loss(self.params(carry), self.model_state(carry), batch, key)
        state = _arrays(new_state)
        if why := _difference(carry["state"], state):
            raise ValueError(f"loss_fn must return a new model_state like the one it was given, {why}.")
        return loss, state, metrics

    def evaluate(self, carry: Mapping[str, PyTree], eval_data: tuple[PyTree, Array]) -> Metrics:
        """What an engine calls to evaluate; every lane, seed and step is given one and the same key."""
        return self.loss.measure(self.params(carry), self.model_state(carry), *eval_data)

    def init(
        self, carry: dict[str, PyTree], lane: Lane, schedule: Callable | Timed | None = None
    ) -> dict[str, PyTree]:
        """A carry ready to train: with a new optimizer state, or with the lane's numbers inside the one it has."""
        begun = {**carry, "clock": jnp.zeros((), jnp.int32)} if isinstance(schedule, Timed) else carry
        return self._ready(begun, self._transformation(begun, lane, schedule))

    def step(
        self,
        carry: dict[str, PyTree],
        lane: Lane,
        batch: PyTree,
        key: Array,
        schedule: Callable | Timed | None = None,
    ) -> tuple[dict[str, PyTree], Metrics]:
        """One step of training."""

        def loss_of(trained: PyTree) -> tuple[Array, tuple[PyTree, Metrics]]:
            loss, *beside = self.value({**carry, "trained": trained}, batch, key)
            return loss, tuple(beside)

        trained = carry["trained"]
        (loss, (state, metrics)), gradients = jax.value_and_grad(loss_of, has_aux=True)(trained)
        transformation = self._transformation(carry, lane, schedule)
        ready = self._ready(carry, transformation) if "clock" in carry else carry
        updates, optimizer_state = transformation.update(
            gradients,
            ready["optimizer"],
            trained,
            value=loss,
            grad=gradients,
            value_fn=lambda trained: loss_of(trained)[0],
        )
        after = {"trained": optax.apply_updates(trained, updates), "optimizer": optimizer_state}
        clock = {"clock": carry["clock"] + 1} if "clock" in carry else {}
        return {**carry, **after, **clock, "state": state}, {"loss": loss, **metrics}

    def _ready(
        self, carry: dict[str, PyTree], transformation: optax.GradientTransformation
    ) -> dict[str, PyTree]:
        """With the rate of the transformation in the optimizer's state, wherever that holds one."""
        fresh = transformation.init(carry["trained"])
        return {
            **carry,
            "optimizer": with_rates_of(carry["optimizer"], fresh) if "optimizer" in carry else fresh,
        }

    def _transformation(
        self, carry: dict[str, PyTree], lane: Lane, schedule: Callable | Timed | None
    ) -> optax.GradientTransformationExtraArgs:
        rate: Any = lane["learning_rate"]
        try:
            if isinstance(schedule, Timed):
                rate = schedule.rate(lane, carry["clock"], *schedule.given)
            elif schedule is not None:
                rate = schedule(rate)
        except _TRACER_ERRORS as error:
            raise _must_not_branch("schedule") from error
        if self.steady and not callable(rate):
            rate = _steady(rate)
        told = {name: x for name, x in lane.items() if not isinstance(schedule, Timed) or name != RUN_STEPS}
        return _made(self.optimizer, self.by_name, {**told, "learning_rate": rate})


class Problem(NamedTuple):
    """What all stages of a search share, checked.

    Attributes:
      trainer: the functions.
      starts: the carry that all seeds start from, or with leading axis [seeds] where each has `drawn` its own:
        parameters that are `trained`, those that are `kept`, the model's `state`, and the state of the
        `optimizer` where the run has one already.
      batches: the data with leading axis [batches], to `stream` where they came one by one.
      eval_data: validation data and the key that goes with them, or None.
      key: where orders and keys come from.
    """

    trainer: Trainer
    starts: dict[str, PyTree]
    drawn: bool
    batches: PyTree
    stream: bool
    eval_data: tuple[PyTree, Array] | None
    key: Array

    def start(self) -> dict[str, PyTree]:
        """What the first seed starts from."""
        return jax.tree.map(lambda leaf: leaf[0], self.starts) if self.drawn else self.starts

    def ended(self, carry: Mapping[str, PyTree]) -> tuple[PyTree, PyTree]:
        """The user's parameters and model state of a carry that an engine returned, random keys made whole."""

        def whole(begun: Any, ended: Any) -> Any:
            if not is_key(begun):
                return ended
            return jax.random.wrap_key_data(ended, impl=jax.random.key_impl(begun))

        start = self.start()
        parts = {name: jax.tree.map(whole, start[name], carry[name]) for name in ("trained", "kept", "state")}
        trainer = self.trainer
        return trainer.params(parts), None if parts["state"] is None else trainer.model_state(parts)


def pose(
    loss: Loss,
    params: PyTree | Callable[[Array], PyTree],
    optimizer: Callable[..., optax.GradientTransformation],
    batches: PyTree | Iterable[PyTree],
    *,
    model_state: PyTree,
    opt_state: PyTree,
    eval_batch: PyTree,
    lane: Lane,
    by_name: bool = False,
    scheduled: bool = False,
    read: int,
    needed: int | None,
    seeds: int,
    key: Array | None,
) -> Problem:
    """Check and unpack what a user hands over; `lane` is one of those to come, `scheduled` whether by a schedule.

    Raises:
      ValueError: wrong input, in one sentence.
    """
    if loss.eval_fn is not None and eval_batch is None:
        raise ValueError("eval_fn needs eval_batch: the data that it is called with.")
    root = root_key(key)
    drawn = _is_drawn(params) or _is_drawn(model_state)
    keys = _start_keys(root, seeds) if drawn else [root]
    parts = [_partition(start) for start in _starts(params, keys)]
    states = _starts(model_state, keys)
    trained, _, static = parts[0]
    resumed = None if opt_state is None else jax.tree.map(jnp.asarray, opt_state)
    if not jax.tree.leaves(trained):
        raise ValueError("params must have a leaf that is an array of floats, got none.")
    carries = [
        {"trained": trained, "kept": kept, "state": _arrays(state)}
        | ({} if resumed is None else {"optimizer": resumed})
        for (trained, kept, _), state in zip(parts, states, strict=True)
    ]
    _check_optimizer(optimizer, lane, by_name)
    factory = functools.partial(_made, optimizer, by_name)
    steady = resumed is not None and _is_of_schedule(factory, resumed, trained, lane, scheduled)
    data = read_batches(batches, read, needed)
    problem = Problem(
        trainer=Trainer(loss, optimizer, by_name, steady, (_flat(static), _flat(_static(states[0])))),
        starts=jax.tree.map(lambda *leaves: jnp.stack(leaves), *carries) if drawn else carries[0],
        drawn=drawn,
        batches=data,
        stream=not is_stacked(batches),
        eval_data=None if eval_batch is None else (eval_batch, jax.random.fold_in(root, _EVAL_STREAM)),
        key=root,
    )
    _check_loss(problem, carries[0])
    return problem


def does_not_take(function: Callable, *args: Any, **kwargs: Any) -> str:
    """Why a function cannot be called with these arguments, in words; empty where it can, or tells nothing."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return ""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        return str(error)
    return ""


def _steady(rate: ScalarLike) -> Schedule:
    return lambda step: jnp.asarray(rate, float)


def _check_optimizer(optimizer: Any, lane: Lane, by_name: bool) -> None:
    """Refuse what is no factory, and one that does not take a lane's names."""
    if not callable(optimizer):
        raise ValueError(
            "optimizer must be a function of the learning rate, such as optax.adam or "
            f"lambda rate: optax.chain(...), got a {type(optimizer).__name__}."
        )
    if by_name and (why := does_not_take(optimizer, **lane)):
        raise ValueError(f"optimizer must take the names of lanes as keywords, {', '.join(lane)}: {why}.")


def _made(
    optimizer: Callable[..., optax.GradientTransformation], by_name: bool, lane: Mapping[str, Any]
) -> optax.GradientTransformationExtraArgs:
    """What the user's factory makes of a lane; what it cannot do is said in one sentence."""
    rate = lane["learning_rate"]
    try:
        made = optimizer(**lane) if by_name else optimizer(rate)
    except _TRACER_ERRORS as error:
        raise _must_not_branch("optimizer") from error
    except TypeError as error:
        if not callable(rate):
            raise
        raise ValueError(
            f"optimizer must take a schedule as its learning rate, as optax.adam does: {error}."
        ) from error
    if not (hasattr(made, "init") and hasattr(made, "update")):
        raise ValueError(f"optimizer must return an optax.GradientTransformation, got {made!r}.")
    return optax.with_extra_args_support(made)


def _must_not_branch(name: str) -> ValueError:
    return ValueError(
        f"{name} must not branch on the value of the learning rate, which is traced: use jnp.where, and in place "
        "of optax.warmup_cosine_decay_schedule "
        "optax_lr.with_warmup(optax_lr.anneal_schedule(peak, end, steps), warmup_steps), in place of "
        "optax.sgdr_schedule optax_lr.sgdr_schedule: any number of this package's schedules may be traced."
    )


def _is_of_schedule(
    factory: Callable, opt_state: PyTree, trained: PyTree, lane: Lane, scheduled: bool
) -> bool:
    """Whether a state is the one that the optimizer has under a schedule, rather than at a constant rate."""

    def difference(steady: bool) -> str:
        def init(lane: Lane, trained: PyTree) -> PyTree:
            rate = lane["learning_rate"]
            return factory({**lane, "learning_rate": _steady(rate) if steady else rate}).init(trained)

        return _difference(jax.eval_shape(init, dict(lane), trained), opt_state)

    tried = [True] if scheduled else [False, True]
    found = {}
    for steady in tried:
        try:
            found[steady] = difference(steady)
        except ValueError as error:
            # A factory that takes no schedule has no state under one.
            if steady == tried[0]:
                raise
            found[steady] = str(error)
        if not found[steady]:
            return steady
    rate = "a schedule" if scheduled else "learning_rate"
    raise ValueError(f"opt_state must be as optimizer({rate}).init(params) makes it, {found[tried[0]]}.")


def _difference(expected: PyTree, given: PyTree) -> str:
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


def _check_loss(problem: Problem, start: dict[str, PyTree]) -> None:
    """Refuse a loss that does not take what its options say; what it returns is looked at where it is traced."""
    trainer, batch = problem.trainer, jax.tree.map(lambda leaf: leaf[0], problem.batches)
    given = trainer.loss.arguments(trainer.params(start), trainer.model_state(start), batch, problem.key)
    if why := does_not_take(trainer.loss.loss_fn, *given.values()):
        raise ValueError(f"loss_fn must take ({', '.join(given)}): {why}.")


def _scalars(name: str, metrics: Any, *, without: str | None = None) -> dict[str, Array]:
    """Metrics as arrays, each a scalar."""
    if not isinstance(metrics, Mapping):
        raise ValueError(
            f"{name} must return its metrics as a dict of scalars, got {checks.shapes(metrics)}."
        )
    for metric, value in metrics.items():
        if not _is_scalar(value):
            raise ValueError(f"{name} must return a scalar as metric {metric!r}, got {checks.shapes(value)}.")
        if metric == without:
            raise ValueError(f"{name} must not report {metric!r} among its metrics: it returns it already.")
    return {metric: jnp.asarray(value) for metric, value in metrics.items()}


def _is_scalar(value: Any) -> bool:
    return _is_number(value) and np.shape(value) == ()


def _start_keys(root: Array, seeds: int) -> list[Array]:
    stream = jax.random.fold_in(root, _START_STREAM)
    return [jax.random.fold_in(stream, seed) for seed in range(seeds)]


def _starts(tree: PyTree | Callable[[Array], PyTree], keys: Sequence[Array]) -> list[PyTree]:
    """One start for every key: the tree itself, or what a function that was given in its place draws."""
    return [tree(key) if _is_drawn(tree) else tree for key in keys]


def _is_drawn(tree: PyTree) -> bool:
    """Whether a function stands in place of a tree; a module that is callable is a tree of leaves."""
    leaves = jax.tree.leaves(tree)
    return len(leaves) == 1 and leaves[0] is tree and callable(tree)


def _partition(params: PyTree) -> tuple[PyTree, PyTree, PyTree]:
    """Leaves that are trained, arrays that are carried along, and what is no array; None in each other's place."""

    def kind(leaf: Any) -> int:
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
            return 2
        return 0 if jnp.issubdtype(leaf.dtype, jnp.floating) else 1

    def part(wanted: int) -> PyTree:
        return jax.tree.map(lambda leaf: leaf if kind(leaf) == wanted else None, params)

    return part(0), part(1), part(2)


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float | complex)


def _arrays(tree: PyTree) -> PyTree:
    """A tree's arrays and numbers, as arrays; None in place of all else."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) if _is_number(leaf) else None, tree)


def _flat(tree: PyTree) -> tuple[Any, tuple]:
    """Structure and leaves: a tree that can be hashed where its leaves can."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(leaves)


def _static(tree: PyTree) -> PyTree:
    """What `_arrays` leaves out."""
    return jax.tree.map(lambda leaf: None if _is_number(leaf) else leaf, tree)


def _combine(tree: PyTree, other: PyTree) -> PyTree:
    """The leaves of both trees, each of which has None where the other has a leaf."""
    return jax.tree.map(
        lambda one, two: two if one is None else one, tree, other, is_leaf=lambda leaf: leaf is None
    )
