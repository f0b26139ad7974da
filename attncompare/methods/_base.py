"""A method: a pure function of signals, named by its parameters, with keyword-only options."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from attncompare.errors import SpecError, unknown_name
from attncompare.registry import Registry
from attncompare.signals import OWN_PASSES, SIGNAL_OPTIONS, Signal, SignalOption

methods: "Registry[Method]" = Registry("method", "attncompare.methods")

FREE = frozenset({Signal.IMAGES, Signal.TARGET, Signal.TOKENS})
"""Signals that cost no pass of their own."""


@dataclass(frozen=True)
class Option:
    """One option of a method: its default, the values it accepts, and what it means."""

    name: str
    default: object
    choices: tuple[object, ...] | None
    meaning: str


@dataclass(frozen=True)
class Method:
    """What the harness knows of a method.

    needs: signals, in the order of the function's parameters. options: the function's own and those of its signals.
    version: part of every result's key; raise it when the maps change. class_sensitive: whether the map depends on the
    target. control: whether it ignores the model. space: "image" for (B,h,w) maps, "channel" for (B,C).
    """

    name: str
    compute: Callable[..., Any]
    needs: tuple[Signal, ...]
    options: tuple[Option, ...]
    reference: str
    version: int = 1
    class_sensitive: bool = True
    control: bool = False
    space: str = "image"

    @property
    def own_passes(self) -> bool:
        """Whether it runs the model itself rather than reading the shared pass."""
        return bool(OWN_PASSES & set(self.needs))

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.compute) or "").splitlines()[0]

    def resolve(self, given: Mapping[str, object]) -> dict[str, object]:
        """All options with their values; an unknown one or a wrong value is an error that says what is allowed."""
        known = {option.name: option for option in self.options}
        for name in given:
            if name not in known:
                if not known:
                    raise SpecError(f"method {self.name} has no options; {name!r} was given")
                raise unknown_name(f"option of {self.name}", name, known)
        return {name: _checked(self.name, option, given.get(name, option.default)) for name, option in known.items()}


def _checked(method: str, option: Option, value: object) -> object:
    """The value in the type of the default, or SpecError."""
    if option.choices is not None:
        if value not in option.choices:
            raise SpecError(f"{method}.{option.name} must be one of {list(option.choices)}, not {value!r}")
        return value
    default = option.default
    if default is None or value is None:
        return value
    if isinstance(default, bool) or isinstance(value, bool):
        valid = isinstance(value, bool) and isinstance(default, bool)
    elif isinstance(default, int):
        valid = isinstance(value, int)
    elif isinstance(default, float):
        valid = isinstance(value, int | float)
    else:
        valid = isinstance(value, type(default))
    if not valid:
        raise SpecError(f"{method}.{option.name} must be a {type(default).__name__}, not {value!r}")
    if isinstance(default, int | float) and default > 0 and not value > 0:  # type: ignore[operator]
        raise SpecError(f"{method}.{option.name} must be positive, not {value!r}")
    return value


def method(
    *,
    reference: str,
    version: int = 1,
    class_sensitive: bool = True,
    control: bool = False,
    space: str = "image",
    choices: Mapping[str, tuple[object, ...]] | None = None,
    meaning: Mapping[str, str] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as a method: positional parameters are signals, keyword-only ones are options.

    An unknown signal, or an option without a meaning, is an error at import.
    """

    def register(compute: Callable[..., Any]) -> Callable[..., Any]:
        needs: list[Signal] = []
        options: list[Option] = []
        for parameter in inspect.signature(compute).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY:
                text = (meaning or {})[parameter.name]
                options.append(Option(parameter.name, parameter.default, (choices or {}).get(parameter.name), text))
            else:
                needs.append(Signal(parameter.name))
        inherited: dict[str, SignalOption] = {o.name: o for need in needs for o in SIGNAL_OPTIONS.get(need, ())}
        options += [Option(o.name, o.default, o.choices, o.meaning) for o in inherited.values()]
        name = compute.__name__
        flags = {"class_sensitive": class_sensitive, "control": control, "space": space}
        methods.add(name, Method(name, compute, tuple(needs), tuple(options), reference, version, **flags))  # type: ignore[arg-type]
        return compute

    return register
