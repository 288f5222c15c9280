"""The one table of public factories that the laws run over. A factory that has no row fails the suite."""

import references
from cases import COUNTS, FACTORS, INF, MAYBE_EMPTY, NAN, RATES, ScheduleCase

LAST = 2**31 - 1


def _inner(olr):
    """What is composed: `references.inner`."""
    return olr.anneal_schedule(1.0, 0.1, 1000)


def _sgdr(growth):
    def build(olr, first, peak_value, end_value, peak_decay, warmup_steps, limit=None):
        cycles = olr.Cycles(first, growth, limit)
        return olr.sgdr_schedule(
            peak_value, end_value, cycles, peak_decay=peak_decay, warmup_steps=warmup_steps
        )

    return build


def _of_inner(factory):
    return lambda olr, **arguments: getattr(olr, factory)(_inner(olr), **arguments)


def _joined(olr, first, second):
    return olr.join_schedules([lambda step: 0.5, _inner(olr), _inner(olr)], [first, second])


def _one_cycle(factory, reference, values, bad):
    """The two rows of a one-cycle schedule: in two phases and in three."""
    return [
        ScheduleCase(
            factory,
            reference,
            {**values, "total_steps": (100, (55, 1000)), "pct_start": (0.3, (0.2, 0.45))},
            variant="three_phase" if three_phase else "",
            static={"three_phase": three_phase},
            reference_static={"three_phase": three_phase},
            boundaries=(10, 29, 30, 44, 58, 59, 99, 100, 999),
            large={"total_steps": LAST},
            bad={
                **bad,
                "total_steps": (0, -1, 3, NAN),
                "pct_start": (0.0, 1.0, 1.5, 0.005, NAN),
            },
        )
        for three_phase in (False, True)
    ]


def _cyclical(factory, reference, values, bad, modes):
    """The rows of a cyclical schedule, one for each way that its peaks shrink."""
    options = {
        "triangular": ({}, {}),
        "triangular2": ({}, {}),
        "exp_range": ({}, {"decay_rate": (1 - 2.0**-10, (1 - 2.0**-7, 1.0))}),
        "scale": ({"mode": "triangular", "scale": lambda cycle: 1 / (1 + cycle)}, {}),
    }
    return [
        ScheduleCase(
            factory,
            reference,
            {**values, "up_steps": (20, (7, 32)), "down_steps": (30, (1, 13)), **numbers},
            variant=mode,
            static={"mode": mode, **static},
            reference_static={"mode": mode, **static},
            boundaries=(7, 8, 20, 21, 37, 45, 50, 70, 100, 10**6, 2**24),
            large={"up_steps": LAST, "down_steps": LAST},
            bad={
                **bad,
                "up_steps": COUNTS,
                "down_steps": COUNTS,
                "decay_rate": FACTORS if mode == "exp_range" else (*FACTORS, 0.5),
            },
        )
        for mode in modes
        for static, numbers in [options[mode]]
    ]


PHASES = (
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
    *_one_cycle(
        "one_cycle_schedule",
        references.one_cycle,
        {
            "peak_value": (0.5, (0.1, 2.0)),
            "div_factor": (25.0, (1.0, 10.0)),
            "final_div_factor": (1e4, (1.0, 100.0)),
        },
        {
            "peak_value": (0.0, -1.0, NAN, INF),
            "div_factor": (0.5, NAN),
            "final_div_factor": (0.5, INF),
        },
    ),
    *_one_cycle(
        "one_cycle_momentum_schedule",
        references.one_cycle_momentum,
        {"low_value": (0.85, (0.5, 0.8)), "high_value": (0.95, (0.9, 0.99))},
        {"low_value": (-0.1, 0.96, NAN), "high_value": (0.5, 1.0, INF)},
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
                "cycles": (cycles, (1, 4)),
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
                "cycles": (0, 1.5, NAN),
            },
        )
        for cycles in (1, 3)
    ),
    ScheduleCase(
        "slanted_triangular_schedule",
        references.slanted_triangular,
        {
            "peak_value": (0.5, (0.1, 2.0)),
            "total_steps": (100, (41, 250)),
            "cut_fraction": (0.1, (0.25, 0.5)),
            "ratio": (32.0, (1.0, 8.0)),
        },
        boundaries=(4, 10, 20, 25, 50, 62, 100, 125, 250),
        large={"total_steps": LAST},
        bad={
            "peak_value": RATES,
            "total_steps": (*COUNTS, 1, 5),
            "cut_fraction": (0.0, 1.0, 0.001, NAN),
            "ratio": (0.5, NAN),
        },
    ),
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
)

