"""The engine against plain loops: lanes, seeds, orders, divergence, evaluation."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lowerings import count_lowerings
from references import key_of_seed

import optax_lr as olr
from optax_lr.engine import engine, jobs, machine, runs, workers
from optax_lr.engine.batches import Data, batch_order, root_bits, root_key
from optax_lr.engine.choose import Choice, fitted
from optax_lr.engine.layout import Layout
from optax_lr.engine.opening import Opening
from optax_lr.engine.program import Programs
from optax_lr.engine.programs import ProgramsOf
from optax_lr.engine.task import Task

BATCHES = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
LANES = np.array([0.01, 0.1, 0.3], np.float32)


def step(carry, rate, batch, key):
    """A noisy descent of a quadratic: it reads the lane, the batch and the key."""
    noise = 0.01 * jax.random.normal(key)
    loss = jnp.mean((carry["x"] - batch) ** 2)
    return {"x": carry["x"] - rate * (2 * (carry["x"] - batch.mean()) + noise)}, {
        "loss": loss,
        "noise": noise,
    }


def order_of(seed, steps=9, batches=7, key=None):
    return batch_order(batches, steps, seed, root_bits(key)[0])


def plain_loop(start, rate, order, key, num_steps):
    carry, losses = start, []
    for t in range(num_steps):
        carry, metrics = jax.jit(step)(carry, rate, BATCHES[order[t]], jax.random.fold_in(key, t))
        losses.append(metrics["loss"])
    return carry, np.array(losses)


@pytest.mark.parametrize("lanes_at_once", ["auto", 1, 2, 3])
def test_every_placement_equals_a_plain_loop(lanes_at_once):
    start, key = {"x": jnp.float32(1.5)}, jax.random.key(3)
    found = olr.sweep(
        step,
        start,
        LANES,
        BATCHES,
        num_steps=9,
        seeds=2,
        key=key,
        return_carries=True,
        lanes_at_once=lanes_at_once,
        evaluate=lambda carry, batch: {"distance": jnp.abs(carry["x"] - batch)},
        eval_batch=0.5,
        eval_steps=[4, 9],
        progress=False,
    )
    for seed in range(2):
        for lane, rate in enumerate(LANES):
            carry, losses = plain_loop(start, rate, order_of(seed, key=key), key_of_seed(key, seed), 9)
            np.testing.assert_allclose(found.metrics["loss"][seed, lane], losses, rtol=1e-6)
            np.testing.assert_allclose(found.carries["x"][seed, lane], carry["x"], rtol=1e-6)
            np.testing.assert_allclose(
                found.evals["distance"][seed, lane, 1], abs(carry["x"] - 0.5), rtol=1e-5
            )
    assert found.metrics["noise"].shape == (2, 3, 9) and (found.diverged_at == -1).all()
    assert found.placement.startswith("3 lanes x 2 seeds")


def test_each_seed_may_have_its_own_start():
    starts = {"x": jnp.array([1.0, -1.0])}
    found = olr.sweep(step, starts, LANES, BATCHES, num_steps=1, seeds=2, carry_per_seed=True, progress=False)
    begun = BATCHES[[order_of(seed)[0] for seed in range(2)]]
    first = np.mean((np.array([[1.0], [-1.0]]) - begun) ** 2, 1)
    np.testing.assert_allclose(found.metrics["loss"][..., 0], np.repeat(first[:, None], 3, 1), rtol=1e-6)


def test_a_seed_has_one_answer_whatever_seeds_run_beside_it():
    start, options = {"x": jnp.float32(1.5)}, {"num_steps": 9, "key": jax.random.key(3), "progress": False}
    whole = olr.sweep(step, start, LANES, BATCHES, seeds=5, **options)
    two = olr.sweep(step, start, LANES[1:], BATCHES, seeds=2, **options)
    np.testing.assert_array_equal(two.metrics["loss"], whole.metrics["loss"][:2, 1:])
    assert (whole.metrics["loss"][3] != whole.metrics["loss"][0]).any()


def test_orders_are_permutations_and_seed_0_keeps_the_given_one():
    orders = [order_of(seed, 12, 5, jax.random.key(1)) for seed in range(3)]
    np.testing.assert_array_equal(orders[0], np.arange(12) % 5)
    assert all(sorted(order[:5]) == sorted(order[5:10]) == list(range(5)) for order in orders)
    assert not np.array_equal(orders[1], orders[2])
    np.testing.assert_array_equal(orders[1], order_of(1, 12, 5, jax.random.key(1)))


def falling(carry, lane, batch, key):
    """The lane says which loss stands at each step: a script of losses."""
    t = carry["t"]
    return {"t": t + 1, "sum": carry["sum"] + lane[t]}, {"loss": lane[t]}


def numpy_divergence(losses, factor=3.0):
    """The rule, in float64: a debiased average (0.9) that rises too far over its best, or no finite loss."""
    average, best = 0.0, np.inf
    for t, loss in enumerate(losses):
        if not np.isfinite(loss):
            return t
        average = 0.9 * average + 0.1 * loss
        smooth = average / (1 - 0.9 ** (t + 1))
        best = min(best, smooth)
        if smooth - best > factor * max(abs(losses[0]), abs(best)):
            return t
    return -1


@pytest.mark.parametrize("lanes_at_once", ["auto", 8])
def test_lanes_stop_where_the_rule_says_and_harm_no_other(lanes_at_once):
    scripts = np.stack(
        [
            np.linspace(1, 0.1, 30),
            np.where(np.arange(30) == 12, np.nan, 1.0),
            np.full(30, np.inf),
            np.linspace(1, 0, 30) + np.where(np.arange(30) > 20, 50.0, 0.0),
            -np.linspace(1, 5, 30),
            np.where(np.arange(30) < 5, -1.0, 100.0),
            np.full(30, 1e-8),
            1.0 + 3.9 * (np.arange(30) > 10),
        ]
    ).astype(np.float32)
    start = {"t": jnp.int32(0), "sum": jnp.float32(0)}
    found = olr.sweep(
        falling,
        start,
        scripts,
        np.zeros(1),
        num_steps=30,
        return_carries=True,
        lanes_at_once=lanes_at_once,
        progress=False,
    )
    expected = [numpy_divergence(script) for script in scripts]
    assert found.diverged_at[0].tolist() == expected and -1 in expected and max(expected) > 0
    for lane, (script, at) in enumerate(zip(scripts, expected, strict=True)):
        end = 30 if at < 0 else at + 1
        np.testing.assert_array_equal(found.metrics["loss"][0, lane, :end], script[:end])
        assert np.isnan(found.metrics["loss"][0, lane, end:]).all()
        # Frozen as it was before the step that diverged.
        assert found.carries["t"][0, lane] == (30 if at < 0 else at)


def test_a_refinement_compiles_nothing():
    traces, start, options = [], {"x": jnp.float32(1)}, {"progress": False}

    def counted(carry, rate, batch, key):
        traces.append(1)
        return step(carry, rate, batch, key)

    with count_lowerings() as first:
        olr.sweep(counted, start, LANES, BATCHES, num_steps=5, **options)
    with count_lowerings() as second:
        rates = np.geomspace(0.2, 0.4, 11).astype(np.float32)
        olr.sweep(counted, start, rates, BATCHES, num_steps=7, seeds=2, stop_factor=5.0, **options)
    assert first == ["jit(train)"] and second == []
    assert len(traces) == 1


@pytest.fixture
def calls(monkeypatch):
    """What each call said: its first step and the one after its last."""
    seen, record = [], workers._record

    def noted(work, job, feed, call):
        seen.append((call.begin, call.end))
        return record(work, job, feed, call)

    monkeypatch.setattr(workers, "_record", noted)
    return seen


@pytest.mark.parametrize("lanes_at_once", ["auto", 2])
def test_a_lane_that_diverged_makes_no_more_calls(monkeypatch, calls, lanes_at_once):
    monkeypatch.setattr(jobs.Pace, "steps", lambda self, most: min(most, 10))
    rates = np.full(2, np.nan, np.float32)
    options = {"num_steps": 90, "lanes_at_once": lanes_at_once, "return_carries": True, "progress": False}
    found = olr.sweep(step, {"x": jnp.float32(1)}, rates, BATCHES, **options)
    assert calls == [(0, 10)] * (2 if lanes_at_once == "auto" else 1)
    assert (found.diverged_at == 1).all() and np.isnan(found.metrics["loss"][..., 2:]).all()
    assert np.isnan(found.carries["x"]).all() and found.carries["x"].shape == (1, 2)


def test_calls_that_end_early_do_not_make_the_next_ones_long(monkeypatch):
    told = []
    monkeypatch.setattr(jobs.Pace, "steps", lambda self, most: min(most, 10))
    monkeypatch.setattr(jobs.Pace, "tell", lambda self, steps, seconds: told.append(steps))
    rates = np.full(2, np.nan, np.float32)
    olr.sweep(step, {"x": jnp.float32(1)}, rates, BATCHES, num_steps=90, progress=False)
    assert told == [2, 2]


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_the_default_key_is_that_of_zero_and_compiles_nothing(impl):
    with jax.default_prng_impl(impl):
        with count_lowerings() as lowered:
            key = root_key(None)
        assert lowered == [] and key == jax.random.key(0)


def test_a_key_that_is_only_handed_on_is_that_of_the_step():
    def keeps(carry, rate, batch, key):
        return key, {"loss": rate}

    found = olr.sweep(
        keeps, jax.random.key(5), LANES, BATCHES, num_steps=4, return_carries=True, progress=False
    )
    last = jax.random.fold_in(key_of_seed(jax.random.key(0), 0), 3)
    assert (found.carries == jax.random.key_data(last)).all()


def test_a_convolution_is_dispatched_step_by_step():
    def convolve(carry, rate, batch, key):
        loss = jnp.sum(jnp.convolve(batch, carry, mode="valid") ** 2)
        return carry * (1 - rate), {"loss": loss}

    start, rates = jnp.ones(3), np.array([0.1, 0.5], np.float32)
    found = olr.sweep(convolve, start, rates, BATCHES, num_steps=4, progress=False)
    batched = olr.sweep(convolve, start, rates, BATCHES, num_steps=4, lanes_at_once=2, progress=False)
    assert "step by step" in found.placement
    np.testing.assert_allclose(found.metrics["loss"], batched.metrics["loss"], rtol=1e-5)


def test_any_hyperparameter_is_a_lane():
    def decayed(carry, lane, batch, key):
        optimizer = optax.chain(optax.add_decayed_weights(lane["decay"]), optax.sgd(lane["rate"]))
        loss, gradient = jax.value_and_grad(lambda x: jnp.mean((x - batch) ** 2))(carry)
        updates, _ = optimizer.update(gradient, optimizer.init(carry), carry)
        return optax.apply_updates(carry, updates), {"loss": loss}

    lanes = {"rate": jnp.array([0.1, 0.1]), "decay": jnp.array([0.0, 1.0])}
    found = olr.sweep(
        decayed, jnp.float32(1), lanes, BATCHES, num_steps=2, return_carries=True, progress=False
    )
    slope = 2 * (1 - BATCHES[0].mean())
    x = 1 - 0.1 * (slope + np.array([0.0, 1.0]))
    np.testing.assert_allclose(
        found.metrics["loss"][0, :, 1], ((x[:, None] - BATCHES[1]) ** 2).mean(1), rtol=1e-5
    )


def test_an_error_of_the_step_surfaces_from_its_thread():
    def fails(carry, rate, batch, key):
        jax.debug.callback(lambda: None)
        raise KeyError("the user's own error")

    with pytest.raises(KeyError, match="the user's own error"):
        olr.sweep(fails, jnp.float32(1), LANES, BATCHES, num_steps=2, progress=False)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_steps": 0}, r"num_steps must be a whole number of steps from 1 to .*, got 0\."),
        (
            {"num_steps": 2**24 + 1},
            r"num_steps must be a whole number of steps from 1 to 16777216, got 16777217\.",
        ),
        ({"num_steps": 2.5}, r"num_steps must be a whole number of steps .*, got 2\.5\."),
        ({"seeds": 0}, r"seeds must be .* got 0\."),
        ({"stop_factor": 0.0}, r"stop_factor must be a finite number above 0, got 0\.0\."),
        ({"eval_steps": [3, 2]}, r"eval_steps must be increasing steps from 1 to 4, got \[3, 2\]\."),
        ({"eval_steps": [5]}, r"eval_steps must be increasing steps from 1 to 4, got \[5\]\."),
        (
            {"lanes": np.zeros((0,))},
            r"lanes must be arrays with one leading axis, at least 1 long, got \(0,\)\.",
        ),
        ({"batches": (np.zeros(3), np.zeros(2))}, r"batches must be arrays .* got \(\(3,\), \(2,\)\)\."),
        ({"step": lambda c, *_: (c, {"error": c})}, r'step must return metrics\["loss"\], got metrics'),
        (
            {"step": lambda c, *_: (c, {"loss": jnp.ones(2)})},
            r"metric 'loss' must be a scalar, got .*\(2,\)\.",
        ),
        ({"step": lambda c, *_: ((c, c), {"loss": c})}, "step must return a carry of structure"),
        (
            {"step": lambda c, *_: (c.astype(jnp.bfloat16), {"loss": c})},
            r"got bfloat16\[\] for float32\[\] at carry",
        ),
    ],
)
def test_wrong_input_gets_one_sentence(unhooked, changes, sentence):
    arguments = {"step": lambda c, *_: (c, {"loss": c}), "lanes": LANES, "batches": BATCHES, "num_steps": 4}
    arguments |= changes
    positional = [arguments.pop(name) for name in ("step", "lanes", "batches")]
    with pytest.raises(ValueError, match=sentence) as refusal:
        unhooked.sweep(positional[0], jnp.float32(1), *positional[1:], **arguments, progress=False)
    assert "\n" not in str(refusal.value)


def test_batches_of_an_iterable_are_sent_as_they_are_needed():
    reads = []

    def endless():
        while True:
            reads.append(1)
            yield BATCHES[len(reads) % 7]

    arrays = np.stack([BATCHES[(i + 1) % 7] for i in range(250)])
    options = {"num_steps": 250, "seeds": 2, "lanes_at_once": 2, "progress": False}
    streamed = olr.sweep(step, {"x": jnp.float32(1)}, LANES, endless(), **options)
    whole = olr.sweep(step, {"x": jnp.float32(1)}, LANES, arrays, **options)
    assert len(reads) == 250
    np.testing.assert_allclose(streamed.metrics["loss"], whole.metrics["loss"], rtol=1e-6)


@pytest.mark.parametrize("lanes_at_once", ["auto", 2])
def test_folds_of_a_cross_validation_are_seeds(lanes_at_once):
    folds, held_out = np.stack([BATCHES[:3], BATCHES[3:6]]), np.array([0.1, 0.7], np.float32)
    options = {
        "num_steps": 3,
        "evaluate": lambda c, b: {"d": c["x"] - b},
        "eval_steps": [3],
        "progress": False,
    }
    found = olr.sweep(
        step, {"x": jnp.float32(1)}, LANES, folds, seeds=2, per_seed=True, eval_batch=held_out,
        lanes_at_once=lanes_at_once, **options,
    )  # fmt: skip
    begun = np.stack([fold[order_of(seed, 3, 3)[0]] for seed, fold in enumerate(folds)])
    first = np.mean((1 - begun) ** 2, axis=1)
    np.testing.assert_allclose(found.metrics["loss"][:, 0, 0], first, rtol=1e-6)
    alone = olr.sweep(step, {"x": jnp.float32(1)}, LANES, folds[0], eval_batch=held_out[0], **options)
    np.testing.assert_allclose(found.metrics["loss"][0], alone.metrics["loss"][0], rtol=1e-6)
    np.testing.assert_allclose(found.evals["d"][0], alone.evals["d"][0], rtol=1e-5)


@pytest.mark.parametrize("failing", ["a program", "the table"])
@pytest.mark.parametrize("cores", [1, 3])
def test_an_error_in_one_lane_ends_all_and_is_raised_once(monkeypatch, failing, cores):
    made, record = [], workers._record
    monkeypatch.setattr("optax_lr.engine.choose.cores", lambda: cores)

    def fails(work, job, feed, call):
        made.append(job)
        if 2 in job.some:
            raise OSError("gone") if failing == "the table" else KeyError("gone")
        return record(work, job, feed, call)

    monkeypatch.setattr(workers, "_record", fails)
    before = threading.active_count()
    with pytest.raises(OSError if failing == "the table" else KeyError, match="gone"):
        olr.sweep(
            step, {"x": jnp.float32(1)}, np.full(500, 0.1, np.float32), BATCHES, num_steps=3, progress=False
        )
    assert len(made) < 50 and threading.active_count() == before


@pytest.mark.parametrize("cores", [1, 2, 3])
@pytest.mark.parametrize("cut", [1, 7, 16, None])
def test_neither_cuts_nor_workers_change_a_bit(monkeypatch, cut, cores):
    """Windows are at most 16 steps here; `None` is the clock."""
    monkeypatch.setattr("optax_lr.engine.choose.THREAD_WINDOW", 16)
    options = {
        "num_steps": 40, "seeds": 2, "return_carries": True, "progress": False,
        "evaluate": lambda carry, batch: {"distance": carry["x"] - batch}, "eval_batch": 0.5, "eval_steps": [9, 40],
    }  # fmt: skip
    rates = np.array([0.01, 1e30, 0.1, 1.1], np.float32)
    with monkeypatch.context() as whole:
        whole.setattr("optax_lr.engine.choose.cores", lambda: 1)
        whole.setattr(jobs.Pace, "steps", lambda self, most: most)
        expected = olr.sweep(step, {"x": jnp.float32(1.5)}, rates, BATCHES, **options)
    assert (expected.diverged_at >= 0).any() and (expected.diverged_at[:, 0] == -1).all()
    monkeypatch.setattr("optax_lr.engine.choose.cores", lambda: cores)
    if cut is not None:
        monkeypatch.setattr(jobs.Pace, "steps", lambda self, most: min(cut, most))
    found = olr.sweep(step, {"x": jnp.float32(1.5)}, rates, BATCHES, **options)
    assert f"{cores} host threads" in found.placement
    jax.tree.map(np.testing.assert_array_equal, found[:4], expected[:4])


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("streamed", [False, True])
def test_cuts_of_a_grid_change_no_bit(monkeypatch, at_once, streamed):
    """A grid of lanes and seeds, its batches resident or sent in windows."""
    monkeypatch.setattr("optax_lr.engine.choose.GRID_WINDOW", 8)
    if streamed:
        chosen = machine.choose
        monkeypatch.setattr(
            machine, "choose", lambda *args, **options: chosen(*args, **options)._replace(resident=False)
        )
    found = []
    for cut in (1, 7, 8, None):
        with monkeypatch.context() as patch:
            if cut is not None:
                patch.setattr(jobs.Pace, "steps", lambda self, most, cut=cut: min(cut, most))
            found.append(
                olr.sweep(
                    step,
                    {"x": jnp.float32(1.5)},
                    LANES,
                    BATCHES,
                    num_steps=30,
                    seeds=2,
                    lanes_at_once=at_once,
                    return_carries=True,
                    progress=False,
                )
            )
    for other in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, found[0][:4], other[:4])


@pytest.mark.parametrize("cores", [1, 4])
def test_of_equal_runs_the_first_is_kept(monkeypatch, cores):
    monkeypatch.setattr("optax_lr.engine.choose.cores", lambda: cores)
    sweeps_data = Data(
        start={"x": np.float32(1)},
        batches=BATCHES,
        num_batches=7,
        bits=root_bits(None)[0],
        key_impl="threefry2x32",
    )
    task = Task(step=lambda carry, lane, batch, key: step(carry, lane["rate"], batch, key), functions=(step,))
    asked = runs.Plan(
        {"rate": np.full(24, 0.1, np.float32)}, np.zeros(24, np.int32), np.full(24, 3, np.int32)
    )
    opening = Opening(
        lane={"rate": np.float32(0)}, lanes=24, seeds=1, longest=3, keep=lambda table, row: float(-(row >= 5))
    )
    with engine.Engine(progress=False).open(task, sweeps_data, opening) as opened:
        opened.run(asked, "equal")
        assert list(opened.kept) == [5]


def test_lanes_fill_the_memory_that_there_is():
    data = Data(
        start={"x": np.zeros(1000, np.float32)},
        batches=BATCHES[:, :1],
        num_batches=7,
        bits=root_bits(None)[0],
        key_impl="threefry2x32",
    )
    programs = ProgramsOf(Task(step, functions=(step,)), data, np.float32(0), 8)
    need = [programs.of(Layout(width=width, seeds=2, window=8), 7).needed for width in (1, 2, 4, 8)]
    assert need == sorted(need) and need[3] > 4 * need[0]

    def widest(bytes_of, memory):
        asked = []

        def compiled(layout):
            asked.append(layout.width)
            return Programs(None, None, [], int(bytes_of(layout.width)))

        chosen, _ = fitted(Choice(Layout(width=64), True, memory, "gpu"), 64, compiled, 0)
        assert len(asked) <= 6
        return chosen.layout.width

    slope = (need[3] - need[2]) // 4
    assert widest(lambda width: need[0] + slope * (width - 1), need[0] + 3 * slope) == 4
    assert widest(lambda width: 100 * width, 50) == 1
    assert widest(lambda width: 900 + 10 * width, 1000) in (8, 9, 10)


def test_a_row_stops_where_its_average_is_above_its_ceiling():
    scripts = np.stack([np.linspace(1, 0, 30), np.linspace(1, 2, 30)]).astype(np.float32)
    task = Task(
        step=lambda carry, lane, batch, key: (carry + 1, {"loss": lane["losses"][carry]}), functions=(step,)
    )
    steps = np.full(2, 30, np.int32)
    asked = runs.Plan({"losses": scripts}, np.zeros(2, np.int32), steps)
    opening = Opening(
        lane={"losses": scripts[0]},
        lanes=2,
        seeds=1,
        longest=30,
        ceilings=lambda before, rows: np.full((len(rows), 30), 1.2, np.float32),
    )
    data = Data(np.int32(0), np.zeros(1, np.float32), 1, root_bits(None)[0], "threefry2x32")
    for at_once in ("auto", 2):
        with engine.Engine(progress=False, lanes_at_once=at_once).open(task, data, opening) as opened:
            opened.run(asked, "ceilings")
            columns = opened.runs.columns
            average = 0.0
            for t, loss in enumerate(scripts[1]):
                average = 0.9 * average + 0.1 * loss
                if average / (1 - 0.9 ** (t + 1)) > 1.2:
                    break
            assert columns["stopped_at"].tolist() == [-1, t] and columns["done"].tolist() == [30, t + 1]
            assert runs.WHY[columns["why"][1]] == "above its ceiling" and opened.runs.price == 31 + t
