"""A long run in small: bfloat16 on eight devices, killed, and resumed on four under a longer schedule.

Compute is bfloat16; masters and moments are float32 and split over the devices (FSDP). The loss scale is dynamic: a
step whose gradients overflow is skipped. Rates have a schedule, multipliers by label, labels that begin late, and a
plateau; snapshots are kept. The run is killed, and `carry_state` takes its checkpoint into the optimizer of a
longer run. A loop by hand in plain Optax comes to the same numbers.

    python examples/mixed_precision.py            # all of it: it runs itself twice, as "first" and as "second"
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sklearn.datasets import load_digits

import optax_lr as olr

SHORT, LONG, WARMUP, PEAK, DECAY = 80, 120, 10, 0.005, 0.01
MULTIPLIERS = {"embed": 0.25, "body": 0.5, "head": 1.0}
STARTS = {"body": 15, "embed": 30}  # optimizer steps: those that are skipped do not count
PLATEAU = {"factor": 0.5, "patience": 0, "rtol": 0.05, "accumulation_size": 10}
CYCLE, SLOTS, SAVE_EVERY, KILLED_AT = 25, 3, 20, 50
FIRST_SCALE, MAX_SCALE, GROW_AFTER = 2.0**127, 2.0**127, 20  # a power of two, so that it rounds nothing
BATCH, WIDTH = 64, 64
IMAGES, DIGITS = load_digits().data.astype(np.float32) / 16, load_digits().target
OUT = pathlib.Path("out") / "mixed_precision"


def make_mesh(devices):
    return jax.make_mesh((devices,), ("fsdp",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def placed(mesh, tree):
    """Every array split over the mesh by its first axis, if that is long enough; what is short on all of it."""

    def put(leaf):
        is_long = np.ndim(leaf) and len(leaf) % mesh.size == 0
        return jax.device_put(
            leaf, NamedSharding(mesh, PartitionSpec("fsdp") if is_long else PartitionSpec())
        )

    return jax.tree.map(put, tree)


def init_params(mesh):
    keys = iter(jax.random.split(jax.random.key(0), 4))
    matrix = lambda columns: jax.random.normal(next(keys), (WIDTH, columns)) * WIDTH**-0.5  # noqa: E731
    return placed(mesh, {"embed": matrix(WIDTH), "body": [matrix(WIDTH), matrix(WIDTH)], "head": matrix(10)})


def batch_at(mesh, call):
    """Images [BATCH, 64] and their digits [BATCH]."""
    rows = np.random.default_rng(call).choice(len(DIGITS), BATCH)
    return placed(mesh, (IMAGES[rows], DIGITS[rows]))


def losses_of(params, batch):
    """The loss of each image: in bfloat16, but for its last line."""
    images, digits = batch
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    hidden = images.astype(jnp.bfloat16) @ half["embed"]
    for layer in half["body"]:
        hidden = hidden + jax.nn.relu(hidden) @ layer
    logits = (jax.nn.relu(hidden) @ half["head"]).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, digits)


@jax.jit
def gradients(params, batch, scale):
    """The mean loss, and its gradients in float32; not finite where those of the scaled sum overflow."""

    def scaled_loss(params):
        losses = losses_of(params, batch)
        return losses.sum() * scale, losses.mean()

    grads, loss = jax.grad(scaled_loss, has_aux=True)(params)
    return loss, jax.tree.map(lambda leaf: leaf / scale / BATCH, grads)


def next_scale(scale, good, finite):
    """The loss scale: halved where a step is skipped, doubled after `GROW_AFTER` good ones."""
    good = jnp.where(finite, good + 1, 0)
    grown = jnp.where(good == GROW_AFTER, jnp.minimum(scale, MAX_SCALE / 2) * 2, scale)
    return jnp.where(finite, grown, scale / 2), good % GROW_AFTER


def optimizer(steps):
    """What is skipped moves none of what is inside `apply_if_finite`. Snapshots stand outside, and count calls."""
    rate = optax.warmup_cosine_decay_schedule(0.0, PEAK, WARMUP, steps)
    adamw = olr.visible(optax.adamw)(rate, weight_decay=DECAY)
    labels = olr.label_by_path({"embed": "embed", "body/.*": "body", "head": "head"})
    tuned = olr.fine_tune(adamw, MULTIPLIERS, labels, starts=STARTS)
    inner = optax.chain(tuned, olr.reduce_on_plateau(**PLATEAU))
    return optax.chain(optax.apply_if_finite(inner, 100), olr.snapshot_at_cycle_ends(CYCLE, SLOTS))


def train(mesh, tx, run, calls, log):
    """Go on with a run to its end; `run` is everything that a checkpoint needs."""

    @jax.jit
    def update(run, loss, grads):
        updates, state = tx.update(grads, run["state"], run["params"], value=loss)
        finite = state[0].last_finite
        scale, good = next_scale(run["scale"], run["good"], finite)
        params = optax.apply_updates(run["params"], updates)
        return {"params": params, "state": state, "scale": scale, "good": good, "call": run["call"] + 1}

    with ocp.StandardCheckpointer() as checkpointer:
        for call in range(int(run["call"]), calls):
            loss, grads = gradients(run["params"], batch_at(mesh, call), run["scale"])
            run = update(run, loss, grads)
            rates = {label: float(rate) for label, rate in olr.learning_rates_in_force(run["state"]).items()}
            skipped = int(run["state"][0].total_notfinite)
            line = {"call": call, "loss": float(loss), "scale": float(run["scale"]), "skipped": skipped}
            print(json.dumps({**line, "rates": rates}), file=log, flush=True)
            if call % 10 == 9:
                scale, shown = (
                    np.log2(line["scale"]),
                    [f"{label} {rate:.5f}" for label, rate in rates.items()],
                )
                print(
                    f"{call:>4}  loss {loss:.4f}  scale 2^{scale:.0f}  skipped {skipped}  {'  '.join(shown)}"
                )
            if call % SAVE_EVERY == SAVE_EVERY - 1:
                checkpointer.save((OUT / f"{call + 1}").absolute(), run)
                checkpointer.wait_until_finished()
            if call == KILLED_AT and calls == SHORT:
                sys.stdout.flush()
                os.kill(os.getpid(), signal.SIGKILL)
    return run


def fresh_run(mesh, tx):
    params = init_params(mesh)
    numbers = {"scale": np.float32(FIRST_SCALE), "good": np.int32(0), "call": np.int32(0)}
    return placed(mesh, {"params": params, "state": tx.init(params), **numbers})


def first_life():
    mesh, tx = make_mesh(8), optimizer(SHORT)
    with open(OUT / "first.jsonl", "w") as log:
        train(mesh, tx, fresh_run(mesh, tx), SHORT, log)


def second_life():
    """From the last checkpoint, on four devices, into the optimizer of a longer run."""
    mesh, tx = make_mesh(4), optimizer(LONG)
    saved = max(int(path.name) for path in OUT.iterdir() if path.name.isdigit())
    with ocp.StandardCheckpointer() as checkpointer:
        run = checkpointer.restore((OUT / f"{saved}").absolute(), fresh_run(mesh, optimizer(SHORT)))
    carried = olr.carry_state(run["state"], tx, run["params"])
    print(f"\nresumed from call {saved} on {len(jax.devices())} devices\n{carried}\n")
    with open(OUT / "second.jsonl", "w") as log:
        run = train(mesh, tx, {**run, "state": placed(mesh, carried.state)}, LONG, log)
    print(f"\n{olr.describe_learning_rates(run['state'])}")
    snapshots = olr.get_snapshots(run["state"])
    leaves = {f"parameters{i}": leaf for i, leaf in enumerate(jax.tree.leaves(run["params"]))}
    leaves |= {f"snapshots{i}": leaf for i, leaf in enumerate(jax.tree.leaves(snapshots.params))}
    np.savez(OUT / "last.npz", steps=snapshots.steps, saved=saved, **leaves)


class Plateau:
    """PyTorch's `ReduceLROnPlateau` on means of losses; a scale holds from the next step on."""

    def __init__(self):
        self.scale, self.best, self.bad, self.losses = 1.0, np.inf, 0, []

    def observe(self, loss):
        self.losses.append(loss)
        if len(self.losses) < PLATEAU["accumulation_size"]:
            return
        mean, self.losses = np.mean(self.losses), []
        better = not self.best < np.inf or mean < self.best * (1 - PLATEAU["rtol"])
        self.best, self.bad = (mean, 0) if better else (self.best, self.bad + 1)
        if self.bad > PLATEAU["patience"]:
            self.scale, self.bad = self.scale * PLATEAU["factor"], 0


