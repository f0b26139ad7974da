"""The sliders and buttons of the plotly figures change what they name, and nothing else."""

import numpy as np
import pytest
import torch

import attncompare as ac
from attncompare.benchmark.layer_maps import record_layers
from attncompare.errors import SpecError

IMAGES = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    return ac.load_model("demo/vit")


def visible(figure):
    return [trace.name for trace in figure.data if trace.visible in (None, True)]


def press(figure, step):
    """What the browser does with a button's or step's arguments."""
    changes, *rest = step.args
    traces = rest[0] if rest and isinstance(rest[0], (list, tuple)) else range(len(figure.data))
    for key, value in changes.items():
        for place, trace in enumerate(traces):
            figure.data[trace][key] = value[place] if isinstance(value, (list, tuple)) else value


def test_opacity_moves_the_map_and_not_the_image(model):
    attribution = ac.make_explainer(model, "saliency").explain(IMAGES)
    figure = ac.figures.interactive(attribution, IMAGES)
    np.testing.assert_allclose(figure.data[1].z, attribution.resized((64, 64)).values[0], rtol=1e-6)
    np.testing.assert_array_equal(figure.data[0].z, (IMAGES[0].permute(1, 2, 0) * 255).round().byte())
    for step in figure.layout.sliders[0].steps:
        press(figure, step)
        assert figure.data[0].opacity is None and figure.data[1].opacity == float(step.label)
    assert figure.layout.sliders[0].steps[figure.layout.sliders[0].active].label == "0.6"


def test_buttons_show_the_overlay_the_map_and_the_image(model):
    figure = ac.figures.interactive(ac.make_explainer(model, "saliency").explain(IMAGES), IMAGES)
    seen = {}
    for button in figure.layout.updatemenus[0].buttons:
        press(figure, type("Step", (), {"args": button.args[:1]}))
        seen[button.label] = visible(figure)
    assert seen == {"overlay": ["image", "saliency"], "map": ["saliency"], "image": ["image"]}


def test_layer_and_head_sliders_are_independent(model):
    layers = record_layers(model, IMAGES)[0]
    figure = ac.figures.interactive_attention(layers, IMAGES)
    by_layer, by_head, opacity = figure.layout.sliders
    assert len(by_layer.steps) == len(layers) and len(by_head.steps) == len(layers[0].maps)
    assert visible(figure) == ["image", layers[0].layer]
    press(figure, by_head.steps[2])
    press(figure, by_layer.steps[3])
    press(figure, opacity.steps[4])
    assert visible(figure) == ["image", layers[3].layer]
    np.testing.assert_array_equal(figure.data[4].z, layers[3].maps[2])
    assert figure.data[0].opacity is None and {trace.opacity for trace in figure.data[1:]} == {0.4}


def test_a_map_per_block_will_do(model):
    maps = [ac.make_explainer(model, "class_attention", block=block).explain(IMAGES) for block in (0, 2)]
    figure = ac.figures.interactive_attention(maps, IMAGES)
    assert [trace.name for trace in figure.data] == ["image", "block 0", "block 2"]


def test_what_cannot_be_shown_is_refused(model):
    both = ac.make_explainer(model, "saliency").explain(torch.cat([IMAGES, IMAGES]))
    with pytest.raises(SpecError, match="one map on one image"):
        ac.figures.interactive(both, IMAGES)
    with pytest.raises(SpecError, match="at least one layer"):
        ac.figures.interactive_attention([], IMAGES)
