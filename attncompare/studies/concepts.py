"""TCAV: does a model use a concept for a class? Scores by Captum, tested against sets of random images.

Kim et al., "Interpretability beyond feature attribution: quantitative testing with concept activation vectors" (ICML 2018,
arXiv:1711.11279).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests
from torch import Tensor

from attncompare.benchmark.statistics import mean_interval
from attncompare.capture.target import TargetScore
from attncompare.errors import CaptureError, SpecError
from attncompare.models.adapter import ModelAdapter
from attncompare.progress import Progress, Tick
from attncompare.studies.concept_sets import Pictures, deal, read
from attncompare.studies.concept_vectors import Question, score_pairs
from attncompare.studies.inversion import layers_over_depth
from attncompare.studies.layer_output import layer_outputs

LEVEL = 0.05
MEASURES = ("score", "magnitude")
BATCH = 32  # images in a pass


@dataclass(frozen=True)
class ConceptStudy:
    """TCAV scores of C concepts in L layers for one class.

    runs: one row per layer and pair of sets: layer, kind ("concept", or "random" for random against random), concept (the
    name, or the number of the random set that takes its part), partner (number of the random set), score, magnitude,
    accuracy. table: one row per layer and concept, see `summarize`. images: on how many images of the class derivatives were
    taken. size: images in every set.
    """

    model: str
    target: str
    layers: tuple[str, ...]
    concepts: tuple[str, ...]
    images: int
    size: int
    runs: pd.DataFrame
    table: pd.DataFrame


def tcav(
    model: ModelAdapter,
    images: Pictures,
    target: int | str,
    concepts: Mapping[str, Pictures],
    random: Pictures | Sequence[Pictures],
    layers: str | Sequence[str] | None = None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> ConceptStudy:
    """Test whether the direction of each concept, in each layer, raises the target class.

    images: of the class that is asked about. target: class index or "class:NAME". concepts: name -> example images. random:
    images without any concept in common, which are dealt into ten sets, or a list of ten sets or more. layers: module paths,
    five spread over depth when not given. Every set is cut at random to the size of the smallest, so that a concept and a
    random set differ in nothing but what they show.

    Raises SpecError for too few images or sets and for random sets that share images with another set, UnknownNameError for
    a layer that does not exist, CaptureError for one through which no gradient flows on these images.

    >>> import torch
    >>> import attncompare as ac
    >>> model, draw = ac.load_model("demo/cnn"), torch.Generator().manual_seed(0)
    >>> noise = torch.rand(60, 3, 64, 64, generator=draw)
    >>> found = tcav(model, torch.rand(4, 3, 64, 64), "class:ring", {"bright": noise[:6] / 2 + 0.5}, noise, ["2"])
    >>> len(found.table), len(found.runs)  # 10 random sets against the concept, and 45 pairs of them
    (2, 55)
    """
    names, equal = deal(model, concepts, random, seed)
    shown = read(model, images)
    index = _target(model, shown, target)
    paths, sizes = chosen_layers(model, layers, shown)
    randoms = range(len(names), len(equal))
    pairs = [(one, other) for one in range(len(names)) for other in randoms] + list(combinations(randoms, 2))
    finished = 0

    def done(count: int, path: str) -> None:
        nonlocal finished
        finished += count
        if progress is not None:
            progress(Tick(finished, len(pairs) * len(paths), path))

    found = score_pairs(model, sizes, equal, pairs, Question(shown, index, BATCH, seed), done)
    runs = _named(found, names)
    table = summarize(runs, len(shown), seed)
    return ConceptStudy(model.name, model.class_name(index), paths, names, len(shown), len(equal[0]), runs, table)


def summarize(runs: pd.DataFrame, images: int, seed: int = 0) -> pd.DataFrame:
    """One row per measure, layer and concept of `ConceptStudy.runs`.

    measure: "score" or "magnitude". mean: over the random partners; low, high: bootstrap 95 % interval of this mean.
    null_low, null_high: where 95 % of the means of sets of random images would lie. p: two-sided, that the concept's mean is
    one of these (see `null_test`); p_holm: Holm over all layers and concepts of the measure; significant: p_holm below
    0.05. p_runs: after the test of the paper's authors, Welch's t-test of the concept's runs against the random runs
    and the opposite of each of them, which takes runs that share a set for independent. accuracy: mean over partners, on
    held-out images; accuracy_random: of random against random sets.
    """
    parts = []
    for measure in MEASURES:
        rows = [
            {"measure": measure, "layer": layer, "concept": concept, **_row(own, group, measure, (images, seed))}
            for layer, group in runs.groupby("layer", sort=False)
            for concept, own in group[group.kind == "concept"].groupby("concept", sort=False)
        ]
        table = pd.DataFrame(rows)
        table["p_holm"] = multipletests(table.p, method="holm")[1]
        parts.append(table.assign(significant=table.p_holm < LEVEL))
    return pd.concat(parts, ignore_index=True)


def _row(own: pd.DataFrame, layer: pd.DataFrame, measure: str, about: tuple[int, int]) -> dict[str, float]:
    """What `summarize` says of the runs of one concept in one layer; about: images of the class, seed."""
    images, seed = about
    random = layer[layer.kind == "random"]
    values = own[measure].to_numpy(dtype=np.float64)
    forward = random[measure].to_numpy(dtype=np.float64)
    backward = 1 - forward if measure == "score" else -forward
    p, band = null_test(float(values.mean()), null_means(random, measure), 1 / images if measure == "score" else 0.0)
    low, high = mean_interval(values, seed)
    return {
        "mean": float(values.mean()),
        "low": low,
        "high": high,
        "null_low": band[0],
        "null_high": band[1],
        "p": p,
        "p_runs": welch(values, np.concatenate([forward, backward])),
        "accuracy": float(own.accuracy.mean()),
        "accuracy_random": float(random.accuracy.mean()),
    }


def null_means(random: pd.DataFrame, measure: str) -> NDArray[np.float64]:
    """(K,) what each random set of one layer has in the place of a concept: its mean over the other random sets.

    A vector from one set to another is the opposite of that from the other to the one, and so is each derivative along it.
    A set's mean lies K / (K - 1) times as far out as a concept's would, whose partners are all K sets: with ten the spread
    is some 10 % too large, which errs on the side of no finding.
    """
    opposite = 1 - random[measure] if measure == "score" else -random[measure]
    forward = pd.DataFrame({"set": random.concept.astype(int), "value": random[measure]})
    backward = pd.DataFrame({"set": random.partner.astype(int), "value": opposite})
    means = pd.concat([forward, backward]).groupby("set")["value"].mean()
    return means.to_numpy(dtype=np.float64)


def null_test(score: float, null: NDArray[np.float64], resolution: float) -> tuple[float, tuple[float, float]]:
    """(p, 95 % band): whether one more draw from the population of `null` (K,) would lie as far from its mean.

    The concept is one set of images, so it is compared as one with K random sets: t with K - 1 degrees of freedom, of the
    difference over s sqrt(1 + 1/K). Its runs against K partners are no K observations, since they share that one set. s is
    not taken smaller than `resolution`, the step between two possible scores. 1 where nothing varies and nothing differs.

    >>> p, band = null_test(0.9, np.array([0.4, 0.6, 0.5, 0.45, 0.55]), 0.01)
    >>> round(p, 3), [round(edge, 2) for edge in band]
    (0.01, [0.26, 0.74])
    """
    spread = max(float(null.std(ddof=1)), resolution) * float(np.sqrt(1 + 1 / len(null)))
    middle, freedom = float(null.mean()), len(null) - 1
    reach = float(stats.t.ppf(1 - LEVEL / 2, freedom)) * spread
    if spread == 0:
        return float(score == middle), (middle, middle)
    p = float(2 * stats.t.sf(abs(score - middle) / spread, freedom))
    return p, (middle - reach, middle + reach)


def welch(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Two-sided p of Welch's t-test; 1 where both are the same constant, 0 where they are two.

    >>> round(welch(np.array([1.0, 2.0, 3.0]), np.array([2.0, 3.0, 4.0])), 3)
    0.288
    """
    samples = [(float(one.mean()), float(one.std(ddof=1)), len(one)) for one in (first, second)]
    if samples[0][1] + samples[1][1] == 0:
        return float(samples[0][0] == samples[1][0])
    return float(stats.ttest_ind_from_stats(*samples[0], *samples[1], equal_var=False).pvalue)


