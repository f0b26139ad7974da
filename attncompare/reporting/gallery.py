"""What a run saved for looking at: pictures, maps and the reasons for missing ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from attncompare.benchmark.saved import MapArchive, SavedMaps, load_image
from attncompare.benchmark.statistics import summarize
from attncompare.benchmark.store import ResultStore
from attncompare.errors import ResultFormatError
from attncompare.maps import resize_map
from attncompare.methods._base import methods
from attncompare.storage.folder import Location


@dataclass(frozen=True)
class Gallery:
    """The records of a run and the maps beside them."""

    folder: Location
    records: pd.DataFrame
    manifest: dict[str, object]
    maps: dict[tuple[str, str], list[SavedMaps]] = field(default_factory=dict)

    @staticmethod
    def open(folder: Location) -> "Gallery":
        """Read a run folder; ResultFormatError when it is none."""
        store = ResultStore(folder)
        manifest = store.manifest()
        records = _variants_apart(store.read(manifest["keys"]))
        archive = MapArchive(folder)
        maps: dict[tuple[str, str], list[SavedMaps]] = {}
        for key in records["key"].drop_duplicates():
            if archive.exists(key):
                saved = archive.read(key)
                maps.setdefault((saved.model, saved.method), []).append(saved)
        return Gallery(folder, records, manifest, maps)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """Mean and interval of everything."""
        return summarize(self.records)

    @cached_property
    def computed(self) -> pd.DataFrame:
        """The rows of the summary that have values, or had but for a failure.

        Not those that were refused as a whole, as are scores of the object where the data mark none, although images failed
        too.
        """
        records, owner = self.records, ["model", "method", "measure", "protocol"]
        refused = records[(records.status == "unsupported") & (records.image == "")].set_index(owner).index
        whole = self.summary.set_index(owner).index.isin(refused)
        return self.summary[(self.summary.n > 0) | ((self.summary.failed > 0) & ~whole)]

    @cached_property
    def models(self) -> list[str]:
        """Models in the order of the spec."""
        spec: dict[str, list[str]] = self.manifest["spec"]  # type: ignore[assignment]
        seen = set(self.records["model"])
        return [name for name in spec["models"] if name in seen]

    @cached_property
    def images(self) -> list[str]:
        """Names of the images with saved maps."""
        return sorted({name for parts in self.maps.values() for saved in parts for name in saved.maps})

    def methods_of(self, model: str) -> list[str]:
        """Methods with a saved image-space map, controls last."""
        found = [method for (owner, method) in self.maps if owner == model and methods.get(method).space == "image"]
        return sorted(set(found), key=lambda name: (methods.get(name).control, name))

    def picture(self, model: str, image: str) -> NDArray[np.uint8]:
        """(H,W,3) what the model saw."""
        return load_image(self.folder, model, image)

    def map(self, model: str, method: str, image: str) -> NDArray[np.float32] | None:
        """(h,w) the raw map, or None."""
        for saved in self.maps.get((model, method), ()):
            if image in saved.maps:
                return saved.maps[image]
        return None

    def explained_class(self, model: str, image: str) -> str:
        """The name of the class that was explained, "" for embeddings."""
        for (owner, _), parts in self.maps.items():
            for saved in parts:
                if owner == model and image in saved.classes:
                    return saved.classes[image]
        return ""

    def lacking(self, what: str) -> ResultFormatError:
        """The error of what needs saved maps: the run kept none, or too few methods gave one."""
        spec: dict[str, object] = self.manifest["spec"]  # type: ignore[assignment]
        advice = (
            "it was run with --save-maps, but too few of its methods gave a map"
            if spec.get("save_maps")
            else "run the benchmark with --save-maps"
        )
        return ResultFormatError(f"{self.folder} has no {what}; {advice}")

    def reason(self, model: str, method: str, image: str) -> str:
        """Why there is no map."""
        rows = self.records[
            (self.records.model == model) & (self.records.method == method) & (self.records.status != "ok")
        ]
        rows = rows[rows.image.isin(["", image])]
        return str(rows.detail.iloc[0]) if len(rows) else ""

    def metric_names(self, *, failed: bool = False) -> list[str]:
        """The metrics of the spec that have values, in its order; failed: or had but for a failure."""
        spec: dict[str, list[str]] = self.manifest["spec"]  # type: ignore[assignment]
        return self.measures(spec["metrics"], failed=failed)

    def measures(self, names: Sequence[str], *, failed: bool = False) -> list[str]:
        """Those of some measures that have values here; failed: or had but for a failure."""
        known = self._known(failed)
        return [name for name in names if name in known]

    def timing_names(self, names: Sequence[str], *, failed: bool = False) -> list[str]:
        """Those of some timing measures that have values here, first of the main variant, then of the others.

        failed: or had but for a failure.
        """
        others = sorted({measure.partition(" ")[2] for measure in self._known(failed) if " " in measure})
        return self.measures([*names, *(f"{name} {variant}" for variant in others for name in names)], failed=failed)

    def _known(self, failed: bool) -> frozenset[str]:
        return frozenset(self.computed.measure) if failed else self._measured

    @cached_property
    def _measured(self) -> frozenset[str]:
        return frozenset(self.records.loc[self.records.status == "ok", "measure"])


def _variants_apart(records: pd.DataFrame) -> pd.DataFrame:
    """Timings of a further variant get measures of their own, "latency_median bf16", so that none is mixed with another.

    The main variant is fp32, or the only one that there is.
    """
    variants = sorted(set(records.loc[records.measure == "latency_median", "protocol"]))
    main = "fp32" if "fp32" in variants or len(variants) != 1 else variants[0]
    further = records.protocol.isin(variants) & (records.protocol != main)
    return records.assign(measure=records.measure.where(~further, records.measure + " " + records.protocol))


def enlarged(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """(h,w) -> (H,W) by the one resizing of this project."""
    return np.asarray(resize_map(torch.from_numpy(values)[None], size)[0].numpy(), dtype=np.float32)
