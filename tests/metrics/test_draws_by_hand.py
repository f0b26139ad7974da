"""Metrics that draw at random, from `ac.score` down to the single draw, as docs/protocols.md defines them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor

import attncompare as ac
from attncompare.maps import AttributionMap
from attncompare.models.adapter import ModelAdapter

MODELS = ("demo/cnn", "demo/vit")


def scored(name: str, metric: str) -> tuple[ModelAdapter, Tensor, AttributionMap, list[float | None]]:
    model = ac.load_model(name)
    data = ac.open_dataset("shapes", limit=2)
    images = ac.load_images([data.load(one).image for one in data.names], model)
    maps = ac.make_explainer(model, "saliency").explain(images)
    return model, images, maps, [record.value for record in ac.score(model, images, maps, metrics=[metric])]


def enlarged(maps: AttributionMap, size: tuple[int, int]) -> np.ndarray:
    return F.interpolate(maps.values[:, None], size=size, mode="bilinear", align_corners=False)[:, 0].double().numpy()


def saliency(model: ModelAdapter, images: Tensor, target: Tensor) -> AttributionMap:
    return ac.make_explainer(model, "saliency").explain(images, target=target.tolist())


def rectangles(size: tuple[int, int], count: int = 64) -> list[tuple[slice, slice]]:
    """Share, top, left, and again: one generator, one integer at a time."""
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(count):
        share = (1 / 8, 1 / 4, 1 / 2)[int(torch.randint(3, (), generator=generator))]
        high, wide = (max(1, round(share * length)) for length in size)
        top = int(torch.randint(size[0] - high + 1, (), generator=generator))
        left = int(torch.randint(size[1] - wide + 1, (), generator=generator))
        found.append((slice(top, top + high), slice(left, left + wide)))
    return found


@pytest.mark.parametrize("name", MODELS)
def test_infidelity_removes_the_same_64_rectangles_from_every_image(name):
    model, images, maps, values = scored(name, "infidelity")
    mean = model.mean_color.reshape(3, 1, 1)
    for image, shown, target, value in zip(images, enlarged(maps, model.size), maps.target, values, strict=True):
        altered = [image]
        for rows, columns in rectangles(model.size):
            altered.append(image.clone())
            altered[-1][:, rows, columns] = mean
        with torch.no_grad():
            p = model.forward(torch.stack(altered)).softmax(dim=1)[:, target].double().numpy()
        inside, cost = np.array([shown[place].sum() for place in rectangles(model.size)]), p[0] - p[1:]
        scale = (inside * cost).sum() / (inside**2).sum()
        assert value == pytest.approx(((scale * inside - cost) ** 2).mean(), rel=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_sensitivity_adds_the_same_noise_to_every_image(name):
    model, images, maps, values = scored(name, "max_sensitivity")
    generator, changes = torch.Generator().manual_seed(0), []
    for _ in range(10):
        noise = (2 * torch.rand(images.shape[1:], generator=generator) - 1) * 0.02
        after = saliency(model, (images + noise).clamp(0, 1), maps.target).values
        changes.append((after - maps.values).flatten(1).norm(dim=1) / maps.values.flatten(1).norm(dim=1))
    assert values == pytest.approx(torch.stack(changes).amax(dim=0).tolist(), rel=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_parameter_randomisation_shuffles_group_by_group_from_the_last_module_back(name):
    model, images, maps, values = scored(name, "parameter_randomisation")
    owners = [one for one in model.module.modules() if list(one.parameters(recurse=False))][::-1]
    generator, found = torch.Generator().manual_seed(0), []
    for group in np.array_split(np.arange(len(owners)), min(8, len(owners))):
        for parameter in (one for place in group for one in owners[place].parameters(recurse=False)):
            flat = parameter.detach().flatten().clone()
            with torch.no_grad():
                parameter.copy_(flat[torch.randperm(len(flat), generator=generator)].view_as(parameter))
        after = enlarged(saliency(model, images, maps.target), model.size)
        pairs = zip(enlarged(maps, model.size), after, strict=True)
        found.append([spearmanr(one.ravel(), other.ravel()).statistic for one, other in pairs])
    assert values == pytest.approx(np.mean(found, axis=0).tolist(), abs=1e-4)
