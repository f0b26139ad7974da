"""The same methods by other libraries, as their documentation uses them: parameters not frozen, defaults kept."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO

import torch
from torch import Tensor, nn

from attncompare.models.adapter import ModelAdapter


def normalized(model: ModelAdapter, images: Tensor) -> Tensor:
    """The images as the bare module wants them."""
    how = model.source.preprocessing
    return (images - torch.tensor(how.mean)[:, None, None]) / torch.tensor(how.std)[:, None, None]


def _to_grid(model: ModelAdapter) -> Callable[[Tensor], Tensor] | None:
    """The reshape function that CAM libraries ask their users for."""
    return None if model.tokens is None else model.tokens.to_grid


def grad_cam_library(model: ModelAdapter, images: Tensor, target: Tensor, name: str, **options: int) -> object:
    """A CAM of pytorch-grad-cam; its progress bars are not shown."""
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    layer = model.module.get_submodule(str(model.structure.feature_layer))
    with getattr(pytorch_grad_cam, name)(model.module, [layer], _to_grid(model)) as cam, redirect_stderr(StringIO()):
        for option, value in options.items():
            setattr(cam, option, value)
        return cam(normalized(model, images), [ClassifierOutputTarget(int(index)) for index in target])


def torchcam(model: ModelAdapter, images: Tensor, target: Tensor) -> object:
    """Torchcam's Grad-CAM."""
    from torchcam.methods import GradCAM

    layer = str(model.structure.feature_layer)
    with GradCAM(model.module, layer, reshape_transform=_to_grid(model)) as cam:
        return cam(class_idx=target.tolist(), scores=model.module(normalized(model, images)))


def captum_layer_grad_cam(model: ModelAdapter, images: Tensor, target: Tensor) -> object:
    """Captum on the bare layer."""
    from captum.attr import LayerGradCam

    layer = model.module.get_submodule(str(model.structure.feature_layer))
    return LayerGradCam(model.module, layer).attribute(normalized(model, images), target)


def captum(model: ModelAdapter, images: Tensor, target: Tensor, name: str, **options: object) -> object:
    """Captum's method of that name on the bare module."""
    import captum.attr

    inputs = normalized(model, images)
    if name not in ("Occlusion", "FeatureAblation"):
        inputs.requires_grad_(True)
    return getattr(captum.attr, name)(model.module).attribute(inputs, target=target, **options)


@contextmanager
def _unfused(model: ModelAdapter) -> Iterator[list[nn.Module]]:
    """The attention dropout of every timm block, with the fused kernel switched off as vit-explain needs it."""
    blocks = [model.module.get_submodule(path) for path in model.structure.attention_blocks]
    fused = [block.fused_attn for block in blocks]
    for block in blocks:
        block.fused_attn = False
    try:
        yield [block.attn_drop for block in blocks]
    finally:
        for block, flag in zip(blocks, fused, strict=True):
            block.fused_attn = flag


def _rolled(maps: list[Tensor]) -> Tensor:
    """vit-explain's product, without the discarding that is its default; rows of the class token."""
    result = torch.eye(maps[0].shape[-1])
    for fused in maps:
        a = (fused + torch.eye(fused.shape[-1])) / 2
        result = (a / a.sum(dim=-1, keepdim=True)) @ result
    return result[:, 0, 1:]


def vit_explain_rollout(model: ModelAdapter, images: Tensor) -> Tensor:
    """Attention rollout in the manner of vit-explain: hooks keep every head of every block."""
    kept: list[Tensor] = []
    with _unfused(model) as dropouts, torch.no_grad():
        handles = [m.register_forward_hook(lambda m, args, output: kept.append(output.cpu())) for m in dropouts]
        model.module(normalized(model, images))
        for handle in handles:
            handle.remove()
        return _rolled([weights.mean(dim=1) for weights in kept])


def vit_explain_gradient_rollout(model: ModelAdapter, images: Tensor, target: Tensor) -> Tensor:
    """Gradient rollout in the manner of vit-explain: `loss.backward()` through all parameters."""
    kept: list[Tensor] = []
    found: list[Tensor] = []
    with _unfused(model) as dropouts:
        handles = [m.register_forward_hook(lambda m, args, output: kept.append(output)) for m in dropouts]
        handles += [m.register_full_backward_hook(lambda m, got, gave: found.append(got[0])) for m in dropouts]
        model.module.zero_grad()
        model.module(normalized(model, images)).gather(1, target[:, None]).sum().backward()
        for handle in handles:
            handle.remove()
    model.module.zero_grad()
    pairs = zip(kept, reversed(found), strict=True)
    with torch.no_grad():
        return _rolled([(attention * gradient).mean(dim=1).clamp(min=0) for attention, gradient in pairs])
