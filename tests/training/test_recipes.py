"""Learning rates and ends of training against torch's own schedulers and by hand."""

import pytest
import torch
from torch import nn

from attncompare.training.recipes import AdamPlateau, WarmupCosine

ACCURACIES = [0.1, 0.3, 0.3, 0.2, 0.25, 0.3, 0.29, 0.5, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4]


def rows(accuracies):
    return [{"accuracy": accuracy} for accuracy in accuracies]


@pytest.mark.parametrize(("patience", "factor"), [(3, 0.5), (0, 0.1), (2, 0.5)])
def test_the_plateau_is_that_of_torch(patience, factor):
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=0.01)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=patience, factor=factor)
    recipe = AdamPlateau(steps=100, learning_rate=0.01, patience=patience, factor=factor)
    for count in range(1, len(ACCURACIES) + 1):
        theirs.step(ACCURACIES[count - 1])
        assert recipe.rate(count, rows(ACCURACIES[:count])) == optimizer.param_groups[0]["lr"]
    assert recipe.rate(0, []) == 0.01
    assert recipe.rate(99, rows(ACCURACIES)) < 0.01


def test_patience_3_halves_after_the_fourth_epoch_without_a_rise():
    recipe = AdamPlateau(steps=100)
    rates = [recipe.rate(0, rows([0.5] * count)) for count in range(1, 7)]
    assert rates == [1e-3] * 4 + [5e-4] * 2


def test_early_stop_counts_from_the_first_best_epoch():
    recipe = AdamPlateau(steps=100, early_stop=3)
    assert [recipe.is_over(rows(ACCURACIES[:count])) for count in range(7)] == [False] * 5 + [True] * 2
    assert not AdamPlateau(steps=100).is_over(rows(ACCURACIES))


def test_warm_up_and_cosine_by_hand():
    recipe = WarmupCosine(steps=300, learning_rate=2.0, warmup_steps=100)
    assert [recipe.rate(step) for step in (0, 49, 99, 100)] == [0.02, 1.0, 2.0, 2.0]
    assert recipe.rate(200) == pytest.approx(2 * (0.01 + 0.99 * 0.5))
    assert recipe.rate(300) == pytest.approx(0.02)
