"""Ways to fine-tune a pretrained text encoder of 22.7 million parameters on a few labeled texts, each at its own best
rate: from scratch, the head alone, one rate for all, the head at ten times, layer decay, discriminative rates with
gradual unfreezing, LoRA, biases alone.

All make the same number of Adam steps under one cycle; rates lie on one grid, a factor of 10^(1/3) apart. A seed draws
the labeled texts, their order, the head and what else is new; all ways see the same. The first seed finds the region of
the best rate, all seeds find the rate: the one of the lowest mean validation loss, with a neighbor tried on each side.

    python benchmarks/fine_tuning.py              # on a CPU: one core, an hour; on a GPU: longer texts, 8 minutes
    python benchmarks/fine_tuning.py --quick --file /tmp/some.json
    python benchmarks/fine_tuning.py --table      # what is stored

Each run is stored as it ends; the same command goes on from there. Needs the extras `examples` and `minilm`.
"""

import argparse
import functools
import json
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx
from scipy import stats

import optax_lr as olr
import optax_lr.nnx
from optax_lr.finder.search import EveryLaneDivergedError

ROOT = pathlib.Path(__file__).parents[1]
sys.path.append(str(ROOT / "examples"))
import docstrings  # noqa: E402
import minilm_model as minilm  # noqa: E402

STORED = ROOT / "benchmarks" / "fine_tuning.json"
CLASSES, HEAD = len(docstrings.CLASSES), minilm.BLOCKS + 1
DEPTHS = olr.label_by_depth([r"body/embed/.*", r"body/block/(\d+)/.*", "head/.*"])  # 0, then 1 to 6, then 7
REGRESSION, PER_DECADE = "logistic regression", 3
# How far from the best a rate is still good: in accuracy, in loss. No more rates than these are tried on all seeds.
POINT, SHARE, MOST = 0.01, 0.02, 7


class Size(NamedTuple):
    """A form of the benchmark."""

    length: int  # word pieces of a text
    shots: int  # labeled texts of each class
    batch: int
    epochs: int
    seeds: int

    @property
    def steps(self) -> int:
        return self.shots * CLASSES // self.batch * self.epochs


SIZES = {"quick": Size(6, 4, 8, 1, 2), "cpu": Size(24, 12, 16, 5, 5), "accelerator": Size(64, 16, 16, 6, 5)}


class Method(NamedTuple):
    """A way to train: the start of a seed, its optimizer at a rate, what is trained, where on the grid to look."""

    start: Callable[["Data", int], nnx.Module]
    optimizer: Callable[[Any], optax.GradientTransformation]
    guess: int
    wrt: Any = nnx.Param
    on_features: bool = False


class Data:
    """The texts as word pieces, and as embeddings of the frozen encoder."""

    def __init__(self, size: Size) -> None:
        texts, self.labels = docstrings.texts_and_labels()
        tokens, self.size = minilm.tokens_of(texts, size.length), size
        # Rows of the table that no text reads have no gradient and never move.
        self.used = np.union1d([0], tokens)  # what pads is 0 and stays it
        self.tokens = np.searchsorted(self.used, tokens).astype(np.int32)

    def body(self, whole: minilm.MiniLM) -> minilm.MiniLM:
        word = whole.embed.word
        word.embedding = nnx.Param(word.embedding[...][self.used])
        word.num_embeddings = len(self.used)
        return whole

    @functools.cached_property
    def features(self) -> np.ndarray:
        embed, body = nnx.jit(lambda body, tokens: body(tokens) * minilm.WIDTH**0.5), pretrained(self)
        parts = [embed(body, self.tokens[at : at + 48]) for at in range(0, len(self.tokens), 48)]
        return np.concatenate(parts)

    def of_seed(self, seed: int, on_features: bool) -> tuple[Any, Any]:
        """Batches [steps, batch, ...], and what is held out: to choose a rate by, and to judge it."""
        inputs = self.features if on_features else self.tokens
        mine, valid, test = docstrings.split(self.labels, self.size.shots, seed)
        draw = np.random.default_rng(seed)
        order = np.concatenate([mine[draw.permutation(len(mine))] for _ in range(self.size.epochs)])
        rows = order.reshape(self.size.steps, self.size.batch)
        held = {"valid": (inputs[valid], self.labels[valid]), "test": (inputs[test], self.labels[test])}
        return (inputs[rows], self.labels[rows]), held


@functools.lru_cache(maxsize=1)
def pretrained(data: Data) -> minilm.MiniLM:
    return data.body(minilm.pretrained())


def classifier(data: Data, seed: int) -> nnx.Module:
    return minilm.Classifier(nnx.clone(pretrained(data)), CLASSES, nnx.Rngs(seed))


