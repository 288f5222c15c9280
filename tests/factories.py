"""The one table of public factories that the laws run over. A factory that has no row fails the suite."""

import operator

import references
from cases import COUNTS, FACTORS, INF, MAYBE_EMPTY, NAN, RATES, ScheduleCase
from factories_with_end import WITH_END

LAST = 2**31 - 1


def _inner(olr):
    """What is composed: `references.inner`."""
    return olr.anneal_schedule(1.0, 0.1, 1000)


def _sgdr(growth):
    def build(olr, first, peak_value, end_value, limit=None, **options):
        return olr.sgdr_schedule(peak_value, end_value, olr.Cycles(first, growth, limit), **options)

    return build


def _of_inner(factory):
    return lambda olr, **arguments: getattr(olr, factory)(_inner(olr), **arguments)


def _joined(olr, first, second):
    return olr.join_schedules([lambda step: 0.5, _inner(olr), _inner(olr)], [first, second])


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
                "curve": ("linear", 0.5),
            },
        )
        for mode in modes
        for static, numbers in [options[mode]]
    ]


DECAYS = (
    *(
        ScheduleCase(
            "exponential_decay",
            references.exponential_decay,
            {
                "init_value": (0.5, (0.1, 0.4)),
                "transition_steps": (10, (7, 41)),
                "decay_rate": (rate, (0.75, 1.0) if rate < 1 else (1.25, 1.0)),
                "transition_begin": (begin, (0, 13)),
                "end_value": (end, (0.0, 0.05) if rate < 1 else (0.75, 2.0)),
            },
            variant=variant,
            static={"staircase": "staircase" in variant},
            reference_static={"staircase": "staircase" in variant},
            boundaries=(5, 7, 10, 13, 15, 20, 41, 70, 82, 90, 100, 410),
            large={"transition_steps": 2**27 - 1},
            bad={
                "init_value": (*RATES, 1e-4 if rate < 1 else 2.0),
                "transition_steps": COUNTS,
                "decay_rate": (0.0, -0.5, NAN),
                "transition_begin": MAYBE_EMPTY,
                "end_value": (*RATES, 1.0 if rate < 1 else 0.1),
            },
        )
        for variant, rate, begin, end in (
            ("", 0.5, 0, 1e-3),
            ("staircase", 0.5, 0, 1e-3),
            ("begin-staircase", 0.5, 5, 1e-3),
            ("growing", 1.5, 5, 1.0),
        )
    ),
    ScheduleCase(
        "inverse_time_schedule",
        references.inverse_time,
        {
            "init_value": (0.5, (0.1, 2.0)),
            "transition_steps": (100, (7, 41)),
            "decay_rate": (0.5, (0.0, 2.0)),
            "power": (0.75, (1.0, 2.0)),
        },
        boundaries=(7, 41, 100),
        large={"transition_steps": LAST},
        bad={
            "init_value": RATES,
            "transition_steps": COUNTS,
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
            "timescale": (0.0, -1.0, 0.5, NAN),
        },
    ),
    ScheduleCase(
        "inverse_sqrt_schedule",
        references.inverse_sqrt,
        {
            "peak_value": (0.5, (0.1, 2.0)),
            "warmup_steps": (0, (100, 41)),
            "timescale": (50, (2, 10**6)),
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
        {"init_value": (0.01, (0.0, 0.05)), "peak_value": (0.5, (0.1, 2.0))},
        {"init_value": (*RATES, 0.6), "peak_value": (*RATES, 0.001)},
        ("triangular", "triangular2", "exp_range", "scale"),
    ),
    *_cyclical(
        "cyclical_momentum_schedule",
        references.cyclical_momentum,
        {"min_value": (0.8, (0.5, 0.7)), "max_value": (0.9, (0.85, 0.99))},
        {"min_value": (-0.1, 0.95, NAN), "max_value": (0.5, 1.0, NAN)},
        ("exp_range",),
    ),
    *(
        ScheduleCase(
            "sgdr_schedule",
            references.sgdr,
            {
                **({} if first else {"first": (10, (7, 41))}),
                "peak_value": (0.5, (0.4, 2.0)),
                "end_value": (0.01, (0.0, 0.1)),
                "peak_decay": (0.5, (1.0, 0.75)),
                "end_decay": (0.75, (1.0, 0.5)),
                "warmup_steps": (warmup, (0, 5)),
                **({"limit": (limit, (2, 6))} if limit else {}),
            },
            variant=f"{growth}-{warmup}-{limit}{'-' if first else ''}{first or ''}",
            build=_sgdr(growth),
            static={"first": first} if first else {},
            reference_static={"growth": growth, **({"first": first} if first else {})},
            boundaries=(
                3,
                7,
                10,
                20,
                25,
                30,
                34,
                40,
                41,
                47,
                48,
                67,
                70,
                82,
                90,
                101,
                123,
                167,
                200,
                630,
                10**6,
            ),
            large={} if first else {"first": 2**24 + 1 if growth == 2 else LAST},
            bad={
                "first": (0, -1, 0.5, NAN, 2**31),
                "peak_value": (*RATES, 0.001),
                "end_value": (*RATES, 0.6),
                "peak_decay": FACTORS,
                "end_decay": FACTORS,
                "warmup_steps": (-1, 50, 2.5),
                "limit": (0, 1.5, NAN),
                "curve": ("cosine", 0.5),
            },
        )
        for growth, warmup, limit, first in (
            (1, 0, None, None),
            (1, 3, 5, None),
            (2, 0, None, None),
            (3, 3, 4, None),
            (1.1, 0, None, 10),
            (1.5, 3, 6, 10),
            (1, 0, None, 33.4),
            (1, 3, 5, 33.4),
            (0.5, 0, None, 20),
            (0.75, 3, 6, 20.5),
        )
    ),
)

COMPOSED = (
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
    *(
        ScheduleCase(
            factory,
            lambda t, decay_steps, combine=combine: combine(
                references.inner(t), references.exponential_decay(t, 1.0, decay_steps, 0.5)
            ),
            {"decay_steps": (100, (41, 250))},
            build=lambda olr, decay_steps, factory=factory: getattr(olr, factory)(
                _inner(olr), olr.exponential_decay(1.0, decay_steps, 0.5)
            ),
            boundaries=(41, 100, 250, 500),
            bad={},
        )
        for factory, combine in (("multiply_schedules", operator.mul), ("add_schedules", operator.add))
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

SCHEDULES = (*WITH_END, *DECAYS, *CYCLICAL, *COMPOSED)
