"""A model, ready to be explained: what its source knows of it, and the adapter around it."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from attncompare.errors import SpecError, UnknownNameError, UnsupportedMethodError, UnsupportedModelError
from attncompare.inspection.attention_calls import AttentionCalls, Recorder
from attncompare.inspection.layout import TokenLayout
from attncompare.inspection.structure import Family, ModelStructure, Part
from attncompare.models.batch_norm import ContiguousNorms
from attncompare.models.fingerprint import structure_hash, weights_hash
from attncompare.models.preprocessing import Preprocessing
from attncompare.registry import signals
from attncompare.state import device_of


def output_tensor(output: object) -> Tensor:
    """The (B,K) tensor in whatever a model returns: a tensor, a transformers output or a dict."""
    for name in ("logits", "image_embeds", "pooler_output", "last_hidden_state"):
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(found, Tensor):
            output = found
            break
    if not isinstance(output, Tensor):
        raise UnsupportedModelError(
            f"the model returned {type(output).__name__}; a (B, K) tensor, .logits or .pooler_output is needed"
        )
    if output.ndim == 4 and output.shape[-2:] == (1, 1):
        output = output.flatten(1)
    if output.ndim != 2 or not output.shape[1]:
        raise UnsupportedModelError(f"the model returned shape {tuple(output.shape)}; (B, K) logits are needed")
    if not output.is_floating_point():
        raise UnsupportedModelError(f"the model returned {output.dtype}; logits are floating point numbers")
    return output


@dataclass(frozen=True)
class ModelSource:
    """A module, how it wants its images, and what its library says of it; inspection finds out the rest.

    embedding: True when the output is a pooled embedding, not class logits. overrides: parts of the structure that
    the user gives; the probe finds the rest. output_fn: the (B,K) tensor of what the model returns.
    encode_text: prompt -> (D,) embedding in the space of the image embeddings, for targets "text:PROMPT". attention: the
    recorder that reports attention calls to a listener.
    """

    name: str
    module: nn.Module
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None = None
    embedding: bool = False
    note: str = ""
    overrides: Mapping[str, object] = field(default_factory=dict)
    output_fn: Callable[[object], Tensor] = output_tensor
    encode_text: Callable[[str], Tensor] | None = None
    attention: Recorder = AttentionCalls

    @cached_property
    def size(self) -> tuple[int, int]:
        """Input (H, W)."""
        return self.preprocessing.size

    @property
    def own_recorder(self) -> tuple[Recorder, ...]:
        """The recorder, if it is not the usual one: its code counts in every fingerprint."""
        return () if self.attention is AttentionCalls else (self.attention,)

    @cached_property
    def _has_batch_norm(self) -> bool:
        """Whether PyTorch's batch-norm gradient for a single image matters here."""
        return any(name.endswith("running_mean") for name, _ in self.module.named_buffers())

    @cached_property
    def normalization(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (1,3,1,1) of red, green and blue, where the model is."""
        device, how = device_of(self.module), self.preprocessing
        with torch.inference_mode(False):  # kept for later calls, which may need gradients
            return (
                torch.tensor(how.mean, device=device).reshape(1, -1, 1, 1),
                torch.tensor(how.std, device=device).reshape(1, -1, 1, 1),
            )

    def forward(self, images: Tensor) -> Tensor:
        """(B,3,H,W) in [0, 1] -> (B,K) logits, or the embedding of a model with no classifier."""
        mean, std = self.normalization
        one = torch.is_grad_enabled() and len(images) == 1 and self._has_batch_norm
        with ContiguousNorms() if one else nullcontext():
            images = (images - mean) / std
            return self.output_fn(self.module(images.flip(1) if self.preprocessing.bgr else images))


class ModelCache(dict[object, Any]):
    """What was computed once from a network. Copies start empty, because their weights may change."""

    def __deepcopy__(self, memo: object) -> "ModelCache":
        return ModelCache()

    def __reduce__(self) -> tuple[type["ModelCache"], tuple[()]]:
        return ModelCache, ()


@dataclass(frozen=True)
class ModelAdapter:
    """A model, ready to be explained: images in [0, 1] in, logits out, and what can be recorded on the way.

    >>> import attncompare as ac
    >>> model = ac.load_model("demo/cnn")
    >>> model.family, model.size, "features" in model.supplies
    ('cnn', (64, 64), True)
    """

    source: ModelSource
    structure: ModelStructure
    checked_recordings: set[str] = field(default_factory=set, repr=False, compare=False)
    """Recordings whose logits were found equal to those of the plain forward pass."""
    cache: ModelCache = field(default_factory=ModelCache, init=False, repr=False, compare=False)
    """What others compute from the network and keep: a compiled copy, a choice of memory format."""

    @cached_property
    def name(self) -> str:
        """The name it was loaded by."""
        return self.source.name

    @cached_property
    def module(self) -> nn.Module:
        """The wrapped module, as its library made it."""
        return self.source.module

    @cached_property
    def family(self) -> Family:
        """cnn, vit (global attention over tokens) or hierarchical."""
        return self.structure.family

    @cached_property
    def size(self) -> tuple[int, int]:
        """Input (H, W)."""
        return self.source.preprocessing.size

    @cached_property
    def mean(self) -> tuple[float, ...]:
        """Mean of red, green and blue in [0, 1], which `forward` subtracts."""
        return self.source.preprocessing.mean

    @cached_property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of red, green and blue in [0, 1], by which `forward` divides."""
        return self.source.preprocessing.std

    @cached_property
    def class_names(self) -> tuple[str, ...] | None:
        """One name per output, None where the source has none."""
        return self.source.class_names

    @cached_property
    def tokens(self) -> TokenLayout | None:
        """How its tokens lie on the image, None for CNNs."""
        return self.structure.tokens

    @cached_property
    def attention_tokens(self) -> TokenLayout | None:
        """How the rows and columns of its attention lie on the image; with a place for a query that pools the tokens."""
        return self.structure.attention_tokens or self.structure.tokens

    @cached_property
    def token_layouts(self) -> tuple[TokenLayout, ...]:
        """Every way in which a sequence of tokens inside it lies on the image."""
        others = self.structure.token_layouts
        return others if self.tokens is None else (self.tokens, *others)

    @cached_property
    def embedding(self) -> bool:
        """Whether the output is an embedding rather than class logits."""
        return self.source.embedding

    @property
    def device(self) -> torch.device:
        """Where its parameters live."""
        return device_of(self.module)

    @property
    def missing(self) -> dict[str, str]:
        """Why it lacks each signal that it lacks, in words for its user."""
        reasons = {kind.name: self._reason(kind) for kind in signals}
        return {name: reason for name, reason in reasons.items() if reason}

    @property
    def supplies(self) -> frozenset[str]:
        """The signals a method may ask of this model."""
        return frozenset(signals.names()) - self.missing.keys()

    def lacks(self, part: Part) -> str:
        """Why a part of it was not found, "" where it was."""
        return self.structure.missing.get(part, "")

    def _reason(self, kind: Any) -> str:
        """Why it lacks a signal, worked out once."""
        if kind not in self._reasons:
            self._reasons[kind] = kind().missing(self)
        return self._reasons[kind]

    @cached_property
    def _reasons(self) -> dict[Any, str]:
        return {}

    @cached_property
    def weights_hash(self) -> str:
        """sha256 over the names, shapes and bytes of all parameters and buffers, also of those no checkpoint holds."""
        return weights_hash(self.module)

    @cached_property
    def structure_hash(self) -> str:
        """What tells two modules of the same weights apart: see `structure_hash` in models/fingerprint.py."""
        return structure_hash(self.module, *self.source.own_recorder)

    @property
    def mean_color(self) -> Tensor:
        """(3,) RGB in [0, 1], the color that its normalization maps to zero."""
        return self.source.normalization[0].flatten()

    def forward(self, images: Tensor) -> Tensor:
        """(B,3,H,W) in [0, 1] -> (B,K) logits, or the embedding of a model with no classifier."""
        return self.source.forward(images)

    def require(self, kinds: Iterable[Any], who: str) -> None:
        """Raise UnsupportedMethodError with the reason if it lacks one of these signals."""
        for kind in sorted(kinds, key=lambda kind: kind.name):
            reason = self._reasons[kind] if kind in self._reasons else self._reason(kind)
            if reason:
                raise UnsupportedMethodError(f"{who} needs {kind.name}: {reason} ({self.name})")

    def class_name(self, index: int) -> str:
        """The name of an output, or its number."""
        names = self.class_names
        return names[index] if names and 0 <= index < len(names) else str(index)

    def class_index(self, name: str) -> int:
        """The output of that class name; SpecError when the model has no such class, or several."""
        names = self.class_names or ()
        if name not in names:
            near = get_close_matches(name, names, n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise SpecError(f"{self.name} has no class named {name!r}{hint}")
        found = [index for index, one in enumerate(names) if one == name]
        if len(found) > 1:
            raise SpecError(f"{self.name} has {len(found)} classes named {name!r}; give the index, one of {found}")
        return found[0]

    def describe(self) -> dict[str, object]:
        """What was found in the model, and why anything is missing."""
        structure = self.structure
        return {
            "name": self.name,
            "family": self.family,
            "size": self.size,
            "mean": list(self.mean),
            "feature_layer": structure.feature_layer,
            "tokens": None if structure.tokens is None else vars(structure.tokens),
            "attention_blocks": list(structure.attention_blocks),
            "window_blocks": [block.path for block in structure.windows],
            "channel_attention": [layer.layer for layer in structure.se_layers],
            "classifier": None if structure.classifier is None else vars(structure.classifier),
            "stages": list(structure.stages),
            "text_targets": self.source.encode_text is not None,
            "missing": self.missing,
            "note": self.source.note,
        }


def resolve_layer(model: ModelAdapter, path: str) -> str:
    """Check that a module path exists in the model."""
    try:
        model.module.get_submodule(path)
        known = path != ""
    except AttributeError:
        known = False
    if not known:
        names = {name for name, _ in model.module.named_modules() if name}
        near = get_close_matches(path, names, n=3) or sorted(model.structure.stages)
        raise UnknownNameError(f"{model.name} has no layer {path!r}; did you mean {', '.join(near)}?")
    return path
