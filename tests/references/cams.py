"""The CAM family on a layer's features and gradients, channel by channel in float64: (adapter, images, target) -> maps."""

import numpy as np
import torch
from torch import Tensor

from references.plain import Plain, enlarged, features_and_gradients, kept_output, on_image


def _scaled_channels(features: Tensor, weights: Tensor) -> Tensor:
    total = torch.zeros_like(features[:, 0])
    for channel in range(features.shape[1]):
        total += weights[:, channel, None, None] * features[:, channel]
    return total


def activation(adapter, images, target):
    features, _ = features_and_gradients(adapter, images, target)
    return _scaled_channels(features, torch.full(features.shape[:2], 1 / features.shape[1], dtype=torch.float64))


def grad_cam(adapter, images, target):
    features, gradients = features_and_gradients(adapter, images, target)
    return _scaled_channels(features, gradients.mean(dim=(2, 3))).clamp(min=0)


def hires_cam(adapter, images, target):
    features, gradients = features_and_gradients(adapter, images, target)
    return (features * gradients).sum(dim=1)


def layer_cam(adapter, images, target):
    features, gradients = features_and_gradients(adapter, images, target)
    return (features * gradients.clamp(min=0)).sum(dim=1).clamp(min=0)


def grad_cam_pp(adapter, images, target):
    features, gradients = features_and_gradients(adapter, images, target)
    up = gradients.clamp(min=0)
    alpha = up**2 / (2 * up**2 + features.sum(dim=(2, 3), keepdim=True) * up**3)
    alpha = torch.where(up > 0, alpha, torch.zeros_like(alpha))
    weights = torch.where(up > 0, alpha * up, torch.zeros_like(up)).sum(dim=(2, 3))
    return _scaled_channels(features, weights).clamp(min=0)


def xgrad_cam(adapter, images, target):
    features, gradients = features_and_gradients(adapter, images, target)
    total = features.sum(dim=(2, 3), keepdim=True)
    share = torch.where(total == 0, torch.zeros_like(features), features / torch.where(total == 0, 1, total))
    return _scaled_channels(features, (share * gradients).sum(dim=(2, 3)))


def eigen_cam(adapter, images, target):
    """Its sign is that which agrees with the mean of the channels."""
    features, _ = features_and_gradients(adapter, images, target)
    maps = []
    for one in features:
        places = one.flatten(1).T.numpy()
        direction = np.linalg.eigh(places.T @ places)[1][:, -1]
        projected = places @ direction
        maps.append((projected * np.sign(projected @ places.mean(axis=1))).reshape(one.shape[1:]))
    return torch.from_numpy(np.stack(maps))


def cam(adapter, images, target):
    """The linear layer's row of the target, on what average pooling reads."""
    classifier = adapter.structure.classifier
    features, _ = features_and_gradients(adapter, images, target, classifier.feature_module)
    weights = adapter.module.get_submodule(classifier.linear).weight.detach().double().flatten(1)
    return _scaled_channels(features, weights[target])


def behind(adapter, plain: Plain, image: Tensor, replacement):
    """(K,) logits of one image where the feature layer returns what `replacement` makes of its own output."""
    layer = plain.module.get_submodule(adapter.structure.feature_layer)
    hook = layer.register_forward_hook(lambda module, args, output: replacement(output.clone()))
    try:
        with torch.no_grad():
            return plain(image[None])[0]
    finally:
        hook.remove()


def without_channel(adapter, channel: int):
    """What a hook returns to silence one channel at every place; prefix tokens keep theirs."""

    def silence(output: Tensor) -> Tensor:
        if output.ndim == 3:
            output[:, adapter.tokens.prefix :, channel] = 0
        elif adapter.family == "hierarchical":
            output[..., channel] = 0
        else:
            output[:, channel] = 0
        return output

    return silence


def ablation_cam(adapter, images, target):
    features, _ = features_and_gradients(adapter, images, target)
    plain = Plain(adapter)
    with torch.no_grad():
        scores = plain.score(images, target)
    weights = torch.zeros(features.shape[:2], dtype=torch.float64)
    for index in range(len(images)):
        for channel in range(features.shape[1]):
            without = behind(adapter, plain, images[index], without_channel(adapter, channel))[int(target[index])]
            weights[index, channel] = (scores[index] - without) / scores[index].abs()
    return _scaled_channels(features, weights).clamp(min=0)


def score_cam(adapter, images, target, corners=False):
    features, _ = features_and_gradients(adapter, images, target)
    plain, maps = Plain(adapter), []
    for image, channels, index in zip(images, features, target, strict=True):
        logits = []
        for channel in channels:
            mask = enlarged(channel, *image.shape[1:], corners=corners)
            span = mask.max() - mask.min()
            mask = (mask - mask.min()) / span if span > 0 else torch.zeros_like(mask)
            with torch.no_grad():
                logits.append(plain((image.double() * mask)[None])[0, int(index)])
        weights = torch.stack(logits).softmax(dim=0)
        maps.append(_scaled_channels(channels[None], weights[None])[0])
    return torch.stack(maps).clamp(min=0)


def finer_cam(adapter, images, target, alpha=1.0, rivals=3):
    plain, maps = Plain(adapter), []
    for image, index in zip(images, target, strict=True):
        with kept_output(plain.module.get_submodule(adapter.structure.feature_layer)) as kept:
            logits = plain(image[None].double().requires_grad_(True))[0]
        own = logits[int(index)]
        apart = (logits - own).detach().abs().tolist()
        others = sorted((k for k in range(len(logits)) if k != int(index)), key=apart.__getitem__)
        probabilities = logits.softmax(dim=0)
        nearest = others[:rivals]
        total = sum(probabilities[k] * (own - alpha * logits[k]) for k in nearest)
        score = total / sum(probabilities[k] for k in nearest)
        gradient = on_image(adapter, torch.autograd.grad(score, kept[0])[0])
        features = on_image(adapter, kept[0].detach())
        maps.append(_scaled_channels(features, gradient.mean(dim=(2, 3)))[0].clamp(min=0))
    return torch.stack(maps)


def gates(adapter, images, target):
    """(B,C) gate values of the last squeeze-and-excitation layer of torchvision's kind, and the features it multiplies."""
    plain = Plain(adapter)
    layer, kept = plain.module.get_submodule(adapter.structure.se_layers[-1].layer), []
    layer.register_forward_pre_hook(lambda module, args: kept.append(args[0].detach().clone()))
    plain(images)
    inside = kept[0]
    squeezed = inside.mean(dim=(2, 3))
    first, second = ((one.weight.flatten(1), one.bias) for one in (layer.fc1, layer.fc2))
    hidden = (squeezed @ first[0].T + first[1]).clamp(min=0)
    return 1 / (1 + torch.exp(-(hidden @ second[0].T + second[1]))), inside


def channel_attention(adapter, images, target):
    return gates(adapter, images, target)[0]


def se_activation(adapter, images, target):
    values, inside = gates(adapter, images, target)
    return _scaled_channels(inside, values)