def by_hand(saved):
    """The same run in plain Optax: one Adam for each label, and everything else in Python."""
    adam = optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(DECAY))
    update, warmup_cosine = jax.jit(adam.update), optax.warmup_cosine_decay_schedule
    schedules = [jax.jit(warmup_cosine(0.0, PEAK, WARMUP, steps)) for steps in (SHORT, LONG)]
    mesh = make_mesh(8)
    params = init_params(mesh)
    states = {label: adam.init(part) for label, part in params.items()}
    scale, good, steps, plateau, losses, snapshots = FIRST_SCALE, 0, 0, Plateau(), [], []
    for call in range(LONG):
        if call == saved:  # the killed run's second life
            mesh = make_mesh(4)
            params, states = placed(mesh, (params, states))
        loss, grads = gradients(params, batch_at(mesh, call), jnp.float32(scale))
        losses.append(float(loss))
        if all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads)):
            schedule = schedules[call >= saved]
            for label, multiplier in MULTIPLIERS.items():
                if steps >= STARTS.get(label, 0):
                    moved, states[label] = update(grads[label], states[label], params[label])
                    rate = -schedule(steps) * multiplier * plateau.scale
                    moved = jax.tree.map(lambda leaf, rate=rate: rate * leaf, moved)
                    params[label] = optax.apply_updates(params[label], moved)
            plateau.observe(losses[-1])
            steps, good = steps + 1, good + 1
            if good == GROW_AFTER:
                scale, good = min(scale * 2, MAX_SCALE), 0
        else:
            scale, good = scale / 2, 0
        if call % CYCLE == CYCLE - 1:
            snapshots.append(jax.tree.map(np.asarray, params))
    return params, snapshots[-SLOTS:], losses


