"""A schedule prints as the call that made it, and says how long it is."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from factories import SCHEDULES

import optax_lr as olr


@pytest.mark.parametrize("case", SCHEDULES, ids=lambda case: case.id)
def test_a_schedule_prints_as_the_call_that_made_it(case):
    schedule = case.make(olr)
    text = repr(schedule)
    assert text.startswith(f"{case.factory}(") and "\n" not in text
    if "<" not in text and "float32[" not in text:
        again = eval(text.replace("schedule=", ""), {name: getattr(olr, name) for name in olr.__all__})
        steps = np.array([0, 1, *case.boundaries], np.int32)
        np.testing.assert_array_equal(jax.vmap(again)(steps), jax.vmap(schedule)(steps))


@pytest.mark.parametrize("case", SCHEDULES, ids=lambda case: case.id)
def test_a_schedule_keeps_its_value_from_its_length_on(case):
    schedule = case.make(olr)
    length = schedule.transition_steps
    later = [10**6, 2**31 - 1]
    if length is None:
        values = jax.vmap(schedule)(np.array([0, 1, 10, 10**4, *later], np.int32))
        assert case.factory in ENDLESS or len(set(np.asarray(values).tolist())) > 1
    else:
        after = [step for step in (length, length + 1, length + 7, *later) if length <= step <= later[-1]]
        values = jax.vmap(schedule)(np.array(np.ceil(after), np.int32))
        assert len(set(np.asarray(values).tolist())) == 1
        if 0 < length < later[-1]:
            assert schedule(int(np.ceil(length)) - 1) != schedule(later[-1]) or case.factory in STEPPED


# Constant, or constant after drops: nothing tells how long a run under them is.
ENDLESS = {"constant_schedule", "piecewise_constant_schedule", "warmup_constant_schedule"}
# At the last value one step before the end: PyTorch's one-cycle, a table, a staircase of epochs, a clipped end.
STEPPED = {
    "in_epochs",
    "clip_schedule",
    "table_schedule",
    "one_cycle_schedule",
    "one_cycle_momentum_schedule",
}


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (
            olr.one_cycle_schedule(0.1, transition_steps=100),
            "one_cycle_schedule(peak_value=0.1, transition_steps=100)",
        ),
        (
            olr.with_warmup(optax.constant_schedule(jnp.float32(0.5)), np.int64(10)),
            "with_warmup(schedule=constant_schedule.<locals>.<lambda>, warmup_steps=10)",
        ),
        (
            olr.anneal_schedule(0.5, 0.0, 20, curve=olr.curves.reverse(olr.curves.tanh(-4))),
            "anneal_schedule(init_value=0.5, end_value=0.0, transition_steps=20, "
            "curve=curves.reverse(curve=curves.tanh(lower=-4)))",
        ),
        (olr.knot_schedule({0: 0.0, 9: 0.5}), "knot_schedule(knots={0: 0.0, 9: 0.5})"),
        (olr.table_schedule(np.ones(300, np.float32)), "table_schedule(values=float32[300])"),
        (
            olr.add_schedules(olr.constant_schedule(0.1), olr.constant_schedule(0.2)),
            "add_schedules(constant_schedule(value=0.1), constant_schedule(value=0.2))",
        ),
        (
            olr.sgdr_schedule(0.1, 0.0, olr.Cycles(10, limit=3), curve=olr.curves.linear),
            "sgdr_schedule(peak_value=0.1, end_value=0.0, "
            "cycle_steps=Cycles(first=10, growth=1.0, limit=3), curve=curves.linear)",
        ),
    ],
    ids=lambda value: value.split("(")[0] if isinstance(value, str) else "",
)
def test_what_is_printed(schedule, text):
    assert repr(schedule) == text


def test_a_traced_number_is_printed_as_such():
    seen = []

    @jax.jit
    def value(peak):
        schedule = olr.cosine_decay_schedule(peak, 10)
        seen.append((repr(schedule), schedule.transition_steps))
        return schedule(3)

    value(0.1)
    assert seen == [("cosine_decay_schedule(init_value=<traced>, decay_steps=10)", 10)]


@pytest.mark.parametrize(
    ("schedule", "length"),
    [
        (olr.one_cycle_schedule(0.1, 100), 100),
        (olr.table_schedule([0.1, 0.2]), 2),
        (olr.warmup_cosine_decay_schedule(0.0, 0.1, 10, 100), 100),
        (olr.linear_schedule(0.0, 0.1, 10, 5), 15),
        (
            olr.warmup_stable_decay_schedule(
                1.0, warmup_steps=1, stable_steps=2, decay_steps=3, num_cycles=4
            ),
            24,
        ),
        (olr.sgdr_schedule(0.1, 0.0, olr.Cycles(10, growth=2, limit=3)), 70),
        (olr.sgdr_schedule(0.1, 0.0, olr.Cycles(100 / 3, limit=3)), 100),
        (olr.sgdr_schedule(0.1, 0.0, olr.Cycles(8, growth=0.5, limit=6)), 17),
        (olr.sgdr_schedule(0.1, 0.0, 10), None),
        (olr.cyclical_schedule(0.1, 0.2, 10), None),
        (olr.exponential_decay(0.1, 10, 0.5), None),
        (olr.with_warmup(olr.cosine_decay_schedule(0.1, 90), 10), 100),
        (olr.with_warmup(lambda step: 0.1, 10), None),
        (olr.shift_schedule(olr.cosine_decay_schedule(0.1, 90), 10), 80),
        (olr.join_schedules([lambda step: 0.1, olr.cosine_decay_schedule(0.1, 90)], [10]), 100),
        (olr.scale_schedule(olr.cosine_decay_schedule(0.1, 90), -1.0), 90),
        (olr.in_epochs(olr.cosine_decay_schedule(0.1, 3), 50), 150),
        (olr.add_schedules(olr.cosine_decay_schedule(0.1, 3), olr.linear_schedule(0.1, 0.0, 7)), 7),
        (olr.multiply_schedules(olr.inverse_sqrt_schedule(1.0, 3), olr.linear_schedule(0.1, 0.0, 7)), None),
    ],
    ids=repr,
)
def test_lengths(schedule, length):
    assert schedule.transition_steps == length


def test_schedules_are_hashable_and_equal_by_identity():
    one, other = olr.constant_schedule(0.1), olr.constant_schedule(0.1)
    assert one == one and one != other and len({one, other}) == 2
    assert jax.jit(one)(3) == np.float32(0.1)


def test_a_factory_keeps_its_signature_and_its_documentation():
    assert list(inspect.signature(olr.linear_schedule).parameters) == [
        "init_value", "end_value", "transition_steps", "transition_begin",
    ]  # fmt: skip
    assert inspect.isfunction(olr.linear_schedule) and ">>>" in olr.linear_schedule.__doc__


def test_help_prints_annotations_as_they_are_written(unhooked):
    assert str(inspect.signature(unhooked.warmup_constant_schedule)) == (
        "(init_value: ScalarLike, peak_value: ScalarLike, warmup_steps: ScalarLike) -> Schedule"
    )
    assert "cycle_steps: Cycles | ScalarLike, *" in str(inspect.signature(unhooked.sgdr_schedule))
    timescale = inspect.signature(unhooked.inverse_sqrt_schedule).parameters["timescale"]
    assert str(timescale) == "timescale: ScalarLike | None = None"
    for name in dir(unhooked):
        function = getattr(unhooked, name)
        if inspect.isfunction(function) and ".schedules." in function.__module__:
            assert "Union[" not in str(inspect.signature(function)), name
