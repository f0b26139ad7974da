"""How often random images pass for a concept: `python benchmarks/tcav_null.py`.

Sets of ordinary pictures of the shape set play the concept, on a demo model, with the vectors of `studies.tcav`. Writes
benchmarks/results/tcav_null.csv: the share of p below 0.05 of the test that is reported, for scores and magnitudes, and of
a t-test that takes a concept's runs for independent, as published. The level that is promised is 0.05.
"""

import argparse

import numpy as np
import pandas as pd
import torch
from results_table import write_table

import attncompare as ac
from attncompare.capture.forward_pass import record
from attncompare.data.shape_concepts import concept_pictures
from attncompare.data.shapes import CLASS_NAMES, render_shape
from attncompare.signals._base import request
from attncompare.studies.concept_vectors import LinearConcept
from attncompare.studies.concepts import null_means, null_test, welch

MODEL, LAYER, TARGET = "demo/cnn", "1", "star"
SETS, SIZE, IMAGES = 10, 12, 16


def runs_of(sets: list[np.ndarray], gradients: np.ndarray) -> pd.DataFrame:
    """Scores of all pairs among the first SETS sets, and of each later one against these."""
    rows = []
    for first in range(len(sets)):
        for second in range(first + 1, SETS) if first < SETS else range(SETS):
            labels = (torch.full((SIZE,), 0), torch.full((SIZE,), 1))
            machine = LinearConcept(seed=0)
            machine.train_and_eval(zip((torch.tensor(sets[one]) for one in (first, second)), labels, strict=True))
            along = gradients @ machine.weights()[0].numpy()
            rows.append((first, second, (along > 0).mean(), along.mean()))
    return pd.DataFrame(rows, columns=["concept", "partner", "score", "magnitude"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nulls", type=int, default=12)
    parser.add_argument("--concepts", type=int, default=10, help="for each null")
    given = parser.parse_args()
    model, index = ac.load_model(MODEL), CLASS_NAMES.index(TARGET)
    shown = (render_shape(number) for number in range(1000))
    images = ac.load_images([one.image for one in shown if one.label == index][:IMAGES], model)
    need = request("feature_gradients", layer=LAYER)
    gradients = record(model, images, [need], index).signals[need].flatten(1).numpy()
    rows = []
    for null in range(given.nulls):
        count = (SETS + given.concepts) * SIZE
        pool = ac.load_images(concept_pictures(None, count, without=TARGET, start=null * 10_000), model)
        seen = request("features", layer=LAYER)
        features = torch.cat([record(model, part, [seen], index).signals[seen].flatten(1) for part in pool.split(32)])
        runs = runs_of(np.split(features.numpy(), SETS + given.concepts), gradients)
        random = runs[runs.concept < SETS]
        for _, own in runs[runs.concept >= SETS].groupby("concept"):
            for measure in ("score", "magnitude"):
                one, opposite = random[measure], 1 - random[measure] if measure == "score" else -random[measure]
                p, _ = null_test(
                    own[measure].mean(), null_means(random, measure), 1 / IMAGES if measure == "score" else 0
                )
                usual = welch(own[measure].to_numpy(), np.concatenate([one, opposite]))
                rows.append({"measure": measure, "set_wise": p < 0.05, "run_wise": usual < 0.05, "null": null})
        table = pd.DataFrame(rows).groupby("measure")[["set_wise", "run_wise"]].agg(["mean", "sum", "size"])
        table.columns = [f"{test}_{what}" for test, what in table.columns]
        write_table(
            table.reset_index().assign(model=MODEL, layer=LAYER, target=TARGET, sets=SETS, size=SIZE), "tcav_null"
        )


if __name__ == "__main__":
    main()
