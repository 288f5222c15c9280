"""One training run, many models: a snapshot at the end of each warm restart, on two data sets and five seeds.

A small network is trained with SGDR, whose cycles grow by half, and its parameters are kept at the end of each
cycle. The table has every snapshot alone, the ensemble of all and of the last three, the average of their
weights, and a network that is annealed once over the same number of steps. Intervals are Student's, at 95%.

What the ensemble is held against is chosen on the test set, which flatters the other side: the snapshot that is
best on average over the seeds, and, harder still, the one that is best on each seed.
Writes out/snapshot_ensemble.png.
"""

import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import scipy.stats
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from sklearn.datasets import load_diabetes, load_digits
from sklearn.model_selection import train_test_split

import optax_lr as olr

SEEDS, BATCH, HIDDEN, LAST = 5, 16, 64, 3
CYCLES = olr.Cycles(120, growth=1.5)
ENDS = CYCLES.ends(1600)  # five cycles
STEPS = ENDS[-1] + 1
PEAK = 0.3
OUT = pathlib.Path("out")


def diabetes(**options):
    """Whose diabetes progresses slowly, moderately or fast: thirds of the measure of progression. Noisy."""
    inputs, progression = load_diabetes(**options)
    return inputs, np.searchsorted(np.quantile(progression, [1 / 3, 2 / 3]), progression)


def load(dataset):
    """Training and test set, standardized; a new split for each seed: arrays with leading axis [seeds]."""
    inputs, labels = dataset(return_X_y=True)

    def split(seed):
        train_x, test_x, train_y, test_y = train_test_split(
            inputs.astype(np.float32), labels, test_size=0.4, random_state=seed, stratify=labels
        )
        mean, scale = train_x.mean(0), train_x.std(0) + 1e-6
        # Some pixels are blank in nearly every image: without limits they would count thousands.
        train_x, test_x = (np.clip((x - mean) / scale, -3, 3) for x in (train_x, test_x))
        return (train_x, train_y), (test_x, test_y)

    splits = [split(seed) for seed in range(SEEDS)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *splits)


def init(key, features, classes):
    sizes = [(features, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, classes)]
    return [
        {"kernel": jax.random.normal(one, size) * (2 / size[0]) ** 0.5, "bias": jnp.zeros(size[1])}
        for one, size in zip(jax.random.split(key, len(sizes)), sizes, strict=True)
    ]


def logits(params, inputs):
    *hidden, head = params
    for layer in hidden:
        inputs = jax.nn.relu(inputs @ layer["kernel"] + layer["bias"])
    return inputs @ head["kernel"] + head["bias"]


def loss_fn(params, batch):
    inputs, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, inputs), labels).mean()


def train(optimizer, params, data, key):
    """One run on batches drawn at random: the parameters, the optimizer's state and every loss."""

    def step(carry, rows):
        params, state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params, jax.tree.map(lambda leaf: leaf[rows], data))
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), loss

    order = jax.random.randint(key, (STEPS, BATCH), 0, len(data[1]))
    (params, state), losses = jax.lax.scan(step, (params, optimizer.init(params)), order)
    return params, state, losses


def scores(probabilities, labels):
    """Accuracy and log loss."""
    true = jnp.take_along_axis(probabilities, labels[:, None], axis=-1)
    right = (probabilities.argmax(-1) == labels).mean()
    return jnp.stack([right, -jnp.log(jnp.maximum(true, 1e-12)).mean()])


def compare(dataset):
    """Scores [seeds, 2] by the name of the model, and the losses [seeds, steps] of the run with restarts."""
    training, test = load(dataset)
    features, classes = training[0].shape[-1], int(training[1].max()) + 1
    restarts, once = (
        optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.add_decayed_weights(1e-3),
            optax.trace(0.9),
            olr.scale_by_learning_rate(schedule),
        )
        for schedule in (olr.sgdr_schedule(PEAK, 0.0, CYCLES), olr.anneal_schedule(PEAK, 0.0, STEPS))
    )
    snapshots = olr.snapshot_at_cycle_ends(CYCLES, len(ENDS))
    seeds = jax.random.split(jax.random.key(0), SEEDS)

    @jax.jit  # one compiled program, which trains one seed after the other
    def run(training):
        def one_seed(given):
            data, key = given
            start, order = jax.random.split(key)
            params = init(start, features, classes)
            _, state, losses = train(optax.chain(restarts, snapshots), params, data, order)
            single, _, _ = train(once, params, data, order)
            return state, losses, single

        return jax.lax.map(one_seed, (training, seeds))

    state, losses, single = run(training)
    members = olr.get_snapshots(state)

    @jax.jit
    @jax.vmap
    def evaluate(members, single, test):
        inputs, labels = test
        last = jax.tree.map(lambda leaf: leaf[-LAST:], members)
        each = olr.ensemble_predict(logits, members, inputs, combine="none").outputs
        rows = {f"snapshot {index + 1}": jax.nn.softmax(output) for index, output in enumerate(each)}
        for name, some in (("all", members), (f"last {LAST}", last)):
            rows[f"ensemble of {name}"] = olr.ensemble_predict(logits, some, inputs).outputs
            rows[f"average of {name}"] = jax.nn.softmax(logits(olr.average_snapshots(some), inputs))
        rows["one anneal, same steps"] = jax.nn.softmax(logits(single, inputs))
        return {name: scores(said, labels) for name, said in rows.items()}

    found = jax.tree.map(np.asarray, evaluate(members, single, test))
    return found, np.asarray(losses)


