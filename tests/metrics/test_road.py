"""Imputation equals a sparse direct solve of the published system, and ROAD the mean over nine shares."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from scipy.sparse import lil_matrix
from scipy.sparse.linalg import spsolve
from torch import Tensor

import attncompare as ac
from attncompare.metrics._base import metrics
from attncompare.metrics.imputation import NARROWEST, SHARES, imputed_scores
from attncompare.metrics.linear_fill import linear_fill
from attncompare.metrics.road import road
from attncompare.metrics.road_lerf import road_lerf
from attncompare.metrics.road_morf import road_morf


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def direct_solve(image: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """One equation a removed pixel, neighbor by neighbor: sum of weight x (pixel - neighbor) is zero."""
    places = {place: row for row, place in enumerate(zip(*np.nonzero(removed), strict=True))}
    matrix, right = lil_matrix((len(places), len(places))), np.zeros((len(places), len(image)))
    for (row, column), equation in places.items():
        for down, across in itertools.product((-1, 0, 1), repeat=2):
            near = (row + down, column + across)
            if (down, across) == (0, 0) or not (0 <= near[0] < removed.shape[0] and 0 <= near[1] < removed.shape[1]):
                continue
            weight = 1 / 12 if down and across else 1 / 6
            matrix[equation, equation] += weight
            if removed[near]:
                matrix[equation, places[near]] -= weight
            else:
                right[equation] += weight * image[(slice(None), *near)]
    found = image.copy()
    solution = spsolve(matrix.tocsc(), right).reshape(len(places), len(image))
    for place, equation in places.items():
        found[(slice(None), *place)] = solution[equation]
    return found


def pictures(count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    coarse = torch.rand(count, 3, 9, 9, generator=seeded(seed))
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)
    return (smooth + 0.1 * torch.rand(count, 3, *size, generator=seeded(seed + 1))) / 1.1


def smooth_order(size: tuple[int, int]) -> Tensor:
    return torch.nn.functional.interpolate(torch.rand(1, 1, 5, 5, generator=seeded(3)), size, mode="bilinear")[0, 0]


ORDERS = {
    "blob": smooth_order,
    "noise": lambda size: torch.rand(size, generator=seeded(4)),
    "blob and noise": lambda size: smooth_order(size) + 0.3 * torch.rand(size, generator=seeded(4)),
    "left to right": lambda size: torch.arange(size[1]).expand(size).float(),
    "stripes": lambda size: (torch.arange(size[0]) % 7).float()[:, None].expand(size) + 1e-3 * smooth_order(size),
}


@pytest.mark.parametrize("size", [(64, 64), (50, 77), (9, 31)])
@pytest.mark.parametrize("order", ORDERS)
def test_the_fill_is_the_solution_of_the_sparse_system(order, size):
    values, images = ORDERS[order](size).flatten(), pictures(3, size)
    shares = (0.1, 0.5, 0.9)
    ranks = values.argsort(descending=True).argsort()
    removed = torch.stack([(ranks < round(share * len(values))).reshape(size) for share in shares])
    filled = linear_fill(images, removed)
    for image, gone, found in zip(images, removed, filled, strict=True):
        expected = direct_solve(image.double().numpy(), gone.numpy())
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-4)
        assert torch.equal(found[:, ~gone], image[:, ~gone])


@pytest.mark.parametrize("start", [0, 700])
def test_the_fill_of_the_narrowest_strip_that_is_scored_is_the_solution(start):
    size, removed = (NARROWEST, 200), torch.zeros(NARROWEST * 200, dtype=torch.bool)
    removed[start : start + 2500] = True
    image, gone = pictures(1, size), removed.reshape(size)
    for strip, hole in ((image, gone), (image.mT, gone.mT)):
        expected = direct_solve(strip[0].double().numpy(), hole.numpy())
        np.testing.assert_allclose(linear_fill(strip, hole[None])[0].numpy(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("metric", [road, road_morf, road_lerf])
def test_road_is_undefined_for_narrower_strips(metric):
    def score(altered: Tensor, which: Tensor) -> Tensor:
        return torch.ones(len(altered))

    narrow, wide = (pictures(2, (size, 40)) for size in (NARROWEST - 1, NARROWEST))
    assert metric(narrow, narrow[:, 0], score, 0).isnan().all()
    assert metric(wide, wide[:, 0], score, 0).isfinite().all()
    assert metrics.get(metric.__name__).undefined.startswith("the image has fewer than 16 rows or columns")


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_the_fill_of_a_whole_picture_is_the_solution_of_the_sparse_system(order):
    size = (224, 224)
    removed = (ORDERS[order](size).flatten().argsort(descending=True).argsort() < 0.9 * 224 * 224).reshape(1, *size)
    images = pictures(1, size)
    expected = direct_solve(images[0].double().numpy(), removed[0].numpy())
    np.testing.assert_allclose(linear_fill(images, removed)[0].numpy(), expected, rtol=0, atol=1e-4)


@pytest.mark.peers
@pytest.mark.parametrize("order", ORDERS)
def test_the_fill_is_that_of_pytorch_grad_cam(order):
    road_peer = pytest.importorskip("pytorch_grad_cam.metrics.road")
    size, image = (64, 80), pictures(1, (64, 80))
    removed = (ORDERS[order](size).flatten().argsort(descending=True).argsort() < 0.6 * 64 * 80).reshape(1, *size)
    theirs = road_peer.NoisyLinearImputer(noise=0.0)(image[0], 1 - removed[0].float())
    torch.testing.assert_close(linear_fill(image, removed)[0], theirs, rtol=0, atol=1e-4)


def test_an_image_of_one_color_is_filled_with_it_and_nothing_removed_changes_nothing():
    flat = torch.full((1, 3, 40, 40), 0.7)
    removed = torch.rand(1, 40, 40, generator=seeded(0)) < 0.8
    torch.testing.assert_close(linear_fill(flat, removed), flat, rtol=0, atol=1e-6)
    image = pictures(1, (40, 40))
    assert torch.equal(linear_fill(image, torch.zeros_like(removed)), image)


def test_one_remaining_pixel_gives_the_whole_image_its_color():
    image, removed = pictures(1, (256, 256)), torch.ones(1, 256, 256, dtype=torch.bool)
    removed[0, 3, 17] = False
    expected = image[:, :, 3:4, 17:18].expand_as(image)
    torch.testing.assert_close(linear_fill(image, removed), expected, rtol=0, atol=1e-4)


def test_a_batch_is_filled_as_each_of_its_images():
    size = (47, 37)
    images = pictures(8, size)
    removed = torch.stack([ORDERS[name](size) > 0.4 for name in ("blob", "noise", "blob and noise", "blob")]).repeat(
        2, 1, 1
    )
    alone = torch.cat([linear_fill(images[i : i + 1], removed[i : i + 1]) for i in range(8)])
    torch.testing.assert_close(linear_fill(images, removed), alone, rtol=0, atol=1e-4)


def brightness(images: Tensor, which: Tensor, weights: Tensor) -> Tensor:
    return (images.mean(dim=1) * weights[which]).mean(dim=(1, 2))


def test_road_is_the_mean_score_over_nine_shares():
    size, images, values = (24, 20), pictures(2, (24, 20)), torch.randn(2, 24, 20, generator=seeded(5))
    score = partial(brightness, weights=torch.rand(2, *size, generator=seeded(6)))
    noise = torch.randn(3, *size, generator=seeded(11)) * 0.01
    for metric, order in ((road_morf, -values), (road_lerf, values)):
        for i in range(2):
            expected = []
            for tenth in range(1, 10):
                gone = torch.zeros(480, dtype=torch.bool)
                gone[order[i].flatten().argsort()[: round(tenth * 480 / 10)]] = True
                filled = torch.from_numpy(direct_solve(images[i].double().numpy(), gone.reshape(size).numpy())).float()
                expected.append(score((filled + noise * gone.reshape(size))[None], torch.tensor([i])).item())
            assert metric(images, values, score, 11)[i].item() == pytest.approx(np.mean(expected), abs=1e-5)
    both = (road_lerf(images, values, score, 11) - road_morf(images, values, score, 11)) / 2
    torch.testing.assert_close(road(images, values, score, 11), both)


def test_the_map_that_finds_the_bright_pixels_that_count_is_best():
    size = (32, 32)
    weights = torch.zeros(1, *size)
    weights[0, 8:16, 8:16] = 1
    images = 0.2 + 0.8 * weights[:, None].expand(1, 3, *size)
    score = partial(brightness, weights=weights)
    true = weights + 1e-3 * torch.rand(1, *size, generator=seeded(0))
    others = [torch.rand(1, *size, generator=seeded(seed)) for seed in range(1, 5)]
    best = road(images, true, score, 0).item()
    assert best > 0 and all(road(images, other, score, 0).item() < best for other in others)
    assert road(images, -true, score, 0).item() == pytest.approx(-best, abs=1e-6)


def test_every_image_is_scored_in_full_batches():
    model = ac.load_model("demo/cnn@random")
    images = torch.rand(8, 3, *model.size, generator=seeded(0))
    batches = []

    def score(altered: Tensor, which: Tensor) -> Tensor:
        batches.append(len(altered))
        return torch.zeros(len(altered))

    imputed_scores(images, torch.rand(8, *model.size), score, 0)
    assert batches == [8 * len(SHARES)]
