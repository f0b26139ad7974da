"""Channel attention, with and without: the same trainings twice, over several seeds.

Squeeze-and-excitation (Hu et al., arXiv:1709.01507) costs parameters and time; whether it pays is measured here on pairs of
trainings that share data, order of the data and the first weights of every layer that both have.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import stats

from attncompare.benchmark.timing.device import open_device
from attncompare.benchmark.timing.latency import time_interleaved
from attncompare.environment import thread_count
from attncompare.errors import SpecError
from attncompare.progress import Progress, Tick
from attncompare.studies.gate_effects import ablation, gate_values
from attncompare.training.data import TrainingData, open_training_data
from attncompare.training.run import Training, epochs, finish
from attncompare.training.spec import TUTORIAL_CNN, Gates, TrainSpec

BLOCKS = ("block1", "block2", "block3")
LEAST_SEEDS = 3
REPEATS, SECONDS = 100, 1.0  # of the latency's rounds
MEASURES = (
    "test_accuracy", "validation_accuracy", "parameters", "seconds_per_epoch", "cpu_seconds_per_epoch",
    "epochs_to_equal", "seconds_to_equal", "cpu_seconds_to_equal", "latency_ms",
)  # fmt: skip
"""The first is what the study is about. X to equal: until the validation accuracy first reaches the lower of the pair's two
best ones. Latency: of one image, median of interleaved runs."""


@dataclass(frozen=True)
class GateComparison:
    """What came out of pairs of trainings, one pair per seed.

    runs: one row per training: seed, gated and the MEASURES. history: validation accuracy and time, epoch by epoch.
    gates: mean gate (a sigmoid's output, in [0, 1]) per seed, layer, class and channel, on the test images.
    ablation: accuracy on test images with some channels of a layer set to zero behind its gates: those of the highest
    mean gate, of the lowest, and random ones, draw by draw. `drop` is what that takes off the accuracy of the whole.
    """

    spec: TrainSpec
    class_names: tuple[str, ...]
    runs: pd.DataFrame
    history: pd.DataFrame
    gates: pd.DataFrame
    ablation: pd.DataFrame

    @property
    def seeds(self) -> int:
        """How many pairs."""
        return int(self.runs.seed.nunique())

    def table(self) -> pd.DataFrame:
        """One row per measure: means with 95 % intervals over seeds, with and without; difference, ratio and p.

        Intervals are Student's, p is that of the paired t test (two-sided, uncorrected). Both take the differences for
        normal, which a few seeds cannot show; tests of ranks or permutations, which need not, cannot fall below 0.25 with
        three seeds. ratio: geometric mean of with / without. Empty where all differences are equal.
        """
        pairs = [(name, self.runs.pivot(index="seed", columns="gated", values=name)) for name in MEASURES]
        return pd.DataFrame([_compare(name, values) for name, values in pairs])

    def causes(self) -> pd.DataFrame:
        """One row per layer: mean drop in accuracy without the highest-gated, lowest-gated and random channels.

        Intervals and p as in `table`, over seeds, for the highest against the mean of the random draws. share_above: of
        the random draws of all seeds, those that cost at least as much as the highest-gated channels of that seed.
        """
        return pd.DataFrame([_cause(layer, rows) for layer, rows in self.ablation.groupby("layer", sort=False)])


def channel_attention(
    spec: TrainSpec | None = None,
    *,
    seeds: int | Sequence[int] = LEAST_SEEDS,
    out: str | Path = "runs/channel-attention",
    ablated: float = 0.25,
    draws: int = 50,
    progress: Progress = lambda tick: None,
) -> GateComparison:
    """Train with and without channel attention over several seeds, and ask what the gates do.

    spec: what to train; its squeeze_excite says where the gates go (the tutorial's CNN: behind each block). seeds: which,
    or how many from the spec's on; at least 3. ablated: share of a layer's channels set to zero. draws: of random
    channels. Trainings go to out/seed-S/with and out/seed-S/without; finished ones are read, killed ones gone on with.
    Pairs train in turns, epoch by epoch, so that a slow spell of the machine hits both.
    Raises SpecError for too few seeds, or a model whose layers are not named.
    """
    gates = _gates(spec or TrainSpec())
    spec = (spec or TrainSpec()).model_copy(update={"squeeze_excite": gates})
    numbers = [spec.seed + n for n in range(seeds)] if isinstance(seeds, int) else [int(one) for one in seeds]
    if len(set(numbers)) < LEAST_SEEDS:
        raise SpecError(f"{len(set(numbers))} seeds: at least {LEAST_SEEDS} are needed to say how much chance moves")
    if not 0 < ablated < 1 or draws < 2:
        raise SpecError(f"ablated {ablated}, draws {draws}: a share between 0 and 1, and at least 2 draws")
    data, chosen = open_training_data(spec), list(dict.fromkeys(numbers))
    found: dict[str, list[pd.DataFrame]] = {"runs": [], "history": [], "gates": [], "ablation": []}
    with thread_count(spec.threads):
        for number, seed in enumerate(chosen):
            part = (number, len(chosen))
            pair = _train_pair(spec.model_copy(update={"seed": seed}), data, Path(out), _share(progress, part))
            progress(Tick(*part, f"gates of seed {seed}"))
            model = pair[1].model(spec.device)
            fitted = data.fitted(model.source.preprocessing)
            dropped = ablation(model, fitted, gates.layers, share=ablated, draws=draws, seed=seed)
            for name, frame in (
                ("runs", _measured(pair)),
                ("history", pd.concat([t.history.assign(gated=t is pair[1]) for t in pair])),
                ("gates", gate_values(model, fitted.test, gates.layers)),
                ("ablation", dropped),
            ):
                found[name].append(frame.assign(seed=seed))
    frames = {name: pd.concat(parts, ignore_index=True) for name, parts in found.items()}
    return GateComparison(spec, data.class_names, **frames)


def _gates(spec: TrainSpec) -> Gates:
    """Where the gates go; SpecError where nobody said."""
    if spec.squeeze_excite is None and spec.model != TUTORIAL_CNN:
        raise SpecError(f"say where the gates of {spec.model} go: squeeze_excite = {{layers = [...]}}")
    return spec.squeeze_excite or Gates(layers=BLOCKS)


def _share(progress: Progress, part: tuple[int, int]) -> Progress:
    """Progress of one pair of trainings as part of all: steps of both count."""
    done = 0

    def show(tick: Tick) -> None:
        nonlocal done
        done += 1
        number, count = part
        progress(
            Tick(2 * tick.total * number + done, 2 * tick.total * count, f"pair {number + 1} of {count}, {tick.what}")
        )

    return show


def _train_pair(spec: TrainSpec, data: TrainingData, out: Path, progress: Progress) -> tuple[Training, Training]:
    """(without, with): trained in turns."""
    specs = (spec.model_copy(update={"squeeze_excite": None}), spec)
    folders = [out / f"seed-{spec.seed}" / name for name in ("without", "with")]
    turns = [epochs(one, data, folder, progress) for one, folder in zip(specs, folders, strict=True)]
    for _ in zip_longest(*turns):
        pass
    without, gated = (finish(one, data, folder) for one, folder in zip(specs, folders, strict=True))
    return without, gated


def _measured(pair: tuple[Training, Training]) -> pd.DataFrame:
    """The MEASURES of both trainings of a seed."""
    target = min(training.card["validation_accuracy"] for training in pair)
    latencies = _latencies(pair)
    rows = []
    for gated, training in enumerate(pair):
        card, history = training.card, training.history
        reached = int((history.accuracy >= target).to_numpy().argmax())
        row = {name: card[name] for name in ("test_accuracy", "validation_accuracy", "parameters")}
        row |= {"gated": bool(gated), "epochs": len(history), "latency_ms": latencies[gated]}
        row |= {"epochs_to_equal": reached + 1}
        for clock in ("seconds", "cpu_seconds"):
            spent = history[clock].to_numpy()
            row |= {f"{clock}_per_epoch": float(np.median(np.diff(spent, prepend=0.0)))}
            row |= {f"{clock}_to_equal": float(spent[reached])}
        rows.append(row)
    return pd.DataFrame(rows)


def _latencies(pair: tuple[Training, Training]) -> list[float]:
    """Milliseconds of one image, both models in turns."""
    device = pair[1].card["spec"]["device"]
    models = {name: training.model(device) for name, training in zip(("without", "with"), pair, strict=True)}
    image = torch.rand(1, 3, *models["with"].size, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.inference_mode():
        jobs = {name: (lambda model=model: model.forward(image)) for name, model in models.items()}
        taken = time_interleaved(jobs, open_device(torch.device(device)), repeats=REPEATS, seconds=SECONDS)
    return [1000 * taken[name].median for name in ("without", "with")]


def _summary(name: str, values: NDArray[np.float64]) -> dict[str, float]:
    """Mean and Student's 95 % interval over seeds; the mean itself where all values are equal."""
    mean = low = high = float(values.mean())
    if np.ptp(values) > 0:
        low, high = (float(end) for end in stats.ttest_1samp(values, 0).confidence_interval(0.95))
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def _paired_t(differences: NDArray[np.float64]) -> float:
    """Two-sided p of the paired t test; NaN where all differences are equal."""
    return float("nan") if np.ptp(differences) == 0 else float(stats.ttest_1samp(differences, 0).pvalue)


def _compare(measure: str, pairs: pd.DataFrame) -> dict[str, object]:
    """One row of the table, from (seeds x [False, True]) values."""
    without, gated = (pairs[column].to_numpy(dtype=np.float64) for column in (False, True))
    row: dict[str, object] = {"measure": measure, "seeds": len(pairs)}
    row |= _summary("without", without) | _summary("with", gated) | _summary("difference", gated - without)
    ratio = _summary("ratio", np.log(gated) - np.log(without))
    return row | {name: math.exp(value) for name, value in ratio.items()} | {"p": _paired_t(gated - without)}


def _cause(layer: object, rows: pd.DataFrame) -> dict[str, object]:
    """One row of `causes`."""
    drops = {which: of.groupby("seed")["drop"].mean() for which, of in rows.groupby("channels")}
    row: dict[str, object] = {"layer": layer, "zeroed": int(rows["zeroed"].iloc[0]), "of": int(rows["of"].iloc[0])}
    for which in ("highest", "lowest", "random"):
        row |= _summary(which, drops[which].to_numpy(dtype=np.float64))
    differences = (drops["highest"] - drops["random"]).to_numpy(dtype=np.float64)
    random = rows[rows.channels == "random"]
    above = random["drop"] >= random["seed"].map(drops["highest"])
    counts = {"draws": len(random) // rows["seed"].nunique(), "share_above": float(above.mean())}
    return row | _summary("difference", differences) | {"p": _paired_t(differences)} | counts
