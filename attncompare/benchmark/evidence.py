"""What metrics ask for, made when it is asked for: scores of altered images, and the method run again."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from attncompare.benchmark.forwarding import fast_forward
from attncompare.benchmark.openvino import openvino_forward
from attncompare.benchmark.randomized import randomized_maps
from attncompare.benchmark.records import Backend, Dtype
from attncompare.capture.target import Target, TargetScore
from attncompare.errors import CaptureError, SpecError, is_out_of_memory
from attncompare.maps import resize_map
from attncompare.metrics._base import Evidence, Explain, Metric, Score
from attncompare.metrics.protocols import ScoreKind
from attncompare.models.adapter import ModelAdapter
from attncompare.state import preserve_state
from attncompare.tuning import applied, check_deviation

T = TypeVar("T")
IMAGES_AT_ONCE = 8
"""As many as an expensive method puts in one pass, unless the caller asks for another number."""
CPU_IMAGES = 4
"""glibc gives the memory of larger activations back after every layer: 8 images of EfficientNet-Lite0 at once cost 1.3 x
what 4 do, in page faults. No model measured (ResNets, ViT-Ti) is more than 5 % faster with 8."""
Again = Callable[[Tensor, Target], Tensor]
"""(images, target) -> maps (n,h,w): the explainer whose map is scored, run once more."""


@dataclass(frozen=True)
class Scene:
    """Clean images (B,3,H,W), the target fixed on them, and where the evidence is known (B,H,W) bool its masks."""

    images: Tensor
    target: TargetScore
    masks: Tensor | None = None
    index: Tensor | None = None

    def subset(self, chosen: Sequence[int]) -> "Scene":
        """Some of the images; the target still knows all of them."""
        index = torch.tensor(chosen, device=self.images.device)
        masks = None if self.masks is None else self.masks[index.cpu()]
        return Scene(self.images[index], self.target, masks, self.rows[index])

    @property
    def rows(self) -> Tensor:
        """(B,) which of the target's images these are."""
        return torch.arange(len(self.images), device=self.images.device) if self.index is None else self.index

    @property
    def targets(self) -> Tensor:
        """(B,) the explained outputs."""
        return self.target.target[self.rows]

    def target_of(self, which: Tensor) -> Target:
        """The target for copies of images `which` (n,); a copy of an embedded image is explained for its own embedding."""
        if self.target.function is not None:
            return self.target.function
        if self.target.prompts:
            return [self.target.prompts[int(row)] for row in self.rows[which]]
        return "embedding" if self.target.references is not None else self.targets[which]


@dataclass(frozen=True)
class Passes:
    """How altered images are scored: how many at once, the seed of what is random, the passes' precision and runtime."""

    batch_size: int = IMAGES_AT_ONCE
    seed: int = 0
    dtype: Dtype = "float32"
    backend: Backend = "torch"


def target_scorer(
    model: ModelAdapter,
    target: TargetScore,
    index: Tensor,
    kind: ScoreKind = "probability",
    passes: Passes = Passes(),
) -> Score:
    """The black box that perturbation metrics query: altered copies -> probability of the fixed target (or cosine).

    index: which of the target's images are being scored, (B,). kind "argmax": 1 while the target is the model's first
    choice, else 0; SpecError for an embedding or a text, which compete with no other class. passes.dtype "bf16": the forward
    passes run under autocast; the score is worked out in float32 from their outputs. passes.backend "openvino": they run
    there; errors as in openvino_forward.
    """
    if kind == "argmax" and not target.of_classes:
        raise SpecError("a protocol that asks for the argmax needs a class as target")
    forward = openvino_forward(model) if passes.backend == "openvino" else fast_forward(model)

    def score(images: Tensor, which: Tensor) -> Tensor:
        with _precision(passes.dtype, images.device):
            parts = in_parts(images, images_a_pass(images.device, len(images)))
            raw = torch.cat([forward(part).float() for part in parts])
        if kind == "argmax":
            first = (raw.argmax(dim=1) == target.target[index[which]]).float()
            return torch.where(raw.isnan().any(dim=1), torch.nan, first)
        return target.probability(raw, index[which])

    return score


def scoring_deviation(model: ModelAdapter, target: TargetScore, images: Tensor, passes: Passes) -> float:
    """The largest difference that tuning and backend make to the scores of images; SpecError beyond 1e-5.

    Scored are the clean images, the same half faded into their mean color (a clean image's probability is often 1 to the
    last digit, whatever the logits), and the first one alone. Costs nothing where neither changes values.
    """
    faded = images.lerp(images.mean(dim=(2, 3), keepdim=True), 0.5)
    index = torch.arange(len(images), device=images.device)

    def scores_of(backend: Backend) -> Callable[[Tensor], Tensor]:
        score = target_scorer(model, target, index, passes=replace(passes, dtype="float32", backend=backend))
        return lambda batch: torch.cat([score(batch, index.repeat(2)), score(batch[:1], index[:1])])

    batch, plain = torch.cat([images, faded]), scores_of("torch")
    if passes.backend == "torch":
        return check_deviation(plain, batch)
    return check_deviation(scores_of(passes.backend), batch, plain, f"backend {passes.backend}")


