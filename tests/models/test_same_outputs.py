"""The check of outputs that must not change: what is rounding, what is not, and what the message says."""

import pytest
import torch

from attncompare.errors import CaptureError, SpecError
from attncompare.models.same_outputs import check_same_outputs


@pytest.mark.parametrize("size", [1e-3, 1.0, 100.0])
def test_a_difference_counts_by_the_largest_output_but_not_below_one(size):
    plain, unit = torch.tensor([[size, 0.0]]), max(1.0, size)
    assert check_same_outputs(plain, plain + 0.5e-5 * unit, "it changes") == pytest.approx(0.5e-5 * unit, rel=0.1)
    with pytest.raises(CaptureError, match=r"^it changes the logits by .*, more than .*; stop$"):
        check_same_outputs(plain, plain + 2e-5 * unit, "it changes the logits", "; stop")


def test_a_caller_can_give_the_scale_the_rounding_and_the_error():
    plain = torch.tensor([1e-3])
    with pytest.raises(SpecError):
        check_same_outputs(plain, plain + 1e-6, "", scale=1e-3, error=SpecError)
    assert check_same_outputs(plain, plain + 1e-3, "", rounding=2e-3) > 0


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_what_is_no_number_is_never_the_same(odd):
    for plain, changed in ((odd, 1.0), (1.0, odd), (odd, odd)):
        with pytest.raises(CaptureError):
            check_same_outputs(torch.tensor([plain]), torch.tensor([changed]), "it changes")
