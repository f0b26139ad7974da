"""Draw the pictures that figures are compared with: python tests/reporting/make_baselines.py; look, then commit."""

import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from attncompare.reporting.figures import draw, kinds, save_figure

BASELINE = Path(__file__).parent / "baseline"
VENUE, SMALLER = "cvpr", 6  # the narrowest column, as it is written, shrunk to 50 dots per inch


def shrunk(figure: Figure, folder: Path) -> Image.Image:
    path = save_figure(figure, folder / "figure.png")
    with Image.open(path) as picture:
        return picture.convert("RGB").reduce(SMALLER)


def baseline(kind: str) -> np.ndarray:
    with Image.open(BASELINE / f"{kind}.png") as picture:
        return np.asarray(picture)


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from references.synthetic_run import synthetic_run

    BASELINE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        run = synthetic_run(Path(name))
        for kind in kinds.names():
            shrunk(draw(run, kind, venue=VENUE), Path(name)).save(BASELINE / f"{kind}.png", optimize=True)


if __name__ == "__main__":
    main()
