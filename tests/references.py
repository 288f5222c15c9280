"""Float64 formulas in NumPy, written from the sources, as oracles. They import nothing from the package."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

# Curves, rising from 0 to 1.


def linear(p):
    return p


def cosine(p):
    return (1 - np.cos(np.pi * p)) / 2


def sqrt(p):
    return p**0.5


def square(p):
    return p**2


def rex(p):
    return 1 - (1 - p) / (1 - p / 2)


def power(exponent):
    return lambda p: p**exponent


def polynomial(exponent):
    return lambda p: 1 - (1 - p) ** exponent


def exponential(rate):
    return lambda p: np.expm1(-rate * p) / np.expm1(-rate)


def k_decay(k):
    return lambda p: (1 - np.cos(np.pi * p**k)) / 2


def tanh(lower=-7.0, upper=3.0):
    return lambda p: (1 + np.tanh(lower * (1 - p) + upper * p)) / 2


def reverse(curve):
    return lambda p: 1 - curve(1 - p)


# Schedules.


def anneal(t, init_value, end_value, transition_steps, curve=cosine):
    p = t / transition_steps
    return end_value if p >= 1 else init_value + (end_value - init_value) * curve(p)


def geometric(t, init_value, end_value, transition_steps):
    return init_value * (end_value / init_value) ** min(t / transition_steps, 1)


def phases(t, ends, values, curve=cosine):
    start = 0.0
    if t >= ends[-1]:
        return values[-1]
    for end, low, high in zip(ends, values, values[1:], strict=False):
        if t <= end:
            return low + (high - low) * curve((t - start) / (end - start))
        start = end
    return values[-1]


def one_cycle(
    t,
    peak_value,
    transition_steps,
    pct_start=0.3,
    div_factor=25.0,
    final_div_factor=1e4,
    three_phase=False,
    curve=cosine,
):
    first = peak_value / div_factor
    last = first / final_div_factor
    top = pct_start * transition_steps - 1
    if three_phase:
        return phases(t, (top, 2 * top, transition_steps - 1), (first, peak_value, first, last), curve)
    return phases(t, (top, transition_steps - 1), (first, peak_value, last), curve)


def one_cycle_momentum(
    t, transition_steps, min_value=0.85, max_value=0.95, pct_start=0.3, three_phase=False, curve=cosine
):
    top = pct_start * transition_steps - 1
    end = 2 * top if three_phase else transition_steps - 1
    return phases(t, (top, end), (max_value, min_value, max_value), curve)


def fastai_one_cycle(t, peak_value, transition_steps, pct_start=0.25, div_factor=25.0, final_div_factor=1e5):
    values = peak_value / div_factor, peak_value, peak_value / final_div_factor
    return phases(t, (pct_start * transition_steps, transition_steps), values)


def cosine_onecycle(t, transition_steps, peak_value, pct_start, div_factor, final_div_factor):
    first = peak_value / div_factor
    ends = math.floor(pct_start * transition_steps), transition_steps
    return phases(t, ends, (first, peak_value, first / final_div_factor))


def linear_onecycle(t, transition_steps, peak_value, pct_start, pct_final, div_factor, final_div_factor):
    first = peak_value / div_factor
    ends = [math.floor(share * transition_steps) for share in (pct_start, pct_final, 1)]
    return phases(t, ends, (first, peak_value, first, first / final_div_factor), linear)


def piecewise_constant(t, init_value, first, second, third):
    return init_value * math.prod(s for b, s in ((10, first), (40, second), (200, third)) if t >= b)


def piecewise_linear(t, init_value, first, second, third, curve=linear):
    values = np.cumprod([init_value, first, second, third])
    return phases(t, (10, 40, 200), values, curve)


def piecewise_cosine(t, *args, **kwargs):
    return piecewise_linear(t, *args, **kwargs, curve=cosine)


def exponential_decay(
    t, init_value, transition_steps, decay_rate, transition_begin=0, staircase=False, end_value=None
):
    exponent = max(t - transition_begin, 0) / transition_steps
    exponent = math.floor(exponent) if staircase else exponent
    # By logarithms, for a growing power overflows at the last steps.
    value = init_value * math.exp(min(exponent * math.log(decay_rate), 700))
    if end_value is None or decay_rate == 1:
        return value
    return max(value, end_value) if decay_rate < 1 else min(value, end_value)


def polynomial_decay(t, init_value, end_value, transition_steps, transition_begin=0, power=1.0, cycle=False):
    t = max(t - transition_begin, 0)
    span = transition_steps * max(math.ceil(t / transition_steps), 1) if cycle else transition_steps
    return end_value + (init_value - end_value) * (1 - min(t / span, 1.0)) ** power


def cosine_decay(t, init_value, decay_steps, alpha=0.0, exponent=1.0):
    decayed = (0.5 * (1 + math.cos(math.pi * min(t / decay_steps, 1)))) ** exponent
    return init_value * ((1 - alpha) * decayed + alpha)


def warmup_constant(t, init_value, peak_value, warmup_steps):
    return peak_value if t >= warmup_steps else init_value + (peak_value - init_value) * t / warmup_steps


def warmup_cosine_decay(t, init_value, peak_value, warmup_steps, decay_steps, end_value=0.0, exponent=1.0):
    if t < warmup_steps:
        return warmup_constant(t, init_value, peak_value, warmup_steps)
    progress = min((t - warmup_steps) / (decay_steps - warmup_steps), 1)
    decayed = (0.5 * (1 + math.cos(math.pi * progress))) ** exponent
    return end_value + (peak_value - end_value) * decayed


def warmup_exponential_decay(t, init_value, peak_value, warmup_steps, **decay):
    if t < warmup_steps:
        return warmup_constant(t, init_value, peak_value, warmup_steps)
    return exponential_decay(t - warmup_steps, peak_value, **decay)


def inverse_time(t, init_value, transition_steps, decay_rate, power=1.0):
    return init_value / (1 + decay_rate * t / transition_steps) ** power


def inverse_sqrt(t, peak_value, warmup_steps, timescale=None, init_value=0.0):
    if t < warmup_steps:
        return init_value + (peak_value - init_value) * t / warmup_steps
    tau = timescale or warmup_steps or 10_000
    return peak_value * math.sqrt(tau / (t - warmup_steps + tau))


def height(t, up_steps, down_steps=None, mode="triangular", decay_rate=1.0, curve=linear, scale=None):
    down = up_steps if down_steps is None else down_steps
    cycle, x = divmod(t, up_steps + down)
    h = curve(x / up_steps) if x < up_steps else 1 - curve((x - up_steps) / down)
    if scale:
        return h * scale(cycle)
    return h * {"triangular": 1.0, "triangular2": 2.0**-cycle, "exp_range": decay_rate**t}[mode]


def cyclical(t, init_value, peak_value, *args, **kwargs):
    return init_value + (peak_value - init_value) * height(t, *args, **kwargs)


def cyclical_momentum(t, min_value, max_value, *args, **kwargs):
    return max_value - (max_value - min_value) * height(t, *args, **kwargs)


def cycle(t, first, growth=1):
    """Index, start and length of the cycle at time t, by adding lengths up; exact rational numbers."""
    # A float stands for the share or the decimal that it was written as: 100 / 3, 33.4.
    first, growth = Fraction(first).limit_denominator(10_000), Fraction(growth)
    if growth == 1:
        index = int(t // first)
        return index, index * first, first
    index, start, real, length = 0, Fraction(0), Fraction(0), first
    while True:
        if growth < 1 and length <= 1:
            singles = math.floor(t - start)
            return index + singles, start + singles, Fraction(1)
        real, length = real + length, length * growth
        after = round(real) if abs(real - round(real)) < 1e-6 else real
        after = math.ceil(after) if growth < 1 and length <= 1 else after
        if t < after:
            return index, start, after - start
        index, start = index + 1, after


def sgdr(
    t,
    peak_value,
    end_value,
    first,
    growth=1,
    limit=None,
    peak_decay=1.0,
    end_decay=1.0,
    warmup_steps=0,
    curve=cosine,
):
    index, start, length = cycle(t, first, growth)
    if limit is not None and index >= limit:
        return end_value * end_decay ** (limit - 1)
    peak, end = peak_value * peak_decay**index, end_value * end_decay**index
    progress = float((Fraction(t) - start) / length)
    begin, after = math.ceil(start), math.ceil(start + length)
    if growth < 1:
        warmup_steps = min(warmup_steps, after - begin - 1)
    if warmup_steps:
        if t - begin < warmup_steps:
            return end + (peak - end) * (t - begin) / warmup_steps
        progress = (t - begin - warmup_steps) / (after - begin - warmup_steps)
    return peak + (end - peak) * curve(progress)


def warmup_stable_decay(
    t,
    peak_value,
    warmup_steps,
    stable_steps,
    decay_steps,
    init_value=0.0,
    end_value=0.0,
    num_cycles=1,
    warmup_curve=linear,
    decay_curve=cosine,
):
    index, t = divmod(t, warmup_steps + stable_steps + decay_steps)
    if index >= num_cycles:
        return end_value
    if t < warmup_steps:
        return init_value + (peak_value - init_value) * warmup_curve(t / warmup_steps)
    if t < warmup_steps + stable_steps:
        return peak_value
    p = (t - warmup_steps - stable_steps) / decay_steps
    return peak_value + (end_value - peak_value) * decay_curve(p)


def slanted_triangular(t, peak_value, transition_steps, cut_fraction=0.1, ratio=32.0):
    cut = math.floor(cut_fraction * transition_steps)
    q = t / cut if t < cut else 1 - (min(t, transition_steps) - cut) / (transition_steps - cut)
    return peak_value * (1 + q * (ratio - 1)) / ratio


def knots(t, steps, values):
    return np.interp(t, steps, values)


# Composition, of an annealing from 1 to 0.1 in 1000 steps (unless told).


def inner(t, length=1000):
    return anneal(t, 1.0, 0.1, length)


def with_warmup(t, warmup_steps, init_value=0.0):
    if t < warmup_steps:
        return init_value + (inner(0) - init_value) * t / warmup_steps
    return inner(t - warmup_steps)


def shifted(t, steps):
    return inner(t + steps)


def joined(t, first, second):
    if t < first:
        return 0.5
    return inner(t - first) if t < second else inner(t - second)


def scaled(t, factor):
    return factor * inner(t)


def clipped(t, min_value, max_value):
    return min(max(inner(t), min_value), max_value)


def in_epochs(t, steps_per_epoch, staircase=False):
    epoch = t // steps_per_epoch if staircase else t / steps_per_epoch
    return inner(epoch, length=10)


def key_of_seed(key, seed):
    """The key of a seed's steps, from NumPy's hash of the bits of a sweep's key and the seed's number."""
    bits = np.asarray(jax.random.key_data(key))
    hashed = np.random.SeedSequence(bits.tolist(), spawn_key=(seed,)).generate_state(len(bits))
    return jax.random.wrap_key_data(jnp.asarray(hashed))
