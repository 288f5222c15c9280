"""Several snapshots as one model: their predictions combined, or their weights averaged."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import checks
from ..types import Array, ArrayLike, Float, PyTree, Shaped
from .transformation import Snapshots

Combine = Literal["probabilities", "logits", "none"]

# How far a row of probabilities in bfloat16 may be from a sum of 1.
_ROUNDING = 0.01


class EnsemblePrediction(NamedTuple):
    """What an ensemble says, and how far its members are apart.

    Attributes:
      outputs: the members' outputs combined, or all of them with the leading axes of the members.
      spread: their standard deviation over the members, each with its weight.
    """

    outputs: PyTree
    spread: PyTree


def ensemble_predict(
    apply_fn: Callable[[PyTree, PyTree], PyTree],
    snapshots: Snapshots,
    inputs: PyTree,
    *,
    combine: Combine = "probabilities",
    weights: Shaped[ArrayLike, "*members"] | None = None,
) -> EnsemblePrediction:
    """Predict with all snapshots together. The members run in one `vmap`.

    With w the weights over their sum and z_i = apply_fn(params_i, inputs), the outputs are

    1. "probabilities": sum_i w_i softmax(z_i), for a classifier that returns logits
    2. "logits": sum_i w_i z_i, the outputs as they are: for regression, or if z are already probabilities
    3. "none": z_i, one for each member

    The spread is sqrt(sum_i w_i (y_i - sum_j w_j y_j)^2), with y = softmax(z) in the first case, else y = z.

    Non-finite outputs of one member make the ensemble's non-finite, unless its weight is 0.

    Args:
      apply_fn: from the parameters of one member and the inputs to its outputs: an array, or a pytree of
        arrays. For "probabilities" they are logits [..., classes], before the softmax.
      snapshots: the members, a `Snapshots`.
      inputs: what every member is given.
      combine: how the members' outputs become one, as above.
      weights: one number of at least 0 for each member, with the shape of `snapshots.steps`; all equal by
        default. For instance the softmax of minus the validation losses.

    Returns:
      An `EnsemblePrediction`, in float32 or the outputs' own precision, whichever is finer.

    Raises:
      ValueError: there are no members, `params` has other leading axes than `steps`, `weights` has another
        shape, or a concrete weight is negative or not finite or all are 0; outputs to be combined are no
        floating-point numbers. With "probabilities": outputs have no axis of two classes or more (one number
        an example, as of a binary classifier), or already are probabilities (not seen inside `jit`).

    >>> members = Snapshots(jnp.array([1.0, 3.0]), jnp.array([9, 19]))
    >>> outputs, spread = ensemble_predict(lambda w, x: w * x, members, jnp.array([1.0, 2.0]), combine="logits")
    >>> outputs.tolist(), spread.tolist()
    ([2.0, 4.0], [1.0, 2.0])

    Source: Huang et al. 2017 (arXiv:1704.00109), section 3: the average of the members' softmax outputs.
    """
    checks.function("apply_fn", apply_fn)
    checks.choice("combine", combine, ("probabilities", "logits", "none"))
    shares = _shares(snapshots, weights)
    members = apply_fn
    for _ in range(shares.ndim):
        members = jax.vmap(members, in_axes=(0, None))
    raw = members(snapshots.params, inputs)
    for leaf in jax.tree.leaves(raw):
        if combine != "none" and not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"apply_fn must return floating-point numbers to combine, got {leaf.dtype}; of classes or other "
                "choices take combine='none' and let the members vote."
            )
    given = jax.tree.map(_float, raw)
    if combine == "probabilities":
        for leaf in jax.tree.leaves(given):
            _refuse_no_logits(leaf, shares.ndim, inputs)
    said = jax.tree.map(jax.nn.softmax, given) if combine == "probabilities" else given
    mean = jax.tree.map(lambda leaf: _weighted(leaf, shares), said)
    lead = range(shares.ndim)
    variance = jax.tree.map(
        lambda leaf, center: _weighted((leaf - jnp.expand_dims(center, lead)) ** 2, shares), said, mean
    )
    return EnsemblePrediction(said if combine == "none" else mean, jax.tree.map(_root, variance))


def average_snapshots(
    snapshots: Snapshots,
    weights: Shaped[ArrayLike, "*members"] | None = None,
) -> PyTree:
    """One model: the average of the snapshots' weights. It predicts at the price of one member.

    params = sum_i w_i params_i, with w the weights over their sum. Running statistics of batch normalization
    do not fit the average: compute them anew with `refresh_batch_stats`.

    Where a member is non-finite the average is non-finite, unless the member's weight is 0.

    Args:
      snapshots: the members, a `Snapshots`.
      weights: one number of at least 0 for each member, with the shape of `snapshots.steps`; all equal by
        default.

    Returns:
      Parameters of one member's shapes and dtypes, summed in float32 or finer. What is no floating-point
      number, a counter or a key, is the last member's.

    Raises:
      ValueError: as `ensemble_predict`, of members and weights.

    >>> average_snapshots(Snapshots({"w": jnp.array([1.0, 2.0, 6.0])}, jnp.array([9, 19, 29])))["w"].tolist()
    3.0

    Source: Izmailov et al. 2018 (arXiv:1803.05407), algorithm 1.
    """
    shares = _shares(snapshots, weights)

    def average(leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf[(-1,) * shares.ndim]
        return _weighted(_float(leaf), shares).astype(leaf.dtype)

    return jax.tree.map(average, snapshots.params)


def refresh_batch_stats(
    apply_fn: Callable[[PyTree, PyTree], PyTree], params: PyTree, batches: PyTree | Iterable[PyTree]
) -> PyTree:
    """Statistics of batch normalization for parameters that were not trained with any, such as an average.

    stats = 1/B sum_b apply_fn(params, batch_b): the mean over B batches of what each of them gives alone, in
    float32 or finer. Each batch counts the same, a smaller last one too. Running averages with a momentum
    depend on where they start; these do not. In Flax, `BatchNorm(momentum=0.0)` gives the statistics of one batch:

        apply_fn = lambda params, batch: model.apply({"params": params}, batch, mutable=["batch_stats"])[1]

    Non-finite statistics of one batch make the mean non-finite.

    Args:
      apply_fn: from parameters and a batch to the statistics of that batch, a pytree of arrays; pure. It is
        compiled once for each function and shape of a batch, so pass the same function again.
      params: the parameters, for instance of `average_snapshots`.
      batches: a list, generator or data loader that ends, of batches of any sizes; or arrays with leading axis
        [batches]: one, or a dict or tuple of them. Best are batches of the training's size.

    Returns:
      The statistics, with the structure, shapes and dtypes of `apply_fn`'s.

    Raises:
      ValueError: there is no batch; arrays have no leading axis in common; or the statistics of two batches
        differ in shape.

    >>> stats = lambda params, batch: {"mean": (params * batch).mean(), "var": (params * batch).var()}
    >>> batches = [jnp.array([0.0, 2.0]), jnp.array([5.0])]
    >>> {name: float(stat) for name, stat in refresh_batch_stats(stats, jnp.float32(1), batches).items()}
    {'mean': 3.0, 'var': 0.5}

    Source: Izmailov et al. 2018 (arXiv:1803.05407), section 3.2; the mean over batches is that of PyTorch's
    `torch.optim.swa_utils.update_bn`.
    """
    checks.function("apply_fn", apply_fn)
    compiled = jax.jit(apply_fn)
    total, like, count = None, None, 0
    # One dispatch a batch: XLA's CPU backend runs a convolution inside a loop many times slower.
    for count, batch in enumerate(_each(batches), 1):
        stats = compiled(params, batch)
        finer = jax.tree.map(_float, stats)
        if like is not None and checks.shapes(stats) != checks.shapes(like):
            raise ValueError(
                "apply_fn must give every batch statistics of one shape, got "
                f"{checks.shapes(stats)} at batch {count - 1} after {checks.shapes(like)}."
            )
        total = finer if total is None else jax.tree.map(jnp.add, total, finer)
        like = stats
    if not count:
        raise ValueError("batches must have at least one batch, got an empty iterable.")
    return jax.tree.map(lambda leaf, stat: (leaf / count).astype(stat.dtype), total, like)


def _each(batches: PyTree | Iterable[PyTree]) -> Iterator[PyTree]:
    """Batches one by one, of a list or a loader, or of stacked arrays."""
    stacked = hasattr(batches, "shape") or isinstance(batches, tuple | Mapping | str)
    if isinstance(batches, Iterable) and not stacked:
        # As arrays: a loader may return another library's.
        return (
            jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf), batch)
            for batch in batches
        )
    if not all(hasattr(leaf, "shape") for leaf in jax.tree.leaves(batches)):
        raise ValueError(f"batches must be arrays or an iterable of batches, got a {type(batches).__name__}.")
    count = checks.leading_axis("batches", batches)
    return (jax.tree.map(lambda leaf, at=index: leaf[at], batches) for index in range(count))


def _refuse_no_logits(outputs: Array, lead: int, inputs: PyTree) -> None:
    """Refuse what has no axis of classes, and what already is a table of probabilities."""
    # One number an example, as of a binary classifier: a softmax would go over the examples.
    examples = {jnp.shape(leaf)[0] for leaf in jax.tree.leaves(inputs) if jnp.ndim(leaf) > 1}
    flat = outputs.ndim == lead + 1 and outputs.shape[-1] in examples
    if flat or outputs.ndim == lead or outputs.shape[-1] < 2:
        raise ValueError(
            "combine='probabilities' needs outputs with two classes or more on the last axis, got the "
            f"shape {outputs.shape[lead:]} of a member; combine='logits' averages outputs as they are."
        )
    if checks.is_traced(outputs):
        return
    inside = ((outputs >= 0) & (outputs <= 1 + _ROUNDING)).all()
    if inside & (jnp.abs(outputs.sum(-1) - 1) <= _ROUNDING).all():
        raise ValueError(
            "combine='probabilities' takes the softmax of logits, and the outputs of apply_fn already are "
            "probabilities: return logits, or pass combine='logits', which averages outputs as they are."
        )


def _shares(snapshots: Snapshots, weights: Any) -> Float[Array, "*members"]:
    """The weights of the members over their sum."""
    if not isinstance(snapshots, Snapshots):
        raise ValueError(
            "snapshots must be a Snapshots, as get_snapshots(opt_state) returns, "
            f"got a {type(snapshots).__name__}."
        )
    lead = jnp.shape(snapshots.steps)
    wrong = [leaf for leaf in jax.tree.leaves(snapshots.params) if jnp.shape(leaf)[: len(lead)] != lead]
    if not lead or 0 in lead or wrong:
        raise ValueError(
            "snapshots must have at least one member, and params the leading axes of steps, got params of "
            f"shapes {checks.shapes(snapshots.params)} and steps of shape {lead}."
        )
    if weights is None:
        return jnp.full(lead, 1 / np.prod(lead), float)
    expected = f"weights must be finite numbers of at least 0 of shape {lead}, and not all 0"
    if jnp.shape(weights) != lead:
        raise ValueError(f"{expected}, got the shape {jnp.shape(weights)}.")
    if not checks.is_traced(weights):
        known = np.asarray(weights, np.float64)
        if not (np.isfinite(known).all() and (known >= 0).all() and known.any()):
            raise ValueError(f"{expected}, got {known.tolist()!r}.")
    given = jnp.asarray(weights, float)
    return given / given.sum()


def _weighted(leaf: Array, shares: Float[Array, "*members"]) -> Array:
    """The weighted sum over the members. A sum of products, which no matrix unit rounds."""
    share = jnp.expand_dims(shares.astype(leaf.dtype), range(shares.ndim, leaf.ndim))
    # Zeros go into the product, not in its place: that keeps the derivative by a weight of 0.
    return jnp.sum(share * jnp.where((share != 0) | jnp.isfinite(leaf), leaf, 0), range(shares.ndim))


def _float(leaf: Array) -> Array:
    """In float32, or its own precision where that is finer."""
    fine = jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.dtype.itemsize >= 4
    return leaf if fine else leaf.astype(jnp.float32)


def _root(variance: Array) -> Array:
    """The square root, with a derivative of 0 at 0."""
    positive = variance > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1)), 0)
