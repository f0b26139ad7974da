"""The gradient of one image is that of the same image in a batch, whatever the strides of what flows back."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attncompare as ac
from attncompare.models.batch_norm import ContiguousNorms

NORMS = {"batch": F.batch_norm, "instance": F.instance_norm}


def with_strides(x: Tensor, kind: str) -> Tensor:
    """The same values as one image of NCHW, of channels last, or of channels last that came from a token sequence."""
    if kind == "nchw":
        return x.clone()
    channels, width = x.shape[1], x.shape[3]
    first = x[0].numel() if kind == "channels last" else channels
    return torch.empty_strided(x.shape, (first, 1, width * channels, channels)).copy_(x)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("inputs", "gradients"), itertools.product(["nchw", "channels last", "tokens"], repeat=2), ids=str
)
def test_the_gradient_does_not_depend_on_strides(norm, inputs, gradients):
    generator = torch.Generator().manual_seed(0)
    x, gradient = (torch.randn(1, 6, 4, 4, generator=generator) for _ in range(2))
    mean, weight, bias = (torch.randn(6, generator=generator) for _ in range(3))
    variance = torch.rand(6, generator=generator) + 0.5
    leaf = with_strides(x, inputs).requires_grad_(True)
    with ContiguousNorms():
        output = NORMS[norm](leaf, mean, variance, weight, bias, False, eps=1e-5)
    (found,) = torch.autograd.grad(output, leaf, with_strides(gradient, gradients))
    scale = (weight / (variance + 1e-5).sqrt())[None, :, None, None]
    torch.testing.assert_close(found, gradient * scale, atol=1e-5, rtol=1e-5)


def test_one_image_has_the_saliency_it_has_in_a_batch():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3))
            self.norm, self.mix, self.head = nn.BatchNorm2d(8), nn.Linear(8, 8), nn.Linear(8, 5)

        def forward(self, images):
            tokens = self.mix(self.norm(self.stem(images)).flatten(2).transpose(1, 2))
            return self.head((tokens * tokens).mean(dim=1))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ac.wrap_model(Tokens().eval(), size=(32, 32))
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    explainer = ac.make_explainer(model, "saliency")
    together = explainer.explain(images, 1).values
    for index in range(3):
        alone = explainer.explain(images[index : index + 1], 1).values[0]
        torch.testing.assert_close(alone, together[index], atol=1e-5 * float(together.max()), rtol=0)
