"""The one table of public factories that the laws run over. A factory that has no row fails the suite."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import references

NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True, eq=False)
class ScheduleCase:
    """A schedule factory with arguments to try it at.

    `arguments` are its numeric arguments, each with a default and the lanes that `vmap` puts in its place;
    lanes must be valid alone (beside the others' defaults) and all together. `large` replaces some of them
    where steps near 2^31 are looked at. `static` are the arguments that are not numbers. `bad` lists, for
    each argument, values to be refused; a dict replaces several arguments at once.
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

    @property
    def id(self) -> str:
        return f"{self.factory}{'-' if self.variant else ''}{self.variant}"

    @property
    def values(self) -> dict[str, Any]:
        return {name: value for name, (value, _) in self.arguments.items()}

    def make(self, olr: Any, **changes: Any) -> Callable:
        """The schedule of package `olr` at the default arguments, but for `changes`."""
        factory = getattr(olr, self.factory)
        build = self.build or (lambda factory, **arguments: factory(**arguments))
        return build(factory, **{**self.values, **self.static, **changes})

    def expected(self, step: float, **changes: Any) -> float:
        """The float64 reference at a step."""
        return self.reference(step, **{**self.values, **self.reference_static, **changes})


SCHEDULES = (
    ScheduleCase(
        "anneal_schedule",
        references.anneal,
        {
            "init_value": (0.1, (0.05, 0.3)),
            "end_value": (0.01, (0.0, 0.02)),
            "transition_steps": (100, (41, 250)),
        },
        boundaries=(41, 50, 100, 250),
        large={"transition_steps": 2**31 - 1},
        bad={
            "init_value": (NAN, INF, "big", (1.0, 2.0)),
            "end_value": (NAN, -INF),
            "transition_steps": (0, -3, NAN, 2**31),
        },
    ),
    *(
        ScheduleCase(
            "one_cycle_schedule",
            references.one_cycle,
            {
                "peak_value": (0.5, (0.1, 2.0)),
                "total_steps": (100, (55, 1000)),
                "pct_start": (0.3, (0.2, 0.45)),
                "div_factor": (25.0, (1.0, 10.0)),
                "final_div_factor": (1e4, (1.0, 100.0)),
            },
            variant="three_phase" if three_phase else "",
            static={"three_phase": three_phase},
            reference_static={"three_phase": three_phase},
            boundaries=(10, 29, 30, 44, 58, 59, 99, 100, 999),
            large={"total_steps": 2**31 - 1},
            bad={
                "peak_value": (0.0, -1.0, NAN, INF),
                "total_steps": (0, -1, 3, NAN),
                "pct_start": (0.0, 1.0, 1.5, 0.005, NAN),
                "div_factor": (0.5, NAN),
                "final_div_factor": (0.5, INF),
            },
        )
        for three_phase in (False, True)
    ),
)
