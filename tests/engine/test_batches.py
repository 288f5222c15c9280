"""The data of a search: copied as it is read, once, whatever its source does afterwards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_lr as olr
from optax_lr.engine.batches import ALIGNMENT, aligned, batch_order, is_stacked, read_batches

DATA = np.random.default_rng(0).normal(size=(50, 8, 3)).astype(np.float32)


def reusing_its_buffer(data):
    """As fast loaders do."""
    buffer = np.empty(data.shape[1:], data.dtype)
    for batch in data:
        buffer[...] = batch
        yield buffer


SOURCES = {
    "a generator": lambda: (batch for batch in DATA),
    "a loader with one buffer": lambda: reusing_its_buffer(DATA),
    "a list": lambda: list(DATA),
    "a list of JAX's arrays": lambda: list(jnp.asarray(DATA)),
    "stacked": lambda: DATA,
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_same_batches(source):
    stacked, count = read_batches(SOURCES[source](), 50)
    assert count == 50 and is_stacked(SOURCES[source]()) == (source == "stacked")
    np.testing.assert_array_equal(stacked[:50], DATA)
    assert stacked.ctypes.data % ALIGNMENT == 0 or source == "stacked"


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_same_losses(source):
    def step(x, rate, batch, key):
        return x - rate * batch.mean(), {"loss": (x - batch.mean()) ** 2}

    options = {"num_steps": 50, "progress": False}
    rates = np.array([0.1, 0.2], np.float32)
    found = olr.sweep(step, jnp.float32(1), rates, SOURCES[source](), **options)
    x = np.zeros((2, 51)) + 1
    for t in range(50):
        x[:, t + 1] = x[:, t] - rates * DATA[t].mean()
    expected = (x[:, :50] - DATA.mean((1, 2))) ** 2
    np.testing.assert_allclose(found.metrics["loss"][0], expected, rtol=1e-4, atol=1e-6)


def test_no_more_than_asked_is_read():
    reads = []

    def endless():
        while True:
            reads.append(1)
            yield {"x": DATA[0], "y": np.int64(len(reads))}

    stacked, count = read_batches(endless(), 5)
    assert len(reads) == count == 5
    assert stacked["y"][:5].tolist() == [1, 2, 3, 4, 5] and stacked["y"].dtype == np.int32
    assert stacked["x"].shape == (8, 8, 3) and not stacked["x"][5:].any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.bool_, np.uint8, np.float32, np.int32])
@pytest.mark.parametrize("count", [1, 3, 40])
def test_fields_of_any_dtype_and_shape_come_through(dtype, count):
    batches = [
        {"a": np.full((2, 3), i % 2, dtype), "b": (np.asarray(i, dtype), np.zeros((0, 2)))}
        for i in range(count)
    ]
    stacked, found = read_batches(iter(batches), 100)
    assert found == count
    for i, batch in enumerate(batches):
        np.testing.assert_array_equal(stacked["a"][i], batch["a"])
        np.testing.assert_array_equal(stacked["b"][0][i], batch["b"][0])
    assert stacked["a"].dtype == dtype and stacked["b"][1].shape[1:] == (0, 2)


LATER = [np.float32(0.75), np.int32(3), True, np.uint8(3), jnp.bfloat16(0.75), np.float16(3), 1j, 0.75, 3]


@pytest.mark.parametrize("later", LATER, ids=lambda value: f"{np.asarray(value).dtype}")
@pytest.mark.parametrize("first", LATER, ids=lambda value: f"{np.asarray(value).dtype}")
@pytest.mark.parametrize("form", [list, iter])
def test_no_batch_is_cast_to_the_dtype_of_another(form, first, later):
    """A loop by hand would see a float where the first batch had an int; what JAX itself casts, is cast."""
    batches = [{"x": first}, {"x": first}, {"x": later}]
    expected = [jnp.asarray(each["x"]) for each in batches]
    if expected[0].dtype == expected[2].dtype:
        stacked, _ = read_batches(form(batches), 3)
        np.testing.assert_array_equal(stacked["x"][:3], np.stack(expected))
    else:
        one, other = expected[0].dtype, expected[2].dtype
        with pytest.raises(
            ValueError, match=rf"one dtype, got {other} at batch 2 after {one} in batch\['x'\]"
        ):
            read_batches(form(batches), 3)


def test_large_streams_take_no_more_rows_than_they_have(monkeypatch):
    monkeypatch.setattr("optax_lr.engine.batches.SMALL", 0)
    stacked, count = read_batches(iter(DATA[:37]), 50)
    assert stacked.shape == (37, 8, 3) and count == 37
    np.testing.assert_array_equal(stacked, DATA[:37])


@pytest.mark.parametrize(
    ("batches", "sentence"),
    [
        (lambda: iter(()), "batches must have at least one batch, got an empty iterable"),
        (lambda: 3, "batches must be arrays or an iterable of batches, got a int"),
        (
            lambda: [np.zeros(3), np.zeros(2)],
            r"batches must all have one shape, got \(2,\) at batch 1 after \(3,\)",
        ),
        (
            lambda: [{"x": np.zeros(3), "name": "cat"}],
            r"got str 'cat' at batch(es)?\['name'\]: leave the field out",
        ),
    ],
)
def test_what_is_no_batch_gets_one_sentence(unhooked, batches, sentence):
    with pytest.raises(ValueError, match=sentence):
        unhooked.sweep(
            lambda x, r, b, k: (x, {"loss": x}),
            jnp.float32(1),
            np.ones(1, np.float32),
            batches(),
            num_steps=4,
        )


def test_an_aligned_array_is_not_copied():
    memory = np.zeros(4 * 64 + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    there, beside = memory[begin : begin + 256], memory[begin + 4 : begin + 252]
    assert aligned(there) is there
    copy = aligned(beside)
    assert copy.ctypes.data % ALIGNMENT == 0 and not np.shares_memory(copy, beside)
    np.testing.assert_array_equal(copy, beside)


def test_an_order_goes_through_all_batches_before_it_begins_again():
    bits = np.zeros(2, np.uint32)
    for seed in range(4):
        order = batch_order(6, 15, seed, bits)
        assert sorted(order[:6]) == sorted(order[6:12]) == list(range(6)) and len(order) == 15
    assert batch_order(6, 15, 0, bits).tolist() == [*range(6), *range(6), *range(3)]


@pytest.mark.parametrize("what", ["carry", "lanes", "batches", "eval_batch"])
def test_what_a_user_handed_over_may_change_afterwards(what):
    given = {
        "carry": {"x": np.ones(100, np.float32)},
        "lanes": np.array([0.1, 0.2], np.float32),
        "batches": DATA.copy(),
        "eval_batch": np.ones(100, np.float32),
    }

    def step(carry, rate, batch, key):
        return {"x": carry["x"] - rate * batch.mean()}, {"loss": jnp.mean(carry["x"] ** 2)}

    def kept(carry, batch):
        return {"at": carry["x"] @ batch}

    def search():
        return olr.sweep(
            step, given["carry"], given["lanes"], given["batches"], num_steps=9, eval_batch=given["eval_batch"],
            evaluate=kept, eval_steps=[9], return_carries=True, progress=False,
        )  # fmt: skip

    found = search()
    before = jax.tree.map(np.array, found[:4])
    for leaf in jax.tree.leaves(given[what]):
        leaf[...] = 7.0
    jax.tree.map(np.testing.assert_array_equal, found[:4], before)
    # It is read again by the next search, and no array of an old one is kept.
    changed = search()
    assert any(
        (a != b).any() for a, b in zip(jax.tree.leaves(changed[:4]), jax.tree.leaves(before), strict=True)
    )


def test_a_search_changes_nothing_that_it_is_given():
    start = {"x": np.ones(1000, np.float32)}
    batches, rates = DATA.copy(), np.array([0.1, 0.2, 0.3], np.float32)

    def step(carry, rate, batch, key):
        return {"x": carry["x"] - rate * batch.mean()}, {"loss": jnp.mean(carry["x"] ** 2)}

    for _ in range(2):
        olr.sweep(step, start, rates, batches, num_steps=9, seeds=2, return_carries=True, progress=False)
    assert (start["x"] == 1).all()
    np.testing.assert_array_equal(batches, DATA)
