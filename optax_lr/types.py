"""The words of the package, as type aliases."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import jax

if TYPE_CHECKING:
    from jaxtyping import Array as Array
    from jaxtyping import ArrayLike as ArrayLike
    from jaxtyping import Bool as Bool
    from jaxtyping import Float as Float
    from jaxtyping import Int as Int
    from jaxtyping import ScalarLike as ScalarLike
    from jaxtyping import Shaped as Shaped
    from jaxtyping import UInt32 as UInt32
else:
    # Shapes are for those who check them, which is how the tests import this: jaxtyping costs users 10 ms.
    class Word:
        """An annotation that `help` prints as it is written, not as the union that it stands for."""

        def __init__(self, name: str) -> None:
            self.name = name

        def __repr__(self) -> str:
            return self.name

        def __or__(self, other: Any) -> "Word":
            return Word(f"{self} | {_written(other)}")

        def __ror__(self, other: Any) -> "Word":
            return Word(f"{_written(other)} | {self}")

    def _written(annotation: Any) -> str:
        return annotation.__name__ if isinstance(annotation, type) else repr(annotation)

    Array, ArrayLike, ScalarLike = jax.Array, Word("ArrayLike"), Word("ScalarLike")

    class Shaped:
        """An annotation without its shape: `Shaped[Array, "steps"]` is `Array`."""

        def __class_getitem__(cls, array_and_shape: tuple[Any, str]) -> Any:
            return array_and_shape[0]

    Bool = Float = Int = UInt32 = Shaped

PyTree: TypeAlias = Any
"""Any pytree of JAX."""

Step: TypeAlias = ScalarLike
"""A count of updates from 0: a Python, NumPy or traced JAX integer, or a float where steps are epochs."""

Schedule: TypeAlias = Callable[[Step], Array]
"""The value at a step. A pure function, with Optax's own signature."""

PeakToSchedule: TypeAlias = Callable[[Any], Callable[[Any], Any]]
"""From a peak to any function of the step: a schedule of this package, of Optax, or one's own."""

Curve: TypeAlias = Callable[[Array], Array]
"""The weight in [0, 1] at a progress in [0, 1]; it rises from 0 to 1."""

Label: TypeAlias = str | int
"""The name of a group of parameters; integers where groups have an order, from input to output."""

Labels: TypeAlias = PyTree
"""A tree with the structure of the parameters and a label, a string or an integer, at every leaf."""

Metrics: TypeAlias = Mapping[str, Array]
"""What one training step reports, by name: scalars, `loss` among them."""

if not TYPE_CHECKING:
    PyTree, Step, Schedule, Curve, Labels = map(Word, "PyTree Step Schedule Curve Labels".split())
    PeakToSchedule = Word("PeakToSchedule")