DECAYS = (
    ScheduleCase(
        "step_decay_schedule",
        references.step_decay,
        {
            "init_value": (0.5, (0.1, 2.0)),
            "decay_steps": (10, (7, 41)),
            "decay_rate": (0.5, (0.75, 1.0)),
            "end_value": (1e-3, (0.0, 0.05)),
        },
        boundaries=(7, 10, 20, 41, 70, 82, 90, 100, 410),
        large={"decay_steps": 2**27 - 1},
        bad={
            "init_value": (*RATES, 1e-4),
            "decay_steps": COUNTS,
            "decay_rate": FACTORS,
            "end_value": (*RATES, 1.0),
        },
    ),
    ScheduleCase(
        "multistep_decay_schedule",
        lambda t, first, second, **numbers: references.multistep_decay(
            t, boundaries=(first, second), **numbers
        ),
        {
            "init_value": (0.5, (0.1, 2.0)),
            "first": (30, (0, 41)),
            "second": (80, (41, 250)),
            "decay_rate": (0.5, (0.75, 1.0)),
        },
        build=lambda olr, first, second, init_value, decay_rate: olr.multistep_decay_schedule(
            init_value, [first, second], decay_rate
        ),
        boundaries=(30, 41, 80, 250),
        large={"first": 2**24 + 1, "second": LAST},
        bad={
            "init_value": RATES,
            "decay_rate": FACTORS,
            "boundaries": ({"first": -1}, {"first": NAN}, {"first": 81}, {"second": 2**31}),
        },
    ),
    ScheduleCase(
        "exponential_decay_schedule",
        references.exponential_decay,
        {
            "init_value": (0.5, (0.1, 2.0)),
            "decay_steps": (100, (7, 41)),
            "decay_rate": (0.5, (0.75, 1.0)),
            "end_value": (1e-3, (0.0, 0.05)),
        },
        boundaries=(7, 41, 100, 500),
        large={"decay_steps": 2**27 - 1},
        bad={
            "init_value": (*RATES, 1e-4),
            "decay_steps": COUNTS,
            "decay_rate": FACTORS,
            "end_value": (*RATES, 1.0),
        },
    ),
    *(
        ScheduleCase(
            "polynomial_decay_schedule",
            references.polynomial_decay,
            {
                "init_value": (0.5, (0.1, 2.0)),
                "end_value": (0.01, (0.0, 0.05)),
                "decay_steps": (100, (7, 41)),
                "power": (power, (0.5, 3.0)),
            },
            variant=f"{power}{'-cycle' if cycle else ''}",
            static={"cycle": cycle},
            reference_static={"cycle": cycle},
            boundaries=(7, 14, 41, 82, 100, 200, 1000),
            large={"decay_steps": LAST},
            bad={
                "init_value": RATES,
                "end_value": RATES,
                "decay_steps": COUNTS,
                "power": (0.0, -1.0, NAN),
            },
        )
        for power, cycle in ((0.5, False), (2.0, True))
    ),
    ScheduleCase(
        "inverse_time_schedule",
        references.inverse_time,
        {
            "init_value": (0.5, (0.1, 2.0)),
            "decay_steps": (100, (7, 41)),
            "decay_rate": (0.5, (0.0, 2.0)),
            "power": (0.75, (1.0, 2.0)),
        },
        boundaries=(7, 41, 100),
        large={"decay_steps": LAST},
        bad={
            "init_value": RATES,
            "decay_steps": COUNTS,
            "decay_rate": (-0.5, NAN),
            "power": (0.0, NAN),
        },
    ),
    ScheduleCase(
        "inverse_sqrt_schedule",
        references.inverse_sqrt,
        {
            "peak_value": (0.5, (0.1, 2.0)),
            "warmup_steps": (100, (0, 41)),
            "init_value": (0.001, (0.0, 0.1)),
        },
        boundaries=(41, 100),
        large={"warmup_steps": 2**24 + 1},
        bad={
            "peak_value": (*RATES, 1e-4),
            "warmup_steps": MAYBE_EMPTY,
            "init_value": (*RATES, 1.0),
            "timescale": (0.0, -1.0, NAN),
        },
    ),
    ScheduleCase(
        "inverse_sqrt_schedule",
        references.inverse_sqrt,
        {
            "peak_value": (0.5, (0.1, 2.0)),
            "warmup_steps": (0, (100, 41)),
            "timescale": (50, (0.5, 1e6)),
        },
        variant="timescale",
        boundaries=(41, 100),
        bad={},
    ),
)

