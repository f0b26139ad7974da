"""A model, ready to be explained: what its source knows of it, and the adapter around it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from attncompare.errors import SpecError, UnsupportedMethodError, UnsupportedModelError
from attncompare.models.batch_norm import ContiguousNorms
from attncompare.models.fingerprint import structure_hash, weights_hash
from attncompare.models.preprocessing import Preprocessing
from attncompare.models.structure import Anatomy, Family
from attncompare.signals import Signal, TokenLayout


@contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """What is drawn inside depends on the seed alone, and leaves the generator of the process as it was.

    Only the CPU's generator is seeded, as only that is restored: `torch.manual_seed` seeds those of all devices.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(seed))  # a NumPy integer too
        yield


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
class Source:
    """What an adapter file knows of a model before it is probed.

    embedding: True when the output is a pooled embedding, not class logits. known: parts of the anatomy that the
    user gives, taken as given; the probe finds the rest. readout: the (B,K) tensor of what the model returns.
    encode_text: prompt -> (D,) embedding in the space of the image embeddings, for targets "text:PROMPT".
    """

    name: str
    model: nn.Module
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None = None
    embedding: bool = False
    note: str = ""
    known: Mapping[str, object] = field(default_factory=dict)
    readout: Callable[[object], Tensor] = output_tensor
    encode_text: Callable[[str], Tensor] | None = None


class Derived(dict[object, Any]):
    """What was made from a network and costs more than a look: left behind by copies, whose weights may change."""

    def __deepcopy__(self, memo: object) -> "Derived":
        return Derived()

    def __reduce__(self) -> tuple[type["Derived"], tuple[()]]:
        return Derived, ()


@dataclass(frozen=True)
class ModelAdapter:
    """A model, ready to be explained: images in [0, 1] in, logits out, and what can be recorded on the way.

    >>> import attncompare as ac
    >>> model = ac.load_model("demo/cnn")
    >>> model.family, model.size, "features" in model.supplies
    ('cnn', (64, 64), True)
    """

    source: Source
    anatomy: Anatomy
    verified: set[str] = field(default_factory=set, repr=False, compare=False)
    """Recordings whose logits were seen to equal those of the plain forward pass."""
    derived: Derived = field(default_factory=Derived, init=False, repr=False, compare=False)
    """What was made from the network on request and once, by whoever made it."""

    @cached_property
    def name(self) -> str:
        """The name it was loaded by."""
        return self.source.name

    @cached_property
    def model(self) -> nn.Module:
        """The wrapped module, as its library made it."""
        return self.source.model

    @cached_property
    def family(self) -> Family:
        """cnn, vit (global attention over tokens) or hierarchical."""
        return self.anatomy.family

    @cached_property
    def size(self) -> tuple[int, int]:
        """Input (H, W)."""
        return self.source.preprocessing.size

    @cached_property
    def tokens(self) -> TokenLayout | None:
        """How its tokens lie on the image, None for CNNs."""
        return self.anatomy.tokens

    @cached_property
    def attention_tokens(self) -> TokenLayout | None:
        """How the rows and columns of its attention lie on the image; with a place for a query that pools the tokens."""
        return self.anatomy.attention_tokens or self.anatomy.tokens

    @cached_property
    def sequences(self) -> tuple[TokenLayout, ...]:
        """Every way in which a sequence of tokens inside it lies on the image."""
        others = self.anatomy.sequences
        return others if self.tokens is None else (self.tokens, *others)

    @cached_property
    def embedding(self) -> bool:
        """Whether the output is an embedding rather than class logits."""
        return self.source.embedding

    @property
    def device(self) -> torch.device:
        """Where its parameters live."""
        return device_of(self.model)

    @cached_property
    def supplies(self) -> frozenset[Signal]:
        """The signals a method may ask of this model."""
        return frozenset(Signal) - frozenset(self.anatomy.missing)

    @cached_property
    def weights_hash(self) -> str:
        """sha256 over the names, shapes and bytes of all parameters and buffers, also of those no checkpoint holds."""
        return weights_hash(self.model)

    @cached_property
    def structure_hash(self) -> str:
        """What tells two modules of the same weights apart: see `structure_hash` in models/fingerprint.py."""
        return structure_hash(self.model)

    @cached_property
    def _has_batch_norm(self) -> bool:
        """Whether the one-image gradient of PyTorch's batch norm is of any concern."""
        return any(name.endswith("running_mean") for name, _ in self.model.named_buffers())

    @property
    def mean_colour(self) -> Tensor:
        """(3,) RGB in [0, 1], the colour that its normalisation maps to zero."""
        return self._normalisation[0].flatten()

    @cached_property
    def _normalisation(self) -> tuple[Tensor, Tensor]:
        mean, std = self.source.preprocessing.mean, self.source.preprocessing.std
        shape = (1, -1, 1, 1)
        with torch.inference_mode(False):  # kept for later calls, which may need gradients
            return (
                torch.tensor(mean, device=self.device).reshape(shape),
                torch.tensor(std, device=self.device).reshape(shape),
            )

    def forward(self, images: Tensor) -> Tensor:
        """(B,3,H,W) in [0, 1] -> (B,K) logits, or the embedding of a model with no classifier."""
        mean, std = self._normalisation
        one = torch.is_grad_enabled() and len(images) == 1 and self._has_batch_norm
        with ContiguousNorms() if one else nullcontext():
            images = (images - mean) / std
            return self.source.readout(self.model(images.flip(1) if self.source.preprocessing.bgr else images))

    def require(self, signals: frozenset[Signal], method: str) -> None:
        """Raise UnsupportedMethodError with the reason if a signal is missing."""
        for signal in sorted(signals - self.supplies):
            raise UnsupportedMethodError(f"{method} needs {signal}: {self.anatomy.missing[signal]} ({self.name})")

    def class_name(self, index: int) -> str:
        """The name of an output, or its number."""
        names = self.source.class_names
        return names[index] if names and 0 <= index < len(names) else str(index)

    def class_index(self, name: str) -> int:
        """The output of that class name; SpecError when the model has no such class, or several."""
        names = self.source.class_names or ()
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
        anatomy = self.anatomy
        return {
            "name": self.name,
            "family": self.family,
            "size": self.size,
            "mean": list(self.source.preprocessing.mean),
            "feature_layer": anatomy.feature_layer,
            "tokens": None if anatomy.tokens is None else vars(anatomy.tokens),
            "attention_blocks": list(anatomy.attention_blocks),
            "window_blocks": [block.path for block in anatomy.windows],
            "channel_attention": [gate.layer for gate in anatomy.gates],
            "classifier": None if anatomy.classifier is None else vars(anatomy.classifier),
            "stages": list(anatomy.stages),
            "text_targets": self.source.encode_text is not None,
            "missing": {str(signal): reason for signal, reason in anatomy.missing.items()},
            "note": self.source.note,
        }


def device_of(module: nn.Module) -> torch.device:
    """Where a module's parameters live; the CPU for a module without any."""
    first = next(module.parameters(), None)
    return torch.device("cpu") if first is None else first.device
