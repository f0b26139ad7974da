import numpy as np
import pytest
import torch

from attncompare.errors import CaptureError
from attncompare.inspection.layout import TokenLayout

PREFIXES = (0, 1, 2, 5)
GRIDS = ((3, 3), (2, 5), (4, 1))


def token_flow(layout: TokenLayout, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(layout.length)
    return torch.randn(batch, layout.length, layout.length, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("grid", GRIDS)
def test_tokens_are_laid_row_by_row_after_the_prefix(prefix, grid):
    layout = TokenLayout(prefix, grid)
    tokens = torch.arange(2 * layout.length).reshape(2, layout.length)
    laid = layout.to_grid(tokens)
    assert laid.shape == (2, *grid)
    for image in range(2):
        for row in range(grid[0]):
            for column in range(grid[1]):
                assert laid[image, row, column] == tokens[image, prefix + row * grid[1] + column]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_token_channels_move_before_the_grid(prefix):
    layout = TokenLayout(prefix, (2, 3))
    tokens = torch.randn(2, layout.length, 4, generator=torch.Generator().manual_seed(0))
    laid = layout.to_grid(tokens)
    assert laid.shape == (2, 4, 2, 3)
    for channel in range(4):
        assert torch.equal(laid[:, channel], layout.to_grid(tokens[:, :, channel]))


@pytest.mark.parametrize("prefix", (1, 2, 5))
@pytest.mark.parametrize("grid", GRIDS)
def test_a_class_token_reads_its_own_row(prefix, grid):
    row = prefix - 1
    layout = TokenLayout(prefix, grid, class_token=row)
    flow = token_flow(layout)
    expected = flow.numpy()[:, row, prefix:].reshape(2, *grid)
    np.testing.assert_array_equal(layout.readout(flow).numpy(), expected)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("grid", GRIDS)
def test_a_pooled_model_reads_the_mean_over_patch_rows_only(prefix, grid):
    layout = TokenLayout(prefix, grid)
    flow = token_flow(layout)
    patches = range(prefix, prefix + grid[0] * grid[1])
    expected = sum(flow.numpy()[:, row, prefix:] for row in patches) / len(patches)
    np.testing.assert_allclose(layout.readout(flow).numpy(), expected.reshape(2, *grid), atol=1e-12)


@pytest.mark.parametrize("prefix", (2, 5))
def test_two_class_tokens_read_the_mean_of_their_rows(prefix):
    layout = TokenLayout(prefix, (2, 5), class_token=(0, 1))
    flow = token_flow(layout)
    expected = (flow.numpy()[:, 0, prefix:] + flow.numpy()[:, 1, prefix:]) / 2
    np.testing.assert_allclose(layout.readout(flow).numpy(), expected.reshape(2, 2, 5), atol=1e-12)


@pytest.mark.parametrize("found", (6, 8, 12))
def test_a_wrong_number_of_tokens_is_refused_with_both_numbers(found):
    with pytest.raises(CaptureError, match=rf"^{found} tokens found, 1 \+ 2 x 3 expected$"):
        TokenLayout(1, (2, 3), class_token=0).to_grid(torch.zeros(1, found))


def test_a_flow_with_a_wrong_number_of_keys_is_refused():
    with pytest.raises(CaptureError, match="9 tokens found"):
        TokenLayout(1, (2, 3), class_token=0).readout(torch.zeros(1, 9, 9))


def test_length_counts_prefix_and_patches():
    assert [TokenLayout(prefix, (2, 5)).length for prefix in PREFIXES] == [10, 11, 12, 15]
