"""The memory layout in which altered images are forwarded."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attncompare.adapters.base import ModelAdapter
from attncompare.capture.capture import left_as_found
from attncompare.tuning import LARGEST_DEVIATION, Layout, applied


def fast_forward(model: ModelAdapter) -> Callable[[Tensor], Tensor]:
    """`model.forward` on images (n,3,H,W) that are brought into the layout in force."""
    return lambda images: model.forward(laid_out(model, images))


def laid_out(model: ModelAdapter, images: Tensor) -> Tensor:
    """Images (n,3,H,W) in the layout that the tuning in force asks for, or that suits the model."""
    wanted = applied().layout
    last = wanted == "channels_last" or (
        wanted == "auto" and images.device.type == "cpu" and takes_channels_last(model)
    )
    return images.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def layout_in_use(model: ModelAdapter) -> Layout | None:
    """The layout of altered images; None where none have been forwarded, so that it was not decided."""
    wanted = applied().layout
    if wanted != "auto":
        return wanted
    decided = model.derived.get(_decision(model), None if model.device.type == "cpu" else False)
    return None if decided is None else "channels_last" if decided else "contiguous"


def layer_counts(model: ModelAdapter) -> tuple[int, int]:
    """(convolutions, linear layers)."""
    modules = list(model.model.modules())
    return sum(isinstance(one, nn.Conv2d) for one in modules), sum(isinstance(one, nn.Linear) for one in modules)


def takes_channels_last(model: ModelAdapter) -> bool:
    """Whether a network has more convolutions than linear layers, and returns the same in the NHWC layout.

    Of 55 architectures timed on a CPU the 37 that qualify took 0.54 to 1.02 of the time (`benchmarks/layout.py`), the others
    0.99 in the median. One that cannot take the layout (a `view` of its features), or whose outputs for a trial batch move
    by more than 1e-5 of the largest, or their softmax by more than 1e-5, keeps torch's, as does one without room for that
    batch. Decided once for a network's modules, never by a timing or by the images that are scored.
    """
    decision = _decision(model)
    if decision not in model.derived:
        convolutions, linear = layer_counts(model)
        model.derived[decision] = convolutions > linear and _same_outputs(model)
    found: bool = model.derived[decision]
    return found


def _decision(model: ModelAdapter) -> tuple[object, ...]:
    """Where the decision is kept: a network with another head, say, is asked again."""
    return ("channels_last", *map(id, model.model.modules()))


def _same_outputs(model: ModelAdapter) -> bool:
    """Of noise, the same half faded, and grey: several images, since of one alone the strides fit both layouts."""
    noise = torch.rand(3, *model.size, generator=torch.Generator().manual_seed(0))
    batch = torch.stack((noise, noise.lerp(torch.tensor(0.5), 0.5), torch.full_like(noise, 0.5)))
    with torch.no_grad(), torch.autocast(model.device.type, enabled=False), left_as_found(model.model):
        try:
            exact = model.forward(batch)
            found = model.forward(batch.contiguous(memory_format=torch.channels_last))
        except Exception:
            # Strides that do not fit, no room for three images, or whatever else the network asks of its input. The scored
            # images meet what is no fault of the layout next: in torch's, and in batches that can shrink.
            return False
    near = (found - exact).abs().max() <= LARGEST_DEVIATION * exact.abs().max()
    return bool(near and (found.softmax(1) - exact.softmax(1)).abs().max() <= LARGEST_DEVIATION)
