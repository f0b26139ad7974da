"""Which methods can be told apart: letters in the manner of agronomy's compact letter display."""

from itertools import combinations
from string import ascii_lowercase

import networkx
import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests

from attncompare.benchmark.statistics import paired_p

LEVEL = 0.05


def significance_groups(table: pd.DataFrame, level: float = LEVEL) -> dict[str, str]:
    """Method -> letters, from (image x method) values where higher is better; methods that share one do not differ.

    Two methods differ when Wilcoxon's signed-rank test on the images that both have a value of says so at `level` after
    Holm's correction over all pairs. The letters are the largest sets without such a pair (Piepho, J. Comput. Graph.
    Stat. 13(2), 2004); "a" holds the best mean. Methods without a value are left out.

    >>> values = pd.DataFrame({"one": range(10, 30), "two": range(11, 31), "none": [0.0] * 20}, dtype=float)
    >>> significance_groups(values)
    {'two': 'a', 'one': 'b', 'none': 'c'}
    """
    means = table.mean().dropna().sort_values(ascending=False)
    names = [str(name) for name in means.index]
    pairs = list(combinations(names, 2))
    p = [_paired(table, first, second) for first, second in pairs]
    corrected = multipletests(p, method="holm")[1] if p else []
    alike = networkx.Graph()
    alike.add_nodes_from(names)
    alike.add_edges_from(pair for pair, value in zip(pairs, corrected, strict=True) if value >= level)
    cliques = sorted(sorted(names.index(name) for name in clique) for clique in networkx.find_cliques(alike))
    return {
        name: "".join(_letter(i) for i, one in enumerate(cliques) if place in one) for place, name in enumerate(names)
    }


def _paired(table: pd.DataFrame, first: str, second: str) -> float:
    both = table[[first, second]].dropna().to_numpy(dtype=np.float64)
    return paired_p(both[:, 0] - both[:, 1]) if len(both) else 1.0


def _letter(number: int) -> str:
    """The letters a to z, then a' to z', and so on."""
    return ascii_lowercase[number % 26] + "'" * (number // 26)
