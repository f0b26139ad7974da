"""Occlusion against the closed form that a linear model allows."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import attncompare as ac
from attncompare.errors import SpecError

HEIGHT, WIDTH = 12, 20


def linear_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(3 * HEIGHT * WIDTH, 4))
    return ac.wrap_model(net, size=(HEIGHT, WIDTH), name="linear")


def windows(length, side, step):
    """Where the squares begin along one axis: until the last one reaches the border, where it is cut."""
    return [step * k for k in range(math.ceil((length - side) / step) + 1)]


def closed_form(model, image, target, window, stride, baseline):
    """Mean over the squares that cover a pixel of sum w (x - x0) inside the square: the score is linear."""
    weights = model.module[1].weight[target].detach().double().reshape(3, HEIGHT, WIDTH).numpy()
    effect = (weights * (image.double().numpy() - baseline) / 0.5).sum(axis=0)  # mean = std = 0.5 inside the model
    sides = [max(1, round(window * length)) for length in (HEIGHT, WIDTH)]
    steps = [max(1, round(stride * side)) for side in sides]
    total, count = np.zeros((HEIGHT, WIDTH)), np.zeros((HEIGHT, WIDTH))
    for top in windows(HEIGHT, sides[0], steps[0]):
        for left in windows(WIDTH, sides[1], steps[1]):
            place = np.s_[top : top + sides[0], left : left + sides[1]]
            total[place] += effect[place].sum()
            count[place] += 1
    return total / count


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": 0.3, "stride": 1.0},
        {"window": 0.25, "stride": 0.34, "baseline": 0.0},
        {"window": 0.01},
    ],
    ids=str,
)
def test_occlusion_of_a_linear_model_is_the_closed_form(pictures, options):
    model = linear_model()
    images = pictures(model)
    actual = ac.make_explainer(model, "occlusion", **options).explain(images, 2)
    assert actual.values.shape == (2, HEIGHT, WIDTH)
    settings = {"window": 0.2, "stride": 0.5, "baseline": 0.5, **options}
    for image in range(2):
        expected = closed_form(model, images[image], 2, **settings)
        np.testing.assert_allclose(actual.values[image], expected, atol=1e-5)


def test_every_square_costs_one_forward_pass_and_the_clean_image_one_more(pictures):
    model = linear_model()
    shown = ac.make_explainer(model, "occlusion").explain(pictures(model, count=3), 0)
    squares = len(windows(HEIGHT, 2, 1)) * len(windows(WIDTH, 4, 2))
    assert (shown.passes_forward, shown.passes_backward) == (squares + 1, 0)


def test_the_size_of_the_passes_does_not_change_occlusion(pictures):
    model = linear_model()
    images = pictures(model, count=3)
    one, many = (
        ac.make_explainer(model, "occlusion", internal_batch_size=batch).explain(images, 1).values for batch in (1, 64)
    )
    torch.testing.assert_close(one, many, atol=1e-6, rtol=1e-5)


def test_occlusion_of_the_evidence_itself_costs_the_score_most(pictures):
    model = linear_model()
    with torch.no_grad():
        model.module[1].weight.zero_()
        model.module[1].weight.view(4, 3, HEIGHT, WIDTH)[1, :, 3:6, 8:12] = 1
    shown = ac.make_explainer(model, "occlusion").explain(torch.ones(1, 3, HEIGHT, WIDTH), 1)
    row, column = divmod(int(shown.values[0].argmax()), WIDTH)
    assert 3 <= row < 6
    assert 8 <= column < 12


@pytest.mark.parametrize("option", ["window", "stride"])
@pytest.mark.parametrize("value", [0.0, -0.2, 1.5])
def test_a_square_that_does_not_fit_is_refused_by_name(pictures, option, value):
    model = linear_model()
    with pytest.raises(SpecError, match=option):
        ac.make_explainer(model, "occlusion", **{option: value}).explain(pictures(model), 0)
