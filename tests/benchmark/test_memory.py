"""What a method must not hold: nothing from earlier calls, no (N, N) weights for one row, no trunk below the tap."""

import gc
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

import attncompare as ac

CALLS, WARM_UP = 200, 5
SLACK = 16 * 2**20  # bytes by which an allocator may wander; 200 graphs of these models are more


class LargestTensor(TorchDispatchMode):
    """The most elements of any tensor that an operation returns."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else [found]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return found


def live_tensors():
    gc.collect()
    return sum(isinstance(found, Tensor) for found in gc.get_objects())


def resident_bytes():
    """The memory of this process; 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * 4096 if statm.exists() else 0


def saved_bytes(run):
    """Bytes that autograd keeps for the backward pass, parameters left out."""
    kept = []

    def pack(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            kept.append(tensor.numel() * tensor.element_size())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept)


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("cnn", ["grad_cam", "layer_cam", "saliency"]),
        ("vit", ["class_attention", "attention_rollout", "gradient_rollout", "grad_cam"]),
    ],
)
def test_nothing_is_left_behind_by_repeated_calls(tiny, pictures, name, methods):
    model = tiny(name)
    images = pictures(model, 1)
    for _ in range(WARM_UP):
        ac.explain_together(model, methods, images)
    before, resident = live_tensors(), resident_bytes()
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules())
    for _ in range(CALLS):
        ac.explain_together(model, methods, images)
    assert live_tensors() <= before
    assert resident_bytes() <= resident + SLACK
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules()) == hooks


@pytest.mark.parametrize("method", ["class_attention", "attention_rollout"])
def test_only_the_row_of_the_class_token_is_computed(build, method):
    timm_vit = type(build("vit"))
    size, tokens = 160, 401  # tokens * tokens is far more than any layer's output here
    module = timm_vit(img_size=size, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5).eval()
    model = ac.wrap_model(module, size=(size, size))
    images = torch.rand(1, 3, size, size)
    ac.explain_together(model, [method], images, 0)  # the check of the logits is over
    with LargestTensor() as seen:
        ac.explain_together(model, [method], images, 0)
    assert (seen.elements >= tokens * tokens) == (method == "attention_rollout")


@pytest.mark.parametrize("name", ["cnn", "vit", "swin"])
def test_the_graph_of_grad_cam_starts_at_the_tap(tiny, pictures, name):
    """The trunk keeps nothing: a backward pass to the images keeps several times what Grad-CAM keeps."""
    model = tiny(name)
    images = pictures(model)
    for method in ("grad_cam", "saliency"):
        ac.explain_together(model, [method], images, 0)
    whole = saved_bytes(lambda: ac.explain_together(model, ["saliency"], images, 0))
    head = saved_bytes(lambda: ac.explain_together(model, ["grad_cam"], images, 0))
    assert 0 < head < whole / 2
