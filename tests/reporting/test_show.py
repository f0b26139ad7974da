"""Maps in memory are drawn over the images they belong to."""

import numpy as np
import pytest
import torch

import attncompare as ac
from attncompare.errors import SpecError, UnknownNameError
from attncompare.reporting.overlay import overlay


def maps_of(values):
    return ac.AttributionMap(values, torch.zeros(len(values), dtype=torch.int64))


def test_every_place_holds_its_image_or_its_overlay():
    images = torch.rand(2, 3, 32, 32)
    maps = {name: maps_of(torch.rand(2, 4, 4)) for name in ("first", "second")}
    figure = ac.show_maps(images, maps, labels=["a", "b"])
    shown = [axes.images[0].get_array() for axes in figure.axes]
    for row in range(2):
        pixels = (images[row].permute(1, 2, 0) * 255).round().byte().numpy()
        np.testing.assert_array_equal(shown[3 * row], pixels)
        for column, found in enumerate(maps.values(), start=1):
            np.testing.assert_array_equal(shown[3 * row + column], overlay(pixels, found.values[row].numpy()))
    assert {text.get_text() for text in figure.texts} == {"image", "first", "second", "a", "b"}


def test_maps_of_other_images_and_of_channels_are_refused():
    images = torch.rand(2, 3, 8, 8)
    for values in (torch.rand(1, 4, 4), torch.rand(2, 16)):
        with pytest.raises(SpecError, match="is needed for 2 images"):
            ac.show_maps(images, {"one": maps_of(values)})
    with pytest.raises(UnknownNameError, match="venue"):
        ac.show_maps(images, {"one": maps_of(torch.rand(2, 4, 4))}, venue="napkin")
