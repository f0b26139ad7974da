"""How much of an image each layer keeps: `python benchmarks/inversion.py`.

Inverts images at five layers of the demo models and of a pretrained one. Writes benchmarks/results/inversion.csv: per model,
image and layer the relative losses of the random start, of the mean color and of the inversion, the error in pixels,
and the seconds that all layers of the model took together; and one figure per model into docs/studies/ (`--figures`).
"""

import argparse
import os
import time
from pathlib import Path

import pandas as pd
import torch
from results_table import write_table

import attncompare as ac
from attncompare.reporting.studies.inversion import inversion_figure

CASES = (
    ("demo/cnn", "shapes", 2, 400),
    ("demo/vit", "shapes", 2, 400),
    ("offline/efficientnet_lite0", "photos", 1, 120),
)
"""Model, data set, images, steps."""
DRAWN = {"demo/cnn": 1, "demo/vit": 1, "offline/efficientnet_lite0": 0}
"""Which image is drawn."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--figures", type=Path, help="folder of the figures, such as docs/studies")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = []
    for name, data, count, steps in CASES:
        model, pictures = ac.load_model(name), ac.open_dataset(data, limit=count)
        for number, picture in enumerate(pictures.names):
            images = ac.load_images(pictures.load(picture).image, model)
            wall, cpu = time.perf_counter(), time.process_time()
            found = ac.studies.invert(model, images, steps=steps)
            spent = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
            about = {"image": picture, "steps": steps, **spent, "load": os.getloadavg()[0], "threads": given.threads}
            rows.append(found.table().assign(**about))
            print(rows[-1].to_string(), flush=True)
            if given.figures and number == DRAWN[name]:
                path = given.figures / f"inversion_{name.split('/')[1]}.png"
                inversion_figure(found).savefig(path, dpi=110)
        write_table(pd.concat(rows), "inversion")


if __name__ == "__main__":
    main()
