"""Feature inversion: what of an image a layer keeps, seen in another image that gives the layer the same output.

Mahendran and Vedaldi, "Understanding deep image representations by inverting them" (CVPR 2015, arXiv:1412.0035).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from attncompare.arguments import check_images
from attncompare.benchmark.layer_maps import evenly
from attncompare.errors import CaptureError, SpecError
from attncompare.models.adapter import ModelAdapter
from attncompare.progress import Progress, Tick
from attncompare.studies.layer_output import layer_outputs, run_up_to
from attncompare.studies.layer_responses import default_layers

LAYERS = 5
START_NOISE = 0.1  # standard deviation; on a plain start the ReLUs of a network may all be off, and pass no gradient


@dataclass(frozen=True)
class Inversion:
    """Images whose features at a layer are those of one image, for L layers.

    image: (3,H,W) the original. images: (L,3,H,W) in [0, 1], as the model takes them. losses: (L,steps + 1) relative feature
    loss |phi(x) - phi0|^2 / |phi0|^2, that of the random start first and that of `images` last. mean_color: (L,) the loss
    of an image of nothing but the model's mean color, which an inversion that has learned anything must beat.
    """

    model: str
    layers: tuple[str, ...]
    image: Tensor
    images: Tensor
    losses: NDArray[np.float64]
    mean_color: NDArray[np.float64]

    @property
    def final(self) -> NDArray[np.float64]:
        """(L,) relative feature loss of `images`."""
        return np.asarray(self.losses[:, -1])

    @property
    def falls(self) -> NDArray[np.float64]:
        """(L,) by which share the feature loss fell from the random start: 0.9 is 90 %."""
        return np.asarray(1 - self.final / self.losses[:, 0])

    def table(self) -> pd.DataFrame:
        """One row per layer: losses of the start, of the mean color and of the inversion, its fall, its error in pixels.

        pixel_rmse: root mean square distance to the original, of values in [0, 1].
        """
        errors = (self.images - self.image).square().mean(dim=(1, 2, 3)).sqrt()
        return pd.DataFrame(
            {
                "model": self.model,
                "layer": self.layers,
                "start": self.losses[:, 0],
                "mean_color": self.mean_color,
                "final": self.final,
                "fall": self.falls,
                "pixel_rmse": errors.numpy().astype(np.float64),
            }
        )

    def curves(self) -> pd.DataFrame:
        """One row per layer and step: the relative feature loss."""
        steps = self.losses.shape[1]
        return pd.DataFrame(
            {
                "model": self.model,
                "layer": np.repeat(self.layers, steps),
                "step": np.tile(np.arange(steps), len(self.layers)),
                "loss": self.losses.ravel(),
            }
        )


def total_variation(images: Tensor) -> Tensor:
    """(B,C,H,W) -> mean over all values of the squared differences to the right and lower neighbors, summed.

    The paper's regularizer with beta = 2, divided by the number of values so that it does not grow with the image.

    >>> float(total_variation(torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])))
    0.5
    """
    right, down = images.diff(dim=3).square().sum(), images.diff(dim=2).square().sum()
    return (right + down) / images.numel()


def relative_loss(features: Tensor, goal: Tensor) -> Tensor:
    """|features - goal|^2 / |goal|^2: 0 where they agree, 1 where the features are 0."""
    return (features - goal).square().sum() / goal.square().sum()


def layers_over_depth(model: ModelAdapter, count: int = LAYERS) -> tuple[str, ...]:
    """At most so many layers, evenly spread over depth: transformer blocks, or stages and a linear classifier behind them.

    >>> import attncompare as ac
    >>> layers_over_depth(ac.load_model("demo/cnn")), layers_over_depth(ac.load_model("demo/vit"), 2)
    (('0.2', '0', '1', '2', '5'), ('blocks.0', 'blocks.5'))
    """
    inside, head = default_layers(model), model.structure.classifier
    found = (*inside, head.linear) if head is not None and inside == model.structure.stages else inside
    return tuple(evenly(found, count))


def invert(
    model: ModelAdapter,
    image: Tensor,
    layers: str | Sequence[str] | None = None,
    *,
    steps: int = 400,
    rate: float = 0.02,
    smoothness: float = 0.5,
    seed: int = 0,
    progress: Progress | None = None,
) -> Inversion:
    """Make, for every layer, an image that the layer cannot tell from the one given.

    image: (1,3,H,W) float32 in [0, 1]. layers: module paths, five spread over depth when not given. Adam, whose step size
    falls from `rate` to 0 along a cosine, minimizes the relative feature loss plus `smoothness` times the total variation;
    every step is projected back to [0, 1]. The start is the mean color with seeded noise, the same for every layer, and the
    model runs no further than the layer. progress: called after every step.

    Raises UnknownNameError for a layer that the model lacks, CaptureError where a layer's output is zero or does not depend
    on the image.

    >>> import attncompare as ac
    >>> found = invert(ac.load_model("demo/cnn"), torch.rand(1, 3, 64, 64), ["2"], steps=5)
    >>> found.images.shape, found.losses.shape
    (torch.Size([1, 3, 64, 64]), (1, 6))
    """
    image = check_images(model, image)
    if len(image) != 1:
        raise SpecError(f"{len(image)} images were given; invert takes one, (1, 3, H, W)")
    paths = _checked(model, layers, steps, rate, smoothness)
    goals = layer_outputs(model, image, paths)
    flat = model.mean_color.reshape(1, 3, 1, 1).expand_as(image)
    plain = layer_outputs(model, flat, paths)
    start = _start(model, image, seed)
    images, losses = [], []
    for number, path in enumerate(paths):
        _check_goal(model, path, goals[path])

        def done(step: int, number: int = number, path: str = path) -> None:
            if progress is not None:
                progress(Tick(number * steps + step, len(paths) * steps, path))

        with run_up_to(model, path) as features:
            _check_gradient((model, path), features, goals[path], start)
            found, curve = _descend(features, goals[path], start, (steps, rate, smoothness), done)
        images.append(found.cpu())
        losses.append(curve.cpu().numpy())
    gray = [float(relative_loss(plain[path], goals[path])) for path in paths]
    return Inversion(model.name, paths, image[0].cpu(), torch.cat(images), np.stack(losses), np.array(gray))


def _checked(
    model: ModelAdapter, layers: str | Sequence[str] | None, steps: int, rate: float, smoothness: float
) -> tuple[str, ...]:
    """The layers' paths; SpecError for settings that are not allowed."""
    if steps < 1 or not 0 < rate < float("inf") or not 0 <= smoothness < float("inf"):
        raise SpecError(
            f"steps {steps}, rate {rate}, smoothness {smoothness}: at least 1, above 0 and at least 0 needed"
        )
    paths = layers_over_depth(model) if layers is None else (layers,) if isinstance(layers, str) else tuple(layers)
    if not paths:
        raise SpecError(f"no layer to invert was given, and none was found in {model.name}; name one")
    if len(set(paths)) != len(paths):
        raise SpecError(f"layers {', '.join(paths)}: one is given twice")
    return paths