def from_scratch(data: Data, seed: int) -> nnx.Module:
    body = data.body(minilm.MiniLM(nnx.Rngs(100 + seed)))
    return minilm.Classifier(body, CLASSES, nnx.Rngs(seed))


def head(data: Data, seed: int) -> nnx.Module:
    return nnx.Linear(minilm.WIDTH, CLASSES, rngs=nnx.Rngs(seed))


def with_lora(data: Data, seed: int) -> nnx.Module:
    return minilm.with_lora(classifier(data, seed), 8, nnx.Rngs(100 + seed))


def head_times_ten(rate: Any) -> optax.GradientTransformation:
    return olr.fine_tune(optax.adam(rate), {**dict.fromkeys(range(HEAD), 1.0), HEAD: 10.0}, DEPTHS)


def decayed(decay: float, rate: Any) -> optax.GradientTransformation:
    return olr.fine_tune(optax.adam(rate), olr.layer_decay(decay), DEPTHS)


def gradual(steps: int, rate: Any) -> optax.GradientTransformation:
    """A rate 2.6 times lower for each group below the head; over half of the run each joins after the one above it."""
    multipliers = {depth: 2.6 ** (depth - HEAD) for depth in range(HEAD + 1)}
    starts = {depth: steps * (HEAD - depth) // (2 * HEAD) for depth in range(HEAD)}
    return olr.fine_tune(optax.adam(rate), multipliers, DEPTHS, starts=starts)


def methods(steps: int) -> dict[str, Method]:
    lora = nnx.Any(nnx.LoRAParam, nnx.PathContains("head"))
    biases = nnx.Any(nnx.PathContains("bias"), nnx.PathContains("head"))
    return {
        "from scratch": Method(from_scratch, optax.adam, -9),
        "head alone": Method(head, optax.adam, -4, on_features=True),
        "one rate for all": Method(classifier, optax.adam, -10),
        "head x 10": Method(classifier, head_times_ten, -11),
        "layer decay 0.9": Method(classifier, functools.partial(decayed, 0.9), -10),
        "layer decay 0.75": Method(classifier, functools.partial(decayed, 0.75), -9),
        "layer decay 0.5": Method(classifier, functools.partial(decayed, 0.5), -8),
        "discriminative, unfrozen in turn": Method(classifier, functools.partial(gradual, steps), -8),
        "LoRA, rank 8": Method(with_lora, optax.adam, -8, lora),
        "biases alone": Method(classifier, optax.adam, -7, biases),
    }


def loss_fn(model: Any, batch: Any) -> Any:
    inputs, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(model(inputs), labels).mean()


def judged(model: Any, held: Any) -> dict[str, Any]:
    """Loss and accuracy on what is held out; a rate is chosen by "loss", that of the validation texts."""
    found = {}
    for part, (inputs, labels) in held.items():
        logits = model(inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        found[part] = losses.mean(), (logits.argmax(-1) == labels).mean()
    (loss, right), (test_loss, test_right) = found["valid"], found["test"]
    return {"loss": loss, "accuracy": right, "test_loss": test_loss, "test_accuracy": test_right}


def rate_at(place: int) -> float:
    return float(10.0 ** (place / PER_DECADE))


Runs = dict[str, dict[str, dict[str, float]]]  # of a method: by place on the grid and seed


def missing(runs: Runs, guess: int, seeds: int, stage: int) -> list[tuple[int, int]]:
    """The runs, by place and seed, that a stage still asks for; none if it has ended.

    1: the first seed at every other rate, until the lowest loss lies inside. 2: all seeds at the best rate and its
    neighbors, until the lowest mean lies inside. 3: further rates, as long as those at the edges are good.
    """

    def lacking(places: Any, count: int) -> list[tuple[int, int]]:
        return [
            (place, seed)
            for place in places
            for seed in range(count)
            if str(seed) not in runs.get(str(place), {})
        ]

    if first := lacking((guess - 2, guess, guess + 2), 1):
        return first
    coarse = {int(place): each["0"]["loss"] for place, each in runs.items() if (int(place) - guess) % 2 == 0}
    best = min(coarse, key=lambda place: coarse[place])
    if beside := lacking((best - 2, best + 2), 1):
        return beside
    if stage == 1:
        return []
    if near := lacking((best - 1, best, best + 1), seeds):
        return near
    curve = whole(runs, seeds)
    best, low, high = min(curve, key=lambda place: curve[place][0]), min(curve), max(curve)
    if best in (low, high):
        return lacking([best - 1 if best == low else best + 1], seeds)
    if stage == 2 or len(curve) >= MOST:
        return []
    good = [end for end in (low, high) if is_good(curve[end], curve[best])]
    return lacking([end - 1 if end == low else end + 1 for end in good], seeds)


def is_good(here: np.ndarray, best: np.ndarray) -> bool:
    return bool(here[0] < best[0] * (1 + SHARE) or here[1] > best[1] - POINT)


def whole(runs: Runs, seeds: int) -> dict[int, np.ndarray]:
    """Mean validation loss and test accuracy at the rates that all seeds have, beside one another."""
    means = {
        int(place): np.mean([(run["loss"], run["test_accuracy"]) for run in each.values()], axis=0)
        for place, each in runs.items()
        if len(each) == seeds
    }
    return dict(sorted(means.items()))


def trained(
    data: Data, method: Method, places: list[int], seed: int
) -> Iterator[tuple[int, dict[str, float]]]:
    """The runs of a seed at some rates."""
    batches, held = data.of_seed(seed, method.on_features)
    begun, spent = time.perf_counter(), time.process_time()
    lost = {"loss": 1e9, "accuracy": 0.0, "test_loss": 1e9, "test_accuracy": 0.0, "train_loss": 1e9}
    try:
        curve = olr.nnx.lr_sweep(
            loss_fn,
            method.start(data, seed),
            method.optimizer,
            batches,
            learning_rates=[rate_at(place) for place in places],
            wrt=method.wrt,
            schedule=functools.partial(one_cycle, data.size.steps),
            eval_batch=held,
            eval_fn=judged,
            stop_factor=np.inf,
            progress=False,
        )
        columns = {"loss": curve.eval_losses, **curve.eval_metrics, "train_loss": curve.losses}
        ends = [{name: float(each[0, at, -1]) for name, each in columns.items()} for at in range(len(places))]
    except EveryLaneDivergedError:
        ends = [lost] * len(places)
    cost = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - spent}
    of_each = {name: value / len(places) for name, value in cost.items()}
    for place, end in zip(places, ends, strict=True):
        kept = end if all(map(np.isfinite, end.values())) else lost
        yield place, {name: round(value, 5) for name, value in {**kept, **of_each}.items()}


def one_cycle(steps: int, peak: Any) -> Any:
    return olr.one_cycle_schedule(peak, steps)


def regression(data: Data, seed: int) -> dict[str, float]:
    """A logistic regression on the frozen embeddings, its penalty chosen by validation loss."""
    from sklearn.linear_model import LogisticRegression

    (x, y), held = data.of_seed(seed, on_features=True)
    x, y = x.reshape(-1, minilm.WIDTH), y.reshape(-1)
    fits = [LogisticRegression(C=c, max_iter=1000).fit(x, y) for c in 10.0 ** np.arange(-5, 2)]

    def judged_by(fit: Any, part: str) -> tuple[float, float]:
        inputs, labels = held[part]
        found = fit.predict_log_proba(inputs)[np.arange(len(labels)), labels]
        return float(-found.mean()), float(fit.score(inputs, labels))

    best = min(fits, key=lambda fit: judged_by(fit, "valid")[0])
    loss, right = judged_by(best, "test")
    return {"test_loss": round(loss, 5), "test_accuracy": round(right, 5)}


def search(
    stored: dict[str, Any], size: Size, only: list[str], save: Callable[[], None], minutes: float
) -> None:
    """Run what is missing, the cheap and telling first, until all is there or the time is over."""
    data, runs = Data(size), stored["runs"]
    at_once = jax.default_backend() != "cpu"
    stored[REGRESSION] = {str(seed): regression(data, seed) for seed in range(size.seeds)}
    for stage in (1, 2, 3):
        left = {name: method for name, method in methods(size.steps).items() if not only or name in only}
        while left:
            for name, method in list(left.items()):
                mine = runs.setdefault(name, {})
                asked = missing(mine, method.guess, size.seeds, stage)
                if not mine and at_once:
                    near = range(method.guess - MOST // 2, method.guess + MOST // 2 + 1)
                    asked = [(place, seed) for seed in range(size.seeds) for place in near]
                if not asked:
                    del left[name]
                for seed in sorted({seed for _, seed in asked}):
                    if time.process_time() > minutes * 60:
                        return
                    places = sorted({place for place, one in asked if one == seed})
                    for place, run in trained(data, method, places, seed):
                        mine.setdefault(str(place), {})[str(seed)] = run
                        print(f"{name}, {rate_at(place):.2g}, seed {seed}: {run}", flush=True)
                    save()
                jax.clear_caches() if at_once else None


class Row(NamedTuple):
    """What a method gave at its best rate; an interval is half of its width."""

    rate: float
    accuracy: tuple[float, float]
    loss: tuple[float, float]
    over_one_rate: tuple[float, float]  # points of accuracy, paired
    good_loss: tuple[
        float, bool
    ]  # the factor between the lowest and the highest good rate; whether its ends were seen
    good_accuracy: tuple[float, bool]
    runs: int


def interval(values: Any) -> tuple[float, float]:
    """Mean over seeds, and half of its 95% interval by Student's t."""
    count = len(values)
    half = stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / count**0.5
    return float(np.mean(values)), float(half)


def breadth(curve: dict[int, np.ndarray], best: int, column: int) -> tuple[float, bool]:
    """How far apart the rates next to the best are at which a column leaves what is good, in between by a line."""
    places = np.array(list(curve))
    values = np.array([each[column] for each in curve.values()])
    bad = values / values[best] - 1 - SHARE if column == 0 else values[best] - values - POINT
    ends, seen = [], True
    for step in (-1, 1):
        at = best
        while 0 <= at + step < len(bad) and bad[at + step] < 0:
            at += step
        inside = 0 <= at + step < len(bad)
        share = bad[at] / (bad[at] - bad[at + step]) if inside else 0.0
        ends.append(places[at] + step * share)
        seen &= inside
    return rate_at(ends[1] - ends[0]), seen


def rows_of(stored: dict[str, Any]) -> dict[str, Row]:
    """The methods that all seeds have, each at its best rate."""
    seeds, found = Size(**stored["size"]).seeds, {}

    def at_best(name: str) -> tuple[dict[int, np.ndarray], int, dict[str, np.ndarray]]:
        curve = whole(stored["runs"][name], seeds)
        best = min(curve, key=lambda place: curve[place][0])
        runs = [stored["runs"][name][str(best)][str(seed)] for seed in range(seeds)]
        return (
            curve,
            best,
            {key: np.array([run[key] for run in runs]) for key in ("test_accuracy", "test_loss")},
        )

    known = [name for name, runs in stored["runs"].items() if whole(runs, seeds)]
    base = at_best("one rate for all")[2]["test_accuracy"] if "one rate for all" in known else None
    for name in known:
        curve, best, columns = at_best(name)
        at, right = list(curve).index(best), columns["test_accuracy"]
        found[name] = Row(
            rate_at(best),
            interval(right),
            interval(columns["test_loss"]),
            interval(right - base) if base is not None else (float("nan"), 0.0),
            breadth(curve, at, 0),
            breadth(curve, at, 1),
            sum(map(len, stored["runs"][name].values())),
        )
    return found


def table(stored: dict[str, Any]) -> str:
    """The methods in Markdown."""
    lines = [
        "| method | best rate | test accuracy | points over one rate | test loss | good rates, loss | good rates, accuracy |",
        "|---|---|---|---|---|---|---|",
    ]
    frozen = [[run[key] for run in stored[REGRESSION].values()] for key in ("test_accuracy", "test_loss")]
    right, loss = map(interval, frozen)
    lines.append(
        f"| {REGRESSION}, frozen embeddings | | {right[0]:.1%} ± {right[1]:.1%} | | {loss[0]:.3f} ± {loss[1]:.3f} | | |"
    )
    for name, row in rows_of(stored).items():
        near = [
            f"{'' if seen else 'over '}{factor:.1f}x" for factor, seen in (row.good_loss, row.good_accuracy)
        ]
        more = (
            ""
            if name == "one rate for all"
            else f"{100 * row.over_one_rate[0]:+.1f} ± {100 * row.over_one_rate[1]:.1f}"
        )
        lines.append(
            f"| {name} | {row.rate:.2g} | {row.accuracy[0]:.1%} ± {row.accuracy[1]:.1%} | {more} | "
            f"{row.loss[0]:.3f} ± {row.loss[1]:.3f} | {near[0]} | {near[1]} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--only", type=lambda names: names.split("; "), default=[], help="methods, by '; '")
    parser.add_argument("--file", type=pathlib.Path, default=STORED)
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="of processor time; then it ends, to be resumed"
    )
    parser.add_argument("--table", action="store_true", help="print what is stored, and run nothing")
    given = parser.parse_args()
    device = jax.devices()[0]
    machine = f"{platform.machine()}, one core" if device.platform == "cpu" else device.device_kind
    form = "quick" if given.quick else "cpu" if device.platform == "cpu" else "accelerator"
    kept = json.loads(given.file.read_text()) if given.file.exists() else {}
    size = SIZES[form]._asdict()
    stored = kept.setdefault(machine, {"size": size, "steps": SIZES[form].steps, "runs": {}})
    if stored["size"] != size:
        raise SystemExit(f"{given.file} holds runs of {stored['size']}, not of {size}: name another --file")

    def save() -> None:
        beside = given.file.with_suffix(".part")
        beside.write_text(json.dumps(kept, indent=1) + "\n")
        beside.replace(given.file)

    if not given.table:
        search(stored, SIZES[form], given.only, save, given.minutes)
    for name, of_machine in kept.items():
        if of_machine["runs"]:
            print(f"\n{name}, {of_machine['steps']} steps:\n\n{table(of_machine)}")


if __name__ == "__main__":
    main()
