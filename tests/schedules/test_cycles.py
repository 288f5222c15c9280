"""Cycles against lengths added up in rational numbers, and what they print, list and refuse."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references

import optax_lr as olr

LAST = 2**31 - 1
CASES = [
    (10, 1.0),
    (10, 1.5),
    (7, 2.0),
    (1, 3.0),
    (1000, 1.25),
    (3, 7.25),
    (2.5, 1.0),
    (100 / 3, 1.0),
    (1234.567, 1.0),
    (2.5, 2.0),
    (20, 0.5),
    (20.5, 0.75),
    (1, 0.5),
    (LAST, 0.9),
    (LAST, 1.0),
    (1000, LAST),
]


def starts_of(first, growth):
    """The real starts of the cycles up to the last step, but for the many of equal length."""
    starts, t = [], 0
    while t <= LAST and len(starts) < (50_000 if growth > 1 else 200):
        _, start, length = references.cycle(t, first, growth)
        starts.append(start)
        if growth == 1:
            break
        t = math.ceil(start + length)
    return starts


@pytest.mark.parametrize(("first", "growth"), CASES)
def test_position(first, growth):
    starts = [math.ceil(start) for start in starts_of(first, growth)]
    if growth == 1:
        starts = [
            math.ceil(Fraction(first).limit_denominator(4096) * i) for i in (0, 1, 2, 3, 7, LAST // first)
        ]
    chosen = starts if len(starts) < 60 else [*starts[:20], *starts[-20:]]
    steps = sorted({min(max(s + d, 0), LAST) for s in [*chosen, 2**24, LAST] for d in (-1, 0, 1)})
    position = jax.jit(jax.vmap(olr.Cycles(first, growth).position))(np.array(steps, np.int32))
    for i, t in enumerate(steps):
        index, start, length = references.cycle(t, first, growth)
        whole, after = math.ceil(start), math.ceil(start + length)
        got = (int(position.index[i]), int(position.offset[i]), int(position.length[i]))
        assert got == (index, t - whole, min(after - whole, LAST)), t
        np.testing.assert_allclose(position.progress[i], float((t - start) / length), rtol=0, atol=2e-7)
    assert {a.dtype for a in position[:3]} == {jnp.dtype(jnp.int32)}
    assert (position.progress >= 0).all() and (position.progress < 1).all()


def test_restarts_are_real_numbers():
    position = jax.vmap(olr.Cycles(10, 1.5).position)
    assert position(np.arange(100)).index.tolist() == np.repeat(range(5), [10, 15, 23, 34, 18]).tolist()
    half = position(np.array([47.25, 47.5, 47.75, 48.0], np.float32))
    assert half.index.tolist() == [2, 3, 3, 3] and half.offset.tolist() == [22, -1, -1, 0]
    np.testing.assert_allclose(half.progress[1:], np.array([0, 0.25, 0.5]) / 33.75, atol=1e-7)


def test_the_last_cycle_of_a_limited_number_is_the_end():
    for cycles in (olr.Cycles(10, 1, 3), olr.Cycles(10, 1.5, 3), olr.Cycles(10, 2, 3)):
        end = cycles.ends(1000)[-1]
        position = cycles.position(end + 100)
        assert position.index == 2 and position.offset == position.length and position.progress == 1
        assert cycles.is_end(end) and not cycles.is_end(end + 1)


@pytest.mark.parametrize("cycles", [olr.Cycles(7), olr.Cycles(10, 1.5), olr.Cycles(3, 2, 4)], ids=str)
def test_ends_are_where_a_cycle_ends(cycles):
    steps = np.arange(200)
    assert cycles.ends(200) == tuple(steps[np.asarray(jax.vmap(cycles.is_end)(steps))])
    assert cycles.ends(cycles.ends(200)[1] + 1) == cycles.ends(200)[:2]
    assert cycles.ends(cycles.ends(200)[1]) == cycles.ends(200)[:1]


@pytest.mark.parametrize("growth", [1, 3])
@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_first_and_limit_may_be_traced(growth, dtype):
    steps = np.arange(0, 300, 7, dtype=np.int32)
    firsts, limits = np.array([1, 5, 40], dtype), np.array([1, 3, 9], dtype)
    got = jax.jit(jax.vmap(lambda first, limit: jax.vmap(olr.Cycles(first, growth, limit).position)(steps)))(
        firsts, limits
    )
    for lane, (first, limit) in enumerate(zip(firsts, limits, strict=True)):
        expected = jax.vmap(olr.Cycles(int(first), growth, int(limit)).position)(steps)
        for name, one, other in zip(expected._fields, got, expected, strict=True):
            np.testing.assert_array_equal(one[lane], other, err_msg=name)


def test_cycles_pass_through_jit():
    cycles = olr.Cycles(10, 2, 5)
    position = jax.jit(lambda cycles, step: cycles.position(step))(cycles, 25)
    assert jax.tree.leaves(cycles) == [10, 5] and position.index == 1 and position.progress == 0.75
    assert jax.tree.map(lambda n: n + 1, cycles) == olr.Cycles(11, 2, 6)


@pytest.mark.parametrize("cycles", [olr.Cycles(33.4), olr.Cycles(10, 1.5), olr.Cycles(20.5, 0.75)], ids=str)
def test_cycles_with_fractions_pass_through_jit(cycles):
    position = jax.jit(lambda cycles, step: cycles.position(step))(cycles, 67)
    assert position == cycles.position(67) and jax.tree.leaves(cycles) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((0,), "first must be a number of steps from 1 to 2^31 - 1, got 0."),
        ((0.5,), "first must be a number of steps, not a share, got 0.5."),
        ((10, 0), "growth must be a finite number above 0 and of at most 2.14748e+09, got 0."),
        (
            (1e6, 0.999),
            "growth=0.999 from first=1000000 makes 13809 cycles before they are one step long, over 4096.",
        ),
        ((10, 2, 0), "limit must be a whole number of cycles from 1 to 2^31 - 1, got 0."),
        ((1, 1.001), "growth=1.001 from first=1 makes 14588 cycles in 2^31 steps, over 4096."),
    ],
)
def test_refusals_read_well(unhooked, arguments, sentence):
    with pytest.raises(ValueError, match=r".") as refusal:
        unhooked.Cycles(*arguments)
    assert str(refusal.value) == sentence


def test_what_sizes_a_table_is_concrete(unhooked):
    with pytest.raises(ValueError, match="growth must be concrete"):
        jax.jit(lambda growth: unhooked.Cycles(10, growth).position(0))(2.0)
    with pytest.raises(ValueError, match=r"first must be concrete where growth=1.5 is not whole"):
        jax.jit(lambda first: unhooked.Cycles(first, 1.5).position(0))(10)
    with pytest.raises(ValueError, match="first must be concrete where the ends"):
        jax.jit(lambda first: unhooked.Cycles(first).ends(100))(10)
    with pytest.raises(ValueError, match="num_steps must be a whole number"):
        unhooked.Cycles(10).ends(0)
