"""The memory cases, and the child process that measures one: `python memory_cases.py NAME` prints one line of JSON."""

import gc
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

# Freed tensors go back to the system at once, so RSS is what is alive; a thread's own arena would hide some of it.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
RESNET18, RESNET50 = "torchvision/resnet18@random", "torchvision/resnet50@random"
TINY, BASE = "timm/vit_tiny_patch16_224@random", "timm/vit_base_patch16_224@random"
TOKENS = {197: 224, 577: 384, 1370: 592, 4097: 1024}  # number of tokens -> image side, at patches of 16
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """Whose method on which model, and how much memory it may take.

    by: attncompare, or a function of peers.py. calls: how often it runs while the peak is measured. tokens: a ViT-Ti
    with that many, in place of a named model.
    """

    method: str
    model: str
    batch: int = 1
    by: str = "attncompare"
    limit_mb: float | None = None
    limit_ratio: float | None = None
    calls: int = 1
    tokens: int | None = None
    options: Mapping[str, object] = field(default_factory=dict)


def _grad_cams() -> dict[str, Case]:
    found = {}
    for model in (RESNET18, RESNET50, TINY, BASE):
        short = model.split("/")[1].removesuffix("@random")
        for batch in (1, 8):
            found[f"grad_cam/{short}/{batch}/attncompare"] = Case("grad_cam", model, batch, limit_ratio=1.2)
            for by in ("grad_cam_library", "torchcam", "captum_layer_grad_cam"):
                if model in (RESNET50, BASE) and batch == 8 and not (by.startswith("captum") and model == BASE):
                    found[f"grad_cam/{short}/{batch}/{by}"] = Case("GradCAM", model, batch, by)
    return found


def _many_passes() -> dict[str, Case]:
    found = {}
    for model in (RESNET18, RESNET50, TINY):
        short = model.split("/")[1].removesuffix("@random")
        for method, options in (("occlusion", {"window": 0.5}), ("rise", {"n_masks": 64}), ("score_cam", {})):
            if method != "score_cam" or model in (RESNET18, TINY):
                found[f"{method}/{short}/1/attncompare"] = Case(method, model, limit_mb=200, options=options)
        case = Case("integrated_gradients", model, limit_mb=300, options={"n_steps": 50})
        found[f"integrated_gradients/{short}/1/attncompare"] = case
    peer = Case("IntegratedGradients", RESNET18, by="captum", options={"n_steps": 50})
    found["integrated_gradients/resnet18/1/captum"] = peer
    found["score_cam/resnet18/1/grad_cam_library"] = Case("ScoreCAM", RESNET18, by="grad_cam_library")
    return found


def _growth() -> dict[str, Case]:
    tokens = {
        f"{method}/{count} tokens/1/attncompare": Case(method, f"ViT-Ti, {count} tokens", tokens=count)
        for method in ("class_attention", "attention_rollout")
        for count in TOKENS
    }
    repeated = {
        f"{method}/{model.split('/')[1].removesuffix('@random')}/1/200 calls": Case(method, model, calls=200)
        for model, method in ((RESNET18, "grad_cam"), (RESNET18, "saliency"), (TINY, "class_attention"),
                              (TINY, "attention_rollout"), (TINY, "gradient_rollout"))
    }  # fmt: skip
    return {**tokens, **repeated}


CASES: dict[str, Case] = {**_grad_cams(), **_many_passes(), **_growth()}


def _status(field_: str) -> float:
    """A field of this process's status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field_ + ":")) / 1024


def peak_of(run: Callable[[], object]) -> float:
    """Peak RSS while it runs, less the RSS before, in MiB."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def measure(case: Case) -> dict[str, float]:
    """peak_mb of the case, plain_mb of a plain forward of the same batch, grown_mb left behind by repeated calls."""
    import peers
    import torch

    import attncompare as ac

    torch.set_num_threads(2)
    if case.tokens:
        import timm

        side = TOKENS[case.tokens]
        model = ac.wrap_model(timm.create_model("vit_tiny_patch16_224", img_size=side).eval(), size=(side, side))
    else:
        model = ac.load_model(case.model)
    images = torch.rand(case.batch, 3, *model.size)

    def call(images: torch.Tensor) -> None:
        target = torch.arange(len(images))
        if case.by == "attncompare":
            ac.explain_together(model, [(case.method, case.options)], images, target)
        elif case.by in ("captum", "grad_cam_library"):
            getattr(peers, case.by)(model, images, target, case.method, **case.options)
        else:
            getattr(peers, case.by)(model, images, target)

    def plain() -> None:
        with torch.no_grad():
            model.forward(images)

    for warm_up in (lambda: call(images[:1]), plain, plain):  # libraries imported, kernels chosen, checks done once
        warm_up()
    model.module.zero_grad(set_to_none=True)
    plain_mb = peak_of(plain)
    call(images)
    model.module.zero_grad(set_to_none=True)
    found = {"plain_mb": plain_mb, "peak_mb": peak_of(lambda: call(images))}
    if case.calls > 1:
        gc.collect()
        before = _status("VmRSS")
        for _ in range(case.calls):
            call(images)
        gc.collect()
        found["grown_mb"] = _status("VmRSS") - before
    return found


if __name__ == "__main__":
    if not all(os.environ.get(name) == value for name, value in ALLOCATOR.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **ALLOCATOR})
    print(json.dumps(measure(CASES[sys.argv[1]])))
