import math

import pytest
import torch

from attncompare.metrics.energy_inside import energy_inside
from attncompare.metrics.mask_iou import mask_iou
from attncompare.metrics.pointing_game import pointing_game

LEFT = torch.tensor([[[True, True, False, False], [True, True, False, False]]])


def on_grid(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(1, 2, 4)


def test_pointing_game_is_won_by_a_maximum_on_the_object():
    assert pointing_game(on_grid(0, 9, 1, 8, 2, 3, 4, 5), LEFT).item() == 1


def test_pointing_game_is_lost_by_a_maximum_beside_the_object():
    assert pointing_game(on_grid(8, 8, 1, 9, 8, 8, 4, 5), LEFT).item() == 0


def test_tied_maxima_count_by_the_share_on_the_object():
    assert pointing_game(on_grid(9, 0, 9, 9, 0, 0, 0, 9), LEFT).item() == pytest.approx(1 / 4)


def test_a_constant_map_points_by_the_area_of_the_object():
    assert pointing_game(torch.full((1, 2, 4), -1.0), LEFT).item() == pytest.approx(4 / 8)


def test_negative_maps_point_at_their_largest_value():
    assert pointing_game(on_grid(-1, -2, -3, -4, -5, -6, -7, -8), LEFT).item() == 1


def test_energy_is_the_share_of_the_positive_part_on_the_object():
    # inside 1 + 2 (the -5 does not count), outside 3 + 4 (nor does the -7)
    assert energy_inside(on_grid(1, 2, 3, 0, -5, 0, 4, -7), LEFT).item() == pytest.approx(3 / 10)


def test_the_energy_of_a_constant_map_is_the_area_of_the_object():
    assert energy_inside(torch.full((1, 2, 4), 0.3), LEFT).item() == pytest.approx(4 / 8)


def test_energy_is_undefined_without_a_positive_value():
    maps = torch.cat([torch.zeros(1, 2, 4), torch.full((1, 2, 4), -1.0), on_grid(1, 0, 0, 0, 0, 0, 0, 0)])
    values = energy_inside(maps, LEFT.expand(3, 2, 4))
    assert values.isnan().tolist() == [True, True, False]
    assert values[2].item() == 1


def test_overlap_counts_as_many_top_values_as_the_object_has_pixels():
    # the four largest are 9 8 7 (inside, inside, outside) and 6 (outside): 2 shared of 6 covered
    assert mask_iou(on_grid(9, 8, 7, 6, 1, 2, 3, 4), LEFT).item() == pytest.approx(2 / 6)


def test_overlap_is_one_on_the_object_and_zero_beside_it():
    assert mask_iou(LEFT.float(), LEFT).item() == 1
    assert mask_iou(1 - LEFT.float(), LEFT).item() == 0


def test_overlap_is_undefined_for_an_empty_mask_only():
    masks = torch.cat([LEFT, torch.zeros_like(LEFT)])
    values = mask_iou(on_grid(9, 8, 7, 6, 1, 2, 3, 4).expand(2, 2, 4), masks).tolist()
    assert not math.isnan(values[0]) and math.isnan(values[1])


@pytest.mark.parametrize("metric", [pointing_game, energy_inside, mask_iou])
def test_each_image_is_scored_against_its_own_mask(metric):
    maps = torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(0))
    masks = torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(1)) > 0.6
    alone = torch.cat([metric(maps[i : i + 1], masks[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(metric(maps, masks), alone)


@pytest.mark.parametrize("metric", [pointing_game, mask_iou])
def test_a_monotone_transform_of_the_map_keeps_the_score(metric):
    maps = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))
    masks = torch.rand(4, 6, 5, generator=torch.Generator().manual_seed(1)) > 0.6
    assert torch.equal(metric(maps, masks), metric(maps.exp() * 2, masks))
