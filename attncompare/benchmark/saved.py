"""Maps and pictures kept beside the records, for figures and the report; they hold no code and no model."""

import io
import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from attncompare.benchmark.store import write_atomically
from attncompare.errors import ResultFormatError


def slug(name: str) -> str:
    """A name made safe for a file: letters, digits, dots and dashes, and a hash of what was changed.

    >>> slug("demo/vit"), slug("../../etc/passwd")[:10]
    ('demo-vit-f81d54', 'etc-passwd')
    """
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:80]
    return plain if plain == name else f"{plain}-{sha256(name.encode()).hexdigest()[:6]}"


@dataclass(frozen=True)
class SavedMaps:
    """The maps of one cell: image name -> (h,w) or (C,) float32, and the name of the class explained."""

    model: str
    method: str
    maps: dict[str, NDArray[np.float32]]
    classes: dict[str, str]


class MapArchive:
    """maps/KEY.npz, one file per cell."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "maps"

    def path(self, key: str) -> Path:
        """Where a cell's maps lie."""
        return self.folder / f"{key[:32]}.npz"

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
        arrays: dict[str, NDArray[np.generic]] = {f"map{i}": maps[name].cpu().numpy() for i, name in enumerate(names)}
        arrays["names"] = np.array(names, dtype=np.str_)
        arrays["classes"] = np.array([classes[name] for name in names], dtype=np.str_)
        arrays["who"] = np.array([model, method], dtype=np.str_)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        write_atomically(self.path(key), buffer.getvalue())

    def read(self, key: str) -> SavedMaps:
        """Load the maps of one cell."""
        try:
            with np.load(self.path(key), allow_pickle=False) as stored:
                names = [str(name) for name in stored["names"]]
                model, method = (str(word) for word in stored["who"])
                maps = {name: stored[f"map{i}"].astype(np.float32) for i, name in enumerate(names)}
                return SavedMaps(model, method, maps, dict(zip(names, map(str, stored["classes"]), strict=True)))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise ResultFormatError(
                f"maps of cell {key[:12]} cannot be read: {error}; run the benchmark again"
            ) from error


def image_path(folder: Path, model: str, name: str) -> Path:
    """Where the picture that a model saw lies."""
    return folder / "images" / slug(model) / f"{slug(name)}.png"


def save_image(folder: Path, model: str, name: str, picture: NDArray[np.uint8]) -> None:
    """Keep the picture that a model saw."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    write_atomically(image_path(folder, model, name), buffer.getvalue())  # another picture may have had that name
