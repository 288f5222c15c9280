"""What a learning rate does, seen on landscapes of one and two parameters. Each picture is one sweep of `lr_sweep`
(two or more where optimizers are compared), and the loss reports where its parameters are.

1. parabola.png    too low, good and too high: the U of rates ends at 2 / curvature
2. valley.png      the best rate moves with momentum
3. saddle.png      a flat place: a fixed rate, a cyclical one, and one that is raised where nothing improves
4. minima.png      a sharp beside a broad minimum: which rates leave the sharp one
5. optimizers.png  at one common rate, and each at its own: two orders
6. gains.png       one gain a weight helps along the axes only
"""

import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import optax_lr as olr

OUT = pathlib.Path("out/landscapes")


def sweep(loss_fn, start, optimizer, steps, **lanes):
    """Lanes on a loss without data, which is not stopped where it rises; metrics say where the parameters are."""

    def reported(params, _):
        return loss_fn(params), {f"p{at}": value for at, value in enumerate(jnp.ravel(params))}

    return olr.lr_sweep(
        reported,
        jnp.asarray(start),
        optimizer,
        np.zeros(steps),
        lanes=lanes,
        has_aux=True,
        stop_factor=1e9,
        progress=False,
    )


def path(curve, lane):
    """Where a lane was before each step, [steps, parameters]."""
    return np.stack([curve.metrics[name][0, lane] for name in sorted(curve.metrics)], axis=-1)


def panels(count, width=6.4):
    return plt.subplots(1, count, figsize=(width * count, 4.6), layout="constrained")


def contours(axes, function, x, y, levels):
    """A landscape behind paths."""
    heights = jax.vmap(jax.vmap(function))(jnp.stack(jnp.meshgrid(x, y), axis=-1))
    axes.contour(x, y, heights, levels, colors="0.5", linewidths=0.7, alpha=0.6)
    axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), xlabel="first parameter", ylabel="second parameter")


def parabola():
    def loss_fn(w):
        return 2.5 * w**2

    edge = 2 / olr.top_curvature(lambda w, _: loss_fn(w), jnp.array(1.0), None)
    shown = {"too low": 0.05 * edge, "good": 0.2 * edge, "too high": 0.97 * edge}
    rates = np.sort([*np.geomspace(0.02, 1.3, 61) * edge, *shown.values()])
    curve = sweep(loss_fn, 1.0, optax.sgd, 11, learning_rate=rates)

    figure, (left, right) = panels(2)
    wide = np.linspace(-1.1, 1.1, 101)
    left.plot(wide, loss_fn(wide), color="0.5")
    right.plot(rates, curve.losses[0, :, -1], color="0.5")
    for name, rate in shown.items():
        lane = int(np.argmin(np.abs(rates - rate)))
        (line,) = left.plot(path(curve, lane)[:, 0], curve.losses[0, lane], ".-", label=f"{rate:.2g}, {name}")
        right.plot(rate, curve.losses[0, lane, -1], "o", color=line.get_color())
    right.axvline(edge, ls=":", color="0.5")
    right.text(0.94 * edge, 5, f"2 / curvature\n= {edge:.2g}", ha="right")  # above, the U is beyond the edge
    left.set(xlabel="parameter", ylabel="loss", title="10 steps on a parabola, from the right")
    right.set(xlabel="learning rate", ylabel="loss after 10 steps", title="The U of rates")
    right.set(xscale="log", yscale="log", ylim=(1e-6, 1e2))
    left.legend()
    figure.savefig(OUT / "parabola.png", dpi=120)
    first = rates[curve.losses[0, :, -1] > curve.losses[0, :, 0]][0]
    print(f"Parabola: 2 / curvature is {edge:.3f}; the first rate whose loss rises is {first:.3f}.")
    return {"edge": edge, "first": first}


def valley():
    def loss_fn(w):
        return 0.5 * (w[0] ** 2 + 40 * w[1] ** 2)

    momenta, rates = (0.0, 0.5, 0.9), np.geomspace(0.001, 0.3, 61)
    curve = sweep(
        loss_fn, [-3.5, 0.8], lambda learning_rate, momentum: optax.sgd(learning_rate, momentum), 60,
        **olr.grid(learning_rate=rates, momentum=momenta),
    )  # fmt: skip
    figure, (left, right) = panels(2)
    contours(
        right, loss_fn, np.linspace(-4, 1.5, 120), np.linspace(-1.1, 1.1, 120), np.geomspace(0.05, 40, 9)
    )
    print("Valley, each momentum at its best rate:")
    found = {}
    for momentum in momenta:
        lanes = np.flatnonzero(curve.lanes["momentum"] == momentum)
        ends = np.where(curve.stable[lanes], curve.losses[0, lanes, -1], np.inf)
        lane = lanes[ends.argmin()]
        rate, walked = rates[ends.argmin()], path(curve, lane)
        crossings = int((np.diff(np.sign(walked[:, 1])) != 0).sum())
        (line,) = left.plot(rates, np.where(ends < 30, ends, np.nan), label=f"momentum {momentum:g}")
        left.plot(rate, ends.min(), "o", color=line.get_color())
        right.plot(*walked.T, ".-", ms=4, lw=1, label=f"momentum {momentum:g}, rate {rate:.2g}")
        words = f"loss {ends.min():.1e}, {crossings} crossings of the valley"
        print(f"  momentum {momentum:<4g} rate {rate:<6.2g} {words}")
        found[momentum] = {"rate": rate, "loss": ends.min(), "crossings": crossings}
    left.set(xscale="log", yscale="log", xlabel="learning rate", ylabel="loss after 60 steps")
    left.set_title("The best rate moves with momentum")
    right.set_title("Each momentum at its best rate")
    left.legend()
    right.legend(loc="upper right")
    figure.savefig(OUT / "valley.png", dpi=120)
    return found


