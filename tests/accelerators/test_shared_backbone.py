"""Lanes on a pretrained encoder of 22.7 million parameters, most of them frozen: an H100 holds those once."""

import functools
import pathlib
import sys

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from lanes import built
from targets import bytes_of, compile_for

import optax_lr as olr
from optax_lr.engine import task
from optax_lr.nnx.modules import unpacked

sys.path.append(str(pathlib.Path(__file__).parents[2] / "examples"))
import minilm_model as minilm

LANES, STEPS, BATCH, TOKENS, MIB = 32, 8, 8, 32, 2**20
DEPTHS = olr.label_by_depth([r"body/embed/.*", r"body/block/(\d+)/.*", "head/.*"])
BATCHES = np.ones((STEPS, BATCH, TOKENS), np.int32), np.zeros((STEPS, BATCH), np.int32)


def loss_fn(model, batch):
    return optax.softmax_cross_entropy_with_integer_labels(model(batch[0]), batch[1]).mean()


def lora():
    """Low-rank changes of the attention, and the head."""
    model = minilm.with_lora(minilm.Classifier(minilm.MiniLM(nnx.Rngs(0)), 12, nnx.Rngs(1)), 8, nnx.Rngs(2))
    return model, optax.adam, nnx.Any(nnx.LoRAParam, nnx.PathContains("head"))


def train_only():
    """The last block and the head."""
    model = minilm.Classifier(minilm.MiniLM(nnx.Rngs(0)), 12, nnx.Rngs(1))
    return model, lambda rate: olr.train_only(optax.adam(rate), [6, 7], DEPTHS), nnx.Param


WAYS = {"lora": lora, "train_only": train_only}


def arguments(way, lanes):
    """What trains so many lanes, and the shapes of its arguments."""
    model, optimizer, wrt = WAYS[way]()
    given = unpacked(loss_fn, model, wrt)
    params, state = given["params"], given["model_state"]
    return built(given["loss_fn"], params, optimizer, BATCHES, steps=STEPS, lanes=lanes, model_state=state)


@functools.cache
def needed(way, lanes):
    """Bytes of the compiled program: its arguments, some of them donated, and what it needs beside them."""
    build, shapes = arguments(way, lanes)
    return bytes_of(shapes) + compile_for("h100", build.train, shapes, donate=(0, 1)).temporary


def backbone(way):
    """Bytes of what is frozen."""
    model, _, wrt = WAYS[way]()
    params = nnx.state(model, nnx.Param)
    if way == "lora":
        return bytes_of(params) - bytes_of(nnx.state(model, wrt))
    both = zip(jax.tree.leaves(params), jax.tree.leaves(DEPTHS.resolve(params)), strict=True)
    return sum(leaf.nbytes for leaf, depth in both if depth < 6)


def most(way):
    """What is asked for: the backbone once, and for each lane what one lane needs beside it."""
    return 1.15 * backbone(way) + LANES * (needed(way, 1) - backbone(way))


@pytest.mark.parametrize("way", WAYS)
def test_32_lanes_hold_the_backbone_once(way, capsys):
    all_lanes, one, frozen = needed(way, LANES), needed(way, 1), backbone(way)
    with capsys.disabled():
        print(
            f"\nh100, {way}: backbone {frozen / MIB:.0f} MiB, one lane {one / MIB:.0f}, {LANES} lanes "
            f"{all_lanes / MIB:.0f} of at most {most(way) / MIB:.0f}"
        )
    assert one > frozen
    assert all_lanes <= most(way)


@pytest.mark.parametrize("way", WAYS)
def test_copies_would_be_seen(way, monkeypatch):
    monkeypatch.setattr(task, "unchanged", lambda closed, count: [False] * count)
    _, shapes = arguments(way, LANES)
    # The arguments alone are then too many.
    assert bytes_of(shapes) > most(way)
