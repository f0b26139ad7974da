"""A method's passes of its own, over the frozen model, and what they share with the pass before."""

from dataclasses import dataclass

import torch
from torch import Tensor

from attncompare.capture.counting_forward import CountingForward
from attncompare.capture.forward_pass import Recorded
from attncompare.errors import CaptureError
from attncompare.models.adapter import ModelAdapter


@dataclass
class ExtraPass:
    """What an extra signal works with, while the method runs.

    images: (B,3,H,W), as many as there are targets. recorded: what the shared pass found. forward: the model as a module
    that counts its passes.
    """

    model: ModelAdapter
    images: Tensor
    recorded: Recorded
    forward: CountingForward

    def gradient(self, score: Tensor, source: Tensor) -> Tensor:
        """The gradient of the scores (B,) with respect to a tensor; CaptureError where none can arrive."""
        if not score.requires_grad:
            raise CaptureError(f"no gradient of the score reaches what was recorded in {self.model.name}")
        return torch.autograd.grad(score.sum(), source)[0]

    def refuse_silent(self, name: str, parts: list[Tensor]) -> None:
        """CaptureError where a signal is zero for an image: the map would show nothing."""
        silent = torch.stack([part.abs().flatten(1).sum(1) for part in parts]).sum(0) == 0
        if bool(silent.any()):
            raise CaptureError(f"the {name} of {self.model.name} are zero for one image; the map would show nothing")
