"""Statistics: the state of an optimizer to how large its gains, or Rprop's steps, are."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from ..types import Array, Bool, Float, PyTree
from .gains import DeltaBarDeltaState, LocalGainsState, LocalGainsWithVelocityState
from .rprop import RpropState

HOLDERS = (LocalGainsState, LocalGainsWithVelocityState, DeltaBarDeltaState, RpropState)


class GainStatistics(NamedTuple):
    """What `gain_statistics` returns: one dict over all parameters, and one for each leaf by its path."""

    overall: dict[str, Array]
    leaves: dict[str, dict[str, Array]]


def gain_statistics(opt_state: PyTree) -> GainStatistics:
    """How large the gains (or Rprop's steps) in an optimizer's state are, to be logged.

    Args:
      opt_state: any state that holds gains: of a chain, a partition, a wrapper. It may be traced, sharded, or
        stacked by `jax.vmap` or `jax.pmap` along leading axes.

    Returns:
      `overall`, a dict of float32 scalars over all parameters, and `leaves`, such a dict for each leaf under
      its path: "min", "lower_quartile", "median", "upper_quartile", "max", and the shares "at_min" and
      "at_max" of parameters whose gain is at a bound. Of a stacked state each scalar is an array, [lanes]. The
      quartiles sort: log now and then, not at every step.

    Raises:
      ValueError: the state holds no gains, two gains for one leaf, or gains that are stacked differently.

    >>> from optax_lr import scale_by_local_gains
    >>> transformation = scale_by_local_gains(max_gain=1.05)
    >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    >>> state = transformation.init(params)
    >>> for _ in range(2):
    ...     _, state = transformation.update(params, state)
    >>> statistics = gain_statistics(state)
    >>> round(float(statistics.overall["median"]), 4), float(statistics.leaves["bias"]["at_max"])
    (1.05, 1.0)
    """
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, HOLDERS))
    sizes: dict[str, Array] = {}
    at_bounds: dict[str, Array] = {}
    lanes: set[tuple[int, ...]] = set()
    for node in (node for node in nodes if isinstance(node, HOLDERS)):
        bounds = jnp.stack([_whole(node.last_min), _whole(node.last_max)], -1)
        lanes.add(bounds.shape[:-1])
        for path, leaf in jax.tree.leaves_with_path(node[0]):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            if name in sizes:
                raise ValueError(f"opt_state must hold one gain for each leaf, got two for {name!r}.")
            sizes[name] = _whole(leaf).reshape(*bounds.shape[:-1], -1)
            at_bounds[name] = sizes[name][..., None] == bounds[..., None, :]
    if not sizes:
        raise ValueError(
            "opt_state must hold the gains of scale_by_local_gains, scale_by_delta_bar_delta"
            " or scale_by_rprop, got a state without gains."
        )
    if len(lanes) > 1:
        raise ValueError(f"opt_state must hold gains that are stacked alike, got {sorted(lanes)}.")
    return GainStatistics(
        _summary(jnp.concatenate([*sizes.values()], -1), jnp.concatenate([*at_bounds.values()], -2)),
        {name: _summary(sizes[name], at_bounds[name]) for name in sizes if sizes[name].size},
    )


def _whole(leaf: Any) -> Array:
    """A leaf whose axes are not split, where they are split explicitly: such arrays can be joined to others."""
    array = jnp.asarray(leaf, jnp.float32)
    sharding = jax.typeof(array).sharding
    if not any(sharding.spec):
        return array
    return jax.sharding.reshard(array, NamedSharding(sharding.mesh, PartitionSpec()))


def _summary(
    sizes: Float[Array, "*lanes n"], at_bounds: Bool[Array, "*lanes n 2"]
) -> dict[str, Float[Array, "*lanes"]]:
    quartiles = jnp.quantile(sizes, jnp.linspace(0, 1, 5, dtype=jnp.float32), axis=-1)
    names = ("min", "lower_quartile", "median", "upper_quartile", "max")
    shares = jnp.mean(at_bounds, axis=-2, dtype=jnp.float32)
    return dict(zip(names, quartiles, strict=True)) | {"at_min": shares[..., 0], "at_max": shares[..., 1]}