def _named(found: pd.DataFrame, names: tuple[str, ...]) -> pd.DataFrame:
    """Rows of pairs of numbers, with what the sets are."""
    count = len(names)
    is_concept = found["first"] < count
    concept = [names[one] if one < count else str(one - count) for one in found["first"]]
    table = found.assign(kind=np.where(is_concept, "concept", "random"), concept=concept, partner=found.second - count)
    return table[["layer", "kind", "concept", "partner", "score", "magnitude", "accuracy"]]


def _target(model: ModelAdapter, images: Tensor, target: int | str) -> int:
    """The index of the class; SpecError for anything else."""
    named = isinstance(target, str) and target.startswith("class:")
    if model.embedding or isinstance(target, bool) or not (isinstance(target, int) or named):
        raise SpecError(f"target {target!r} of {model.name}: TCAV asks about one class; give its index or 'class:NAME'")
    outputs = images.new_zeros(1, model.structure.outputs)
    return int(TargetScore.of(model, outputs, target).target[0])


def chosen_layers(
    model: ModelAdapter, layers: str | Sequence[str] | None, images: Tensor
) -> tuple[tuple[str, ...], dict[str, int]]:
    """The layers' paths, and how many values each returns for an image."""
    head = model.structure.classifier  # behind it every image has the same derivative, so that scores are 0 or 1
    inner = tuple(path for path in layers_over_depth(model) if head is None or path != head.linear)
    paths = inner if layers is None else (layers,) if isinstance(layers, str) else tuple(layers)
    if not paths or len(set(paths)) != len(paths):
        raise SpecError(f"layers {list(paths)}: at least one is needed, and none twice")
    outputs = layer_outputs(model, images[:2], paths, alone=True)
    for path, output in outputs.items():
        if len(output) != len(images[:2]):
            raise CaptureError(f"layer {path!r} of {model.name} returns {tuple(output.shape)}, not one row per image")
    return paths, {path: outputs[path][0].numel() for path in paths}
