"""Is it so that shallow layers see detail and deep layers see the object? Measures of the layers over many images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from attncompare.arguments import check_names
from attncompare.benchmark.layer_maps import record_layers
from attncompare.benchmark.statistics import mean_interval
from attncompare.data.datasets import Dataset, open_dataset
from attncompare.errors import ImageError, SpecError
from attncompare.metrics.ranks import spearman
from attncompare.models.adapter import ModelAdapter
from attncompare.progress import Progress, Tick
from attncompare.studies.attention_distance import AttentionDistances, attends, attention_distances
from attncompare.studies.layer_measures import MEASURES
from attncompare.studies.layer_responses import BATCH, LayerResponse, LayerStudy, layers
from attncompare.studies.pictures import Pictures, batches_of

OWN, COARSEST = "own", "coarsest"
ACTIVATION, ATTENTION = "activation", "class_attention"
KEYS = ["model", "image", "layer", "depth", "size", "grid"]
DISTANCE = "attention_distance"
FEWEST = 6  # images; of fewer no interval is worth a verdict
SERIES = ["model", "map", "grid", "measure"]


@dataclass(frozen=True)
class LayerTrends:
    """How measures of the layers change with depth, over many images.

    values: a row per model, map, grid, measure, image and layer. map: "activation", the mean absolute output of a layer; of
    transformers also "class_attention", the rows that the score is read from, mean over heads, and "attention", whose
    measure attention_distance is the mean over the heads of a block, in pixels. grid says on what the maps were measured:
    "own", each layer's own grid, or "coarsest", every layer averaged to the coarsest grid of the model first, so that a
    trend there is not that of the resolution.
    heads: a row per model, block and head: mean attention distance with its 95 % interval over images, and `uniform`, that
    of attention to all patches alike. unreadable: name -> reason.
    """

    data: str
    values: pd.DataFrame
    heads: pd.DataFrame
    unreadable: Mapping[str, str] = field(default_factory=dict)

    def means(self) -> pd.DataFrame:
        """A row per model, grid, measure and layer: mean over the images with its bootstrap 95 % interval."""
        keys = ["model", "map", "grid", "measure", "depth", "layer", "size"]
        rows = []
        for names, group in self.values.dropna(subset="value").groupby(keys, sort=False):
            found = group.value.to_numpy(dtype=np.float64)
            low, high = mean_interval(found)
            about = {"data": self.data} | dict(zip(keys, names, strict=True))
            rows.append(about | {"n": len(found), "mean": found.mean(), "low": low, "high": high})
        return pd.DataFrame(rows)

    def trends(self) -> pd.DataFrame:
        """A row per model, grid and measure: `trend` of its images."""
        rows = []
        for names, group in self.values.groupby(SERIES, sort=False):
            by_depth = group.pivot(index="image", columns="depth", values="value").dropna()
            if len(by_depth) and by_depth.shape[1] > 1:
                about = {"data": self.data} | dict(zip(SERIES, names, strict=True))
                rows.append(about | trend(by_depth.to_numpy(dtype=np.float64)))
        return pd.DataFrame(rows)


def trend(values: NDArray[np.float64]) -> dict[str, object]:
    """Of (n,L) values, layers shallow to deep: is there a monotone trend over depth?

    rho: mean over the images of Spearman's correlation of depth and value; change: mean of last less first layer; both with
    bootstrap 95 % intervals over the images. n: images whose rho is defined, which it is not where all layers have the same
    value. verdict: "rises" or "falls" where both lie on one side of 0; otherwise, and of fewer than 6 images, "open".

    >>> found = trend(np.array([[1.0, 2.0, 4.0], [1.0, 3.0, 2.0]]))
    >>> found.pop("verdict"), found  # of two images there is no interval to speak of
    ('open', {'n': 2, 'rho': 0.75, 'rho_low': 0.5, 'rho_high': 1.0, 'change': 2.0, 'change_low': 1.0, 'change_high': 3.0})
    """
    depth = torch.arange(values.shape[1], dtype=torch.float64).expand(values.shape)
    ranked = spearman(torch.tensor(values), depth).double().numpy()
    rho = ranked[np.isfinite(ranked)]
    change = values[:, -1] - values[:, 0]
    nowhere = (float("nan"), float("nan"))
    (low, high), (least, most) = mean_interval(rho) if len(rho) else nowhere, mean_interval(change)
    enough = len(rho) >= FEWEST
    verdict = "rises" if enough and low > 0 < least else "falls" if enough and high < 0 > most else "open"
    return {
        "n": len(rho),
        "rho": float(rho.mean()) if len(rho) else float("nan"),
        "rho_low": low,
        "rho_high": high,
        "change": float(change.mean()),
        "change_low": least,
        "change_high": most,
        "verdict": verdict,
    }


def layer_trends(
    models: ModelAdapter | Sequence[ModelAdapter],
    data: str | Dataset = "shapes",
    limit: int | None = None,
    progress: Progress | None = None,
) -> LayerTrends:
    """Measure the default layers of models on every image of a data set.

    data: a name or folder as `open_dataset` takes it, or a data set. limit: only so many images. Files that cannot be read
    are left out and named. progress: called after every batch.

    >>> import attncompare as ac
    >>> found = layer_trends(ac.load_model("demo/vit"), "shapes", limit=4)
    >>> found.trends().groupby("map").size().to_dict()
    {'activation': 5, 'attention': 1, 'class_attention': 5}
    """
    listed = [models] if isinstance(models, ModelAdapter) else list(models)
    if not listed:
        raise SpecError("no models were given")
    check_names(listed)
    dataset = open_dataset(data, limit) if isinstance(data, str) else data
    values, heads, unreadable = list[pd.DataFrame](), list[pd.DataFrame](), dict[str, str]()
    done, total = 0, len(listed) * len(dataset.names)
    for model in listed:
        distances = list[AttentionDistances]()
        for part in batches_of(model, dataset, BATCH):
            unreadable |= part.unreadable
            if part.names:
                values.append(_measured(model, part))
                distances += [attention_distances(model, part)] if attends(model) else []
            done += len(part.names) + len(part.unreadable)
            if progress is not None:
                progress(Tick(done, total, model.name))
        if distances:
            values.append(_as_values(distances))
            heads.append(_as_heads(distances, dataset.name))
    if not values:
        raise ImageError(f"{dataset.name}: no image can be read; {next(iter(unreadable.values()))}")
    return LayerTrends(
        dataset.name,
        pd.concat(values, ignore_index=True),
        pd.concat(heads, ignore_index=True) if heads else pd.DataFrame(),
        unreadable,
    )


def _measured(model: ModelAdapter, part: Pictures) -> pd.DataFrame:
    """The measures of one batch: of the layers' activation and, in a transformer, of the class attention of its blocks."""
    study = layers(model, part, channels=1)
    found = [_on_grids(study).assign(map=ACTIVATION)]
    if "class_attention" in model.supplies:
        found.append(_on_grids(replace(study, layers=_attended(model, part))).assign(map=ATTENTION))
    return pd.concat(found, ignore_index=True)


