"""A model as a module of Captum's kind, whose passes are counted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from attncompare.backward.engine import Rules
from attncompare.capture.feature_hook import FeatureHook, hooked
from attncompare.capture.target import TargetScore
from attncompare.errors import CaptureError
from attncompare.models.adapter import ModelAdapter
from attncompare.models.same_outputs import check_same_outputs
from attncompare.state import disable_mha_fastpath


def score_of_image(target_score: Callable[[Tensor, Tensor], Tensor], index: int) -> Callable[[Tensor], Tensor]:
    """The `target_score` of altered copies (n,3,H,W) of one image of the batch."""
    return lambda copies: target_score(copies, torch.full((len(copies),), index, device=copies.device))


class CountingForward(nn.Module):
    """The model as Captum wants it, (n,3,H,W) -> (n,K), counting the images that pass forward and backward."""

    def __init__(self, model: ModelAdapter, score: TargetScore) -> None:
        super().__init__()
        self.model, self.score = model, score
        self.hook: FeatureHook | None = None  # where the images are copies of one, it makes copies of its features
        self.seen_forward = 0
        self.seen_backward = 0
        self.reached: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        """(n,3,H,W) in [0, 1] -> (n,K)."""
        with disable_mha_fastpath():
            images = images[:1] if self.hook is not None and self.hook.repeat > 1 else images
            outputs = self.score.outputs(self.model.forward(images))
        self._check(images, outputs)
        self.seen_forward += len(images)
        if images.requires_grad:
            images.register_hook(self.watch)  # type: ignore[no-untyped-call]
        if outputs.requires_grad:
            outputs.register_hook(self._count)  # type: ignore[no-untyped-call]
        return outputs

    def _check(self, images: Tensor, outputs: Tensor) -> None:
        """CaptureError where the hooked layer did not run, or where no gradient can arrive that somebody waits for."""
        if self.hook is not None and self.hook.features is None:
            raise CaptureError(f"layer {self.hook.path!r} did not run in the forward pass")
        awaited = torch.is_grad_enabled() and (images.requires_grad or self.hook is not None)
        if awaited and not outputs.requires_grad:
            raise CaptureError(f"no gradient of the score reaches the images in {self.model.name}")

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """The feature hook, if there is one, listens for the length of the block."""
        with nullcontext() if self.hook is None else hooked(self.model.module, self.hook):
            yield

    def under(self, rules: Rules, images: Tensor) -> Tensor:
        """(n,K) of (n,3,H,W), with gradients by `rules`; CaptureError if these change values, checked once for a model."""
        with rules:
            outputs: Tensor = self(images)
        if rules.name not in self.model.checked_recordings:
            with torch.no_grad():
                plain = self.score.outputs(self.model.forward(images))
            what = f"{rules.name} changes the scores of {self.model.name}"
            check_same_outputs(plain, outputs, what, "; its maps would be wrong")
            self.model.checked_recordings.add(rules.name)
        return outputs

    def target_score(self, images: Tensor, which: Tensor) -> Tensor:
        """Altered copies (n,3,H,W) of images `which` (n,) -> (n,) the target's probability, or cosine similarity."""
        with torch.no_grad(), disable_mha_fastpath():
            raw = self.model.forward(images)
        self.seen_forward += len(images)
        return self.score.probability(raw, which)

    def add(self, forward: float, backward: float) -> None:
        """Count passes that were made elsewhere, per image."""
        self.seen_forward += round(forward * len(self.score.target))
        self.seen_backward += round(backward * len(self.score.target))

    def watch(self, gradient: Tensor) -> None:
        """Note for which images a gradient arrives; copies of B images come as rows b, b + B, b + 2 B, ..."""
        count = len(self.score.target)
        reach = gradient.detach().abs().flatten(1).sum(1)
        reach = reach.reshape(-1, count).sum(0) if len(reach) % count == 0 else reach.sum().expand(count)
        self.reached = reach if self.reached is None else self.reached + reach

    def _count(self, gradient: Tensor) -> None:
        self.seen_backward += len(gradient)
