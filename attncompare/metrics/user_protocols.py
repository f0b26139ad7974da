"""A protocol by its name, or from a user's TOML file, whose name then includes a hash of its definition."""

import hashlib
import json
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from attncompare.errors import SpecError, unknown_name
from attncompare.metrics.protocols import PROTOCOLS, Protocol

KEYS = tuple(field.name for field in fields(Protocol) if field.name not in ("name", "version"))


def get_protocol(name: str) -> Protocol:
    """The protocol of that name, or the one that a TOML file defines; else an error that suggests a name."""
    if not isinstance(name, str):
        raise SpecError(
            f"protocol {name!r} is not a name; give one of {', '.join(PROTOCOLS)} or the path of a TOML file"
        )
    if name.endswith(".toml"):
        return read_protocol(Path(name))
    if name not in PROTOCOLS:
        raise unknown_name("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


def read_protocol(path: Path) -> Protocol:
    """The protocol that a TOML file defines, named after the file and a hash of its choices: `mine-3f2a91c0`.

    Keys are those of Protocol but its name and version; deletion is required, all others have defaults: single pixels,
    steps as in `rise`, no insertion, until = 1, score = "probability". Raises SpecError for a file that cannot be read,
    an unknown key and a value that is not allowed.
    """
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:  # also of a number or nesting beyond any use
        raise SpecError(f"protocol {path} cannot be read: {error}") from error
    for key in given:
        if key not in KEYS:
            raise SpecError(f"protocol {path}: unknown key {key!r}; known: {', '.join(KEYS)}")
    if "deletion" not in given:
        raise SpecError(f"protocol {path}: deletion is missing; give mean, blur or black")
    hints = get_type_hints(Protocol)
    values: dict[str, Any] = {"cells": None, "steps": None, "insertion": None}
    for key, value in given.items():
        try:
            values[key] = TypeAdapter(hints[key]).validate_python(value, strict=True)
        except ValidationError as error:
            raise SpecError(f"protocol {path}: {key}: {error.errors()[0]['msg']} (found {value!r})") from error
    protocol = Protocol(path.stem, **values)
    _check(protocol, path)
    return replace(protocol, name=f"{path.stem}-{fingerprint(protocol)}")


def fingerprint(protocol: Protocol) -> str:
    """8 hexadecimal digits of the sha256 of everything but the name: equal choices, equal fingerprint."""
    choices = {key: value for key, value in protocol.describe().items() if key != "name"}
    text = json.dumps(choices, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _check(protocol: Protocol, path: Path) -> None:
    """Refuse numbers that define no curve."""
    for name, low, high in (("cells", 1, 512), ("steps", 1, 10**6), ("until", 0, 1)):
        value = getattr(protocol, name)
        if value is not None and not low <= value <= high:
            raise SpecError(f"protocol {path}: {name} must lie between {low} and {high}, not {value!r}")
    if not protocol.until or (protocol.steps is not None and protocol.until * protocol.steps < 1):
        raise SpecError(f"protocol {path}: no step lies before until = {protocol.until!r}")
