"""What shapes cannot tell about the growth of a parameter: overrides, and refusals in one sentence."""

import jax
import jax.numpy as jnp
import pytest
from width_models import HIDDEN, INPUT, OUTPUT, VECTOR

import optax_lr as olr
from optax_lr.layers.labels import leaves_by_path

OVERRIDES = {
    "a table looked up": ({"emb/embedding": "input"}, "emb/embedding", (50, 8), (50, 32), INPUT),
    "a table read out, too": ({"emb/.*": "tied"}, "emb/embedding", (50, 8), (50, 32), "tied out x4"),
    "a readout": ({"x": "output"}, "x", (8, 50), (32, 50), OUTPUT),
    "positions": ({"x": "vector"}, "x", (5, 8), (5, 32), VECTOR),
    "a readout of one axis": ({"x": "output"}, "x", (8,), (32,), OUTPUT),
    "axes": ({"x": "stack in out"}, "x", (3, 8, 8), (3, 32, 32), HIDDEN),
    "heads that grow": ({"x": "in out out"}, "x", (8, 2, 2), (32, 4, 4), HIDDEN),
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_an_override_goes_before_what_shapes_say(name):
    overrides, path, before, after, label = OVERRIDES[name]
    base, wide = ({path: jnp.ones(shape), "b": jnp.ones(2 * shape[-1])} for shape in (before, after))
    found = olr.label_by_width(nested(base), overrides).resolve(nested(wide))
    assert dict(leaves_by_path(found)[0])[path] == label


def nested(tree):
    """A tree with the paths that its keys are."""
    made = {}
    for path, leaf in tree.items():
        first, _, rest = path.partition("/")
        made[first] = {rest: leaf} if rest else leaf
    return made


def trees(before, after, path="w/kernel"):
    return nested({path: jnp.ones(before)}), nested({path: jnp.ones(after)})


REFUSALS = {
    "trees that differ": (
        (nested({"a": jnp.ones(2)}), nested({"a": jnp.ones(4), "b": jnp.ones(4)})),
        "label_by_width needs two models with the same tree: the base model lacks 'b'.",
    ),
    "trees that differ, more in the base": (
        (nested({"a": jnp.ones(2), "b": jnp.ones(4)}), nested({"a": jnp.ones(4)})),
        "label_by_width needs two models with the same tree: only the base model has 'b'.",
    ),
    "other axes": (
        trees((2, 3), (2, 3, 4)),
        "label_by_width needs the same number of axes in both models, got (2, 3) and (2, 3, 4) for 'w/kernel'.",
    ),
    "a larger base": (
        trees((4, 3), (2, 3)),
        "label_by_width needs a base model that is smaller, got a larger one: 'w/kernel' is (4, 3) there and "
        "(2, 3) here.",
    ),
    "an axis that shrinks": (
        trees((4, 3), (8, 2)),
        "label_by_width needs axes that grow or stay, but one shrinks: 'w/kernel' is (4, 3) there and (8, 2) here.",
    ),
    "a kernel that has the name of a vector": (
        trees((16, 16), (64, 64), "film/scale"),
        "'film/scale' grows from (16, 16) to (64, 64), in an axis that no width should change, or its layout is "
        "unknown: say which axes are summed over, as in overrides={'film/scale': 'in out'}, or 'vector' if none "
        "is.",
    ),
    "stacked norms that grow in number": (
        trees((4, 16), (16, 64), "layers/scale"),
        "'layers/scale' grows from (4, 16) to (16, 64), in an axis that no width should change, or its layout is "
        "unknown: say which axes are summed over, as in overrides={'layers/scale': 'in out'}, or 'vector' if none "
        "is.",
    ),
    "a readout beside a scalar": (
        tuple(
            {
                "in": {"weight": jnp.ones((n, 8)), "bias": jnp.ones(n)},
                "out": {"weight": jnp.ones(n), "bias": jnp.ones(())},
            }
            for n in (16, 64)
        ),
        "'out/weight' grows from (16,) to (64,), which may be read as 'vector' (vector out x4) or as 'output' "
        "(output in x4): say which in overrides={'out/weight': ...}.",
    ),
    "nothing that grows": (
        trees((4, 3), (4, 3)),
        "label_by_width needs an axis that grows, got two models of the same shapes: at the base width every "
        "multiplier is 1, so leave them out.",
    ),
    "an output or an embedding": (
        trees((50, 8), (50, 32), "w/weight"),
        "'w/weight' grows from (50, 8) to (50, 32), which may be read as 'out in' (output in x4) or as 'vector' "
        "(input out x4): say which in overrides={'w/weight': ...}.",
    ),
    "a convolution or heads": (
        trees((3, 8, 4), (3, 32, 4)),
        "'w/kernel' grows from (3, 8, 4) to (3, 32, 4), which may be read as 'in in out' (output in x4) or as "
        "'in out out' (input out x4): say which in overrides={'w/kernel': ...}.",
    ),
    "an unknown name": (
        trees((8, 3), (32, 3), "w/table"),
        "'w/table' grows from (8, 3) to (32, 3), which may be read as 'in out' (output in x4) or as 'out in' "
        "(input out x4): say which in overrides={'w/table': ...}.",
    ),
    "a vocabulary that grows": (
        trees((50, 8), (100, 32), "w/embedding"),
        "'w/embedding' grows from (50, 8) to (100, 32), in an axis that no width should change, or its layout "
        "is unknown: say which axes are summed over, as in overrides={'w/embedding': 'in out'}, or 'vector' if "
        "none is.",
    ),
    "a table that may be read out": (
        trees((50, 8), (50, 32), "w/embedding"),
        "'w/embedding' is a table of embeddings in a model without an output, which may be read as 'input' (only "
        "looked up) or as 'tied' (read out, too): say which in overrides={'w/embedding': ...}.",
    ),
    "a readout or a scale": (
        trees((8,), (32,), "out"),
        "'out' grows from (8,) to (32,), which may be read as 'vector' (vector out x4) or as 'output' (output in "
        "x4): say which in overrides={'out': ...}.",
    ),
    "experts that grow in number, too": (
        trees((4, 8, 16), (16, 32, 64), "moe/up"),
        "'moe/up' grows from (4, 8, 16) to (16, 32, 64), in an axis that no width should change, or its layout is "
        "unknown: say which axes are summed over, as in overrides={'moe/up': 'in out'}, or 'vector' if none is.",
    ),
    "layers that grow in number": (
        trees((2, 8, 8), (6, 8, 8)),
        "label_by_width needs a width that grows, but only first axes do, as the number of stacked layers: "
        "'w/kernel' is (2, 8, 8) there and (6, 8, 8) here.",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_told_is_refused_in_one_sentence(name, unhooked):
    (base, wide), sentence = REFUSALS[name]
    with pytest.raises(ValueError, match=r"\S") as refusal:
        unhooked.label_by_width(base).resolve(wide)
    assert str(refusal.value) == sentence


BAD = {
    "optimizer": (
        lambda olr: olr.width_multipliers("adagrad"),
        "optimizer must be one of 'adam', 'lion', 'sgd', 'muon', got 'adagrad'.",
    ),
    "labels": (
        lambda olr: olr.width_multipliers().resolve({"w": "head"}),
        "width_multipliers needs the labels of label_by_width(), as 'hidden in x4 out x4', got 'head'.",
    ),
    "Muon's weights of another form": (
        lambda olr: olr.width_multipliers("muon").resolve({"w": "hidden in x2 out x4"}),
        "width_multipliers('muon') needs hidden weights whose inputs and outputs grow alike, got 'hidden in x2 out "
        "x4': Muon scales by the shape, too, so give their multipliers by hand.",
    ),
    "shapes": (
        lambda olr: olr.rescale_init({"a": jnp.ones(4)}, {"a": jax.ShapeDtypeStruct((2,), jnp.float32)}),
        "rescale_init needs the arrays of the base model, got only the shape of 'a'.",
    ),
    "words": (
        lambda olr: olr.label_by_width({"a": jnp.ones(2)}, {"a": "by in"}),
        "overrides['a'] must be one of 'vector', 'input', 'output', 'tied', or a word for each axis (in, out, "
        "stack), with an in and an out, got 'by in'.",
    ),
    "too few words": (
        lambda olr: olr.label_by_width({"a": jnp.ones(2)}, {"a": "in out"}).resolve({"a": jnp.ones(4)}),
        "overrides must have a word for each axis of 'a', which has the shape (4,), got 'in out'.",
    ),
    "layers that grow": (
        lambda olr: olr.label_by_width({"a": jnp.ones((2, 2, 2))}, {"a": "stack in out"}).resolve(
            {"a": jnp.ones((4, 4, 4))}
        ),
        "overrides says that layers are stacked in 'a', but their number grows: (2, 2, 2) to (4, 4, 4).",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_sentence(name, unhooked):
    call, sentence = BAD[name]
    with pytest.raises(ValueError, match=r"\S") as refusal:
        call(unhooked)
    assert str(refusal.value) == sentence
