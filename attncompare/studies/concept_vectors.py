"""Captum's TCAV on the layers of any model: concept vectors, and the scores that their directional derivatives give."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from captum._utils.av import AV
from captum.concept import TCAV, Classifier, Concept
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from attncompare.errors import CaptureError
from attncompare.models.adapter import ModelAdapter
from attncompare.state import frozen_eval

HELD_OUT = 1 / 3  # share of the images that a concept vector's accuracy is measured on
NUMBERS = 4_000_000  # that Captum holds as Python numbers at a time: it turns every concept vector into a list
NET = "net"
CUT_OFF = ("does not require grad", "not have been used in the graph")  # in what torch says of a detached layer


class LinearConcept(Classifier):  # type: ignore[misc]
    """A linear classifier of activations, and its unit normal as the concept vector.

    scikit-learn's SGDClassifier (linear SVM) with the settings of the paper's authors and of Captum, which leave the seed
    open, score in single precision and keep the normal's length; here it is seeded, the split is stratified and the normal
    has length 1, so that magnitudes can be compared. Activations are centered and divided by one number, their root mean
    square, which turns no direction but makes the regularization mean the same in every layer.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.normal = np.zeros(0)
        self.labels = np.zeros(0, dtype=np.int32)

    def train_and_eval(self, dataloader: Any, **options: Any) -> dict[str, Tensor]:
        """Fit on two thirds of the activations; {"accs": accuracy on the rest, at chance 0.5}."""
        batches, labels = zip(*dataloader, strict=True)
        x, y = torch.cat(batches).cpu().float().numpy(), torch.cat(labels).cpu().numpy()
        x, x_out, y, y_out = train_test_split(x, y, test_size=HELD_OUT, stratify=y, random_state=self.seed)
        middle = x.mean(axis=0)
        size = np.sqrt(((x - middle) ** 2).sum(axis=1).mean()) or 1.0
        found = SGDClassifier(alpha=0.01, max_iter=1000, tol=1e-3, random_state=self.seed)
        found.fit((x - middle) / size, y)
        self.normal = found.coef_[0] / (np.linalg.norm(found.coef_[0]) or 1.0)
        self.labels = found.classes_.astype(np.int32)  # of the integers Captum reads back only those of 32 bits
        return {"accs": torch.tensor(found.score((x_out - middle) / size, y_out))}

    def weights(self) -> Tensor:
        """(2,F) the concept vectors of both classes."""
        return torch.tensor(np.stack([-self.normal, self.normal]), dtype=torch.float32)

    def classes(self) -> Any:
        """The classes in the order of `weights`."""
        return self.labels


class _StoredOnce(TCAV):  # type: ignore[misc]
    """Captum 0.9 asks for stored activations with layer and concept swapped, finds none and computes them for every pair."""

    def generate_activations(self, concept_layers: dict[Concept, list[str]]) -> None:
        """Compute those that are not there."""
        for concept, layers in concept_layers.items():
            lacking = [one for one in layers if not AV.exists(self.save_path, self.model_id, concept.identifier, one)]
            super().generate_activations({concept: lacking} if lacking else {})


class _Pixels(nn.Module):
    """The model as Captum wants it: a module that takes images in [0, 1], with the model's own layers inside."""

    def __init__(self, adapter: ModelAdapter) -> None:
        super().__init__()
        self.adapter = adapter
        self.add_module(NET, adapter.module)

    def forward(self, images: Tensor) -> Tensor:
        return self.adapter.forward(images)


@dataclass(frozen=True)
class Question:
    """What is asked of each concept vector: whether moving along it raises the target's logit on these images (B,3,H,W)."""

    images: Tensor
    target: int
    batch: int
    seed: int


def score_pairs(
    model: ModelAdapter,
    layers: Mapping[str, int],
    sets: Sequence[Tensor],
    pairs: Sequence[tuple[int, int]],
    question: Question,
    done: Callable[[int, str], None],
) -> pd.DataFrame:
    """One row per layer and pair of sets: columns layer, first, second, score, magnitude, accuracy, all of the first set.

    layers: path -> values per image. sets: images (n,3,H,W) of every set. A vector points from the second set of a pair to
    the first. score: share of the images on which the derivative of the target's logit along it is above 0. magnitude: mean
    of that derivative, along the unit vector. accuracy: of the classifier on held-out images. done: called with the pairs
    finished since and the layer. Captum's files lie in a temporary folder that is gone afterward. Raises CaptureError for a
    layer along which every derivative is 0: no vector has an opposite score there.
    """
    wrapped = _Pixels(model)
    rows = []
    with frozen_eval(model.module, graph=True), TemporaryDirectory(prefix="attncompare-tcav-") as folder:
        concepts = [Concept(number, "set", torch.split(one, question.batch)) for number, one in enumerate(sets)]
        for path, size in layers.items():
            tcav = _StoredOnce(wrapped, [f"{NET}.{path}"], classifier=LinearConcept(question.seed), save_path=folder)
            for group in _groups(pairs, size):
                try:
                    found = _interpret(tcav, [[concepts[one] for one in pair] for pair in group], question)
                except RuntimeError as error:
                    if any(words in str(error) for words in CUT_OFF):
                        raise _no_gradient(model, path, question) from error
                    raise
                rows += [
                    {"layer": path, "first": pair[0], "second": pair[1], **found[f"{pair[0]}-{pair[1]}"]}
                    for pair in group
                ]
                done(len(group), path)
            if all(row["magnitude"] == 0 for row in rows if row["layer"] == path):
                raise _no_gradient(model, path, question)
    return pd.DataFrame(rows)


def _no_gradient(model: ModelAdapter, path: str, question: Question) -> CaptureError:
    """What to say of a layer in which every derivative is 0."""
    return CaptureError(
        f"every derivative in layer {path!r} of {model.name} is 0: no gradient of class {question.target} reaches it on "
        "these images, or it returns the same for all; choose another layer or other images"
    )


def _groups(pairs: Sequence[tuple[int, int]], size: int) -> Iterator[Sequence[tuple[int, int]]]:
    """As many pairs at a time as Captum can hold the vectors of."""
    most = min(max(1, NUMBERS // (2 * size)), 8)
    return (pairs[start : start + most] for start in range(0, len(pairs), most))


def _interpret(tcav: TCAV, sets: list[list[Concept]], question: Question) -> dict[str, dict[str, float]]:
    """Pair -> score, magnitude and accuracy; means over batches of images, weighted by their sizes."""
    found: dict[str, dict[str, float]] = {}
    layer = tcav.layers[0]
    for images in torch.split(question.images, question.batch):
        share = len(images) / len(question.images)
        for pair, of_layer in tcav.interpret(images.clone(), sets, target=question.target).items():
            row = found.setdefault(pair, {"score": 0.0, "magnitude": 0.0})
            row["score"] += share * float(of_layer[layer]["sign_count"][0])
            row["magnitude"] += share * float(of_layer[layer]["magnitude"][0])
            row["accuracy"] = float(tcav.cavs[pair][layer].stats["accs"])
    return found
