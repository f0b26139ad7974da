"""Find a model's anatomy by running it once: feature layer, token layout, attention, classifier and gates.

Nothing is guessed from names or square roots: a module counts as a gate because its input times the gate values equals
its output, as a classifier because its input equals the mean of a feature map, and the read-out row is the one that the
logits depend on.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from attncompare.adapters.base import Anatomy, Classifier, Gate, ModelAdapter, Source
from attncompare.capture.attention import AttentionCalls, kernel, slow_attention_path
from attncompare.capture.capture import left_as_found
from attncompare.capture.features import find_layout
from attncompare.errors import UnsupportedModelError
from attncompare.signals import Signal, TokenLayout

ATTENTION_SIGNALS = (
    Signal.ATTENTION,
    Signal.ATTENTION_GRADIENTS,
    Signal.FUSED_ATTENTION,
    Signal.CLASS_ATTENTION,
    Signal.TOKENS,
)
POOLERS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d, nn.Dropout, nn.Dropout2d, nn.Identity, nn.Flatten)
TOLERANCE = 1e-4
NO_ATTENTION = "it has no attention between image positions"


@dataclass
class Call:
    """One run of a module: its path, what went in and what came out.

    means: the spatial means (B,C) of a 4-D output, as read in NCHW and in NHWC, taken at once: what follows may write
    into the output in place. gate: the path of the inner module whose output is the ratio of output to input.
    direct: whether the output is the tensor itself (or a tuple that starts with it), so that it can be tapped.
    """

    path: str
    module: nn.Module
    inputs: tuple[object, ...]
    tensor: Tensor
    means: tuple[Tensor, ...] = ()
    gate: str | None = None
    direct: bool = True


@dataclass
class Trace:
    """Everything one probing pass saw, in the order in which the modules finished."""

    calls: list[Call] = field(default_factory=list)
    attention: list[tuple[str, torch.Size, torch.Size]] = field(default_factory=list)
    logits: Tensor | None = None


def _first_tensor(output: object) -> Tensor | None:
    if isinstance(output, tuple | list) and output:
        output = output[0]
    for name in ("last_hidden_state", "logits"):
        if isinstance(getattr(output, name, None), Tensor):
            output = getattr(output, name)
    return output if isinstance(output, Tensor) else None


def trace(source: Source) -> Trace:
    """Run the model on two seeded images and note every module call and every attention call."""
    seen, stack_of_names = Trace(), [""]
    adapter = ModelAdapter(source, Anatomy("cnn", None))

    def handler(query: Tensor, key: Tensor, value: Tensor, *args: object, **kwargs: object) -> Tensor:
        seen.attention.append((stack_of_names[-1], query.shape, key.shape))
        return kernel(query, key, value, *args, **kwargs)  # type: ignore[arg-type]

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(left_as_found(source.model))
        stack.enter_context(slow_attention_path())
        for path, module in source.model.named_modules():
            if not path:
                continue

            def enter(module: nn.Module, args: object, path: str = path) -> None:
                stack_of_names.append(path)

            def leave(module: nn.Module, args: tuple[object, ...], output: object, path: str = path) -> None:
                stack_of_names.pop()
                tensor = _first_tensor(output)
                if tensor is not None and tensor.is_floating_point():
                    with torch.no_grad():
                        means = tuple(tensor.mean(axes) for axes in ((2, 3), (1, 2))) if tensor.ndim == 4 else ()
                        gate = _gate_values(seen, path, args, tensor)
                    direct = isinstance(output, Tensor | tuple)
                    seen.calls.append(Call(path, module, args, tensor, means, gate, direct))

            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        with AttentionCalls(handler):
            generator = torch.Generator().manual_seed(0)
            images = torch.rand(2, 3, *source.preprocessing.size, generator=generator).to(adapter.device)
            seen.logits = adapter.forward(images.requires_grad_(True))
        _wake_silent_gates(seen)
    return seen


def _wake_silent_gates(seen: Trace) -> None:
    """Try layers that saw nothing but zeros (behind a norm that starts at zero) once more, on noise.

    Their hooks are still installed: what they note of the trial is read and then dropped.
    """
    for call in list(seen.calls):
        x = call.inputs[0] if call.inputs else None
        if not isinstance(x, Tensor) or x.ndim != 4 or x.shape != call.tensor.shape:
            continue
        # By its means: the tensor itself may have been written into since.
        if not call.means[0].any() and any(True for _ in call.module.children()):
            before = len(seen.calls)
            with torch.no_grad():
                call.module(torch.rand(x.shape, device=x.device))
            call.gate = seen.calls[-1].gate if seen.calls[-1].path == call.path else None
            del seen.calls[before:]


def _grid(seen: Trace, size: tuple[int, int], tokens: int) -> tuple[int, int] | None:
    """The patch grid: the output of the first convolution that leaves no more than N cells."""
    for call in seen.calls:
        if isinstance(call.module, nn.Conv2d) and call.tensor.ndim == 4:
            h, w = call.tensor.shape[2:]
            if 1 < h * w <= tokens < h * w + 64:
                return int(h), int(w)
    return None


def _readout(seen: Trace, layout: TokenLayout) -> tuple[int | tuple[int, ...] | None, str]:
    """(class_token, reason): the rows of the last token tensor that the output depends on."""
    assert seen.logits is not None
    last = next(
        (
            c.tensor
            for c in reversed(seen.calls)
            if c.tensor.ndim == 3 and c.tensor.requires_grad and c.tensor.shape[1] == layout.length
        ),
        None,
    )
    if last is None:
        return None, "no module returns the token sequence"
    mix = torch.randn(seen.logits.shape[1], generator=torch.Generator().manual_seed(0)).to(seen.logits.device)
    outputs = [seen.logits @ mix]
    linear = next((c for c in reversed(seen.calls) if isinstance(c.module, nn.Linear)), None)
    if linear is not None and isinstance(linear.inputs[0], Tensor):
        outputs.append(linear.inputs[0].flatten(1).sum(1))  # a zero-initialised head passes no gradient
    gradient = torch.zeros_like(last)
    for output in outputs:
        if output.requires_grad and not gradient.any():
            found = torch.autograd.grad(output.sum(), last, retain_graph=True, allow_unused=True)[0]
            gradient = gradient if found is None else found
    strength = gradient.abs().sum(dim=(0, 2))
    used = (strength > 1e-6 * strength.max()).nonzero().flatten().tolist() if bool(strength.max() > 0) else []
    if not used:
        return None, "the output does not depend on the tokens"
    if max(used) < layout.prefix:
        return (used[0] if len(used) == 1 else tuple(used)), ""
    patches = gradient[:, layout.prefix :]
    largest = gradient.abs().max()
    even = (patches - patches.mean(1, keepdim=True)).abs().max() <= 1e-3 * largest
    if even and used[0] == 0 and layout.prefix:
        alike = (gradient - patches.mean(1, keepdim=True)).abs().max() <= 1e-3 * largest
        if alike:
            return tuple(range(layout.length)), ""  # the mean over all tokens, class token included
        return 0, ""  # class token and patch mean side by side (DINOv2's linear head): the class row
    return None, "" if bool(
        even
    ) else "the score is read from the tokens by attention pooling, not by a class token or a mean"


def _attention(
    seen: Trace, size: tuple[int, int], given: TokenLayout | None
) -> tuple[TokenLayout | None, tuple[str, ...], str]:
    """(layout, blocks, reason why not)."""
    if not seen.attention:
        hidden = any("attention" in type(call.module).__name__.lower() and not call.gate for call in seen.calls)
        if hidden:
            return None, (), "its attention is local or computed without the fused kernel, so it is not recorded"
        return None, (), NO_ATTENTION
    whole = [(path, q) for path, q, k in seen.attention if q[-2] == k[-2] and q[0] == 2 and q.numel()]
    lengths = {q[-2] for _, q in whole}
    others = [q for _, q, k in seen.attention if (q[-2] != k[-2] and q[-2] > 8) or q[0] != 2]
    if len(lengths) != 1 or others:
        return (
            None,
            (),
            "attention is windowed, reduced or changes its grid between blocks; global methods are not defined",
        )
    length = int(lengths.pop())
    blocks = tuple(path for path, _ in whole)
    if len(set(blocks)) != len(blocks):
        return None, (), "one attention module runs several times in a pass"
    if given is not None:
        return given, blocks, ""
    grid = _grid(seen, size, length)
    if grid is None:
        return None, (), f"the {length} tokens do not lie on the grid of a patch convolution"
    layout = TokenLayout(length - grid[0] * grid[1], grid)
    class_token, reason = _readout(seen, layout)
    return replace(layout, class_token=class_token), blocks, reason


def _outermost(seen: Trace, call: Call) -> str:
    """Of the modules that return this very tensor the outermost, and of its equals the last to touch it."""
    same = [
        (c.path.count("."), -order, c.path)
        for order, c in enumerate(seen.calls)
        if c.tensor is call.tensor and c.direct
    ]
    return min(same)[2]


def _spatial(seen: Trace, size: tuple[int, int]) -> list[Call]:
    """Calls whose output lies on the image, in order; pooling and reshaping modules aside."""
    found = []
    attentions = tuple(
        c.path + "." for c in seen.calls if "attention" in type(c.module).__name__.lower() and not c.gate
    )
    for call in seen.calls:
        shape = call.tensor.shape
        # Inside an attention module (N x N) weights can look like an image.
        skipped = isinstance(call.module, POOLERS) or call.path.startswith(attentions) or not call.direct
        if not skipped and len(shape) == 4 and shape[0] == 2 and find_layout(shape, size, None):
            found.append(call)
    return found


def _stages(seen: Trace, size: tuple[int, int]) -> tuple[str, ...]:
    """One layer per resolution, shallow to deep: the outermost module, and of its equals the last."""
    best: dict[tuple[int, int], tuple[int, int, str]] = {}
    for order, call in enumerate(_spatial(seen, size)):
        shape = call.tensor.shape
        nchw = find_layout(shape, size, None) == "nchw"
        grid = (int(shape[2]), int(shape[3])) if nchw else (int(shape[1]), int(shape[2]))
        path = _outermost(seen, call)
        best[grid] = min(best.get(grid, (99, 0, "")), (path.count("."), -order, path))
    return tuple(path for _, (_, _, path) in sorted(best.items(), reverse=True))


def _attention_input(seen: Trace, block: str) -> str | None:
    """The module whose output feeds the last attention block: its norm, where patch gradients are not yet zero."""
    fed = next((c.inputs[0] for c in seen.calls if c.path == block and c.inputs), None)
    return next((c.path for c in seen.calls if fed is not None and c.tensor is fed), None)


def _classifier(seen: Trace, size: tuple[int, int]) -> tuple[Classifier | None, str]:
    """A linear layer that makes the logits from the spatial mean of a feature map, checked by value."""
    heads = [c for c in seen.calls if isinstance(c.module, nn.Linear) or getattr(c.module, "kernel_size", 0) == (1, 1)]
    head = heads[-1] if heads else None
    if head is None or seen.logits is None or not isinstance(head.inputs[0], Tensor):
        return None, "it has no linear classifier"
    if head.tensor.flatten(1).shape != seen.logits.shape or not torch.allclose(head.tensor.flatten(1), seen.logits):
        return None, "its logits are not the output of one linear layer"
    pooled = head.inputs[0]
    if pooled.ndim > 2 and pooled.shape[-2:] != (1, 1):
        return None, "its classifier is not applied to globally averaged features"
    pooled = pooled.flatten(1)
    for call in reversed(_spatial(seen, size)):
        mean = call.means[0 if find_layout(call.tensor.shape, size, None) == "nchw" else 1]
        if mean.shape == pooled.shape and _equal(mean, pooled):
            return Classifier(_outermost(seen, call), head.path), ""
    return None, "its classifier does not read the plain spatial mean of a feature map (global average pooling)"


def _equal(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding at the scale of b, and not all zero."""
    scale = float(b.abs().max())
    return scale > 0 and bool((a - b).abs().max() <= TOLERANCE * scale)


