"""How far is every method from a reference? `python benchmarks/conformance.py [--readme]`, some three minutes on 2 cores.

Each map is compared, raw, with another library's (never the one that computes it) and with the formula written down again
in float64 (tests/references). A number is the largest absolute difference of a pixel as a share of that map's range, over
all images of all models named beside it. Writes benchmarks/results/conformance.csv; --readme also the table between the
`<!-- conformance -->` marks of docs/conformance.md. Exits 1 if a difference exceeds its tolerance.
"""

import argparse
import contextlib
import csv
import io
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from conftest import wrap_tiny  # noqa: E402
from references import (  # noqa: E402
    cams,
    controls,
    gradients,
    lrp,
    peers,
    perturbation,
    transformer,
    windows,
)
from references.compare import difference  # noqa: E402

import attncompare as ac  # noqa: E402
from attncompare.errors import AttnCompareError  # noqa: E402
from attncompare.methods._base import methods  # noqa: E402
from attncompare.methods.rise import random_masks  # noqa: E402
from attncompare.models.adapter import ModelAdapter  # noqa: E402
from attncompare.signals.superpixels import superpixels  # noqa: E402

Reference = Callable[[ModelAdapter, Tensor, Tensor], Tensor]
TOLERANCE = 1e-5
FLOAT64 = "formula in float64"
CNN, SE_CNN, VIT, POOLED, HF, TV = "cnn", "demo/se_cnn", "vit", "vit_mean", "hf_vit", "vit_torchvision"
WORDS = {CNN: "tiny CNN", VIT: "tiny ViT", POOLED: "tiny pooled ViT", HF: "tiny HF ViT", TV: "tiny torchvision ViT",
         "hf_swin": "tiny HF Swin"}  # fmt: skip
CNNS, VITS = (CNN, "demo/cnn", "torchvision/resnet18@random"), (VIT, "demo/vit", POOLED, HF)
SAMPLES, SEGMENTS, MASKS = 200, 8, 100


@dataclass(frozen=True)
class Check:
    """A method held to one reference on some models; `options` make both meet the same samples."""

    method: str
    source: str
    reference: Reference
    models: tuple[str, ...]
    options: dict[str, object] = field(default_factory=dict)
    tolerance: float = TOLERANCE