def _attended(model: ModelAdapter, part: Pictures) -> tuple[LayerResponse, ...]:
    """The class attention of each block: its mean over the heads, and the heads."""
    recorded = zip(*record_layers(model, part.images, BATCH), strict=True)
    blocks = [same for same in recorded if same[0].kind == "head"]
    found = []
    for same in blocks:
        heads = np.stack([one.maps for one in same])
        mean, index = heads.mean(axis=1), np.stack([one.index for one in same])
        found.append(LayerResponse(same[0].layer, heads.shape[1], mean, mean, index, heads))
    return tuple(found)


def _on_grids(study: LayerStudy) -> pd.DataFrame:
    """The measures on the layers' own grids and, where these differ, on the coarsest of them."""
    parts = [_melted(study, OWN)]
    if len({one.grid for one in study.layers}) > 1:
        coarsest = min((one.grid for one in study.layers), key=lambda grid: grid[0] * grid[1])
        pooled = [
            replace(one, magnitude=F.adaptive_avg_pool2d(torch.from_numpy(one.magnitude), coarsest).numpy())
            for one in study.layers
        ]
        parts.append(_melted(replace(study, layers=tuple(pooled)), COARSEST))
    return pd.concat(parts, ignore_index=True)


def _melted(study: LayerStudy, grid: str) -> pd.DataFrame:
    """The study's table with a row per measure."""
    table = study.table().rename(columns={"grid": "size"}).assign(grid=grid)
    return table.melt(KEYS, list(MEASURES), var_name="measure")


def _as_values(parts: Sequence[AttentionDistances]) -> pd.DataFrame:
    """The mean over the heads of each block, as a measure among the others."""
    first, each = parts[0], np.concatenate([part.values.mean(axis=2) for part in parts])
    names = [name for part in parts for name in part.names]
    rows = pd.DataFrame({"value": each.ravel(), "image": np.repeat(names, len(first.blocks))})
    rows["depth"] = np.tile(np.arange(1, len(first.blocks) + 1), len(names))
    rows["layer"] = np.tile(first.blocks, len(names))
    return rows.assign(model=first.model, map="attention", size="", grid=OWN, measure=DISTANCE)


def _as_heads(parts: Sequence[AttentionDistances], data: str) -> pd.DataFrame:
    """Mean and interval of every head."""
    first, each = parts[0], np.concatenate([part.values for part in parts])
    rows = []
    for block, path in enumerate(first.blocks):
        for head in range(each.shape[2]):
            low, high = mean_interval(each[:, block, head])
            about = {"data": data, "model": first.model, "depth": block + 1, "block": path, "head": head}
            about |= {"n": len(each), "mean": each[:, block, head].mean(), "low": low, "high": high}
            rows.append(about | {"uniform": first.uniform})
    return pd.DataFrame(rows)
