"""Rows of the tables of factories, and the values that no factory takes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

NAN, INF = float("nan"), float("inf")
RATES = (-0.1, NAN, INF, "big")
COUNTS = (0, -3, 0.1, NAN, INF, 2**31)
MAYBE_EMPTY = (-1, 0.1, NAN, 2**31)
FACTORS = (0.0, -0.5, 1.5, NAN)


class Case:
    """A row of either table: what it is called, and the arguments that it is tried at."""

    factory: str
    arguments: Mapping[str, tuple[Any, tuple[Any, Any]]]
    variant: str

    @property
    def id(self) -> str:
        return f"{self.factory}{'-' if self.variant else ''}{self.variant}"

    @property
    def values(self) -> dict[str, Any]:
        return {name: value for name, (value, _) in self.arguments.items()}


@dataclass(frozen=True, eq=False)
class ScheduleCase(Case):
    """A schedule factory with arguments to try it at.

    `arguments` are its numeric arguments, each with a default and the lanes that `vmap` puts in its place;
    lanes must be valid alone (beside the others' defaults) and all together. `large` replaces some of them
    where steps near 2^31 are looked at. `static` are the arguments that are not numbers. `bad` lists, for
    each argument, values to be refused; a dict replaces several arguments at once. `build` makes the schedule
    from the package and the arguments, where that is more than a call of the factory.
    """

    factory: str
    reference: Callable[..., float]
    arguments: Mapping[str, tuple[Any, tuple[Any, Any]]]
    boundaries: tuple[int, ...]
    bad: Mapping[str, tuple[Any, ...]]
    static: Mapping[str, Any] = field(default_factory=dict)
    reference_static: Mapping[str, Any] = field(default_factory=dict)
    large: Mapping[str, Any] = field(default_factory=dict)
    build: Callable[..., Callable] | None = None
    variant: str = ""

    def make(self, olr: Any, **changes: Any) -> Callable:
        """The schedule of package `olr` at the default arguments, but for `changes`."""
        arguments = {**self.values, **self.static, **changes}
        return self.build(olr, **arguments) if self.build else getattr(olr, self.factory)(**arguments)

    def expected(self, step: float, **changes: Any) -> float:
        """The float64 reference at a step."""
        return self.reference(step, **{**self.values, **self.reference_static, **changes})
