"""The checks of the coverage sweep: what a model can supply, and whether what it supplies is right.

Each check returns a note (mostly empty), raises RefusedError when the library said beforehand that it cannot do this, or
raises anything else.
"""

from __future__ import annotations

import copy
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from coverage_models import Case, Subject, depth_of, matched, open_case, smooth_images
from torch import Tensor, nn

import attncompare as ac
from attncompare.capture.forward_pass import record
from attncompare.errors import UnsupportedMethodError, UnsupportedModelError
from attncompare.methods._base import methods
from attncompare.models.adapter import ModelAdapter
from attncompare.signals._base import request

SAME = 1e-4  # largest share of a map's spread, or of the largest logit, by which two computations may differ


class RefusedError(Exception):
    """The library said beforehand that it cannot do this, and why."""


def _require(subject: Subject, method: str) -> None:
    """RefusedError when the method does not exist, or a signal that it needs is missing."""
    if method not in ac.list_methods():
        raise RefusedError("method not built")
    missing = subject.adapter.missing
    for signal in methods.get(method).needs:
        if signal in missing:
            raise RefusedError(missing[signal])


def _explain(subject: Subject, *names: str, images: Tensor | None = None, **options: object) -> list[Tensor]:
    """The values of these methods from one pass, finite, one map per image."""
    images = subject.images if images is None else images
    for name in names:
        _require(subject, name)
    found = ac.explain_together(subject.adapter, [(name, options) for name in names], images)
    for name, explained in found.items():
        assert len(explained.values) == len(images), f"{name} gave {tuple(explained.values.shape)}"
        assert bool(torch.isfinite(explained.values).all()), f"{name} is not finite"
    return [found[name].values for name in names]


def _assert_varied(name: str, values: Tensor) -> None:
    """No image's map is one constant."""
    spread = values.flatten(1).amax(1) - values.flatten(1).amin(1)
    assert bool((spread > 1e-6 * values.abs().flatten(1).amax(1)).all()), f"{name} is constant"


def _assert_same(name: str, found: Tensor, expected: Tensor) -> float:
    """Equal up to rounding at the scale of how much the expected values vary; returns the difference on that scale."""
    assert found.shape == expected.shape, f"{name} has shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    scale = float((expected - expected.mean()).abs().max())
    error = float((found - expected).abs().max()) / max(scale, 1e-30)
    assert error <= SAME, f"{name} differs by {error:.2g} of its spread"
    return error


def check_features(subject: Subject) -> str:
    """4-D, finite, varied, on a grid of more than one cell."""
    if "features" in subject.adapter.missing:
        raise RefusedError(subject.adapter.missing["features"])
    features = subject.features
    assert features.ndim == 4 and min(features.shape[2:]) > 1, f"features have shape {tuple(features.shape)}"
    assert bool(torch.isfinite(features).all()), "features are not finite"
    _assert_varied("features", features)
    assert bool((features[0] != features[1]).any()), "features do not depend on the image"
    return ""


def check_gradients(subject: Subject) -> str:
    """Captum's Grad-CAM equals the formula on captured features and gradients, and lies on the feature grid."""
    (found,) = _explain(subject, "grad_cam")
    gradients = subject.record("feature_gradients")
    raw = (gradients.mean((2, 3), keepdim=True) * subject.features).sum(1)
    _assert_varied("grad_cam before the ReLU", raw)
    assert found.shape == raw.shape, f"grad_cam is {tuple(found.shape)}, its features {tuple(raw.shape)}"
    error = float((found - raw.relu()).abs().max() / raw.abs().max())
    assert error <= SAME, f"grad_cam differs from its formula by {error:.2g}"
    return ""


def check_image_gradients(subject: Subject) -> str:
    """Saliency, one value per pixel, and the same for an image alone as beside another."""
    (found,) = _explain(subject, "saliency")
    assert found.shape[1:] == subject.images.shape[2:]
    _assert_varied("saliency", found)
    alone = torch.cat([_explain(subject, "saliency", images=image[None])[0] for image in subject.images])
    if _share(alone, found) > SAME:  # a random net may only be badly conditioned
        pair = subject.images.double()
        found = _gradients_in_double(subject, pair)
        alone = torch.cat([_gradients_in_double(subject, image[None]) for image in pair])
    error = _share(alone, found)
    assert error <= SAME, f"saliency of an image alone differs by {error:.2g} from that beside another"
    return ""


