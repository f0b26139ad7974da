"""Remove and debias, least relevant first."""

from torch import Tensor

from attncompare.metrics._base import Score, metric
from attncompare.metrics.imputation import UNDEFINED, imputed_scores


@metric(
    better="higher",
    reference="Rong et al., arXiv:2202.00449, section 4.2 (ROAD, LeRF)",
    undefined=UNDEFINED,
    bounds=(-1, 1),
)
def road_lerf(images: Tensor, maps: Tensor, target_score: Score, seed: int) -> Tensor:
    """Mean score while the least relevant 10, 20 ... 90 % of the pixels are imputed from their neighbors."""
    return imputed_scores(images, -maps, target_score, seed).mean(dim=1)
