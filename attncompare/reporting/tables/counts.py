"""How a caption counts what failed, in few words however much it is."""

from collections.abc import Mapping, Sequence

NAMED = 4
"""How many of several names are spelled out."""


def some(names: Sequence[str]) -> str:
    """The first names, and how many more there are.

    >>> some(["a", "b", "c", "d", "e", "f"])
    'a, b, c, d and 2 more'
    """
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def whose(counts: Mapping[str, tuple[int, int]]) -> str:
    """Method -> (failed, tried): those that failed, most first, and how often each did where that differs.

    >>> whose({"cam": (0, 6), "saliency": (2, 6)}), whose({"cam": (1, 6), "saliency": (2, 6)})
    ('saliency', 'saliency 2, cam 1')
    >>> whose({"cam": (1, 6), "saliency": (2, 12)})
    'every method'
    """
    failed = {name: pair[0] for name, pair in counts.items() if pair[0]}
    hit = sorted(failed, key=lambda name: -failed[name])
    if len(hit) == 1:
        return hit[0]
    if len(hit) == len(counts) and len({failed[name] / counts[name][1] for name in hit}) == 1:
        return "every method"
    return some(hit if len(set(failed.values())) == 1 else [f"{name} {failed[name]}" for name in hit])


def failures(columns: Mapping[str, Mapping[str, tuple[int, int]]]) -> str:
    """Column -> method -> (failed, tried) in words: columns of the same counts together, those without failures left out.

    >>> failures({"morf": {"cam": (0, 6)}, "ms": {"cam": (1, 1)}, "fwd": {"cam": (1, 1)}, "lerf": {"cam": (2, 6)}})
    'ms, fwd 1 of 1 each (cam); lerf 2 of 6 (cam)'
    """
    said: dict[tuple[str, str], list[str]] = {}
    for column, counts in columns.items():
        failed, tried = (sum(pair[which] for pair in counts.values()) for which in (0, 1))
        if failed:
            said.setdefault((f"{failed} of {tried}", whose(counts)), []).append(column)
    parts = [f"{some(same)} {count}{' each' if len(same) > 1 else ''} ({who})" for (count, who), same in said.items()]
    return "; ".join([*parts[:NAMED], *([f"and {len(parts) - NAMED} more"] if len(parts) > NAMED else [])])
