"""What a user hands over to a finder, checked and unpacked: parameters, optimizer, data."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..engine.batches import Data, host_arrays, is_stacked, read_batches, root_bits, root_key, yields
from ..engine.layout import context, mesh_of_user
from ..engine.leaves import is_key
from ..types import Array, PyTree
from .folds import folds_of, left_out, length_of_all
from .late import warn_of_late_labels
from .optimizer import TABLE, Factory, Lane, check_factory, count_of, forms_of
from .problem import Problem, is_number
from .training import Trainer, arrays, partition

# Where keys of starts and of evaluations come from; the engine's own are numbered by seed, from 0.
_START_STREAM, _EVAL_STREAM = 2**32 - 1, 2**32 - 2


class Posed(NamedTuple):
    """A user's problem with all of its data, checked.

    Attributes:
      trainers: the functions, one for each form in which the rate may reach the optimizer, the best first.
      data: what the engine reads.
      first: how many steps the optimizer's own clock has counted before.
    """

    trainers: list[Trainer]
    data: Data
    first: int

    def carried(self, carry: Mapping[str, PyTree]) -> tuple[PyTree, PyTree]:
        """The user's parameters and model state of a carry that the engine kept, random keys made whole."""
        trainer, start = self.trainers[0], self.data.start_of(0)

        def whole(begun: Any, ended: Any) -> Any:
            return (
                jax.random.wrap_key_data(ended, impl=jax.random.key_impl(begun)) if is_key(begun) else ended
            )

        parts = {name: jax.tree.map(whole, start[name], carry[name]) for name in ("trained", "kept", "state")}
        return trainer.params(parts), None if parts["state"] is None else trainer.model_state(parts)

    def loss_of_batch(self, batch: int) -> float:
        """The loss of the first start on a batch, before any training."""
        data = self.data
        with self._looking():
            some = jax.tree.map(lambda leaf: leaf[batch], data.batches)
            key = jax.random.wrap_key_data(jnp.asarray(data.bits), impl=data.key_impl)
            return float(self.trainers[0].value(data.start_of(0), some, key).loss)

    def evaluation(self, metric: str) -> float:
        """What validation reports of the first start under a name, before any training."""
        with self._looking():
            start, eval_data = self.data.start_of(0), self.data.eval_batch_of(0)
            return float(jax.jit(self.trainers[0].evaluate)(start, eval_data)[metric])

    @contextlib.contextmanager
    def _looking(self) -> Iterator[None]:
        """Where the user's functions are called by hand, and may give what is not finite."""
        with (
            context(mesh_of_user(jax.tree.leaves((self.data.start, self.data.batches)))),
            jax.transfer_guard("allow"),
            jax.debug_nans(False),
            jax.debug_infs(False),
        ):
            yield


# Keys are drawn and starts stacked on purpose, whatever guards the user has set.
@jax.transfer_guard("allow")
def pose(
    problem: Problem,
    params: PyTree | Callable[[Array], PyTree],
    optimizer: Factory,
    batches: PyTree | Iterable[PyTree],
    *,
    model_state: PyTree,
    opt_state: PyTree,
    eval_batch: PyTree,
    lane: Lane,
    by_name: bool = False,
    read: int,
    seeds: int,
    key: Array | None,
    folds: int | None = None,
) -> Posed:
    """Check and unpack what a user hands over.

    Args:
      lane: an example of those to come, with its table.
      read: the steps of the longest run, and so how many batches are read at most, of an iterable.
      seeds: how many starts are drawn where `params` is a function.
      folds: into how many parts the batches fall, each of which validates where the others train; None where
        `eval_batch` does.

    Raises:
      ValueError: wrong input, in one sentence.
    """
    if problem.eval_fn is not None and eval_batch is None and folds is None:
        raise ValueError("eval_fn needs eval_batch: the data that it is called with.")
    if eval_batch is not None and yields(eval_batch):
        _refuse_several(f"a {type(eval_batch).__name__}")
    stack = batches if is_stacked(batches) else None
    checks.not_traced("a search", params, stack, eval_batch, model_state, opt_state, key)
    checks.no_module("params", params)
    root = root_key(key)
    drawn = _is_drawn(params) or _is_drawn(model_state)
    keys = _start_keys(root, seeds) if drawn else [root]
    parts = [partition(start) for start in _starts(params, keys)]
    states = _starts(model_state, keys)
    trained, _, static = parts[0]
    resumed = None if opt_state is None else jax.tree.map(jnp.asarray, opt_state)
    if not jax.tree.leaves(trained):
        numbers = any(isinstance(leaf, float) for leaf in jax.tree.leaves(params))
        hint = " (Python numbers stay as they are: jax.tree.map(jnp.asarray, params))" if numbers else ""
        raise ValueError(f"params must have a leaf that is an array of floats, got none{hint}.")
    first = 0 if resumed is None else count_of(resumed)
    starts = [
        {"trained": trained, "kept": kept, "state": arrays(state), "offset": np.int32(first)}
        | ({} if resumed is None else {"optimizer": resumed})
        for (trained, kept, _), state in zip(parts, states, strict=True)
    ]
    check_factory(optimizer, {name: value for name, value in lane.items() if name != TABLE}, by_name)
    forms = forms_of(optimizer, by_name, lane, trained, resumed)
    trainers = [
        Trainer(problem, optimizer, by_name, form, (_flat(static), _flat(_static(states[0]))))
        for form in forms
    ]
    data = _data(starts, batches, read, eval_batch, key, folds, drawn=drawn)
    begun, batch = starts[0], jax.tree.map(lambda leaf: leaf[0], data.batches)
    problem.refuse_if_it_does_not_take(trainers[0].params(begun), trainers[0].model_state(begun), batch)
    if problem.eval_fn is None and eval_batch is not None:
        one, given = (str(jax.tree.structure(tree)) for tree in (batch, eval_batch))
        if isinstance(eval_batch, list) and given != one == str(jax.tree.structure(eval_batch[0])):
            _refuse_several(f"a list of {len(eval_batch)} batches")
        _refuse_other_ranks(data.batches, eval_batch)
    warn_of_late_labels(trainers, begun, lane, read)
    return Posed(trainers, data, first)


