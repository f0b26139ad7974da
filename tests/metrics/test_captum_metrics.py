"""Infidelity and max-sensitivity against their definitions, written out."""

import math
from itertools import islice

import pytest
import torch
from torch import Tensor

from attncompare.errors import SpecError
from attncompare.metrics._base import metrics
from attncompare.metrics.infidelity import infidelity, random_squares
from attncompare.metrics.max_sensitivity import max_sensitivity

GRAY = torch.tensor([0.4, 0.5, 0.6]).reshape(1, 3, 1, 1)
SIZE = (12, 16)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


IMAGES, MAPS = torch.rand(3, 3, *SIZE, generator=seeded(0)), torch.randn(3, *SIZE, generator=seeded(1))
WEIGHTS = torch.randn(3, *SIZE, generator=seeded(2))


def curved(images: Tensor, which: Tensor) -> Tensor:
    return (images.mean(dim=1) * WEIGHTS[which]).sum(dim=(1, 2)).sigmoid()


def additive(images: Tensor, which: Tensor) -> Tensor:
    return (images.mean(dim=1) * WEIGHTS[which]).sum(dim=(1, 2))


def test_squares_lie_inside_and_have_one_of_three_sizes():
    seen = set()
    for mask in islice(random_squares(SIZE, 0), 200):
        rows, columns = mask.any(dim=1).nonzero()[:, 0], mask.any(dim=0).nonzero()[:, 0]
        sides = (int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1)
        assert int(mask.sum()) == sides[0] * sides[1]
        seen.add(sides)
    assert seen == {(2, 2), (3, 4), (6, 8)}


def test_infidelity_is_the_mean_squared_error_under_the_best_scale():
    found = infidelity(IMAGES, MAPS, curved, GRAY, 7, squares=20)
    squares = list(islice(random_squares(SIZE, 7), 20))
    for i in range(3):
        which = torch.tensor([i])
        sums = torch.stack([MAPS[i][mask].sum() for mask in squares])
        costs = []
        for mask in squares:
            altered = IMAGES[i].clone()
            altered[:, mask] = GRAY[0, :, 0].expand(3, int(mask.sum()))
            costs.append(curved(IMAGES[i : i + 1], which) - curved(altered[None], which))
        costs = torch.cat(costs)
        scale = (sums * costs).mean() / sums.square().mean()
        assert found[i].item() == pytest.approx((scale * sums - costs).square().mean().item(), rel=1e-4, abs=1e-8)


def test_the_exact_share_of_every_pixel_has_no_infidelity_and_others_have():
    shares = WEIGHTS * (IMAGES - GRAY).mean(dim=1)
    assert infidelity(IMAGES, shares, additive, GRAY, 0).max() < 1e-6
    assert infidelity(IMAGES, MAPS, additive, GRAY, 0).min() > 1e-3


def test_the_unit_of_the_map_does_not_matter():
    scaled = infidelity(IMAGES, -250 * MAPS, curved, GRAY, 0)
    torch.testing.assert_close(scaled, infidelity(IMAGES, MAPS, curved, GRAY, 0))


def test_a_map_of_zeros_predicts_that_nothing_is_lost():
    zero, squares = infidelity(IMAGES, 0 * MAPS, curved, GRAY, 0, squares=8), list(islice(random_squares(SIZE, 0), 8))
    which = torch.zeros(8, dtype=torch.int64)
    altered = torch.stack([torch.where(mask, GRAY[0], IMAGES[0]) for mask in squares])
    lost = curved(IMAGES[:1].expand(8, -1, -1, -1), which) - curved(altered, which)
    assert zero[0].item() == pytest.approx(lost.square().mean().item(), rel=1e-4)


def squares_of(images: Tensor, which: Tensor) -> Tensor:
    """An explainer that knows which image each copy is of."""
    return images.square().sum(dim=1) * (1 + which.reshape(-1, 1, 1))


def test_sensitivity_is_the_largest_relative_change_of_the_map():
    found = max_sensitivity(IMAGES, squares_of, 5, n_samples=4, radius=0.1)
    generator, everything = seeded(5), torch.arange(3)
    clean, largest = squares_of(IMAGES, everything), torch.zeros(3)
    for _ in range(4):
        noise = (2 * torch.rand(IMAGES.shape[1:], generator=generator) - 1) * 0.1
        change = squares_of((IMAGES + noise).clamp(0, 1), everything) - clean
        largest = torch.maximum(largest, change.flatten(1).norm(dim=1) / clean.flatten(1).norm(dim=1))
    torch.testing.assert_close(found, largest)
    assert found.min() > 0.01 and found.max() < 1


def test_an_explainer_that_ignores_the_image_is_not_sensitive():
    assert max_sensitivity(IMAGES, lambda images, which: MAPS[which], 0).tolist() == [0, 0, 0]


def test_a_map_of_zeros_has_no_relative_change():
    found = max_sensitivity(IMAGES, lambda images, which: MAPS[which] * (which != 1).reshape(-1, 1, 1), 0)
    assert found.isnan().tolist() == [False, True, False]


def test_changed_images_stay_images():
    def explain(images: Tensor, which: Tensor) -> Tensor:
        assert images.min() >= 0 and images.max() <= 1
        return images.mean(dim=1)

    assert max_sensitivity(IMAGES.round(), explain, 0, radius=0.5).min() > 0


@pytest.mark.parametrize(
    ("radius", "message"),
    [(2.0, "must lie between 1e-06 and 1, not 2.0"), (math.inf, "between 1e-06 and 1, not inf"), (math.nan, "between")],
)
def test_a_radius_beyond_the_range_of_an_image_is_refused(radius, message):
    with pytest.raises(SpecError, match=message):
        metrics.get("max_sensitivity").with_options({"radius": radius})


@pytest.mark.parametrize("scale", [1e-38, 1e-24, 1e-20, 1e18, 1e30])
def test_the_unit_of_a_map_is_free(scale):
    """Squares of such values leave the range of float32."""
    expected, found = (infidelity(IMAGES, MAPS * one, curved, GRAY, 7, squares=20) for one in (1, scale))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    expected, found = (max_sensitivity(IMAGES, lambda *at: squares_of(*at) * one, 0) for one in (1, scale))  # noqa: B023
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