def _share(found: Tensor, expected: Tensor) -> float:
    """The largest difference as a share of the image's largest value."""
    return float(((found - expected).abs().flatten(1).amax(1) / expected.abs().flatten(1).amax(1)).max())


def _gradients_in_double(subject: Subject, images: Tensor) -> Tensor:
    """(B,3,H,W) the gradient of the top output."""
    adapter = subject.adapter
    adapter.module.double()
    try:
        images = images.clone().requires_grad_(True)
        top = adapter.forward(images).amax(1)
        return torch.autograd.grad(top.sum(), images)[0]
    finally:
        adapter.module.float()


def check_black_box(subject: Subject) -> str:
    """A gray square in the middle moves the score."""
    images = subject.images.clone()
    h, w = images.shape[2:]
    images[:, :, h // 3 : 2 * h // 3, w // 3 : 2 * w // 3] = 0.5
    with torch.no_grad():
        change = (subject.adapter.forward(images) - subject.logits).abs().amax(1)
    assert bool((change > 0).all()), "a gray square does not move the logits"
    return ""


def check_classifier(subject: Subject) -> str:
    """CAM's mean over the grid plus the bias is the target's logit."""
    (found,) = _explain(subject, "cam")
    classifier = subject.adapter.structure.classifier
    assert classifier is not None
    if subject.adapter.embedding:
        return ""
    linear = subject.adapter.module.get_submodule(classifier.linear)
    logits = subject.logits
    target = logits.argmax(1)
    bias = linear.bias.detach()[target] if isinstance(linear.bias, Tensor) else torch.zeros(())
    error = float((found.mean((1, 2)) + bias - logits.gather(1, target[:, None])[:, 0]).abs().max())
    assert error <= SAME * float(logits.abs().max()), f"the mean of CAM misses the logit by {error:.2g}"
    return ""


def _assert_on_tokens(subject: Subject, *names: str) -> None:
    """These methods give varied maps on the grid of the tokens."""
    for name, found in zip(names, _explain(subject, *names), strict=True):
        tokens = subject.adapter.attention_tokens
        assert tokens is not None and found.shape[1:] == tokens.grid, f"{name} is {tuple(found.shape)}, tokens {tokens}"
        _assert_varied(name, found)


MANY_TOKENS = 1500


def _bounded(subject: Subject) -> Subject:
    """With one image where the attention of two takes gigabytes (48 x 48 tokens: 6 for each of weights and gradients)."""
    tokens = subject.adapter.attention_tokens
    if tokens is None or tokens.grid[0] * tokens.grid[1] <= MANY_TOKENS:
        return subject
    return replace(subject, images=subject.images[:1])


def check_class_attention(subject: Subject) -> str:
    """The attention that the score is read with."""
    _assert_on_tokens(subject, "class_attention")
    return ""


def check_rollout(subject: Subject) -> str:
    """The two methods that follow attention through all blocks."""
    _assert_on_tokens(_bounded(subject), "attention_rollout", "gradient_rollout")
    return ""


def check_window_attention(subject: Subject) -> str:
    """Attention inside the windows of the last block."""
    (found,) = _explain(subject, "window_attention")
    _assert_varied("window_attention", found)
    return ""


def check_hierarchical_rollout(subject: Subject) -> str:
    """Rollout across windows and resolutions: shares, so they sum to 1."""
    (found,) = _explain(subject, "hierarchical_rollout")
    _assert_varied("hierarchical_rollout", found)
    total = found.sum((1, 2))
    assert bool(((total - 1).abs() < 1e-3).all()), f"hierarchical_rollout sums to {total.tolist()}"
    return ""


def check_channel_attention(subject: Subject) -> str:
    """Every gate's values times its input is its output, for images that the probe never saw."""
    (last,) = _explain(subject, "channel_attention")
    gates, outputs = subject.adapter.structure.se_layers, dict[int, Tensor]()
    needs = [(request("channel_attention", gate=i), request("gated_features", gate=i)) for i in range(len(gates))]
    found = record(subject.adapter, subject.images, [need for pair in needs for need in pair]).signals
    handles = []
    for index, gate in enumerate(gates):

        def keep(module: nn.Module, args: object, output: Tensor, index: int = index) -> None:
            outputs[index] = output.detach().clone()

        handles.append(subject.adapter.module.get_submodule(gate.layer).register_forward_hook(keep))
    with torch.no_grad():
        subject.adapter.forward(subject.images)
    for handle in handles:
        handle.remove()
    for index, (values, gated) in enumerate(needs):
        product = found[gated] * found[values][:, :, None, None]
        _assert_same(f"gate {gates[index].layer}", product, outputs[index])
    _assert_same("channel_attention", last, found[needs[-1][0]])
    return ""


STEP = 0.05
CLEARLY = 1.25
QUADRANTS = ("top left", "top right", "bottom left", "bottom right")


def check_localised(subject: Subject) -> str:
    """A small step toward other content in the middle of one quadrant moves the features of that quadrant most.

    A small one, since in a deep random net a large one moves all that it reaches alike. It fails when another quadrant
    moves clearly more; "none" when random gates or attention spread the change so evenly that no quadrant stands out.
    """
    if "features" in subject.adapter.missing:
        raise RefusedError(subject.adapter.missing["features"])
    for draws in (1, 5):
        shares = torch.stack([_moved(subject, seed) for seed in range(draws)]).log().mean(0).exp()
        excess = (shares / shares.diagonal()[:, None]).amax(1)
        if bool((excess == 1).all()):
            return ""
    index = int(excess.argmax())
    numbers = f"{QUADRANTS[index]}: {' '.join(f'{share:.2f}' for share in shares[index].tolist())}"
    assert float(excess.max()) <= CLEARLY, f"quadrant {numbers}"
    return f"none: the change spreads over all quadrants ({numbers})"


def _moved(subject: Subject, seed: int) -> Tensor:
    """(4,4) how far the features of each quadrant (column) move when the image changes in each quadrant (row).

    As a share of the column's mean: a place that moves whatever is changed says nothing.
    """
    h, w = subject.images.shape[2:]
    clean, other = (smooth_images(1, (h, w), seed=100 + 2 * seed + i) for i in range(2))
    features = subject.record("features", clean)
    rows = []
    for index in range(4):
        top, left = (index // 2) * h // 2 + h // 16, (index % 2) * w // 2 + w // 16
        part = (..., slice(top, top + 3 * h // 8), slice(left, left + 3 * w // 8))
        images = clean.clone()
        images[part] += STEP * (other[part] - images[part])
        change = (subject.record("features", images) - features).abs().mean((0, 1), keepdim=True)
        rows.append(F.adaptive_avg_pool2d(change, 2).flatten())
    moved = torch.stack(rows)
    return moved / moved.mean(0)


def check_attention_reference(subject: Subject) -> str:
    """The recorded attention against the library's own; "none" where the library has nothing to compare with."""
    subject = _bounded(subject)
    structure = subject.adapter.structure
    found: list[Tensor]
    over_tokens: list[int] | None = None
    if "attention" not in structure.missing:
        over_tokens = [i for i, path in enumerate(structure.attention_blocks) if path not in structure.pooling_blocks]
        paths = [structure.attention_blocks[i] for i in over_tokens]
        recorded = subject.record("attention")
        found = [recorded[i] for i in over_tokens]
    elif structure.windows and "window_attention" not in structure.missing:
        paths = [block.path for block in structure.windows]
        found = [block.values for block in subject.record("window_attention")]
    else:
        return "none: no attention between all tokens or inside windows"
    try:
        with torch.no_grad():
            expected = subject.reference(subject, paths)
    except Exception as error:
        return f"none: {_line(error)}"
    if any(float((block.sum(-1) - 1).abs().max()) > 1e-3 for block in expected):
        return "none: what the library gives is mixed between heads after the softmax"
    pairs = matched(subject, found, expected)
    if not pairs:
        return f"none: the library returns {len(expected)} blocks of {tuple(expected[0].shape) if expected else ()}"
    errors = [float((mine - theirs).abs().max()) / float(theirs.abs().max()) for mine, theirs in pairs]
    if (
        max(errors) > SAME
    ):  # scores of hundreds, of which the softmax keeps the difference: is the library's as far off?
        exact = _attention_in_double(subject, over_tokens)
        rounding = [float((theirs - right).abs().max()) for (_, theirs), right in zip(pairs, exact, strict=True)]
        worst = max(
            float((mine - theirs).abs().max()) / most for (mine, theirs), most in zip(pairs, rounding, strict=True)
        )
        assert worst <= 2, (
            f"attention differs by {max(errors):.2g} of its largest weight, {worst:.2g} times the rounding"
        )
        return f"ok {max(errors):.1g}: both round off as much"
    return f"ok {max(errors):.1g}"


def _attention_in_double(subject: Subject, over_tokens: list[int] | None) -> list[Tensor]:
    """The recorded attention in float64: of blocks over all tokens, or of windows."""
    adapter = subject.adapter
    double = ModelAdapter(replace(adapter.source, model=copy.deepcopy(adapter.module).double()), adapter.structure)
    need = request("window_attention" if over_tokens is None else "attention")
    found: Any = record(double, subject.images.double(), [need]).signals[need]
    return [block.values for block in found] if over_tokens is None else [found[i] for i in over_tokens]


def check_logits(subject: Subject) -> str:
    """The largest difference of the logits from those of the bare model, as a share of the largest logit."""
    logits, bare = subject.logits, subject.bare_logits
    assert logits.shape == bare.shape, f"logits {tuple(logits.shape)}, bare {tuple(bare.shape)}"
    error = float((logits - bare).abs().max() / bare.abs().max())
    assert error <= 1e-5, f"{error:.2g}"
    return f"{error:.1g}"


SIGNALS: dict[str, Callable[[Subject], str]] = {
    "features": check_features,
    "gradients": check_gradients,
    "image_gradients": check_image_gradients,
    "black_box": check_black_box,
    "classifier": check_classifier,
    "class_attention": check_class_attention,
    "rollout": check_rollout,
    "window_attention": check_window_attention,
    "hierarchical_rollout": check_hierarchical_rollout,
    "channel_attention": check_channel_attention,
}
DETECTORS: dict[str, Callable[[Subject], str]] = {
    "localised": check_localised,
    "attention_reference": check_attention_reference,
    "logits_difference": check_logits,
}
CHECKS = {**SIGNALS, **DETECTORS}
FACTS = ("library", "model", "file", "family", "parameters", "output", "feature_layer", "depth", "grid")
COLUMNS = (*FACTS, *CHECKS, "seconds")


def _line(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, AssertionError) else f"{type(error).__name__}: {text}"


def _general(reason: str, case: Case) -> str:
    """A refusal without the name of the model and of its folder, so that equal reasons are counted together."""
    return re.sub(r"^(hf|timm|torchvision)/\S*:? ", "", reason.replace(f" ({case.key})", "")).strip()


def cell(check: Callable[[Subject], str], subject: Subject, case: Case) -> str:
    """One check as the table states it."""
    try:
        return check(subject) or "ok"
    except (RefusedError, UnsupportedMethodError, UnsupportedModelError) as error:
        return f"refused: {_general(str(error), case)}"
    except Exception as error:
        return f"failed: {_line(error)}"


def examine(case: Case, chosen: Sequence[str] = tuple(CHECKS)) -> Iterator[tuple[str, str]]:
    """(column, cell) of one model, as they become known. chosen: which of CHECKS."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            subject = open_case(case, folder)
        except UnsupportedModelError as error:
            text = f"refused: {_general(str(error), case)}"
            yield from ((column, text) for column in chosen)
            return
        except Exception as error:
            text = f"failed: {_line(error)}"
            yield from ((column, text) for column in chosen)
            return
        adapter = subject.adapter
        yield "family", adapter.family
        yield "parameters", str(sum(p.numel() for p in adapter.module.parameters()))
        yield "feature_layer", adapter.structure.feature_layer or ""
        yield "output", "embedding" if adapter.embedding else "logits"
        if adapter.structure.feature_layer:
            yield "depth", f"{depth_of(subject):.2f}"
        for column in chosen:
            yield column, cell(CHECKS[column], subject, case)
            if column == "features" and "features" in vars(subject):
                yield "grid", " x ".join(map(str, subject.features.shape[2:]))
    if set(chosen) == set(CHECKS):
        yield "seconds", f"{time.monotonic() - started:.1f}"
