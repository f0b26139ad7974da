"""Windowed and multi-scale attention: where every token lies, against each library's own partition; rollout, densely."""

import pytest
import torch
import torch.nn.functional as F

import attncompare as ac
from attncompare.capture.forward_pass import record
from attncompare.errors import SpecError, UnsupportedMethodError
from attncompare.inspection.layout import TokenLayout
from attncompare.signals._base import request

WINDOWS = request("window_attention")
HIERARCHY = request("attention_hierarchy")


def recorded(model, images, need=WINDOWS):
    return record(model, images, [need]).signals[need]


def positions(h, w):
    return torch.arange(h * w).reshape(h, w)


def windows_of(grid, window, shift=0):
    """(W,k) positions of non-overlapping windows of a grid whose origin was rolled by `shift`, as Swin's paper has it."""
    grid = grid.roll((-shift, -shift), dims=(0, 1))
    h, w = grid.shape
    cut = grid.reshape(h // window, window, w // window, window)
    return cut.permute(0, 2, 1, 3).reshape(-1, window * window)


def hf_swin(kind="Swin"):
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        image_size=32, patch_size=2, embed_dim=24, depths=[2, 1], num_heads=[2, 2], window_size=4, num_labels=5
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(transformers, f"{kind}ForImageClassification")(config).eval()


def timm_swin(**options):
    from timm.models.swin_transformer import SwinTransformer

    sizes = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 24, "depths": (2, 1), "num_heads": (2, 2)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SwinTransformer(**{**sizes, **options}, num_classes=5).eval()


def torchvision_swin(block="SwinTransformerBlock", merging="PatchMerging", size=4):
    from torchvision.models import SwinTransformer, swin_transformer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SwinTransformer(
            [2, 2], 24, [2, 1], [2, 2], [size, size], num_classes=5, block=getattr(swin_transformer, block),
            downsample_layer=getattr(swin_transformer, merging),
        ).eval()  # fmt: skip


SWINS = {
    "timm": timm_swin,
    "timm v2": lambda: __import__("timm").models.swin_transformer_v2.SwinTransformerV2(
        img_size=32, patch_size=2, window_size=4, embed_dim=24, depths=(2, 1), num_heads=(2, 2), num_classes=5
    ).eval(),
    "torchvision": torchvision_swin,
    "torchvision v2": lambda: torchvision_swin("SwinTransformerBlockV2", "PatchMergingV2"),
    "transformers": hf_swin,
    "transformers v2": lambda: hf_swin("Swinv2"),
}  # fmt: skip


@pytest.fixture(scope="module")
def swins():
    return {name: ac.wrap_model(build(), size=(32, 32), name=name) for name, build in SWINS.items()}


def images_of(model, count=2):
    return torch.rand(count, 3, *model.size, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", SWINS)
def test_every_swin_has_its_windows_un_shifted(swins, name):
    found = [block.geometry for block in swins[name].structure.windows]
    assert [geometry.grid for geometry in found] == [(16, 16), (16, 16), (8, 8)]
    expected = [
        windows_of(positions(16, 16), 4),
        windows_of(positions(16, 16), 4, shift=2),
        windows_of(positions(8, 8), 4),
    ]
    for geometry, keys in zip(found, expected, strict=True):
        assert torch.equal(geometry.keys, keys)
        assert torch.equal(geometry.queries, keys)


@pytest.mark.parametrize("name", SWINS)
def test_rows_sum_to_one_and_a_window_keeps_to_itself(swins, name):
    model = swins[name]
    for block, heads in zip(recorded(model, images_of(model)), (2, 2, 2), strict=True):
        assert block.values.shape[:3] == (2, len(block.geometry.keys), heads)
        torch.testing.assert_close(block.weights().sum(-1), torch.ones(block.weights().shape[:-1]))
        torch.testing.assert_close(
            block.scatter(block.weights().mean(2)).sum((1, 2)), torch.full((2,), 1.0 * len(block.geometry.keys))
        )


@pytest.mark.parametrize("kind", ["Swin", "Swinv2"])
def test_the_weights_are_those_that_transformers_returns(kind):
    module = hf_swin(kind)
    model = ac.wrap_model(module, size=(32, 32))
    images = images_of(model)
    with torch.no_grad():
        module.set_attn_implementation("eager")
        expected = module((images - 0.5) / 0.5, output_attentions=True).attentions
    ends_of_stages = [recorded(model, images)[number] for number in (1, 2)]  # transformers returns one per stage
    for ours, theirs in zip(ends_of_stages, expected, strict=True):
        torch.testing.assert_close(ours.values.flatten(0, 1), theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", SWINS)
def test_a_shifted_window_sees_nothing_beyond_the_border(swins, name):
    """The windows of shifted blocks hold patches of opposite borders, which the mask keeps apart."""
    block = recorded(swins[name], images_of(swins[name]))[1]
    keys = block.geometry.keys
    far = (keys[:, :, None] // 16 - keys[:, None, :] // 16).abs() > 4
    assert far.any()
    assert float(block.values[:, far.nonzero()[:, 0], :, far.nonzero()[:, 1], far.nonzero()[:, 2]].max()) < 1e-6


def test_padding_is_told_from_the_image():
    model = ac.wrap_model(torchvision_swin(size=6), size=(32, 32))
    block = recorded(model, images_of(model))[0]
    geometry = block.geometry
    padded = F.pad(positions(16, 16) + 1, (0, 2, 0, 2)) - 1
    assert torch.equal(geometry.keys, windows_of(padded, 6))
    weights = block.weights()
    real = geometry.queries >= 0
    torch.testing.assert_close(weights.sum(-1)[:, real], torch.ones(2, int(real.sum())))
    assert not weights[:, ~real].any()
    assert not weights.transpose(2, 3)[:, ~real].any()
    shown = ac.explain_together(model, ["hierarchical_rollout"], images_of(model), 0)["hierarchical_rollout"].values
    torch.testing.assert_close(shown.sum((1, 2)), torch.ones(2))


def test_maxvit_has_blocks_and_grids():
    from torchvision.models import MaxVit

    model = ac.wrap_model(
        MaxVit((64, 64), 8, 4, [16], [1], head_dim=4, stochastic_depth_prob=0.0, num_classes=5).eval(), size=(64, 64)
    )
    block, grid = (w.geometry.keys for w in model.structure.windows)
    assert torch.equal(block, windows_of(positions(16, 16), 4))
    spread = positions(16, 16).reshape(4, 4, 4, 4).permute(1, 3, 0, 2).reshape(-1, 16)  # one of every 4 x 4, apart
    assert torch.equal(grid, spread)


def test_levit_reduces_its_grid_inside_attention(tiny):
    blocks = [block.geometry for block in tiny("levit").structure.windows]
    assert [(g.grid, g.query_grid) for g in blocks] == [((8, 8), (8, 8)), ((8, 8), (4, 4)), ((4, 4), (4, 4))]
    assert torch.equal(blocks[1].keys[0], torch.arange(64))
    assert torch.equal(blocks[1].queries[0], torch.arange(16))


@pytest.mark.parametrize("name", SWINS)
def test_window_attention_is_the_mean_over_queries_of_what_a_position_receives(swins, name):
    model, images = swins[name], images_of(swins[name])
    blocks = recorded(model, images)
    for number, block in enumerate(blocks):
        h, w = block.geometry.grid
        expected = torch.zeros(2, h * w)
        for image in range(2):
            for window, keys in enumerate(block.geometry.keys):
                for place, key in enumerate(keys):
                    expected[image, key] = block.values[image, window, :, :, place].mean()
        shown = ac.make_explainer(model, "window_attention", block=number).explain(images).values
        torch.testing.assert_close(shown, expected.reshape(2, h, w), atol=1e-6, rtol=1e-5)
    one = ac.make_explainer(model, "window_attention", block=0, head=1).explain(images).values
    other = ac.make_explainer(model, "window_attention", block=0, head=0).explain(images).values
    both = ac.make_explainer(model, "window_attention", block=0).explain(images).values
    torch.testing.assert_close((one + other) / 2, both, atol=1e-7, rtol=1e-5)


def dense(block):
    """(N,N) float64 matrix of the first image's block, over the whole grid, written out entry by entry."""
    h, w = block.geometry.grid
    matrix = torch.zeros(h * w, h * w, dtype=torch.float64)
    for window, keys in enumerate(block.geometry.keys):
        for i, query in enumerate(keys):
            for j, key in enumerate(keys):
                matrix[query, key] = block.values[0, window, :, i, j].double().mean()
    return matrix


@pytest.mark.parametrize("name", SWINS)
def test_hierarchical_rollout_is_the_product_of_dense_matrices(swins, name):
    model, images = swins[name], images_of(swins[name], 1)
    first, second, third = (dense(block) for block in recorded(model, images, HIERARCHY))
    merge = torch.zeros(64, 256, dtype=torch.float64)  # a token of the 8 x 8 grid is the mean of 2 x 2 finer ones
    for y in range(16):
        for x in range(16):
            merge[(y // 2) * 8 + x // 2, y * 16 + x] = 1 / 4

    def half(matrix):
        return (matrix + torch.eye(len(matrix), dtype=torch.float64)) / 2

    expected = (torch.full((1, 64), 1 / 64, dtype=torch.float64) @ half(third) @ merge @ half(second) @ half(first))[0]
    shown = ac.make_explainer(model, "hierarchical_rollout").explain(images).values[0]
    torch.testing.assert_close(shown.double().flatten(), expected, atol=1e-7, rtol=0)
    assert float(shown.sum()) == pytest.approx(1, abs=1e-5)


def test_hierarchical_rollout_through_a_reduction(tiny):
    model = tiny("levit")
    images = images_of(model, 1)
    first, reduction, last = recorded(model, images, HIERARCHY)
    matrices = [b.values[0, 0].double().mean(0) for b in (first, reduction, last)]
    identity = [torch.eye(len(m), dtype=torch.float64) for m in matrices]
    flow = torch.full((1, 16), 1 / 16, dtype=torch.float64)
    flow = flow @ (matrices[2] + identity[2]) / 2 @ matrices[1] @ (matrices[0] + identity[0]) / 2
    shown = ac.make_explainer(model, "hierarchical_rollout").explain(images).values[0]
    torch.testing.assert_close(shown.double().flatten(), flow[0], atol=1e-7, rtol=0)


def test_grids_that_do_not_divide_share_their_cells():
    from attncompare.methods.hierarchical_rollout import _onto

    flow = torch.tensor([[[1.0, 2.0]]])
    torch.testing.assert_close(_onto(flow, (1, 3)), torch.tensor([[[1 / 1.5, 0.5 / 1.5 + 1.0 / 1.5, 2 / 1.5]]]))
    assert float(_onto(torch.rand(1, 7, 7), (27, 27)).sum()) > 0


def test_plain_rollout_is_refused_where_attention_lies_in_windows(swins):
    with pytest.raises(UnsupportedMethodError, match="use window_attention or hierarchical_rollout"):
        ac.make_explainer(swins["timm"], "attention_rollout")


def test_a_block_or_head_that_does_not_exist_is_refused(swins):
    images = images_of(swins["timm"])
    with pytest.raises(SpecError, match="block=3: the model has blocks 0 to 2"):
        ac.make_explainer(swins["timm"], "window_attention", block=3).explain(images)
    with pytest.raises(SpecError, match="head=2: block -1 has heads 0 to 1"):
        ac.make_explainer(swins["timm"], "window_attention", head=2).explain(images)


def test_reduced_keys_are_refused_with_the_reason():
    from timm.models.pvt_v2 import PyramidVisionTransformerV2

    sizes = {"depths": (1, 1), "embed_dims": (16, 32), "num_heads": (1, 2), "sr_ratios": (4, 1), "mlp_ratios": (2, 2)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ac.wrap_model(PyramidVisionTransformerV2(**sizes, num_classes=5).eval(), size=(64, 64))
    assert "1 of its 2 attention blocks" in model.missing["attention_hierarchy"]
    assert "positions are mixed before it" in model.missing["attention_hierarchy"]
    assert [block.path for block in model.structure.windows] == ["stages.1.blocks.0.attn"]


def test_attention_between_channels_is_not_taken_for_attention_between_as_many_tokens(tiny):
    """The tiny XCiT has 16 tokens and 16 channels per head: its channel attention has the shape of token attention."""
    model = tiny("xcit")
    assert model.structure.attention_blocks == ("cls_attn_blocks.0.attn", "cls_attn_blocks.1.attn")
    assert model.structure.pooling_blocks == model.structure.attention_blocks
    assert model.attention_tokens == TokenLayout(1, (4, 4), 0)
    assert "class_attention" in model.supplies


def test_as_many_channels_per_head_as_tokens_is_still_token_attention():
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = VisionTransformer(**sizes, global_pool="avg", class_token=False).eval()
    for block in module.blocks:
        for fused in (True, False):
            block.attn.fused_attn = fused
            model = ac.wrap_model(module, size=(32, 32))
            assert model.structure.attention_blocks == ("blocks.0.attn", "blocks.1.attn")


def test_class_attention_blocks_join_the_flow_of_the_patches(tiny):
    """CaiT: the class token exists in the last two blocks only, which leave the patches as they are."""
    model = tiny("cait")
    images = images_of(model, 1)
    needs = [request("attention"), request("class_attention")]
    found = record(model, images, needs).signals
    attention = [block[0].double().mean(0) for block in found[needs[0]]]
    assert [block.shape for block in attention] == [(17, 17)] * 4
    for block in attention[:2]:  # the patches' own blocks
        assert block[0, 0] == 1
        assert not block[0, 1:].any()
        assert not block[1:, 0].any()
    for block in attention[2:]:
        assert torch.equal(block[1:], torch.eye(17, dtype=torch.float64)[1:])
    assert [rows.shape for rows in found[needs[1]]] == [(1, 3, 17)] * 2
    torch.testing.assert_close(found[needs[1]][-1][0].double().mean(0), attention[-1][0])

    patches = torch.eye(16, dtype=torch.float64)
    for block in attention[:2]:
        patches = (block[1:, 1:] + torch.eye(16, dtype=torch.float64)) / 2 @ patches
    token = torch.zeros(17, dtype=torch.float64)
    token[0] = 1
    rows = torch.eye(17, dtype=torch.float64)
    rows[1:, 1:] = patches
    for block in attention[2:]:
        rows = torch.cat([((block[0] + token) / 2 @ rows)[None], rows[1:]])
    shown = ac.make_explainer(model, "attention_rollout").explain(images).values[0]
    torch.testing.assert_close(shown.double().flatten(), rows[0, 1:], atol=1e-7, rtol=0)


def test_talking_heads_are_recorded_before_they_are_mixed(tiny):
    model = tiny("cait")
    seen = []
    handle = model.module.blocks[0].attn.attn_drop.register_forward_hook(lambda m, a, out: seen.append(out))
    try:
        need = request("attention")
        block = record(model, images_of(model), [need]).signals[need][0]
    finally:
        handle.remove()
    torch.testing.assert_close(block.sum(-1), torch.ones(block.shape[:-1]))
    mixed = model.module.blocks[0].attn.proj_w(block[:, :, 1:, 1:].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(mixed, seen[0], atol=1e-6, rtol=1e-5)
    assert (seen[0].sum(-1) - 1).abs().max() > 1e-2  # after mixing they are no attention


def test_an_attention_pool_is_read_by_its_own_query(tiny):
    """As in SigLIP: a latent query attends to all patches."""
    model = tiny("vit_map_pool")
    images = images_of(model)
    pool, seen = model.module.attn_pool, []
    handle = pool.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        shown = ac.make_explainer(model, "class_attention").explain(images).values
    finally:
        handle.remove()
    with torch.no_grad():
        query = pool.q(pool.latent.expand(2, -1, -1)).reshape(2, 1, pool.num_heads, -1).transpose(1, 2)
        keys = pool.kv(seen[0]).reshape(2, 16, 2, pool.num_heads, -1)[:, :, 0].transpose(1, 2)
        weights = (query @ keys.transpose(-2, -1) * pool.scale).softmax(-1).mean(1)[:, 0]
    torch.testing.assert_close(shown.flatten(1), weights, atol=1e-6, rtol=1e-5)


def test_class_attention_alone_where_what_is_before_has_no_flow(tiny):
    model = tiny("xcit")
    images = images_of(model)
    shown = ac.make_explainer(model, "class_attention").explain(images).values
    assert shown.shape == (2, 4, 4)
    assert float(shown.sum((1, 2)).max()) < 1  # the class token keeps a share
    with pytest.raises(UnsupportedMethodError, match="only its last blocks attend globally"):
        ac.make_explainer(model, "attention_rollout")
