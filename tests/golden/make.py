"""Write the golden numbers that are missing: `python tests/golden/make.py [--all]`, half a minute.

Numbers that are there stay as they are, so that a change of a method or metric cannot slip in with a new one; --all makes
all of them anew. Entries of methods and metrics that are gone are dropped.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from golden.files import read_maps, read_scores, write_maps, write_scores
from golden.values import all_maps, all_scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="make all numbers anew, not only those that are missing")
    anew = parser.parse_args().all
    old_maps, old_scores = ({}, {}) if anew else (read_maps(), read_scores())
    maps = {pair: old_maps.get(pair, made) for pair, made in all_maps().items()}
    scores = {key: old_scores.get(key, made) for key, made in all_scores(maps).items()}
    write_maps(maps)
    write_scores(scores)
    added = len(maps.keys() - old_maps.keys()), len(scores.keys() - old_scores.keys())
    print(f"{len(maps)} maps or refusals, {added[0]} of them new; {len(scores)} scores, {added[1]} of them new")


if __name__ == "__main__":
    main()
