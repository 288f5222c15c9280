"""The words of the package, as type aliases."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from jaxtyping import Array, ScalarLike

PyTree: TypeAlias = Any
"""Any pytree of JAX. Not jaxtyping's, whose import alone costs 10 ms."""

Step: TypeAlias = ScalarLike
"""A count of updates from 0: a Python, NumPy or traced JAX integer, or a float where steps are epochs."""

Schedule: TypeAlias = Callable[[Step], Array]
"""The value at a step. A pure function, with Optax's own signature."""

Curve: TypeAlias = Callable[[Array], Array]
"""The weight in [0, 1] at a progress in [0, 1]; it rises from 0 to 1."""

Label: TypeAlias = str | int
"""The name of a group of parameters; integers where groups have an order, from input to output."""

Labels: TypeAlias = PyTree
"""A tree with the structure of the parameters and a label, a string or an integer, at every leaf."""

Metrics: TypeAlias = Mapping[str, Array]
"""What one training step reports, by name: scalars, `loss` among them."""