def images_a_pass(device: torch.device, batch_size: int) -> int:
    """How many images of a batch are forwarded at once: few on a CPU, unless the process was tuned to keep its memory."""
    return batch_size if device.type != "cpu" or applied().keep_memory else min(batch_size, CPU_IMAGES)


def in_parts(images: Tensor, most: int) -> tuple[Tensor, ...]:
    """(n,...) in the fewest parts of at most `most`, of like sizes: one left over would cost up to two of a batch."""
    return torch.tensor_split(images, max(1, -(-len(images) // most)))


def clean_outputs(model: ModelAdapter, images: Tensor) -> Tensor:
    """(B,K) of the unaltered images, a few at a time: memory does not grow with their number."""
    at_once = images_a_pass(images.device, IMAGES_AT_ONCE)
    return torch.cat([model.forward(part) for part in in_parts(images, at_once)])


def _precision(dtype: Dtype, device: torch.device) -> AbstractContextManager[object]:
    return torch.autocast(device.type, torch.bfloat16) if dtype == "bf16" else nullcontext()


def batched(model: ModelAdapter, score: Score, batch_size: int) -> Score:
    """The same score in batches of the run's size, without gradients; half the size each time memory runs out."""

    def run(images: Tensor, which: Tensor, size: int) -> Tensor:
        parts = zip(in_parts(images, size), in_parts(which, size), strict=True)
        return torch.cat([score(part, rows).float() for part, rows in parts])

    def in_batches(images: Tensor, which: Tensor) -> Tensor:
        with torch.no_grad(), preserve_state(model.module):
            return with_smaller_batches(lambda size: run(images, which, size), batch_size)

    return in_batches


def with_smaller_batches(run: Callable[[int], T], batch_size: int) -> T:
    """Run; when memory runs out try again with half the batch, down to 1."""
    while True:
        try:
            return run(batch_size)
        except (RuntimeError, MemoryError) as error:
            if batch_size == 1 or not is_out_of_memory(error):
                raise
            batch_size //= 2


@dataclass(frozen=True)
class Witness:
    """Supplies the evidence on the maps of one scene; whatever costs a pass only when a metric asks for it."""

    model: ModelAdapter
    scene: Scene
    passes: Passes

    def score(self) -> Score:
        """The target's probability or cosine of altered copies."""
        scene = self.scene
        score = target_scorer(self.model, scene.target, scene.rows, passes=self.passes)
        return batched(self.model, score, self.passes.batch_size)

    def shared(self, wanted: Sequence[Metric]) -> dict[Evidence, object]:
        """What is the same for all maps."""
        scene, score = self.scene, self.score()
        found: dict[Evidence, object] = {
            Evidence.IMAGES: scene.images,
            Evidence.TARGET_SCORE: score,
            Evidence.SEED: self.passes.seed,
            Evidence.MEAN_COLOR: scene.images.new_tensor(self.model.mean).reshape(1, -1, 1, 1),
        }
        if scene.masks is not None:
            found[Evidence.MASKS] = scene.masks.cpu()
        if any(Evidence.CLEAN_SCORES in metric.needs for metric in wanted):
            found[Evidence.CLEAN_SCORES] = score(scene.images, torch.arange(len(scene.images)).to(scene.images.device))
        return found

    def again(self, explain: Again) -> dict[Evidence, Callable[[], object]]:
        """What needs the method to run once more."""
        scene = self.scene

        def copies(images: Tensor, which: Tensor) -> Tensor:
            parts = zip(
                torch.split(images, self.passes.batch_size), torch.split(which, self.passes.batch_size), strict=True
            )
            return torch.cat([explain(part, scene.target_of(rows)) for part, rows in parts])

        def shuffled() -> Tensor:
            everything = torch.arange(len(scene.images), device=scene.images.device)
            return torch.cat(
                [resize_map(one, self.model.size).cpu() for one in self._where_possible(copies, everything)]
            )

        return {
            Evidence.EXPLAIN: lambda: copies,
            Evidence.RANDOMIZED_MAPS: lambda: randomized_maps(self.model.module, shuffled, self.passes.seed),
        }

    def _where_possible(self, copies: Explain, which: Tensor) -> list[Tensor]:
        """Maps (n,h,w) of some images; one of which a shuffled model leaves nothing to explain has a map of zeros."""
        try:
            return [copies(self.scene.images[which], which)]
        except CaptureError:
            if len(which) > 1:
                return [part for row in which for part in self._where_possible(copies, row[None])]
            return [torch.zeros(1, *self.model.size)]


def measure(
    metric: Metric, evidence: Mapping[Evidence, object], made: Mapping[Evidence, Callable[[], object]]
) -> Tensor:
    """(B,) a metric of ready evidence and of what is made for it alone; what was made is closed, whatever happens."""
    own = {need: made[need]() for need in metric.needs if need in made}
    try:
        return metric.values({**evidence, **own}).cpu()
    finally:
        for thing in own.values():
            if isinstance(thing, Generator):
                thing.close()
