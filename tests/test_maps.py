import numpy as np
import pytest
import torch
import torch.nn.functional as F

from attncompare.maps import AttributionMap, normalize_map, resize_map


def random_maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bilinear_by_hand(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Sample the map at pixel centers: output pixel i lies at (i + 1/2) h / H - 1/2, clamped to the map."""
    found = np.zeros(size)
    for row in range(size[0]):
        for column in range(size[1]):
            y = min(max((row + 0.5) * values.shape[0] / size[0] - 0.5, 0), values.shape[0] - 1)
            x = min(max((column + 0.5) * values.shape[1] / size[1] - 0.5, 0), values.shape[1] - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, values.shape[0] - 1), min(left + 1, values.shape[1] - 1)
            down, across = y - top, x - left
            found[row, column] = (
                (1 - down) * (1 - across) * values[top, left]
                + (1 - down) * across * values[top, right]
                + down * (1 - across) * values[bottom, left]
                + down * across * values[bottom, right]
            )
    return found


@pytest.mark.parametrize("size", [(28, 28), (24, 40), (5, 3)])
def test_bilinear_resizing_is_interpolate_without_aligned_corners(size):
    maps = random_maps(3, 7, 6)
    expected = F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(resize_map(maps, size), expected, rtol=0, atol=0)


def test_nearest_resizing_repeats_values():
    maps = random_maps(2, 3, 4)
    expected = torch.from_numpy(np.kron(maps.numpy(), np.ones((2, 3), np.float32)))
    torch.testing.assert_close(resize_map(maps, (6, 12), "nearest"), expected, rtol=0, atol=0)


def test_a_row_of_two_becomes_a_ramp_with_flat_ends():
    resized = resize_map(torch.tensor([[[0.0, 4.0]]]), (1, 4))
    assert resized.tolist() == [[[0.0, 1.0, 3.0, 4.0]]]


def test_bilinear_resizing_of_an_oblong_map_by_hand():
    maps = random_maps(1, 3, 5, seed=1)
    expected = bilinear_by_hand(maps[0].double().numpy(), (8, 7))
    np.testing.assert_allclose(resize_map(maps, (8, 7))[0].numpy(), expected, atol=1e-6)


def test_a_map_of_the_right_size_is_left_alone():
    maps = random_maps(2, 6, 4)
    assert torch.equal(resize_map(maps, (6, 4)), maps)


def test_each_map_is_normalized_by_its_own_range():
    maps = torch.tensor([[[1.0, 3.0], [2.0, 5.0]], [[-4.0, 0.0], [4.0, 4.0]]])
    expected = torch.tensor([[[0.0, 0.5], [0.25, 1.0]], [[0.0, 0.5], [1.0, 1.0]]])
    torch.testing.assert_close(normalize_map(maps), expected)


@pytest.mark.parametrize("value", [0.0, 3.5, -2.0])
def test_a_constant_map_becomes_zero_beside_a_varied_one(value):
    maps = torch.stack([torch.full((3, 2), value), torch.arange(6.0).reshape(3, 2)])
    normalized = normalize_map(maps)
    assert torch.equal(normalized[0], torch.zeros(3, 2))
    assert normalized[1].min() == 0 and normalized[1].max() == 1


def test_an_attribution_map_keeps_its_origin_when_resized_and_normalized():
    raw = AttributionMap(
        random_maps(2, 4, 4), torch.tensor([3, 1]), model="m", method="cam", options={"layer": "x"}, passes_forward=1
    )
    shown = raw.resized((8, 6)).normalized()
    torch.testing.assert_close(shown.values, normalize_map(resize_map(raw.values, (8, 6))), rtol=0, atol=0)
    assert (shown.model, shown.method, dict(shown.options), shown.passes_forward) == ("m", "cam", {"layer": "x"}, 1)
    assert torch.equal(shown.target, raw.target)


def test_resizing_and_normalizing_leave_the_raw_map_as_it_was():
    values = random_maps(1, 4, 4)
    raw = AttributionMap(values.clone(), torch.tensor([0]))
    raw.resized((8, 8), "nearest")
    raw.normalized()
    assert torch.equal(raw.values, values)


def test_only_maps_with_a_height_and_a_width_are_spatial():
    assert AttributionMap(torch.zeros(2, 4, 4), torch.zeros(2)).spatial
    assert not AttributionMap(torch.zeros(2, 16), torch.zeros(2)).spatial
