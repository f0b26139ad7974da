import timm
import torch

import attncompare as ac
from attncompare.capture.forward_pass import record
from attncompare.signals._base import request


def test_what_patches_gain_is_not_lost_beside_the_identity_where_tokens_are_averaged():
    """Beside the identity, 1/16 for every patch, this map would be rounded to some dozens of levels in float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = timm.models.VisionTransformer(
            img_size=64, patch_size=16, embed_dim=32, depth=3, num_heads=2, class_token=False, global_pool="avg",
            num_classes=5, init_values=1e-3,
        )  # fmt: skip
    model = ac.wrap_model(net.eval(), size=(64, 64))
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    needs = [request("attention"), request("attention_gradients")]
    recorded = record(model, images, needs).signals
    product = torch.eye(16, dtype=torch.float64).repeat(2, 1, 1)
    for weights, gradients in zip(*(recorded[need] for need in needs), strict=True):
        product = product + (weights.double() * gradients.double()).clamp(min=0).mean(dim=1) @ product
    expected = (product - torch.eye(16)).mean(dim=1).reshape(2, 4, 4)
    assert 0 < expected.max() < 1e-5 / 16
    found = ac.make_explainer(model, "gradient_rollout").explain(images).values.double()
    assert (found - expected).abs().max() < 1e-4 * (expected.amax() - expected.amin())