def saddle():
    def loss_fn(w):
        return w[0] ** 2 - 0.02 * w[1] ** 2 + 0.01 * w[1] ** 4

    def optimizer(learning_rate, peak, raise_factor):
        """Fixed where the peak is the rate itself and nothing is raised."""
        cycles = olr.cyclical_schedule(1.0, peak, 50)
        raised = olr.reduce_on_plateau(
            factor=None, rtol=0.0, atol=1e-5, raise_patience=20, raise_factor=raise_factor, max_scale=16.0
        )
        return optax.chain(raised, olr.scale_by_learning_rate(olr.multiply_schedules(learning_rate, cycles)))

    ways = {"fixed": (1.0, 1.0), "cyclical, 1 to 16 times": (16.0, 1.0), "raised on a plateau": (1.0, 2.0)}
    peaks, raises = (np.array(column) for column in zip(*ways.values(), strict=True))
    curve = sweep(
        loss_fn,
        [1.0, 0.001],
        optimizer,
        4000,
        learning_rate=np.full(3, 0.05),
        peak=peaks,
        raise_factor=raises,
    )
    figure, (left, right) = panels(2)
    levels = np.concatenate([np.linspace(-0.01, 0.01, 6), np.geomspace(0.02, 1, 8)])
    contours(left, loss_fn, np.linspace(-0.3, 1.1, 120), np.linspace(-0.3, 1.3, 120), levels)
    print("Saddle, steps until the second parameter is half way to its minimum, at 1:")
    found = {}
    for lane, name in enumerate(ways):
        second = path(curve, lane)[:, 1]
        found[name] = steps = int((second > 0.5).argmax())
        right.plot(second, label=f"{name}: {steps} steps")
        print(f"  {name:<26}{steps:>5}")
    left.plot(*path(curve, 0).T, ".-", ms=5, lw=1)
    left.plot(0, 0, "x", color="0.5", ms=10)
    left.set_title("All go to the saddle (x) at once, then up")
    right.set(
        xscale="log",
        xlabel="step",
        ylabel="second parameter",
        title="At a base rate of 0.05: when they leave",
    )
    right.legend()
    figure.savefig(OUT / "saddle.png", dpi=120)
    return found


