"""The memory layout in which altered images are forwarded."""

from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from attncompare.models.adapter import ModelAdapter
from attncompare.models.same_outputs import check_same_outputs
from attncompare.state import preserve_state
from attncompare.tuning import applied

Way = Literal["contiguous", "channels_last"]
"""torch's own; images in the NHWC layout."""


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


def forward_by(model: ModelAdapter, images: Tensor, way: Way) -> Tensor:
    """(n,K) of images (n,3,H,W)."""
    memory = torch.channels_last if way == "channels_last" else torch.contiguous_format
    return model.forward(images.contiguous(memory_format=memory))


def way_in_use(model: ModelAdapter) -> Way | None:
    """How altered images are forwarded; None where none have been, so that it was not decided."""
    wanted = applied().layout
    if wanted != "auto":
        return wanted
    if model.device.type != "cpu":
        return "contiguous"
    return model.cache.get(_decision(model))


def suitable_way(model: ModelAdapter) -> Way:
    """NHWC for a network with more convolutions than linear layers, where it returns the same.

    `benchmarks/forwarding.py` has the times of 56 architectures. A network that cannot take the layout (a `view` of its
    features), or whose outputs for a trial batch move by more than 1e-5 of the largest, or their softmax by more than 1e-5,
    keeps torch's way, as does one without room for that batch. Decided once for a network's modules, never by a timing or
    by the images that are scored.
    """
    decision = _decision(model)
    if decision not in model.cache:
        takes = is_convolutional(model) and _same_outputs(model)
        model.cache[decision] = "channels_last" if takes else "contiguous"
    found: Way = model.cache[decision]
    return found


def is_convolutional(model: ModelAdapter) -> bool:
    """Whether it has more convolutions than linear layers."""
    modules = list(model.module.modules())
    return sum(isinstance(one, nn.Conv2d) for one in modules) > sum(isinstance(one, nn.Linear) for one in modules)


def _decision(model: ModelAdapter) -> tuple[object, ...]:
    """Where the decision is kept: a network with another head, say, is asked again."""
    return ("way", *map(id, model.module.modules()))


def _same_outputs(model: ModelAdapter) -> bool:
    """Of noise, the same half faded, and gray: several images, since of one alone the strides fit both layouts."""
    noise = torch.rand(3, *model.size, generator=torch.Generator().manual_seed(0))
    batch = torch.stack((noise, noise.lerp(torch.tensor(0.5), 0.5), torch.full_like(noise, 0.5)))
    with torch.no_grad(), torch.autocast(model.device.type, enabled=False), preserve_state(model.module):
        try:
            exact, found = model.forward(batch), forward_by(model, batch, "channels_last")
            check_same_outputs(exact, found, "the layout changes outputs", scale=float(exact.abs().max()))
            check_same_outputs(exact.softmax(1), found.softmax(1), "the layout changes probabilities")
        except Exception:
            # Strides that do not fit, no room for three images, or whatever else the network asks of its input. The scored
            # images meet what is no fault of the layout next: by torch's own, and in batches that can shrink.
            return False
    return True
