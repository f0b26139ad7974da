"""The rules of transformer LRP, each against its derivation."""

import pytest
import torch
from references import lrp
from torch import nn

from attncompare.backward.transformer_lrp import transformer_lrp
from attncompare.errors import UnsupportedMethodError


@pytest.mark.parametrize("seed", range(3))
def test_the_rules_share_out_all_relevance(seed):
    """Linear layers, products and residual sums hand on what they get, however their inputs are signed."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weight, relevance = draw(5, 7), draw(4, 5)
    x = draw(4, 7).requires_grad_(True)
    with transformer_lrp():
        out = nn.functional.linear(x, weight, draw(5))
    found = torch.autograd.grad(out, x, relevance)[0]
    torch.testing.assert_close(found, lrp.positive_linear(x.detach(), weight, relevance))
    torch.testing.assert_close(found.sum(), relevance.sum())

    a, b, relevance = draw(2, 3, 4).requires_grad_(True), draw(2, 4, 5).requires_grad_(True), draw(2, 3, 5)
    with transformer_lrp():
        out = a @ b
    found = torch.autograd.grad(out, [a, b], relevance)
    for one, expected in zip(found, lrp.product(a.detach(), b.detach(), relevance), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(one.sum(), relevance.sum() / 2)

    a, b, relevance = draw(1, 6).requires_grad_(True), draw(1, 6).requires_grad_(True), draw(1, 6)
    with transformer_lrp():
        out = a + b
    found = torch.autograd.grad(out, [a, b], relevance)
    for one, expected in zip(found, lrp.residual(a.detach(), b.detach(), relevance), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[0].sum() + found[1].sum(), relevance.sum())


def test_relevance_has_no_rule_for_a_product_and_says_so():
    x = torch.rand(2, 4, requires_grad=True)
    with transformer_lrp(), pytest.raises(UnsupportedMethodError, match="no rule for"):
        _ = x * x