def two_lives():
    """The run, killed and resumed, each in a process of its own."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    killed = subprocess.run([sys.executable, __file__, "first"]).returncode
    assert killed == -signal.SIGKILL, f"the first life ended by itself, with {killed}"
    subprocess.run([sys.executable, __file__, "second"], check=True)


def logged_by(life):
    return [json.loads(line) for line in (OUT / f"{life}.jsonl").read_text().splitlines()]


def differences():
    """How far the run is from the loop by hand: the losses call by call, and each array at the end."""
    with np.load(OUT / "last.npz") as file:
        last = dict(file)
    saved = int(last["saved"])
    params, snapshots, losses = by_hand(saved)
    lives = [logged_by("first"), logged_by("second")]
    logged = [line["loss"] for line in lives[0][:saved] + lives[1]]
    found = {"losses": np.abs(np.subtract(logged, losses))}
    for name, tree in (
        ("parameters", params),
        ("snapshots", jax.tree.map(lambda *each: np.stack(each), *snapshots)),
    ):
        pairs = [(last[f"{name}{i}"], leaf) for i, leaf in enumerate(jax.tree.leaves(tree))]
        found[name] = np.array([np.abs(one - other).max() for one, other in pairs])
    return found


def main():
    start = time.perf_counter()
    two_lives()
    found = differences()
    largest = ", ".join(f"{name} {each.max():.0e}" for name, each in found.items())
    print(f"\nlargest difference from a loop by hand in plain Optax: {largest}")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    which = sys.argv[1] if len(sys.argv) > 1 else "main"
    jax.config.update("jax_num_cpu_devices", 4 if which == "second" else 8)
    {"main": main, "first": first_life, "second": second_life}[which]()
