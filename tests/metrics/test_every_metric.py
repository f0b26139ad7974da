"""One battery over the registry: what every metric promises, on a model, an image set and maps of every kind."""

import math

import pytest
import torch

import attncompare as ac
from attncompare.benchmark.evidence import Passes, Scene
from attncompare.benchmark.scoring import again_of, as_records, score_maps
from attncompare.capture.target import TargetScore
from attncompare.maps import AttributionMap
from attncompare.metrics._base import metrics
from attncompare.metrics.protocols import Protocol
from attncompare.models.adapter import ModelAdapter

SCORING = [metric.name for metric in metrics if not metric.pairwise]
QUICK = Protocol("quick", 8, 4, "mean", "blur")
CHEAP = {"infidelity": {"squares": 6}, "max_sensitivity": {"n_samples": 2}}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def model() -> ModelAdapter:
    return ac.load_model("demo/cnn")


@pytest.fixture(scope="module")
def scene(model: ModelAdapter) -> Scene:
    images = torch.rand(3, 3, *model.size, generator=seeded(0))
    with torch.no_grad():
        target = TargetScore.of(model, model.forward(images), None)
    return Scene(images, target, torch.rand(3, *model.size, generator=seeded(1)) > 0.7)


def maps_of_every_kind() -> dict[str, torch.Tensor]:
    drawn = torch.randn(3, 8, 8, generator=seeded(2))
    return {
        "signed": drawn,
        "rectified": drawn.relu(),
        "negative": -drawn.exp(),
        "zero": torch.zeros(3, 8, 8),
        "constant": torch.full((3, 8, 8), 2.5),
        "one pixel": torch.eye(64)[:3].reshape(3, 8, 8),
        "tiny": drawn * 1e-20,
        "huge": drawn * 1e20,
        "full size": torch.randn(3, 64, 64, generator=seeded(3)),
    }


def scored(model, scene, name, maps, **options):
    metric = metrics.get(name).with_options(CHEAP.get(name, {}))
    explainers = {key: again_of(model, "saliency", {}) for key in maps}
    return {
        key: one[0]
        for key, one in score_maps(
            model, scene, maps, [metric], QUICK, explainers=explainers, passes=Passes(**options)
        ).items()
    }


@pytest.mark.parametrize("name", SCORING)
def test_values_lie_in_their_range_or_are_failed_records_with_a_reason(model, scene, name):
    metric, kinds = metrics.get(name), maps_of_every_kind()
    for kind, one in scored(model, scene, name, kinds).items():
        assert one.values.shape == (3,) and one.values.dtype == torch.float32 and not one.values.isinf().any()
        if kind in ("signed", "full size"):
            assert not one.values.isnan().any()
        made = AttributionMap(kinds[kind], scene.targets, model="m", method=kind)
        for record, value in zip(
            as_records(one, ["a", "b", "c"], made, "quick", "k"), one.values.tolist(), strict=True
        ):
            assert record.degenerate == (kind in ("zero", "constant"))
            if math.isnan(value):
                assert (record.status, record.value) == ("failed", None) and len(record.detail) > 10
                continue
            assert (record.status, record.value, record.detail) == ("ok", value, "")
            assert metric.bounds[0] - 1e-6 <= value <= metric.bounds[1] + 1e-6, f"{name} of a {kind} map: {value}"


@pytest.mark.parametrize("name", SCORING)
def test_images_together_score_as_each_alone(model, scene, name):
    drawn = {"m": torch.rand(3, 8, 8, generator=seeded(4))}
    together = scored(model, scene, name, drawn)["m"].values
    for i in range(len(together)):
        alone = scored(model, scene.subset([i]), name, {"m": drawn["m"][i : i + 1]})["m"].values
        torch.testing.assert_close(alone[0], together[i], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("name", SCORING)
def test_the_batch_size_changes_nothing_and_the_model_is_left_as_found(model, scene, name):
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    model.module.train()
    try:
        drawn = {"m": torch.rand(3, 8, 8, generator=seeded(4))}
        first, second = (scored(model, scene, name, drawn, batch_size=size)["m"].values for size in (2, 64))
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5)
        assert model.module.training
    finally:
        model.module.eval()
    assert all(torch.equal(value, before[key]) for key, value in model.module.state_dict().items())


@pytest.mark.parametrize("metric", list(metrics), ids=lambda metric: metric.name)
def test_every_metric_says_what_it_is(metric):
    assert metric.better in ("higher", "lower")
    assert metric.bounds[0] < metric.bounds[1]
    assert len(metric.reference) > 10 and len(metric.summary) > 20 and metric.undefined
    assert metric.compute.__doc__ and metric.compute.__name__ == metric.name == metric.compute.__module__.split(".")[-1]
