"""TCAV where the answer is known: `python benchmarks/tcav.py`.

On the demo models: concepts that are painted into pictures of the shape set, a texture that says nothing of the class and
parts of one class each, for two target classes. Writes benchmarks/results/tcav.csv, one row per model, class, measure, layer
and concept. Whatever a vector says, `with_class` is by how much the class's logit rises on average when the concept is
painted into pictures of the class, where it also hides some of the object, and `without` the same in pictures of other
classes; both with bootstrap 95 % intervals.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from results_table import write_table

import attncompare as ac
from attncompare.benchmark.statistics import mean_interval
from attncompare.data.shape_concepts import add_concept, concept_pictures
from attncompare.reporting.studies.concepts import concepts_figure

LAYERS = {"demo/cnn": ("0", "1", "2"), "demo/vit": ("blocks.1", "blocks.3", "blocks.5")}
CONCEPTS = ("stripes", "arcs", "tips")
CLASSES = ("star", "ring")
EXAMPLES, IMAGES, SETS = 40, 32, 10


def of_class(name: str) -> list[np.ndarray]:
    """Test pictures of a class."""
    shapes = ac.open_dataset("shapes")
    shown = (shapes.load(one) for one in shapes.names)
    return [one.image for one in shown if shapes.class_names[one.label] == name][:IMAGES]


def logit_changes(model: ac.ModelAdapter, concept: str, target: str) -> dict[str, float]:
    """Mean rise of the target's logit by the concept, in pictures of the class and of others, with intervals."""
    pictures = {
        "with_class": of_class(target),
        "without": concept_pictures(None, EXAMPLES, without=target, start=200_000),
    }
    found = {}
    for where, plain in pictures.items():
        painted = [add_concept(one, concept, seed) for seed, one in enumerate(plain)]
        with torch.no_grad():
            after, before = (model.forward(ac.load_images(one, model)) for one in (painted, plain))
        change = (after - before)[:, model.class_index(target)].double().numpy()
        low, high = mean_interval(change)
        found |= {where: float(change.mean()), f"{where}_low": low, f"{where}_high": high}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figures", type=Path, help="folder of the figures, such as docs/studies")
    given = parser.parse_args()
    rows = []
    for name, layers in LAYERS.items():
        model = ac.load_model(name)
        for target in CLASSES:
            images, index = of_class(target), model.class_index(target)
            concepts = {one: concept_pictures(one, EXAMPLES, without=target) for one in CONCEPTS}
            random = concept_pictures(None, SETS * EXAMPLES, without=target, start=100_000)
            found = ac.studies.tcav(model, images, index, concepts, random, layers)
            changes = pd.DataFrame({one: logit_changes(model, one, target) for one in CONCEPTS}).T
            table = found.table.join(changes, on="concept")
            rows.append(table.assign(model=name, target=target, images=found.images, size=found.size))
            print(rows[-1].round(3).to_string(), flush=True)
            if given.figures and target == CLASSES[0]:
                figure = concepts_figure(found)
                figure.savefig(given.figures / f"concepts_{name.split('/')[1]}.png", dpi=130)
            write_table(pd.concat(rows), "tcav")


if __name__ == "__main__":
    main()
