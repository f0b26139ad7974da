"""Maps of other libraries, raw: before their clipping and rescaling. (adapter, images, target) -> (B,h,w)."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Normalized(nn.Module):
    """A copy of the model on images in [0, 1], as the package feeds it."""

    def __init__(self, adapter):
        super().__init__()
        self.inner = copy.deepcopy(adapter.module)
        given = adapter.source.preprocessing
        self.register_buffer("mean", torch.tensor(given.mean).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(given.std).reshape(1, 3, 1, 1))

    def forward(self, images):
        output = self.inner((images - self.mean) / self.std)
        return getattr(output, "logits", output)


def _targets(target):
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    return [ClassifierOutputTarget(int(one)) for one in target]


def _layer(module: Normalized, adapter):
    reshape = None if adapter.tokens is None else adapter.tokens.to_grid
    return module.inner.get_submodule(adapter.structure.feature_layer), reshape


def grad_cam_family(name: str):
    """A class of pytorch-grad-cam, its map as `get_cam_image` returns it."""

    def run(adapter, images, target):
        import pytorch_grad_cam

        kind = getattr(pytorch_grad_cam, name)
        module = Normalized(adapter)
        layer, reshape = _layer(module, adapter)
        with kind(module, [layer], reshape_transform=reshape) as explainer:
            explainer(images.clone().requires_grad_(True), _targets(target))
            found = explainer.activations_and_grads
            acts, grads = found.activations[0].detach().numpy(), found.gradients[0].numpy()
            raw = explainer.get_cam_image(images, layer, _targets(target), acts, grads, False)
        return raw if name == "HiResCAM" else np.maximum(raw, 0)

    return run


def on_our_features(name: str):
    """Weights or projections of pytorch-grad-cam on features behind a ReLU; its 1e-6 in a divisor made small."""

    def run(features, gradients):
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection

        features, gradients = features.double().numpy(), 1e6 * gradients.double().numpy()
        if name == "EigenCAM":
            return get_2d_projection(features)
        weights = getattr(pytorch_grad_cam, name).get_cam_weights(None, None, None, None, features, gradients)
        raw = (weights[:, :, None, None] * features).sum(1)
        return np.maximum(raw, 0) if name == "GradCAMPlusPlus" else raw / 1e6  # linear in the gradients

    return run


def score_cam(adapter, images, target, corners: bool = False):
    """pytorch-grad-cam's ScoreCAM. Its UpsamplingBilinear2d aligns corners; corners=False puts a plain one in its place."""
    from pytorch_grad_cam import ScoreCAM

    class Enlarge(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.size = tuple(size)

        def forward(self, x):
            return F.interpolate(x, self.size, mode="bilinear", align_corners=False)

    module = Normalized(adapter).eval()
    layer, reshape = _layer(module, adapter)
    previous = torch.nn.UpsamplingBilinear2d
    torch.nn.UpsamplingBilinear2d = previous if corners else Enlarge
    try:
        with ScoreCAM(module, [layer], reshape_transform=reshape) as explainer, torch.no_grad():
            explainer.batch_size = 8
            explainer.activations_and_grads(images)
            acts = explainer.activations_and_grads.activations[0].numpy()
            explainer.activations_and_grads.release()
            weights = explainer.get_cam_weights(images, layer, _targets(target), acts, None)
    finally:
        torch.nn.UpsamplingBilinear2d = previous
    return np.maximum((weights[:, :, None, None] * acts).sum(1), 0)


def ablation_cam_weights(adapter, images, target):
    """(B,C) weights of pytorch-grad-cam's AblationCAM, features (B,C,h,w) and scores (B,), on a CNN behind a ReLU."""
    from pytorch_grad_cam import AblationCAM

    module = Normalized(adapter).eval()
    layer, _ = _layer(module, adapter)
    with AblationCAM(module, [layer]) as explainer, torch.no_grad():
        logits = explainer.activations_and_grads(images)
        acts = explainer.activations_and_grads.activations[0].numpy()
        explainer.activations_and_grads.release()
        weights = explainer.get_cam_weights(images, layer, _targets(target), acts, None)
    return torch.from_numpy(weights), torch.from_numpy(acts), logits.gather(1, target[:, None])[:, 0]


def ablation_cam(adapter, images, target):
    """Its weights are divided by the logit with its sign: times that sign they are ours."""
    weights, features, scores = ablation_cam_weights(adapter, images, target)
    return torch.einsum("bc,bchw->bhw", weights * scores.sign()[:, None], features).clamp(min=0)


def finer_cam(adapter, images, target):
    """pytorch-grad-cam's Grad-CAM of its FinerWeightedTarget, one image after the other, before any scaling."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import FinerWeightedTarget

    module, maps = Normalized(adapter), []
    layer, reshape = _layer(module, adapter)
    for image, index in zip(images, target, strict=True):
        with torch.no_grad():
            logits = module(image[None])[0]
        order = (logits - logits[int(index)]).abs().argsort().tolist()
        targets = [FinerWeightedTarget(order[0], order[1:4], 1)]
        with GradCAM(module, [layer], reshape_transform=reshape) as explainer:
            explainer(image[None].clone().requires_grad_(True), targets)
            found = explainer.activations_and_grads
            acts, grads = found.activations[0].detach().numpy(), found.gradients[0].numpy()
            raw = explainer.get_cam_image(image[None], layer, targets, acts, grads, False)
        maps.append(np.maximum(raw[0], 0))
    return np.stack(maps)


def torch_cam(name: str):
    """A class of torch-cam, not normalized, rectified as its own display does."""

    def run(adapter, images, target):
        import torchcam.methods

        module = Normalized(adapter).requires_grad_(True).eval()
        kind = getattr(torchcam.methods, name)
        with kind(module, target_layer=f"inner.{adapter.structure.feature_layer}") as explainer:
            scores = module(images.clone().requires_grad_(True))
            return explainer(target.tolist(), scores, normalized=False)[0].relu().detach()

    return run


def captum_saliency(adapter, images, target):
    from captum.attr import Saliency

    return Saliency(Normalized(adapter)).attribute(images.clone().requires_grad_(True), target=target).amax(dim=1)


def captum_input_x_gradient(adapter, images, target):
    from captum.attr import InputXGradient

    found = InputXGradient(Normalized(adapter)).attribute(images.clone().requires_grad_(True), target=target)
    return found.sum(1).detach()


def out_of_place(module: nn.Module) -> nn.Module:
    """ReLU modules that do not write into their input: captum's hooks need it as it was."""
    for one in module.modules():
        if isinstance(one, nn.ReLU):
            one.inplace = False
    return module


def captum_guided(adapter, images, target):
    """(B,3,H,W)."""
    from captum.attr import GuidedBackprop

    module = out_of_place(Normalized(adapter))
    return GuidedBackprop(module).attribute(images.clone().requires_grad_(True), target=target).detach()


def captum_guided_grad_cam(adapter, images, target):
    """Its GuidedGradCam, enlarged bilinearly; the largest absolute value over the colors."""
    from captum.attr import GuidedGradCam

    module = out_of_place(Normalized(adapter))
    layer, _ = _layer(module, adapter)
    explainer = GuidedGradCam(module, layer)
    found = explainer.attribute(images.clone().requires_grad_(True), target=target, interpolate_mode="bilinear")
    return found.abs().amax(dim=1).detach()


def captum_deep_lift(adapter, images, target):
    from captum.attr import DeepLift

    module = out_of_place(Normalized(adapter))
    found = DeepLift(module).attribute(images.clone(), torch.zeros_like(images), target=target)
    return found.sum(1).detach()


def zennit_gamma(adapter, images, target, conv_gamma=0.25, linear_gamma=0.05):
    """LRP-gamma of a CNN in float64: batch norm a linear layer of its own, max pooling and flattening as they are."""
    from zennit.composites import LayerMapComposite
    from zennit.rules import Epsilon, Gamma, Norm, Pass

    module = out_of_place(Normalized(adapter)).double()
    layers = [
        (nn.Conv2d, Gamma(conv_gamma, stabilizer=1e-12)),
        (nn.Linear, Gamma(linear_gamma, stabilizer=1e-12)),
        (nn.BatchNorm2d, Epsilon(epsilon=1e-12)),
        (nn.AdaptiveAvgPool2d, Norm(stabilizer=1e-12)),
        (nn.ReLU, Pass()),
    ]
    x = ((images.double() - module.mean) / module.std).requires_grad_(True)
    with LayerMapComposite(layers).context(module.inner) as altered:
        logits = altered(x)
        seed = torch.zeros_like(logits)
        for row, index in enumerate(target):
            seed[row, int(index)] = logits[row, int(index)].detach()
        relevance = torch.autograd.grad(logits, x, seed)[0]
    return relevance.sum(dim=1)


def torch_cam_legrad(adapter, images, target):
    """torch-cam's LeGrad on torchvision's ViT, given the model's own read-out: by default it averages all tokens."""
    from torchcam.methods import LeGrad

    module = Normalized(adapter).eval()
    vit = module.inner
    explainer = LeGrad(vit, list(vit.encoder.layers), score_projection=lambda x: vit.heads(vit.encoder.ln(x)[:, 0]))
    with explainer:
        scores = vit((images - module.mean) / module.std)
        return explainer(target.tolist(), scores, normalized=False)[0].detach()


def own_attentions(adapter, images):
    """L x (B,heads,N,N) that a transformers model returns itself when its slow path is asked for."""
    module = Normalized(adapter).double()
    module.inner.set_attn_implementation("eager")
    with torch.no_grad():
        return module.inner((images - module.mean) / module.std, output_attentions=True).attentions


def transformers_class_attention(adapter, images, target):
    last = own_attentions(adapter, images)[-1]
    return last.mean(dim=1)[:, 0, 1:].reshape(len(images), *adapter.tokens.grid)


def transformers_rollout(adapter, images, target):
    flow = None
    for attention in own_attentions(adapter, images):
        step = (attention.mean(dim=1) + torch.eye(attention.shape[-1], dtype=attention.dtype)) / 2
        flow = step if flow is None else step @ flow
    return flow[:, 0, 1:].reshape(len(images), *adapter.tokens.grid)