CYCLICAL = (
    *_cyclical(
        "cyclical_schedule",
        references.cyclical,
        {"base_value": (0.01, (0.0, 0.05)), "peak_value": (0.5, (0.1, 2.0))},
        {"base_value": (*RATES, 0.6), "peak_value": (*RATES, 0.001)},
        ("triangular", "triangular2", "exp_range", "scale"),
    ),
    *_cyclical(
        "cyclical_momentum_schedule",
        references.cyclical_momentum,
        {"low_value": (0.8, (0.5, 0.7)), "high_value": (0.9, (0.85, 0.99))},
        {"low_value": (-0.1, 0.95, NAN), "high_value": (0.5, 1.0, NAN)},
        ("exp_range",),
    ),
    *(
        ScheduleCase(
            "sgdr_schedule",
            references.sgdr,
            {
                **({"first": (10, (7, 41))} if growth == int(growth) else {}),
                "peak_value": (0.5, (0.4, 2.0)),
                "end_value": (0.01, (0.0, 0.1)),
                "peak_decay": (0.5, (1.0, 0.75)),
                "warmup_steps": (warmup, (0, 5)),
                **({"limit": (limit, (2, 6))} if limit else {}),
            },
            variant=f"{growth}-{warmup}-{limit}",
            build=_sgdr(growth),
            static={} if growth == int(growth) else {"first": 10},
            reference_static={"growth": growth, **({} if growth == int(growth) else {"first": 10})},
            boundaries=(3, 7, 10, 20, 25, 30, 40, 41, 47, 48, 70, 82, 90, 123, 200, 630, 10**6, 2**24),
            large={"first": 2**24 + 1 if growth == 2 else LAST} if growth == int(growth) else {},
            bad={
                "first": (0, -1, 2.5, NAN, 2**31),
                "peak_value": (*RATES, 0.001),
                "end_value": (*RATES, 0.6),
                "peak_decay": FACTORS,
                "warmup_steps": (-1, 10, 2.5),
                "limit": (0, 1.5, NAN),
            },
        )
        for growth, warmup, limit in (
            (1, 0, None),
            (1, 3, 5),
            (2, 0, None),
            (3, 3, 4),
            (1.1, 0, None),
            (1.5, 3, 6),
        )
    ),
)

COMPOSED = (
    ScheduleCase(
        "with_warmup",
        references.with_warmup,
        {"warmup_steps": (100, (0, 41)), "init_value": (0.1, (0.0, 2.0))},
        build=_of_inner("with_warmup"),
        boundaries=(41, 100, 1041, 1100),
        large={"warmup_steps": 2**24 + 1},
        bad={"warmup_steps": MAYBE_EMPTY, "init_value": RATES},
    ),
    ScheduleCase(
        "shift_schedule",
        references.shifted,
        {"steps": (100, (0, 41))},
        build=_of_inner("shift_schedule"),
        boundaries=(900, 959, 1000),
        large={"steps": LAST},
        bad={"steps": MAYBE_EMPTY},
    ),
    ScheduleCase(
        "join_schedules",
        references.joined,
        {"first": (100, (0, 41)), "second": (300, (150, 1200))},
        build=_joined,
        boundaries=(41, 100, 150, 300, 1100, 1200, 1300, 2200),
        large={"first": 2**24 + 1, "second": 10**8},
        bad={"boundaries": ({"first": -1}, {"first": NAN}, {"first": 301}, {"second": 2**31})},
    ),
    ScheduleCase(
        "scale_schedule",
        references.scaled,
        {"factor": (0.5, (-1.0, 2.0))},
        build=_of_inner("scale_schedule"),
        boundaries=(500, 1000),
        bad={"factor": (NAN, INF, "big")},
    ),
    ScheduleCase(
        "multiply_schedules",
        lambda t, decay_steps: references.inner(t) * references.step_decay(t, 1.0, decay_steps, 0.5),
        {"decay_steps": (100, (41, 250))},
        build=lambda olr, decay_steps: olr.multiply_schedules(
            _inner(olr), olr.step_decay_schedule(1.0, decay_steps, 0.5)
        ),
        boundaries=(41, 82, 100, 200, 250, 500),
        bad={},
    ),
    ScheduleCase(
        "clip_schedule",
        references.clipped,
        {"min_value": (0.25, (0.0, 0.2)), "max_value": (0.75, (0.5, 2.0))},
        build=_of_inner("clip_schedule"),
        boundaries=(333, 500, 667, 1000),
        bad={"min_value": (NAN, 0.8), "max_value": (INF, 0.2)},
    ),
    *(
        ScheduleCase(
            "in_epochs",
            references.in_epochs,
            {"steps_per_epoch": (100, (41, 250))},
            build=lambda olr, **arguments: olr.in_epochs(olr.anneal_schedule(1.0, 0.1, 10), **arguments),
            variant="staircase" if staircase else "",
            static={"staircase": staircase},
            reference_static={"staircase": staircase},
            boundaries=(41, 82, 100, 200, 250, 410, 900, 1000, 2500),
            large={"steps_per_epoch": 2**27 - 1},
            bad={"steps_per_epoch": COUNTS},
        )
        for staircase in (False, True)
    ),
)

SCHEDULES = (*PHASES, *DECAYS, *CYCLICAL, *COMPOSED)
