"""What to run, validated: from TOML, from flags or from Python."""

import json
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from attncompare.benchmark.records import Backend, Dtype, Variant
from attncompare.errors import reason_of
from attncompare.storage.spec import Count, Spec


class BenchmarkSpec(Spec):
    """A benchmark, as one immutable value; SpecError for an unknown key or a value that is not allowed.

    models, methods, metrics: names; "all" stands for every method, "cheap" for all but those that need hundreds of passes.
    options: method -> its options. protocol: how images are taken apart. data: "shapes", "photos", a folder or a list of
    image files; limit: at most so many images.
    target: "argmax" (the model's choice on the clean image), "label", a class index, "class:NAME", "embedding" or
    "text:PROMPT" (an image-text pair such as CLIP). timing: also time every method, `repeats` times and at least
    `timing_seconds`, `timing_batch` images at once, under each of `timing_variants` (fp32, bf16, compile). dtype: "bf16"
    scores altered images under autocast, moving areas by up to some hundredths; how far is measured on the first images and
    kept in run.json. backend: "openvino" (the extra of that name) forwards altered images in float32 on the CPU; scores of
    the first images must be torch's to 1e-5. save_maps: keep maps, heads of every block, channels of every stage, and
    thumbnails for the report.

    >>> BenchmarkSpec(models=["demo/cnn"], methods=["cam"], limit=4).protocol
    'rise'
    """

    models: tuple[str, ...] = Field(min_length=1)
    methods: tuple[str, ...] = ("all",)
    metrics: tuple[str, ...] = ("deletion", "insertion")
    protocol: str = "rise"
    data: str | tuple[str, ...] = "shapes"
    limit: Count | None = None
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    target: Annotated[int, Field(strict=True, ge=0)] | str = "argmax"
    seed: int = Field(default=0, strict=True, ge=0, le=2**32 - 1)
    device: str = "cpu"
    dtype: Dtype = "float32"
    backend: Backend = "torch"
    batch_size: Count = 8
    chunk_size: Count = 16
    threads: int | None = Field(default=None, strict=True, ge=1, le=1024)
    timing: bool = True
    timing_only: bool = False
    timing_batch: Count = 1
    repeats: int = Field(default=10, strict=True, ge=3, le=1_000_000)
    timing_seconds: float = Field(default=1.0, strict=True, ge=0, le=86_400)
    timing_variants: tuple[Variant, ...] = Field(default=("fp32",), min_length=1)
    save_maps: bool = False

    @model_validator(mode="after")
    def _can_be_stored(self) -> "BenchmarkSpec":
        """Refuse what run.json could not hold: numbers that are none, names that are no UTF-8, other objects."""
        try:
            json.dumps(self.model_dump(), allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError) as error:
            raise ValueError(f"it cannot be written down as JSON: {reason_of(error)}") from error
        return self

    @model_validator(mode="after")
    def _float32_on_the_cpu(self) -> "BenchmarkSpec":
        """Refuse what another backend than torch is not offered for."""
        if self.backend != "torch" and (self.device != "cpu" or self.dtype != "float32"):
            raise ValueError(
                f"backend {self.backend} scores on device cpu in dtype float32, not on {self.device} in {self.dtype}; "
                "change those, or use backend torch"
            )
        return self

    @field_validator("target", mode="before")
    @classmethod
    def _a_target(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value.isdecimal():
            return int(value)
        if value not in ("argmax", "label", "embedding") and not value.startswith(("class:", "text:")):
            raise ValueError('write argmax, label, embedding, a class index, "class:NAME" or "text:PROMPT"')
        return value

    @field_validator("models", "methods", "metrics", "timing_variants", mode="before")
    @classmethod
    def _no_duplicates(cls, value: Any) -> Any:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list | tuple):
            return value  # not a list: the type check that follows says so
        texts = [str(name) for name in names]
        twice = sorted({name for name in texts if texts.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is listed twice")
        return tuple(names)


def make_spec(values: dict[str, Any]) -> BenchmarkSpec:
    """Validate; SpecError names the first wrong key and what is allowed."""
    return BenchmarkSpec(**values)