def hf_swin() -> ModelAdapter:
    """Transformers' Swin with one block per stage: all attentions are those that it returns."""
    import transformers

    sizes = {"image_size": 32, "patch_size": 2, "embed_dim": 24, "depths": [1, 1], "num_heads": [2, 2]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.SwinConfig(**sizes, window_size=4, num_labels=5)
        module = transformers.SwinForImageClassification(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in module.parameters():
            value += 0.15 * torch.randn(value.shape, generator=generator)
    return ac.wrap_model(module, size=(32, 32), name="tiny/hf_swin")


@cache
def opened(name: str) -> tuple[ModelAdapter, Tensor, Tensor]:
    """A model, two images, and for each the class that the model gives it."""
    model = hf_swin() if name == "hf_swin" else ac.load_model(name) if "/" in name else wrap_tiny(name)
    images = torch.rand(2, 3, *model.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model, images, model.forward(images).argmax(dim=1)


def on_superpixels(values: Callable[..., object]) -> Reference:
    """Numbers per superpixel -> maps."""

    def run(model: ModelAdapter, images: Tensor, target: Tensor) -> Tensor:
        maps = []
        for image, labels, index in zip(images, superpixels(images, SEGMENTS), target, strict=True):
            maps.append(torch.as_tensor(values(model, image, labels, int(index)))[labels])
        return torch.stack(maps)

    return run


def lime(model: ModelAdapter, image: Tensor, labels: Tensor, index: int) -> object:
    drawn = perturbation.drawn_by_lime(int(labels.max()) + 1, SAMPLES)
    return perturbation.lime(model, image, labels, index, drawn)


def kernel_shap(model: ModelAdapter, image: Tensor, labels: Tensor, index: int) -> object:
    return perturbation.kernel_shap(model, image, labels, index, SAMPLES)


def rise(model: ModelAdapter, images: Tensor, target: Tensor) -> Tensor:
    return perturbation.rise(model, images, target, list(random_masks(MASKS, model.size, 7, 0.5, 0)))


def guided(model: ModelAdapter, images: Tensor, target: Tensor) -> Tensor:
    return peers.captum_guided(model, images, target).abs().amax(dim=1)


def behind_relu(kind: str) -> Reference:
    """pytorch-grad-cam's weights on the float64 features and gradients of the layer."""

    def run(model: ModelAdapter, images: Tensor, target: Tensor) -> Tensor:
        return torch.as_tensor(peers.on_our_features(kind)(*cams.features_and_gradients(model, images, target)))

    return run


def library_checks() -> Iterator[Check]:
    """Other libraries' maps."""
    for name, kind in (("grad_cam", "GradCAM"), ("hires_cam", "HiResCAM"), ("layer_cam", "LayerCAM")):
        yield Check(name, "pytorch-grad-cam", peers.grad_cam_family(kind), (*CNNS, *VITS))
    for name, kind in (("grad_cam", "GradCAM"), ("layer_cam", "LayerCAM")):
        yield Check(name, "torch-cam", peers.torch_cam(kind), CNNS)
    yield Check("xgrad_cam", "pytorch-grad-cam's weights", behind_relu("XGradCAM"), CNNS[:2])
    yield Check("score_cam", "pytorch-grad-cam, corners not aligned", peers.score_cam, (CNN, "demo/cnn", VIT, HF))
    yield Check("ablation_cam", "pytorch-grad-cam", peers.ablation_cam, CNNS[:2])
    yield Check(
        "finer_cam", "pytorch-grad-cam", peers.finer_cam, ("torchvision/resnet18@random", "demo/vit", VIT, POOLED)
    )
    yield Check("saliency", "captum", peers.captum_saliency, (*CNNS, *VITS))
    yield Check("input_x_gradient", "captum", peers.captum_input_x_gradient, (*CNNS, *VITS))
    yield Check("guided_backprop", "captum", guided, CNNS)
    yield Check("guided_grad_cam", "captum", peers.captum_guided_grad_cam, CNNS)
    yield Check("attn_lrp", "zennit's gamma rule", peers.zennit_gamma, CNNS[:2])
    yield Check("legrad", "torch-cam, given the read-out", peers.torch_cam_legrad, (TV,))
    yield Check("class_attention", "transformers' attentions", peers.transformers_class_attention, (HF,))
    yield Check("attention_rollout", "transformers' attentions", peers.transformers_rollout, (HF,))
    yield Check("window_attention", "transformers' attentions", windows.window_attention, ("hf_swin",))
    yield Check("hierarchical_rollout", "transformers' attentions", windows.hierarchical_rollout, ("hf_swin",))
    yield Check("edge_map", "scipy", controls.edge_map, (CNN,))


def derived_checks() -> Iterator[Check]:
    """Formulas written down again."""

    def check(method: str, reference: Reference, *models: str, **options: object) -> Check:
        return Check(method, FLOAT64, reference, models, options)

    yield check("center_map", controls.center_map, CNN)
    yield check("random_map", controls.random_map, CNN)
    for name in ("activation", "grad_cam", "hires_cam", "layer_cam", "eigen_cam"):
        yield check(name, getattr(cams, name), *CNNS, *VITS)
    yield check("grad_cam_pp", cams.grad_cam_pp, *CNNS)
    yield check("xgrad_cam", cams.xgrad_cam, *CNNS)
    yield check("cam", cams.cam, *CNNS)
    yield check("channel_attention", cams.channel_attention, SE_CNN)
    yield check("se_activation", cams.se_activation, SE_CNN)
    yield check("score_cam", cams.score_cam, CNN, VIT, HF)
    yield check("ablation_cam", cams.ablation_cam, CNN, VIT, POOLED)
    yield check("finer_cam", cams.finer_cam, "torchvision/resnet18@random", VIT, "demo/vit", POOLED)
    for name in ("saliency", "input_x_gradient"):
        yield check(name, getattr(gradients, name), *CNNS, *VITS)
    for name in ("integrated_gradients", "smooth_grad", "gradient_shap"):
        yield check(name, getattr(gradients, name), CNN, VIT, POOLED)
    for name in ("guided_backprop", "guided_grad_cam"):
        yield check(name, getattr(gradients, name), CNN, "demo/cnn")
    yield check("deep_lift", gradients.deep_lift, CNN)
    yield check("occlusion", perturbation.occlusion, CNN, VIT, POOLED)
    yield check("rise", rise, CNN, VIT, POOLED, n_masks=MASKS)
    yield check("lime", on_superpixels(lime), CNN, VIT, POOLED, n_samples=SAMPLES, n_segments=SEGMENTS)
    yield check("kernel_shap", on_superpixels(kernel_shap), CNN, VIT, POOLED, n_samples=SAMPLES, n_segments=SEGMENTS)
    for name in ("class_attention", "attention_rollout", "attention_x_gradient", "gradient_rollout", "legrad"):
        yield check(name, getattr(transformer, name), *VITS)
    yield check("transformer_lrp", lrp.transformer_lrp, VIT, POOLED, HF)
    yield check("attn_lrp", lrp.attn_lrp, VIT, POOLED, HF)


def shown(values: Tensor, expected: Tensor) -> float:
    """The difference over the images whose map is not constant; at least one is not."""
    values, expected = torch.as_tensor(values), torch.as_tensor(expected)
    varying = [index for index, one in enumerate(expected) if float(one.max() - one.min()) > 0]
    if not varying:
        raise ValueError("all maps of the reference are constant")
    return difference(values[varying], expected[varying])


def measure(check: Check) -> dict[str, object]:
    """One line of the table."""
    found = []
    for name in check.models:
        model, images, target = opened(name)
        try:
            values = ac.make_explainer(model, check.method, **check.options).explain(images, target).values
        except AttnCompareError as error:
            print(f"{check.method} on {name}: {error}", file=sys.stderr)
            found.append(float("inf"))  # the table says so: a method that is held to a reference there must run there
            continue
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            found.append(shown(values, check.reference(model, images, target)))
    models = ", ".join(WORDS.get(name, name) for name in check.models)
    return {"method": check.method, "reference": check.source, "models": models, "max_difference": f"{max(found):.1e}",
            "tolerance": f"{check.tolerance:.0e}"}  # fmt: skip


def table(rows: list[dict[str, object]]) -> str:
    """The rows in Markdown."""
    lines = ["| method | reference | models | largest difference / range |", "|---|---|---|---|"]
    return "\n".join(
        lines + [f"| `{r['method']}` | {r['reference']} | {r['models']} | {r['max_difference']} |" for r in rows]
    )


def write_readme(path: Path, rows: list[dict[str, object]]) -> None:
    """Put the table between the marks."""
    first, last, text = "<!-- conformance -->", "<!-- /conformance -->", path.read_text()
    if text.count(first) != 1 or text.count(last) != 1:
        raise SystemExit(f"{path.name} needs one line {first} before the table and one {last} behind it")
    before, rest = text.split(first)
    path.write_text(f"{before}{first}\n{table(rows)}\n{last}{rest.split(last)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", action="store_true", help="write the table into docs/conformance.md")
    parser.add_argument("--only", help="one method")
    asked = parser.parse_args()
    checks = [c for c in (*library_checks(), *derived_checks()) if asked.only in (None, c.method)]
    missing = sorted(set(methods.names()) - {check.method for check in checks}) if asked.only is None else []
    rows = []
    for check in sorted(checks, key=lambda one: (one.method, one.source)):
        rows.append(measure(check))
        print("  ".join(str(value) for value in rows[-1].values()), flush=True)
    if asked.only is None:
        with (HERE / "results" / "conformance.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    if asked.readme:
        write_readme(HERE.parent / "docs" / "conformance.md", rows)
    beyond = [row["method"] for row in rows if float(str(row["max_difference"])) > float(str(row["tolerance"]))]
    if beyond or missing:
        raise SystemExit(f"beyond tolerance: {beyond}; without a reference: {missing}")


if __name__ == "__main__":
    main()
