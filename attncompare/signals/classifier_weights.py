"""The classifier's weights of the target."""

from torch import Tensor

from attncompare.capture.forward_pass import ForwardPass
from attncompare.errors import UnsupportedMethodError
from attncompare.models.adapter import ModelAdapter
from attncompare.signals._base import Signal, signal


@signal(cost="shared", inside=False)
class ClassifierWeights(Signal):
    """(B,C) the target's row of a linear classifier on pooled features.

    An embedding's score is linear in it: Y = (W f) . e0 / |e0|, so e0 / |e0| mixes the rows of W. The cosine to a text t is
    (W f) . t / |t| over |W f|, one number per image, which leaves a map's shape as it is.
    """

    def missing(self, model: ModelAdapter) -> str:
        return model.lacks("classifier")

    def read(self, of: ForwardPass) -> Tensor:
        if of.score.function is not None:
            raise UnsupportedMethodError(f"{self.name} belong to a class; the target is a function of several outputs")
        assert of.model.structure.classifier is not None
        linear = of.model.module.get_submodule(of.model.structure.classifier.linear)
        weights: Tensor = linear.weight.detach().flatten(1)  # type: ignore[operator]
        references = of.score.references
        return weights[of.score.target] if references is None else references @ weights
