"""Parameter randomization."""

from collections.abc import Iterator

import torch
from torch import Tensor

from attncompare.metrics._base import metric
from attncompare.metrics.ranks import spearman


@metric(
    better="lower",
    reference="Adebayo et al., arXiv:1810.03292, section 3.1: cascading randomization from the top, rank correlation",
    undefined="the map of the trained model is constant, or those of all shuffled models are: no order to compare",
    bounds=(-1, 1),
    version=2,
)
def parameter_randomisation(maps: Tensor, randomized_maps: Iterator[Tensor]) -> Tensor:
    """Mean rank correlation of the map with those after more and more layers lost what they learned; 1: it never mattered.

    maps: (B,H,W). randomized_maps yields (B,H,W), once for every stage: layers from the output downward, their weights
    shuffled (see benchmark/randomized.py). A map that a stage makes constant, as where no gradient is left, shares no
    order with the first: it counts 0.
    """
    stages = torch.stack([spearman(maps, after) for after in randomized_maps])
    undefined = stages.isnan().all(dim=0)  # so it is at every stage if the first map is constant
    return torch.where(undefined, torch.nan, stages.nan_to_num(nan=0.0).mean(dim=0))
