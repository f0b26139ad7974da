"""What to run, validated: from TOML, from flags or from Python."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from attncompare.benchmark.records import Variant
from attncompare.errors import SpecError


class BenchmarkSpec(BaseModel):
    """A benchmark, as one immutable value; unknown keys are refused.

    models, methods, metrics: names; "all" stands for every method, "quick" for those that take no hundreds of passes.
    options: method -> its options. protocol: how images are taken apart. data: "shapes", "photos", a folder or a list of
    image files; limit: at most so many images.
    target: "argmax" (the model's choice on the clean image), "label", a class index, "class:NAME", "embedding" or
    "text:PROMPT" (an image-text pair such as CLIP). timing: also time every method, `repeats` times and at least
    `timing_seconds`, `timing_batch` images at once, under each of `timing_variants` (fp32, bf16, compile). save_maps: keep
    maps, heads of every block, channels of every stage, and thumbnails for the report.

    >>> BenchmarkSpec(models=["demo/cnn"], methods=["cam"], limit=4).protocol
    'rise'
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: tuple[str, ...] = Field(min_length=1)
    methods: tuple[str, ...] = ("all",)
    metrics: tuple[str, ...] = ("deletion", "insertion")
    protocol: str = "rise"
    data: str | tuple[str, ...] = "shapes"
    limit: int | None = Field(default=None, ge=1)
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    target: Annotated[int, Field(strict=True, ge=0)] | str = "argmax"
    seed: int = Field(default=0, ge=0)
    device: str = "cpu"
    dtype: Literal["float32"] = "float32"
    batch_size: int = Field(default=8, ge=1)
    chunk_size: int = Field(default=16, ge=1)
    threads: int | None = Field(default=None, ge=1)
    timing: bool = True
    timing_only: bool = False
    timing_batch: int = Field(default=1, ge=1)
    repeats: int = Field(default=10, ge=3)
    timing_seconds: float = Field(default=1.0, ge=0)
    timing_variants: tuple[Variant, ...] = Field(default=("fp32",), min_length=1)
    save_maps: bool = False

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
    try:
        return BenchmarkSpec(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "spec"
        if first["type"] == "extra_forbidden":
            known = ", ".join(sorted(BenchmarkSpec.model_fields))
            raise SpecError(f"spec: unknown key {where!r}; known: {known}") from error
        raise SpecError(f"spec: {where}: {first['msg']} (found {first.get('input')!r})") from error


def read_toml(path: Path) -> dict[str, Any]:
    """The keys of a TOML file, or SpecError."""
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SpecError(f"spec {path} cannot be read: {error}") from error
