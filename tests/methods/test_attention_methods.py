"""Rollout, gradient rollout and class attention, each derived again with loops in float64."""

import numpy as np
import pytest
import torch

import attncompare as ac
from attncompare.capture.forward_pass import record
from attncompare.errors import SpecError
from attncompare.inspection.layout import TokenLayout
from attncompare.methods.attention_rollout import attention_rollout
from attncompare.methods.class_attention import class_attention
from attncompare.methods.gradient_rollout import gradient_rollout
from attncompare.signals._base import request

CLASS_TOKEN = TokenLayout(prefix=1, grid=(2, 3), class_token=0)
TWO_TOKENS = TokenLayout(prefix=2, grid=(2, 3), class_token=(0, 1))
REGISTERS = TokenLayout(prefix=5, grid=(2, 3), class_token=0)
POOLED = TokenLayout(prefix=0, grid=(2, 3), class_token=None)
LAYOUTS = [CLASS_TOKEN, TWO_TOKENS, REGISTERS, POOLED]


def softmax_rows(seed, tokens, heads=3, images=2):
    """(B,heads,N,N) float64 attention with clearly different values."""
    scores = torch.randn(
        images, heads, tokens, tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return (2 * scores).softmax(dim=-1)


def blocks_of(layout, count=4):
    return [softmax_rows(seed, layout.length) for seed in range(count)]


def read_row(flow, layout):
    """(N,N) -> (h,w): the mean of the rows that the score is read from, prefix columns dropped, row by row."""
    height, width = layout.grid
    patches = range(layout.prefix, layout.prefix + height * width)
    rows = {int: lambda c: [c], tuple: list, type(None): lambda c: list(patches)}[type(layout.class_token)](
        layout.class_token
    )
    grid = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            token = layout.prefix + row * width + column
            grid[row, column] = np.mean([flow[query, token] for query in rows])
    return grid


def half_identity_product(steps):
    """R = A'_L ... A'_1 of one image, with A' = (A + I) / 2 and the rows of A made to sum to 1."""
    flow = np.eye(len(steps[0]))
    for step in steps:
        rows = np.stack([row / row.sum() for row in step])
        flow = (0.5 * rows + 0.5 * np.eye(len(rows))) @ flow
    return flow


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_rollout_is_the_product_of_half_identity_steps(layout):
    blocks = blocks_of(layout)
    actual = attention_rollout([block.mean(dim=1) for block in blocks], layout)
    for image in range(2):
        expected = half_identity_product([block[image].numpy().mean(axis=0) for block in blocks])
        np.testing.assert_allclose(actual[image], read_row(expected, layout), atol=1e-12)


def test_rollout_multiplies_later_blocks_from_the_left():
    blocks = [block.mean(dim=1) for block in blocks_of(CLASS_TOKEN, count=2)]
    forwards, backwards = (attention_rollout(order, CLASS_TOKEN) for order in (blocks, blocks[::-1]))
    assert (forwards - backwards).abs().max() > 1e-3


@pytest.mark.parametrize("fusion", ["max", "min"])
def test_rollout_renormalizes_heads_fused_by_max_or_min(fusion):
    fuse = {"max": np.max, "min": np.min}[fusion]
    blocks = blocks_of(CLASS_TOKEN)
    fused = [block.amax(dim=1) if fusion == "max" else block.amin(dim=1) for block in blocks]
    actual = attention_rollout(fused, CLASS_TOKEN)
    for image in range(2):
        expected = half_identity_product([fuse(block[image].numpy(), axis=0) for block in blocks])
        np.testing.assert_allclose(actual[image], read_row(expected, CLASS_TOKEN), atol=1e-12)


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
def test_the_fusion_option_fuses_the_heads_that_were_recorded(tiny, pictures, fusion):
    model = tiny("vit")
    images = pictures(model)
    actual = ac.make_explainer(model, "attention_rollout", head_fusion=fusion).explain(images).values
    need = request("attention")
    blocks = record(model, images, [need]).signals[need]
    for image in range(2):
        steps = [getattr(block[image].double().numpy(), fusion)(axis=0) for block in blocks]
        expected = read_row(half_identity_product(steps), model.tokens)
        np.testing.assert_allclose(actual[image], expected, rtol=1e-4)


def without_smallest(attention, share, prefix):
    """(N,N) with the smallest share of all values outside the prefix columns set to 0, one at a time."""
    kept = attention.copy()
    for _ in range(int(share * attention[:, prefix:].size)):
        patches = np.where(kept[:, prefix:] > 0, kept[:, prefix:], np.inf)
        row, column = np.unravel_index(patches.argmin(), patches.shape)
        kept[row, prefix + column] = 0
    return kept


@pytest.mark.parametrize("layout", [CLASS_TOKEN, TWO_TOKENS], ids=str)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_discarding_zeroes_each_images_smallest_values(layout, share):
    blocks = blocks_of(layout)
    actual = attention_rollout([block.mean(dim=1) for block in blocks], layout, discard_ratio=share)
    for image in range(2):
        heads_mean = [block[image].numpy().mean(axis=0) for block in blocks]
        steps = [without_smallest(attention, share, layout.prefix) for attention in heads_mean]
        np.testing.assert_allclose(actual[image], read_row(half_identity_product(steps), layout), atol=1e-12)


def test_discarding_never_drops_the_class_column():
    attention = softmax_rows(0, CLASS_TOKEN.length).mean(dim=1)
    attention[:, :, 0] = 1e-6  # smaller than every patch value
    everything = attention_rollout([attention], CLASS_TOKEN, discard_ratio=0.5)
    half_step = without_smallest(attention[0].numpy(), 0.5, 1)
    assert (half_step[:, 0] == 1e-6).all()
    np.testing.assert_allclose(everything[0], read_row(half_identity_product([half_step]), CLASS_TOKEN), atol=1e-12)


def test_discarding_stays_finite_where_a_row_loses_everything():
    attention = softmax_rows(0, POOLED.length, images=1).mean(dim=1)
    attention[0, 2] *= 1e-6  # with no class column to keep, this query keeps nothing
    rolled = attention_rollout([attention, attention], POOLED, discard_ratio=0.5)
    assert torch.isfinite(rolled).all()


@pytest.mark.parametrize("share", [-0.5, 1.5])
def test_a_discarded_share_outside_zero_to_one_is_refused(tiny, pictures, share):
    model = tiny("vit")
    with pytest.raises(SpecError, match="discard_ratio"):
        ac.make_explainer(model, "attention_rollout", discard_ratio=share).explain(pictures(model))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_gradient_rollout_adds_the_positive_part_of_gradient_times_attention(layout):
    blocks = blocks_of(layout)
    gradients = [
        torch.randn(block.shape, generator=torch.Generator().manual_seed(9 + i), dtype=torch.float64)
        for i, block in enumerate(blocks)
    ]
    actual = gradient_rollout(blocks, gradients, layout)
    for image in range(2):
        relevance = np.eye(layout.length)
        for block, gradient in zip(blocks, gradients, strict=True):
            step = np.zeros_like(relevance)
            for head in range(3):
                step += np.maximum(gradient[image, head].numpy() * block[image, head].numpy(), 0) / 3
            relevance = relevance + step @ relevance
        gained = relevance - np.eye(layout.length)  # the identity is the same for every patch
        np.testing.assert_allclose(actual[image], read_row(gained, layout), atol=1e-12)


def test_gradient_rollout_is_empty_where_every_gradient_is_negative():
    blocks = blocks_of(CLASS_TOKEN)
    downhill = [-torch.ones_like(block) for block in blocks]
    assert (gradient_rollout(blocks, downhill, CLASS_TOKEN) == 0).all()


def class_rows(layout):
    """L x (B,heads,N): the mean of the rows that the score is read from."""
    return [block[:, :, layout.rows()].mean(dim=2) for block in blocks_of(layout)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_class_attention_is_the_head_mean_of_the_last_block(layout):
    actual = class_attention(class_rows(layout), layout)
    last = blocks_of(layout)[-1]
    for image in range(2):
        np.testing.assert_allclose(actual[image], read_row(last[image].numpy().mean(axis=0), layout), atol=1e-12)


@pytest.mark.parametrize(("block", "same"), [(0, 0), (2, 2), (-1, 3), (-4, 0)])
def test_class_attention_reads_the_named_block_and_head(block, same):
    actual = class_attention(class_rows(CLASS_TOKEN), CLASS_TOKEN, block=block, head=2)
    attention = blocks_of(CLASS_TOKEN)[same][1, 2].numpy()
    np.testing.assert_allclose(actual[1], read_row(attention, CLASS_TOKEN), atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": 4}, r"block=4: the model has blocks 0 to 3"),
        ({"block": -5}, r"block=-5: the model has blocks 0 to 3"),
        ({"head": 3}, r"head=3: block -1 has heads 0 to 2"),
        ({"block": 1, "head": -1}, r"head=-1: block 1 has heads 0 to 2"),
    ],
)
def test_a_block_or_head_that_does_not_exist_is_refused_with_the_range(options, message):
    with pytest.raises(SpecError, match=message):
        class_attention(class_rows(CLASS_TOKEN), CLASS_TOKEN, **options)


@pytest.mark.parametrize("head", ["first", 1.5])
def test_a_head_that_is_no_number_is_refused(tiny, pictures, head):
    model = tiny("vit")
    with pytest.raises(SpecError, match="head"):
        ac.make_explainer(model, "class_attention", head=head).explain(pictures(model))