def minima():
    def loss_fn(w):
        return 1.2 - jnp.exp(-0.5 * ((w + 1) / 0.15) ** 2) - 1.1 * jnp.exp(-0.5 * ((w - 1) / 0.9) ** 2)

    start, steps, rates = -1.05, 400, np.geomspace(0.01, 0.4, 25)
    edge = 2 / olr.top_curvature(lambda w, _: loss_fn(w), jnp.array(-1.0), None)
    annealed = olr.sgdr_schedule(1.0, 0.0, steps // 4)

    def optimizer(learning_rate, restarts):
        def share(step):
            return jnp.where(restarts, annealed(step), 0.05)

        return olr.scale_by_learning_rate(olr.multiply_schedules(learning_rate, share))

    curve = sweep(loss_fn, start, optimizer, steps, **olr.grid(learning_rate=rates, restarts=[0.0, 1.0]))
    figure, (left, right) = panels(2)
    wide = np.linspace(-2, 3.2, 400)
    left.plot(wide, loss_fn(wide), color="0.5")
    for restarts, name in ((0.0, "a twentieth of the peak, fixed"), (1.0, "restarts, cosine to 0")):
        lanes = np.flatnonzero(curve.lanes["restarts"] == restarts)
        ends = np.array([path(curve, lane)[-1, 0] for lane in lanes])
        gone = np.flatnonzero(ends > 0)
        said = f"peaks from {rates[gone[0]]:.2g} leave" if len(gone) else "no peak leaves"
        print(f"Minima, {name}: {said} the sharp one, where 2 / curvature is {edge:.2g}.")
        right.plot(rates, ends, "o-", ms=4, label=name)
    for lane in lanes[gone[0] - 1], lanes[gone[0]]:
        first = path(curve, lane)[:12, 0]
        left.plot(
            first, loss_fn(first), ".-", lw=0.7, label=f"first steps at {curve.learning_rates[lane]:.2g}"
        )
    left.plot(start, loss_fn(start), "^", color="0.5", label="start")
    right.axvline(edge, ls=":", color="0.5", label=f"2 / curvature of the sharp one, {edge:.2g}")
    left.set(xlabel="parameter", ylabel="loss", title="A sharp and a broad minimum")
    right.set(xscale="log", xlabel="peak learning rate", ylabel="where 400 steps end")
    right.set_title("Who leaves the sharp one, at -1")
    left.legend(loc="lower right")
    right.legend(loc="center left")
    figure.savefig(OUT / "minima.png", dpi=120)
    return {"edge": edge, "leaves": rates[gone[0]]}


def optimizers():
    """A network on handwritten digits, all images a batch."""
    makes = {
        "SGD": optax.sgd,
        "momentum": lambda rate: optax.sgd(rate, 0.9),
        "AdaGrad": optax.adagrad,
        "RMSProp": optax.rmsprop,
        "AdaDelta": optax.adadelta,
        "Adam": optax.adam,
    }
    images, labels = load_digits(return_X_y=True)
    batch, steps, common = (np.float32(images / 16), labels), 80, 0.01

    def init(key):
        first, second = jax.random.split(key)
        return jax.random.normal(first, (64, 32)) * (2 / 64) ** 0.5, jax.random.normal(
            second, (32, 10)
        ) * 32**-0.5

    def loss_fn(params, batch):
        logits = jax.nn.relu(batch[0] @ params[0]) @ params[1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    rates = np.geomspace(1e-4, 1e2, 19)
    figure, both = panels(2)
    ends = {}
    batches = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (steps, *leaf.shape)), batch)
    for name, make in makes.items():
        curve = olr.lr_sweep(loss_fn, init, make, batches, learning_rates=rates, seeds=3, stop_factor=1e9)
        last = curve.losses[..., -1].mean(0)
        lanes = (
            int(np.abs(np.log(rates / common)).argmin()),
            int(np.nanargmin(np.where(curve.stable, last, np.nan))),
        )
        ends[name] = [last[lane] for lane in lanes]
        for axes, lane in zip(both, lanes, strict=True):
            axes.plot(
                np.arange(1, steps + 1), curve.losses[:, lane].mean(0), label=f"{name}, {rates[lane]:.2g}"
            )
    for axes, title in zip(
        both, (f"All at a rate of {common:g}", "Each at its best rate of 19"), strict=True
    ):
        axes.set(
            yscale="log", xlabel="step (full batch)", ylabel="training loss, mean of 3 seeds", title=title
        )
        axes.legend()
    figure.savefig(OUT / "optimizers.png", dpi=120)
    for at, words in enumerate((f"at {common:g}", "each at its own rate")):
        order = sorted(ends, key=lambda name: ends[name][at])
        print(f"Optimizers, {words}: " + ", ".join(f"{name} {ends[name][at]:.3f}" for name in order))
    return ends


def gains():
    """Both valleys are trained at once: their parameters, and so their gains, are independent."""
    turn = jnp.array([[1.0, -1.0], [1.0, 1.0]]) / 2**0.5

    def height(point):
        return 0.5 * (point[0] ** 2 + 100 * point[1] ** 2)

    def loss_fn(w):
        return height(w[:2]) + height(w[2:] @ turn)

    start = jnp.array([-3.0, 0.5])
    both = jnp.concatenate([start, turn @ start])
    rates = np.geomspace(1e-4, 0.1, 25)
    figure, (left, right) = panels(2)
    print("Gains, the lowest loss of all rates: in a valley along the axes, and turned by 45 degrees")
    makes = {
        "plain descent": optax.sgd,
        "momentum": lambda rate: optax.sgd(rate, 0.9),
        "local gains": lambda rate: olr.local_gains(rate, momentum=None),
    }
    found = {}
    for name, make in makes.items():
        curve = sweep(
            loss_fn, both, lambda learning_rate, make=make: make(learning_rate), 100, learning_rate=rates
        )
        walked = np.stack([path(curve, lane) for lane in range(len(rates))])
        straight = np.array([height(w[-1, :2]) for w in walked])
        turned = np.array([height(jnp.asarray(w[-1, 2:]) @ turn) for w in walked])
        for axes, heights in ((left, straight), (right, turned)):
            axes.plot(rates, np.where(heights < 20, heights, np.nan), "o-", ms=4, label=name)
        found[name] = [np.nanmin(straight), np.nanmin(turned)]
        print(f"  {name:<14}{np.nanmin(straight):>9.1e}{np.nanmin(turned):>9.1e}")
    for axes, title in ((left, "A valley along the axes"), (right, "The same, turned by 45 degrees")):
        axes.set(
            xscale="log", yscale="log", xlabel="learning rate", ylabel="loss after 100 steps", title=title
        )
        axes.set_ylim(1e-14, 50)
        axes.legend()
    figure.savefig(OUT / "gains.png", dpi=120)
    return found


def main():
    start = time.perf_counter()
    OUT.mkdir(parents=True, exist_ok=True)
    for lesson in (parabola, valley, saddle, minima, optimizers, gains):
        lesson()
        plt.close("all")
    print(f"Pictures: {OUT}, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
