import torch
from torchvision import models

from attncompare import load_model


def test_a_vit_without_weights_is_given_images_of_the_size_it_is_built_for(monkeypatch):
    """The default weights of vit_h_14 are for 518 pixels; without weights torchvision builds it for 224."""
    built = []

    def small(name, **options):
        built.append((name, options))
        return models.VisionTransformer(
            image_size=224, patch_size=56, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=16
        )

    monkeypatch.setattr(models, "get_model", small)
    model = load_model("torchvision/vit_h_14@random")
    assert built == [("vit_h_14", {"weights": None})]
    assert model.size == (224, 224)
    with torch.no_grad():
        assert model.forward(torch.rand(1, 3, *model.size)).shape == (1, 1000)
