import math
from contextlib import nullcontext

import pytest
import torch

from attncompare.metrics.average_drop import average_drop
from attncompare.metrics.average_increase import average_increase
from attncompare.metrics.masking import images_behind_maps

GRAY = torch.full((1, 3, 1, 1), 0.5)


def brightness(images, which):
    """A model whose score is the mean of the picture."""
    return images.mean(dim=(1, 2, 3))


def picture(*rows):
    return torch.tensor(rows).expand(3, -1, -1)[None].clone()


def test_where_the_map_is_low_the_mean_color_shows():
    image = picture([1.0, 0.0], [0.0, 1.0])
    behind = images_behind_maps(image, torch.tensor([[[4.0, 2.0], [0.0, 3.0]]]), GRAY)  # weights 1, 1/2, 0, 3/4
    torch.testing.assert_close(behind, picture([1.0, 0.25], [0.5, 0.875]))


def test_drop_is_the_share_of_the_score_that_is_lost():
    image, shown = picture([1.0, 1.0], [1.0, 0.6]), torch.tensor([[[0.0, 0.0], [0.0, 1.0]]])
    clean = brightness(image, None)  # 0.9; behind the map three pixels are 0.5 and one is 0.6
    found = average_drop(image, shown, clean, brightness, GRAY)
    assert found.item() == pytest.approx((0.9 - 0.525) / 0.9)
    assert average_increase(image, shown, clean, brightness, GRAY).item() == 0


def test_a_rise_is_an_increase_and_no_drop():
    image, shown = picture([1.0, 0.0], [0.0, 0.0]), torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    clean = brightness(image, None)  # 0.25; behind the map 0.625
    assert average_drop(image, shown, clean, brightness, GRAY).item() == 0
    assert average_increase(image, shown, clean, brightness, GRAY).item() == 1


def test_an_equal_score_is_neither():
    image = picture([0.5, 0.5], [0.5, 0.5])
    clean, shown = brightness(image, None), torch.rand(1, 2, 2)
    assert average_drop(image, shown, clean, brightness, GRAY).item() == 0
    assert average_increase(image, shown, clean, brightness, GRAY).item() == 0


def test_a_score_of_zero_or_less_cannot_drop():
    images, shown = torch.rand(3, 3, 2, 2), torch.rand(3, 2, 2)
    found = average_drop(images, shown, torch.tensor([0.0, -0.2, 0.4]), brightness, GRAY).tolist()
    assert math.isnan(found[0]) and math.isnan(found[1]) and 0 <= found[2] <= 1


def test_a_cosine_below_zero_loses_everything_and_no_more():
    found = average_drop(
        torch.rand(1, 3, 2, 2), torch.rand(1, 2, 2), torch.tensor([0.5]), lambda x, w: -torch.ones(1), GRAY
    )
    assert found.item() == 1


def test_the_score_is_asked_for_each_image_behind_its_own_map():
    images, shown = torch.rand(3, 3, 4, 4), torch.rand(3, 4, 4)
    asked = []

    def score(altered, which):
        asked.append(which.tolist())
        return altered.mean(dim=(1, 2, 3))

    together = average_drop(images, shown, torch.full((3,), 0.9), score, GRAY)
    one_by_one = [average_drop(images[i : i + 1], shown[i : i + 1], torch.tensor([0.9]), score, GRAY) for i in range(3)]
    assert asked[0] == [0, 1, 2]
    torch.testing.assert_close(together, torch.cat(one_by_one))


class GivenMaps:
    """What torch-cam's metric asks of an extractor, for maps that are there already."""

    def __init__(self, model, maps):
        self.model, self.maps = model, maps

    def __call__(self, class_idx, scores):
        return [self.maps]

    def fuse_cams(self, cams):
        return cams[0]

    def _hooks_off(self):
        return nullcontext()


@pytest.mark.peers
def test_drop_and_increase_are_those_of_torchcam():
    pytest.importorskip("torchcam")
    from torchcam.metrics import ClassificationMetric

    import attncompare as ac

    model = ac.load_model("demo/cnn")
    images = torch.rand(4, 3, *model.size, generator=torch.Generator().manual_seed(0))
    shown = ac.make_explainer(model, "cam").explain(images, 2)
    mean, std = (
        torch.tensor(v).reshape(1, -1, 1, 1) for v in (vars(model.source.preprocessing)[k] for k in ("mean", "std"))
    )

    scaled = shown.resized(model.size).normalized().values  # torch-cam scales before it enlarges
    peer = ClassificationMetric(GivenMaps(model.module, scaled), lambda x: x.softmax(dim=1))
    peer.update((images - mean) / std, class_idx=2)
    records = ac.score(model, images, shown, metrics=["average_drop", "average_increase"])
    for name, theirs in (("average_drop", "avg_drop"), ("average_increase", "conf_increase")):
        ours = [r.value for r in records if r.measure == name]
        assert sum(ours) / 4 == pytest.approx(peer.summary()[theirs], abs=1e-5)
