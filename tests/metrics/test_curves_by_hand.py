import itertools

import numpy as np
import pytest
import torch
from references.curves import (
    BOTH,
    DELETION,
    INSERTION,
    LEAST,
    MEAN,
    REFERENCES,
    REMOVALS,
    SIZES,
    SmoothScore,
    curve_by_hand,
    some_images,
    some_map,
)

from attncompare.metrics.deletion import deletion
from attncompare.metrics.deletion_normalised import deletion_normalised
from attncompare.metrics.insertion_normalised import insertion_normalised
from attncompare.metrics.lerf import lerf
from attncompare.metrics.morf import morf
from attncompare.metrics.perturbation import (
    perturbation_curves,
)
from attncompare.metrics.protocols import PROTOCOLS
from attncompare.metrics.srg import srg
from attncompare.metrics.user_protocols import get_protocol


def test_every_protocol_has_a_slow_reference():
    assert set(REMOVALS) == set(PROTOCOLS)
    assert set(REFERENCES) == {name for name, protocol in PROTOCOLS.items() if protocol.insertion}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", REMOVALS)
def test_most_and_least_relevant_first_are_those_of_the_loop(name, size):
    images, maps, score = some_images(2, size), some_map(2, size), SmoothScore(2, size)
    protocol = get_protocol(name)
    found = perturbation_curves(
        score, images, maps=dict(m=maps), protocol=protocol, curves=(DELETION, LEAST), mean=MEAN
    )["m"]
    removed, units_of, count, points = REMOVALS[name]
    for i, (curve, sign) in itertools.product(range(2), ((DELETION, 1), (LEAST, -1))):
        image, units = images[i].double().numpy(), units_of(sign * maps[i].double().numpy())
        expected = curve_by_hand(lambda x, i=i: score.of(x, i), image, removed(image), units, count(*size))[:points]
        assert np.ptp(expected) > 1e-3
        np.testing.assert_allclose(found[curve][i].numpy(), expected, rtol=0, atol=1e-6)
    x = [k / count(*size) for k in range(points or count(*size) + 1)]
    np.testing.assert_allclose(protocol.shares(size).numpy(), x, atol=1e-12)
    area = sum((a + b) / 2 * (x[1] - x[0]) for a, b in itertools.pairwise(found[DELETION][0].tolist()))
    assert morf(found[DELETION], protocol.shares(size))[0].item() == pytest.approx(area, abs=1e-6)
    assert deletion(found[DELETION], protocol.shares(size))[0].item() == pytest.approx(area, abs=1e-6)


def test_the_area_of_chefers_ten_points_is_not_divided_by_their_span():
    shares = get_protocol("chefer").shares((28, 28))
    always = torch.ones(1, 10)
    assert morf(always, shares).item() == lerf(always, shares).item() == pytest.approx(0.9)
    fading = torch.tensor([[1.0, 1, 1, 1, 0, 0, 0, 0, 0, 0]])  # trapezoids: three of 0.1 and half of one
    assert lerf(fading, shares).item() == pytest.approx(0.35)


def test_the_gain_is_the_area_between_the_curves():
    shares = get_protocol("srg").shares((28, 28))
    most, least = torch.linspace(1, 0, 29)[None] ** 3, torch.linspace(1, 0, 29)[None] ** (1 / 3)
    assert srg(most, least, shares).item() == pytest.approx(3 / 4 - 1 / 4, abs=5e-3)
    assert srg(least, least, shares).item() == 0


def test_a_curve_that_stops_early_cannot_be_rescaled():
    curve, shares = torch.linspace(1, 0, 10)[None], get_protocol("chefer").shares((28, 28))
    assert deletion_normalised(curve, shares).isnan().all()
    whole = torch.linspace(0.8, 0.2, 11)[None]
    assert deletion_normalised(whole, torch.linspace(0, 1, 11)).item() == pytest.approx(0.5)
    assert insertion_normalised(whole.flip(1), torch.linspace(0, 1, 11)).item() == pytest.approx(0.5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", REFERENCES)
def test_curves_are_those_of_the_loop_in_the_paper(name, size):
    images, maps, score = some_images(2, size), some_map(2, size), SmoothScore(2, size)
    found = perturbation_curves(score, images, {"m": maps}, get_protocol(name), BOTH, mean=MEAN, batch_size=5)["m"]
    removed, inserted_into, units_of, count = REFERENCES[name]
    for i in range(2):
        image, units = images[i].double().numpy(), units_of(maps[i].double().numpy())
        deletion = curve_by_hand(lambda x, i=i: score.of(x, i), image, removed(image), units, count(*size))
        insertion = curve_by_hand(lambda x, i=i: score.of(x, i), inserted_into(image), image, units, count(*size))
        assert np.ptp(deletion) > 1e-3 and np.ptp(insertion) > 1e-3
        np.testing.assert_allclose(found[DELETION][i].numpy(), deletion, rtol=0, atol=1e-6)
        np.testing.assert_allclose(found[INSERTION][i].numpy(), insertion, rtol=0, atol=1e-6)
