"""Labels by depth against the layer numbers of timm, BEiT and ELECTRA, and what is refused."""

import itertools
import re

import jax.numpy as jnp
import pytest

import optax_lr as olr

PREVIOUS = (99999,)


def timm_layers(names, stem, blocks):
    """timm's `group_with_matcher`: a number for each name, the unmatched last; 99999 joins the layer before."""
    matchers = [(re.compile(stem), (0,), None), *((re.compile(one), (1,), end) for one, end in blocks)]

    def place(name):
        for matcher, prefix, suffix in matchers:
            if match := matcher.match(name):
                parts = filter(None, (prefix, match.groups(), suffix))
                return tuple(map(float, itertools.chain.from_iterable(parts)))
        return (float("inf"),)

    layer, numbers = -1, {}
    for key, group in itertools.groupby(sorted(names, key=place), key=place):
        layer += layer < 0 or key[-1] != PREVIOUS[0]
        numbers |= dict.fromkeys(group, layer)
    return numbers


def blocks_of(stage, depths):
    return [stage.format(s, b) for s, depth in enumerate(depths) for b in range(depth)]


VIT = ["cls_token", "pos_embed", "patch_embed.proj", *[f"blocks.{i}.mlp" for i in range(12)], "norm", "head"]
CONVNEXT = [
    "stem.0",
    *[f"stages.{s}.downsample.1" for s in (1, 2, 3)],
    *blocks_of("stages.{}.blocks.{}.conv_dw", (3, 3, 9, 3)),
    "head.fc",
]
SWIN = [
    "patch_embed.proj",
    *[f"layers.{s}.downsample.norm" for s in (1, 2, 3)],
    *blocks_of("layers.{}.blocks.{}.attn", (2, 2, 6, 2)),
    "norm",
    "head.fc",
]
PVT = [
    "patch_embed.proj",
    *[f"stages.{s}.downsample.proj" for s in (1, 2, 3)],
    *blocks_of("stages.{}.blocks.{}.attn", (3, 4, 6, 3)),
    *[f"stages.{s}.norm" for s in range(4)],
    "head",
]
JOINS_NORM = olr.at_depth(r"norm", joins_previous=True)
# A model's names, timm's matcher of it, and the same in patterns for `label_by_depth`.
TIMM = {
    "ViT": (
        VIT,
        (r"^cls_token|pos_embed|patch_embed", [(r"^blocks\.(\d+)", None), (r"^norm", PREVIOUS)]),
        [r"(?:cls_token|pos_embed|patch_embed).*", r"blocks\.(\d+)\..*", JOINS_NORM, r"head"],
    ),
    "ConvNeXt": (
        CONVNEXT,
        (r"^stem", [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]),
        [
            r"stem.*",
            olr.at_depth(r"stages\.(\d+)\.(?:downsample|blocks\.(\d+))\..*", unmatched=0),
            r"head.*",
        ],
    ),
    "Swin": (
        SWIN,
        (
            r"^patch_embed",
            [
                (r"^layers\.(\d+).downsample", (0,)),
                (r"^layers\.(\d+)\.\w+\.(\d+)", None),
                (r"^norm", PREVIOUS),
            ],
        ),
        [
            r"patch_embed.*",
            olr.at_depth(r"layers\.(\d+)\.(?:downsample|blocks\.(\d+))\..*", unmatched=0),
            JOINS_NORM,
            r"head.*",
        ],
    ),
    # One layer a stage, its downsampling and its norm with it.
    "PVT v2": (
        PVT,
        (r"^patch_embed", [(r"^stages\.(\d+)", None)]),
        [r"patch_embed.*", r"stages\.(\d+)\..*", r"head"],
    ),
}


@pytest.mark.parametrize("name", TIMM)
def test_layers_are_numbered_as_timm_numbers_them(name):
    names, matcher, patterns = TIMM[name]
    params = dict.fromkeys(names, jnp.ones(1))
    labels, wanted = olr.label_by_depth(patterns).resolve(params), timm_layers(names, *matcher)
    assert labels == wanted
    decay = olr.layer_decay(0.8).resolve(labels)
    last = max(wanted.values())
    assert {name: decay[labels[name]] for name in names} == pytest.approx(
        {name: 0.8 ** (last - layer) for name, layer in wanted.items()}
    )


def test_convnext_downsampling_has_the_rate_that_timm_gives_it():
    names, _, patterns = TIMM["ConvNeXt"]
    labels = olr.label_by_depth(patterns).resolve(dict.fromkeys(names, jnp.ones(1)))
    multipliers = olr.layer_decay(0.8).resolve(labels)
    assert multipliers[labels["stages.3.downsample.1"]] == pytest.approx(0.512)


def test_vit_is_numbered_as_in_beit():
    """BEiT's `get_num_layer_for_vit`: embeddings 0, block i at i + 1, norm and head last."""
    labels = olr.label_by_depth([r".*(?:token|embed).*", r"blocks\.(\d+)\..*", r"norm|head"]).resolve(
        dict.fromkeys(VIT, jnp.ones(1))
    )
    wanted = dict.fromkeys(VIT[:3], 0) | {f"blocks.{i}.mlp": i + 1 for i in range(12)}
    assert labels == {**wanted, "norm": 13, "head": 13}


