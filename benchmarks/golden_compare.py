"""Does this checkout compute what a start commit computed? `python benchmarks/golden_compare.py [--base COMMIT]`, a minute.

Both editions of the package run in one process, on the models of tests/golden with the same weights and images, so that
nothing but the code differs: every map and every score must agree to 1e-6 of its range. The base edition lies in a git
worktree for as long as that takes; both score its maps. Exits 1 at any difference.
"""

import argparse
import sys
from collections.abc import Callable, Mapping

import numpy as np
from editions import ROOT, Edition, worktree

LIMIT = 1e-6  # of the range of a map, or of the scores of one metric on one model


class Golden(Edition):
    """An edition with the golden models and values of this checkout."""

    def maps(self) -> dict:
        """Every method on every model, as an array or the kind of refusal."""
        with self.active() as load:
            return load("golden.values").all_maps()

    def scores(self, maps: Mapping) -> dict:
        """Every metric of the given maps."""
        with self.active() as load:
            return load("golden.values").all_scores(maps)

    def weights(self) -> list[np.ndarray]:
        """All weights of all models."""
        with self.active() as load:
            models = load("golden.models")
            states = [models.module_of(models.model_of(name)).state_dict() for name in models.MODELS]
        return [value.numpy() for state in states for value in state.values()]


def share(found: np.ndarray, expected: np.ndarray, span: float) -> float:
    """The largest difference as a share of a range; where there is none, any difference is infinite."""
    if found.shape != expected.shape:
        return float("inf")
    largest = float(np.abs(found.astype(float) - expected).max())
    return largest / span if span else float("inf") if largest else 0.0


def compare(old: Mapping, new: Mapping, span: Callable[[tuple], float]) -> tuple[dict, list[str]]:
    """Key -> share of the range, where both editions have numbers; and the keys where one or both refuse otherwise."""
    numbers = [key for key in old if key in new and not isinstance(old[key], str) and not isinstance(new[key], str)]
    shares = {key: share(np.asarray(new[key]), np.asarray(old[key]), span(key)) for key in numbers}
    rest = sorted((old.keys() | new.keys()) - set(numbers))
    words = {key: [one.get(key, "missing") for one in (old, new)] for key in rest}
    words = {key: [one if isinstance(one, str) else "a number" for one in pair] for key, pair in words.items()}
    return shares, [f"{key}: {first} -> {second}" for key, (first, second) in words.items() if first != second]


def report(kind: str, shares: Mapping, refusals: list[str]) -> int:
    """Print what was compared and all that differs; how much that is."""
    where = max(shares, key=shares.__getitem__)
    beyond = [f"{key}: {value:.1e}" for key, value in shares.items() if value > LIMIT]
    print(f"{kind:<8}{len(shares):>9}{shares[where]:>13.1e}  {'/'.join(map(str, where)) if shares[where] else '-'}")
    for title, lines in ((f"beyond {LIMIT:.0e}", beyond), ("refused otherwise", refusals)):
        print(f"  {title}: {len(lines)}", *lines, sep="\n    ")
    return len(beyond) + len(refusals)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="7ac20f4", help="the commit whose numbers are right")
    base = parser.parse_args().base
    sys.path.insert(0, str(ROOT / "tests"))
    with worktree(base) as folder:
        new, old = Golden(ROOT), Golden(folder)  # this one first: tests/conftest.py imports what it finds
        maps = {"new": new.maps(), "old": old.maps()}
        if not all(np.array_equal(*pair) for pair in zip(old.weights(), new.weights(), strict=True)):
            raise SystemExit("the models of the two editions have other weights: their numbers cannot be compared")
        given = {key: one for key, one in maps["old"].items() if not isinstance(maps["new"].get(key, ""), str)}
        scores = {"new": new.scores(given), "old": old.scores(given)}
    print(f"base {base}; {'compared':>8}  largest difference / range, where")
    differ = report("maps", *compare(maps["old"], maps["new"], lambda key: float(np.ptp(maps["old"][key]))))
    spread: dict[tuple[str, str], list[float]] = {}
    for key, value in scores["old"].items():
        if not isinstance(value, str):
            spread.setdefault((key[0], key[2]), []).append(value)
    differ += report("scores", *compare(scores["old"], scores["new"], lambda key: np.ptp(spread[key[0], key[2]])))
    raise SystemExit(1 if differ else 0)


if __name__ == "__main__":
    main()
