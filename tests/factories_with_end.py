"""Rows of `factories.py`: schedules from one value to another, and those that a table lists."""

import references
from cases import COUNTS, INF, MAYBE_EMPTY, NAN, RATES, ScheduleCase

LAST = 2**31 - 1
SHARES = (-0.1, 1.5, NAN)


def _mapped(factory, *words):
    """A factory of scales by step: the steps are static, the rest are numbers."""

    def build(olr, init_value, **scales):
        steps = {"third": 200, "first": 10, "second": 40}
        return getattr(olr, factory)(*words, init_value, {steps[name]: scales[name] for name in steps})

    return build


def _one_cycle(factory, reference, values, bad):
    """The two rows of a one-cycle schedule: in two phases and in three."""
    return [
        ScheduleCase(
            factory,
            reference,
            {**values, "transition_steps": (100, (55, 1000)), "pct_start": (0.3, (0.2, 0.45))},
            variant="three_phase" if three_phase else "",
            static={"three_phase": three_phase},
            reference_static={"three_phase": three_phase},
            boundaries=(10, 29, 30, 44, 58, 59, 99, 100, 999),
            large={"transition_steps": LAST},
            bad={
                **bad,
                "transition_steps": (0, -1, 3, 0.5, NAN),
                "pct_start": (0.0, 1.0, 1.5, 0.005, NAN),
            },
        )
        for three_phase in (False, True)
    ]


FACTORS_OF_ONE_CYCLE = {
    "peak_value": (0.5, (0.1, 2.0)),
    "div_factor": (25.0, (1.0, 10.0)),
    "final_div_factor": (1e4, (1.0, 100.0)),
}
BAD_FACTORS_OF_ONE_CYCLE = {
    "peak_value": (0.0, -1.0, NAN, INF),
    "div_factor": (0.5, NAN),
    "final_div_factor": (0.5, INF),
}

