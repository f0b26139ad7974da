"""What is explained: a class, the model's own choice, or the similarity of an embedding to a text's or to its own."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attncompare.errors import SpecError
from attncompare.models.adapter import ModelAdapter
from attncompare.state import frozen_eval

Target = int | str | Sequence[int] | Sequence[str] | Tensor | Callable[[Tensor], Tensor] | None
"""None: the argmax on the clean image. int, sequence or (B,) tensor: class indices. "class:NAME": a class by name.
"rank:2": the class that comes second on each clean image; "rank:1" is the argmax. "embedding" and "text:PROMPT": see
TargetScore. A sequence of strings has one for each image. A function makes a score (n,) of the model's outputs (n,K), row by
row: the difference of two logits, say."""

TEXT, CLASS, RANK = "text:", "class:", "rank:"
BEHIND = {TEXT: "prompt", CLASS: "class", RANK: "rank"}
MANY = {TEXT: "prompts", CLASS: "classes", RANK: "ranks"}
ALLOWED = (
    "give a class index, None, 'class:NAME', 'text:PROMPT', 'rank:N', 'embedding' or a function of the outputs; "
    "or a list of one index or string per image"
)


def words_of(target: Target, count: int) -> tuple[str, ...]:
    """The strings in a target, one for each of `count` images; () when it is not made of strings.

    >>> words_of("text:a cat", 2)
    ('text:a cat', 'text:a cat')
    """
    if isinstance(target, str):
        return (target,) * count
    if not isinstance(target, list | tuple) or not any(isinstance(one, str) for one in target):
        return ()
    if len(target) != count:
        raise SpecError(f"{len(target)} targets for {count} images")
    return tuple(str(one) for one in target)


def _all_start(words: Sequence[str], prefix: str) -> bool:
    return bool(words) and all(word.startswith(prefix) and word != prefix for word in words)


def _check_words(words: Sequence[str]) -> None:
    """Refuse a string with nothing behind its prefix, and prompts beside classes: a call has one kind of score."""
    for word in words:
        if word.strip() in BEHIND:
            raise SpecError(f"target {word!r} is empty; write the {BEHIND[word.strip()]} behind the colon")
    kinds = {prefix for prefix in BEHIND for word in words if word.startswith(prefix)}
    if len(kinds) > 1:
        mixed = " and ".join(MANY[prefix] for prefix in BEHIND if prefix in kinds)
        raise SpecError(f"targets {list(words)} mix {mixed}; explain them in two calls")


def _is_own(target: Target, count: int) -> bool:
    """Whether an embedding is compared with itself: asked for, or resolved before (then image b has target b)."""
    if isinstance(target, Tensor):
        return target.dtype == torch.int64 and target.tolist() == list(range(count))
    return target is None or (isinstance(target, str) and target == "embedding")


def _indices(target: object, count: int, device: torch.device) -> Tensor:
    """(B,) int64 from one class index or one per image; SpecError for anything else."""
    try:
        index = torch.as_tensor(target, device=device)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise SpecError(f"target {target!r} is not known here; {ALLOWED}") from error
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise SpecError(f"targets are class indices, not {index.dtype}")
    index = index.clone() if index.is_inference() else index  # a gradient may need it
    index = index.long().expand(count) if index.ndim == 0 else index.long()
    if index.shape != (count,):
        raise SpecError(f"{tuple(index.shape)} targets for {count} images")
    return index


def _of_rank(clean: Tensor, words: Sequence[str]) -> Tensor:
    """(B,) which output stands at each image's "rank:N", the largest first; equal ones keep their order."""
    ranks = [word.removeprefix(RANK) for word in words]
    for rank in ranks:
        if not rank.isdecimal() or not 1 <= int(rank) <= clean.shape[1]:
            raise SpecError(f"target 'rank:{rank}': a rank is a number from 1 to {clean.shape[1]}, the outputs")
    order = clean.argsort(dim=1, descending=True, stable=True)
    place = torch.tensor([int(rank) - 1 for rank in ranks], device=clean.device)
    return order.gather(1, place[:, None])[:, 0]


def _check_function(score: Callable[[Tensor], Tensor], clean: Tensor) -> None:
    """Refuse a function that does not make one number of each row of its own."""
    found = score(clean)
    shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if shape != (len(clean),):
        raise SpecError(
            f"the target function returned {shape} for outputs {tuple(clean.shape)}; ({len(clean)},) is needed"
        )
    if not bool(torch.isfinite(found).all()):
        raise SpecError("the target function returned values that are not finite")
    alone = torch.cat([score(row[None]) for row in clean])
    if not torch.allclose(alone, found, rtol=1e-4, atol=1e-5):
        raise SpecError("the target function mixes images: it must make each score from that image's row alone")


def prompts_of(target: Target, count: int) -> tuple[str, ...]:
    """The "text:PROMPT" of each of `count` images; () for other targets."""
    words = words_of(target, count)
    return words if _all_start(words, TEXT) else ()


