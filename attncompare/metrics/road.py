"""Remove and debias."""

from torch import Tensor

from attncompare.metrics._base import Score, metric
from attncompare.metrics.imputation import UNDEFINED, imputed_scores


@metric(
    better="higher",
    reference="Rong et al., arXiv:2202.00449, section 4.2 (ROAD), combined as in pytorch-grad-cam: (LeRF - MoRF) / 2",
    undefined=UNDEFINED,
    bounds=(-1, 1),
)
def road(images: Tensor, maps: Tensor, target_score: Score, seed: int) -> Tensor:
    """Half the difference of road_lerf and road_morf: 0 for a map that knows nothing.

    Imputed pixels continue their surroundings, so the shape of what was removed gives less of the class away than a flat
    baseline does.
    """
    most, least = (imputed_scores(images, sign * maps, target_score, seed).mean(dim=1) for sign in (1, -1))
    return (least - most) / 2