PHASES = (
    ScheduleCase(
        "constant_schedule",
        lambda t, value: value,
        {"value": (0.1, (0.0, 2.0))},
        boundaries=(1,),
        bad={"value": RATES},
    ),
    ScheduleCase(
        "anneal_schedule",
        references.anneal,
        {
            "init_value": (0.1, (0.05, 0.3)),
            "end_value": (0.01, (0.0, 0.02)),
            "transition_steps": (100, (41, 250)),
        },
        boundaries=(41, 50, 100, 250),
        large={"transition_steps": LAST},
        bad={
            "init_value": (*RATES, (1.0, 2.0)),
            "end_value": (NAN, -INF),
            "transition_steps": COUNTS,
            "curve": ("cosine", 0.5),
        },
    ),
    *(
        ScheduleCase(
            "geometric_schedule",
            references.geometric,
            {
                "init_value": (init, (init / 2, init * 2)),
                "end_value": (end, (end / 2, end * 2)),
                "transition_steps": (100, (41, 250)),
            },
            variant=variant,
            boundaries=(41, 50, 100, 250),
            large={"transition_steps": LAST},
            bad={"init_value": (0.0, *RATES), "end_value": (0.0, *RATES), "transition_steps": COUNTS},
        )
        for variant, init, end in (("up", 1e-7, 10.0), ("down", 0.1, 1e-5))
    ),
    ScheduleCase(
        "linear_schedule",
        references.polynomial_decay,
        {
            "init_value": (0.01, (0.0, 0.05)),
            "end_value": (0.5, (0.1, 2.0)),
            "transition_steps": (100, (7, 41)),
            "transition_begin": (20, (0, 33)),
        },
        boundaries=(7, 20, 33, 41, 100, 120),
        large={"transition_begin": 2**24 + 1, "transition_steps": LAST - 2**25},
        bad={
            "init_value": RATES,
            "end_value": RATES,
            "transition_steps": COUNTS,
            "transition_begin": MAYBE_EMPTY,
        },
    ),
    *(
        ScheduleCase(
            "polynomial_schedule",
            references.polynomial_decay,
            {
                "init_value": (0.5, (0.1, 2.0)),
                "end_value": (0.01, (0.0, 0.05)),
                "power": (power, (0.5, 3.0)),
                "transition_steps": (100, (7, 41)),
                "transition_begin": (begin, (0, 33)),
            },
            variant=f"{power}{'-cycle' if cycle else ''}",
            static={"cycle": cycle},
            reference_static={"cycle": cycle},
            boundaries=(7, 14, 20, 33, 41, 82, 100, 120, 200, 220, 1000),
            large={"transition_steps": LAST},
            bad={
                "init_value": RATES,
                "end_value": RATES,
                "transition_steps": COUNTS,
                "transition_begin": MAYBE_EMPTY,
                "power": (0.0, -1.0, NAN),
            },
        )
        for power, begin, cycle in ((0.5, 0, False), (2.0, 20, False), (2.0, 0, True))
    ),
    *(
        ScheduleCase(
            "cosine_decay_schedule",
            references.cosine_decay,
            {
                "init_value": (0.5, (0.1, 2.0)),
                "decay_steps": (100, (41, 250)),
                "alpha": (0.1, (0.0, 1.0)),
                "exponent": (exponent, (0.5, 3.0)),
            },
            variant=f"{exponent}",
            boundaries=(41, 50, 100, 250),
            large={"decay_steps": LAST},
            bad={
                "init_value": RATES,
                "decay_steps": COUNTS,
                "alpha": (-0.1, NAN),
                "exponent": (0.0, -1.0, NAN),
            },
        )
        for exponent in (1.0, 1.7)
    ),
    *(
        ScheduleCase(
            "warmup_stable_decay_schedule",
            references.warmup_stable_decay,
            {
                "peak_value": (0.5, (0.4, 2.0)),
                "warmup_steps": (10, (0, 41)),
                "stable_steps": (30, (17, 0)),
                "decay_steps": (20, (0, 55)),
                "init_value": (0.001, (0.0, 0.1)),
                "end_value": (0.01, (0.0, 0.3)),
                "num_cycles": (cycles, (1, 4)),
            },
            variant=f"{cycles}",
            boundaries=(10, 17, 27, 30, 40, 41, 50, 60, 71, 91, 95, 96, 120, 180, 192, 240, 384),
            large={"warmup_steps": 2**30, "stable_steps": 2**29, "decay_steps": LAST},
            bad={
                "peak_value": (*RATES, 0.005),
                "warmup_steps": (
                    *MAYBE_EMPTY,
                    {"warmup_steps": 0, "stable_steps": 0, "decay_steps": 0},
                ),
                "stable_steps": MAYBE_EMPTY,
                "decay_steps": MAYBE_EMPTY,
                "init_value": (*RATES, 0.6),
                "end_value": (*RATES, 0.6),
                "num_cycles": (0, 1.5, NAN),
            },
        )
        for cycles in (1, 3)
    ),
    ScheduleCase(
        "slanted_triangular_schedule",
        references.slanted_triangular,
        {
            "peak_value": (0.5, (0.1, 2.0)),
            "transition_steps": (100, (41, 250)),
            "cut_fraction": (0.1, (0.25, 0.5)),
            "ratio": (32.0, (1.0, 8.0)),
        },
        boundaries=(4, 10, 20, 25, 50, 62, 100, 125, 250),
        large={"transition_steps": LAST},
        bad={
            "peak_value": RATES,
            "transition_steps": (*COUNTS, 1, 5),
            "cut_fraction": (0.0, 1.0, 0.001, NAN),
            "ratio": (0.5, NAN),
        },
    ),
)

