"""Letters that say which methods differ."""

from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from attncompare.benchmark.groups import significance_groups


def test_methods_share_a_letter_exactly_where_they_do_not_differ():
    rng = np.random.default_rng(0)
    means = {"a": 0, "b": 0.3, "c": 0.6, "d": 0.9, "e": 2, "f": 3}
    table = pd.DataFrame({name: rng.normal(mean, 1, 30) for name, mean in means.items()})
    found = significance_groups(table)
    pairs = list(combinations(table.columns, 2))
    p = [stats.wilcoxon(table[one], table[other]).pvalue for one, other in pairs]
    different = multipletests(p, method="holm")[1] < 0.05
    assert 0 < different.sum() < len(pairs)
    for (one, other), differs in zip(pairs, different, strict=True):
        assert bool(set(found[one]) & set(found[other])) != differs
    assert list(found) == list(table.mean().sort_values(ascending=False).index)
    assert "a" in found[next(iter(found))]


def test_too_little_data_tells_nothing_apart():
    table = pd.DataFrame({"one": [1.0, 2.0], "two": [3.0, np.nan], "never": [np.nan, np.nan]})
    assert significance_groups(table) == {"two": "a", "one": "a"}
    assert significance_groups(pd.DataFrame({"one": [1.0]})) == {"one": "a"}
