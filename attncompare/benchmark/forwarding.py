"""How altered images are forwarded: in which memory layout, and by which library's linear layers."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from attncompare.benchmark.onednn import SMALLEST_PRODUCT, OneDNNLinear, onednn_is_faster
from attncompare.models.adapter import ModelAdapter
from attncompare.models.same_outputs import check_same_outputs
from attncompare.state import preserve_state
from attncompare.tuning import applied

Way = Literal["contiguous", "channels_last", "onednn"]
"""torch's own; images in the NHWC layout; linear layers by oneDNN."""


def fast_forward(model: ModelAdapter) -> Callable[[Tensor], Tensor]:
    """`model.forward` on images (n,3,H,W), in the way that the tuning in force asks for, or that suits the model.

    Which one suits is asked once, with the first images.
    """
    suited = cache(lambda: suitable_way(model))

    def forward(images: Tensor) -> Tensor:
        wanted = applied().layout
        if wanted == "auto":
            return forward_by(model, images, suited() if images.device.type == "cpu" else "contiguous")
        return forward_by(model, images, wanted)

    return forward


def forward_by(model: ModelAdapter, images: Tensor, way: Way, onednn: OneDNNLinear | None = None) -> Tensor:
    """(n,K) of images (n,3,H,W). onednn: the mode of that way, if it is to be another than the usual one."""
    if way == "channels_last":
        return model.forward(images.contiguous(memory_format=torch.channels_last))
    with (onednn or OneDNNLinear()) if way == "onednn" else nullcontext():
        return model.forward(images.contiguous())


def way_in_use(model: ModelAdapter) -> Way | None:
    """How altered images are forwarded; None where none have been, so that it was not decided."""
    wanted = applied().layout
    if wanted != "auto":
        return wanted
    if model.device.type != "cpu":
        return "contiguous"
    return model.cache.get(_decision(model))


def layer_counts(model: ModelAdapter) -> tuple[int, int]:
    """(convolutions, linear layers)."""
    modules = list(model.module.modules())
    return sum(isinstance(one, nn.Conv2d) for one in modules), sum(isinstance(one, nn.Linear) for one in modules)


def suitable_way(model: ModelAdapter) -> Way:
    """NHWC for a network with more convolutions than linear layers; oneDNN for the others where the processor asks for it.

    Both only where the network returns the same; `benchmarks/forwarding.py` has the times of 56 architectures. One that
    cannot take the layout (a `view` of its features), or whose outputs for a trial batch move by more than 1e-5 of the
    largest, or their softmax by more than 1e-5, keeps torch's way, as does one without room for that batch, and one without
    products large enough for oneDNN. Decided once for a network's modules, never by a timing or by the images that are
    scored.
    """
    decision = _decision(model)
    if decision not in model.cache:
        way = _promised_way(model)
        model.cache[decision] = way if way == "contiguous" or _same_outputs(model, way) else "contiguous"
    found: Way = model.cache[decision]
    return found


def _promised_way(model: ModelAdapter) -> Way:
    """What should be fastest, before it is known whether the network returns the same.

    `nn.TransformerEncoderLayer` has a fused pass in torch, which it leaves where it finds another library in its way.
    """
    convolutions, linear = layer_counts(model)
    if convolutions > linear:
        return "channels_last"
    fused = any(isinstance(one, nn.TransformerEncoderLayer) for one in model.module.modules())
    return "onednn" if onednn_is_faster() and not fused else "contiguous"


def _decision(model: ModelAdapter) -> tuple[object, ...]:
    """Where the decision is kept: a network with another head, say, is asked again."""
    return ("way", *map(id, model.module.modules()))


def _same_outputs(model: ModelAdapter, way: Way) -> bool:
    """Of noise, the same half faded, and gray: several images, since of one alone the strides fit both layouts.

    In this trial oneDNN computes every layer that it can: in larger batches more of them are large enough.
    """
    noise = torch.rand(3, *model.size, generator=torch.Generator().manual_seed(0))
    batch = torch.stack((noise, noise.lerp(torch.tensor(0.5), 0.5), torch.full_like(noise, 0.5)))
    onednn = OneDNNLinear(smallest=0)
    with torch.no_grad(), torch.autocast(model.device.type, enabled=False), preserve_state(model.module):
        try:
            exact, found = model.forward(batch), forward_by(model, batch, way, onednn)
            check_same_outputs(exact, found, f"{way} changes outputs", scale=float(exact.abs().max()))
            check_same_outputs(exact.softmax(1), found.softmax(1), f"{way} changes probabilities")
        except Exception:
            # Strides that do not fit, no room for three images, or whatever else the network asks of its input. The scored
            # images meet what is no fault of the way next: by torch's own, and in batches that can shrink.
            return False
    return way != "onednn" or onednn.largest >= SMALLEST_PRODUCT