ONE_CYCLE = (
    *_one_cycle("one_cycle_schedule", references.one_cycle, FACTORS_OF_ONE_CYCLE, BAD_FACTORS_OF_ONE_CYCLE),
    *_one_cycle(
        "one_cycle_momentum_schedule",
        references.one_cycle_momentum,
        {"min_value": (0.85, (0.5, 0.8)), "max_value": (0.95, (0.9, 0.99))},
        {"min_value": (-0.1, 0.96, NAN), "max_value": (0.5, 1.0, INF)},
    ),
    ScheduleCase(
        "fastai_one_cycle_schedule",
        references.fastai_one_cycle,
        {**FACTORS_OF_ONE_CYCLE, "transition_steps": (100, (41, 250)), "pct_start": (0.25, (0.125, 0.5))},
        boundaries=(20, 25, 41, 62, 100, 250),
        large={"transition_steps": LAST},
        bad={**BAD_FACTORS_OF_ONE_CYCLE, "transition_steps": COUNTS, "pct_start": (0.0, 1.0, 1.5, NAN)},
    ),
    ScheduleCase(
        "cosine_onecycle_schedule",
        references.cosine_onecycle,
        {**FACTORS_OF_ONE_CYCLE, "transition_steps": (100, (41, 250)), "pct_start": (0.3, (0.125, 0.5))},
        boundaries=(12, 20, 30, 41, 62, 100, 125, 250),
        large={"transition_steps": LAST, "pct_start": 0.25},
        bad={**BAD_FACTORS_OF_ONE_CYCLE, "transition_steps": COUNTS, "pct_start": SHARES},
    ),
    ScheduleCase(
        "linear_onecycle_schedule",
        references.linear_onecycle,
        {
            **FACTORS_OF_ONE_CYCLE,
            "transition_steps": (100, (41, 250)),
            "pct_start": (0.3, (0.125, 0.5)),
            "pct_final": (0.85, (0.75, 1.0)),
        },
        boundaries=(12, 20, 30, 34, 41, 62, 75, 85, 100, 187, 212, 250),
        large={"transition_steps": LAST, "pct_start": 0.25, "pct_final": 0.75},
        bad={
            **BAD_FACTORS_OF_ONE_CYCLE,
            "transition_steps": COUNTS,
            "pct_start": SHARES,
            "pct_final": (0.2, *SHARES),
        },
    ),
)

TABLES = (
    ScheduleCase(
        "knot_schedule",
        lambda t, first, second, third: references.knots(t, (10, 40, 200), (first, second, third)),
        {"first": (0.0, (0.1, 0.3)), "second": (0.5, (0.2, 2.0)), "third": (0.01, (0.0, 0.6))},
        build=lambda olr, first, second, third: olr.knot_schedule({200: third, 10: first, 40: second}),
        boundaries=(10, 40, 120, 200),
        bad={"knots": ({"first": -0.1}, {"second": NAN})},
    ),
    ScheduleCase(
        "knot_schedule",
        lambda t, first, second: references.knots(t, (2**24 + 1, LAST), (first, second)),
        {"first": (0.1, (0.1, 0.3)), "second": (0.5, (0.2, 2.0))},
        build=lambda olr, first, second: olr.knot_schedule({2**24 + 1: first, LAST: second}),
        variant="far",
        boundaries=(2**24 + 1, 2**30),
        bad={},
    ),
    *(
        ScheduleCase(
            factory,
            reference,
            {
                "init_value": (0.5, (0.1, 2.0)),
                "first": (0.5, (0.0, 2.0)),
                "second": (0.1, (0.75, 1.0)),
                "third": (3.0, (0.3, 0.0)),
            },
            variant=word[0] if word else "",
            build=_mapped(factory, *word),
            boundaries=(10, 25, 40, 120, 200),
            bad={
                "init_value": RATES,
                "boundaries_and_scales": ({"first": -0.1}, {"second": NAN}, {"third": "big"}),
            },
        )
        for factory, reference, *word in (
            ("piecewise_constant_schedule", references.piecewise_constant),
            ("piecewise_interpolate_schedule", references.piecewise_linear, "linear"),
            ("piecewise_interpolate_schedule", references.piecewise_cosine, "cosine"),
        )
    ),
    ScheduleCase(
        "table_schedule",
        lambda t, first, second, third: (first, second, third)[min(int(t), 2)],
        {"first": (0.0, (0.1, 0.3)), "second": (0.5, (0.2, 2.0)), "third": (0.01, (0.0, 0.6))},
        build=lambda olr, **values: olr.table_schedule(list(values.values())),
        boundaries=(1, 2, 3),
        bad={"values": ({"first": -0.1}, {"second": NAN})},
    ),
)