def test_electra_has_a_gap_below_its_head():
    """Its multipliers are decay^(layers + 2 - depth): task head at layers + 2, layer i at i + 1."""
    layers, decay = 12, 0.8
    names = ["embeddings", *[f"layer_{i}" for i in range(layers)], "task_specific"]
    labels = olr.label_by_depth(["embeddings", r"layer_(\d+)", "task_specific"]).resolve(
        dict.fromkeys(names, jnp.ones(1))
    )
    ours = olr.layer_decay(decay).resolve(labels)
    electra = {0: decay ** (layers + 2), **{i + 1: decay ** (layers + 1 - i) for i in range(layers)}}
    assert {depth: ours[depth] * decay for depth in electra} == pytest.approx(electra)


def test_an_optional_group_that_matches_nothing_comes_before_number_0():
    params = dict.fromkeys(PVT, jnp.ones(1))
    labels = olr.label_by_depth(
        [r"patch_embed.*", r"stages\.(\d+)\.(?:(?:downsample|norm)|blocks\.(\d+)).*", r"head"]
    ).resolve(params)
    for stage in (1, 2, 3):
        assert labels[f"stages.{stage}.downsample.proj"] + 1 == labels[f"stages.{stage}.blocks.0.attn"]
        assert labels[f"stages.{stage}.downsample.proj"] == labels[f"stages.{stage}.norm"]
    assert sorted(set(labels.values())) == list(range(1 + 4 + 16 + 1))


def test_towers_of_different_depth_end_together():
    """CLIP: each tower as BEiT numbers it, the shorter one from where it must to end with the other."""
    names = [
        "visual.embed",
        *[f"visual.blocks.{i}" for i in range(12)],
        "text.embed",
        *[f"text.blocks.{i}" for i in range(8)],
        "logit_scale",
    ]
    towers = (
        [r"visual\.embed", r"visual\.blocks\.(\d+)"],
        [r"text\.embed", r"text\.blocks\.(\d+)"],
    )
    labels = olr.label_by_depth([towers, "logit_scale"]).resolve(dict.fromkeys(names, jnp.ones(1)))
    assert labels["visual.embed"] == 0 and labels["text.embed"] == 4
    assert labels["visual.blocks.11"] == labels["text.blocks.7"] == 12
    assert labels["visual.blocks.3"] == 4 and labels["text.blocks.0"] == 5 and labels["logit_scale"] == 13


def test_groups_of_a_text_that_is_no_number_are_told_how_to_be_written(unhooked):
    params = dict.fromkeys(["patch_embed", "pos_embed", "block_0", "block_1", "norm", "head"], jnp.ones(3))
    written = [r"(patch|pos)_embed", r"block_(\d+)", r"norm|head"]
    with pytest.raises(ValueError, match="holds 'patch'") as refusal:
        unhooked.label_by_depth(written).resolve(params)
    assert str(refusal.value) == (
        "patterns has '(patch|pos)_embed', where a group holds 'patch', which is no number. A group is for the "
        r"number of a layer, as in 'block_(\d+)'; write '(?:patch|pos)_embed' to give all that matches one depth."
    )
    mended = [r"(?:patch|pos)_embed", r"block_(\d+)", r"(?:norm|head)"]
    assert unhooked.label_by_depth(mended).resolve(params)["head"] == 3


@pytest.mark.parametrize(
    ("pattern", "number", "rewritten"),
    [
        (r"\((a)[(]((b))", 1, r"\((a)[(](?:(b))"),
        (r"(?:x)(?P<name>\d+)(y)", 0, r"(?:x)(?:\d+)(y)"),
        (r"(?:x)(?P<name>\d+)(y)", 1, r"(?:x)(?P<name>\d+)(?:y)"),
        (r"[]()](a)", 0, r"[]()](?:a)"),
    ],
)
def test_a_group_is_rewritten_so_that_it_captures_nothing(pattern, number, rewritten):
    from optax_lr.layers.patterns import without_group

    assert without_group(pattern, number) == rewritten
    assert re.compile(rewritten).groups == re.compile(pattern).groups - 1


REFUSALS = {
    "nothing before": (
        lambda olr: olr.label_by_depth([olr.at_depth("a", joins_previous=True), "b"]).resolve(
            {"a": 1.0, "b": 1.0}
        ),
        "patterns has at_depth('a', joins_previous=True), but no layer comes before it.",
    ),
    "no stacked axis": (
        lambda olr: olr.label_by_depth([olr.at_depth(".*", stacked_axis=1)]).resolve({"a": jnp.ones(3)}),
        "patterns has at_depth('.*', stacked_axis=1), but 'a' has the shape (3,): without such an axis it holds no "
        "stacked layers.",
    ),
    "stacked and joined": (
        lambda olr: olr.at_depth(".*", stacked_axis=0, joins_previous=True),
        "stacked_axis must be the axis of layers with depths of their own, got 0.",
    ),
    "empty": (
        lambda olr: olr.label_by_depth([]),
        "patterns must hold at least one regular expression, got [].",
    ),
    "idle in a tower": (
        lambda olr: olr.label_by_depth([(["a"], ["b"])]).resolve({"a": 1.0}),
        "patterns has 'b', which matches no parameter: there is 'a'.",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_does_not_fit_is_refused_in_one_sentence(name, unhooked):
    act, sentence = REFUSALS[name]
    with pytest.raises(ValueError, match=r"\S") as refusal:
        act(unhooked)
    assert str(refusal.value) == sentence
