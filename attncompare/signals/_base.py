"""A signal: what a model supplies to a method, what it costs, why a model may lack it, and how it is recorded.

B images, C channels, h w grid, N tokens, K classes, L blocks in the docstrings of the signals.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar, TypeVar, cast, dataclass_transform

from torch import Tensor

from attncompare.capture.extra_pass import ExtraPass
from attncompare.capture.forward_pass import Cost, ForwardPass
from attncompare.capture.hooks import Hooks
from attncompare.errors import unknown_name
from attncompare.models.adapter import ModelAdapter
from attncompare.registry import Option, signals

S = TypeVar("S", bound="type[Signal]")

LAYER = Option("layer", None, None, "module path of the feature layer; the model's default when not given", str)
GATE = Option("gate", -1, None, "which channel-attention layer, counted from the input; -1 is the last", int)


@dataclass(frozen=True)
class Signal:
    """A request for a signal, with the values of its options; equal requests are recorded once.

    cost: see Cost. backward: whether the shared pass must go backward for it. inside: whether it reads inside the model,
    rather than at its input and output. bounded: whether its sources lie in [0, 1], as images and attention do. options:
    those that change what is recorded; each is a field too.
    """

    name: ClassVar[str] = ""
    cost: ClassVar[Cost] = "free"
    backward: ClassVar[bool] = False
    inside: ClassVar[bool] = True
    bounded: ClassVar[bool] = False
    options: ClassVar[tuple[Option, ...]] = ()

    def missing(self, model: ModelAdapter) -> str:
        """Why a model lacks it, in words for its user; "" where it does not."""
        return ""

    def attach(self, hooks: Hooks) -> None:
        """Ask for what must be recorded; of a shared signal."""

    def sources(self, of: ForwardPass) -> list[Tensor]:
        """The tensors whose gradients it needs; of a shared signal that goes backward."""
        return []

    def read(self, of: ForwardPass) -> object:
        """The value, when the pass is over; of a free or shared signal."""
        raise NotImplementedError(self.name)

    def takes(self, model: ModelAdapter, target: object) -> tuple["Signal", ...]:
        """What it takes from the shared pass, for a target as the caller gave it; of an extra signal."""
        return ()

    def run(self, extra: ExtraPass) -> object:
        """The value, from passes of its own; of an extra signal."""
        raise NotImplementedError(self.name)


@dataclass_transform(frozen_default=True)
def signal(
    *,
    cost: Cost,
    backward: bool = False,
    inside: bool | None = None,
    bounded: bool = False,
    options: tuple[Option, ...] = (),
) -> Callable[[S], S]:
    """Register a class as the signal of its name: FeatureGradients is asked for by a parameter `feature_gradients`.

    inside: a free signal reads nothing inside the model, any other does, unless told otherwise.
    """

    def register(cls: S) -> S:
        made = cast(S, dataclass(frozen=True)(cls))
        made.name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).lower()
        made.cost, made.backward, made.bounded, made.options = cost, backward, bounded, options
        made.inside = cost != "free" if inside is None else inside
        assert [field.name for field in fields(made)] == [option.name for option in options], f"options of {made.name}"
        signals.add(made.name, made, draft=cls.__module__ == "__main__")
        return made

    return register


def request(name: str, **options: object) -> Signal:
    """A signal by its name, with the values of its options.

    >>> request("features", layer="layer3")
    Features(layer='layer3')
    """
    kind = signals.get(name)
    known = {option.name: option for option in kind.options}
    for unknown in options.keys() - known.keys():
        raise unknown_name(f"option of {name}", unknown, known)
    found: Signal = kind(**{key: known[key].check(name, value) for key, value in options.items()})
    return found