def snapshot_scores(found):
    """Scores [snapshots, seeds, 2], with the sign at which higher is better."""
    return np.stack([found[f"snapshot {index + 1}"] for index in range(len(ENDS))]) * (1, -1)


def interval(values):
    """The mean over the seeds, and half the width of its 95% interval."""
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return values.mean(), half


def table(name, found):
    print(f"{name + f', {SEEDS} seeds':<26}{'accuracy':>16}{'log loss':>27}")
    for row, values in sorted(found.items(), key=lambda item: not item[0].startswith("snapshot")):
        (right, right_half), (loss, loss_half) = map(interval, values.T)
        print(f"  {row:<24}{right:>9.2%} ± {right_half:>6.2%}{loss:>19.4f} ± {loss_half:.4f}")
    each = snapshot_scores(found)
    rivals = {
        "the best snapshot": np.stack([each[each[..., i].mean(1).argmax(), :, i] for i in (0, 1)], axis=-1),
        "the best of each seed": each.max(0),
    }
    for rival, best in rivals.items():
        print(f"  Gain over {rival}, + is better")
        for row in (row for row in found if not row.startswith("snapshot")):
            words = ""
            for gain, percent in zip((found[row] * (1, -1) - best).T, (True, False), strict=True):
                mean, half = interval(gain)
                verdict = "better" if mean > half else "worse" if mean < -half else "even"
                words += f"{mean:>+9.2%} ± {half:>6.2%}" if percent else f"{mean:>+12.4f} ± {half:.4f}"
                words += f" {verdict:<6}"
            print(f"    {row:<22}{words}".rstrip())
    print()


def picture(axes: Axes, name, found, losses):
    """The training loss over the steps, the restarts as lines, and the test loss of each snapshot."""
    window = 25
    smooth = np.stack([np.convolve(run, np.ones(window) / window, mode="valid") for run in losses])
    steps = np.arange(window - 1, STEPS)
    axes.fill_between(steps, smooth.min(0), smooth.max(0), color="black", alpha=0.15, lw=0)
    axes.plot(steps, smooth.mean(0), color="black", lw=1.2, label=f"training loss, mean of {window} steps")
    for index, end in enumerate(ENDS):
        axes.axvline(end, color="gray", lw=1, ls=":", label="cycle ends" if index == 0 else None)
    tests = -snapshot_scores(found)[..., 1]
    spread = np.abs(np.stack([tests.min(1), tests.max(1)]) - tests.mean(1))
    axes.errorbar(
        ENDS, tests.mean(1), spread, fmt="o", color="#d62728", ms=5, label="test loss of a snapshot"
    )
    for row, color, dashes in (
        ("ensemble of all", "#21918c", "-"),
        ("one anneal, same steps", "#7b3294", "--"),
    ):
        axes.axhline(found[row][:, 1].mean(), color=color, lw=1.8, ls=dashes, label=f"test loss, {row}")
    axes.set(xlabel="step", title=name, yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25)


def main():
    start = time.perf_counter()
    OUT.mkdir(exist_ok=True)
    figure, both = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
    print(f"Cycles end after steps {', '.join(map(str, ENDS))}; {STEPS} steps in all.\n")
    for axes, (name, dataset) in zip(
        both, {"digits": load_digits, "diabetes": diabetes}.items(), strict=True
    ):
        found, losses = compare(dataset)
        table(name, found)
        picture(axes, name, found, losses)
    both[0].set_ylabel("loss; bands and bars: range of seeds")
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(OUT / "snapshot_ensemble.png", dpi=120)
    print(f"Picture: {OUT / 'snapshot_ensemble.png'}\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
