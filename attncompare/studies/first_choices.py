"""Where the evidence for each of a model's first choices lies."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from attncompare.errors import SpecError, UnsupportedMethodError, UnsupportedModelError
from attncompare.explain import explain_targets, make_job
from attncompare.maps import AttributionMap
from attncompare.models.adapter import ModelAdapter
from attncompare.registry import Request
from attncompare.studies.pictures import Given, Pictures, pictures_of


@dataclass(frozen=True)
class TopClasses:
    """The maps of the k classes that a model finds most probable in each of B images, by one method.

    target: (B,k) class indices, the most probable first; names: theirs; probability: (B,k); maps: (B,k,h,w).
    """

    model: str
    method: str
    pictures: Pictures
    target: NDArray[np.int64]
    names: tuple[tuple[str, ...], ...]
    probability: NDArray[np.float64]
    maps: NDArray[np.float32]

    def table(self) -> pd.DataFrame:
        """One row per image and class: rank from 1, index, name and probability."""
        rows = [
            {
                "model": self.model,
                "method": self.method,
                "image": name,
                "rank": rank + 1,
                "class": int(self.target[image, rank]),
                "name": self.names[image][rank],
                "probability": float(self.probability[image, rank]),
            }
            for image, name in enumerate(self.pictures.names)
            for rank in range(self.target.shape[1])
        ]
        return pd.DataFrame(rows)


def top_classes(model: ModelAdapter, images: Given, method: Request = "cam", k: int = 5) -> TopClasses:
    """Explain the k most probable classes of each image; fewer where the model has fewer.

    images: (B,3,H,W) in [0, 1], files, or a data set. method: a name or (name, options) of a method whose map depends on
    the class. `cam` and the other methods of the shared pass take one forward pass per image, as `explain_targets` does.
    Raises UnsupportedMethodError where the model lacks what the method needs or all classes would have one map.

    >>> import attncompare as ac
    >>> found = top_classes(ac.load_model("demo/cnn"), ac.open_dataset("shapes", limit=1), "cam", k=2)
    >>> found.maps.shape, found.names
    ((1, 2, 8, 8), (('tee', 'square'),))
    """
    if k < 1:
        raise SpecError(f"k must be at least 1, not {k}")
    job = make_job(model, method)
    name = job.method.name
    if model.embedding:
        raise UnsupportedModelError(f"{model.name} has no classifier, so there are no first choices to explain")
    if not job.method.class_sensitive or job.method.space != "image":
        why = "its map does not depend on the class" if job.method.space == "image" else "it has no map on the image"
        raise UnsupportedMethodError(f"{name} cannot tell a model's first choices apart: {why}")
    pictures = pictures_of(model, images)
    ranks = [f"rank:{rank}" for rank in range(1, min(k, model.structure.outputs) + 1)]
    found = [explain_targets(model, [(name, job.options)], one[None], ranks)[name] for one in pictures.images]
    return TopClasses(
        model.name,
        name,
        pictures,
        np.asarray(torch.stack([one.target for one in found]).cpu()),
        tuple(tuple(model.class_name(index) for index in one.target.tolist()) for one in found),
        torch.stack([_probability(one) for one in found]).cpu().double().numpy(),
        torch.stack([one.values for one in found]).cpu().numpy(),
    )


def _probability(found: AttributionMap) -> Tensor:
    assert found.probability is not None  # ranks are read off a pass over the clean image
    return found.probability
