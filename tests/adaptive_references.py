"""Float64 loops in NumPy, one parameter and one step at a time, written from the papers, as oracles.

Those of gains take gradients of shape [steps, parameters], and return updates (uphill) of that shape and the
gains after the last step. They import nothing from the package.
"""

import math

import numpy as np


def clip(x, low, high):
    return min(max(x, low), high)


def each_parameter(one, gradients):
    columns = [one([float(g) for g in column]) for column in gradients.T]
    return np.array([updates for updates, _ in columns]).T, np.array([gain for _, gain in columns])


def local_gains(
    gradients,
    increase=0.05,
    decrease=0.95,
    min_gain=0.1,
    max_gain=10.0,
    momentum=None,
    nesterov=False,
    keep_sign=False,
):
    def one(column):
        gain, last, velocity, updates = clip(1.0, min_gain, max_gain), 0.0, 0.0, []
        for g in column:
            if not math.isfinite(g):
                updates.append(g)
                continue
            product = g * (last if momentum is None else velocity)
            if product > 0:
                gain = clip(gain + increase, min_gain, max_gain)
            elif product < 0:
                gain = clip(gain * decrease, min_gain, max_gain)
            last = last if keep_sign and g == 0 else g
            if momentum is None:
                updates.append(gain * g)
                continue
            velocity = momentum * velocity + gain * g
            updates.append(momentum * velocity + gain * g if nesterov else velocity)
        return updates, gain

    return each_parameter(one, gradients)


def delta_bar_delta(gradients, increase=0.05, decrease=0.9, average_decay=0.7, min_gain=0.1, max_gain=10.0):
    def one(column):
        gain, average, updates = clip(1.0, min_gain, max_gain), 0.0, []
        for g in column:
            if math.isfinite(g):
                if g * average > 0:
                    gain = clip(gain + increase, min_gain, max_gain)
                elif g * average < 0:
                    gain = clip(gain * decrease, min_gain, max_gain)
                average = (1 - average_decay) * g + average_decay * average
            updates.append(gain * g)
        return updates, gain

    return each_parameter(one, gradients)


def rprop(
    gradients,
    variant="iRprop-",
    decrease=0.5,
    increase=1.2,
    initial_step=0.1,
    min_step=1e-6,
    max_step=50.0,
    losses=None,
    keep_sign=False,
):
    def one(column):
        size, last, last_update, last_loss, updates = initial_step, 0.0, 0.0, math.inf, []
        for step, g in enumerate(column):
            loss = math.nan if losses is None else float(losses[step])
            rose = not math.isfinite(loss) or loss > last_loss
            if math.isfinite(loss):
                last_loss = loss
            if not math.isfinite(g) or (keep_sign and g == 0):
                updates.append(g)
                continue
            if last * g > 0:
                size = min(size * increase, max_step)
            elif last * g < 0:
                size = max(size * decrease, min_step)
            if last * g < 0 and variant != "Rprop-":
                takes_back = variant == "Rprop+" or (variant == "iRprop+" and rose)
                update, last = (-last_update if takes_back else 0.0), 0.0
            else:
                update, last = math.copysign(size, g) if g else 0.0, g
            updates.append(update)
            last_update = update
        return updates, size

    return each_parameter(one, gradients)


def plateau(
    values,
    factor=0.1,
    patience=10,
    mode="min",
    rtol=1e-4,
    atol=0.0,
    cooldown=0,
    min_scale=0.0,
    accumulation_size=1,
    raise_factor=None,
    raise_patience=None,
    raise_after_progress=None,
    max_scale=1.0,
    non_finite="wait",
):
    """The scale that stands before each value. A metric that should rise is one that should fall, negated."""
    scale, best, scales = 1.0, None, []
    bad = good = stalled = pause = 0
    gathered = []
    for value in values:
        scales.append(scale)
        if not math.isfinite(value):
            if non_finite == "reduce":
                scale, bad, good, pause, gathered = max(scale * factor, min_scale), 0, 0, cooldown, []
            continue
        gathered.append(value if mode == "min" else -value)
        if len(gathered) < accumulation_size:
            continue
        metric, gathered = sum(gathered) / accumulation_size, []
        margin = 0.0 if best is None else rtol * abs(best) + atol
        if best is None or metric < best - margin:
            best, bad, good, stalled = metric, 0, good + 1, 0
        else:
            bad, good, stalled = bad + 1, 0, stalled + 1
        if pause > 0:
            pause, bad = pause - 1, 0
            continue
        up = (raise_patience and stalled >= raise_patience) or (
            raise_after_progress and good >= raise_after_progress
        )
        if up and scale < max_scale:
            scale = min(scale * (raise_factor or 1 / factor), max_scale)
            bad, good, stalled, pause = 0, 0, 0, cooldown
        elif factor is not None and bad > patience:
            scale, bad, good, pause = max(scale * factor, min_scale), 0, 0, cooldown
    return np.array(scales)