def _gate_values(seen: Trace, path: str, args: tuple[object, ...], output: Tensor) -> str | None:
    """The module inside `path` whose output, one value per channel, times the input of `path` is its output."""
    x = args[0] if args else None
    if not isinstance(x, Tensor) or x.ndim != 4 or x.shape != output.shape or x is output:
        return None
    for inner in reversed(seen.calls):
        if not inner.path.startswith(path + "."):
            return None
        values = inner.tensor
        per_channel = values.numel() == x.shape[0] * x.shape[1] and values.shape[0] == x.shape[0]
        if per_channel and _equal(x * values.reshape(x.shape[0], -1, 1, 1), output):
            return inner.path
    return None


def probe(source: Source) -> Anatomy:
    """The anatomy of a model, from one forward pass; `source.known` overrides what it finds.

    Raises UnsupportedModelError when the model does not run or nothing in it lies on the image.
    """
    try:
        seen = trace(source)
    except UnsupportedModelError:
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"{source.name} does not run on (2, 3, {source.preprocessing.size[0]}, {source.preprocessing.size[1]}): {error}"
        ) from error
    size = source.preprocessing.size
    with torch.no_grad():
        classifier, no_classifier = _classifier(seen, size)
        gates = tuple(Gate(call.path, call.gate) for call in seen.calls if call.gate)
        stages = _stages(seen, size)
    known: Mapping[str, object] = source.known
    given = known.get("tokens")
    with torch.inference_mode(False), torch.enable_grad():
        tokens, blocks, no_attention = _attention(seen, size, given if isinstance(given, TokenLayout) else None)
    missing: dict[Signal, str] = {}
    if tokens is not None:
        inputs = [_attention_input(seen, block) for block in blocks]
        family, layer = "vit", inputs[-1] or (stages[-1] if stages else None)
        stages = tuple(path for path in inputs if path)
    else:
        family = "cnn" if no_attention == NO_ATTENTION else "hierarchical"
        layer = stages[-1] if stages else None
    if no_attention:
        missing |= dict.fromkeys(ATTENTION_SIGNALS, no_attention)
    if classifier is None:
        missing |= dict.fromkeys((Signal.CLASSIFIER_WEIGHTS, Signal.POOLED_FEATURES), no_classifier)
    if not gates:
        reason = "it has no channel attention (squeeze-and-excitation)"
        missing |= dict.fromkeys((Signal.CHANNEL_ATTENTION, Signal.GATED_FEATURES), reason)
    layer = str(known["feature_layer"]) if known.get("feature_layer") else layer
    if layer is None:
        reason = "no layer's output lies on the image"
        missing |= dict.fromkeys((Signal.FEATURES, Signal.FEATURE_GRADIENTS, Signal.FEATURE_LAYER), reason)
    assert seen.logits is not None
    outputs = int(seen.logits.shape[1])
    anatomy = Anatomy(family, layer, tokens, blocks, classifier, gates, stages, missing, outputs)  # type: ignore[arg-type]
    return replace(anatomy, **{key: value for key, value in known.items() if value is not None})  # type: ignore[arg-type]