def _data(
    starts: Sequence[PyTree],
    batches: PyTree | Iterable[PyTree],
    read: int,
    eval_batch: PyTree,
    key: Array | None,
    folds: int | None,
    *,
    drawn: bool,
) -> Data:
    """The data of a search, batches read and the key of validations drawn."""
    stacked, count = read_batches(batches, read if folds is None else length_of_all(batches))
    parts = None if folds is None else folds_of(count, folds)
    bits, impl = root_bits(key)
    with context(mesh_of_user(jax.tree.leaves(starts))):
        start = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts) if drawn else starts[0]
    with context(None):
        # Under a mesh that the user has set a drawn key lies on all of its devices.
        eval_key = jax.device_put(jax.random.fold_in(root_key(key), _EVAL_STREAM), jax.local_devices()[0])
    validation = None if eval_batch is None else (host_arrays("eval_batch", eval_batch), eval_key)
    if parts is not None:
        validation = left_out(stacked, parts, count), jnp.stack([eval_key] * len(parts))
    return Data(
        start=start,
        batches=stacked,
        num_batches=count if parts is None else parts.shape[1],
        folds=parts,
        bits=bits,
        key_impl=impl,
        start_per_seed=drawn,
        eval_batch=validation,
        streamed=not is_stacked(batches),
    )


def _refuse_several(given: str) -> None:
    raise ValueError(
        f"eval_batch must be one batch, got {given}: put the examples together, as in "
        "jax.tree.map(lambda *parts: numpy.concatenate(parts), *batches)."
    )


def _refuse_other_ranks(batches: PyTree, eval_batch: PyTree) -> None:
    """Refuse data without the axis of steps: the loss would be given single examples.

    Raises:
      ValueError: every array of `eval_batch` has an axis more than the same array of a batch. (Where all arrays
        of `batches` hold one number a step, they may be meant so: those have no examples to lose.)
    """
    (ours, structure), (theirs, other) = (jax.tree.flatten(tree) for tree in (batches, eval_batch))
    if str(structure) != str(other) or max(map(np.ndim, ours), default=0) < 2:
        return
    if all(np.ndim(one) == np.ndim(two) for one, two in zip(ours, theirs, strict=True)):
        one = jax.tree.map(lambda leaf: leaf[0], batches)
        raise ValueError(
            f"batches must have a leading axis of steps, before that of the examples: a batch would have shape "
            f"{checks.shapes(one)}, but eval_batch has {checks.shapes(eval_batch)}."
        )


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


def _flat(tree: PyTree) -> tuple[Any, tuple]:
    """Structure and leaves: a tree that can be hashed where its leaves can."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(leaves)


def _static(tree: PyTree) -> PyTree:
    """What `training.arrays` leaves out."""
    return jax.tree.map(lambda leaf: None if is_number(leaf) else leaf, tree)