WARMUPS = (
    ScheduleCase(
        "with_warmup",
        references.with_warmup,
        {"warmup_steps": (100, (0, 41)), "init_value": (0.1, (0.0, 2.0))},
        build=lambda olr, **arguments: olr.with_warmup(olr.anneal_schedule(1.0, 0.1, 1000), **arguments),
        boundaries=(41, 100, 1041, 1100),
        large={"warmup_steps": 2**24 + 1},
        bad={"warmup_steps": MAYBE_EMPTY, "init_value": RATES, "curve": ("linear", 0.5)},
    ),
    ScheduleCase(
        "warmup_constant_schedule",
        references.warmup_constant,
        {
            "init_value": (0.01, (0.0, 0.05)),
            "peak_value": (0.5, (0.1, 2.0)),
            "warmup_steps": (30, (0, 41)),
        },
        boundaries=(30, 41),
        large={"warmup_steps": 2**24 + 1},
        bad={"init_value": RATES, "peak_value": RATES, "warmup_steps": MAYBE_EMPTY},
    ),
    ScheduleCase(
        "warmup_cosine_decay_schedule",
        references.warmup_cosine_decay,
        {
            "init_value": (0.01, (0.0, 0.05)),
            "peak_value": (0.5, (0.1, 2.0)),
            "warmup_steps": (30, (0, 41)),
            "decay_steps": (100, (63, 250)),
            "end_value": (0.001, (0.0, 0.1)),
            "exponent": (1.0, (0.5, 3.0)),
        },
        boundaries=(30, 41, 65, 100, 250),
        large={"warmup_steps": 2**24 + 1, "decay_steps": LAST},
        bad={
            "init_value": RATES,
            "peak_value": RATES,
            "warmup_steps": (*MAYBE_EMPTY, 100, 101),
            "decay_steps": (*COUNTS, 30, 29),
            "end_value": RATES,
            "exponent": (0.0, NAN),
        },
    ),
    *(
        ScheduleCase(
            "warmup_exponential_decay_schedule",
            references.warmup_exponential_decay,
            {
                "init_value": (0.01, (0.0, 0.05)),
                "peak_value": (0.5, (0.1, 2.0)),
                "warmup_steps": (30, (0, 41)),
                "transition_steps": (20, (7, 41)),
                "decay_rate": (0.5, (0.75, 1.0)),
                "transition_begin": (5, (0, 13)),
                "end_value": (0.02, (0.0, 0.1)),
            },
            variant="staircase" if staircase else "",
            static={"staircase": staircase},
            reference_static={"staircase": staircase},
            boundaries=(7, 13, 30, 35, 41, 55, 62, 75, 95),
            large={"warmup_steps": 2**24 + 1, "transition_steps": 2**27 - 1},
            bad={
                "init_value": RATES,
                "peak_value": (*RATES, 0.01),
                "warmup_steps": MAYBE_EMPTY,
                "transition_steps": COUNTS,
                "decay_rate": (0.0, -0.5, NAN),
                "transition_begin": MAYBE_EMPTY,
                "end_value": (*RATES, 0.6),
            },
        )
        for staircase in (False, True)
    ),
)

WITH_END = (*PHASES, *ONE_CYCLE, *TABLES, *WARMUPS)
