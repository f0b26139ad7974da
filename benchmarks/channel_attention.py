"""Does channel attention help the tutorial's CNN? `python benchmarks/channel_attention.py digits|shapes [--figures DIR]`.

digits: the 1,797 handwritten digits (8x8 gray, UCI) that scikit-learn ships, as a folder of classes, brought to 16x16.
shapes: the synthetic set, 8,000 images at 32x32. Three seeds with and without; trainings lie in --work and are not repeated.
Writes its rows of results/channel_attention.csv (the measures) and results/channel_attention_causes.csv.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.datasets import load_digits

import attncompare as ac
from attncompare.reporting.figures import save_figure
from attncompare.reporting.studies.channel_attention import (
    causes_figure,
    gates_figure,
    save_comparison,
    training_figure,
)

RESULTS = Path(__file__).parent / "results"
PARTS = {"train": (0, 900), "val": (900, 1_200), "test": (1_200, 1_797)}
SPECS = {
    "digits": {"size": 16, "epochs": 12, "batch_size": 32, "early_stop": None},
    "shapes": {"size": 32, "epochs": 10, "train_images": 8_000, "test_images": 2_000, "early_stop": None},
}


def write_digits(folder: Path) -> Path:
    """The digits as train/, val/ and test/ with a sub-folder per class, in an order drawn with seed 0."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.images))
    for part, (start, stop) in PARTS.items():
        for number in order[start:stop]:
            path = folder / part / str(found.target[number]) / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                Image.fromarray((found.images[number] * 255 / 16).astype(np.uint8)).save(path)
    return folder


def put(rows: pd.DataFrame, name: str, data: str) -> None:
    """These rows in place of those that the file has of the same data."""
    path = RESULTS / f"{name}.csv"
    kept = pd.read_csv(path) if path.exists() else pd.DataFrame({"data": []})
    rows = pd.concat([kept[kept["data"] != data], rows.assign(data=data)])
    rows[["data", *rows.columns.drop("data")]].to_csv(path, index=False, float_format="%.6g")


def main() -> None:
    """Train, compare, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", choices=sorted(SPECS))
    parser.add_argument("--work", type=Path, default=Path("runs/channel_attention"))
    parser.add_argument("--figures", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    work = options.work / options.data
    data = str(write_digits(options.work / "digit-images")) if options.data == "digits" else "shapes"
    spec = ac.TrainSpec(data=data, threads=options.threads, **SPECS[options.data])
    study = ac.studies.channel_attention(spec, out=work, progress=lambda tick: print(tick, flush=True))
    save_comparison(study, work)
    put(study.table(), "channel_attention", options.data)
    put(study.causes(), "channel_attention_causes", options.data)
    for name, draw in (("training", training_figure), ("gates", gates_figure), ("causes", causes_figure)):
        if options.figures:
            save_figure(draw(study), options.figures / f"channel_attention_{name}.png")


if __name__ == "__main__":
    main()
