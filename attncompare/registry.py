"""Name -> object tables that fill themselves by importing every module of a package."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, ClassVar, Generic, TypeVar, get_args

from attncompare.errors import SpecError, unknown_name

T = TypeVar("T")
A = TypeVar("A", bound="Asked")
Request = str | tuple[str, Mapping[str, object]]
"""The name of a method or metric, or (name, options)."""


def split_request(request: Request) -> tuple[str, Mapping[str, object]]:
    """Name and options; SpecError for anything else.

    >>> split_request("cam"), split_request(("grad_cam", {"layer": "2"}))
    (('cam', {}), ('grad_cam', {'layer': '2'}))
    """
    if isinstance(request, str):
        return request, {}
    pair = tuple(request) if isinstance(request, Sequence) else ()
    if len(pair) != 2 or not isinstance(pair[0], str) or not isinstance(pair[1], Mapping):
        raise SpecError(f"{request!r} is neither a name nor (name, options)")
    return pair[0], pair[1]


@dataclass(frozen=True)
class Option:
    """One option of a method, a metric or a signal: its default, the values it accepts, and what it means.

    kind: the type of a value. limits: the lowest and highest number allowed. None is allowed where it is the default. An
    option that changes what is recorded belongs to the signal: every method that asks for that signal accepts it.
    """

    name: str
    default: object
    choices: tuple[object, ...] | None
    meaning: str
    kind: type
    limits: tuple[float, float] | None = None

    def check(self, owner: str, value: object) -> object:
        """The value if it is allowed; else SpecError, with the name of the option's owner in it."""
        name = f"{owner}.{self.name}"
        if value is None and self.default is None:
            return value
        if self.choices is not None:
            if value not in self.choices:
                raise SpecError(f"{name} must be one of {list(self.choices)}, not {value!r}")
            return value
        allowed = (int, float) if self.kind is float else self.kind
        if not isinstance(value, allowed) or (isinstance(value, bool) and self.kind is not bool):
            article = "an" if self.kind is int else "a"
            raise SpecError(f"{name} must be {article} {self.kind.__name__}, not {value!r}")
        if self.limits is not None:
            low, high = self.limits
            if not low <= value <= high:  # type: ignore[operator]
                rule = "be positive" if low > 0 >= value else f"lie between {low:g} and {high:g}"  # type: ignore[operator]
                raise SpecError(f"{name} must {rule}, not {value!r}")
        return value


def own_options(
    compute: Callable[..., Any],
    meaning: Mapping[str, str],
    choices: Mapping[str, tuple[object, ...]],
    limits: Mapping[str, tuple[float, float]],
) -> tuple[Option, ...]:
    """The keyword-only parameters of a function as options; KeyError for one without a meaning."""
    keywords = [one for one in inspect.signature(compute).parameters.values() if one.kind is one.KEYWORD_ONLY]
    return tuple(
        Option(
            one.name,
            one.default,
            choices.get(one.name),
            meaning[one.name],
            _kind(one.annotation, one.default),
            limits.get(one.name),
        )
        for one in keywords
    )


def _kind(annotation: object, default: object) -> type:
    """The type of an option's value, from its annotation: int, or int | None."""
    found = [part for part in get_args(annotation) or (annotation,) if part is not type(None)]
    return found[0] if found and isinstance(found[0], type) else type(default)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A pure function that asks for what it needs by parameter name; its keyword-only parameters are its options.

    version: part of every result's key; raise it when values change.
    """

    kind: ClassVar[str]
    name: str
    compute: Callable[..., Any]
    options: tuple[Option, ...]
    reference: str
    version: int = 1

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return summary_of(self.compute)

    def resolve(self, given: Mapping[str, object]) -> dict[str, object]:
        """All options with their values; an unknown one or a wrong value is an error that says what is allowed."""
        known = {option.name: option for option in self.options}
        for name in given:
            if name not in known:
                if not known:
                    raise SpecError(f"{self.kind} {self.name} has no options; {name!r} was given")
                raise unknown_name(f"option of {self.name}", name, known)
        return {name: option.check(self.name, given.get(name, option.default)) for name, option in known.items()}


def report_function(name: str) -> Any:
    """A drawing function, imported at first use, so that a map or a run can show itself.

    >>> report_function("html.write_report").__name__
    'write_report'
    """
    module, _, function = name.rpartition(".")
    return getattr(import_module(f"attncompare.reporting.{module}"), function)


def summary_of(function: Callable[..., Any]) -> str:
    """The first line of a docstring, or "".

    >>> summary_of(summary_of)
    'The first line of a docstring, or "".'
    """
    return (inspect.getdoc(function) or "").partition("\n")[0]


class Registry(Generic[T]):
    """The members of one package, each in a file of its own, found by import.

    >>> colors = Registry("color", "colorsys")
    >>> colors.add("red", 1)
    >>> colors.get("red")
    1
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._members: dict[str, T] = {}
        self._drafts: set[str] = set()
        self._loaded = False

    def add(self, name: str, member: T, *, draft: bool = False) -> None:
        """Register a member; a name can be taken once, but for a draft, such as a notebook's cell that runs again."""
        if draft:
            self.load()  # so that a name of the package is taken
        if name in self._members and not (draft and name in self._drafts):
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._members[name] = member
        self._drafts |= {name} if draft else set()

    def load(self) -> None:
        """Import every public module of the package."""
        if self._loaded:
            return
        package = import_module(self.package)
        for module in iter_modules(getattr(package, "__path__", [])):
            if not module.name.startswith("_"):
                import_module(f"{self.package}.{module.name}")
        self._loaded = True

    def get(self, name: str) -> T:
        """The member of that name, or an UnknownNameError that suggests one."""
        if not self._loaded:
            self.load()
        if name not in self._members:
            raise unknown_name(self.kind, name, self._members)
        return self._members[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        self.load()
        return sorted(self._members)

    def __iter__(self) -> Iterator[T]:
        self.load()
        return iter([self._members[name] for name in self.names()])


def requested(registry: Registry[A], requests: Request | Sequence[Request]) -> list[tuple[A, dict[str, object]]]:
    """The members that are asked for, each with all its options resolved; one name may stand for a list of one."""
    several: Sequence[Request] = [requests] if isinstance(requests, str) else requests  # type: ignore[assignment]
    pairs = [split_request(request) for request in several]
    members = [(registry.get(name), given) for name, given in pairs]
    return [(member, member.resolve(given)) for member, given in members]


signals: "Registry[Any]" = Registry("signal", "attncompare.signals")
"""What methods may ask for; here, so that a model can say what it lacks without importing what records it."""