def text_directions(adapter: ModelAdapter, prompts: Sequence[str]) -> Tensor:
    """(n,D) t / |t| of "text:PROMPT" targets; SpecError for a model without a text encoder."""
    encode = adapter.source.encode_text
    if encode is None:
        raise SpecError(f"target {prompts[0]!r}: {adapter.name} has no text encoder, as CLIP and SigLIP have")
    with frozen_eval(adapter.module, graph=False):  # its text tower may drop out, and count its batches
        texts = torch.stack([encode(prompt.removeprefix(TEXT)) for prompt in prompts])
    return F.normalize(texts.detach().float(), dim=1)


def text_key(adapter: ModelAdapter, prompts: Sequence[str]) -> list[list[str]]:
    """Each prompt and the sha256 of its direction to 4 decimals: all that a score knows of the text encoder."""
    directions = (text_directions(adapter, prompts).cpu() * 1e4).round().short().numpy()
    return [
        [prompt, hashlib.sha256(row.tobytes()).hexdigest()] for prompt, row in zip(prompts, directions, strict=True)
    ]


@dataclass(frozen=True)
class TargetScore:
    """The score Y whose evidence is sought, fixed on the clean images.

    target: (B,) int64. For classes Y is the target's logit before softmax. For an embedding model the clean embeddings
    e0 take the part of classes: output j is e(x) . e0_j / |e0_j| and the target of image b is b (the cosine to itself is
    at its maximum, so its gradient would be zero). For a text it is the cosine e(x) . t / (|e(x)| |t|), which is what
    CLIP and SigLIP scale to their logits and is not at its maximum on the image.

    references: (B,D) e0 / |e0| or t / |t|, or None for class targets. prompts: the texts, () for other targets.
    function: what makes the score of the outputs, for a target that is a function; it is the only output then.
    """

    target: Tensor
    references: Tensor | None = None
    prompts: tuple[str, ...] = ()
    function: Callable[[Tensor], Tensor] | None = None

    @property
    def of_classes(self) -> bool:
        """Whether the outputs are the model's classes."""
        return self.references is None and self.function is None

    @staticmethod
    def of(adapter: ModelAdapter, clean: Tensor, target: Target, directions: Tensor | None = None) -> "TargetScore":
        """Fix the target on the clean images' outputs (B,K); errors name what is allowed.

        directions: those of a target's texts (B,D), if they are known.
        """
        if target is None and not adapter.embedding:
            return TargetScore(clean.detach().argmax(dim=1))
        count, width = clean.shape
        if callable(target):
            _check_function(target, clean.detach())
            return TargetScore(torch.zeros(count, dtype=torch.int64, device=clean.device), function=target)
        words = words_of(target, count)
        _check_words(words)
        if _all_start(words, TEXT):
            directions = (text_directions(adapter, words) if directions is None else directions).to(clean.device)
            if directions.shape[1] != width:
                raise SpecError(f"{adapter.name} embeds images in {width} dimensions, text in {directions.shape[1]}")
            return TargetScore(torch.arange(count, device=clean.device), directions, words)
        if adapter.embedding or (isinstance(target, str) and target == "embedding"):
            if not _is_own(target, count):
                raise SpecError(f"target {target!r}: {adapter.name} has no classifier; use 'embedding'")
            if not adapter.embedding:
                raise SpecError(f"target 'embedding': {adapter.name} has a classifier; give a class index or none")
            clean = clean.detach()
            return TargetScore(torch.arange(count, device=clean.device), F.normalize(clean, dim=1))
        if _all_start(words, RANK):
            return TargetScore(_of_rank(clean.detach(), words))
        if words and not _all_start(words, CLASS):
            raise SpecError(f"target {target!r} is not known here; {ALLOWED}")
        chosen = [adapter.class_index(word.removeprefix(CLASS)) for word in words] if words else target
        return TargetScore.of_indices(adapter, chosen, count, width)

    @staticmethod
    def of_indices(adapter: ModelAdapter, target: object, count: int, classes: int) -> "TargetScore":
        """Class indices for `count` images; SpecError for one out of range."""
        index = _indices(target, count, adapter.device)
        if bool(((index < 0) | (index >= classes)).any()):
            raise SpecError(f"target {index.tolist()} out of range: {adapter.name} has classes 0 to {classes - 1}")
        return TargetScore(index)

    def outputs(self, raw: Tensor) -> Tensor:
        """(n,K) model outputs -> (n,K) scores among which `target` chooses."""
        if self.function is not None:
            return self.function(raw)[:, None]
        if self.references is None:
            return raw
        return (F.normalize(raw, dim=1) if self.prompts else raw) @ self.references.T

    def score(self, raw: Tensor) -> Tensor:
        """(B,K) outputs of the B images in order -> (B,) Y."""
        return self.outputs(raw).gather(1, self.target[:, None])[:, 0]

    def probability(self, raw: Tensor, which: Tensor) -> Tensor:
        """Outputs (n,K) of altered copies of images `which` (n,) -> (n,) softmax probability, cosine or function."""
        if self.function is not None:
            return self.function(raw)
        if self.references is not None:
            return (F.normalize(raw, dim=1) * self.references[which]).sum(dim=1)
        if raw.shape[1] == 1:  # one logit: softmax would be 1 whatever it is
            return raw[:, 0].sigmoid()
        return raw.softmax(dim=1).gather(1, self.target[which][:, None])[:, 0]
