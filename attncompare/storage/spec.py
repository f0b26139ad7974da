"""What a spec file holds: TOML, checked by pydantic, with one error that names the wrong key."""

import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from attncompare.errors import SpecError

Count = Annotated[int, Field(strict=True, ge=1, le=1_000_000_000)]


class Spec(BaseModel):
    """An immutable value from TOML, flags or Python; SpecError for an unknown key or a value that is not allowed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise refusal(error, type(self)) from error


def refusal(error: ValidationError, spec: type[BaseModel]) -> SpecError:
    """The first wrong key of a spec and what is allowed."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "spec"
    if first["type"] == "extra_forbidden":
        known = f"; known: {', '.join(sorted(spec.model_fields))}" if len(first["loc"]) == 1 else ""
        return SpecError(f"spec: unknown key {where!r}{known}")
    if first["type"] == "missing":
        how = '; name one with --model, or write models = ["demo/cnn"] in the file' if where == "models" else ""
        return SpecError(f"spec: {where}: missing{how}")
    found = repr(first.get("input")) if first["loc"] else "as a whole"
    return SpecError(f"spec: {where}: {first['msg']} (found {found})")


def read_toml(path: Path) -> dict[str, Any]:
    """The keys of a TOML file, or SpecError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:  # also of a number or nesting beyond any use
        raise SpecError(f"spec {path} cannot be read: {error}") from error
