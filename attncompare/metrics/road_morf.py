"""Remove and debias, most relevant first."""

from torch import Tensor

from attncompare.metrics._base import Score, metric
from attncompare.metrics.imputation import UNDEFINED, imputed_scores


@metric(
    better="lower",
    reference="Rong et al., arXiv:2202.00449, section 4.2 (ROAD, MoRF)",
    undefined=UNDEFINED,
    bounds=(-1, 1),
)
def road_morf(images: Tensor, maps: Tensor, target_score: Score, seed: int) -> Tensor:
    """Mean score while the most relevant 10, 20 ... 90 % of the pixels are imputed from their neighbors."""
    return imputed_scores(images, maps, target_score, seed).mean(dim=1)
