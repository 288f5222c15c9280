"""What users hand over by mistake: one sentence that says what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_lr as olr

X = np.random.default_rng(0).normal(size=(20, 4, 3)).astype(np.float32)
BATCHES = X, X @ np.array([1, 2, 3], np.float32)
FIRST, SECOND = ((BATCHES[0][i], BATCHES[1][i]) for i in range(2))
PARAMS = {"w": jnp.zeros(3)}


def loss_fn(params, batch):
    return jnp.mean((batch[0] @ params["w"] - batch[1]) ** 2)


def branching(step):
    return 0.1 if step < 5 else 0.01


def of_ten_steps(peak):
    return lambda step: peak * np.linspace(1, 0, 10)[int(step)]


def branching_in_the_optimizer(rate):
    return optax.chain(optax.sgd(rate), optax.scale_by_schedule(branching))


SEARCHES = {
    "validation as a list of batches": (
        {"eval_batch": [FIRST, SECOND]},
        r"eval_batch must be one batch, got a list of 2 batches: put the examples together",
    ),
    "validation as an iterator": (
        {"eval_batch": iter([FIRST])},
        r"eval_batch must be one batch, got a list_iterator: put the examples together",
    ),
    "other fields later": (
        {"batches": [{"x": X[0], "y": X[1]}, {"x": X[2]}]},
        r"one structure, got \{'x': \(4, 3\)\} at batch 1 after .*: give each the same fields",
    ),
    "inputs and targets in a list": (
        {"batches": list(BATCHES)},
        r"one shape, .*arrays with an axis of steps go into a tuple, \(inputs, targets\)",
    ),
    "Python numbers as parameters": ({"params": {"w": 0.0}}, r"got none \(Python numbers stay as they are: "),
    "a table that ends too early": (
        {"horizon": 20, "schedule": of_ten_steps, "num_steps": None},
        r"finite number at every step up to 19, and fails at step 10 with IndexError",
    ),
    "a schedule with an if inside the optimizer": (
        {"optimizer": branching_in_the_optimizer},
        r"optimizer must be one that JAX can trace, and a schedule in it.*use jnp.where or optax.join_schedules",
    ),
    "a rate as schedule": (
        {"schedule": 0.1, "horizon": 8},
        r"schedule must be a function of the peak to a function of the step, got 0\.1: lambda peak: ",
    ),
    "a schedule of words": (
        {"schedule": lambda peak: lambda step: "high", "horizon": 8},
        r"schedule must give a finite number at every step, got 'high' at step 0\.$",
    ),
    "a schedule that is not finite": (
        {"schedule": lambda peak: lambda step: peak / (step != 3), "horizon": 8},
        r"schedule must give a finite number at every step, got inf at step 3\.$",
    ),
    "a schedule of arrays": (
        {"schedule": lambda peak: lambda step: peak * jnp.ones(2), "horizon": 8},
        r"schedule must give a finite number at every step, got an array of shape \(2,\) at step 0\.$",
    ),
    "lanes without names": (
        {"lanes": [1, 2]},
        r"lanes must be what varies beside .*, got \[1, 2\]; the rates",
    ),
    "a number as checkpoint": ({"checkpoint": 3}, r"checkpoint must be the path of a directory, got 3\."),
    "a checkpoint that cannot be": (
        {"checkpoint": "x" * 300},
        r"checkpoint='.*x' must be a directory that can be written to: .* too long\.",
    ),
    "a number as key": ({"key": 0}, r"key must be one random key, such as jax\.random\.key\(0\), got 0\."),
    "several keys": ({"key": jax.random.split(jax.random.key(0))}, r"key must be one random key, "),
    "all lanes at once": (
        {"lanes_at_once": "all"},
        r"lanes_at_once must be \"auto\" or a whole number of lanes, got 'all'\.",
    ),
    "no lane at once": (
        {"lanes_at_once": 0},
        r"lanes_at_once must be a whole number of lanes from 1 .*, got 0",
    ),
    "no seed": ({"seeds": 0}, r"seeds must be a whole number of seeds from 1 .*, got 0"),
    "a metric of nobody": (
        {"metric": "acc", "eval_batch": FIRST},
        r"metric='acc' is not reported by validation, which is loss_fn without eval_fn: there is 'loss'\.",
    ),
}


@pytest.mark.parametrize("mistake", SEARCHES)
def test_a_search_says_what_to_do(mistake, unhooked):
    changes, sentence = SEARCHES[mistake]
    given = {"params": PARAMS, "optimizer": optax.sgd, "batches": BATCHES, "num_steps": 8, **changes}
    if "horizon" in given:
        given.setdefault("eval_batch", FIRST)
    with pytest.raises(ValueError, match=sentence):
        unhooked.lr_find(loss_fn, progress=False, **given)


def test_a_list_of_arrays_may_be_one_batch():
    def loss(params, batch):
        return jnp.mean((batch[0] @ params["w"] - batch[1] @ jnp.ones(3)) ** 2)

    options = {"learning_rates": [0.1], "num_steps": 8, "progress": False}
    as_list = olr.lr_sweep(loss, PARAMS, optax.sgd, [[x, x] for x in X], eval_batch=[X[0], X[0]], **options)
    as_tuple = olr.lr_sweep(loss, PARAMS, optax.sgd, (X, X), eval_batch=(X[0], X[0]), **options)
    np.testing.assert_array_equal(as_list.eval_losses, as_tuple.eval_losses)


def test_a_checkpoint_is_a_directory(tmp_path, unhooked):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "within"):
        with pytest.raises(ValueError, match=r"must be a directory, and a file is there"):
            unhooked.lr_find(
                loss_fn, PARAMS, optax.sgd, BATCHES, num_steps=8, checkpoint=path, progress=False
            )


def test_a_state_that_keeps_its_rate_goes_with_such_an_optimizer(unhooked):
    state = unhooked.visible(optax.adam)(0.1).init(PARAMS)
    with pytest.raises(
        ValueError, match=r"keeps the rate: optimizer must do so, too, as visible\(optax.adam\)"
    ):
        unhooked.lr_refind(loss_fn, PARAMS, optax.adam, BATCHES, learning_rate=0.1, opt_state=state)


TRANSFORMATIONS = {
    "learning_rate": lambda: olr.scale_by_learning_rate(branching),
    "multipliers\\['a'\\]": lambda: olr.scale_by_label({"a": branching}, olr.label_by_path({".*": "a"})),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_a_schedule_with_an_if_runs_by_hand_and_is_refused_inside_jit(name, unhooked):
    tx = TRANSFORMATIONS[name]()
    assert float(abs(tx.update(jnp.ones(()), tx.init(jnp.ones(())))[0])) == pytest.approx(0.1)
    with pytest.raises(
        ValueError, match=f"{name} must be a schedule that JAX can trace, and .*use jnp.where"
    ):
        jax.jit(tx.update)(jnp.ones(()), tx.init(jnp.ones(())))


def test_an_optimizer_in_place_of_its_factory_is_refused(unhooked):
    with pytest.raises(
        ValueError, match=r"visible\(optax.adam\)\(0.1\) in place of visible\(optax.adam\(0.1\)\)"
    ):
        unhooked.visible(optax.adam(0.1))
