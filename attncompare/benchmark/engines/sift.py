"""Which images of a chunk take their worker down."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from attncompare.errors import Failure

DEATHS = 3
"""So often a chunk, and at last one image of it, may take its worker down before it is given up."""


@dataclass
class Sifted:
    """Images that can be worked on, piece by piece, and those that cannot, with the reason."""

    pieces: list[list[str]] = field(default_factory=list)
    lost: dict[str, Failure] = field(default_factory=dict)


def sift(attempt: Callable[[Sequence[str]], Failure | None], names: Sequence[str]) -> Sifted:
    """Halve until every piece lives or is one image that never does.

    attempt: works on some images, and says why the worker died, None when it lived.

    >>> found = sift(lambda names: Failure("process", "killed") if "c" in names else None, ["a", "b", "c", "d"])
    >>> found.pieces, found.lost
    ([['a', 'b'], ['d']], {'c': Failure(kind='process', reason='killed', retry=False)})
    """
    death = None
    for _ in range(DEATHS if len(names) == 1 else min(len(names), 1)):
        death = attempt(names)
        if not death:
            return Sifted([list(names)])
    if len(names) < 2:
        return Sifted(lost={name: death for name in names if death})
    first, second = (sift(attempt, half) for half in (names[: len(names) // 2], names[len(names) // 2 :]))
    return Sifted(first.pieces + second.pieces, first.lost | second.lost)
