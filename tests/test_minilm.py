"""The pretrained network of examples/minilm.py embeds as the reference does, and is labeled and adapted as told."""

import json
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from sklearn.linear_model import LogisticRegression

import optax_lr as olr

TESTS = pathlib.Path(__file__).parent
REFERENCE = json.loads((TESTS / "minilm_reference.json").read_text())
sys.path.append(str(TESTS.parent / "examples"))
import docstrings  # noqa: E402
import minilm as example  # noqa: E402
import minilm_model as minilm  # noqa: E402


@pytest.fixture(scope="module")
def body():
    return minilm.pretrained()


@pytest.fixture(scope="module")
def vectors(body):
    return np.asarray(body(minilm.tokens_of(REFERENCE["sentences"], 32)))


def test_texts_are_cut_into_the_same_word_pieces():
    expected = np.array(REFERENCE["tokens"])
    tokens = minilm.tokens_of(REFERENCE["sentences"], 32)
    np.testing.assert_array_equal(tokens[:, : expected.shape[1]], expected)
    assert not tokens[:, expected.shape[1] :].any()
    assert minilm.tokens_of(REFERENCE["sentences"], 6).shape == (4, 6)


def test_embeddings_are_those_of_the_transformers_library(vectors):
    np.testing.assert_allclose(vectors, REFERENCE["embeddings"], atol=1e-5)


def test_what_is_alike_lies_close(vectors):
    alike, drums, matrix = vectors[1:] @ vectors[0]
    assert alike > 0.7 > 0.3 > matrix > drums


def test_padding_changes_nothing(body, vectors):
    shorter = body(minilm.tokens_of(REFERENCE["sentences"][:1], 12))
    np.testing.assert_allclose(shorter[0], vectors[0], atol=1e-5)


def test_depths_run_from_the_embeddings_to_the_head(body):
    model = minilm.Classifier(body, 12, nnx.Rngs(0))
    labels = olr.label_by_depth([r"body/embed/.*", r"body/block/(\d+)/.*", "head/.*"])
    resolved = labels.resolve(nnx.state(model, nnx.Param))
    assert set(jax.tree.leaves(resolved)) == set(range(8))
    assert set(jax.tree.leaves(resolved["body"]["block"][2])) == {3}


def test_low_rank_changes_are_nothing_at_first(vectors):
    tokens = minilm.tokens_of(REFERENCE["sentences"], 32)
    model = minilm.Classifier(minilm.pretrained(), 12, nnx.Rngs(0))
    before = model(tokens)
    adapted = minilm.with_lora(model, 8, nnx.Rngs(1))
    np.testing.assert_allclose(adapted(tokens), before, atol=1e-4)
    trained = jax.tree.leaves(nnx.state(adapted, nnx.LoRAParam))
    assert sum(leaf.size for leaf in trained) == 6 * 4 * 2 * 8 * 384


def test_texts_do_not_name_their_class():
    texts, labels = docstrings.texts_and_labels()
    assert len(texts) > 1000 and len(set(texts)) == len(texts)
    for text in texts:
        assert not {*docstrings.CLASSES, "scipy"} & set(text.lower().split())
    one, valid, test = docstrings.split(labels, 8, seed=0)
    other, *held = docstrings.split(labels, 8, seed=1)
    assert np.bincount(labels[one]).tolist() == [8] * 12
    assert len({*one, *valid, *test}) == 96 + 96 + 240 and set(one) != set(other)
    np.testing.assert_array_equal(held[0], valid)
    np.testing.assert_array_equal(held[1], test)


class Small(nnx.Module):
    """A network for texts that is soon trained."""

    def __init__(self):
        self.embed = nnx.Embed(minilm.VOCABULARY, 4, rngs=nnx.Rngs(0))
        self.head = nnx.Linear(4, 12, rngs=nnx.Rngs(1))

    def __call__(self, tokens):
        return self.head(self.embed(tokens).mean(axis=1))


def test_a_training_that_was_killed_goes_on_to_the_same_weights(tmp_path, capsys):
    draw = np.random.default_rng(0)
    steps, epoch = example.SIZE.steps, example.SIZE.epoch
    batches = draw.integers(1, 9, size=(steps, 4, 8)), draw.integers(12, size=(steps, 4))

    def trained():
        model, wrt = Small(), nnx.PathContains("head")
        example.train(model, example.adam(example.schedule(0.1)), wrt, batches, tmp_path)
        return model.head.kernel[...], capsys.readouterr().out

    whole, said = trained()
    assert f"step {steps:>3}   rate" in said and "goes on" not in said
    shutil.rmtree(tmp_path / str(steps))
    again, said = trained()
    assert f"goes on at step {steps - epoch}" in said
    np.testing.assert_array_equal(again, whole)


def test_the_head_begins_as_the_regression_on_the_embeddings(vectors):
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(48, minilm.WIDTH)), np.arange(48) % 12
    probe = LogisticRegression().fit(x, y)
    logits = example.classifier(probe)(minilm.tokens_of(REFERENCE["sentences"], 32))
    expected = probe.predict_log_proba(vectors * minilm.WIDTH**0.5)
    np.testing.assert_allclose(jax.nn.log_softmax(logits), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("valid_loss", "test_accuracy", "said"),
    [
        (0.9, 0.65, "the answer is LoRA: 65.0%. To the 60.0% of the regression it adds 5.0 points."),
        (
            0.9,
            0.58,
            "the answer is LoRA: 58.0%. To the 60.0% of the regression it adds nothing here (-2.0 points).",
        ),
        (1.1, 0.65, "No fine-tuning has a lower validation loss: the answer is the regression, 60.0%."),
    ],
)
def test_validation_chooses_and_what_it_adds_is_said(valid_loss, test_accuracy, said):
    found = {"regression": [(1.0, 0.5), (1.2, 0.6)], "LoRA": [(valid_loss, 0.5), (1.2, test_accuracy)]}
    printed = example.told(found, "regression")
    assert printed.endswith(said)
    assert f"{valid_loss:.3f}           {test_accuracy:.1%}   LoRA" in printed
