"""What the package computes of the golden models: maps, scores, and the kind of refusal where there are none."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import combinations, product

import numpy as np
import torch

import attncompare as ac
from attncompare.errors import AttnCompareError, SpecError, UnknownNameError, UnsupportedMethodError
from golden.models import IMAGES, MODELS, SCORED, images_of, masks_of, model_of, target_of

Map = np.ndarray | str
"""(IMAGES,h,w) float32, or (IMAGES,C), or the kind of refusal."""
Score = float | str
"""A value, or why there is none: the status of its record, or the kind of refusal."""
ScoreKey = tuple[str, str, str, str, int]
"""Model, method ("first|second" where two maps are compared), metric, protocol ("" without a curve), image."""

OPTIONS: dict[str, dict[tuple[str, ...], object]] = {
    "gradient_shap": {("samples", "n_samples"): 4, ("seed",): 2},
    "integrated_gradients": {("steps", "n_steps"): 4},
    "kernel_shap": {("samples", "n_samples"): 12, ("segments", "n_segments"): 8},
    "lime": {("samples", "n_samples"): 12, ("segments", "n_segments"): 8},
    "occlusion": {("window",): 0.5, ("stride",): 0.5},
    "rise": {("masks", "n_masks"): 24},
    "score_cam": {("batch", "internal_batch_size"): 64},
    "smooth_grad": {("samples", "n_samples"): 4},
}
"""Few passes: an option under each name that it has had in some edition of the package, and its value."""
KINDS = {"UnsupportedMethodError": "unsupported", "CaptureError": "capture", "SpecError": "spec"}
"""The errors that are a refusal; any other one is a fault and ends the run."""


def kind_of(error: AttnCompareError) -> str:
    """The kind of a refusal, whatever its words."""
    if type(error).__name__ not in KINDS:
        raise error
    return KINDS[type(error).__name__]


def options_of(model: str, method: str) -> dict[str, object]:
    """The cheap options under the names that this edition gives them; options are checked before the model is."""
    found = {}
    for names, value in OPTIONS.get(method, {}).items():
        for name in names:
            with suppress(UnsupportedMethodError):
                try:
                    ac.make_explainer(model_of(model), method, **{name: value})
                except UnknownNameError:
                    continue
            found[name] = value
            break
        else:
            raise ValueError(f"{method} has no option {' or '.join(names)}: add its name to OPTIONS in {__file__}")
    return found


@cache
def explained(model: str, method: str):
    """The maps of a model's images as the package returns them."""
    explainer = ac.make_explainer(model_of(model), method, **options_of(model, method))
    return explainer.explain(images_of(model), target_of(model))


def map_of(model: str, method: str) -> Map:
    """The maps as an array, or the kind of refusal."""
    try:
        return explained(model, method).values.numpy()
    except AttnCompareError as error:
        return kind_of(error)


def scores_of(model: str, metric: str, maps: Mapping[str, np.ndarray]) -> dict[ScoreKey, Score]:
    """A metric of given maps by method, or of each two of them, under every protocol that changes it."""
    shown = {name: replace(explained(model, name), values=torch.from_numpy(one)) for name, one in maps.items()}
    found: dict[ScoreKey, Score] = {}
    for first, second in combinations(shown, 2):
        try:
            records = ac.compare_maps(shown[first], shown[second], metrics=[metric], size=model_of(model).size)
        except SpecError:  # it scores one map
            break
        found |= values_of(records, model, f"{first}|{second}", metric, "")
    return found or {k: v for name in shown for k, v in scores_of_one(model, metric, name, shown[name]).items()}


def scores_of_one(model: str, metric: str, method: str, shown) -> dict[ScoreKey, Score]:
    """A metric of one map under every protocol, or once where no protocol changes it."""
    found: dict[ScoreKey, Score] = {}
    for protocol in ac.list_protocols():
        how = {"metrics": [metric], "protocol": protocol, "masks": masks_of(model)}
        try:
            records = ac.score(model_of(model), images_of(model), shown, **how)
        except AttnCompareError as error:
            found |= {(model, method, metric, protocol, image): kind_of(error) for image in range(IMAGES)}
            continue
        if records[0].protocol != protocol:  # the metric has no curve
            return values_of(records, model, method, metric, "")
        found |= values_of(records, model, method, metric, protocol)
    return found


def values_of(records, model: str, method: str, metric: str, protocol: str) -> dict[ScoreKey, Score]:
    """Records by image: the value, or the status where there is none."""
    return {
        (model, method, metric, protocol, int(record.image)): record.status if record.value is None else record.value
        for record in records
    }


def all_maps() -> dict[tuple[str, str], Map]:
    """Every method on every model."""
    return {pair: map_of(*pair) for pair in product(MODELS, ac.list_methods())}


def all_scores(maps: Mapping[tuple[str, str], Map]) -> dict[ScoreKey, Score]:
    """Every metric of the maps that are scored; a map that is refused has no score."""
    found: dict[ScoreKey, Score] = {}
    for model, metric in product(MODELS, ac.list_metrics()):
        given = {method: maps.get((model, method), "") for method in SCORED[model]}
        found |= scores_of(model, metric, {method: one for method, one in given.items() if not isinstance(one, str)})
    return found
