"""How far saved maps agree: Spearman's correlation between methods on one model, and between models by one method."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from attncompare.maps import resize_map
from attncompare.metrics.ranks import mean_ranks
from attncompare.reporting.gallery import Gallery

SIZE = (64, 64)
"""Maps are compared at this height and width, whatever their own: at 224 x 224 a run of a thousand images takes minutes."""

MapName = tuple[str, str]
"""Model and method."""


def correlations(run: Gallery, image: str, names: list[MapName]) -> pd.DataFrame:
    """(map x map) rank correlations on one image, for those of some (model, method) that have a map that is not constant."""
    found = {name: run.map(*name, image) for name in names}
    ranks = {name: _standard_ranks(values) for name, values in found.items() if values is not None and values.ndim == 2}
    varying = [name for name, one in ranks.items() if one.any()]
    index = pd.MultiIndex.from_tuples(varying, names=["model", "method"])
    stack = np.stack([ranks[name] for name in varying]) if varying else np.zeros((0, 1))
    return pd.DataFrame(stack @ stack.T, index=index, columns=index)


def _standard_ranks(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Ranks with mean 0 and length 1, so that a product of two is their correlation; zeros for a constant map."""
    ranks = mean_ranks(resize_map(torch.from_numpy(values)[None], SIZE))[0].numpy()
    centered = ranks - ranks.mean()
    length = float(np.linalg.norm(centered))
    return np.asarray(centered / length if length else centered, dtype=np.float64)


def method_agreement(run: Gallery, model: str) -> pd.DataFrame:
    """(method x method) mean over the images that both have a map of; NaN where there is none."""
    names = run.methods_of(model)
    owners = [(model, name) for name in names]
    found = [correlations(run, image, owners).droplevel(0).droplevel(0, axis=1) for image in run.images]
    return _mean(found, names)


def model_agreement(run: Gallery) -> pd.DataFrame:
    """(model x model) mean over the images and the methods that both have a map of, controls left out by the caller."""
    shared = sorted({name for model in run.models for name in run.methods_of(model)})
    found = []
    for image in run.images:
        for method in shared:
            one = correlations(run, image, [(model, method) for model in run.models])
            found.append(one.droplevel(1).droplevel(1, axis=1))
    return _mean(found, run.models)


def _mean(found: list[pd.DataFrame], names: list[str]) -> pd.DataFrame:
    stack = np.stack([one.reindex(index=names, columns=names).to_numpy(dtype=np.float64) for one in found])
    count = np.isfinite(stack).sum(axis=0)
    mean = np.where(count, np.nansum(stack, axis=0) / np.maximum(count, 1), np.nan)
    return pd.DataFrame(mean, index=names, columns=names)


def least_alike(run: Gallery, names: list[MapName]) -> Iterator[tuple[float, str, MapName, MapName]]:
    """Per image the two maps that agree least, from the worst image on: correlation, image, and both maps."""
    worst = []
    for image in run.images:
        table = correlations(run, image, names)
        if len(table) > 1:
            values = table.to_numpy()
            row, column = (int(place) for place in np.unravel_index(values.argmin(), values.shape))
            worst.append((float(values[row, column]), image, table.index[row], table.index[column]))
    yield from sorted(worst)
