"""Rules on finding rates and on changing them over time; see taught.py."""

import functools
import json
import pathlib
from typing import Any

import jax
import numpy as np
import optax
from sklearn.datasets import load_digits
from taught import (
    BATCHES,
    FINE,
    PROBLEM,
    QUIET,
    STEPS,
    TRAIN_X,
    TRAIN_Y,
    VALID,
    Figures,
    at_rate,
    batches_of,
    best,
    by,
    constant,
    cosine,
    ends,
    example,
    init,
    loss_fn,
    one_cycle,
    rule,
    sweep,
)

import optax_lr as olr


@rule
def halving() -> Figures:
    curve = sweep(rates=2.0 ** np.arange(-8, 6))
    first = int(np.flatnonzero(curve.stable)[-1])
    learns = olr.suggest.halve_until_stable(curve).learning_rate
    errors = ends(curve, "error")
    return {
        "first": curve.learning_rates[first],
        "first_error": errors[first],
        "learns": learns,
        "learns_error": errors[np.abs(curve.learning_rates - learns).argmin()],
        "best": best(curve)["rate"],
        "best_error": best(curve)["error"],
    }


@rule
def subset() -> Figures:
    part = best(sweep(batches=batches_of(rows=len(TRAIN_Y) // 10)))["rate"]
    whole = best(constant())
    loss = ends(constant())[np.abs(FINE - part).argmin()]
    return {"part": part, "whole": whole["rate"], "times": whole["rate"] / part, "part_loss": loss,
            "whole_loss": whole["loss"]}  # fmt: skip


@rule
def decay_of_a_hundred() -> Figures:
    def factory(learning_rate: Any, decay: Any) -> Any:
        fall = olr.exponential_decay(1.0, STEPS, 1 / decay)
        return olr.scale_by_learning_rate(olr.multiply_schedules(learning_rate, fall))

    factors = 10.0 ** np.arange(5)
    curve = sweep(factory, lanes=olr.grid(learning_rate=np.geomspace(0.05, 3, 10), decay=factors))
    found = {int(decay): best(part) for decay, part in by(curve, "decay")}
    losses = {f"f{decay}": each["loss"] for decay, each in found.items()}
    return losses | {f"e{decay}": each["error"] for decay, each in found.items()}


@rule
def steepest_point() -> Figures:
    ramp = olr.lr_range_test(loss_fn, init, optax.sgd, BATCHES, seeds=6, **QUIET)
    rules = {
        "steepest": olr.suggest.steepest,
        "minimum": olr.suggest.minimum_over_ten,
        "rise": olr.suggest.before_rise,
    }
    figures: dict[str, Any] = {
        "steps": STEPS,
        "best": best(constant())["rate"],
        "best_error": best(constant())["error"],
    }
    for name, each in rules.items():
        found = each(ramp)
        figures |= {f"{name}_low": found.low, f"{name}_high": found.high}
        figures[f"{name}_error"] = at_rate((found.low * found.high) ** 0.5)["error"]
    return figures


@rule
def initial_weights() -> Figures:
    rates = [
        olr.lr_find(PROBLEM, init, optax.sgd, BATCHES, eval_batch=VALID, horizon=STEPS, schedule=one_cycle, seeds=1,
                    key=jax.random.key(at), **QUIET).learning_rate for at in range(4)
    ]  # fmt: skip
    middle = np.exp(np.mean(np.log(rates)))
    curve = sweep(rates=middle * np.array([1 / 3, 1, 3]), schedule=one_cycle, seeds=6, stop_factor=1e9)
    low, at, high = 100 * (1 - ends(curve, "error"))
    return {"low": min(rates), "high": max(rates), "below": at - low, "above": at - high, "best": at}


@rule
def find_again() -> Figures:
    steps, rate = 300, best(constant())["rate"]
    params = init(jax.random.key(1))
    for batch in zip(*(leaf[:steps] for leaf in BATCHES), strict=True):
        params = _step(params, batch, rate)
    ahead = jax.tree.map(lambda leaf: leaf[steps:], BATCHES)
    ramp = olr.lr_range_test(loss_fn, params, optax.sgd, ahead, **QUIET)
    ten_less = olr.suggest.flat_then_rising(ramp).learning_rate
    short = olr.lr_refind(
        loss_fn, params, optax.sgd, ahead, learning_rate=rate, eval_batch=VALID
    ).learning_rate
    rates = np.sort([*np.geomspace(1e-4, 1, 17), ten_less, rate])
    curve = sweep(rates=rates, batches=ahead, params=params)
    losses = {
        name: ends(curve)[np.abs(rates - at).argmin()]
        for name, at in {"ramp": ten_less, "stay": rate}.items()
    }
    return {"steps": steps, "rate": rate, "ramp": ten_less, "short": short, "best": best(curve)["rate"],
            "best_loss": best(curve)["loss"], "ramp_loss": losses["ramp"], "stay_loss": losses["stay"]}  # fmt: skip


@jax.jit
def _step(params: Any, batch: Any, rate: Any) -> Any:
    return jax.tree.map(lambda leaf, slope: leaf - rate * slope, params, jax.grad(loss_fn)(params, batch))


@functools.cache
def _cyclical() -> Figures:
    return example("cyclical").main()


@rule
def bounds_of_cycles() -> Figures:
    found = _cyclical()
    (upper, lost), (_, quarter), (runs, ended) = found["bounds"].values()
    return {"upper": upper, "upper_loss": lost, "quarter_loss": quarter, "runs": runs, "runs_loss": ended,
            "best_loss": found["ends"]["triangular"]["loss"]}  # fmt: skip


@rule
def bounds_on_ten_problems() -> Figures:
    """On how many of the problems of cyclical_bounds.json a cycle ends within a tenth of the best peak's loss."""
    scores = json.loads(pathlib.Path(__file__).with_name("cyclical_bounds.json").read_text()).values()
    read_off = {"runs": "runs of 200 steps", "ramp": "ramp of 100 steps", "long": "ramp of 400 steps",
                "checked": "ramp of 100 steps, 5 short runs"}  # fmt: skip
    within = {key: sum(score[name] < 0.1 for score in scores) for key, name in read_off.items()}
    return {**within, "problems": len(scores)}


@rule
def worse_then_better() -> Figures:
    found = _cyclical()
    hump, after = found["hump"], found["ends"]
    losses = {name.split()[0]: each["loss"] for name, each in after.items()}
    epochs = {
        f"{name.split()[0]}_epochs": after[name]["epochs"] for name in ("fixed", "one cycle", "triangular")
    }
    return {"peak": hump["peak"], "before": hump["before"], "at": hump["at the peak"], "after": hump["after"],
            **{name: after["triangular"][name] for name in ("less", "half")}, **losses, **epochs}  # fmt: skip


@rule
def sharp_minima() -> Figures:
    return example("landscapes").minima()


@rule
def saddles() -> Figures:
    return dict(zip(("fixed", "cycles", "raised"), example("landscapes").saddle().values(), strict=True))


@rule
def snapshots() -> Figures:
    found, _ = example("snapshot_ensemble").compare(load_digits)
    means = {name: values.mean(axis=0) for name, values in found.items()}
    single = min((name for name in means if name.startswith("snapshot")), key=lambda name: means[name][1])
    named = {
        "snapshot": means[single],
        "last": means["ensemble of last 3"],
        "once": means["one anneal, same steps"],
    }
    return {name: loss for name, (_, loss) in named.items()} | {
        f"{name}_right": right for name, (right, _) in named.items()
    }


@rule
def flat_minima() -> Figures:
    """Largest curvature of the loss of all training images, at the ends of five seeds."""
    ways = {"low": optax.sgd(0.01), "high": optax.sgd(0.1), "cycle": optax.sgd(one_cycle(1.0))}
    everything = TRAIN_X, TRAIN_Y
    found: Figures = {}
    for name, tx in ways.items():
        ended = jax.jit(jax.vmap(lambda key, tx=tx: trained(tx, key)))(jax.random.split(jax.random.key(0), 5))
        each = [jax.tree.map(lambda leaf, at=at: leaf[at], ended) for at in range(5)]
        curvatures = [olr.top_curvature(loss_fn, params, everything, tolerance=1e-2) for params in each]
        losses = [float(loss_fn(params, VALID)) for params in each]
        found |= {name: np.mean(curvatures), f"{name}_loss": np.mean(losses)}
    return found


def trained(tx: Any, key: jax.Array) -> Any:
    """The parameters after all batches."""

    def step(carry: Any, batch: Any) -> tuple[Any, None]:
        params, state = carry
        updates, state = tx.update(jax.grad(loss_fn)(params, batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    params = init(key)
    return jax.lax.scan(step, (params, tx.init(params)), BATCHES)[0][0]


@rule
def less_sensitive() -> Figures:
    """Over how many decades the loss stays within a tenth of the lowest."""

    def decades(curve: olr.LRCurve) -> float:
        """From one crossing of the limit to the other; losses lie on lines between rates, up to a lost one."""
        losses, logs = ends(curve), np.log10(FINE)
        at, limit = int(losses.argmin()), 1.1 * losses.min()

        def crossing(step: int) -> float:
            lane = at
            while losses[lane + step] <= limit:
                lane += step
            inside, outside = losses[lane], losses[lane + step]
            return logs[lane] + (logs[lane + step] - logs[lane]) * (limit - inside) / (outside - inside)

        return crossing(1) - crossing(-1)

    schedules = {"cosine": cosine, "cycle": one_cycle, "exponential": exponential}
    found = {"constant": decades(constant())}
    return found | {name: decades(sweep(schedule=each)) for name, each in schedules.items()}


def exponential(peak: Any) -> Any:
    """By 100 in all."""
    return olr.exponential_decay(peak, STEPS, 0.01)


@rule
def cut_on_a_plateau() -> Figures:
    """Cut by a factor where the training loss of an epoch stalls for three; factor 1 is never."""
    epoch = len(TRAIN_Y) // 32

    def factory(learning_rate: Any, factor: Any) -> Any:
        plateau = olr.reduce_on_plateau(factor=factor, patience=2, accumulation_size=epoch, rtol=0.01)
        return optax.chain(optax.sgd(learning_rate), plateau)

    curve = sweep(
        factory, lanes=olr.grid(learning_rate=FINE[8::2], factor=[0.1, 0.5, 1.0]), num_steps=2 * STEPS
    )
    tenth, half, never = (best(part)["loss"] for _, part in by(curve, "factor"))
    longer = sweep(
        rates=FINE[8::2], num_steps=2 * STEPS, schedule=lambda peak: olr.one_cycle_schedule(peak, 2 * STEPS)
    )
    return {"tenth": tenth, "half": half, "never": never, "cycle": best(longer)["loss"]}


@rule
def blows_up() -> Figures:
    """Runs beside a rate that is far too large, and without it."""
    alone, beside = (sweep(rates=rates, num_steps=100) for rates in ([0.03, 0.3], [0.03, 0.3, 1e4]))
    same = np.array_equal(alone.losses, beside.losses[:, :2])
    steps = [int(step) for step in beside.diverged_at[:, 2]]
    return {"same": "the same" if same else "other", "first": min(steps), "last": max(steps)}
