import pytest
import torch

from attncompare.metrics.perturbation import (
    area_under_curve,
    rescaled_curve,
)


@pytest.mark.parametrize(
    ("curve", "area"),
    [
        ([1.0, 1.0], 1.0),
        ([1.0, 0.0], 0.5),
        ([0.8, 0.4, 0.2], 0.45),  # (0.8 + 0.4) / 2 / 2 + (0.4 + 0.2) / 2 / 2
        ([0.0, 0.0, 0.0, 0.0, 1.0], 0.125),
    ],
)
def test_area_is_the_trapezoid_sum_over_zero_to_one(curve, area):
    assert area_under_curve(torch.tensor([curve])).item() == pytest.approx(area, abs=1e-7)


def test_area_is_taken_per_image():
    assert area_under_curve(torch.tensor([[1.0, 0.0], [0.0, 0.5]])).tolist() == [0.5, 0.25]


def test_a_rescaled_deletion_curve_runs_from_one_to_zero():
    curve = torch.tensor([[0.75, 0.5, 0.25]])
    assert rescaled_curve(curve, clean=0, base=-1).tolist() == [[1.0, 0.5, 0.0]]


def test_a_rescaled_insertion_curve_runs_from_zero_to_one():
    curve = torch.tensor([[0.25, 1.0, 0.75]])
    assert rescaled_curve(curve, clean=-1, base=0).tolist() == [[0.0, 1.5, 1.0]]


def test_rescaling_is_undefined_where_the_ends_differ_by_less_than_a_hundredth():
    curve = torch.tensor([[0.5, 0.9, 0.4905], [0.5, 0.9, 0.489], [0.489, 0.9, 0.5], [0.5, 0.9, 0.5]])
    undefined = rescaled_curve(curve, clean=0, base=-1).isnan()
    assert undefined.all(dim=1).tolist() == [True, False, False, True]
    assert undefined.any(dim=1).tolist() == [True, False, False, True]
