"""A Flax NNX module to parameters, a model state and a loss of both, and back."""

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .. import checks
from ..finder.problem import Outcome, Problem, does_not_take, problem_of
from ..types import Array, Metrics, PyTree

# Variables -> their arrays; Flax 0.12.0 has it as `nnx.pure`.
pure: Callable[[Any], Any] = nnx.as_pure if hasattr(nnx, "as_pure") else nnx.pure

Model = nnx.Module | Callable[[Array], nnx.Module]


@dataclasses.dataclass(frozen=True)
class ModuleProblem(Problem):
    """A loss of a module, as one of its parameters and all its other variables; equal for equal modules."""

    graphdef: Any = None
    wrt: Any = nnx.Param

    @property
    def static(self) -> Any:
        return super().static, self.graphdef, self.wrt

    def begun(self, model_state: PyTree, seed: Any) -> PyTree:
        """Every random stream is folded with the seed; that of seed 0 is the module's own."""

        def of_seed(leaf: Any) -> Any:
            if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return leaf
            fold = jax.random.fold_in
            for _ in range(leaf.ndim):
                fold = jax.vmap(fold, (0, None))
            return jnp.where(seed == 0, leaf, fold(leaf, seed))

        return jax.tree.map(of_seed, model_state)

    def __call__(self, params: PyTree, model_state: PyTree, batch: PyTree, key: Array | None) -> Outcome:
        # Copied, because a loss changes its module.
        module = nnx.merge(self.graphdef, params, model_state, copy=True)
        plain = Problem(self.loss_fn, self.with_key, self.has_aux)
        found = plain(module, None, batch, key)
        graphdef, trained, rest = split(module, self.wrt)
        if graphdef != self.graphdef:
            _warn_of_what_stays(nnx.merge(self.graphdef, params, model_state, copy=True), module)
        return found._replace(state=rest, params=trained)

    def measure(self, params: PyTree, model_state: PyTree, eval_batch: PyTree, key: Array) -> Metrics:
        module = nnx.merge(self.graphdef, params, model_state, copy=True)
        module.eval()
        return Problem(self.loss_fn, self.with_key, self.has_aux, self.eval_fn).measure(
            module, None, eval_batch, key
        )

    def refuse_if_it_does_not_take(self, params: PyTree, model_state: PyTree, batch: PyTree) -> None:
        given = ("model", "batch", "key")[: 3 if self.with_key else 2]
        if why := does_not_take(self.loss_fn, *given):
            raise ValueError(f"loss_fn must take ({', '.join(given)}): {why}.")


def unpacked(
    loss_fn: Callable[..., Any] | Problem, model: Model, wrt: Any, *, opt_state: Any = None, **options: Any
) -> dict[str, Any]:
    """The arguments of the finders for plain parameters, from those for a module."""
    if "model_state" in options:
        raise ValueError("model_state is what the module itself carries along: leave it out.")
    of_problem: dict[str, Any] = {
        name: options.pop(name) for name in ("with_key", "has_aux", "eval_fn") if name in options
    }
    given = problem_of(loss_fn, False, of_problem)
    with jax.transfer_guard("allow"):
        module = _module_of(model, jax.random.key(0))
        _warn_if_evaluating(module)
        graphdef, params, rest = split(module, wrt)
    if not jax.tree.leaves(params):
        raise ValueError(f"wrt must select variables of the model to train, and {wrt!r} selects none.")
    drawn = functools.partial(_drawn_once, {}, model, graphdef, wrt)
    is_module = isinstance(model, nnx.Module)
    return {
        "loss_fn": ModuleProblem(
            given.loss_fn, given.with_key, given.has_aux, given.eval_fn, True, graphdef, wrt
        ),
        "params": params if is_module else lambda key: drawn(key)[1],
        "model_state": rest if is_module else lambda key: drawn(key)[2],
        "opt_state": pure(opt_state.opt_state if isinstance(opt_state, nnx.Optimizer) else opt_state),
        **options,
    }


def _warn_if_evaluating(module: nnx.Module) -> None:
    """Say that a module is in evaluation mode throughout: its copies would train without dropout."""
    modes = [nnx.clone(module) for _ in range(2)]
    modes[0].eval()
    modes[1].train()
    now, evaluating, training = (nnx.split(each)[0] for each in (module, *modes))
    if now == evaluating and now != training:
        warnings.warn(
            "The model is in evaluation mode, and its copies train in it: without dropout, with running averages. "
            "Call model.train() before the search, unless this is meant.",
            stacklevel=4,
        )


def _warn_of_what_stays(before: nnx.Module, after: nnx.Module) -> None:
    """Say which plain attributes a loss changed; the mode is no such attribute, as it is set for each call."""
    before.train()
    after.train()
    if changed := _plain_differences(before, after):
        warnings.warn(
            f"The loss changes plain attributes of the model, {checks.listed(changed)}: in a search each step "
            "begins with their first values. What goes on belongs into an nnx.Variable, such as "
            "nnx.Variable(jnp.array(0)).",
            stacklevel=2,
        )


def _plain_differences(one: nnx.Module, other: nnx.Module) -> list[str]:
    """The paths of attributes that are plain values, no variables, and differ between two modules."""
    plain = bool, int, float, complex, str, bytes, tuple, type(None)
    ours, theirs = (
        {path: leaf for path, leaf in nnx.iter_graph(module) if isinstance(leaf, plain)}
        for module in (one, other)
    )
    paths = [*ours, *(path for path in theirs if path not in ours)]
    return [".".join(map(str, path)) for path in paths if ours.get(path) != theirs.get(path)]


def _module_of(model: Model, key: Array) -> nnx.Module:
    """A module to take apart: a copy of the one given, or of one that is drawn."""
    if isinstance(model, nnx.Module):
        return nnx.clone(model)
    if not callable(model):
        raise ValueError(
            f"model must be an nnx.Module or a function from a random key to one, got a {type(model).__name__}."
        )
    module = model(key)
    if not isinstance(module, nnx.Module):
        raise ValueError(f"model must return an nnx.Module, got a {type(module).__name__}.")
    return nnx.clone(module)


def _drawn_once(
    kept: dict[bytes, tuple[Any, PyTree, PyTree]], model: Model, graphdef: Any, wrt: Any, key: Array
) -> tuple[Any, PyTree, PyTree]:
    """The parts of what a function draws; parameters and the rest are asked for one after the other."""
    which = np.asarray(jax.random.key_data(key)).tobytes()
    if which not in kept:
        drawn = _module_of(model, key)
        kept[which] = split(drawn, wrt)
        if differences := _plain_differences(nnx.merge(graphdef, *kept[which][1:]), drawn):
            raise ValueError(
                "model must return modules that differ in their variables alone, and the plain attributes "
                f"{checks.listed(differences)} differ from key to key."
            )
    return kept[which]


def split(module: nnx.Module, wrt: Any) -> tuple[Any, PyTree, PyTree]:
    """The graph, the arrays that are trained and all others; what was sown is dropped, as it would pile up."""
    nnx.pop(module, nnx.Intermediate)
    graphdef, *states = nnx.split(module, wrt, ...)
    params, rest = map(pure, states)
    return graphdef, params, rest
