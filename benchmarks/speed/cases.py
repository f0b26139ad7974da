"""What is timed: for every case the jobs of this package and its peers, their references and the issue's targets."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import peers
import torch
from rounds import Job
from torch import Tensor

from attncompare.explain import explain_together
from attncompare.methods._base import methods
from attncompare.models.adapter import ModelAdapter

PLAIN = "(plain forward)"
OURS = "attncompare"
SHARED_CNN = "activation eigen_cam cam grad_cam_pp xgrad_cam layer_cam hires_cam saliency input_x_gradient"
SHARED_VIT = (
    "layer_cam hires_cam eigen_cam class_attention attention_rollout attention_x_gradient gradient_rollout "
    "saliency input_x_gradient"
)
ELSEWHERE = {"eigen_cam": {"layer": "blocks.10"}}
"""Options on an untrained ViT: behind the LayerNorm that is its feature layer Eigen-CAM has no sign, and is refused."""


@dataclass
class Bench:
    """A model, a batch of images with their targets, and the jobs collected so far for one case."""

    model: ModelAdapter
    images: Tensor
    target: Tensor
    jobs: list[Job] = field(default_factory=list)

    def ours(self, name: str, **options: object) -> Callable[[], object]:
        """A method of this package for a given target."""
        return lambda: explain_together(self.model, [(name, options)], self.images, self.target)

    def plain(self) -> None:
        """One forward pass of the batch."""
        with torch.no_grad():
            self.model.forward(self.images)

    def add(self, name: str, run: Callable[[], object], target: float | None = None, **rest: object) -> None:
        """One job, its ratio taken to the plain forward unless `reference` says otherwise."""
        self.jobs.append(Job(name, run, **{"reference": PLAIN, "target": target, **rest}))  # type: ignore[arg-type]

    def add_with_its_forwards(
        self, name: str, run: Callable[[], object], target: float | None, *, gradients: bool = False
    ) -> None:
        """A job with many passes, its ratio taken to bare forwards of the same batches (of the gradient passes only)."""
        sizes: list[int] = []

        def note(module: object, args: tuple[Tensor, ...]) -> None:
            if args[0].requires_grad or not gradients:
                sizes.append(len(args[0]))

        handle = self.model.module.register_forward_pre_hook(note)
        run()
        handle.remove()
        copies = {size: torch.rand(size, *self.images.shape[1:]) for size in sizes}

        def bare() -> None:
            with torch.no_grad():
                for size in sizes:
                    self.model.forward(copies[size])

        reference = f"({len(sizes)} bare forwards of {name})"
        self.jobs.append(Job(reference, bare))
        self.add(name, run, target, reference=reference)


def together(bench: Bench) -> None:
    """Nine methods on shared signals against one forward and one backward pass down to the images."""
    model, parameters = bench.model, list(bench.model.module.parameters())

    def forward_and_backward() -> None:
        for parameter in parameters:
            parameter.requires_grad_(False)
        images = bench.images.clone().requires_grad_(True)
        torch.autograd.grad(model.forward(images).gather(1, bench.target[:, None]).sum(), images)
        for parameter in parameters:
            parameter.requires_grad_(True)

    names, options = (SHARED_CNN.split(), {}) if model.family == "cnn" else (SHARED_VIT.split(), ELSEWHERE)
    asked = [(name, options.get(name, {})) for name in names]
    reference = "(forward + backward)"
    bench.jobs.append(Job(reference, forward_and_backward))
    run = lambda: explain_together(model, asked, bench.images, bench.target)  # noqa: E731
    bench.add(f"{OURS}, {len(names)} methods", run, 1.3, reference=reference)


def grad_cam(bench: Bench) -> None:
    model, images, target = bench.model, bench.images, bench.target
    bench.add(f"{OURS}, target given", bench.ours("grad_cam"), 1.1)
    bench.add(f"{OURS}, own top class", lambda: explain_together(model, ["grad_cam"], images), 1.1)
    bench.add("pytorch-grad-cam", lambda: peers.grad_cam_library(model, images, target, "GradCAM"))
    bench.add("torchcam", lambda: peers.torchcam(model, images, target))
    if model.tokens is None:  # on tokens its map is wrong
        bench.add("captum, bare layer", lambda: peers.captum_layer_grad_cam(model, images, target))


def class_attention(bench: Bench) -> None:
    bench.add(OURS, bench.ours("class_attention"), 1.03)


def attention_rollout(bench: Bench) -> None:
    bench.add(OURS, bench.ours("attention_rollout"), 1.10)
    bench.add("vit-explain style", lambda: peers.vit_explain_rollout(bench.model, bench.images))


def gradient_rollout(bench: Bench) -> None:
    bench.add(OURS, bench.ours("gradient_rollout"), 2.4)
    bench.add("vit-explain style", lambda: peers.vit_explain_gradient_rollout(bench.model, bench.images, bench.target))


def input_gradients(bench: Bench) -> None:
    """One gradient: the plain forward is its only forward."""
    limit = 2.3 if bench.model.family == "cnn" else 2.4
    for ours, theirs in (("saliency", "Saliency"), ("input_x_gradient", "InputXGradient")):
        bench.add(f"{OURS}, {ours}", bench.ours(ours), limit)
        bench.add(f"captum, {theirs}", lambda name=theirs: peers.captum(bench.model, bench.images, bench.target, name))


def many_gradients(bench: Bench) -> None:
    """Per gradient: the reference is one bare forward for every pass that has a gradient."""
    limit = 2.3 if bench.model.family == "cnn" else 2.4
    small = bench.images.shape[0] == 1 and bench.model.family == "cnn"
    steps, samples = (50, 10) if small else (8, 3)
    bench.add_with_its_forwards(
        f"{OURS}, integrated_gradients({steps})",
        bench.ours("integrated_gradients", n_steps=steps),
        limit,
        gradients=True,
    )
    bench.add_with_its_forwards(
        f"{OURS}, smooth_grad({samples})", bench.ours("smooth_grad", n_samples=samples), limit, gradients=True
    )
    theirs = lambda: peers.captum(bench.model, bench.images, bench.target, "IntegratedGradients", n_steps=steps)  # noqa: E731
    bench.add_with_its_forwards(f"captum, IntegratedGradients({steps})", theirs, None, gradients=True)


def occlusion(bench: Bench) -> None:
    window = 0.25 if len(bench.images) == 1 else 0.5
    height, width = bench.images.shape[2:]
    bench.add_with_its_forwards(
        f"{OURS}, passes of 8", bench.ours("occlusion", window=window, stride=1.0, internal_batch_size=8), 1.05
    )
    side = (3, round(window * height), round(window * width))
    options = {"sliding_window_shapes": side, "strides": side, "perturbations_per_eval": 8 // len(bench.images)}
    theirs = lambda: peers.captum(bench.model, bench.images, bench.target, "Occlusion", **options)  # noqa: E731
    bench.add_with_its_forwards("captum, passes of 8", theirs, None)


def rise(bench: Bench) -> None:
    masks = 64 if len(bench.images) == 1 else 8
    bench.add_with_its_forwards(
        f"{OURS}, {masks} masks, passes of 8", bench.ours("rise", n_masks=masks, internal_batch_size=8), 1.05
    )


def score_cam(bench: Bench) -> None:
    """Every channel is a pass: the smallest models at batch 1 only."""
    ours = bench.ours("score_cam", internal_batch_size=8)
    bench.add_with_its_forwards(f"{OURS}, passes of 8", ours, 1.05)
    theirs = lambda: peers.grad_cam_library(bench.model, bench.images, bench.target, "ScoreCAM", batch_size=8)  # noqa: E731
    bench.add("pytorch-grad-cam, passes of 8", theirs, reference=bench.jobs[-1].reference, most=1)


def ablation_cam(bench: Bench) -> None:
    bench.add(OURS, bench.ours("ablation_cam"), 1.5)
    if len(bench.images) == 1 and bench.model.name == SMALL[0]:  # on a ViT it needs a layer of its own
        theirs = lambda: peers.grad_cam_library(bench.model, bench.images, bench.target, "AblationCAM")  # noqa: E731
        bench.add("pytorch-grad-cam", theirs, most=1)


def legrad(bench: Bench) -> None:
    bench.add(f"{OURS}, all blocks", bench.ours("legrad"), 2.6)


def transformer_lrp(bench: Bench) -> None:
    bench.add(OURS, bench.ours("transformer_lrp"))


SMALL = ("torchvision/resnet18@random", "timm/vit_tiny_patch16_224@random")
CASES: Mapping[str, Callable[[Bench], None]] = {
    case.__name__: case
    for case in (
        together, grad_cam, class_attention, attention_rollout, gradient_rollout, input_gradients, many_gradients,
        occlusion, rise, score_cam, ablation_cam, legrad, transformer_lrp,
    )
}  # fmt: skip
NEEDS_METHOD = frozenset(CASES) - {"together", "input_gradients", "many_gradients"}


def applies(case: str, model: ModelAdapter, batch: int) -> bool:
    """Whether the method exists, the model supplies what it needs, and the case ends in minutes."""
    if case in NEEDS_METHOD and (case not in methods.names() or not model.supplies >= set(methods.get(case).needs)):
        return False
    return case != "score_cam" or (batch == 1 and model.name in SMALL)
