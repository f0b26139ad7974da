"""Maps and pictures kept beside the records, for figures and the report; they hold no code and no model."""

import io
import re
from dataclasses import dataclass
from zipfile import BadZipFile
from zlib import error as ZlibError

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from attncompare.errors import ResultFormatError
from attncompare.storage.folder import CellFiles, Location, RunFolder, npz_of
from attncompare.storage.names import slug

DAMAGE = (OSError, ValueError, KeyError, EOFError, RuntimeError, BadZipFile, ZlibError)
"""What numpy raises for an npz file that is not as it was written."""


@dataclass(frozen=True)
class SavedMaps:
    """The maps of one cell: image name -> (h,w) or (C,) float32, and the name of the class explained."""

    model: str
    method: str
    maps: dict[str, NDArray[np.float32]]
    classes: dict[str, str]


def to_half(values: NDArray[np.float32]) -> tuple[NDArray[np.float16], float, float]:
    """float16 numbers in [-1, 1] with the scale and offset that give the map back.

    The error is at most 1/4000 of the map's range, be its values 1e-30 or 1e30 or far from zero. A value of 0 stays 0.
    """
    exact = values.astype(np.float64)
    low, high = float(exact.min()), float(exact.max())
    offset = 0.0 if low <= 0 <= high else low
    scale = float(np.abs(exact - offset).max()) or 1.0
    return ((exact - offset) / scale).astype(np.float16), scale, offset


class MapArchive:
    """maps/KEY.npz, one compressed file per cell: float16 with a scale and an offset for each map."""

    def __init__(self, folder: Location) -> None:
        self.files = CellFiles(RunFolder(folder), "maps", "npz")

    def path(self, key: str) -> Location:
        """Where a cell's maps lie."""
        return self.files.path(key)

    def exists(self, key: str) -> bool:
        """Whether there are maps of a cell, readable or not."""
        return self.files.exists(key)

    def holds(self, key: str) -> bool:
        """Whether the maps of a cell are there and can be read."""
        try:
            self.read(key)
        except ResultFormatError:
            return False
        return True

    def write(self, key: str, model: str, method: str, maps: dict[str, Tensor], classes: dict[str, str]) -> None:
        """Save the maps of one cell."""
        names = list(maps)
        halves = [to_half(maps[name].cpu().numpy()) for name in names]
        arrays: dict[str, NDArray[np.generic]] = {f"map{i}": half for i, (half, _, _) in enumerate(halves)}
        arrays["scales"] = np.array([(scale, offset) for _, scale, offset in halves], dtype=np.float64).reshape(-1, 2)
        arrays["names"] = np.array(names, dtype=np.str_)
        arrays["classes"] = np.array([classes[name] for name in names], dtype=np.str_)
        arrays["who"] = np.array([model, method], dtype=np.str_)
        self.files.write(key, npz_of(arrays))

    def read(self, key: str) -> SavedMaps:
        """Load the maps of one cell, also those of earlier versions, which were float32 as they are."""
        try:
            with np.load(io.BytesIO(self.files.read(key)), allow_pickle=False) as stored:
                names = [str(name) for name in stored["names"]]
                model, method = (str(word) for word in stored["who"])
                halves = any(stored[f"map{i}"].dtype == np.float16 for i in range(len(names)))
                scales = stored["scales"] if halves else [(1.0, 0.0)] * len(names)
                maps = {
                    name: (stored[f"map{i}"].astype(np.float64) * scale + offset).astype(np.float32)
                    for i, (name, (scale, offset)) in enumerate(zip(names, scales, strict=True))
                }
                return SavedMaps(model, method, maps, dict(zip(names, map(str, stored["classes"]), strict=True)))
        except DAMAGE as error:
            raise ResultFormatError(
                f"maps of cell {key[:12]} cannot be read: {error}; run the benchmark again"
            ) from error


def _image_name(model: str, name: str) -> str:
    return f"images/{slug(model)}/{slug(name)}.png"


def load_image(folder: Location, model: str, name: str) -> NDArray[np.uint8]:
    """(H,W,3) the picture that a model saw."""
    files, path = RunFolder(folder), _image_name(model, name)
    if re.fullmatch("[A-Za-z0-9.-]+", name) and name != name.lower() and not files.exists(path):
        path = f"images/{slug(model)}/{name}.png"  # of an earlier version
    content = files.read(path)
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def save_image(folder: Location, model: str, name: str, picture: NDArray[np.uint8]) -> None:
    """Keep the picture that a model saw, in place of another of that name; nothing is written where it is there."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    files, place = RunFolder(folder), _image_name(model, name)
    if files.read_those_there([place]).get(place) != buffer.getvalue():
        files.write(place, buffer.getvalue())
