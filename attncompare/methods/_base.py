"""A method: a pure function of signals, named by its parameters, with keyword-only options."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from attncompare.registry import Option, Registry, own_options, resolve, summary_of
from attncompare.signals import OWN_PASSES, SIGNAL_OPTIONS, Signal

methods: "Registry[Method]" = Registry("method", "attncompare.methods")


@dataclass(frozen=True)
class Method:
    """What the harness knows of a method.

    needs: signals, in the order of the function's parameters. options: the function's own and those of its signals.
    version: part of every result's key; raise it when the maps change. class_sensitive: whether the map depends on the
    target. control: whether it ignores the model. space: "image" for (B,h,w) maps, "channel" for (B,C). many_passes:
    whether it takes hundreds of passes with its default options. passes_option: the option that counts its passes.
    first_pass_is_clean: whether it reads its target only after a first pass over the images as they are, which then
    fixes the model's own choice.
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
    many_passes: bool = False
    passes_option: str = ""
    first_pass_is_clean: bool = False

    @property
    def own_passes(self) -> bool:
        """Whether it runs the model itself rather than reading the shared pass."""
        return bool(OWN_PASSES & set(self.needs))

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return summary_of(self.compute)

    def resolve(self, given: Mapping[str, object]) -> dict[str, object]:
        """All options with their values; an unknown one or a wrong value is an error that says what is allowed."""
        return resolve("method", self.name, self.options, given)


def method(  # noqa: PLR0913  (one keyword for each fact of a method)
    *,
    reference: str,
    version: int = 1,
    class_sensitive: bool = True,
    control: bool = False,
    space: str = "image",
    many_passes: bool = False,
    passes_option: str = "",
    first_pass_is_clean: bool = False,
    choices: Mapping[str, tuple[object, ...]] | None = None,
    meaning: Mapping[str, str] | None = None,
    limits: Mapping[str, tuple[float, float]] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as a method: positional parameters are signals, keyword-only ones are options.

    An unknown signal, or an option without a meaning, is an error at import. In a notebook a cell that defines a method can
    run again; the last definition counts.
    """

    def register(compute: Callable[..., Any]) -> Callable[..., Any]:
        parameters = inspect.signature(compute).parameters.values()
        needs = [Signal(one.name) for one in parameters if one.kind is not one.KEYWORD_ONLY]
        options = list(own_options(compute, meaning or {}, choices or {}, limits or {}))
        options += {o.name: o for need in needs for o in SIGNAL_OPTIONS.get(need, ())}.values()
        name = compute.__name__
        flags = {
            "class_sensitive": class_sensitive,
            "control": control,
            "space": space,
            "many_passes": many_passes,
            "passes_option": passes_option,
            "first_pass_is_clean": first_pass_is_clean,
        }
        made = Method(name, compute, tuple(needs), tuple(options), reference, version, **flags)  # type: ignore[arg-type]
        methods.add(name, made, draft=compute.__module__ == "__main__")
        return compute

    return register
