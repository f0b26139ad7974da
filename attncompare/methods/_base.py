"""A method: a pure function of signals, named by its parameters, with keyword-only options."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from attncompare.registry import Asked, Registry, own_options, signals

methods: "Registry[Method]" = Registry("method", "attncompare.methods")


@dataclass(frozen=True, kw_only=True)
class Method(Asked):
    """What the harness knows of a method.

    needs: signals, in the order of the function's parameters. options: the function's own and those of its signals.
    class_sensitive: whether the map depends on the target. control: whether it ignores the model. space: "image" for
    (B,h,w) maps, "channel" for (B,C). expensive: whether it takes hundreds of passes with its default options.
    passes_option: the option that counts its passes.
    """

    kind = "method"
    needs: tuple[str, ...]
    class_sensitive: bool = True
    control: bool = False
    space: str = "image"
    expensive: bool = False
    passes_option: str = ""

    @property
    def own_passes(self) -> bool:
        """Whether it runs the model itself rather than reading the shared pass."""
        return any(signals.get(name).cost == "extra" for name in self.needs)


def method(  # noqa: PLR0913  (one keyword for each fact of a method)
    *,
    reference: str,
    version: int = 1,
    class_sensitive: bool = True,
    control: bool = False,
    space: str = "image",
    expensive: bool = False,
    passes_option: str = "",
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
        needs = [one.name for one in parameters if one.kind is not one.KEYWORD_ONLY]
        options = list(own_options(compute, meaning or {}, choices or {}, limits or {}))
        options += {option.name: option for name in needs for option in signals.get(name).options}.values()
        name = compute.__name__
        made = Method(
            name=name,
            compute=compute,
            needs=tuple(needs),
            options=tuple(options),
            reference=reference,
            version=version,
            class_sensitive=class_sensitive,
            control=control,
            space=space,
            expensive=expensive,
            passes_option=passes_option,
        )
        methods.add(name, made, draft=compute.__module__ == "__main__")
        return compute

    return register