def _check_goal(model: ModelAdapter, path: str, goal: Tensor) -> None:
    """Refuse features that no loss can be relative to."""
    if not bool(torch.isfinite(goal).all()):
        raise CaptureError(f"layer {path!r} of {model.name} returns values that are not finite on this image")
    if not bool(goal.any()):
        raise CaptureError(
            f"layer {path!r} of {model.name} returns only zeros on this image; there is nothing to invert"
        )


def _check_gradient(
    where: tuple[ModelAdapter, str], features: Callable[[Tensor], Tensor], goal: Tensor, start: Tensor
) -> None:
    """Refuse a layer from which nothing says how the start is to change."""
    image = start.clone().requires_grad_(True)
    loss = relative_loss(features(image), goal)
    (gradient,) = torch.autograd.grad(loss, image, allow_unused=True) if loss.requires_grad else (None,)
    if gradient is None or not bool(gradient.any()):
        raise CaptureError(
            f"no gradient leads from layer {where[1]!r} of {where[0].name} to the image; it cannot be inverted"
        )


def _start(model: ModelAdapter, image: Tensor, seed: int) -> Tensor:
    """(1,3,H,W) the mean color with noise on it, the same on every device."""
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed)).to(image)
    return (model.mean_color.reshape(1, 3, 1, 1) + START_NOISE * noise).clamp(0, 1)


def _descend(
    features: Callable[[Tensor], Tensor],
    goal: Tensor,
    start: Tensor,
    settings: tuple[int, float, float],
    done: Callable[[int], None],
) -> tuple[Tensor, Tensor]:
    """(1,3,H,W) the image found, (steps + 1,) the feature loss before every step and after the last."""
    steps, rate, smoothness = settings
    found = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([found], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for step in range(steps):
        loss = relative_loss(features(found), goal)
        losses.append(loss.detach())
        (found.grad,) = torch.autograd.grad(loss + smoothness * total_variation(found), found)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            found.clamp_(0, 1)
        done(step + 1)
    with torch.no_grad():
        losses.append(relative_loss(features(found), goal))
    return found.detach(), torch.stack(losses).double()
