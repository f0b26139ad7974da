"""How a layer's activation lies on the image, in five numbers."""

from types import MappingProxyType

import torch
from torch import Tensor

from attncompare.maps import normalize_map, resize_map
from attncompare.methods.edge_map import edge_map
from attncompare.metrics.complexity import complexity
from attncompare.metrics.energy_inside import energy_inside
from attncompare.metrics.rank_correlation import rank_correlation
from attncompare.metrics.sparseness import sparseness

MEASURES = MappingProxyType(
    {
        "gini": "Gini index of the map: 0 when all pixels share alike, nearly 1 when one pixel has everything",
        "area_half": "share of the pixels that reach half of the map's range",
        "entropy": "entropy of the map as shares of its sum, divided by ln(H W): 1 when all pixels share alike",
        "edges": "Spearman correlation of the map with the Sobel edges of the image",
        "object": "share of the map that lies on the object, divided by the object's share of the pixels: 1 by chance",
    }
)


def measure_maps(maps: Tensor, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Measure -> (B,), NaN where it is not defined: see MEASURES.

    maps: (B,h,w) of any size. They are measured as they are drawn: enlarged bilinearly to the images, since maps must have
    one size to be compared, and scaled to [0, 1], since a constant under a map (a bias, say) says nothing of where. images:
    (B,3,H,W) in [0, 1]. masks: (B,H,W) bool, the object; empty where it is not known.

    >>> maps = torch.tensor([[[4.0, 2.0], [1.0, 1.0]]])
    >>> mask = torch.tensor([[[True, False], [False, False]]])
    >>> found = measure_maps(maps, torch.rand(1, 3, 2, 2), mask)
    >>> {name: round(float(value), 4) for name, value in found.items() if name != "edges"}
    {'gini': 0.625, 'area_half': 0.25, 'entropy': 0.4056, 'object': 3.0}
    """
    large = normalize_map(resize_map(maps.float().cpu(), (images.shape[2], images.shape[3])))
    reached = (large >= 0.5).float().mean(dim=(1, 2))
    pixels = large.new_tensor(large[0].numel())
    masks = masks.cpu()
    return {
        "gini": sparseness(large),
        "area_half": torch.where(large.amax(dim=(1, 2)) > 0, reached, torch.nan),
        "entropy": complexity(large) / pixels.log(),
        "edges": rank_correlation(large, edge_map(images.cpu())),
        "object": energy_inside(large, masks) / masks.float().mean(dim=(1, 2)),
    }
