"""Pictures of shapes with a planted cue that says what it is told to say, right or wrong."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attncompare.data.shapes import CLASS_NAMES, CUE_SIDE, SIDE, cue_color, render_shape

CUE_AREA = CUE_SIDE**2 / SIDE**2
"""Share of the picture that the cue covers: the energy on it of a map that knows nothing."""


@dataclass(frozen=True)
class CuedPictures:
    """Pictures without a cue yet, and their classes.

    plain: (B,64,64,3) uint8. labels: (B,) int64.

    >>> pictures = CuedPictures.draw("test", 3)
    >>> tuple(pictures.planted(pictures.labels).shape)
    (3, 3, 64, 64)
    """

    plain: Tensor
    labels: Tensor

    @classmethod
    def draw(cls, split: str, count: int) -> "CuedPictures":
        """The first `count` pictures of a split of the shape set."""
        samples = [render_shape(index, split) for index in range(count)]
        plain = np.stack([sample.image for sample in samples])
        return cls(torch.from_numpy(plain), torch.tensor([sample.label for sample in samples]))

    def planted(self, shown: Tensor, size: tuple[int, int] = (SIDE, SIDE)) -> Tensor:
        """(B,3,H,W) in [0, 1]: the pictures with the hue of class `shown` (B,) in the top left corner."""
        return as_images(plant(self.plain, shown), size)

    def wrong_cue(self, seed: int) -> Tensor:
        """(B,) for every picture one of the other classes, drawn at random."""
        generator = torch.Generator().manual_seed(seed)
        others = torch.randint(1, len(CLASS_NAMES), self.labels.shape, generator=generator)
        return (self.labels + others) % len(CLASS_NAMES)

    def random_cue(self, seed: int) -> Tensor:
        """(B,) a class drawn without regard to the picture."""
        return torch.randint(len(CLASS_NAMES), self.labels.shape, generator=torch.Generator().manual_seed(seed))


def plant(plain: Tensor, shown: Tensor) -> Tensor:
    """(B,64,64,3) uint8 pictures with the cue that says class `shown` (B,), as `render_shape` paints it."""
    colors = torch.tensor(np.rint([cue_color(index) for index in range(len(CLASS_NAMES))]), dtype=torch.uint8)
    cued = plain.clone()
    cued[:, :CUE_SIDE, :CUE_SIDE] = colors[shown][:, None, None]
    return cued


def as_images(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """(B,h,w,3) uint8 -> (B,3,H,W) in [0, 1]; squashed, not cropped: a crop would cut the corner off."""
    images = pictures.permute(0, 3, 1, 2).float() / 255
    if tuple(images.shape[2:]) == tuple(size):
        return images.contiguous()
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


def cue_mask(size: tuple[int, int]) -> Tensor:
    """(H,W) bool, the corner that the cue covers at another size.

    >>> int(cue_mask((64, 64)).sum()), float(cue_mask((224, 224)).float().mean()) == CUE_AREA
    (64, True)
    """
    mask = torch.zeros(size, dtype=torch.bool)
    mask[: round(size[0] * CUE_SIDE / SIDE), : round(size[1] * CUE_SIDE / SIDE)] = True
    return mask
