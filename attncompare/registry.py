"""Name -> object tables that fill themselves by importing every module of a package."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Generic, TypeVar

from attncompare.errors import SpecError, unknown_name

T = TypeVar("T")
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


def listed(requests: Request | Sequence[Request]) -> list[Request]:
    """The requests as a list, where one name may stand for a list of one."""
    return [requests] if isinstance(requests, str) else list(requests)  # type: ignore[arg-type]


def summary_of(function: Callable[..., Any]) -> str:
    """The first line of a docstring, or "".

    >>> summary_of(summary_of)
    'The first line of a docstring, or "".'
    """
    return (inspect.getdoc(function) or "").partition("\n")[0]


class Registry(Generic[T]):
    """The members of one package, each in a file of its own, found by import.

    >>> colours = Registry("colour", "colorsys")
    >>> colours.add("red", 1)
    >>> colours.get("red")
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
