from dataclasses import asdict

import pandas as pd
import pytest
import torch

import attncompare as ac
from attncompare.benchmark.statistics import compare_pairs, summarize
from attncompare.errors import SpecError, UnknownNameError


def test_batches_add_up_to_the_scores_of_all_images():
    model = ac.load_model("demo/cnn")
    images = torch.rand(3, 3, *model.size, generator=torch.Generator().manual_seed(0))
    explainer, names = ac.make_explainer(model, "cam"), ["deletion", "energy_inside"]
    masks = torch.rand(3, *model.size) > 0.5
    masks[2] = False
    meter = ac.Meter(model, names, "grid14")
    for part in (slice(0, 2), slice(2, 3)):
        meter.update(images[part], explainer.explain(images[part]), masks[part])
    whole = ac.score(model, images, explainer.explain(images), metrics=names, protocol="grid14", masks=masks)
    for name in names:
        values = [record.value for record in whole if record.measure == name and record.value is not None]
        assert meter.compute()[name] == pytest.approx(sum(values) / len(values), abs=1e-5)
    assert meter.failed() == {"deletion": 0, "energy_inside": 1}
    meter.reset()
    assert meter.compute() == {} and meter.records == []


def test_records_of_several_batches_are_compared_as_those_of_all_images():
    model = ac.load_model("demo/cnn")
    images = torch.rand(5, 3, *model.size, generator=torch.Generator().manual_seed(0))
    batched, whole = [], []
    for method in ("cam", "saliency"):
        explainer, meter = ac.make_explainer(model, method), ac.Meter(model, ["complexity"])
        meter.update(images[:1], explainer.explain(images[:1]))
        meter.reset()
        for part in (slice(0, 3), slice(3, 5)):
            meter.update(images[part], explainer.explain(images[part]))
        batched += meter.records
        whole += ac.score(model, images, explainer.explain(images), metrics=["complexity"])
    assert [record.image for record in batched] == [record.image for record in whole] == [*"01234"] * 2
    for statistic in (lambda rows: compare_pairs(rows, "complexity"), summarize):
        found, expected = (statistic(pd.DataFrame(map(asdict, records))) for records in (batched, whole))
        pd.testing.assert_frame_equal(found, expected, rtol=1e-4)
        assert found.n.eq(5).all()


def test_nothing_that_has_a_value_is_no_mean():
    model = ac.load_model("demo/cnn")
    image = torch.rand(1, 3, *model.size)
    meter = ac.Meter(model, ["sparseness"])
    meter.update(image, ac.AttributionMap(torch.zeros(1, 4, 4), torch.zeros(1, dtype=torch.int64), method="mine"))
    assert meter.compute() == {"sparseness": None} and meter.failed() == {"sparseness": 1}


def test_wrong_names_are_refused_when_it_is_made():
    model = ac.load_model("demo/cnn")
    with pytest.raises(UnknownNameError):
        ac.Meter(model, ["delletion"])
    with pytest.raises(SpecError):
        ac.Meter(model, ["insertion"], "chefer")
