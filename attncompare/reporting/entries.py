"""What the report's image browser shows of one image: pictures, maps, curves, layers, and reasons for what is missing."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from attncompare.benchmark.layer_maps import LayerMaps
from attncompare.benchmark.records import REPORTED_MEASURES
from attncompare.data.images import to_tensor
from attncompare.methods._base import methods
from attncompare.metrics._base import Evidence, metrics
from attncompare.metrics.perturbation import baseline_images, change_step, ends_of, rank_units
from attncompare.metrics.protocols import Baseline, Protocol
from attncompare.reporting.gallery import Gallery, enlarged
from attncompare.reporting.layer_entry import layer_entry
from attncompare.reporting.levels import EXACT, LEVELS, SMALL, Levels, as_text
from attncompare.reporting.overlay import is_signed, pixels_of, scale_of
from attncompare.reporting.pictures import LOSSLESS, WEBP, photo, webp

KINDS = {
    Evidence.DELETION_CURVE: "deletion",
    Evidence.INSERTION_CURVE: "insertion",
    Evidence.LEAST_FIRST_CURVE: "deletion, least relevant first",
}
TARGETS = {"argmax": "the model's own first choice", "label": "the label", "embedding": "the model's own embedding"}
"""What a target rule explains."""
CURVE_UNIT = 32767  # curves lie in [-1, 1] and are kept as int16


@dataclass(frozen=True)
class Entries:
    """The images of one run, ready to be shown."""

    run: Gallery
    layers: LayerMaps
    exact: bool = True
    """Whether pictures are kept as they are, photos nearly; else photos and large maps are WebP, a third of the size."""

    @staticmethod
    def of(run: Gallery) -> "Entries":
        """Read the layers beside a run's maps."""
        return Entries(run, LayerMaps.open(run.folder, run.records["key"].drop_duplicates()))

    @cached_property
    def protocol(self) -> Protocol:
        """As the run used it, whatever the one of that name is today."""
        return Protocol(**cast(dict[str, Any], self.run.manifest["protocol"]))

    @property
    def seed(self) -> int:
        """What breaks ties between equal values."""
        return int(cast(dict[str, Any], self.run.manifest["spec"])["seed"])

    @property
    def data(self) -> str:
        """What the images come from."""
        return str(cast(dict[str, Any], self.run.manifest["spec"])["data"])

    @property
    def place(self) -> str:
        """What the images come from, in a word or two."""
        data = cast(dict[str, Any], self.run.manifest["spec"])["data"]
        return PurePath(data).name or data if isinstance(data, str) else f"{len(data)} files"

    @property
    def target(self) -> str:
        """The rule that chose what is explained."""
        chosen = str(cast(dict[str, Any], self.run.manifest["spec"])["target"])
        return TARGETS.get(chosen, f"class {chosen}" if chosen.isdecimal() else chosen)

    @property
    def methods(self) -> list[str]:
        """Every method of the run whose map lies on the image, controls last."""
        return list(dict.fromkeys(name for model in self.run.models for name in self._methods(model)))

    @property
    def note(self) -> str:
        """What the pictures of the perturbation are, and how near they come to what was scored."""
        protocol = self.protocol
        if protocol.cells is not None:
            cells = f"{protocol.cells} × {protocol.cells} cells"
            return f"Protocol {protocol.name}: {cells} change, in the order that was scored."
        return (
            f"Protocol {protocol.name}: pixels change in the order of the map, ties in the seeded order of the run. "
            f"The page orders them itself, from the map enlarged bilinearly. {self._kept}"
        )

    @property
    def _kept(self) -> str:
        if self.exact:
            return (
                f"Of maps with more than {EXACT} values it keeps {LEVELS} levels, which lie between the steps where the "
                "map is as large as the image; of others the order may differ a little."
            )
        return (
            f"Of maps with more than {SMALL} values it keeps a WebP picture of quality {WEBP}, which ends at the ends of "
            "the color scale: which pixels have changed is then approximate. The scores are those of the map itself."
        )

    @cached_property
    def curves(self) -> dict[str, Evidence]:
        """Measure -> the curve that its records hold; the first measure of each curve."""
        rows = self.run.records
        held = set(rows.loc[rows.curve.notna(), "measure"])
        found: dict[Evidence, str] = {}
        for name in self.run.metric_names():
            curve = metrics.get(name).curve
            if name in held and curve is not None:
                found.setdefault(curve, name)
        return {name: curve for curve, name in found.items()}

    @cached_property
    def _rows(self) -> dict[tuple[str, str, str], list[Any]]:
        found: dict[tuple[str, str, str], list[Any]] = defaultdict(list)
        for row in self.run.records.itertuples(index=False):
            found[str(row.model), str(row.method), str(row.image)].append(row)
        return found

    def perturbations(self) -> list[dict[str, Any]]:
        """How each curve takes an image apart: from what, to what, and which end of the map is first."""
        found = []
        for measure, curve in self.curves.items():
            start, finish = ends_of(self.protocol, curve)
            sign = -1 if curve is Evidence.LEAST_FIRST_CURVE else 1
            found.append(
                {
                    "measure": measure,
                    "name": KINDS[curve],
                    "from": start or "image",
                    "to": finish or "image",
                    "sign": sign,
                }
            )
        return found

    def ties(self) -> dict[str, str]:
        """Pixels -> base64 of uint32, the place of each pixel when all are alike; for every size of image in the run."""
        found = {}
        if self.curves and self.protocol.cells is None:
            for h, w in map(self.size, self.run.models):
                ranks = rank_units(torch.zeros(h * w), self.seed)
                found[str(h * w)] = as_text(ranks.numpy().astype("<u4").tobytes())
        return found

    def size(self, model: str) -> tuple[int, int]:
        """The input (H, W) of a model."""
        described = cast(dict[str, dict[str, Any]], self.run.manifest["models"])[model]
        return int(described["size"][0]), int(described["size"][1])

    def entry(self, image: str) -> dict[str, Any]:
        """All models on one image."""
        shared: dict[str, str] = {}
        models = [self._model(model, image, shared) for model in self.run.models if self._shown(model, image)]
        return {"image": image, "pictures": {number: uri for uri, number in shared.items()}, "models": models}

    def _shown(self, model: str, image: str) -> bool:
        return any(self.run.map(model, name, image) is not None for name in self.run.methods_of(model))

    def _model(self, model: str, image: str, shared: dict[str, str]) -> dict[str, Any]:
        picture = self.run.picture(model, image)
        maps, missing = [], []
        for name in self._methods(model):
            values = self.run.map(model, name, image)
            if values is None:
                missing.append({"method": name, **self._reason(model, name, image)})
            else:
                maps.append({"method": name, **self._map(model, name, image, values, picture.shape[:2])})
        scores = [
            row.value
            for one in maps
            for row in self._rows[model, one["method"], image]
            if (row.measure, row.status) == ("target_score", "ok")
        ]
        return {
            "model": model,
            "class": self.run.explained_class(model, image),
            "score": round(float(scores[0]), 4) if scores else None,
            "size": picture.shape[:2],
            "steps": self.protocol.count(picture.shape[:2]),
            "picture": _shared(photo(picture, self.exact), shared),
            "kept": "" if max(picture.shape) <= LOSSLESS else "JPEG" if self.exact else "WebP",
            "baselines": self._baselines(model, picture, shared),
            "maps": maps,
            "missing": missing,
            "layers": [layer_entry(one, self.exact) for one in self.layers.of(model, image)],
            "no_layers": self.layers.refused(model) or "The run kept no layers; run it again with --save-maps.",
        }

    def _methods(self, model: str) -> list[str]:
        """Every method of the run whose map lies on the image, controls last, whether the model has it or not."""
        tried = set(self.run.records.loc[self.run.records.model == model, "method"])
        names = [name for name in tried if methods.get(str(name)).space == "image"]
        return sorted(map(str, names), key=lambda name: (methods.get(name).control, name))

    def _reason(self, model: str, method: str, image: str) -> dict[str, str]:
        rows = [*self._rows.get((model, method, image), ()), *self._rows.get((model, method, ""), ())]
        bad = [row for row in rows if row.status != "ok"]
        if not bad:
            return {"status": "failed", "reason": "Its map was not kept."}
        return {"status": str(bad[0].status), "reason": str(bad[0].detail)}

    def _map(
        self, model: str, method: str, image: str, values: NDArray[np.float32], size: tuple[int, int]
    ) -> dict[str, Any]:
        """A map, its scores and its curves."""
        full = enlarged(values, size)
        low, high = scale = [float(f"{end:.6g}") for end in scale_of(full)]
        if self.exact or values.size <= SMALL:
            by_pixel = self.protocol.cells is None and values.shape == size
            levels = Levels.of(values, self.protocol.count(size) if by_pixel else None, self.seed)
            kept = {"levels": levels.text(), "values": as_text(levels.value.astype("<f4").tobytes())}
        else:  # 256 levels from one end of the color scale to the other
            kept = {"levels": webp(np.clip((values - low) / (high - low) * 255, 0, 255)), "values": ""}
        rows, wanted = self._rows[model, method, image], {*self.run.metric_names(), *REPORTED_MEASURES}
        rows = [row for row in rows if row.status == "ok"]
        return {
            "control": methods.get(method).control,
            "grid": values.shape,
            **kept,
            "scale": scale,
            "signed": is_signed(full),
            "scores": {row.measure: round(float(row.value), 4) for row in rows if row.measure in wanted},
            "curves": {row.measure: _curve(row.curve) for row in rows if row.measure in self.curves},
            "cells": self._cell_steps(values, size),
        }

    def _cell_steps(self, values: NDArray[np.float32], size: tuple[int, int]) -> dict[str, str]:
        """Measure -> base64 of uint16, the step at which each cell changes; {} for protocols that change pixels."""
        cells = self.protocol.cells
        if cells is None:
            return {}
        rows, columns = (np.arange(cells) * length // cells for length in size)
        found = {}
        for measure, curve in self.curves.items():
            ordered = torch.from_numpy(-values if curve is Evidence.LEAST_FIRST_CURVE else values)
            steps = change_step(ordered, size, self.protocol, self.seed).numpy()[rows][:, columns]
            found[measure] = as_text(steps.astype("<u2").tobytes())
        return found

    def _baselines(self, model: str, picture: NDArray[np.uint8], shared: dict[str, str]) -> dict[str, Any]:
        """Kind -> a picture's number; {} when the run has no curves."""
        kinds = {kind for curve in self.curves.values() for kind in ends_of(self.protocol, curve) if kind}
        mean = cast(dict[str, dict[str, Any]], self.run.manifest["models"])[model].get("mean")
        if mean is None:  # a run folder of an earlier version
            return {}
        clean = to_tensor(picture)[None]
        return {kind: _shared(photo(_baseline(clean, kind, mean), self.exact), shared) for kind in sorted(kinds)}


def _baseline(clean: torch.Tensor, kind: Baseline, mean: list[float]) -> NDArray[np.uint8]:
    drawn: NDArray[np.uint8] = pixels_of(baseline_images(clean, kind, mean).clamp(0, 1))[0]
    return drawn


def _shared(uri: str, shared: dict[str, str]) -> str:
    """The number of a picture; the same picture has one number."""
    return shared.setdefault(uri, str(len(shared)))


def _curve(scores: NDArray[np.float32]) -> str:
    return as_text(np.rint(np.clip(scores, -1, 1) * CURVE_UNIT).astype("<i2").tobytes())


def entries_of(runs: list[Entries]) -> Iterator[tuple[int, str]]:
    """(run, image) of everything that can be shown."""
    for number, one in enumerate(runs):
        for image in one.run.images:
            yield number, image
