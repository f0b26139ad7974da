"""Methods that read gradients at the pixels, derived in float64: (adapter, images, target) -> (B,H,W)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from references.cams import grad_cam
from references.plain import Plain, enlarged


def gradient(plain: Plain, images: Tensor, target: Tensor) -> Tensor:
    images = images.double().detach().requires_grad_(True)
    return torch.autograd.grad(plain.score(images, target).sum(), images)[0]


def saliency(adapter, images, target):
    return gradient(Plain(adapter), images, target).abs().amax(dim=1)


def input_x_gradient(adapter, images, target):
    return (images.double() * gradient(Plain(adapter), images, target)).sum(dim=1)


def integrated_gradients(adapter, images, target, n_steps=50, baseline=0.0):
    """Gauss-Legendre points and weights from numpy."""
    import numpy as np

    plain, total = Plain(adapter), torch.zeros(images.shape, dtype=torch.float64)
    for point, weight in zip(*np.polynomial.legendre.leggauss(n_steps), strict=True):
        at = baseline + (1 + point) / 2 * (images.double() - baseline)
        total += weight / 2 * gradient(plain, at, target)
    return ((images.double() - baseline) * total).sum(dim=1)


def smooth_grad(adapter, images, target, n_samples=25, sigma=0.15, seed=0):
    plain, total = Plain(adapter), torch.zeros(images.shape, dtype=torch.float64)
    for sample in range(n_samples):
        noise = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(seed + sample)).double()
        total += gradient(plain, images.double() + sigma * noise, target) / n_samples
    return total.abs().amax(dim=1)


def gradient_shap(adapter, images, target, n_samples=50, sigma=0.0, seed=0):
    """The same draws: a gray level, a place on the way, and noise, one generator for each sample."""
    plain, total = Plain(adapter), torch.zeros(images.shape, dtype=torch.float64)
    for sample in range(n_samples):
        generator = torch.Generator().manual_seed(seed + sample)
        gray, along = (float(one) for one in torch.rand(2, generator=generator))
        noise = torch.randn(images.shape[1:], generator=generator).double()
        for index in range(len(images)):
            noisy = images[index].double() + sigma * noise
            point = (1 - along) * gray + along * noisy
            found = gradient(plain, point[None], target[index : index + 1])[0]
            total[index] += (noisy - gray) * found / n_samples
    return total.sum(dim=1)


def layers_of(module: nn.Module) -> list[nn.Module]:
    """The layers of nested nn.Sequential containers, in order."""
    if isinstance(module, nn.Sequential):
        return [layer for child in module for layer in layers_of(child)]
    return [module]


def backwards(layers: list[nn.Module], inputs: list[Tensor], gradient: Tensor, rule) -> Tensor:
    """The gradient handed from the last layer to the first; `rule` (layer, input, gradient) may answer for a layer."""
    for layer, x in zip(reversed(layers), reversed(inputs), strict=True):
        own = rule(layer, x, gradient)
        if own is None:
            x = x.detach().clone().requires_grad_(True)
            own = torch.autograd.grad(layer(x.clone()), x, gradient)[0]
        gradient = own
    return gradient


def one_by_one(layers: list[nn.Module], x: Tensor) -> tuple[list[Tensor], Tensor]:
    """What each layer is given, and the output."""
    inputs = []
    for layer in layers:
        inputs.append(x.clone())
        x = layer(x.clone())
    return inputs, x


def guided(adapter, images, target) -> Tensor:
    """(B,3,H,W) guided gradient of a sequence of layers: a ReLU keeps what is positive, where its input was."""
    plain = Plain(adapter)
    layers = layers_of(plain.module)
    inputs, logits = one_by_one(layers, plain.normalized(images))
    seed = torch.zeros_like(logits)
    for row, index in enumerate(target):
        seed[row, int(index)] = 1

    def rule(layer, x, gradient):
        if isinstance(layer, nn.ReLU):
            return torch.where((x > 0) & (gradient > 0), gradient, torch.zeros_like(gradient))
        return None

    return backwards(layers, inputs, seed, rule) / plain.std


def guided_backprop(adapter, images, target):
    return guided(adapter, images, target).abs().amax(dim=1)


def guided_grad_cam(adapter, images, target):
    coarse = grad_cam(adapter, images, target)
    large = torch.stack([enlarged(one, *images.shape[2:]) for one in coarse])
    return (guided(adapter, images, target) * large[:, None]).abs().amax(dim=1)


def deep_lift(adapter, images, target, baseline=0.0):
    """Multipliers of a sequence of layers, one image after the other; what max pooling does, window by window."""
    plain, maps = Plain(adapter), []
    layers = layers_of(plain.module)
    reference = torch.full_like(images[:1], baseline, dtype=torch.float64)
    others, start = one_by_one(layers, plain.normalized(reference))
    for image, index in zip(images, target, strict=True):
        inputs, _ = one_by_one(layers, plain.normalized(image[None]))
        seed = F.one_hot(torch.tensor([int(index)]), start.shape[1]).double()
        multiplier = seed
        for layer, x, x0 in zip(reversed(layers), reversed(inputs), reversed(others), strict=True):
            multiplier = _multiplier(layer, x, x0, multiplier)
        maps.append(((image.double() - baseline) * multiplier[0] / plain.std[0]).sum(dim=0))
    return torch.stack(maps)


def _multiplier(layer: nn.Module, x: Tensor, x0: Tensor, behind: Tensor) -> Tensor:
    if isinstance(layer, nn.MaxPool2d):
        return max_pool_multiplier(x, x0, behind, layer.kernel_size, layer.stride, layer.padding)
    if isinstance(layer, nn.ReLU | nn.Tanh | nn.GELU):
        change, same = x - x0, x == x0
        at = x.clone().requires_grad_(True)
        slope = torch.autograd.grad(layer(at.clone()).sum(), at)[0]
        quotient = (layer(x.clone()) - layer(x0.clone())) / torch.where(same, 1, change)
        return behind * torch.where(same, slope, quotient)
    at = x.clone().requires_grad_(True)
    return torch.autograd.grad(layer(at), at, behind)[0]


def max_pool_multiplier(x: Tensor, x0: Tensor, behind: Tensor, side: int, stride: int, padding: int) -> Tensor:
    """Each window: the image's maximum is credited where it exceeds the reference's, the reference's where it is larger.

    With m the larger of the two maxima, the change of the window is (m - y0) from where the image has its maximum, and
    (y - m) from where the reference has its own; a place gets the sum of its credits over its change.
    """
    credit, plain = torch.zeros_like(x), torch.zeros_like(x)
    _, channels, height, width = x.shape
    for channel in range(channels):
        for row in range(behind.shape[2]):
            for column in range(behind.shape[3]):
                places = [
                    (i, j)
                    for i in range(row * stride - padding, row * stride - padding + side)
                    for j in range(column * stride - padding, column * stride - padding + side)
                    if 0 <= i < height and 0 <= j < width
                ]
                at = max(places, key=lambda place: float(x[0, channel, place[0], place[1]]))
                at0 = max(places, key=lambda place: float(x0[0, channel, place[0], place[1]]))
                y, y0 = x[0, channel, at[0], at[1]], x0[0, channel, at0[0], at0[1]]
                larger, share = torch.maximum(y, y0), behind[0, channel, row, column]
                credit[0, channel, at[0], at[1]] += share * (larger - y0)
                credit[0, channel, at0[0], at0[1]] += share * (y - larger)
                plain[0, channel, at[0], at[1]] += share
    change = x - x0
    return torch.where(change == 0, plain, credit / torch.where(change == 0, 1, change))
